"""The annotator behind a real HTTP server that fails by a seeded script."""

import pytest

from align.data.messages import Message
from align.data.prompts import Prompt
from align.data.questions import Candidates
from align.policies.base import Sampling
from align.policies.openai_http import HttpPolicy
from align.servers.caller import CachedCaller
from align.servers.calls import CallStore
from align.servers.endpoint import Endpoint, OpenAICaller
from align.servers.gate import Limits
from align.worlds.additions import prompt_of, solution_of
from align_data.self_reference import SelfReferenceWork
from align_data.self_reference.settings import SelfReferenceSettings
from align_data.self_reference.world import SumsAnnotator
from tests.align.judges.fault_server import FaultServer, seeded
from tests.align.judges.virtual_clock import VirtualClock, Watched

SETTINGS = SelfReferenceSettings(strength="votes")
UNITS = [
    Candidates(
        prompt=(Message(role="user", content=prompt_of((10 + n, 20, 30))),),
        responses=(solution_of((10 + n, 20, 30)), f"{10 + n}+20=0\n0+30=30\n30"),
        policy="p",
        source="s",
        row=n,
    )
    for n in range(1, 17)
]


def by_rule(body):
    turns = tuple(Message(role=m["role"], content=m["content"]) for m in body["messages"])
    prompt = Prompt(prompt=turns, source="s", row=1)
    annotator = SumsAnnotator(slip=0)
    ((answer,),) = annotator.generate([prompt], 1, Sampling(max_new_tokens=9), body["seed"])
    return answer.completion[0].content


def work(server, store):
    clock = VirtualClock(lambda: server.hanging)
    endpoint = Endpoint(base_url=server.url, model="m", revision="r", timeout=0.75)
    caller = CachedCaller(Watched(OpenAICaller(endpoint), clock), store, Limits(), clock)
    return SelfReferenceWork(SETTINGS, HttpPolicy(caller), None, seed=0, config_hash="h")


@pytest.fixture
def store(tmp_path):
    with CallStore(tmp_path / "calls.sqlite") as store:
        yield store


def test_no_fault_turns_a_pair_round_and_nothing_is_asked_twice(store):
    with FaultServer(by_rule, seeded(0.3, seed=6)) as server:
        built = work(server, store)(UNITS)
        assert {"refusal", "wrong verdict", "timeout"} <= set(server.met)
        # A process that was killed here would ask for what is not stored, and for nothing else.
        work(server, store)(UNITS)
        assert set(server.answered.values()) == {1}
    pairs = [pair for one in built for pair in one.pairs]
    lost = [row for one in built for row in one.dropped]
    assert all(pair.chosen[0].content == solution_of((10 + pair.row, 20, 30)) for pair in pairs)
    assert len(pairs) + len(lost) == len(UNITS)
    assert len(pairs) >= 8
    assert {row.reason for row in lost} == {"failed"}
