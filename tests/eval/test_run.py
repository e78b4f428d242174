import json

import pytest

from align.errors import DataError
from align.evaluation import Subject
from align.policies.base import Failed, completion_of
from align.servers.endpoint import Endpoint
from align.stages.evaluate import folders_of, run_benchmarks
from align.worlds.additions import sums_tokenizer
from align.worlds.sums import Sums
from align_eval.alpaca_eval.run import AlpacaEval
from align_eval.arena_hard.run import ArenaHard
from align_eval.task_run import Tasks
from align_eval.win_rate_run import WinRate
from tests.align.judges.fault_server import FaultServer
from tests.align.judges.scripted import by_quality
from tests.eval.judge_servers import ArenaServer, LogprobServer


class Policy:
    """Answers by the prompt alone; fails once for what it is told to."""

    identity = "a policy"

    def __init__(self, *fails):
        self.fails = set(fails)
        self.asked = 0

    def generate(self, prompts, n, sampling, seed):
        rows = []
        for prompt in prompts:
            self.asked += 1
            text = prompt.prompt[0].content
            if text in self.fails:
                self.fails.remove(text)
                rows.append([Failed(prompt, 0, "unanswered", "")])
            else:
                text = f"mine [quality {len(text)}]"
                rows.append([completion_of(prompt, text, policy="p", sample=0)])
        return rows


def subject(policy):
    """A model that gives no weights: a benchmark asks it for answers alone."""
    return Subject(name="m", policy=policy, weights=None, held_out=(), n=None, seed=0)


def nodes(tmp_path, url):
    judge = Endpoint(base_url=url, model="judge", revision="1")
    outputs = [
        {"instruction": f"do {'x' * i}", "output": "[quality 5]", "generator": "base"}
        for i in range(5)
    ]
    (tmp_path / "base.json").write_text(json.dumps(outputs))
    questions = [
        {"uid": f"u{i}", "category": "arena-hard-v0.1", "prompt": f"do {'x' * i}"} for i in range(5)
    ]
    answers = [
        {
            "uid": f"u{i}",
            "model": "gpt-4-0314",
            "messages": [{"content": {"answer": "[quality 5]"}}],
        }
        for i in range(5)
    ]
    for name, rows in (("q", questions), ("b", answers)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = str(tmp_path / "base.json")
    tokenizer = tmp_path / "tokenizer"
    sums_tokenizer().save_pretrained(tokenizer)
    return {
        "alpaca_eval": AlpacaEval(reference_outputs=base, annotator=judge, runner="own"),
        "arena_hard": ArenaHard(
            version="v0.1",
            questions=str(tmp_path / "q.jsonl"),
            baseline_answers=(str(tmp_path / "b.jsonl"),),
            annotator=judge,
            style_control=True,
            tokenizer=str(tokenizer),
        ),
        "win_rate": WinRate(against=base, annotator=judge),
    }


@pytest.mark.parametrize(
    ("name", "server", "calls"),
    [
        ("alpaca_eval", LogprobServer, 5),
        ("arena_hard", ArenaServer, 10),
        ("win_rate", lambda: FaultServer(by_quality), 10),
    ],
)
def test_a_node_runs_and_a_second_run_asks_only_what_failed(tmp_path, name, server, calls):
    with server() as judge:
        node = nodes(tmp_path, judge.url)[name]
        assert node.asks_policy()
        policy = Policy("do xx")
        folder = tmp_path / "run"
        folder.mkdir()
        lenient = node.model_copy(update={"max_failed": 0.5})
        first = lenient.measure(subject(lambda: policy), folder)
        assert (first["n"], first["n_judged"], first["n_failed"]) == (5, 4, 1)
        assert sum(first["reasons"].values()) >= 1
        assert "unanswered" in str(first["reasons"]) or name == "win_rate"
        assert policy.asked == 5
        whole = node.measure(subject(lambda: policy), folder)
        assert policy.asked == 6
        assert judge.requests == calls
        assert (whole["n_judged"], whole["flag"]) == (5, None)
        assert whole["provenance"]["model"] == "m"
        # Another policy's outputs are not taken for this one's.
        policy.identity = "another"
        node.measure(subject(lambda: policy), folder)
        assert policy.asked == 11
        assert judge.requests == calls


def test_outputs_from_a_file_need_no_policy(tmp_path):
    with FaultServer(by_quality) as judge:
        node = nodes(tmp_path, judge.url)["win_rate"]
        mine = [
            {"instruction": f"do {'x' * i}", "output": "[quality 6]", "generator": "mine"}
            for i in range(5)
        ]
        (tmp_path / "mine.json").write_text(json.dumps(mine))
        node = node.model_copy(update={"outputs": str(tmp_path / "mine.json")})
        assert not node.asks_policy()

        def none():
            raise AssertionError

        found = node.measure(subject(none), tmp_path)
    assert found["scores"]["win_rate"] == 1.0
    assert found["provenance"]["model"] == "mine"


def test_tasks_need_the_policy(tmp_path):
    node = Tasks(tasks=("sums",), n=3)
    assert node.asks_policy()
    found = node.measure(subject(Policy), tmp_path)
    assert found["scores"]["sums"]["strict"]["value"] == 0.0
    assert found["n"] == 3


def test_all_are_run_before_a_fault_is_raised(tmp_path):
    chosen = [Tasks(tasks=("sums",), n=3), Tasks(tasks=("styles",), n=3)]
    folders = folders_of(tmp_path, chosen)
    assert [folder.name for folder in folders] == ["evaluation-1-tasks", "evaluation-2-tasks"]
    asked = Sums().prompts("held_out", 3, seed=0)
    policy = Policy(asked[0].prompt[0].content)
    with pytest.raises(DataError, match="1 of 3 failed"):
        run_benchmarks(chosen, folders, subject(lambda: policy))
    assert policy.asked == 6
    assert json.loads((folders[1] / "results.json").read_text())["n_judged"] == 3
    found = run_benchmarks(chosen, folders, subject(lambda: policy))
    assert [result["n_judged"] for result in found] == [3, 3]
