"""IFEval end to end on rows in the public format: answers, verdicts, the four numbers, files."""

import json
import math
from pathlib import Path

import pytest

from align.app.cli import main
from align.errors import DataError
from align.estimates import proportion
from align.evaluation import Subject
from align.policies.base import Failed, completion_of
from align_eval import outputs
from align_eval.ifeval import judged, read_questions, scores
from align_eval.ifeval.run import IFEval
from align_eval.ifeval.scoring import clustered_proportion

# As google's file has them; the last one as its copies have them, with nulls.
ROWS = [
    {
        "key": 1000,
        "prompt": "Describe a river without commas. Give it a title.",
        "instruction_id_list": ["punctuation:no_comma", "detectable_format:title"],
        "kwargs": [{}, {}],
    },
    {
        "key": 1001,
        "prompt": "Name two colours as a list of exactly 2 bullets.",
        "instruction_id_list": ["detectable_format:number_bullet_lists"],
        "kwargs": [{"num_bullets": 2}],
    },
    {
        "key": 1005,
        "prompt": "Write at least 5 words and end with: Bye.",
        "instruction_id_list": ["length_constraints:number_words", "startend:end_checker"],
        "kwargs": [
            {"relation": "at least", "num_words": 5, "end_phrase": None},
            {"relation": None, "num_words": None, "end_phrase": "Bye."},
        ],
    },
]
ANSWERS = {
    # The comma is in the first line alone: met loosely.
    ROWS[0]["prompt"]: "Sure, here it is:\n<<A river>>\nWater flows.",
    ROWS[1]["prompt"]: "* red\n* blue",
    # Two words.
    ROWS[2]["prompt"]: "Well: bye.",
}


def file_of(tmp_path, rows, name="input_data.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


class Answering:
    """A policy that answers by prompt; what is missing fails with a reason."""

    identity = "scripted"

    def __init__(self, answers, reason="empty", unfinished=()):
        self.answers, self.reason, self.unfinished = answers, reason, unfinished
        self.asked = []

    def generate(self, prompts, n, sampling, seed):
        self.asked.append([prompt.prompt[-1].content for prompt in prompts])
        self.sampling = sampling
        rows = []
        for prompt in prompts:
            text = self.answers.get(prompt.prompt[-1].content)
            if text is None:
                rows.append([Failed(prompt, 0, self.reason, "")])
                continue
            finished = prompt.prompt[-1].content not in self.unfinished
            rows.append([completion_of(prompt, text, policy="p", sample=0, finished=finished)])
        return rows


def subject_of(policy):
    return Subject("tiny", lambda: policy, None, (), None, 0)


def run(tmp_path, policy, **settings):
    node = IFEval(file=file_of(tmp_path, ROWS), **settings)
    return node.measure(subject_of(policy), tmp_path)


def test_the_four_numbers_of_three_prompts(tmp_path):
    """Prompts: strict 1 of 3, loose 2 of 3; instructions: strict 3 of 5, loose 4 of 5."""
    policy = Answering(ANSWERS)
    found = run(tmp_path, policy)
    values = {name: score["value"] for name, score in found["scores"].items()}
    assert values == {
        "prompt_strict": pytest.approx(1 / 3),
        "prompt_loose": pytest.approx(2 / 3),
        "instruction_strict": pytest.approx(3 / 5),
        "instruction_loose": pytest.approx(4 / 5),
    }
    assert {name: score["n"] for name, score in found["scores"].items()} == {
        "prompt_strict": 3,
        "prompt_loose": 3,
        "instruction_strict": 5,
        "instruction_loose": 5,
    }
    assert found["scores"]["prompt_strict"] == proportion(1, 3).to_json()
    assert (policy.sampling.temperature, policy.sampling.max_new_tokens) == (0, 1280)
    assert found["provenance"]["inputs"]["file"]["file"] == "input_data.jsonl"
    assert json.loads((tmp_path / "results.json").read_text())["scores"] == found["scores"]


def test_verdicts_and_kinds_lie_beside_the_scores(tmp_path):
    run(tmp_path, Answering(ANSWERS))
    lines = (tmp_path / "verdicts.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == {
        "key": "1000",
        "instruction_id_list": ["punctuation:no_comma", "detectable_format:title"],
        "strict": [False, True],
        "loose": [True, True],
    }
    assert [json.loads(line)["key"] for line in lines] == ["1000", "1001", "1005"]
    kinds = {row["kind"]: row for row in json.loads((tmp_path / "kinds.json").read_text())}
    assert len(kinds) == 5
    assert kinds["punctuation:no_comma"]["strict"]["value"] == 0
    assert kinds["punctuation:no_comma"]["loose"]["value"] == 1
    table = (tmp_path / "table.md").read_text()
    assert "| prompts | tiny | 33.33 |" in table
    assert "| punctuation:no_comma | tiny | 0.00 |" in table


def test_an_answer_that_the_model_left_out_is_wrong_and_one_that_was_lost_is_left_out(tmp_path):
    some = {ROWS[1]["prompt"]: ANSWERS[ROWS[1]["prompt"]]}
    found = run(tmp_path, Answering(some, "empty"))
    assert found["scores"]["prompt_loose"]["value"] == pytest.approx(1 / 3)
    assert (found["n"], found["n_failed"]) == (3, 0)
    assert "2 answers were empty" in (tmp_path / "table.md").read_text()
    with pytest.raises(DataError, match=r"2 of 3 failed .*2 no output \(unanswered\)"):
        run(tmp_path, Answering(some, "unanswered"))
    found = run(tmp_path, Answering({}, "unanswered"), max_failed=1.0)
    assert found["scores"]["prompt_strict"] == proportion(1, 1).to_json()
    assert found["reasons"] == {"no output (unanswered)": 2}


def test_what_is_cut_off_is_judged_and_counted(tmp_path):
    found = run(tmp_path, Answering(ANSWERS, unfinished=(ROWS[1]["prompt"],)))
    assert found["scores"]["prompt_strict"]["value"] == pytest.approx(1 / 3)
    assert found["n_cut"] == 1


def test_a_limit_takes_the_first_prompts_and_says_so(tmp_path):
    found = run(tmp_path, Answering(ANSWERS), limit=2)
    assert (found["n"], found["scores"]["instruction_strict"]["n"]) == (2, 3)
    assert found["limited"] == {"asked": 2, "of": 3}
    assert "first 2 of 3" in found["flag"]


def test_what_was_answered_is_not_asked_again_also_after_a_kill(tmp_path, monkeypatch):
    """Answers are kept in blocks: the second block dies, and only it is asked again."""
    monkeypatch.setattr(outputs, "AT_ONCE", 2)
    first = Answering(ANSWERS)
    once = first.generate

    def dies(prompts, *rest):
        if len(first.asked) == 1:
            raise KeyboardInterrupt
        return once(prompts, *rest)

    first.generate = dies
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, first)
    again = Answering(ANSWERS)
    found = run(tmp_path, again)
    assert again.asked == [[ROWS[2]["prompt"]]]
    assert found["scores"]["instruction_loose"]["value"] == pytest.approx(4 / 5)
    # Fewer prompts, and all of them again: nothing is lost of what lies there.
    run(tmp_path, again, limit=1)
    run(tmp_path, again)
    assert len(again.asked) == 1


def test_published_responses_are_scored_without_a_model(tmp_path):
    rows = [{"prompt": prompt, "response": text} for prompt, text in ANSWERS.items()]
    path = file_of(tmp_path, [*rows, {"prompt": "another", "response": ""}], "published.jsonl")
    found = run(tmp_path, None, responses=path)
    assert found["scores"]["instruction_loose"]["value"] == pytest.approx(4 / 5)
    assert found["provenance"]["model"] == "published"
    lacking = file_of(tmp_path, rows[1:], "lacking.jsonl")
    with pytest.raises(DataError, match=r"1 no response \(not in the file\)"):
        run(tmp_path, None, responses=lacking)
    foreign = file_of(tmp_path, [{"prompt": "another", "response": ""}], "foreign.jsonl")
    with pytest.raises(DataError, match="no response to any of the 3 prompts"):
        run(tmp_path, None, responses=foreign)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"instruction_id_list": ["punctuation:no_coma"]}, r"row 2: .*`punctuation:no_comma`"),
        ({"kwargs": [{"num_bullets": "many"}]}, r"row 2: .*num_bullets: "),
        ({"kwargs": [{}, {}]}, "row 2: .*lists of one length"),
        ({"prompt": ROWS[0]["prompt"]}, "row 2 has the prompt of an earlier row"),
    ],
)
def test_a_row_that_does_not_fit_is_named(tmp_path, change, words):
    path = file_of(tmp_path, [ROWS[0], {**ROWS[1], **change}])
    with pytest.raises(DataError, match=words):
        IFEval(file=path).planned()
    empty = file_of(tmp_path, [], "empty.jsonl")
    with pytest.raises(DataError, match="has no row"):
        IFEval(file=empty).planned()


def test_the_plan_and_the_key_say_what_is_asked(tmp_path):
    path = file_of(tmp_path, ROWS)
    node = IFEval(file=path, limit=2)
    assert node.planned()[:2] == ["prompts: the first 2 of 3", "instructions: 3"]
    assert "greedy, at most 1280 tokens" in node.planned()[2]
    assert node.asks_policy()
    key = node.settings()
    file_of(tmp_path, ROWS[::-1])
    assert node.settings() != key


def test_a_row_without_a_key_is_called_by_its_number(tmp_path):
    path = file_of(tmp_path, [{k: v for k, v in row.items() if k != "key"} for row in ROWS])
    assert [question.key for question in read_questions(Path(path))] == ["1", "2", "3"]


def test_the_interval_of_instructions_knows_that_prompts_hang_together():
    """4 prompts with 2 instructions each, all or none: worth 4 rows, less a degree of freedom.

    p = 1/2, sum (m_i - p k_i)^2 = 4 (1)^2, variance 4/3 x 4 / 8^2 = 1/12; p (1 - p) / var = 3.
    """
    together = clustered_proportion([(True, True), (True, True), (False, False), (False, False)])
    z2 = 1.959963984540054**2
    half = math.sqrt(z2) / (1 + z2 / 3) * math.sqrt(0.25 / 3 + z2 / 36)
    assert together.value == 0.5
    assert together.high == pytest.approx(0.5 + half)
    assert together.low == pytest.approx(0.5 - half)
    assert together.n == 8
    apart = clustered_proportion([(True, False)] * 4)
    # Never narrower than independent rows.
    assert apart == proportion(4, 8)
    assert clustered_proportion([(True,), (False,)] * 50).high == pytest.approx(
        proportion(50, 100).high, abs=2e-3
    )


def test_where_everything_is_met_a_prompt_counts_as_one_row():
    full = clustered_proportion([(True, True)] * 5)
    assert (full.value, full.high, full.n) == (1.0, 1.0, 10)
    assert full.low == proportion(5, 5).low
    assert clustered_proportion([]).value is None
    # One prompt alone says next to nothing, however many instructions it has.
    assert clustered_proportion([(False, True)]).low < proportion(1, 2).low


def test_empty_answers_meet_nothing(tmp_path):
    questions = read_questions(Path(file_of(tmp_path, ROWS)))
    found = scores([judged(question, " \n") for question in questions])
    assert {estimate.value for estimate in found.values()} == {0.0}


def test_a_recipe_runs_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file_of(tmp_path, ROWS)
    rows = [{"prompt": prompt, "response": text} for prompt, text in ANSWERS.items()]
    file_of(tmp_path, rows, "published.jsonl")
    (tmp_path / "recipe.yaml").write_text(
        "model: {model_name_or_path: world:sums}\n"
        "evaluate: {suite: [{run: ifeval, file: input_data.jsonl, responses: published.jsonl}]}\n"
    )
    main(["eval", "recipe.yaml", "--run", "run"])
    assert "| prompts | published | 33.33 |" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["scores"]["ifeval/instruction_strict/value"] == pytest.approx(3 / 5)
