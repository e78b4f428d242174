"""A policy behind HTTP: what is sent, and what becomes of the answers."""

import hashlib
import logging

import pytest

from align.data.completions import Completion
from align.data.messages import Message
from align.data.prompts import Prompt
from align.errors import RecipeError
from align.policies.base import Failed, Sampling, sample_seed
from align.policies.openai_http import HttpPolicy
from align.servers.caller import CachedCaller
from align.servers.calls import CallStore
from align.servers.endpoint import Endpoint, OpenAICaller
from align.servers.gate import Limits
from tests.align.judges.fault_server import FAULTS, FaultServer, seeded
from tests.align.judges.virtual_clock import VirtualClock, Watched

PLAIN = [Prompt(prompt=f"count {i}", source="s", row=i) for i in range(1, 6)]
CHAT = [
    Prompt(
        prompt=(Message(role="user", content=f"count {i}"),), group_id=f"g{i}", source="s", row=i
    )
    for i in range(1, 6)
]
SAMPLING = Sampling(max_new_tokens=9)
# Only a judge can tell that a verdict is none.
FAULTS_OF_ANY_ANSWER = [fault for fault in FAULTS if fault not in ("wrong verdict", "refusal")]


def by_seed(body):
    """An answer that shows the prompt and the seed it was asked with."""
    prompt = body.get("prompt") or body["messages"][-1]["content"]
    return f"{prompt}, {body['seed']}"


@pytest.fixture
def store(tmp_path):
    with CallStore(tmp_path / "calls.sqlite") as store:
        yield store


def policy_of(server, store, **endpoint):
    clock = VirtualClock(lambda: server.hanging)
    settings = {"base_url": server.url, "model": "m", "revision": "r", "timeout": 0.75} | endpoint
    caller = OpenAICaller(Endpoint(**settings))
    return HttpPolicy(CachedCaller(Watched(caller, clock), store, Limits(), clock))


def test_samples_come_per_prompt_and_in_order_whatever_fails(store, tmp_path):
    with FaultServer(by_seed) as server:
        healthy = policy_of(server, store).generate(PLAIN, 4, SAMPLING, seed=3)
    with (
        FaultServer(by_seed, seeded(0.3, seed=1, faults=FAULTS_OF_ANY_ANSWER)) as server,
        CallStore(tmp_path / "2.sqlite") as other,
    ):
        failing = policy_of(server, other).generate(PLAIN, 4, SAMPLING, seed=3)
        # 20 samples, of which 30 % fail at each try.
        assert 20 < server.requests <= 1.6 * 20
    for rows in (healthy, failing):
        assert [[sample.completion for sample in row] for row in rows] == [
            [f"count {i}, {sample_seed(3, PLAIN[i - 1], s)}" for s in range(4)] for i in range(1, 6)
        ]
        assert [[sample.sample for sample in row] for row in rows] == [[0, 1, 2, 3]] * 5


def test_a_sample_has_a_seed_of_its_own():
    # The first 4 bytes of sha256("3/<prompt id>/1"), without the last bit.
    text = f"3/{PLAIN[0].id}/1"
    expected = int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) // 2
    assert sample_seed(3, PLAIN[0], 1) == expected
    seeds = {
        sample_seed(seed, prompt, sample)
        for seed in range(5)
        for prompt in PLAIN
        for sample in range(5)
    }
    assert len(seeds) == 125


def test_an_answer_carries_the_prompts_provenance_and_the_policys_identity(store):
    with FaultServer(lambda body: "one two") as server:
        policy = policy_of(server, store)
        ((plain,),) = policy.generate(PLAIN[:1], 1, SAMPLING, 0)
        ((chat,),) = policy.generate(CHAT[:1], 1, SAMPLING, 0)
    assert policy.identity == f"m@r at {server.url}"
    assert plain == Completion(
        prompt="count 1",
        completion="one two",
        policy=policy.identity,
        sample=0,
        source="s",
        row=1,
    )
    assert chat.completion == (Message(role="assistant", content="one two"),)
    assert (chat.prompt, chat.group_id) == (CHAT[0].prompt, "g1")


def test_what_is_sent_for_text_and_for_a_conversation(store):
    sampling = Sampling(max_new_tokens=9, temperature=0.5, top_p=0.9, top_k=7, stop=("\n\n",))
    with FaultServer(by_seed) as server:
        policy = policy_of(server, store, extra={"min_p": 0.1})
        policy.generate(PLAIN[:1], 1, sampling, 0)
        policy.generate(CHAT[:1], 1, SAMPLING, 0)
    plain, chat = server.bodies
    assert plain == {
        "model": "m",
        "prompt": "count 1",
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "stop": ["\n\n"],
        "seed": sample_seed(0, PLAIN[0], 0),
        "min_p": 0.1,
    }
    assert chat == {
        "model": "m",
        "messages": [{"role": "user", "content": "count 1"}],
        "max_completion_tokens": 9,
        "temperature": 1.0,
        "top_p": 1.0,
        "seed": sample_seed(0, CHAT[0], 0),
        "min_p": 0.1,
    }


@pytest.mark.parametrize(
    ("answer", "finish", "fault", "reason"),
    [
        ("one two thr", "length", None, "unfinished"),
        (" \n", "stop", None, "empty"),
        ("###", "stop", None, "empty"),
        ("no", "content_filter", None, "refused"),
        ("one", "stop", "refusal", "refused"),
        ("one", "stop", "413", "rejected"),
        ("one", "stop", "garbage", "unanswered"),
    ],
)
def test_what_is_no_completion_is_a_failure_with_its_reason(store, answer, finish, fault, reason):
    with FaultServer(lambda body: answer, lambda digest, attempt: fault) as server:
        server.finish = finish
        sampling = Sampling(max_new_tokens=9, stop=("###",))
        ((sample,),) = policy_of(server, store).generate(CHAT[:1], 1, sampling, 0)
    assert isinstance(sample, Failed)
    assert (sample.prompt, sample.sample, sample.reason) == (CHAT[0], 0, reason)


def test_an_unfinished_sample_is_not_asked_again(store):
    with FaultServer(lambda body: "one two thr") as server:
        server.finish = "length"
        policy = policy_of(server, store)
        first = policy.generate(PLAIN, 1, SAMPLING, 0)
        assert policy.generate(PLAIN, 1, SAMPLING, 0) == first
        assert server.requests == 5


def test_the_stop_text_is_no_part_of_a_completion_and_ends_it(store):
    with FaultServer(lambda body: "one\n\ntwo") as server:
        server.finish = "length"
        sampling = Sampling(max_new_tokens=9, stop=("\n\n", "two"))
        ((sample,),) = policy_of(server, store).generate(PLAIN[:1], 1, sampling, 0)
    assert sample.completion == "one"


def test_new_weights_under_the_same_name_are_asked_anew(store):
    with FaultServer(by_seed) as server:
        for revision in ("r", "r", "s"):
            policy_of(server, store, revision=revision).generate(PLAIN, 1, SAMPLING, 0)
        assert server.requests == 10


def test_a_server_that_does_not_sample_is_reported(store, caplog):
    with FaultServer(lambda body: "always this") as server, caplog.at_level(logging.WARNING):
        policy = policy_of(server, store)
        policy.generate(PLAIN, 2, Sampling(max_new_tokens=9, temperature=0.0), 0)
        assert not caplog.records
        policy.generate(PLAIN, 2, SAMPLING, 0)
    assert "seems not to sample" in caplog.text
    caplog.clear()
    with FaultServer(by_seed) as server, caplog.at_level(logging.WARNING):
        policy_of(server, store).generate(PLAIN, 2, SAMPLING, 1)
    assert not caplog.records


def test_log_probs_are_refused_with_a_way_out(store):
    with FaultServer(by_seed) as server:
        policy = policy_of(server, store)
        assert not policy.capabilities.logps
        with pytest.raises(RecipeError, match=r"gives no log-probs.*as a folder or hub id"):
            policy.logps([])


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_tokens": 0},
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"top_p": 1.5},
        {"top_k": -1},
        {"stop": ("",)},
        {"tempreature": 1},
    ],
)
def test_sampling_refuses_what_it_cannot_mean(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=name):
        Sampling(**({"max_new_tokens": 5} | wrong))


def test_every_call_counts_and_stored_ones_were_done_before(store, phases):
    with FaultServer(by_seed) as server:
        policy = policy_of(server, store)
        policy.generate(PLAIN[:3], 2, SAMPLING, seed=3)
        policy.generate(PLAIN, 2, SAMPLING, seed=3)
        policy.generate(PLAIN, 2, SAMPLING, seed=3)  # asks nobody
    assert [phase[:4] for phase in phases] == [
        ("calls of m", "calls", 6, [1, 2, 3, 4, 5, 6]),
        ("calls of m", "calls", 10, [7, 8, 9, 10]),
    ]
