"""Groups of judged completions: what is kept, in which order, with which labels and advantages."""

import pytest
from pydantic import ValidationError

from align.data.completions import JudgedPrompt
from align.data.group_scores import Label, advantages_of, labels_of
from align.data.problems import RowProblem
from align.stages.group_rule import Groups, groups_of
from align.stages.select import EVERY_RULE, Select

# Leave-one-out win rates .4, .65, .45.
P = ((0.5, 0.7, 0.1), (0.3, 0.5, 1.0), (0.9, 0.0, 0.5))


def judged(scores=(3.0, -1.0, 7.0, 0.0), completions=("a", "b", "c", "d"), **fields):
    return JudgedPrompt(
        **{
            "prompt": "?",
            "source": "test",
            "row": 1,
            "sampler": "s",
            "completions": completions,
            "scores": scores,
            "judge": "j",
            "calls": 3,
        }
        | fields
    )


def only(row, **rule):
    (group,) = groups_of([row], Groups(**rule)).groups
    return group


def test_all_completions_stay_in_the_order_of_sampling_with_the_judges_scores():
    group = only(judged())
    assert (group.completions, group.scores) == (("a", "b", "c", "d"), (3.0, -1.0, 7.0, 0.0))
    assert (group.labels, group.advantages, group.finished) == (None, None, None)


def test_a_judge_that_scores_gives_scores_and_one_that_compares_win_rates():
    # A scoring judge's row has preferences too, made of its scores.
    both = judged(scores=(3.0, -1.0, 7.0), completions=("a", "b", "c"), preferences=P)
    assert only(both).scores == (3.0, -1.0, 7.0)
    assert only(both, by="win_rate").scores == pytest.approx((0.4, 0.65, 0.45))
    compared = judged(scores=None, completions=("a", "b", "c"), preferences=P)
    assert only(compared).scores == pytest.approx((0.4, 0.65, 0.45))


def test_labels_are_above_a_threshold_or_the_best():
    assert only(judged(), label=Label(above=0.0)).labels == (True, False, True, False)
    assert only(judged(), label=Label(best=1)).labels == (False, False, True, False)
    assert only(judged(), label=Label(best=3)).labels == (True, False, True, True)
    assert labels_of((0.5, 0.6), Label(above=0.5)) == (False, True)


def test_best_drops_what_the_scores_do_not_say():
    tied = judged(scores=(1.0, 1.0, 0.0, 0.0))
    found = groups_of([tied], Groups(label=Label(best=1)))
    assert (found.groups, found.report.dropped) == ([], {"tie": 1})
    assert only(tied, label=Label(best=2)).labels == (True, True, False, False)
    with pytest.raises(RowProblem, match=r"2 completions, label.best is 2"):
        labels_of((0.0, 1.0), Label(best=2))
    for wrong in ({}, {"above": 0.5, "best": 1}):
        with pytest.raises(ValidationError, match="write one of the two"):
            Label(**wrong)


def test_advantages_above_the_mean_and_above_the_others():
    """(3 - 1 + 7 + 0) / 4 = 2.25; the others of 3 have (-1 + 7 + 0) / 3 = 2."""
    assert only(judged(), advantage="mean").advantages == (0.75, -3.25, 4.75, -2.25)
    others = (3 - 2, -1 - 10 / 3, 7 - 2 / 3, 0 - 3)
    assert only(judged(), advantage="others").advantages == pytest.approx(others)
    with pytest.raises(RowProblem, match="advantage: others needs 2"):
        advantages_of((1.0,), "others")


def test_the_likeliest_answer_is_the_yardstick_and_no_sample():
    found = groups_of([judged(greedy=3)], Groups(advantage="greedy"))
    (group,) = found.groups
    assert group.completions == ("a", "b", "c")
    assert group.advantages == (3.0, -1.0, 7.0)  # its score is 0
    assert found.left_out["greedy"] == 1
    # Its score has no part in the mean: (3 - 1 + 7) / 3 = 3.
    assert only(judged(greedy=3), advantage="mean").advantages == (0.0, -4.0, 4.0)
    shifted = judged(scores=(3.0, -1.0, 7.0, 2.0), greedy=3)
    assert only(shifted, advantage="greedy").advantages == (1.0, -3.0, 5.0)


@pytest.mark.parametrize("row", [judged(), judged(scores=(3.0, 1.0, 2.0, None), greedy=3)])
def test_without_a_judged_likeliest_answer_there_is_no_group(row):
    found = groups_of([row], Groups(advantage="greedy"))
    assert (found.groups, found.report.dropped) == ([], {"not_judged": 1})


def test_completions_without_a_number_are_left_out_and_counted():
    found = groups_of(
        [judged(scores=(3.0, None, 7.0, 5.0), completions=("a", "b", " ", "long"))],
        Groups(advantage="mean", max_characters=3),
    )
    (group,) = found.groups
    assert (group.completions, group.advantages) == (("a",), (0.0,))
    assert +found.left_out == {"not_judged": 1, "empty_completion": 1, "too_long": 1}
    nothing = groups_of([judged(scores=(None,) * 4)], Groups())
    assert (nothing.report.read, nothing.report.kept) == (1, 0)
    assert nothing.report.dropped == {"not_judged": 1}


def test_answers_that_were_cut_off_train_no_end_token():
    group = only(judged(unfinished=(1,), scores=(3.0, -1.0, None, 0.0)))
    assert group.completions == ("a", "b", "d")
    assert group.finished == (True, False, True)


def test_filters_keep_the_ends_and_advantages_are_of_all():
    assert only(judged(), filter="best_of_n").completions == ("c",)
    ends = only(judged(), filter="best_worst", advantage="mean", label=Label(above=0.0))
    assert (ends.completions, ends.scores) == (("b", "c"), (-1.0, 7.0))
    assert (ends.advantages, ends.labels) == ((-3.25, 4.75), (False, True))
    found = groups_of([judged()], Groups(filter="best_worst"))
    assert found.left_out["not_drawn"] == 2


def test_best_random_keeps_the_best_and_each_other_one_equally_often():
    """As the weights 1/2 and 1 / (2 (N - 1)) of PF-PPO, twice."""
    rows = [judged(prompt=f"{i}?") for i in range(600)]
    kept = [group.completions for group in groups_of(rows, Groups(filter="best_random")).groups]
    assert all(len(texts) == 2 and "c" in texts for texts in kept)
    assert all(list(texts) == sorted(texts) for texts in kept)
    for other in "abd":
        # Three standard deviations of 600 draws of 1/3 are .058.
        assert sum(other in texts for texts in kept) / 600 == pytest.approx(1 / 3, abs=0.058)
    again = groups_of(rows, Groups(filter="best_random", seed=1)).groups
    assert [group.completions for group in again] != kept


def test_it_is_a_rule_of_the_select_stage_and_its_key_holds_every_setting():
    node = Select.of(rule="groups", label={"above": 0.5}, advantage="mean", filter="best_worst")
    assert isinstance(node.as_rule, Groups)
    assert "groups" in EVERY_RULE
    known = node.rule_settings()
    assert known == {
        "rule": "groups",
        "label": {"above": 0.5},
        "advantage": "mean",
        "filter": "best_worst",
    }
    changes = {
        "by": "score",
        "label": {"best": 1},
        "advantage": "others",
        "filter": "best_random",
        "seed": 2,
        "max_characters": 9,
    }
    # A setting that is in no key would give a loop the groups of another recipe.
    assert {*changes, "rule"} == {*Groups.model_fields}
    for key, value in changes.items():
        assert Select.of(rule="groups", **{key: value}).rule_settings()[key] is not None
    with pytest.raises(ValidationError, match="hangs on the other completions"):
        Select.of(rule="groups", by="win_rate", advantage="greedy")
