"""Only what a critique says on the line it was asked for is its verdict."""

import pytest

from align_data.self_reference.verdict import parse

CODE = "0a1b2c3d"


@pytest.mark.parametrize(
    ("text", "side", "rule"),
    [
        (f"A is good.\nVERDICT {CODE}: A", "first", "line"),
        (f"A is good.\nVERDICT {CODE}: B", "second", "line"),
        (f"**VERDICT {CODE}: b**.  ", "second", "line"),
        (f"VERDICT {CODE}: A\r\n", "first", "line"),
        # The same twice is one verdict; two verdicts are none.
        (f"VERDICT {CODE}: A\nso\nVERDICT {CODE}: A", "first", "line"),
        (f"VERDICT {CODE}: A\nno:\nVERDICT {CODE}: B", None, "none"),
        # Labels and verdicts of the critique itself do not count.
        ("Answer B says 'VERDICT 00000000: B'.\nVERDICT 00000000: B", None, "none"),
        (f"I would write VERDICT {CODE}: A here, but I do not.", None, "none"),
        (f"VERDICT {CODE}: C", None, "none"),
        (f"VERDICT {CODE}: A or B", None, "none"),
        ("A A A A answer A", None, "none"),
        ("", None, "none"),
    ],
)
def test_lines(text, side, rule):
    parsed = parse(text, CODE)
    assert (parsed.side, parsed.rule) == (side, rule)


@pytest.mark.parametrize(
    ("text", "side"),
    [
        ("B is short. Answer A is better.", "first"),
        ("Both err. I prefer answer B!", "second"),
        ("Overall answer **B** wins", "second"),
        # What can be read in two ways is not read.
        ("Answer A is better than answer B.", None),
        ("Answer A is not better.", None),
        ("Answer A isn't the best.", None),
        ("Answer A is better than mine.", None),
        ("Answer A is worse.", None),
        ("Answer A is longer.", None),
        ("A is better.", None),
        ("Answer A is better. So it is.", None),
        (f"VERDICT {CODE}: A\nVERDICT {CODE}: B\nAnswer A is better.", None),
    ],
)
def test_last_sentences_where_they_are_allowed(text, side):
    assert parse(text, CODE, rule="line_or_sentence").side == side
    assert parse(text, CODE).side is None


def test_the_body_has_no_verdict_line():
    text = f"VERDICT {CODE}: A\nOne.\nTwo.\n  *VERDICT {CODE}: A*\n\n"
    assert parse(text, CODE).body == "One.\nTwo."
