"""Win-rate matrices: who beats whom among K completions of one prompt.

P[i][j] is the probability that completion i beats completion j: P[i][j] + P[j][i] = 1, 1/2 on the
diagonal, None where a comparison was not asked or gave no verdict. Nothing numeric stands for a
failure: what is computed from a None is None.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass

from align.data.messages import Text, prompt_id
from align.data.records import content_id
from align.judges.base import Comparison, JudgeFailed, PairJudge, Refused, probability

Preferences = tuple[tuple[float | None, ...], ...]
Match = tuple[int, int]


@dataclass(frozen=True)
class Contest:
    """A prompt with the K completions that compete."""

    prompt: Text
    completions: tuple[str, ...]


@dataclass(frozen=True)
class Matrix:
    """What a judge said about one contest.

    Attributes:
        preferences: P.
        failures: comparisons without a verdict, each with its reason.
        calls: comparisons that the judge was asked.
    """

    preferences: Preferences
    failures: tuple[str, ...]
    calls: int


@dataclass(frozen=True)
class Tournament:
    """A knockout among the completions of one contest.

    Attributes:
        matrix: the comparisons that it took.
        outcome: numbers of the best and the worst completion, which met in the end; None where a
            comparison of the bracket gave no verdict.
    """

    matrix: Matrix
    outcome: Match | None


def every_pair(k: int) -> tuple[Match, ...]:
    """The K (K - 1) / 2 comparisons of a full matrix."""
    return tuple((i, j) for i in range(k) for j in range(i + 1, k))


def preference_matrix(
    judge: PairJudge, prompt: Text, completions: Sequence[str], pairs: Sequence[Match]
) -> Matrix:
    """The comparisons `pairs` of one prompt's completions."""
    (matrix,) = preference_matrices(judge, [Contest(prompt, tuple(completions))], [pairs])
    return matrix


def preference_matrices(
    judge: PairJudge, contests: Sequence[Contest], pairs: Sequence[Sequence[Match]]
) -> list[Matrix]:
    """The comparisons `pairs[c]` of every contest c, all asked of the judge at once.

    Equal completions tie and are not asked about; a comparison is asked once, whatever the order
    and number in which it is wanted.
    """
    boards = [_Board(contest) for contest in contests]
    _ask(judge, boards, pairs)
    return [board.matrix() for board in boards]


def tournament(judge: PairJudge, prompt: Text, completions: Sequence[str]) -> Tournament:
    """The knockout among one prompt's completions."""
    (found,) = tournaments(judge, [Contest(prompt, tuple(completions))])
    return found


def tournaments(judge: PairJudge, contests: Sequence[Contest]) -> list[Tournament]:
    """The knockout of every contest; each round of all of them is asked at once."""
    boards = [_Board(contest) for contest in contests]
    brackets = [knockout(len(contest.completions)) for contest in contests]
    outcomes: list[Match | None] = [None] * len(contests)
    wanted: dict[int, list[Match]] = {}
    for number, bracket in enumerate(brackets):
        wanted[number] = next(bracket)
    while wanted:
        _ask(judge, boards, [wanted.get(number, []) for number in range(len(boards))])
        following: dict[int, list[Match]] = {}
        for number, matches in wanted.items():
            answers = [boards[number].get(match) for match in matches]
            try:
                following[number] = brackets[number].send(answers)
            except StopIteration as stop:
                outcomes[number] = stop.value
        wanted = following
    return [
        Tournament(board.matrix(), outcome) for board, outcome in zip(boards, outcomes, strict=True)
    ]


def knockout(k: int) -> Generator[list[Match], list[float | None], Match | None]:
    """The bracket of INPO (Zhang et al. 2024, 2407.00617, appendix), without a judge.

    Yields the matches of a round, takes P(first beats second) of each, and returns the best and the
    worst. In the first round everybody plays; then winners play winners until one is left, and
    losers play losers until one has lost always; these two meet at last. For K = 8 this takes
    4 + (2 + 1) + (2 + 1) + 1 = 11 comparisons, for K a power of two 3 K / 2 - 1. A tie goes to the
    first. An odd one out passes to the next round, from the first round to both sides.

    Returns:
        (best, worst), or None where a match gave no answer.
    """
    if k < 2:
        raise ValueError(f"a knockout needs 2 completions or more, not {k}.")
    first_round = [(i, i + 1) for i in range(0, k - 1, 2)]
    answers = yield first_round
    if None in answers:
        return None
    best, worst = _parted(first_round, answers)
    if k % 2:
        best.append(k - 1)
        worst.append(k - 1)
    while len(best) > 1 or len(worst) > 1:
        upper = list(zip(best[::2], best[1::2], strict=False))
        lower = list(zip(worst[::2], worst[1::2], strict=False))
        answers = yield upper + lower
        if None in answers:
            return None
        winners, _ = _parted(upper, answers[: len(upper)])
        _, losers = _parted(lower, answers[len(upper) :])
        best = winners + best[2 * len(upper) :]
        worst = losers + worst[2 * len(lower) :]
    final = (best[0], worst[0])
    answers = yield [final]
    return None if None in answers else final


def replayed_tournament(preferences: Preferences) -> Match | None:
    """Best and worst of the knockout, by a matrix that holds its comparisons; None if it does not.

    The two may be one completion where K is odd; then there is no pair.
    """
    bracket = knockout(len(preferences))
    matches = next(bracket)
    while True:
        try:
            matches = bracket.send([preferences[i][j] for i, j in matches])
        except StopIteration as stop:
            return stop.value


def win_rates(preferences: Preferences) -> tuple[float | None, ...]:
    """Leave-one-out win rates w_i = mean over j != i of P[i][j].

    None where a comparison of completion i is missing: the mean over the others would be one
    against other opponents.
    """
    rates: list[float | None] = []
    for i, row in enumerate(preferences):
        others = [p for j, p in enumerate(row) if j != i]
        known = [p for p in others if p is not None]
        complete = bool(others) and len(known) == len(others)
        rates.append(math.fsum(known) / len(known) if complete else None)
    return tuple(rates)


def from_scores(scores: Sequence[float | None], scale: float | None = None) -> Preferences:
    """The matrix of a judge that scores.

    Args:
        scores: one per completion; None where there is none.
        scale: Bradley-Terry, P[i][j] = sigmoid((s_i - s_j) / scale), in the scores' units; None
            takes the higher score for sure and equal ones as a tie.
    """
    if scale is not None and not scale > 0:
        raise ValueError(f"scale must be above 0, not {scale}.")

    def beats(s: float | None, t: float | None) -> float | None:
        if s is None or t is None:
            return None
        if scale is None:
            return 0.5 if s == t else float(s > t)
        # tanh does not overflow, and P + P^T = 1 to the last bit but one.
        return 0.5 + 0.5 * math.tanh((s - t) / scale / 2)

    return tuple(
        tuple(0.5 if i == j else beats(s, t) for j, t in enumerate(scores))
        for i, s in enumerate(scores)
    )


class _Board:
    """The matrix of one contest as it fills."""

    def __init__(self, contest: Contest) -> None:
        self.contest = contest
        k = len(contest.completions)
        self._preferences: list[list[float | None]] = [
            [0.5 if a == b else None for b in contest.completions] for a in contest.completions
        ]
        # Equal completions share one number: what is known of one is known of all.
        self._same = [
            [j for j in range(k) if contest.completions[j] == contest.completions[i]]
            for i in range(k)
        ]
        self._asked: set[frozenset[int]] = set()
        self.failures: list[str] = []
        self.calls = 0

    def get(self, match: Match) -> float | None:
        return self._preferences[match[0]][match[1]]

    def open(self, matches: Sequence[Match]) -> list[Match]:
        """Those of `matches` that the judge has yet to be asked, marked as asked."""
        wanted: list[Match] = []
        for i, j in matches:
            key = frozenset((self._same[i][0], self._same[j][0]))
            if len(key) == 2 and key not in self._asked:
                self._asked.add(key)
                wanted.append((i, j))
        self.calls += len(wanted)
        return wanted

    def put(self, match: Match, p: float) -> None:
        for i in self._same[match[0]]:
            for j in self._same[match[1]]:
                self._preferences[i][j], self._preferences[j][i] = p, 1.0 - p

    def matrix(self) -> Matrix:
        return Matrix(
            tuple(tuple(row) for row in self._preferences), tuple(self.failures), self.calls
        )


def _ask(judge: PairJudge, boards: Sequence[_Board], pairs: Sequence[Sequence[Match]]) -> None:
    asked: list[tuple[_Board, Match]] = []
    items: list[Comparison] = []
    for board, matches in zip(boards, pairs, strict=True):
        prompt, completions = board.contest.prompt, board.contest.completions
        for i, j in board.open(matches):
            asked.append((board, (i, j)))
            number = content_id(prompt_id(prompt), completions[i], completions[j])
            items.append(Comparison(prompt, completions[i], completions[j], id=number))
    verdicts = judge.compare(items) if items else []
    for (board, match), verdict in zip(asked, verdicts, strict=True):
        p = probability(verdict)
        if p is not None:
            board.put(match, p)
        elif isinstance(verdict, JudgeFailed):
            board.failures.append(
                f"{match[0]} against {match[1]}: {verdict.reason} ({verdict.detail})"
            )
        elif isinstance(verdict, Refused):
            board.failures.append(f"{match[0]} against {match[1]}: refused ({verdict.detail})")


def _parted(
    matches: Sequence[Match], answers: Sequence[float | None]
) -> tuple[list[int], list[int]]:
    """Winners and losers; a tie goes to the first."""
    first_wins = [p is not None and p >= 0.5 for p in answers]
    winners = [m[0] if won else m[1] for m, won in zip(matches, first_wins, strict=True)]
    losers = [m[1] if won else m[0] for m, won in zip(matches, first_wins, strict=True)]
    return winners, losers
