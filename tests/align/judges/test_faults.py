"""A judge whose server fails 30 % of all requests gives the verdicts of one that never fails."""

import random
import traceback
from collections import Counter

import pytest

from align.errors import MachineError
from align.judges.base import Comparison, JudgeFailed, Prefers, Refused, Tie
from align.judges.pairwise_llm import PairwiseLLM
from align.servers.caller import CachedCaller
from align.servers.calls import CallStore
from align.servers.endpoint import Endpoint, OpenAICaller
from align.servers.gate import Limits
from tests.align.judges.fault_server import FAULTS, FaultServer, seeded
from tests.align.judges.scripted import by_quality, quality
from tests.align.judges.virtual_clock import VirtualClock, Watched


def comparisons(n):
    rng = random.Random(1)
    return [
        Comparison(
            f"question {i}", *(f"{side} [quality {rng.randrange(5)}]" for side in "xy"), id=str(i)
        )
        for i in range(n)
    ]


def truth(item):
    first, second = quality(item.first), quality(item.second)
    if first == second:
        return Tie()
    return Prefers("first", 1.0) if first > second else Prefers("second", 0.0)


def judge_of(server, store, *, timeout=1.5, **limits):
    clock = VirtualClock(lambda: server.hanging)
    endpoint = Endpoint(base_url=server.url, model="judge", revision="1", timeout=timeout)
    caller = Watched(OpenAICaller(endpoint), clock)
    return PairwiseLLM(CachedCaller(caller, store, Limits(**limits), clock))


@pytest.mark.parametrize("rows", [150, pytest.param(2000, marks=pytest.mark.e2e)])
def test_the_verdicts_of_a_failing_server_are_those_of_a_healthy_one(tmp_path, rows):
    items = comparisons(rows)
    with (
        FaultServer(by_quality, seeded(0.3, seed=0)) as server,
        CallStore(tmp_path / "calls.sqlite") as store,
    ):
        judge = judge_of(server, store)
        assert judge.compare(items) == [truth(item) for item in items]
        # Every kind of fault was met, two calls per item were answered, each of them once.
        assert set(server.met) == set(FAULTS)
        assert len(store) == len(server.answered) == 2 * rows
        assert max(server.answered.values()) == 1
        # 1 / (1 - 0.3) = 1.43 is expected.
        assert server.requests <= 1.6 * 2 * rows
        requests = server.requests
        assert judge.compare(items) == [truth(item) for item in items]
        assert server.requests == requests


@pytest.mark.parametrize(
    ("fault", "verdict"),
    [
        ("refusal", Refused("a refusal (finish_reason stop), 3 times")),
        ("empty", "empty"),
        ("wrong verdict", "unparsable"),
        ("garbage", "unanswered"),
        ("not a completion", "unanswered"),
        ("cut", "unanswered"),
        ("reset", "unanswered"),
        ("timeout", "unanswered"),
        ("500", "unanswered"),
        ("400", "rejected"),
    ],
)
def test_what_never_gives_a_verdict_is_named_never_stored_and_asked_again(tmp_path, fault, verdict):
    (item,) = comparisons(1)
    with FaultServer(by_quality) as server, CallStore(tmp_path / "calls.sqlite") as store:
        server.script = lambda digest, attempt: fault
        judge = judge_of(server, store, timeout=0.3, answer_tries=3, tries=9)
        (found,) = judge.compare([item])
        if isinstance(found, JudgeFailed):
            assert found.reason == verdict
            assert "in the first order" in found.detail
        else:
            assert found == verdict
        assert len(store) == 0
        server.script = lambda digest, attempt: None
        assert judge.compare([item]) == [truth(item)]


@pytest.mark.parametrize("status", ["401", "403"])
def test_a_key_that_is_not_accepted_stops_at_once_and_is_not_shown(tmp_path, monkeypatch, status):
    monkeypatch.setenv("JUDGE_KEY", "sk-canary-0123456789")
    items = comparisons(100)
    with FaultServer(by_quality) as server, CallStore(tmp_path / "calls.sqlite") as store:
        # The server repeats the key in its error, as some do.
        server.script = lambda digest, attempt: status if server.requests > 40 else None
        endpoint = Endpoint(
            base_url=server.url, model="judge", revision="1", api_key_env="JUDGE_KEY"
        )
        judge = PairwiseLLM(CachedCaller(OpenAICaller(endpoint), store, Limits(concurrency=4)))
        with pytest.raises(MachineError, match=f"JUDGE_KEY .HTTP {status}") as caught:
            judge.compare(items)
        assert server.headers["authorization"] == "Bearer sk-canary-0123456789"
        shown = "".join(traceback.format_exception(caught.value))
        assert "canary" not in shown
        assert server.requests <= 40 + 4
        # What was answered is kept: the next run asks only for the rest.
        assert len(store) == 40
        server.script = lambda digest, attempt: None
        assert judge.compare(items) == [truth(item) for item in items]
        assert Counter(server.answered.values()) == {1: 200}
