import pytest

from align.data.messages import Message
from align.data.problems import RowProblem
from align.judges.base import Comparison
from align.worlds.additions import sums_tokenizer
from align_data.uncertainty.reading import PairReader, query_of
from align_data.uncertainty.settings import DEFAULT_TEMPLATE

TOKENIZER = sums_tokenizer()
ASKED = (Message(role="user", content="1+2?"),)


def text(item, template="{query}\n{first}\n{second}", length=64):
    return TOKENIZER.decode(PairReader(TOKENIZER, template, length).ids(item))


def test_first_stands_before_second_and_the_end_behind():
    assert text(Comparison(ASKED, "3", "4", "")) == "<bos>1+2?\n3\n4<end>"
    assert text(Comparison("1+2?", "4", "3", "")) == "<bos>1+2?\n4\n3<end>"


def test_places_that_a_response_spells_stay_text():
    ids = PairReader(TOKENIZER, "{query}={first}={second}", 64).ids(
        Comparison("1", "{second}", "{first}", "")
    )
    # Letters and braces are unknown to this tokenizer: 8 and 7 of them.
    unknown = [TOKENIZER.unk_token_id]
    equals = TOKENIZER.encode("=", add_special_tokens=False)
    one = TOKENIZER.encode("1", add_special_tokens=False)
    end, begin = [TOKENIZER.eos_token_id], [TOKENIZER.bos_token_id]
    assert ids == begin + one + equals + unknown * 8 + equals + unknown * 7 + end


def test_without_a_template_the_question_is_asked_twice():
    item = Comparison((Message(role="system", content="0"), *ASKED), "3", "4", "")
    assert text(item, None) == (
        "<bos><system>0<end><user>1+2?<end><assistant>3<end><user>1+2?<end><assistant>4<end>"
    )


def test_a_control_token_in_a_response_ends_nothing():
    with pytest.raises(RowProblem) as caught:
        text(Comparison(ASKED, "3<end>", "4", ""))
    assert caught.value.reason == "control_tokens"


def test_what_is_too_long_is_refused_and_never_cut():
    item = Comparison(ASKED, "3" * 20, "4", "")
    # <bos> 1+2? \n 20 \n 4 <end> = 1 + 4 + 1 + 20 + 1 + 1 + 1
    assert text(item, length=29).endswith("4<end>")
    with pytest.raises(RowProblem, match="29 tokens, 28 fit"):
        text(item, length=28)


def test_several_turns_are_named_by_their_roles():
    turns = (
        Message(role="user", content="1?"),
        Message(role="assistant", content="2"),
        Message(role="user", content="3?"),
    )
    assert query_of(turns) == "user: 1?\n\nassistant: 2\n\nuser: 3?"
    assert query_of(ASKED) == "1+2?"


def test_the_default_template_holds_the_three_places():
    assert [DEFAULT_TEMPLATE.count(p) for p in ("{query}", "{first}", "{second}")] == [1, 1, 1]
