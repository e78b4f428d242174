import pytest

from align.data.messages import Message
from align.errors import RecipeError
from align.judges.base import Comparison, Prefers, Tie
from align.judges.table import TableJudge, question_of
from align.worlds.styles import styles_judge

P = [[0.5, 0.75], [0.25, 0.5]]


def comparison(first, second, prompt="?"):
    return Comparison(prompt, first, second, id="x")


def by_length(prompt, text):
    return "long" if len(text) > 3 else "short"


def test_the_table_is_read_by_row_and_column():
    judge = TableJudge(["long", "short"], P, by_length)
    found = judge.compare(
        [comparison("aaaa", "a"), comparison("a", "aaaa"), comparison("aaaa", "bbbb")]
    )
    assert found == [Prefers("first", 0.75), Prefers("second", 0.25), Tie()]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ([[0.5, 0.75]], "2 x 2"),
        ([[0.5], [0.5]], "2 x 2"),
        ([[0.5, 0.75], [0.75, 0.5]], "add up to 1"),
        ([[0.6, 0.75], [0.25, 0.5]], "itself with 1/2"),
        ([[0.5, 1.5], [-0.5, 0.5]], r"\[0, 1\]"),
        ([[0.5, float("nan")], [0.25, 0.5]], "add up to 1"),
    ],
)
def test_a_table_that_is_no_preference_is_refused(table, words):
    with pytest.raises(RecipeError, match=words):
        TableJudge(["long", "short"], table, by_length)


def test_the_identity_is_that_of_the_table():
    one = TableJudge(["long", "short"], P, by_length).identity
    assert TableJudge(["long", "short"], P, by_length).identity == one
    assert TableJudge(["long", "short"], [[0.5, 0.7], [0.3, 0.5]], by_length).identity != one
    assert TableJudge(["l", "short"], P, by_length).identity != one


def test_the_question_is_the_last_message():
    assert question_of("a") == "a"
    turns = (Message(role="system", content="s"), Message(role="user", content="u"))
    assert question_of(turns) == "u"


def test_the_judge_of_styles():
    prompt = (Message(role="user", content="what of green tea?"),)
    asking, shouting, listing = (
        "is green tea not old?",
        "green tea! warm!",
        "- green tea\n- old",
    )
    found = styles_judge().compare(
        [
            comparison(asking, shouting, prompt),
            comparison(shouting, listing, prompt),
            comparison(listing, asking, prompt),
            comparison(asking, "is green tea not warm?", prompt),
            comparison("is red tea not old?", asking, prompt),
        ]
    )
    # A circle; qualities do not matter; a remark on something else is malformed.
    assert found == [
        Prefers("first", 0.85),
        Prefers("first", 0.75),
        Prefers("first", 0.80),
        Tie(),
        Prefers("second", 0.05),
    ]
