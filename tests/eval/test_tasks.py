import json
from pathlib import Path

import pytest

from align import registry
from align.errors import DataError, RecipeError
from align.policies.base import Failed, completion_of
from align_eval import task_files
from align_eval.task_run import Tasks, hash_of, run_tasks
from align_eval.tasks import Filter, load_task, measure_task, questions_of

FOLDER = Path(task_files.__file__).parent


class Answering:
    """A policy that answers what a function says, or fails with the reason it gives."""

    identity = "scripted"

    def __init__(self, answer):
        self.answer = answer
        self.asked = []

    def generate(self, prompts, n, sampling, seed):
        rows = []
        for prompt in prompts:
            self.asked.append((prompt.prompt[-1].content, sampling, seed))
            text, reason = self.answer(prompt.row, prompt.prompt[-1].content)
            rows.append(
                [
                    Failed(prompt, 0, reason, "")
                    if reason
                    else completion_of(prompt, text, policy="p", sample=0)
                ]
            )
        return rows


def says(*texts):
    return Answering(lambda row, _: (texts[(row - 1) % len(texts)], None))


def test_every_built_in_task_loads_and_has_a_version():
    names = {file.stem for file in FOLDER.glob("*.yaml")}
    assert names == {"sums", "styles", "gsm8k"} == set(registry.names("task"))
    for name in names:
        task = load_task(name)
        assert task.name == name
        assert task.version >= 1


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        ("2 + 2 = 4, so\n#### 18", True, True),
        ("#### 18\n", True, True),
        ("####18", True, True),
        ("#### 18.0", True, True),
        ("#### $18", False, True),
        ("The answer is 18.", False, True),
        ("18 eggs, not 7", False, False),
        ("#### 17\nno, 18", False, True),
        ("#### 18\nThat is 3 a day.", True, False),
        ("so #### 18", False, True),
        ("eighteen", False, False),
    ],
)
def test_the_filters_of_gsm8k(tmp_path, text, strict, flexible):
    task = load_task("gsm8k")
    file = tmp_path / "q.jsonl"
    file.write_text(json.dumps({"question": "How many?", "answer": "9 <<9+9=18>>\n#### 18"}))
    questions = questions_of(task, file, n=None, seed=0)
    assert questions[0].answer == "18"
    policy = says(text)
    score = measure_task(task, policy, questions, seed=3)
    assert (score.strict.value, score.flexible.value) == (float(strict), float(flexible))
    asked, sampling, seed = policy.asked[0]
    assert asked.startswith("How many?\n\nThink step by step.")
    assert (sampling, seed) == (task.sampling, 3)


def test_every_published_answer_of_gsm8k_is_right_by_both_filters(shared_data):
    file = shared_data / "gsm8k" / "gsm8k_test.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    task = load_task("gsm8k")
    questions = questions_of(task, file, n=None, seed=0)
    assert len(questions) == 1319
    policy = Answering(lambda row, _: (rows[row - 1]["answer"], None))
    score = measure_task(task, policy, questions, seed=0)
    assert (score.strict.value, score.flexible.value, score.n) == (1.0, 1.0, 1319)
    # Each answered with its neighbour's: right only where two neighbours share their answer.
    policy = Answering(lambda row, _: (rows[row % 1319]["answer"], None))
    equal = sum(
        questions[i].answer.replace(",", "") == questions[(i + 1) % 1319].answer.replace(",", "")
        for i in range(1319)
    )
    score = measure_task(task, policy, questions, seed=0)
    assert score.strict.value == score.flexible.value == equal / 1319
    assert equal < 20


def test_sums_are_judged_by_the_worlds_own_judge():
    from align.worlds.additions import solution_of, split_of

    task = load_task("sums")
    questions = questions_of(task, None, n=6, seed=0)
    assert questions_of(task, None, n=6, seed=1) != questions
    operands = [tuple(map(int, q.text.rstrip("?").split("+"))) for q in questions]
    assert {split_of(o) for o in operands} == {"held_out"}
    texts = [solution_of(o) for o in operands]
    texts[1] = str(sum(operands[1]))  # right, and not written out
    texts[2] = texts[2][:-1] + ("0" if texts[2][-1] != "0" else "1")
    score = measure_task(task, says(*texts), questions, seed=0)
    assert (score.strict.value, score.flexible.value) == (4 / 6, 5 / 6)
    assert score.strict.n == 6


def test_styles_are_counted_and_read_loosely_too():
    task = load_task("styles")
    questions = questions_of(task, None, n=4, seed=0)
    topics = [q.text.removeprefix("what of ").rstrip("?") for q in questions]
    texts = [
        f"{topics[0]}! old!",
        f"Is {topics[1]}  not old?",
        f"{topics[2]} is good.",
        f"{topics[0]} is old.",
    ]
    score = measure_task(task, says(*texts), questions, seed=0)
    assert (score.strict.value, score.flexible.value) == (0.25, 0.5)
    assert score.outcomes == {"malformed": 3, "shouting": 1}


def test_own_failures_are_wrong_and_other_ones_are_left_out(tmp_path):
    reasons = {2: "unfinished", 3: "empty", 4: "unanswered", 5: "refused"}
    task = load_task("sums")
    questions = questions_of(task, None, n=8, seed=0)

    def answer(row, _):
        return questions[row - 1].answer, reasons.get(row)

    score = measure_task(task, Answering(answer), questions, seed=0)
    assert score.flexible.n == 6
    assert score.flexible.value == pytest.approx(4 / 6)
    assert score.own_failures == {"empty": 1, "unfinished": 1}
    assert score.reasons == {"refused": 1, "unanswered": 1}
    with pytest.raises(DataError, match="2 of 8 failed"):
        run_tasks(Tasks(tasks=("sums",), n=8), Answering(answer), tmp_path, model="m")


def test_a_run_leaves_one_json_and_one_table(tmp_path):
    file = tmp_path / "q.jsonl"
    rows = [{"question": f"q{i}", "answer": f"#### {i}"} for i in range(5)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    node = Tasks(tasks=("gsm8k", "sums"), files={"gsm8k": str(file)}, n=4)
    found = run_tasks(node, says("#### 1"), tmp_path / "run", model="m")
    assert found["scores"]["gsm8k"]["strict"]["value"] == 0.25
    assert found["scores"]["gsm8k"]["version"] == 2
    assert (found["n"], found["n_judged"], found["n_failed"]) == (8, 8, 0)
    assert set(found["provenance"]["tasks"]["gsm8k"]) == {"version", "hash", "sampling", "file"}
    table = (tmp_path / "run" / "table.md").read_text()
    assert "| gsm8k v2 | m | 25.00 |" in table
    assert "Answers to gsm8k: greedy, at most 1024 tokens." in table
    assert "Answers to sums: greedy, at most 32 tokens." in table


def test_an_answer_that_is_cut_off_is_read_where_the_task_says_so(tmp_path):
    class CutOff:
        identity = "scripted"

        def generate(self, prompts, n, sampling, seed):
            assert sampling.keep_unfinished
            return [
                [completion_of(p, "#### 1\nand so", policy="p", sample=0, finished=p.row != 1)]
                for p in prompts
            ]

    file = tmp_path / "q.jsonl"
    rows = [{"question": f"q{i}", "answer": f"#### {i}"} for i in (1, 1, 2)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    node = Tasks(tasks=("gsm8k",), files={"gsm8k": str(file)})
    found = run_tasks(node, CutOff(), tmp_path / "run", model="m")
    assert found["scores"]["gsm8k"]["strict"]["value"] == pytest.approx(2 / 3)
    assert (found["n_judged"], found["n_cut"], found["scores"]["gsm8k"]["n_cut"]) == (3, 1, 1)
    assert "3 judged, 0 failed, 1 cut off" in (tmp_path / "run" / "table.md").read_text()


def test_what_is_no_task_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"no task '?sum'?; did you mean `sums`"):
        load_task("sum")
    with pytest.raises(RecipeError, match=r"no task '?zz'?; there are gsm8k, styles, sums.*YAML"):
        load_task("zz")
    path = tmp_path / "mine.yaml"
    text = (FOLDER / "gsm8k.yaml").read_text()
    for old, new, words in (
        ("version: 2", "version: 0", "version: Input should be greater"),
        ("version: 2", "vershun: 2", r"version: is missing; vershun: no such key.* `version`"),
        ("{by: pattern}", "{bye: pattern}", r"flexible.bye: no such key; did you mean `by`"),
        ("temperature: 0.0", "temprature: 0.0", r"sampling.temprature: .* `temperature`"),
        ("keep_unfinished: true", "keep: true", r"sampling.keep: no such key"),
        ("source: file", "source: world:sums", "is for `source: file`"),
        ("strict: {by: pattern,", "strict: {by: world,", "has no judge of its own"),
        ("{question}", "{quest}", "must hold {question}"),
        ("name: gsm8k", "name: [", "is no YAML"),
    ):
        assert old in text
        path.write_text(text.replace(old, new))
        with pytest.raises(RecipeError, match=words):
            load_task(str(path))
    path.write_text(text)
    with pytest.raises(RecipeError, match="reads a file: give one"):
        questions_of(load_task(str(path)), None, n=1, seed=0)
    with pytest.raises(RecipeError, match="reads no file: take it out"):
        questions_of(load_task("sums"), path, n=1, seed=0)
    with pytest.raises(RecipeError, match="gsm8k is none of the tasks"):
        run_tasks(Tasks(tasks=("sums",), files={"gsm8k": "x"}), says(""), tmp_path, model="m")
    rows = tmp_path / "q.jsonl"
    rows.write_text(json.dumps({"question": "q", "answer": "no mark"}))
    with pytest.raises(DataError, match=r"q.jsonl:1: answer holds nothing"):
        questions_of(load_task("gsm8k"), rows, n=1, seed=0)


CAPITALS = """
name: capitals
version: 3
source: rows
rows:
  - {question: "The capital of France?", answer: Paris}
  - {question: "The capital of Peru?", answer: Lima}
  - {question: "The capital of Nepal?", answer: Kathmandu}
prompt: "Answer in a word. {question}"
strict: {by: pattern, pattern: '^(.+)$'}
flexible: {by: pattern, pattern: '\\b(Paris|Lima|Kathmandu)\\b'}
sampling: {max_new_tokens: 8, temperature: 0.0}
"""

OWN = """
from align.policies.base import Sampling
from align_eval.tasks import Filter, Row, Task


def exactly(prompt, completion, answer):
    assert prompt.startswith("The capital of"), "the question itself, without the task's prompt"
    return float(completion == answer)


async def within(prompts, completions, answer):
    return [float(known in text) for text, known in zip(completions, answer, strict=True)]


def unsure(prompt, completion, answer):
    return None if completion == "Rome" else 1.0


def better(prompt, first, second):
    return 0.5


capitals = Task(
    name="capitals",
    version=1,
    source="rows",
    rows=[Row(question="The capital of France?", answer="Paris"),
          Row(question="The capital of Peru?", answer="Lima")],
    strict=Filter(by=__FILE__ + ":exactly"),
    flexible=Filter(by=__FILE__ + ":within"),
    sampling=Sampling(max_new_tokens=8),
)
nothing = "capitals"
"""


@pytest.fixture
def own(tmp_path):
    """A user's file with tasks and filters."""
    path = tmp_path / "mine.py"
    path.write_text(OWN.replace("__FILE__", repr(str(path))))
    return path


def test_the_rows_of_a_task_are_its_questions(tmp_path):
    path = tmp_path / "capitals.yaml"
    path.write_text(CAPITALS)
    task = load_task(str(path))
    assert (task.name, task.version) == ("capitals", 3)
    questions = questions_of(task, None, n=None, seed=0)
    assert [(q.text, q.answer) for q in questions] == [
        ("The capital of France?", "Paris"),
        ("The capital of Peru?", "Lima"),
        ("The capital of Nepal?", "Kathmandu"),
    ]
    assert questions_of(task, None, n=2, seed=5) == questions[:2]
    policy = says("Paris", "It is Lima.", "Lima")
    score = measure_task(task, policy, questions, seed=0)
    assert policy.asked[0][0] == "Answer in a word. The capital of France?"
    assert (score.strict.value, score.flexible.value, score.n) == (1 / 3, 2 / 3, 3)
    # A row is part of what was measured: another one is another task.
    path.write_text(CAPITALS.replace("Peru", "Chile").replace("Lima}", "Santiago}"))
    assert hash_of(load_task(str(path))) != hash_of(task)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("source: rows", "source: file", "is for `source: rows`"),
        ("source: rows", "source: row", "write file, rows, or a world"),
        ("source: rows", "source: world:sum", "did you mean world:sums"),
        (", answer: Lima", "", "write `answer` in every row"),
        ("by: pattern, pattern: '^", "by: patern, pattern: '^", "no filter 'patern'"),
        ("by: pattern, pattern: '^", "by: world, pattern: '^", "has no judge of its own"),
    ],
)
def test_rows_that_cannot_stand_are_refused(tmp_path, old, new, words):
    path = tmp_path / "capitals.yaml"
    assert old in CAPITALS
    path.write_text(CAPITALS.replace(old, new, 1))
    with pytest.raises(RecipeError, match=words):
        load_task(str(path))


def test_a_task_and_its_filters_come_from_a_users_file(own, tmp_path):
    task = load_task(f"{own}:capitals")
    questions = questions_of(task, None, n=None, seed=0)
    score = measure_task(task, says("Paris", "It is Lima."), questions, seed=0)
    assert (score.strict.value, score.flexible.value) == (0.5, 1.0)
    # Each completion is held against its own answer.
    score = measure_task(task, says("Lima", "Paris"), questions, seed=0)
    assert (score.strict.value, score.flexible.value) == (0.0, 0.0)

    node = Tasks(tasks=(f"{own}:capitals",))
    found = run_tasks(node, says("Paris"), tmp_path / "run", model="m")
    assert found["scores"]["capitals"]["strict"]["value"] == 0.5
    # Its code counts in a stage's key, also where the task's content is the same.
    before = node.settings()
    own.write_text(own.read_text().replace("known in text", "text == known"))
    assert node.settings()["content"] == before["content"]
    assert node.settings() != before


def test_a_filter_of_ones_own_must_say_right_or_wrong(own):
    task = load_task(f"{own}:capitals")
    questions = questions_of(task, None, n=None, seed=0)

    def by(name):
        return task.model_copy(update={"strict": Filter(by=f"{own}:{name}")})

    assert measure_task(by("unsure"), says("Lima"), questions, seed=0).strict.value == 1.0
    with pytest.raises(DataError, match=r"unsure says of 1 of 2 .*no_verdict.*mine\.py"):
        measure_task(by("unsure"), says("Rome", "Lima"), questions, seed=0)
    with pytest.raises(RecipeError, match="better compares two completions"):
        measure_task(by("better"), says("Lima"), questions, seed=0)
    with pytest.raises(RecipeError, match="has no 'exactli'; did you mean `exactly`"):
        measure_task(by("exactli"), says("Lima"), questions, seed=0)


def test_what_a_users_file_does_not_hold_is_refused(own):
    with pytest.raises(RecipeError, match="has no 'capital'; did you mean `capitals`"):
        load_task(f"{own}:capital")
    with pytest.raises(RecipeError, match="is a str and no align_eval Task"):
        load_task(f"{own}:nothing")


def test_a_built_in_name_stands_before_a_file_of_that_name(tmp_path, monkeypatch):
    (tmp_path / "sums").write_text(CAPITALS)
    (tmp_path / "capitals").write_text(CAPITALS)
    monkeypatch.chdir(tmp_path)
    assert load_task("sums").source == "world:sums"
    assert load_task("capitals").name == "capitals"


def test_a_world_of_pictures_is_no_source_of_texts(tmp_path):
    path = tmp_path / "scenes.yaml"
    text = (FOLDER / "sums.yaml").read_text()
    path.write_text(text.replace("world:sums", "world:scenes"))
    with pytest.raises(RecipeError, match="world:scenes asks about pictures"):
        questions_of(load_task(str(path)), None, n=2, seed=0)
