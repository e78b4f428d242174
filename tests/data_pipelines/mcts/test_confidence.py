import pytest

from align.data.messages import Message
from align.data.questions import Question
from align.policies.writer import OptionMass
from align_data.mcts.confidence import (
    best,
    confidence,
    evaluation_prompt,
    rank_values,
    ranking_prompt,
)

QUESTION = Question(prompt="2 + 2 + 3?", answer="7", solution="2 + 2 = 4", source="t", row=1)


def test_what_a_question_shares_comes_first():
    one, other = (
        evaluation_prompt(QUESTION, step, "options", sees_answer=True) for step in ("2+2=4", "5")
    )
    assert isinstance(one, str)
    shared = one.index("Proposed partial solution")
    assert one[:shared] == other[:shared]
    for part in ("2 + 2 + 3?", "2 + 2 = 4", "(A) It is incorrect", "(B) It is correct"):
        assert part in one[:shared]


def test_the_answer_is_shown_only_where_it_may_be():
    hidden = evaluation_prompt(QUESTION, "5", "options", sees_answer=False)
    assert "2 + 2 = 4" not in hidden
    no_solution = QUESTION.model_copy(update={"solution": None})
    assert "The answer is 7" in evaluation_prompt(no_solution, "5", "grades", sees_answer=True)
    nothing = no_solution.model_copy(update={"answer": None})
    assert "Example" not in evaluation_prompt(nothing, "5", "options", sees_answer=True)


def test_messages_are_asked_by_messages():
    chat = QUESTION.model_copy(update={"prompt": (Message(role="user", content="2?"),)})
    found = ranking_prompt(chat, "so far", ["one", "two"], sees_answer=True)
    assert isinstance(found, tuple)
    assert found[0].role == "user"
    assert "(A) one\n(B) two" in found[0].content


def test_confidence_by_hand():
    said = OptionMass({"correct": 0.3, "incorrect": 0.1})
    assert confidence(said, "options", "mass") == 0.3
    assert confidence(said, "options", "normalised") == pytest.approx(0.75)
    none = OptionMass({"correct": 0.0, "incorrect": 0.0})
    assert confidence(none, "options", "normalised") == 0.0
    # 0.4 - 0.2 - 2 * 0.3
    grades = OptionMass({"A": 0.3, "B": 0.2, "C": 0.1, "D": 0.4})
    assert confidence(grades, "grades", "mass") == pytest.approx(-0.4)


def test_ranks():
    assert best(OptionMass({"A": 0.1, "B": 0.4, "C": 0.4})) == 1
    # Best first: step 2, then 0, then 1.
    assert rank_values([2, 0, 1]) == [0.5, 0.0, 1.0]
    assert rank_values([0]) == [1.0]
