import math
from collections import Counter

import pytest

from align_data.uncertainty.select import Row, drawn, select, uniform
from align_data.uncertainty.settings import Legacy, Mu, Top


def rows(n=200, *, per_prompt=1, agrees=lambda i: True):
    """Information grows with the number of the row."""
    return [
        Row(
            f"u{i}",
            f"p{i // per_prompt}",
            margin=float(i % 7),
            information=i / n * 0.6,
            agrees=agrees(i),
        )
        for i in range(n)
    ]


def kept(found, choices):
    return [row.uid for row, choice in zip(found, choices, strict=True) if choice.bucket]


def test_the_agreed_pairs_with_the_least_information_are_kept():
    found = rows(8, agrees=lambda i: i % 2 == 1)
    choices = select(found, Top(keep=0.5), seed=0)
    assert kept(found, choices) == ["u1", "u3"]
    assert Counter(c.reason for c in choices) == {None: 2, "uncertain": 2, "disagreement": 4}


def test_pairs_that_were_not_estimated_are_not_drawn():
    choices = select([Row("a", "p", 1.0)], Top(), seed=0)
    assert choices[0].reason == "not_drawn"
    assert select([], Top(), seed=0) == []


@pytest.mark.parametrize("rule", [Top(), Mu(), Mu(agreement="ignored"), Legacy()])
def test_a_choice_is_kept_or_has_its_reason_whatever_the_order(rule):
    found = rows(60, per_prompt=3, agrees=lambda i: i % 3 > 0)
    choices = select(found, rule, seed=1)
    assert all((c.bucket is None) != (c.reason is None) for c in choices)
    back = select(found[::-1], rule, seed=1)
    assert sorted(kept(found, choices)) == sorted(kept(found[::-1], back))
    for there, here in zip(choices, back[::-1], strict=True):
        assert (there.bucket, there.reason) == (here.bucket, here.reason)
        assert there.weight == pytest.approx(here.weight)


def test_mu_0_draws_evenly():
    found = rows(2000)
    low = sum(int(uid[1:]) < 1000 for uid in kept(found, select(found, Mu(mu=0), seed=0)))
    # 1000 drawn, hypergeometric: 500 +- 3 x 11.2
    assert abs(low - 500) < 34


def test_a_large_mu_takes_the_least_uncertain():
    found = rows(100)
    assert kept(found, select(found, Mu(mu=1e6, keep=0.3), seed=0)) == [f"u{i}" for i in range(30)]


def test_mu_draws_in_proportion():
    # Two rows, one drawn: P = w1 / (w1 + w2) = (1 - .1)^3 / ((1 - .1)^3 + (1 - .5)^3) = .8536
    pair = [Row("a", "p", 1.0, 0.1, True), Row("b", "p", 1.0, 0.5, True)]
    wins = sum(kept(pair, select(pair, Mu(mu=3, keep=0.5), seed=s)) == ["a"] for s in range(2000))
    # 1707 +- 3 x 15.8
    assert abs(wins - 1707) < 48


def test_the_paper_ignores_agreement():
    found = rows(10, agrees=lambda i: False)
    assert kept(found, select(found, Mu(), seed=0)) == []
    assert len(kept(found, select(found, Mu(agreement="ignored"), seed=0))) == 5


def test_weights_are_1_on_average_over_what_was_drawn_from():
    found = rows(40, agrees=lambda i: i < 30)
    weights = [c.weight for c in select(found, Mu(mu=2), seed=0)]
    assert weights[30:] == [None] * 10
    assert math.fsum(w for w in weights if w is not None) == pytest.approx(30)
    # (1 - B_0) / (1 - B_29) = 1 / (1 - .435), squared
    assert weights[0] / weights[29] == pytest.approx((1 / (1 - 29 / 40 * 0.6)) ** 2)


def test_the_published_mixture():
    found = rows(300, per_prompt=3, agrees=lambda i: i % 3 > 0)
    choices = select(found, Legacy(), seed=0)
    buckets = Counter(c.bucket for c in choices)
    # 200 agree: 100 easy; 100 hard of which 20 are kept, less those that are easy too; 30 of 100
    # prompts give their widest pair, less those that are easy or hard.
    assert buckets["easy"] == 100
    assert 3 <= buckets["hard"] <= 20
    assert 10 <= buckets["far"] <= 30
    widest = {max(found[i : i + 3], key=lambda r: (r.margin, -i)).uid for i in range(0, 300, 3)}
    far = {r.uid for r, c in zip(found, choices, strict=True) if c.bucket == "far"}
    assert far <= widest
    assert any(not r.agrees for r in found if r.uid in far)
    easy = [r.information for r, c in zip(found, choices, strict=True) if c.bucket == "easy"]
    hard = [r.information for r, c in zip(found, choices, strict=True) if c.bucket == "hard"]
    assert sum(hard) / len(hard) > sum(easy) / len(easy)
    assert len({r.prompt for r in found if r.uid in far}) == len(far)


def test_far_pairs_need_no_estimate():
    found = [Row(f"u{i}", f"p{i}", 1.0) for i in range(10)]
    choices = select(found, Legacy(far=0.3), seed=0)
    assert Counter(c.bucket for c in choices) == {"far": 3, None: 7}


def test_a_draw_belongs_to_seed_pair_and_purpose():
    assert uniform(0, "a", "x") == uniform(0, "a", "x")
    assert len({uniform(s, u, p) for s in (0, 1) for u in "ab" for p in "xy"}) == 8
    mean = sum(uniform(0, str(i), "x") for i in range(4000)) / 4000
    assert abs(mean - 0.5) < 0.02


def test_nothing_of_weight_0_is_drawn_before_something_of_weight():
    uids = ["a", "b", "c"]
    logs = [-math.inf, 0.0, -math.inf]
    assert all(drawn(uids, logs, 1 / 3, seed=s, purpose="x") == ["b"] for s in range(20))
