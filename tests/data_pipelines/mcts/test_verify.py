import pytest

from align.data.messages import Message
from align.data.questions import Question
from align_data.mcts.verify import KnownAnswerVerifier, SumsVerifier, gsm8k_answer


def asked(prompt, answer=None):
    return Question(prompt=prompt, answer=answer, source="test", row=1)


def test_the_judge_of_sums_is_exact():
    sums = SumsVerifier()
    question = asked((Message(role="user", content="17+35+28?"),))
    assert sums.right(question, "17+35=52\n52+28=80\n80") is True
    assert sums.right(question, "17+35=52\n52+28=80\n81") is False
    assert sums.right(question, "") is False
    assert sums.right(asked("how many?"), "80") is None


@pytest.mark.parametrize(
    ("answer", "text", "right"),
    [
        ("18", "So 16 - 3 = 13.\n#### 18", True),
        ("18", "18 eggs make 9 dollars", False),
        ("1,080", "It is $1080.00 in all.", True),
        ("18", "no number", False),
        (None, "18", None),
    ],
)
def test_the_last_number_is_compared_with_the_known_answer(answer, text, right):
    assert KnownAnswerVerifier().right(asked("q?", answer), text) is right


def test_another_pattern():
    letter = KnownAnswerVerifier(r"\(([A-D])\)")
    assert letter.right(asked("q?", "B"), "I choose (B).") is True
    assert letter.right(asked("q?", "B"), "B") is False
    assert letter.identity != KnownAnswerVerifier().identity


def test_the_answer_behind_the_mark():
    assert gsm8k_answer("9 * 2 = <<9*2=18>>18\n#### 1,018 ") == "1,018"
    assert gsm8k_answer("no mark 18") is None
    assert gsm8k_answer("#### ") is None
