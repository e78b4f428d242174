"""Demonstrations before a prompt."""

import pytest

from align.data.hints import hint_of_row, with_hint
from align.data.messages import Message
from align.data.prompts import Prompt
from align.errors import DataError

ASKED = Message(role="user", content="Now?")
SYSTEM = Message(role="system", content="Be short.")
SHOWN = (Message(role="user", content="Then?"), Message(role="assistant", content="Yes."))


def prompt(text):
    return Prompt(prompt=text, source="rows.jsonl", row=3)


def test_turns_stand_before_the_request_and_behind_the_system_message():
    assert with_hint(prompt((ASKED,)), SHOWN).prompt == (*SHOWN, ASKED)
    assert with_hint(prompt((SYSTEM, ASKED)), SHOWN).prompt == (SYSTEM, *SHOWN, ASKED)
    assert with_hint(prompt("2+2="), "1+1=2\n").prompt == "1+1=2\n2+2="


def test_the_row_stays_the_same_row():
    asked = prompt((ASKED,))
    shown = with_hint(asked, SHOWN)
    assert (shown.source, shown.row, shown.group_id) == ("rows.jsonl", 3, None)
    assert shown.id != asked.id  # another prompt to sample from, with draws of its own


def test_two_forms_do_not_mix():
    with pytest.raises(DataError, match=r"rows\.jsonl, row 3: the prompt is messages"):
        with_hint(prompt((ASKED,)), "1+1=2")


def test_the_column_hint_of_a_row():
    turns = [turn.model_dump() for turn in SHOWN]
    assert hint_of_row(prompt((ASKED,)), {"hint": turns}) == SHOWN
    assert hint_of_row(prompt("a"), {"hint": "b"}) == "b"
    with pytest.raises(DataError, match=r"rows\.jsonl, row 3: no column hint.*hinted: 0"):
        hint_of_row(prompt("a"), {})
    with pytest.raises(DataError, match="int as its hint"):
        hint_of_row(prompt("a"), {"hint": 3})
