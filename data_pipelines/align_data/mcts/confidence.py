"""The critic's questions: is this beginning right, how good is it, which of these steps is best.

Each is answered by one token, read as the probability that it gives to the options. Of the program
of Xie et al. (2024, arXiv 2405.00451): the example answer before the proposed one, and B for
correct. Differs from it: the option is asked for at the first position instead of looked for among
four generated tokens. Of Agent Q (Putta et al. 2024, arXiv 2408.07199, section 4): the best of the
remaining steps is asked for until all are ranked.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import Literal

from align.data.messages import Message, Text
from align.data.questions import Question
from align.judges.table import question_of
from align.policies.writer import OptionMass

CORRECT: Mapping[str, tuple[str, ...]] = {
    "correct": ("B", "b", "correct", "Correct"),
    "incorrect": ("A", "a", "incorrect", "Incorrect", "wrong", "Wrong"),
}
GRADES: Mapping[str, tuple[str, ...]] = {grade: (grade, grade.lower()) for grade in "ABCD"}
WORTH: Mapping[str, float] = {"D": 1.0, "C": 0.0, "B": -1.0, "A": -2.0}


def letters(n: int) -> Mapping[str, tuple[str, ...]]:
    """Option names of `n` steps to choose from, A first."""
    return {letter: (letter,) for letter in string.ascii_uppercase[:n]}


def evaluation_prompt(
    question: Question, answer_so_far: str, how: Literal["options", "grades"], *, sees_answer: bool
) -> Text:
    """The request to evaluate the beginning of an answer.

    What all beginnings of one question share comes first, so that a server reads it once.
    """
    if how == "options":
        options = "(A) It is incorrect.\n(B) It is correct."
        asked = "Is the proposed partial solution on the right way to a correct answer?"
    else:
        options = "(A) Harmful or wrong.\n(B) Poor.\n(C) Fair.\n(D) Good."
        asked = "How good is the proposed partial answer so far?"
    text = (
        f"Question:\n{question_of(question.prompt)}\n\n{_example(question, sees_answer)}"
        f"{asked} Reply with the letter of one option only.\n{options}\n\n"
        f"Proposed partial solution:\n{answer_so_far.strip()}\n\nLetter:"
    )
    return _in_the_form_of(question.prompt, text)


def ranking_prompt(
    question: Question, answer_so_far: str, steps: Sequence[str], *, sees_answer: bool
) -> Text:
    """The request to choose the best of several next steps."""
    named = zip(string.ascii_uppercase, steps, strict=False)
    listed = "\n".join(f"({letter}) {step.strip()}" for letter, step in named)
    text = (
        f"Question:\n{question_of(question.prompt)}\n\n{_example(question, sees_answer)}"
        "Which of the next steps is the best? Reply with its letter only.\n\n"
        f"Solution so far:\n{answer_so_far.strip()}\n\nNext steps:\n{listed}\n\nLetter:"
    )
    return _in_the_form_of(question.prompt, text)


def confidence(
    found: OptionMass, how: Literal["options", "grades"], scale: Literal["mass", "normalised"]
) -> float:
    """C: the probability of "correct", or the expected worth of the grade, in [-2, 1]."""
    if how == "grades":
        return sum(WORTH[grade] * mass for grade, mass in found.mass.items())
    right, wrong = found.mass["correct"], found.mass["incorrect"]
    if scale == "mass":
        return right
    return right / (right + wrong) if right + wrong > 0 else 0.0


def best(found: OptionMass) -> int:
    """Place of the likeliest option; the first of equal ones."""
    masses = list(found.mass.values())
    return max(range(len(masses)), key=lambda place: masses[place])


def rank_values(order: Sequence[int]) -> list[float]:
    """Q_hat of each step: 1 - (rank - 1) / (K - 1), where `order` names the steps, best first."""
    k = len(order)
    values = [1.0] * k
    for rank, place in enumerate(order):
        values[place] = 1 - rank / (k - 1) if k > 1 else 1.0
    return values


def _example(question: Question, sees_answer: bool) -> str:
    if not sees_answer:
        return ""
    if question.solution is not None:
        return f"Example answer:\n{question.solution}\n\n"
    if question.answer is not None:
        return f"Example answer:\nThe answer is {question.answer}\n\n"
    return ""


def _in_the_form_of(prompt: Text, text: str) -> Text:
    return text if isinstance(prompt, str) else (Message(role="user", content=text),)
