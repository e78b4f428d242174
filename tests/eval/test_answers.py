"""How a benchmark's model is asked, which answers count, and how many questions are asked."""

import json

import pytest

from align import registry
from align.errors import DataError
from align.policies.base import completion_of
from align.recipe.sections import Evaluate
from align.servers.endpoint import Endpoint
from align_eval.alpaca_eval.run import AlpacaEval
from align_eval.arena_hard.run import ArenaHard
from align_eval.judged import JudgedBenchmark
from align_eval.order import order_effect
from align_eval.outputs import AnswerSampling, in_words, kept_outputs
from align_eval.win_rate_run import WinRate
from tests.align.judges.fault_server import FaultServer
from tests.align.judges.scripted import by_quality
from tests.align.recipe.test_evaluations import BENCHMARKS, JUDGE
from tests.eval.judge_servers import ArenaServer, LogprobServer
from tests.eval.test_run import nodes, subject

SERVERS = {
    "alpaca_eval": LogprobServer,
    "arena_hard": ArenaServer,
    "win_rate": lambda: FaultServer(by_quality),
}


class CutOff:
    """Answers with its first words; those to the questions named are cut off."""

    identity = "a policy"

    def __init__(self, *cut):
        self.cut = cut
        self.samplings = []

    def generate(self, prompts, n, sampling, seed):
        self.samplings += [sampling] * len(prompts)
        return [
            [
                completion_of(
                    prompt,
                    f"mine [quality {len(text)}]",
                    policy="p",
                    sample=0,
                    finished=text not in self.cut,
                )
            ]
            for prompt in prompts
            for text in [prompt.prompt[0].content]
        ]


@pytest.mark.parametrize("name", list(registry.names("evaluation")))
def test_a_key_of_the_sampling_leaves_the_others_as_the_evaluation_has_them(name):
    section = registry.node("evaluation", name)
    if "sampling" not in section.model_fields:
        return
    default = section.model_fields["sampling"].default
    keys = BENCHMARKS.get(name, {"file": "q.jsonl"})
    judged = {"annotator": JUDGE} if issubclass(section, JudgedBenchmark) else {}
    written = {"suite": [{"run": name, **keys, **judged, "sampling": {"max_new_tokens": 96}}]}
    (node,) = Evaluate.model_validate_json(json.dumps(written), strict=True).nodes()
    assert (default.temperature, default.keep_unfinished) == (0.0, True)
    assert node.sampling == default.model_copy(update={"max_new_tokens": 96})


def test_a_sampling_is_told_in_words():
    assert in_words(AnswerSampling()) == "greedy, at most 2048 tokens"
    drawn = AnswerSampling(temperature=0.7, top_p=0.9, top_k=5, stop=("\n",), max_new_tokens=8)
    assert in_words(drawn) == r"temperature 0.7, top_p 0.9, top_k 5, at most 8 tokens, up to '\n'"
    assert in_words(AnswerSampling(temperature=0.7, top_k=1)) == "greedy, at most 2048 tokens"


@pytest.mark.parametrize("name", SERVERS)
def test_cut_answers_are_judged_and_counted_also_by_the_next_run(tmp_path, name):
    with SERVERS[name]() as judge:
        node = nodes(tmp_path, judge.url)[name]
        node = node.model_copy(update={"sampling": AnswerSampling(max_new_tokens=7)})
        policy = CutOff("do x", "do xxx")
        found = node.measure(subject(lambda: policy), tmp_path)
        assert (found["n_judged"], found["n_failed"], found["n_cut"]) == (5, 0, 2)
        assert found["reasons"] == {}
        assert found["flag"] is None
        outputs = found["provenance"]["answers" if name == "arena_hard" else "outputs"]
        assert outputs["sampling"]["temperature"] == 0.0
        assert policy.samplings == [node.sampling] * 5
        table = (tmp_path / "table.md").read_text()
        assert "5 judged, 0 failed, 2 cut off at the token limit" in table
        assert "Outputs of m: greedy, at most 7 tokens." in table
        again = node.measure(subject(lambda: policy), tmp_path)
        assert again["n_cut"] == 2
        assert len(policy.samplings) == 5


def test_outputs_kept_by_an_older_run_were_not_cut(tmp_path):
    about = {"generator": "m", "sampling": AnswerSampling(), "seed": 0, "source": "s"}
    path = tmp_path / "generated.jsonl"
    kept_outputs(path, CutOff("b"), {"a": "a", "b": "b"}, **about)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row.pop("cut") for row in rows] == [False, True]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert kept_outputs(path, CutOff(), {"b": "b"}, **about).n_cut == 0


@pytest.mark.parametrize("name", SERVERS)
def test_a_limit_takes_the_first_questions_and_says_so(tmp_path, name):
    with SERVERS[name]() as judge:
        whole = nodes(tmp_path, judge.url)[name]
        node = whole.model_copy(update={"limit": 3})
        assert list(node.prompts().values()) == ["do ", "do x", "do xx"]
        policy = CutOff("do xxxx")
        run = tmp_path / "run"
        run.mkdir()
        found = node.measure(subject(lambda: policy), run)
        assert len(policy.samplings) == 3
        assert (found["n"], found["n_judged"], found["n_cut"]) == (3, 3, 0)
        assert found["limited"] == {"asked": 3, "of": 5}
        words = "the first 3 of 5 questions only: comparable with no leaderboard"
        assert found["flag"] == words
        assert f"**{words}.**" in (run / "table.md").read_text()
        assert not (run / "leaderboard.csv").exists()
        # The rest is asked by the whole run, and no more.
        asked = judge.requests
        complete = whole.measure(subject(lambda: policy), run)
        assert len(policy.samplings) == 5
        assert judge.requests - asked == 2 * whole.calls_each
        assert (complete["limited"], complete["flag"], complete["n_cut"]) == (None, None, 1)
        assert (run / "leaderboard.csv").exists() == (name == "alpaca_eval")
        # A limit that leaves nothing out is none.
        same = whole.model_copy(update={"limit": 5}).measure(subject(lambda: policy), run)
        assert same["limited"] is None
        # A part keeps no table that speaks for the whole.
        node.measure(subject(lambda: policy), run)
        assert not (run / "leaderboard.csv").exists()


def test_outputs_of_a_file_are_held_against_all_questions_and_counted_for_the_first(tmp_path):
    rows = [{"instruction": f"do {i}", "output": f"o{i}", "generator": "base"} for i in range(6)]
    mine = [{**row, "generator": "mine"} for row in rows[::-1] if row["instruction"] != "do 1"]
    for name, content in (("base", rows), ("mine", mine)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    files = {"outputs": str(tmp_path / "mine.json"), "annotator": JUDGE, "limit": 3}
    base = str(tmp_path / "base.json")
    for node in (AlpacaEval(reference_outputs=base, **files), WinRate(against=base, **files)):
        found = node.read()
        assert list(found.texts) == ["do 0", "do 2"]
        assert found.reasons == {"no output (not in the file)": 1}
        assert found.n_cut is None
        assert node.planned()[:3] == [
            "questions: the first 3 of 6",
            f"judge: judge at {JUDGE['base_url']}, at most {3 * node.calls_each} calls, repeated "
            "tries aside",
            "answers: 2 of mine",
        ]
    mine.append({"instruction": "another", "output": "x", "generator": "mine"})
    (tmp_path / "mine.json").write_text(json.dumps(mine))
    with pytest.raises(DataError, match="1 of 6 rows answer an instruction"):
        node.read()


def test_a_part_has_no_length_controlled_number(tmp_path):
    rows = [{"instruction": f"do {i}", "output": "o" * i, "generator": "base"} for i in range(8)]
    (tmp_path / "base.json").write_text(json.dumps(rows))
    lines = ["index,instruction_difficulty", *(f"{i},{i / 4 - 1}" for i in range(8))]
    (tmp_path / "difficulty.csv").write_text("\n".join(lines) + "\n")
    with LogprobServer() as judge:
        node = AlpacaEval(
            reference_outputs=str(tmp_path / "base.json"),
            difficulty=str(tmp_path / "difficulty.csv"),
            annotator=Endpoint(base_url=judge.url, model="judge", revision="1"),
            runner="own",
        )
        whole = node.measure(subject(CutOff), tmp_path)
        assert whole["scores"]["length_controlled_win_rate"] is not None
        assert whole["scores"]["length_controlled_error"] == 4.8
        assert "1.2 points off on average, 4.8 at most" in (tmp_path / "table.md").read_text()
        part = node.model_copy(update={"limit": 5}).measure(subject(CutOff), tmp_path)
    assert part["scores"]["length_controlled_win_rate"] is None
    table = (tmp_path / "table.md").read_text()
    assert "LC" not in table
    assert "it is one of all instructions together" in table


def test_a_judge_with_a_favourite_place_is_seen(tmp_path):
    with ArenaServer(lambda _: "My verdict: [[A>B]]") as judge:
        node = nodes(tmp_path, judge.url)["arena_hard"]
        node = node.model_copy(update={"style_control": False, "categories": None})
        assert isinstance(node, ArenaHard)
        found = node.measure(subject(CutOff), tmp_path)
    order = found["order"]
    assert (order["first"], order["untied"], order["agreed"], order["both"]) == (10, 10, 0, 5)
    assert order["agreement"]["value"] == 0.0
    assert found["scores"]["arena-hard-v0.1"]["score"] == 50.0
    words = "The output shown first won 10 of 10 (100.0 %) untied verdicts"
    table = (tmp_path / "table.md").read_text()
    assert words in table
    assert "Both orders name the same winner for 0 of 5 (0.0 %) questions." in table


def test_orders_by_hand():
    # Agree: the same output wins from either place, or two ties; one order alone says nothing.
    found = order_effect([(1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.5, 0.5), (0.9, None), (0.5, 0.0)])
    # Untied: 2 + 2 + 2 + 0 + 1 + 1; the first place won 1 + 1 + 2 + 0 + 1 + 0.
    assert (found.first, found.untied, found.agreed, found.both) == (5, 8, 3, 5)
    assert order_effect([(None, None)]).to_json()["first_wins"]["value"] is None
