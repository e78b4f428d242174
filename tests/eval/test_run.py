import json

import pytest

from align.policies.base import Failed, completion_of
from align.policies.endpoint import Endpoint
from align.recipe.evaluations import AlpacaEval, ArenaHard, Tasks, WinRate
from eval.run import needs_policy, run_evaluation
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
    return {
        "alpaca_eval": AlpacaEval(reference_outputs=base, annotator=judge, runner="own"),
        "arena_hard": ArenaHard(
            version="v0.1",
            questions=str(tmp_path / "q.jsonl"),
            baseline_answers=(str(tmp_path / "b.jsonl"),),
            annotator=judge,
            style_control=True,
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
        assert needs_policy(node)
        policy = Policy("do xx")
        settings = {"policy": lambda: policy, "model": "m", "count_tokens": len}
        lenient = node.model_copy(update={"max_failed": 0.5})
        first = run_evaluation(lenient, tmp_path / "run", **settings)
        assert (first["n"], first["n_judged"], first["n_failed"]) == (5, 4, 1)
        assert sum(first["reasons"].values()) >= 1
        assert "unanswered" in str(first["reasons"]) or name == "win_rate"
        assert policy.asked == 5
        whole = run_evaluation(node, tmp_path / "run", **settings)
        assert policy.asked == 6
        assert judge.requests == calls
        assert (whole["n_judged"], whole["flag"]) == (5, None)
        assert whole["provenance"]["model"] == "m"
        # Another policy's outputs are not taken for this one's.
        policy.identity = "another"
        run_evaluation(node, tmp_path / "run", **settings)
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
        assert not needs_policy(node)

        def none():
            raise AssertionError

        found = run_evaluation(node, tmp_path / "run", policy=none, model="m")
    assert found["scores"]["win_rate"] == 1.0
    assert found["provenance"]["model"] == "mine"


def test_tasks_need_the_policy(tmp_path):
    node = Tasks(tasks=("sums",), n=3)
    assert needs_policy(node)
    found = run_evaluation(node, tmp_path / "run", policy=Policy, model="m")
    assert found["scores"]["sums"]["strict"]["value"] == 0.0
    assert found["n"] == 3
