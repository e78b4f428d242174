"""Weights that follow the rewards' spread."""

import math

import pytest
from pydantic import ValidationError

from align.errors import RecipeError
from align.judges.adaptive import Adapt, AdaptiveJudge, variance_within
from align.judges.base import Answer, Bench, JudgeFailed
from align.judges.by import judge_class
from align.judges.rule import RuleJudge

# Of the prompts p and q: variances 1 and 4 of the numbers, (1 + 4) / 2 in the mean.
ITEMS = [Answer(p, text, "") for p, text in (("p", "1"), ("p", "3"), ("q", "10"), ("q", "14"))]
NUMBER = RuleJudge("number", lambda _, text: float(text))
# A hundred times as much, and the other way round: variance 10^4 (1 + 4) / 2.
LOSS = RuleJudge("loss", lambda _, text: -100 * float(text))
ONE = RuleJudge("one", lambda _, text: 1.0)


def opened(judges=(NUMBER, LOSS), weights=(1.0, 1.0), decay=0.5, state=None):
    labels = [judge.identity.removeprefix("rule:") for judge in judges]
    return AdaptiveJudge(
        judges, labels, weights, Adapt(name="spread", decay=decay), {} if state is None else state
    )


def test_the_first_round_counts_in_standard_deviations():
    """w = 3 / sqrt(2.5) and 1 / sqrt(25,000): of x their sum is (3 - 1) x / sqrt(2.5)."""
    judge = opened(weights=(3.0, 1.0))
    assert judge.score(ITEMS) == pytest.approx([2 * x / math.sqrt(2.5) for x in (1, 3, 10, 14)])
    assert judge.state == {"variances": pytest.approx([2.5, 25_000])}
    assert judge.told() == pytest.approx(
        {"weight_1_number": 3 / math.sqrt(2.5), "weight_2_loss": 1 / math.sqrt(25_000)}
    )


def test_the_variance_runs_on_from_the_round_before():
    """1/4 of 10 and 3/4 of 2.5."""
    judge = opened((NUMBER,), (1.0,), decay=0.25, state={"variances": [10.0]})
    assert judge.score(ITEMS)[0] == pytest.approx(1 / math.sqrt(0.25 * 10 + 0.75 * 2.5))
    # Asking again counts nothing twice.
    again = judge.state
    judge.score(ITEMS)
    assert judge.state == again


def test_a_change_of_units_changes_nothing():
    times = RuleJudge("times", lambda _, text: 7 * float(text) - 3)
    plain, other = opened((NUMBER, ONE)), opened((times, ONE))
    first, second = plain.score(ITEMS), other.score(ITEMS)
    # The zero moves, differences stay.
    assert [x - first[0] for x in first] == pytest.approx([x - second[0] for x in second])


def test_a_reward_that_never_varies_keeps_its_weight():
    judge = opened((NUMBER, ONE), (1.0, 0.5))
    judge.score(ITEMS)
    assert judge.weights == pytest.approx([1 / math.sqrt(2.5), 0.5])
    assert judge.state["variances"][1] == 0.0


def test_what_failed_has_no_score_and_no_part_in_the_spread():
    def rule(_, text):
        return JudgeFailed("odd", "it is odd") if text == "3" else float(text)

    judge = opened((RuleJudge("half", rule), ONE))
    found = judge.score(ITEMS)
    assert found[1] == JudgeFailed("odd", "it is odd")
    # Prompt p has one score left, which says nothing of a spread.
    assert judge.state["variances"][0] == pytest.approx(4.0)
    assert variance_within(["p"], [1.0]) is None
    # A round in which nothing can be said leaves what was known.
    later = opened((NUMBER,), (1.0,), state={"variances": [9.0]})
    assert later.score(ITEMS[:1]) == pytest.approx([1 / 3])
    assert later.state == {"variances": [9.0]}


def test_the_identity_is_that_of_the_rule_and_of_what_is_remembered():
    own = opened().identity
    assert opened().identity == own
    others = (
        opened(weights=(1.0, 2.0)),
        opened(decay=0.9),
        opened(state={"variances": [1.0, 2.0]}),
        opened((LOSS, NUMBER)),
    )
    assert len({own, *(judge.identity for judge in others)}) == 5


ADAPT = {"name": "spread"}
REWARDS = [{"by": "length"}, {"by": "earnest", "weight": 2.0}]


def test_the_node_needs_rounds(tmp_path):
    node = judge_class("rewards").of(by="rewards", rewards=REWARDS, adapt=ADAPT)
    assert node.adapts
    assert not judge_class("rewards").of(by="rewards", rewards=REWARDS).adapts
    with (
        pytest.raises(RecipeError, match="what the judge stage of a loop saw"),
        node.open(Bench(tmp_path, "")),
    ):
        pass
    with node.open(Bench(tmp_path, "", state={})) as judge:
        assert isinstance(judge, AdaptiveJudge)
    inner = {"by": "rewards", "rewards": REWARDS, "adapt": ADAPT}
    with pytest.raises(ValidationError, match="only the judge of a stage remembers rounds"):
        judge_class("rewards").of(by="rewards", rewards=[inner])
