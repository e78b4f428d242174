import pytest

from align.data.messages import Message
from align.errors import RecipeError
from align.judges.base import Answer, JudgeFailed
from align.judges.rule import RuleJudge, known_answer_judge
from align.worlds.sums import sums_judge


def answer(completion, question="q", chat=False):
    prompt = (Message(role="user", content=question),) if chat else question
    return Answer(prompt, completion, id="x")


def test_the_judge_of_sums():
    right, wrong = "17+35=52\n52+28=80\n80", "17+35=53\n53+28=81\n81"
    found = sums_judge().score(
        [
            answer(right, "17+35+28?", chat=True),
            answer(wrong, "17+35+28?"),
            answer(right, "17+35+29?"),
            answer(right, "what is 17+35+28?"),
        ]
    )
    assert found[:3] == [1.0, 0.0, 0.0]
    assert isinstance(found[3], JudgeFailed)
    assert found[3].reason == "not_a_sum"


@pytest.mark.parametrize(
    ("completion", "known", "score"),
    [
        ("The answer is 42.", "42", 1.0),
        ("First 7, then 42", "42", 1.0),
        ("42, not 7", "42", 0.0),
        ("It costs $1,000.00 in all.", "1000", 1.0),
        ("1000.50", "1,000.5", 1.0),
        ("-3", "3", 0.0),
        ("-0", "0", 1.0),
        ("007", "7", 1.0),
        ("line one 5\nline two 6", "6", 1.0),
        ("none at all", "6", 0.0),
        ("10", "1", 0.0),
        ("1.0", "10", 0.0),
    ],
)
def test_the_last_number_is_compared_as_a_number(completion, known, score):
    assert known_answer_judge({"q": known}).score([answer(completion)]) == [score]


def test_a_pattern_of_ones_own():
    judge = known_answer_judge({"q": "New  York"}, pattern=r"Answer: (.+)$")
    assert judge.score(
        [answer("Answer: new york"), answer("New York"), answer("Answer: Boston")]
    ) == [1.0, 0.0, 0.0]
    with pytest.raises(RecipeError, match="no regular expression"):
        known_answer_judge({}, pattern="(")


def test_a_question_without_a_known_answer_has_no_score():
    (found,) = known_answer_judge({"q": "1"}).score([answer("1", "another")])
    assert isinstance(found, JudgeFailed)
    assert found.reason == "unknown_question"


def test_identities_tell_rules_apart():
    one = known_answer_judge({"q": "1"}).identity
    assert known_answer_judge({"q": "1"}).identity == one
    assert known_answer_judge({"q": "2"}).identity != one
    assert known_answer_judge({"q": "1"}, pattern=".").identity != one
    assert RuleJudge("length", lambda q, c: float(len(c))).identity == "rule:length"


def test_scores_keep_the_order():
    judge = RuleJudge("length", lambda question, completion: float(len(completion)))
    assert judge.score([answer("aaa"), answer(""), answer("a")]) == [3.0, 0.0, 1.0]
