import math

import numpy as np
import pytest

from align.errors import DataError, NumericalError
from align_eval.bradley_terry import (
    Outcome,
    bootstrap_strengths,
    logistic,
    rank,
    strengths,
    win_rates,
)


def games(first, second, wins, losses, ties=0):
    scores = [1.0] * wins + [0.0] * losses + [0.5] * ties
    return [Outcome(first, second, score, str(i)) for i, score in enumerate(scores)]


def test_two_models_by_hand():
    # 6 wins, 2 losses, 4 ties of 12: share 8/12, strength log(8/4) = .693147.
    found = strengths(games("a", "b", 6, 2, 4), "b")
    assert found == {"b": 0.0, "a": pytest.approx(math.log(2), abs=1e-6)}
    # Written the other way round it is the same comparison.
    swapped = [Outcome("b", "a", 1 - o.score, o.cluster) for o in games("a", "b", 6, 2, 4)]
    assert strengths(swapped, "b")["a"] == pytest.approx(math.log(2), abs=1e-6)
    assert win_rates(swapped, "b") == {"b": 0.5, "a": pytest.approx(2 / 3, abs=1e-7)}


def test_three_models_that_agree_with_the_model():
    # Odds 2 : 1 and 3 : 1, so 6 : 1 along the chain: nobody need meet everybody.
    outcomes = [*games("a", "b", 20, 10), *games("b", "c", 30, 10)]
    found = strengths(outcomes, "c")
    assert found["b"] == pytest.approx(math.log(3), abs=1e-6)
    assert found["a"] == pytest.approx(math.log(6), abs=1e-6)
    # With the third pair in agreement nothing moves.
    whole = strengths([*outcomes, *games("a", "c", 60, 10)], "c")
    assert whole == pytest.approx(found, abs=1e-6)


def test_a_model_that_always_wins_stays_finite():
    found = win_rates(games("a", "b", 40, 0), "b")
    assert 0.999999 < found["a"] <= 1.0
    assert math.isfinite(strengths(games("a", "b", 40, 0), "b")["a"])


def test_models_without_a_chain_to_the_baseline_are_named():
    outcomes = [*games("a", "b", 1, 1), *games("c", "d", 1, 1)]
    with pytest.raises(DataError, match="joins c, d to the baseline 'b'"):
        strengths(outcomes, "b")
    with pytest.raises(DataError, match="names the baseline 'x'; the models are a, b, c, d"):
        strengths(outcomes, "x")


def test_a_missing_value_is_never_fitted():
    with pytest.raises(NumericalError, match="NaN or infinite"):
        logistic(np.array([[1.0]]), np.array([math.nan]))


def test_weights_are_repetitions():
    design = np.array([[1.0, 0.5], [1.0, -0.2], [1.0, 0.9], [1.0, -1.0]])
    outcomes = np.array([1.0, 0.0, 0.5, 0.5])
    times = np.array([3, 1, 2, 1])
    repeated = logistic(np.repeat(design, times, axis=0), np.repeat(outcomes, times))
    assert logistic(design, outcomes, times.astype(float)) == pytest.approx(repeated, abs=1e-8)


def test_the_bootstrap_draws_clusters_and_follows_the_seed():
    # Each of 30 prompts holds ten equal verdicts: as prompts the interval is wide.
    alike = [Outcome("a", "b", float(i % 3 > 0), str(i)) for i in range(30) for _ in range(10)]
    apart = [Outcome("a", "b", o.score, str(n)) for n, o in enumerate(alike)]
    (wide,) = [row for row in rank(alike, "b", seed=0) if row.model == "a"]
    (narrow,) = [row for row in rank(apart, "b", seed=0) if row.model == "a"]
    assert wide.strength == pytest.approx(narrow.strength) == pytest.approx(math.log(2), abs=1e-6)
    assert wide.low < wide.strength < wide.high
    # sqrt(10) times as wide.
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(3.16, rel=0.35)
    draws = [bootstrap_strengths(alike, "b", resamples=5, seed=seed)["a"] for seed in (0, 0, 1)]
    assert (draws[0] == draws[1]).all()
    assert (draws[0] != draws[2]).any()


def test_the_strongest_comes_first():
    found = rank([*games("a", "b", 30, 10), *games("c", "b", 10, 30)], "b", seed=0)
    assert [row.model for row in found] == ["a", "b", "c"]
    assert [row.win_rate for row in found] == pytest.approx([0.75, 0.5, 0.25], abs=1e-6)
    assert (found[1].low, found[1].high) == (0.0, 0.0)
