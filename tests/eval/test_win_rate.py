import json
import math

import numpy as np
import pytest
from pydantic import ValidationError

from align.data.messages import Message
from align.errors import DataError
from align.judges.base import Comparison, JudgeFailed, Prefers, Refused, Tie
from align.servers.calls import CallStore
from align.servers.endpoint import Endpoint, OpenAICaller
from align_eval.bradley_terry import Outcome
from align_eval.win_rate import (
    by_content,
    compare,
    comparisons,
    outcomes_of,
    paired_difference,
    win_rate,
)
from align_eval.win_rate_run import WinRate, opponent_of, outputs_of, prompts_of, run_win_rate
from tests.align.judges.fault_server import FaultServer, seeded
from tests.align.judges.scripted import by_quality
from tests.eval.judge_servers import caller_of

WIN, LOSS = Prefers("first", 1.0), Prefers("second", 0.0)


def items(*lengths):
    return [Comparison("q", "x" * a, "y" * b, id=str(i)) for i, (a, b) in enumerate(lengths)]


def test_counts_and_errors_by_hand():
    verdicts = [WIN, WIN, LOSS, Tie(), JudgeFailed("unparsable", ""), Refused("no"), WIN]
    found = win_rate(items(*[(2, 1)] * 7), verdicts)
    assert (found.wins, found.losses, found.ties) == (3, 1, 1)
    assert (found.n, found.judged, found.failed) == (7, 5, 2)
    assert found.reasons == {"refused": 1, "unparsable": 1}
    # Scores 1, 1, 0, .5, 1: mean .7; squares .09 * 3 + .49 + .04 = .8; sqrt(.8 / 4 / 5) = .2.
    assert found.win_rate == pytest.approx(0.7)
    assert found.standard_error == pytest.approx(0.2)
    assert json.loads(json.dumps(found.to_json(), allow_nan=False)) == found.to_json()


def test_the_interval_is_the_bootstraps_and_follows_the_seed():
    verdicts = [WIN] * 60 + [LOSS] * 40
    found = win_rate(items(*[(2, 1)] * 100), verdicts, seed=0)
    # 1.96 sqrt(.6 * .4 / 100) = .096.
    assert (found.high - found.low) / 2 == pytest.approx(0.096, abs=0.012)
    assert win_rate(items(*[(2, 1)] * 100), verdicts, seed=0) == found
    other = win_rate(items(*[(2, 1)] * 100), verdicts, seed=1, resamples=50)
    assert (other.low, other.high) != (found.low, found.high)


def test_nothing_judged_is_no_number():
    found = win_rate(items((1, 2)), [JudgeFailed("empty", "")])
    assert found.win_rate is None
    assert found.low is None
    assert found.length.n == 0
    assert win_rate([], []).win_rate is None
    one = win_rate(items((1, 2)), [WIN])
    assert (one.win_rate, one.standard_error, one.low) == (1.0, None, None)


def test_exact_probabilities_are_used_as_they_are():
    found = win_rate(items((1, 2), (1, 2)), [Prefers("first", 0.85), Prefers("second", 0.25)])
    assert found.win_rate == pytest.approx(0.55)


def test_length_bias_by_hand():
    # Differences 3, -2, 4, 0, -1 with scores 1, 0, 0, 1, 1/2.
    lengths = [(4, 1), (1, 3), (5, 1), (2, 2), (1, 2)]
    found = win_rate(items(*lengths), [WIN, LOSS, LOSS, WIN, Tie()]).length
    assert found.mean_difference == pytest.approx(0.8)
    # Three are decided and of unequal length; the longer one won the first two.
    assert (found.longer_wins, found.n) == (pytest.approx(2 / 3), 3)
    assert found.when_longer == pytest.approx(0.5)
    assert found.when_shorter == pytest.approx(0.25)
    gaps, scores = np.array([3, -2, 4, 0, -1]), np.array([1, 0, 0, 1, 0.5])
    assert found.correlation == pytest.approx(np.corrcoef(gaps, scores)[0, 1])
    same = win_rate(items((2, 1), (2, 1)), [WIN, LOSS]).length
    assert same.correlation is None
    assert same.when_shorter is None


def test_two_runs_against_one_opponent_are_paired():
    first = {str(i): float(i % 2 == 0) for i in range(100)}
    second = {k: max(0.0, v - float(int(k) % 10 == 0)) for k, v in first.items()}
    found = paired_difference(first, {**second, "only here": 1.0}, seed=0)
    # Every tenth win is lost; the pairing takes the prompts' own variance out.
    assert found.difference == pytest.approx(0.1)
    assert found.low > 0
    # Unpaired: 1.96 sqrt(.25 / 100 + .24 / 100) = .137; paired: 1.96 sqrt(.09 / 100) = .059.
    assert (found.high - found.low) / 2 == pytest.approx(0.059, abs=0.008)
    assert (found.n, found.n_left_out) == (100, 1)
    assert found.p_value < 0.001
    assert paired_difference(second, first, seed=0).difference == pytest.approx(-0.1)
    same = paired_difference(first, first, seed=0)
    assert (same.difference, same.p_value) == (0.0, 1.0)
    with pytest.raises(DataError, match="share 0 judged prompts"):
        paired_difference({"a": 1.0}, {"b": 1.0}, seed=0)


def test_files_join_by_the_prompt_and_not_by_the_row():
    chat = (Message(role="user", content="b"),)
    one = by_content([("a", "a1"), (chat, "b1")])
    other = by_content([(chat, "b2"), ("a", "a2")])
    prompts = {key: prompt for key, (prompt, _) in one.items()}
    found = comparisons(
        prompts, *({k: text for k, (_, text) in rows.items()} for rows in (one, other))
    )
    assert [(c.prompt, c.first, c.second) for c in found] == [
        ("a", "a1", "a2"),
        (chat, "b1", "b2"),
    ]
    with pytest.raises(DataError, match="Row 2 has the prompt of an earlier row"):
        by_content([("a", "1"), ("a", "2")])
    with pytest.raises(DataError, match=r"second model .* 1 are missing, 1 belong to none"):
        comparisons({"p": "a"}, {"p": "x"}, {"q": "y"})


def test_a_judge_is_asked_and_outcomes_are_made_for_the_ranking():
    class Judge:
        identity = "j"

        def compare(self, asked):
            return [WIN, Tie(), JudgeFailed("empty", "")][: len(asked)]

    asked = items((1, 2), (1, 2), (1, 2))
    assert compare(Judge(), asked).win_rate == 0.75
    assert outcomes_of("a", "b", asked, Judge().compare(asked)) == [
        Outcome("a", "b", 1.0, "0"),
        Outcome("a", "b", 0.5, "1"),
    ]


def test_columns_of_mt_bench_are_read_by_their_paths(tmp_path, shared_data):
    file = shared_data / "mt_bench" / "mt_bench_question.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    columns = {"instruction": "turns.0", "output": "reference.0"}
    judge = {"base_url": "http://127.0.0.1:9/v1", "model": "judge", "revision": "1"}
    first = next(number for number, row in enumerate(rows, 1) if not row.get("reference"))
    # An opponent's answer stands in some of the rows only.
    whole = WinRate(against=str(file), columns=columns, annotator=judge)
    with pytest.raises(DataError, match=rf"question.jsonl:{first}: nothing at reference.0"):
        prompts_of(whole)
    known = [row for row in rows if row.get("reference")]
    path = tmp_path / "known.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in known))
    node = whole.model_copy(update={"against": str(path)})
    assert list(prompts_of(node)) == [row["turns"][0] for row in known]
    assert opponent_of(node).texts[known[3]["turns"][0]] == known[3]["reference"][0]
    with pytest.raises(ValidationError, match="no column that is read; did you mean `output`"):
        WinRate(against="x", annotator=judge, columns={"outptu": "y"})


def test_a_run_with_faults_loses_nothing(tmp_path):
    n = 40
    for name, shift in (("theirs", 0), ("mine", 1)):
        rows = [
            {
                "instruction": f"do {i}",
                "output": f"[quality {(i * (1 + shift)) % 5}]",
                "generator": name,
            }
            for i in range(n)
        ]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows[:: 1 - 2 * shift]))
    with FaultServer(by_quality, seeded(0.3, seed=0)) as server:
        node = WinRate(
            against=str(tmp_path / "theirs.json"),
            outputs=str(tmp_path / "mine.json"),
            annotator=Endpoint(base_url=server.url, model="judge", revision="1", timeout=1.5),
            max_failed=0.0,
        )
        assert len(prompts_of(node)) == n
        with CallStore(tmp_path / "calls.sqlite") as store:
            caller = caller_of(server, store, OpenAICaller(node.annotator))
            found = run_win_rate(node, outputs_of(node), caller, tmp_path / "run")
        assert sum(server.met.values()) > 10
    mine, theirs = ([(i * k) % 5 for i in range(n)] for k in (2, 1))
    exact = [0.5 if a == b else float(a > b) for a, b in zip(mine, theirs, strict=True)]
    assert found["scores"]["win_rate"] == pytest.approx(sum(exact) / n)
    assert (found["n"], found["n_judged"], found["n_failed"]) == (n, n, 0)
    rows = [json.loads(x) for x in (tmp_path / "run" / "verdicts.jsonl").read_text().splitlines()]
    assert [row["score"] for row in rows] == exact
    same = {row["id"]: row["score"] for row in rows}
    assert math.isclose(paired_difference(same, same, seed=0).difference, 0.0)
