import random
from collections import Counter

import pytest
from pydantic import ValidationError

from align.data.completions import JudgedPrompt
from align.data.messages import Message, prompt_id
from align.judges.matrix import every_pair, from_scores
from align.stages.rules import (
    AllPairs,
    BestVsWorst,
    Filtered,
    RandomPair,
    TournamentPair,
    pairs_to_ask,
    select,
)
from align.stages.select import Select

RULES = [BestVsWorst(), RandomPair(), AllPairs(), TournamentPair(), Filtered()]
# Leave-one-out win rates .4, .65, .45.
P = ((0.5, 0.7, 0.1), (0.3, 0.5, 1.0), (0.9, 0.0, 0.5))


def judged(completions=("a", "b", "c"), preferences=P, scores=None, row=1, **fields):
    return JudgedPrompt(
        **{
            "prompt": "?",
            "source": "test",
            "row": row,
            "sampler": "s",
            "completions": completions,
            "preferences": preferences,
            "scores": scores,
            "judge": "j",
            "calls": 3,
        }
        | fields
    )


def sides(pairs):
    return [(pair.chosen, pair.rejected) for pair in pairs]


def test_best_against_worst_by_win_rate():
    pairs, report = select([judged()], BestVsWorst())
    (pair,) = pairs
    assert (pair.chosen, pair.rejected) == ("b", "a")
    assert (pair.chosen_score, pair.rejected_score) == pytest.approx((0.65, 0.4))
    # P[1][0]: here the one that wins more often loses against the one that wins less often.
    assert pair.preference == 0.3
    assert (report.read, report.kept) == (1, 1)


def test_best_against_worst_by_the_judges_scores():
    row = judged(scores=(3.0, -1.0, 7.0))
    (pair,), _ = select([row], BestVsWorst(by="score"))
    assert (pair.chosen, pair.rejected, pair.chosen_score, pair.rejected_score) == ("c", "b", 7, -1)
    # P[2][1] of the judge that compared.
    assert pair.preference == 0.0
    only_scores = judged(preferences=None, scores=(3.0, -1.0, 7.0))
    (pair,), _ = select([only_scores], BestVsWorst())
    assert (pair.chosen, pair.rejected, pair.preference) == ("c", "b", None)


def test_completions_without_a_number_take_no_part():
    row = judged(preferences=None, scores=(None, -1.0, 7.0))
    assert sides(select([row], BestVsWorst())[0]) == [("c", "b")]
    pairs, report = select([judged(preferences=None, scores=(None, None, 7.0))], BestVsWorst())
    assert (pairs, report.dropped) == ([], {"not_judged": 1})


def test_equal_completions_never_make_a_pair():
    tied = judged(preferences=None, scores=(2.0, 2.0, 2.0))
    pairs, report = select([tied], BestVsWorst())
    assert (pairs, report.dropped) == ([], {"tie": 1})
    same = judged(completions=("a", "a", "a"), preferences=None, scores=(1.0, 2.0, 3.0))
    pairs, report = select([same], BestVsWorst())
    assert (pairs, report.dropped) == ([], {"equal": 1})


@pytest.mark.parametrize(("least", "kept"), [(0.2, 1), (0.25, 1), (0.26, 0)])
def test_a_margin_is_measured_in_the_rules_own_units(least, kept):
    # 3.25 - 3 = .25, exact in binary.
    row = judged(("a", "b"), preferences=None, scores=(3.0, 3.25))
    for rule in (BestVsWorst(min_margin=least), AllPairs(min_margin=least)):
        pairs, report = select([row], rule)
        assert len(pairs) == kept
        assert report.dropped == ({} if kept else {"small_margin": 1})


def test_all_pairs():
    row = judged(completions=("a", "b", "c", "b"), preferences=from_scores([1, 2, 3, 2]))
    pairs, report = select([row], AllPairs())
    assert sides(pairs) == [("b", "a"), ("c", "a"), ("b", "a"), ("c", "b"), ("c", "b")]
    assert (report.read, report.dropped) == (6, {"tie": 1})
    # Win rates 0, (1 + 0 + .5) / 3, 1, .5.
    assert [pair.chosen_score for pair in pairs] == [0.5, 1.0, 0.5, 1.0, 1.0]
    assert all(pair.preference == 1.0 for pair in pairs)
    # A tie of two equal texts is no pair, whatever the rule.
    pairs, report = select([row], AllPairs(ties="keep"))
    assert (len(pairs), report.dropped) == (5, {"equal": 1})


def test_all_pairs_can_keep_ties_of_different_texts():
    row = judged(("a", "b"), preferences=((0.5, 0.5), (0.5, 0.5)))
    assert select([row], AllPairs())[1].dropped == {"tie": 1}
    (pair,), _ = select([row], AllPairs(ties="keep"))
    assert (pair.chosen, pair.preference) == ("a", 0.5)


def test_the_winner_of_two_is_what_the_judge_said_of_these_two():
    # Completion 0 has the lower win rate of the first two, and beats 1.
    pairs, _ = select([judged()], AllPairs())
    assert sides(pairs) == [("a", "b"), ("c", "a"), ("b", "c")]
    assert [pair.preference for pair in pairs] == [0.7, 0.9, 1.0]


def test_a_failed_comparison_drops_its_pairs_alone():
    p = ((0.5, None, 0.1), (None, 0.5, 1.0), (0.9, 0.0, 0.5))
    pairs, report = select([judged(preferences=p)], AllPairs())
    assert sides(pairs) == [("c", "a"), ("b", "c")]
    assert report.dropped == {"not_judged": 1}
    # Win rates of 0 and 1 would be against fewer opponents than that of 2.
    assert all(pair.chosen_score is None for pair in pairs)


def test_a_random_pair_is_drawn_without_looking_at_the_judgement():
    rows = [judged(row=row, prompt=f"{row}?") for row in range(1, 3001)]
    drawn = Counter(
        tuple(sorted((pair.chosen, pair.rejected))) for pair in select(rows, RandomPair())[0]
    )
    # 3,000 / 3 and five standard deviations of sqrt(3000 * 1/3 * 2/3) = 26.
    assert all(abs(drawn[pair] - 1000) < 130 for pair in (("a", "b"), ("a", "c"), ("b", "c")))
    again = [
        judged(row=row, prompt=f"{row}?", preferences=from_scores([3, 2, 1])) for row in (1, 2)
    ]
    first = [set(pair) for pair in sides(select(rows[:2], RandomPair())[0])]
    assert [set(pair) for pair in sides(select(again, RandomPair())[0])] == first


def test_a_random_pair_keeps_the_soft_preference_and_puts_the_winner_first():
    for seed in range(20):
        (pair,), _ = select([judged()], RandomPair(seed=seed))
        expected = {("a", "b"): 0.7, ("c", "a"): 0.9, ("b", "c"): 1.0}
        assert pair.preference == expected[pair.chosen, pair.rejected]


def test_a_random_pair_keeps_ties():
    row = judged(("a", "b"), preferences=((0.5, 0.5), (0.5, 0.5)))
    seen = set()
    for seed in range(20):
        (pair,), report = select([row], RandomPair(seed=seed))
        assert (pair.preference, report.dropped) == (0.5, {})
        seen.add(pair.chosen)
    assert seen == {"a", "b"}


def test_random_pairs_follow_seed_prompt_and_round():
    rows = [judged(row=row, prompt=f"{row}?") for row in range(1, 40)]
    one = sides(select(rows, RandomPair())[0])
    assert sides(select(rows, RandomPair())[0]) == one
    assert sides(select(rows[::-1], RandomPair())[0]) == one[::-1]
    assert sides(select(rows, RandomPair(seed=1))[0]) != one
    later = [row.model_copy(update={"round": 2}) for row in rows]
    assert sides(select(later, RandomPair())[0]) != one


def test_random_pairs_of_one_prompt_share_no_completion():
    k = 8
    row = judged(tuple("abcdefgh"), preferences=from_scores(list(range(k))))
    pairs, _ = select([row], RandomPair(pairs=4))
    assert sorted(sum(sides(pairs), ())) == list("abcdefgh")
    assert select([judged()], RandomPair(pairs=2))[1].dropped == {"too_few_completions": 1}


def test_the_tournament():
    row = judged(tuple("abcdefgh"), preferences=from_scores([3, 8, 5, 1, 7, 2, 6, 4]))
    (pair,), _ = select([row], TournamentPair())
    assert (pair.chosen, pair.rejected, pair.preference) == ("b", "d", 1.0)


def test_the_best_of_a_tournament_must_beat_the_worst():
    # 0 beats 1, 2 beats 3; 0 beats 2, 1 beats 3; the best, 0, meets the worst, 3.
    def row(p):
        return judged(
            tuple("abcd"),
            preferences=(
                (0.5, 0.9, 0.9, p),
                (0.1, 0.5, 0.5, 0.9),
                (0.1, 0.5, 0.5, 0.9),
                (1 - p, 0.1, 0.1, 0.5),
            ),
        )

    rule = TournamentPair(min_margin=0.125)
    assert sides(select([row(0.625)], rule)[0]) == [("a", "d")]
    assert select([row(0.6)], rule)[1].dropped == {"small_margin": 1}
    assert select([row(0.5)], TournamentPair())[1].dropped == {"tie": 1}
    assert select([row(0.4)], TournamentPair())[1].dropped == {"best_lost": 1}
    unasked = judged(tuple("ab"), preferences=((0.5, None), (None, 0.5)))
    assert select([unasked], TournamentPair())[1].dropped == {"not_judged": 1}
    assert select([judged(preferences=None)], TournamentPair())[1].dropped == {"not_judged": 1}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.rule)
def test_long_completions_are_left_out(rule):
    row = judged(("a" * 5, "b" * 6), preferences=((0.5, 0.9), (0.1, 0.5)))
    for limit, kept in ((5, 0), (6, 1)):
        limited = rule.model_copy(update={"max_characters": limit})
        pairs, report = select([row], limited)
        assert len(pairs) == kept
        assert report.dropped == ({} if kept else {"too_long": 1})


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.rule)
def test_every_candidate_is_counted(rule):
    draw = random.Random(0)
    rows = []
    for number in range(1, 200):
        k = draw.randint(0, 9)
        texts = tuple(draw.choice(["", "a", "bb", "ccc", "d", "e\ud800"]) for _ in range(k))
        scores = [draw.choice([0.0, 1.0, 2.0, None]) for _ in range(k)]
        p = draw.choice([None, from_scores(scores), from_scores(scores, scale=2.0)])
        rows.append(judged(texts, p, tuple(scores), row=number))
    pairs, report = select(rows, rule)
    assert report.read == report.kept + sum(report.dropped.values())
    assert report.kept == len(pairs)
    assert len(report.rows) == sum(report.dropped.values())
    if isinstance(rule, AllPairs):
        sizes = [len(row.completions) for row in rows]
        assert report.read == sum(max(k * (k - 1) // 2, 1) for k in sizes)
    else:
        assert report.read == len(rows)
    assert {"too_few_completions", "not_judged", "empty_completion"} <= set(report.dropped)
    for pair in pairs:
        assert pair.chosen != pair.rejected
        assert pair.source == "test"
    assert {pair.row for pair in pairs} | {row.row for row in report.rows} == set(range(1, 200))


def test_a_filter_takes_the_best_against_another_by_the_paper_s_weights():
    """Four samples: each of the other three is in the pair with twice its weight, 1/3."""
    scores = (1.0, 5.0, -2.0, 3.0)
    rows = [judged(tuple("abcd"), None, scores, row=n, prompt=f"{n}?") for n in range(1, 3001)]
    pairs, report = select(rows, Filtered())
    assert report.kept == 3000
    assert {pair.chosen for pair in pairs} == {"b"}
    rejected = Counter(pair.rejected for pair in pairs)
    assert {key: n / 3000 for key, n in rejected.items()} == pytest.approx(
        {"a": 1 / 3, "c": 1 / 3, "d": 1 / 3}, abs=0.03
    )
    assert select(rows, Filtered())[0] == pairs
    assert select(rows, Filtered(seed=1))[0] != pairs
    later = [row.model_copy(update={"round": 2}) for row in rows]
    assert sides(select(later, Filtered())[0]) != sides(pairs)


def test_the_ends_that_a_filter_takes_are_the_best_and_the_worst():
    row = judged(tuple("abcd"), None, (1.0, 5.0, None, -2.0))
    (pair,), _ = select([row], Filtered(filter="best_worst"))
    assert (pair.chosen, pair.rejected) == ("b", "d")
    assert (pair.chosen_score, pair.rejected_score) == (5.0, -2.0)
    assert select([row], Filtered(filter="best_worst", min_margin=7.5))[1].dropped == {
        "small_margin": 1
    }
    # The other one may be as good as the best: that says nothing.
    equal = judged(tuple("abc"), None, (1.0, 1.0, 0.0))
    found = {
        tuple(select([equal.model_copy(update={"round": n})], Filtered())[1].dropped)
        for n in range(20)
    }
    assert found == {(), ("tie",)}


def test_one_sample_is_no_pair():
    with pytest.raises(ValidationError, match="keeps one completion, and a pair needs two"):
        Filtered(filter="best_of_n")


def test_messages_become_one_assistant_turn_and_the_group_is_the_prompt():
    chat = (Message(role="user", content="?"),)
    (pair,), _ = select([judged(prompt=chat)], BestVsWorst())
    assert pair.chosen == (Message(role="assistant", content="b"),)
    assert pair.group_id == prompt_id(chat)
    (pair,), _ = select([judged(prompt=chat, group_id="g")], BestVsWorst())
    assert pair.group_id == "g"


def test_a_judge_is_asked_no_more_than_the_rule_reads():
    chat = (Message(role="user", content="?"),)
    for rule in (BestVsWorst(), AllPairs()):
        assert pairs_to_ask(rule, chat, 1, 4) == every_pair(4)
    assert pairs_to_ask(TournamentPair(), chat, 1, 4) is None
    for seed in range(10):
        rule = RandomPair(seed=seed, pairs=2)
        asked = pairs_to_ask(rule, chat, 3, 8)
        known = [[0.5 if i == j else None for j in range(8)] for i in range(8)]
        for i, j in asked:
            known[i][j], known[j][i] = 0.75, 0.25
        row = judged(tuple("abcdefgh"), tuple(tuple(line) for line in known), prompt=chat, round=3)
        pairs, report = select([row], rule)
        assert (len(pairs), report.dropped) == (2, {})
        assert {pair.preference for pair in pairs} == {0.75}
    assert pairs_to_ask(RandomPair(), chat, 1, 1) == ()


def test_rules_are_nodes_of_a_recipe():
    assert Select.of(rule="random_pair", pairs=2).as_rule.pairs == 2
    for node in ({"rule": "best"}, {"rule": "tournament", "ties": "keep"}, {"pairs": 2}):
        with pytest.raises(ValidationError):
            Select.of(**node)
    for rule in RULES:
        made = Select.of(**rule.model_dump())
        assert isinstance(made, type(rule))
        assert {key: getattr(made, key) for key in type(rule).model_fields} == rule.model_dump()


def test_a_completion_that_was_cut_off_trains_no_end():
    row = judged(completions=("a", "b", "c"), unfinished=(1,))
    (pair,), _ = select([row], BestVsWorst())
    assert (pair.chosen, pair.rejected) == ("b", "a")
    assert (pair.chosen_ends, pair.rejected_ends) == (False, None)
    (pair,), _ = select([judged(unfinished=(0,))], BestVsWorst())
    assert (pair.chosen_ends, pair.rejected_ends) == (None, False)
