"""Sentences as published scores count them; the numbers are those of Punkt's English model."""

import pytest

from align.instructions.sentences import sentences

COUNTED = [
    ("", []),
    ("It rains. We stay.", ["It rains.", "We stay."]),
    ("It rains.\n\nWe stay", ["It rains.", "We stay"]),
    ("He pays $3.50. She pays 1,000.", ["He pays $3.50.", "She pays 1,000."]),
    ("Mr. Smith met Dr. Jones at 5 p.m. Dec. 3.", ["Mr. Smith met Dr. Jones at 5 p.m. Dec. 3."]),
    ("He left the U.S. The train was late.", ["He left the U.S.", "The train was late."]),
    ("The U.S. Senate met.", ["The U.S. Senate met."]),
    ("J. Smith came. Plan B. The end.", ["J. Smith came.", "Plan B.", "The end."]),
    ("What?! Really?? Yes!!! No.", ["What?!", "Really??", "Yes!!!", "No."]),
    ("Well... then we go.", ["Well... then we go."]),
    ("Wait... The end.", ["Wait...", "The end."]),
    ('"Hi!" he said. "Bye."', ['"Hi!"', "he said.", '"Bye."']),
    ("(One.) Two.", ["(One.)", "Two."]),
    ("Hi. ) There.", ["Hi. )", "There."]),
    ("Pens, ink, etc.). More.", ["Pens, ink, etc.).", "More."]),
    ("no. 5 is it. In 1999. the cat.", ["no.", "5 is it.", "In 1999. the cat."]),
    # Where published counts surprise, they are kept.
    ("1. Tea\n2. Jam", ["1.", "Tea\n2.", "Jam"]),
    ("See e.g. this, i.e. it, etc. Yes.", ["See e.g.", "this, i.e.", "it, etc.", "Yes."]),
    ("**Done.**", ["**Done.", "**"]),
    ("Wow!!!", ["Wow!!", "!"]),
    ("\u201cHi.\u201d Then he left.", ["\u201cHi.\u201d Then he left."]),
    ("one line\nanother line", ["one line\nanother line"]),
    ("A. Introduction\nB. Discussion", ["A.", "Introduction\nB.", "Discussion"]),
    ("a. tea", ["a. tea"]),
    ("It was Enid's. Four left.", ["It was Enid's.", "Four left."]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "found"), COUNTED)
def test_a_text_is_parted_where_published_scores_part_it(text, found):
    assert sentences(text) == found
