"""A preference model as a judge: antisymmetric to the last bit, and in all judges' manners."""

import itertools
import math

import pytest
import torch

from align.errors import RecipeError
from align.judges.base import Comparison, JudgeFailed, Prefers, Tie, probability
from align.judges.matrix import every_pair, preference_matrix
from align.judges.preference_model import PreferenceModelJudge, verdict_of
from tests.align.judges.test_reward_model import QUESTION, TEXTS, TOKENIZER, reward_model

JUDGED = [text for text in TEXTS if text != "1"] + ["8", "52", "17+35=52\n52+28=81\n81"]


@pytest.fixture(scope="module")
def model():
    return reward_model(max_position_embeddings=128)


@pytest.fixture(scope="module")
def judge(model):
    return PreferenceModelJudge(model, TOKENIZER, batch_size=5)


def comparisons(pairs, prompt=QUESTION):
    return [Comparison(prompt, a, b, id=str(n)) for n, (a, b) in enumerate(pairs)]


def by_hand(model, first: str, second: str) -> float:
    def score(a: str, b: str) -> float:
        text = f"<bos><user>17+35+28?<end><assistant>{a}<end><assistant>{b}<end>"
        ids = TOKENIZER.encode(text, add_special_tokens=False)
        with torch.no_grad():
            return model.eval()(torch.tensor([ids])).logits[0, 0].item()

    return 1 / (1 + math.exp(score(second, first) - score(first, second)))


def test_it_says_what_the_model_says_of_both_orders(model, judge) -> None:
    pairs = list(itertools.combinations(JUDGED, 2))
    found = judge.compare(comparisons(pairs))
    expected = [by_hand(model, *pair) for pair in pairs]
    assert [probability(verdict) for verdict in found] == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 0.1, "a model that cannot tell anything shows nothing"
    for verdict in found:
        assert isinstance(verdict, Prefers)
        assert verdict.which == ("first" if verdict.probability > 0.5 else "second")


def test_it_is_antisymmetric_to_the_last_bit(judge) -> None:
    """Some of the pairs swapped and the others as they were, in another call."""
    pairs = list(itertools.combinations(JUDGED, 2))
    straight = [probability(v) for v in judge.compare(comparisons(pairs))]
    mixed = [(b, a) if n % 3 else (a, b) for n, (a, b) in enumerate(pairs)]
    other = [probability(v) for v in judge.compare(comparisons(mixed))]
    for n, (p, q) in enumerate(zip(straight, other, strict=True)):
        assert p is not None
        assert q is not None
        assert p != 0.5
        assert (p + q == 1.0) if n % 3 else (p == q)


def test_equal_answers_tie_exactly(judge) -> None:
    found = judge.compare(comparisons([("80", "80"), ("80", "8"), ("99999", "99999")]))
    assert found[0] == found[2] == Tie()
    assert probability(found[0]) == 0.5
    assert isinstance(found[1], Prefers)


@pytest.mark.parametrize("difference", [1e-20, 1e-3, 1.0, 30.0, 1e4])
def test_probabilities_of_both_sides_add_up_to_one_at_any_size(difference: float) -> None:
    rows = [[1], [2]]
    one, other = verdict_of(difference, rows), verdict_of(-difference, rows)
    assert probability(one) + probability(other) == 1.0  # type: ignore[operator]
    assert probability(one) >= 0.5  # type: ignore[operator]


def test_what_cannot_be_compared_has_a_reason_and_no_number(model) -> None:
    judge = PreferenceModelJudge(model, TOKENIZER, max_length=40)
    found = judge.compare(
        comparisons([("80", "1"), ("80", "1" * 40), ("", "80"), ("80", "80<end>1"), ("81", "1")])
    )
    assert [getattr(x, "reason", "verdict") for x in found] == [
        "verdict",
        "too_long",
        "empty_completion",
        "control_tokens",
        "verdict",
    ]
    assert isinstance(found[2], JudgeFailed)
    assert found[2].detail.startswith("first answer: ")
    broken = reward_model()
    with torch.no_grad():
        broken.score.weight[0, 0] = float("nan")
    (verdict,) = PreferenceModelJudge(broken, TOKENIZER).compare(comparisons([("80", "1")]))
    assert isinstance(verdict, JudgeFailed)
    assert verdict.reason == "not_finite"


def test_a_matrix_of_it_is_full_and_consistent(judge) -> None:
    k = len(JUDGED)
    matrix = preference_matrix(judge, QUESTION, JUDGED, every_pair(k))
    assert matrix.calls == k * (k - 1) // 2
    for i, j in itertools.product(range(k), repeat=2):
        there, back = matrix.preferences[i][j], matrix.preferences[j][i]
        assert there is not None
        assert back is not None
        assert there + back == 1.0


def test_plain_prompts_are_compared_too(judge) -> None:
    (verdict,) = judge.compare(comparisons([("80", "81")], prompt="17+35+28="))
    assert isinstance(verdict, Prefers)


def test_the_identity_is_that_of_the_weights(model) -> None:
    one = PreferenceModelJudge(model, TOKENIZER).identity
    assert PreferenceModelJudge(model, TOKENIZER, batch_size=1).identity == one
    assert PreferenceModelJudge(model, TOKENIZER, max_length=30).identity != one
    with pytest.raises(RecipeError, match="has 3 outputs"):
        PreferenceModelJudge(reward_model(num_labels=3), TOKENIZER)
