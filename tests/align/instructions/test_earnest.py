"""The guard: what games a check is no answer, what an instruction demands is no copy."""

import random

import pytest

from align.instructions import from_public, is_earnest
from align.instructions.earnest import distinct_share, words_of

ASKED = "Describe a river. Your answer must not contain a comma."


@pytest.mark.parametrize(
    ("answer", "earnest", "why"),
    [
        ("A river carries water from the hills to the sea.", True, "a text of its own"),
        ("Your answer must not contain a comma.", False, "the instruction, copied"),
        ("OK! your ANSWER must - not care about it at all", False, "four words, whatever the case"),
        ("It must not contain a fish or two, my answer", False, "four words from within"),
        ("Your answer must differ: contain a river and no sea", True, "three in a row at most"),
        ("River of water here", False, "four words"),
        ("River of much water here", True, "five"),
        ("river river river sea sea sea hill hill hill hill", False, "three distinct of ten"),
        ("one two three four five six one two three four", True, "six of ten are distinct"),
        ("one two three four five one two three four five", False, "five of ten"),
        ("", False, "nothing"),
    ],
)
def test_an_answer_is_a_text_of_its_own_or_not(answer, earnest, why):
    assert is_earnest(answer, ASKED) is earnest, why


def test_what_is_demanded_may_be_copied_and_nothing_around_it():
    ends = from_public("startend:end_checker", {"end_phrase": "Is there anything else to do?"})
    asked = f"Describe a river. {ends.described()}"
    answer = "A river carries water to the sea. Is there anything else to do?"
    assert not is_earnest(answer, asked)
    assert is_earnest(answer, asked, ends.demanded())
    assert not is_earnest(f"End your answer with exactly: {answer}", asked, ends.demanded())


def test_one_of_the_demanded_texts_is_a_whole_answer():
    chosen = from_public("detectable_format:constrained_response", {})
    assert is_earnest("My answer is yes.", chosen.described(), chosen.demanded())
    assert not is_earnest("My answer is yes.", chosen.described())


def test_a_long_text_of_one_language_is_earnest_and_a_loop_is_not():
    """300 words out of 400, drawn by Zipf's law as in a language: less than 60 % are distinct."""
    draw = random.Random(0)
    ranks = range(1, 401)
    words = draw.choices([f"w{r}" for r in ranks], [1 / (r + 8) for r in ranks], k=300)
    assert len(set(words)) / len(words) < 0.6
    assert distinct_share(words) > 0.75
    assert is_earnest(" ".join(words), ASKED)
    looping = words[:25] + words[25:40] * 18
    assert distinct_share(looping) < 0.4
    assert not is_earnest(" ".join(looping), ASKED)


def test_words_are_runs_of_letters_with_their_apostrophes():
    assert words_of("Don't \u2013 DON\u2019T! 2 rivers_") == ["don't", "don\u2019t", "2", "rivers_"]
    assert distinct_share(["a"] * 10) == 0.1
    with pytest.raises(ValueError, match="without a word"):
        distinct_share([])
