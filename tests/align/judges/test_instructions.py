"""The row's own instructions as a judge, as one of several rewards, and the guard as a reward."""

import json

import pytest

from align import InstructionJudge, registry
from align.data.messages import Message, prompt_id
from align.data.pair_files import open_rows
from align.judges.base import Answer, Asked, Bench, JudgeFailed
from align.judges.by import judge_class
from align.stages.judge import Judge

TWO = {
    "instruction_id_list": ["punctuation:no_comma", "keywords:existence"],
    "kwargs": [{}, {"keywords": ["river"], "num_words": None}],
}
ASKED = "Describe some water. Do not use any commas and mention a river."
BOTH = "The river runs slowly to the sea."
ONE = "Slowly, the river runs to the sea."
NONE = "Slowly, it runs to the wide sea."
GAMED = "Do not use any commas and mention a river."


def answers(*texts, prompt=ASKED):
    return [Answer(prompt, text, id=str(n)) for n, text in enumerate(texts)]


def row_of(columns, prompt=ASKED):
    return {prompt_id(prompt): Asked("rows.jsonl", 7, columns)}.get


@pytest.mark.parametrize(
    ("settings", "scores"),
    [
        ({}, [1.0, 0.5, 0.0, 1.0]),
        ({"count": "all"}, [1.0, 0.0, 0.0, 1.0]),
        ({"earnest": True}, [1.0, 0.5, 0.0, 0.0]),
        ({"count": "all", "earnest": True}, [1.0, 0.0, 0.0, 0.0]),
    ],
)
def test_the_score_is_what_is_met(settings, scores, tmp_path):
    judge = InstructionJudge(row_of(TWO), **settings)
    assert judge.score(answers(BOTH, ONE, NONE, GAMED)) == scores
    node = Judge.of(by="instructions", **settings)
    assert node.judge.gives == "scores"
    assert node.judge.reads_columns
    with node.judge.open(Bench(tmp_path, "rows.jsonl", row_of(TWO))) as opened:
        assert opened.score(answers(BOTH, ONE, NONE, GAMED)) == scores
        assert opened.identity == judge.identity


def test_other_settings_are_another_judge():
    every = [
        InstructionJudge(row_of(TWO), count=count, earnest=earnest).identity
        for count in ("share", "all")
        for earnest in (False, True)
    ]
    assert len(set(every)) == 4


def test_the_last_turn_of_a_conversation_is_what_may_not_be_copied():
    turns = (Message(role="system", content=GAMED), Message(role="user", content="Go on, please."))
    judge = InstructionJudge(row_of(TWO, turns), earnest=True)
    assert judge.score(answers(GAMED, prompt=turns)) == [1.0]


def test_a_row_without_instructions_is_a_failed_verdict_that_says_where():
    (unknown,) = InstructionJudge({}.get).score(answers(BOTH))
    assert unknown == JudgeFailed("no_row", "the row of this prompt is not known here")
    (failed,) = InstructionJudge(row_of({"instruction_id_list": ["zz"]})).score(answers(BOTH))
    assert isinstance(failed, JudgeFailed)
    assert failed.reason == "no_instructions"
    assert failed.detail.endswith("(rows.jsonl:7)")
    wrong = {**TWO, "kwargs": [{}, {"keywords": 3}]}
    (failed,) = InstructionJudge(row_of(wrong)).score(answers(BOTH))
    assert "keywords:existence: keywords" in failed.detail


def test_it_is_one_of_several_rewards(tmp_path):
    node = Judge.of(
        by="rewards",
        rewards=[
            {"by": "instructions", "count": "share"},
            {"by": "earnest", "weight": 0.5},
            {"by": "length", "weight": -0.01},
        ],
    )
    assert node.judge.reads_columns
    with node.judge.open(Bench(tmp_path, "rows.jsonl", row_of(TWO))) as judge:
        found = judge.score(answers(BOTH, ONE, GAMED))
    # 33, 34 and 42 characters.
    assert found == pytest.approx([1 + 0.5 - 0.33, 0.5 + 0.5 - 0.34, 1 + 0 - 0.42])


def test_the_guard_needs_no_instructions_and_lets_demanded_texts_be_copied():
    guard = registry.find("reward", "earnest").value
    assert guard(ASKED, BOTH) == 1.0
    assert guard(ASKED, GAMED) == 0.0
    assert guard([{"role": "user", "content": ASKED}], GAMED) == 0.0
    ends = {"end_phrase": "and mention a river here."}
    asked = f"Describe it. End with: {ends['end_phrase']}"
    answer = f"Water goes slowly {ends['end_phrase']}"
    assert guard(asked, answer) == 0.0
    assert guard(asked, answer, ["startend:end_checker"], [ends]) == 1.0
    assert judge_class("earnest").reads_columns


def test_the_columns_of_the_public_file_arrive_as_they_are(tmp_path):
    path = tmp_path / "input_data.jsonl"
    path.write_text(json.dumps({"key": 1, "prompt": ASKED, **TWO}) + "\n")
    ((_, _, row),) = open_rows(str(path), "train", None)
    judge = InstructionJudge(row_of(row))
    assert judge.score(answers(ONE)) == [0.5]
