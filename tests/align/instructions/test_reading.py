"""The loose reading: eight texts, and never stricter than the strict one."""

from hypothesis import given, settings
from hypothesis import strategies as st

from align.instructions import KINDS, from_public, met_loosely, readings
from tests.align.instructions.golden import GOLDEN

CHEAP = [kind for kind in KINDS if not kind.startswith(("language", "change_case:english"))]
# What checks look for, so that random texts meet some of them.
SIGNS = ["*", "**", "***", "******", "\n", "\n\n", "- ", '"', "<<a>>", "[b]", ",", ".", "{}"]
TEXTS = ["My answer is yes.", "Section 1", "tea", "river boat", "That is all.", "NASA", "P.S."]
answers = st.lists(
    st.sampled_from([*SIGNS, *TEXTS, "Then "]) | st.text(max_size=8), max_size=12
).map("".join)


def test_the_eight_texts_of_an_answer():
    assert readings("Sure:\n\n*a*\n b \nBye.") == (
        "Sure:\n\n*a*\n b \nBye.",
        "*a*\n b \nBye.",
        "Sure:\n\n*a*\n b",
        "*a*\n b",
        "Sure:\n\na\n b \nBye.",
        "a\n b \nBye.",
        "Sure:\n\na\n b",
        "a\n b",
    )
    assert readings("one") == ("one", "")


def test_a_wrapped_answer_is_met_loosely_only():
    no_comma = from_public("punctuation:no_comma", {})
    for answer in ("Sure, here it is:\nIt rains.", "It rains.\nHope it helps, bye."):
        assert not no_comma.met(answer)
        assert met_loosely(no_comma, answer)
    ends = from_public("startend:end_checker", {"end_phrase": "the end"})
    assert not ends.met("**The End**")
    assert met_loosely(ends, "**The End**")
    # What is wrapped must still be an answer: nothing of this one is left.
    assert not met_loosely(no_comma, "a, b")
    assert not met_loosely(from_public("detectable_format:title", {}), "<<\n>>")


@given(answer=answers, kind=st.sampled_from(CHEAP), which=st.integers(0, 9))
@settings(max_examples=400, deadline=None)
def test_what_is_met_strictly_is_met_loosely(answer, kind, which):
    groups = GOLDEN[kind]
    instruction = from_public(kind, groups[which % len(groups)][0])
    if instruction.met(answer):
        assert met_loosely(instruction, answer)


@given(answer=answers)
@settings(max_examples=200, deadline=None)
def test_no_more_than_eight_readings_and_the_first_is_the_answer(answer):
    found = readings(answer)
    assert found[0] == answer
    assert len(found) == len(set(found)) <= 8


@given(blank=st.text(alphabet=" \n\t", max_size=4))
@settings(max_examples=100, deadline=None)
def test_nothing_meets_no_instruction(blank):
    for kind in CHEAP:
        assert not from_public(kind, GOLDEN[kind][0][0]).met(blank)
