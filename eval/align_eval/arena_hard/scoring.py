"""Arena-Hard's scores: strong verdicts three times, both games, a bootstrap with a seed.

Source: lmarena/arena-hard-auto, commit 196f6b8, show_result.py. Differs from it: the score is the
mean over the verdicts themselves, not over the bootstrap's means, and the bootstrap has a seed, so
that the last digit stays where it is; questions that are left out are counted by their reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from align.errors import DataError
from align_eval.arena_hard.files import ModelAnswer
from align_eval.arena_hard.style import FEATURES, style_features
from align_eval.arena_hard.verdicts import LABELS, MEANING, scores_of
from align_eval.bradley_terry import Floats, Outcome, design_of, logistic, sigmoid
from align_eval.row_files import Row, read_rows

WEIGHT = 3
RESAMPLES = 100


@dataclass(frozen=True)
class Battles:
    """Verdicts as outcomes, a strong one three times, and what gave none.

    Attributes:
        outcomes: first is the model, second the baseline; the cluster is the question's uid.
        questions: pairs of question and model that count, by model.
        dropped: those without two verdicts, by model and reason.
    """

    outcomes: list[Outcome]
    questions: Mapping[str, int]
    dropped: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class ArenaScore:
    """One model against the baseline.

    Attributes:
        model: its name.
        score: percent, half a point for a tie.
        low: lower end of the interval, percent.
        high: upper end.
        n_questions: that count.
        n_dropped: without two verdicts.
        n_verdicts: entries behind the score, strong ones counted three times.
    """

    model: str
    score: float
    low: float
    high: float
    n_questions: int
    n_dropped: int
    n_verdicts: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def places_of(judgment: Row) -> tuple[float | None, float | None]:
    """P(assistant A wins) in each of a question's two games; None without a verdict."""
    labels = map(_label, judgment["games"])
    first, second = (None if label is None else MEANING[label][0] for label in labels)
    return first, second


def battles_of(judgments: Sequence[Row], category: str | None = None) -> Battles:
    """Outcomes of judgments, of one category or of all.

    Game 1 shows the baseline first, so its verdict is turned round; game 2 shows the model first.
    """
    outcomes: list[Outcome] = []
    questions: Counter[str] = Counter()
    dropped: dict[str, Counter[str]] = {}
    for row in judgments:
        if category is not None and row.get("category") != category:
            continue
        labels = [_label(game) for game in row["games"]]
        if labels[0] is None or labels[1] is None:
            reasons = dropped.setdefault(row["model"], Counter())
            reasons["no answer" if None in row["games"] else "no verdict"] += 1
            continue
        questions[row["model"]] += 1
        entries = [
            *scores_of(labels[1], weight=WEIGHT),
            *(1 - score for score in scores_of(labels[0], weight=WEIGHT)),
        ]
        baseline = row.get("baseline", "baseline")
        outcomes += [Outcome(row["model"], baseline, score, row["uid"]) for score in entries]
    return Battles(outcomes, dict(questions), {k: dict(v) for k, v in dropped.items()})


def _label(game: Any) -> Any:
    return None if game is None else LABELS.get(str(game.get("score")).upper())


def read_battles(path: Path) -> list[Outcome]:
    """Battles of the older kind: question_id, model_a, model_b, winner; a repeated row is a weight.

    Raises:
        DataError: a row lacks a field or names another winner.
    """
    score = {"model_a": 1.0, "model_b": 0.0, "tie": 0.5, "tie (bothbad)": 0.5}
    rows = read_rows(path, needs=("question_id", "model_a", "model_b", "winner"))
    outcomes: list[Outcome] = []
    for number, row in enumerate(rows, start=1):
        if row["winner"] not in score:
            raise DataError(
                f"{path}:{number}: the winner is none of {', '.join(score)}. Write one of them."
            )
        outcomes.append(
            Outcome(row["model_a"], row["model_b"], score[row["winner"]], str(row["question_id"]))
        )
    return outcomes


def leaderboard(
    battles: Battles,
    *,
    seed: int,
    interval: tuple[float, float],
    resamples: int = RESAMPLES,
) -> list[ArenaScore]:
    """Mean score per model, the best first; the bootstrap draws verdicts, as the original does."""
    rows: list[ArenaScore] = []
    for model in sorted({outcome.first for outcome in battles.outcomes}):
        scores = np.array([o.score for o in battles.outcomes if o.first == model])
        # One stream per model: another model in the table moves no interval.
        draw = _stream(seed, model)
        means = [
            scores[draw.integers(len(scores), size=len(scores))].mean() for _ in range(resamples)
        ]
        low, high = np.quantile(means, interval).tolist()
        rows.append(_row(battles, model, float(scores.mean()), low, high, len(scores)))
    return sorted(rows, key=lambda row: (-row.score, row.model))


def battle_scores(
    outcomes: Sequence[Outcome],
    *,
    baseline: str,
    seed: int,
    interval: tuple[float, float],
    resamples: int = RESAMPLES,
) -> list[ArenaScore]:
    """P(model beats the baseline) by Bradley and Terry, the best first; battles are drawn.

    What v0.1 shows. Where every battle is against the baseline this is the mean score.
    """
    design, names = design_of(outcomes, baseline)
    scores = np.array([outcome.score for outcome in outcomes])
    found: Floats = sigmoid(logistic(design, scores))
    draw = _stream(seed, baseline)
    drawn = np.empty((resamples, len(names)))
    for row in range(resamples):
        times = _times(draw.integers(len(scores), size=len(scores)), len(scores))
        drawn[row] = sigmoid(logistic(design, scores, times))
    low, high = np.quantile(drawn, interval, axis=0)
    asked = {name: {o.cluster for o in outcomes if name in (o.first, o.second)} for name in names}
    battles = Battles([], {name: len(clusters) for name, clusters in asked.items()})
    rows = [
        _row(battles, name, found[i], low[i], high[i], int((design[:, i] != 0).sum()))
        for i, name in enumerate(names)
    ]
    return sorted(rows, key=lambda row: (-row.score, row.model))


def _times(drawn: np.ndarray, n: int) -> Floats:
    return np.bincount(drawn, minlength=n).astype(np.float64)


def _stream(seed: int, name: str) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *name.encode()])))


def _row(battles: Battles, model: str, score: float, low: float, high: float, n: int) -> ArenaScore:
    return ArenaScore(
        model=model,
        score=100 * float(score),
        low=100 * float(low),
        high=100 * float(high),
        n_questions=battles.questions.get(model, 0),
        n_dropped=sum(battles.dropped.get(model, {}).values()),
        n_verdicts=n,
    )


@dataclass(frozen=True)
class StyleControlled:
    """Scores at equal style, and what style is worth.

    Attributes:
        scores: as without control, but P(model beats baseline) at the mean style difference.
        coefficients: nats per standard deviation of each of FEATURES.
    """

    scores: list[ArenaScore]
    coefficients: Mapping[str, float]


def style_controlled(
    battles: Battles,
    answers: Mapping[str, Mapping[str, ModelAnswer]],
    *,
    seed: int,
    interval: tuple[float, float],
    resamples: int = RESAMPLES,
) -> StyleControlled:
    """Bradley-Terry with the four style features next to the models.

    Args:
        battles: of one baseline.
        answers: model -> uid -> answer with its style counts, the baseline's included.
        seed: of the bootstrap, which draws verdicts.
        interval: quantiles of the bootstrap.
        resamples: of the bootstrap.

    Raises:
        DataError: several baselines, or an answer or its counts are missing.
    """
    outcomes = battles.outcomes
    baselines = {outcome.second for outcome in outcomes}
    if len(baselines) != 1:
        raise DataError(
            f"Style control compares with one baseline, and these judgments have {len(baselines)}. "
            "Score each category on its own."
        )
    baseline = baselines.pop()
    features = style_features(
        [_counts(answers, outcome.first, outcome.cluster) for outcome in outcomes],
        [_counts(answers, baseline, outcome.cluster) for outcome in outcomes],
    )
    models, names = design_of(outcomes, baseline)
    design = np.concatenate([models, features], axis=1)
    scores = np.array([outcome.score for outcome in outcomes])
    found = logistic(design, scores)
    draw = _stream(seed, "style control")
    drawn = np.empty((resamples, len(found)))
    for row in range(resamples):
        picked = draw.integers(len(scores), size=len(scores))
        drawn[row] = logistic(design, scores, _times(picked, len(scores)))
    rates: Floats = sigmoid(found)
    low, high = np.quantile(sigmoid(drawn), interval, axis=0)
    rows = [
        _row(battles, name, rates[i], low[i], high[i], int((models[:, i] != 0).sum()))
        for i, name in enumerate(names)
    ]
    return StyleControlled(
        sorted(rows, key=lambda row: (-row.score, row.model)),
        dict(zip(FEATURES, found[len(names) :].tolist(), strict=True)),
    )


def _counts(answers: Mapping[str, Mapping[str, ModelAnswer]], model: str, uid: str) -> Any:
    answer = answers.get(model, {}).get(uid)
    if answer is None or answer.style is None:
        what = "answer" if answer is None else "style counts in the metadata of the answer"
        raise DataError(
            f"Style control needs the answers of both sides, and there is no {what} of {model} to "
            f"question {uid}. Add them, or switch style control off."
        )
    return answer.style
