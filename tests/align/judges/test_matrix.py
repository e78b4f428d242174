import itertools
import math
import random

import pytest

from align.judges.base import JudgeFailed, Prefers, Refused, Tie
from align.judges.matrix import (
    Contest,
    every_pair,
    from_scores,
    knockout,
    preference_matrices,
    preference_matrix,
    replayed_tournament,
    tournament,
    tournaments,
    win_rates,
)


class Scripted:
    """Answers by a function of the two texts, and remembers what it was asked."""

    identity = "scripted"

    def __init__(self, verdict):
        self.verdict = verdict
        self.rounds = []

    @property
    def asked(self):
        return [pair for one in self.rounds for pair in one]

    def compare(self, items):
        self.rounds.append([(item.first, item.second) for item in items])
        assert len({item.id for item in items}) == len(items)
        return [self.verdict(item.first, item.second) for item in items]


def longer(first, second):
    if len(first) == len(second):
        return Tie()
    return Prefers(
        "first" if len(first) > len(second) else "second", float(len(first) > len(second))
    )


def of_length(*lengths):
    """Texts that differ, of these lengths."""
    return tuple(chr(97 + at) * n for at, n in enumerate(lengths))


def test_p_and_its_transpose_add_up_to_one():
    def verdict(first, second):
        p = {"ab": 0.7, "ac": 0.1, "bc": 1 / 3}[first + second]
        return Prefers("first" if p > 0.5 else "second", p)

    judge = Scripted(verdict)
    matrix = preference_matrix(judge, "?", ["a", "b", "c"], every_pair(3))
    assert matrix.preferences == (
        (0.5, 0.7, 0.1),
        (1 - 0.7, 0.5, 1 / 3),
        (0.9, 1 - 1 / 3, 0.5),
    )
    assert (matrix.calls, matrix.failures) == (3, ())
    for i, j in itertools.product(range(3), repeat=2):
        assert matrix.preferences[i][j] + matrix.preferences[j][i] == pytest.approx(1, abs=1e-15)


def test_no_number_stands_for_a_failure():
    def verdict(first, second):
        return {
            "ab": JudgeFailed("unparsable", "no verdict"),
            "ac": Refused("not that"),
            "bc": Tie(),
        }[first + second]

    matrix = preference_matrix(Scripted(verdict), "?", ["a", "b", "c"], every_pair(3))
    assert matrix.preferences == ((0.5, None, None), (None, 0.5, 0.5), (None, 0.5, 0.5))
    assert matrix.failures == (
        "0 against 1: unparsable (no verdict)",
        "0 against 2: refused (not that)",
    )
    assert matrix.calls == 3
    assert win_rates(matrix.preferences) == (None, None, None)


def test_only_what_is_wanted_is_asked_and_nothing_twice():
    judge = Scripted(longer)
    matrix = preference_matrix(judge, "?", of_length(3, 1, 2), [(0, 1), (1, 0), (0, 1)])
    assert judge.asked == [("aaa", "b")]
    assert matrix.preferences == ((0.5, 1.0, None), (0.0, 0.5, None), (None, None, 0.5))
    assert matrix.calls == 1


def test_equal_completions_tie_and_share_what_is_known():
    judge = Scripted(longer)
    matrix = preference_matrix(judge, "?", ["bb", "a", "bb", "a"], every_pair(4))
    assert judge.asked == [("bb", "a")]
    assert matrix.preferences == (
        (0.5, 1.0, 0.5, 1.0),
        (0.0, 0.5, 0.0, 0.5),
        (0.5, 1.0, 0.5, 1.0),
        (0.0, 0.5, 0.0, 0.5),
    )
    assert matrix.calls == 1


def test_many_questions_are_asked_at_once_and_told_apart():
    judge = Scripted(longer)
    found = preference_matrices(
        judge,
        [Contest("p", of_length(1, 2)), Contest("q", of_length(2, 1)), Contest("r", ("a",))],
        [every_pair(2), every_pair(2), ()],
    )
    assert judge.rounds == [[("a", "bb"), ("aa", "b")]]
    assert [m.preferences[0][-1] for m in found] == [0.0, 1.0, 0.5]
    assert [m.calls for m in found] == [1, 1, 0]


def test_leave_one_out_win_rates():
    # (.7 + .1) / 2, (.3 + 1) / 2, (.9 + 0) / 2: their mean is 1/2.
    p = ((0.5, 0.7, 0.1), (0.3, 0.5, 1.0), (0.9, 0.0, 0.5))
    assert win_rates(p) == pytest.approx((0.4, 0.65, 0.45))
    assert win_rates(((0.5, 0.7, None), (0.3, 0.5, 1.0), (None, 0.0, 0.5))) == (None, 0.65, None)
    assert win_rates(((0.5,),)) == (None,)


def test_scores_make_a_matrix():
    assert from_scores([1.0, 2.0, 2.0, None]) == (
        (0.5, 0.0, 0.0, None),
        (1.0, 0.5, 0.5, None),
        (1.0, 0.5, 0.5, None),
        (None, None, None, 0.5),
    )
    # sigmoid((3 - 1) / 2) = 1 / (1 + e^-1).
    ((_, low), (high, _)) = from_scores([1.0, 3.0], scale=2.0)
    assert high == pytest.approx(1 / (1 + math.exp(-1)))
    assert low + high == 1.0
    assert from_scores([0.0, 1e6], scale=1e-3)[1][0] == 1.0
    with pytest.raises(ValueError, match="above 0"):
        from_scores([1.0], scale=0.0)


def test_the_tournament_of_eight_takes_eleven_comparisons():
    judge = Scripted(longer)
    lengths = (3, 8, 5, 1, 7, 2, 6, 4)
    found = tournament(judge, "?", of_length(*lengths))
    assert found.matrix.calls == len(judge.asked) == 11
    assert [len(one) for one in judge.rounds] == [4, 4, 2, 1]
    best, worst = found.outcome
    assert (lengths[best], lengths[worst]) == (8, 1)
    # They met at last.
    assert found.matrix.preferences[best][worst] == 1.0


@pytest.mark.parametrize(("k", "calls"), [(2, 2), (4, 5), (8, 11), (16, 23)])
def test_a_power_of_two_takes_three_halves_of_k_less_one(k, calls):
    bracket = knockout(k)
    matches = next(bracket)
    asked = 0

    def play_on():
        nonlocal matches, asked
        while True:
            asked += len(matches)
            matches = bracket.send([float(i > j) for i, j in matches])

    with pytest.raises(StopIteration) as stop:
        play_on()
    assert stop.value.value == (k - 1, 0)
    assert asked == calls


@pytest.mark.parametrize("k", range(2, 12))
def test_a_transitive_judge_gives_the_true_best_and_worst(k):
    for seed in range(20):
        lengths = random.Random(seed).sample(range(1, k + 1), k)
        judge = Scripted(longer)
        found = tournament(judge, "?", of_length(*lengths))
        best, worst = found.outcome
        assert (lengths[best], lengths[worst]) == (k, 1)
        assert found.matrix.calls <= max(3 * k // 2, 1)


def test_a_tie_goes_to_the_first():
    found = tournament(Scripted(lambda first, second: Tie()), "?", of_length(1, 1, 1, 1))
    # 0 and 2 win, 1 and 3 lose; 0 beats 2; of the losers 3 loses again.
    assert found.outcome == (0, 3)


def test_a_failure_ends_the_tournament_of_its_prompt_only():
    def verdict(first, second):
        return (
            JudgeFailed("timeout", "no answer") if "x" in first + second else longer(first, second)
        )

    judge = Scripted(verdict)
    broken, whole = tournaments(
        judge, [Contest("p", ("x", "bb", "c", "dddd")), Contest("q", of_length(1, 2, 3, 4))]
    )
    assert broken.outcome is None
    assert broken.matrix.failures == ("0 against 1: timeout (no answer)",)
    assert broken.matrix.calls == 2
    assert whole.outcome == (3, 0)
    assert whole.matrix.calls == 5


def test_a_replayed_tournament_is_the_played_one():
    for seed in range(30):
        draw = random.Random(seed)
        k = draw.randint(2, 9)
        table = {pair: draw.random() for pair in every_pair(k)}
        texts = of_length(*[1] * k)

        def verdict(first, second, table=table):
            i, j = ord(first) - 97, ord(second) - 97
            p = table[i, j] if i < j else 1 - table[j, i]
            return Prefers("first" if p > 0.5 else "second", p)

        played = tournament(Scripted(verdict), "?", texts)
        assert replayed_tournament(played.matrix.preferences) == played.outcome
        full = preference_matrix(Scripted(verdict), "?", texts, every_pair(k))
        assert replayed_tournament(full.preferences) == played.outcome


def test_a_replay_without_its_comparisons_is_none():
    assert replayed_tournament(((0.5, None), (None, 0.5))) is None


def test_one_completion_is_no_tournament():
    with pytest.raises(ValueError, match="2 completions"):
        tournament(Scripted(longer), "?", ["a"])
