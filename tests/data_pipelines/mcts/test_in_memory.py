"""The search in one call: the same trees as the stage's work, and a report that adds up."""

import json

import pytest
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer

import align
from align.data.messages import Message
from align.data.questions import Question
from align.policies.token_writer import InProcessWriter
from align.worlds.bytes import Bytes
from align_data.mcts.in_memory import mcts_step_pairs
from align_data.mcts.settings import AgentQSettings, XieSettings
from align_data.mcts.verify import KnownAnswerVerifier
from align_data.mcts.work import MCTSWork
from tests.data_pipelines.mcts.scripted_writer import Says

KEYS = {
    "first_breadth": 3,
    "depth": 2,
    "root_simulations": 6,
    "simulations": 3,
    "step_tokens": 12,
    "finish_tokens": 16,
    "pairs_from": "all",
    "keep_trees": "all",
    "min_visits": 0,
}
SETTINGS = XieSettings(**KEYS)
EVEN = Says(lambda text: len(text) % 2 == 0)
TURNS = [[{"role": "user", "content": f"Say {i}."}] for i in range(3)]


@pytest.fixture(scope="module")
def policy():
    folder = Bytes().base_model()
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(
        folder
    )


def asked(answer=None):
    return [
        Question(prompt=tuple(Message(**t) for t in turns), answer=answer, source="memory", row=row)
        for row, turns in enumerate(TURNS, start=1)
    ]


def test_it_is_the_work_of_the_stage(policy) -> None:
    pairs, report = align.mcts_step_pairs(*policy, asked(), settings=SETTINGS, verify=EVEN, seed=3)
    work = MCTSWork(
        SETTINGS, InProcessWriter(*policy), EVEN, seed=3, config_hash=SETTINGS.config_hash
    )
    built = work(asked())
    assert pairs == [pair for one in built for pair in one.pairs]
    assert len(pairs) > 3
    assert report.rows == [row for one in built for row in one.dropped]
    assert report.read == sum(one.read for one in built)
    assert report.read == report.kept + sum(report.dropped.values())
    assert report.kept == len(pairs)
    assert report.counts["nodes"] == sum(one.counts["nodes"] for one in built)
    assert json.loads(json.dumps(report.to_json()))["counts"] == dict(report.counts)


def test_tuples_are_questions_and_keys_are_settings(policy) -> None:
    as_values = mcts_step_pairs(*policy, asked("4"), settings=SETTINGS, seed=1)
    as_tuples = mcts_step_pairs(*policy, [(turns, "4") for turns in TURNS], settings=KEYS, seed=1)
    assert as_values == as_tuples
    assert as_values[0] != mcts_step_pairs(*policy, asked("4"), settings=SETTINGS, seed=2)[0]


def test_a_text_is_continued_as_it_is(policy) -> None:
    tokenizer = policy[1]
    pairs, _ = mcts_step_pairs(*policy, [("Two and two", None)], settings=KEYS)
    assert pairs
    assert {pair.prompt for pair in pairs} == {"Two and two"}
    text = tokenizer.encode("Two and two", add_special_tokens=False)
    assert all(pair.prompt_ids[-len(text) :] == tuple(text) for pair in pairs)


def test_the_known_answer_is_the_verifier_unless_another_is_given(policy) -> None:
    spoilt = KEYS | {"keep_trees": "right"}
    _, unknown = mcts_step_pairs(*policy, asked(), settings=spoilt)
    assert set(unknown.dropped) == {"not_judged"}
    _, wrong = mcts_step_pairs(*policy, asked("no model says this"), settings=spoilt)
    assert set(wrong.dropped) == {"wrong_answer"}
    same = mcts_step_pairs(*policy, asked("4"), settings=KEYS, verify=KnownAnswerVerifier(), seed=1)
    assert same == mcts_step_pairs(*policy, asked("4"), settings=KEYS, seed=1)


def test_agent_q_is_a_search_too(policy) -> None:
    settings = AgentQSettings(
        first_breadth=2, breadth=2, depth=1, root_simulations=4, step_tokens=8, finish_tokens=8,
        ranking="none", mix=1.0,
    )  # fmt: skip
    pairs, report = mcts_step_pairs(*policy, asked(), settings=settings, verify=EVEN)
    assert report.read == report.kept + sum(report.dropped.values())
    assert all(pair.pipeline == "agentq" for pair in pairs)


def test_chunks_are_searched_one_after_the_other(policy) -> None:
    once = SETTINGS.model_copy(update={"chunk": 1})
    pairs, report = mcts_step_pairs(*policy, asked(), settings=once, verify=EVEN)
    assert {pair.row for pair in pairs} == {1, 2, 3}
    assert report.kept == len(pairs)


def test_no_question_no_pair(policy) -> None:
    pairs, report = mcts_step_pairs(*policy, [])
    assert (pairs, report.read) == ([], 0)


def test_what_is_wrong_is_said(policy) -> None:
    with pytest.raises(ValidationError, match="dept"):
        mcts_step_pairs(*policy, asked(), settings={"dept": 2})
    with pytest.raises(ValueError, match=r"question 2 is neither a Question nor a tuple"):
        mcts_step_pairs(*policy, [(TURNS[0], "1"), "What?"])
