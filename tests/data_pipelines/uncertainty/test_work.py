import json
from collections import Counter

import pytest

from align.data.built import Built
from align.data.completions import JudgedPrompt
from align.data.messages import Message
from align.data.questions import Candidates
from align.data.records import content_id
from align.errors import RecipeError
from align.judges.base import JudgeFailed
from align_data.uncertainty.information import mutual_information
from align_data.uncertainty.settings import Legacy, UncertaintySettings
from align_data.uncertainty.work import UncertaintyWork


class Lengths:
    """Reward: the number of characters; none for what starts with !."""

    identity = "lengths"

    def score(self, items):
        return [
            JudgeFailed("timeout", "no answer in time")
            if item.completion.startswith("!")
            else float(len(item.completion))
            for item in items
        ]


class Digits:
    """P(first is better) by the first digit, with a habit of position and noise per network."""

    identity = "digits"

    def __init__(self):
        self.asked = []

    def read(self, items, networks):
        self.asked.append((len(items), list(networks)))
        results = []
        for item in items:
            if "z" in item.first + item.second:
                results.append(JudgeFailed("too_long", "99 tokens, 64 fit"))
                continue
            gap = (int(item.first[0]) - int(item.second[0])) / 20
            noise = [0.0 if n is None else 0.02 * (n % 3 - 1) for n in networks]
            results.append(tuple(0.55 + gap + one for one in noise))
        return results


def unit(*responses, row=1, solution=None, prompt="q?"):
    return Candidates(
        prompt=(Message(role="user", content=prompt),), responses=responses, solution=solution,
        policy="p", source="made", row=row,
    )  # fmt: skip


def work(estimator=None, judge=Lengths, **settings):
    node = UncertaintySettings(**settings)
    return UncertaintyWork(
        node,
        estimator or Digits(),
        None if judge is None else judge(),
        seed=5,
        config_hash=content_id(node.model_dump(mode="json")),
    )


def reasons(built):
    return Counter(row.reason for row in built.dropped)


def holds(built):
    assert built.read == len(built.pairs) + len(built.dropped)
    return True


def test_a_pair_carries_rewards_estimate_and_where_it_came_from():
    (built,) = work()([unit("9", "811", row=7)])
    (pair,) = built.pairs
    assert (pair.chosen[0].content, pair.rejected[0].content) == ("811", "9")
    assert (pair.chosen_score, pair.rejected_score, pair.margin) == (3.0, 1.0, 2.0)
    assert (pair.source, pair.row, pair.pipeline, pair.model) == ("made", 7, "upo", "p")
    # 8 against 9: .55 - .05 = .50 first, .60 swapped: mean (.50 + 1 - .60) / 2 = .45 + noise 0
    assert pair.prob_chosen == pytest.approx(0.45, abs=0.003)
    assert pair.detail == {"agree": False}
    (estimate,) = built.record["estimates"]
    assert pair.uncertainty == estimate["bald"] == mutual_information(estimate["p_T"])
    assert (estimate["T"], estimate["order"]) == (10, "both")
    assert built.counts["readings"] == 20
    assert Built.model_validate_json(built.model_dump_json()) == built


def test_one_order_takes_the_habit_of_position_as_it_is():
    (built,) = work(order="chosen_first")([unit("9", "811")])
    assert built.pairs[0].prob_chosen == pytest.approx(0.5, abs=0.003)
    assert built.counts["readings"] == 10


def test_whatever_is_left_out_is_counted_with_its_reason():
    broken = work()(
        [
            unit("1", "22", "!", "4444"),
            unit("11", "22"),
            unit("!", "!!"),
            unit("1", "2z", "333", "4444"),
        ]
    )
    assert all(map(holds, broken))
    assert reasons(broken[0]) == {"failed": 1}
    assert len(broken[0].pairs) == 1
    assert "timeout" in broken[0].dropped[0].detail
    assert reasons(broken[1]) == {"tie": 1}
    assert reasons(broken[2]) == {"failed": 2, "too_few_completions": 1}
    assert reasons(broken[3]) == {"too_long": 2}
    assert len(broken[3].pairs) == 2


def test_a_chunk_changes_nothing_and_neither_does_doing_it_again():
    units = [unit(str(n), f"{9 - n}1", "5", f"{n}77", row=n + 1) for n in range(6)]
    whole = [b.model_dump_json() for b in work()(units)]
    again = [b.model_dump_json() for b in work()(units)]
    halves = [b.model_dump_json() for start in (0, 3) for b in work()(units[start : start + 3])]
    assert whole == again == halves
    uids = [pair["uid"] for text in whole for pair in json.loads(text)["pairs"]]
    assert len(set(uids)) == len(uids) > 12


def test_the_known_answer_joins_the_responses():
    (built,) = work(reference_answer="add")([unit("1", "22", solution="333")])
    assert built.record["responses"] == ["1", "22", "333"]
    (once,) = work(reference_answer="add")([unit("1", "22", solution="22")])
    assert once.record["responses"] == ["1", "22"]
    (without,) = work()([unit("1", "22", solution="333")])
    assert without.record["responses"] == ["1", "22"]


def test_only_a_share_of_the_candidates_is_estimated():
    units = [unit("1", "22", "333", "4444", prompt=f"{n}?") for n in range(1, 101)]
    built = work(estimated=0.25)(units)
    assert all(map(holds, built))
    estimated = sum(b.counts["estimated"] for b in built)
    # 400 candidates: 100 +- 3 x 8.7
    assert abs(estimated - 100) < 27
    assert sum((reasons(b) for b in built), Counter()) == {"not_drawn": 400 - estimated}


def test_the_published_mixture_keeps_the_widest_pair_without_an_estimate():
    units = [unit("1", "22", "333", "4444", prompt=f"{n}?") for n in range(1, 41)]
    built = work(estimated=0.01, select=Legacy())(units)
    widest = [p for b in built for p in b.pairs if p.margin == 3.0]
    assert len(widest) == 40
    assert sum(p.uncertainty is None for p in widest) > 30


def test_a_first_pass_spends_the_others_on_agreed_pairs_only():
    estimator = Digits()
    (built,) = work(estimator, agreement="first_pass")([unit("9", "8", "711", "911")])
    assert estimator.asked == [(8, [None]), (2, list(range(10)))]
    # 7 against 9 and 8 loses, 9 against 9 is even: only 9 against 8 agrees with the lengths.
    assert reasons(built) == {"disagreement": 3}
    assert [pair.rejected[0].content for pair in built.pairs] == ["8"]
    assert built.counts["readings"] == 8 + 2 * 10
    assert holds(built)


def judged(scores, completions=("1", "22")):
    return JudgedPrompt(
        prompt="q?", source="made", row=1, sampler="s", completions=completions, scores=scores,
        judge="j", calls=2, preferences=None if scores else ((0.5, 1.0), (0.0, 0.5)),
    )  # fmt: skip


def test_a_judge_stage_has_given_the_rewards():
    (built,) = work(judge=None)([judged((3.0, 1.0))])
    (pair,) = built.pairs
    assert (pair.prompt, pair.chosen, pair.rejected, pair.model) == ("q?", "1", "22", "s")
    assert built.record["judge"] == "j"
    (failed,) = work(judge=None)([judged((3.0, None))])
    assert reasons(failed) == {"failed": 1, "too_few_completions": 1}
    (same,) = work(judge=None)([judged((3.0, 1.0), ("1", "1"))])
    assert reasons(same) == {"equal": 1}


def test_without_rewards_nothing_is_guessed():
    with pytest.raises(RecipeError, match=r"pipeline\.rewards"):
        work(judge=None)([unit("1", "22")])
    with pytest.raises(RecipeError, match="ask: scores"):
        work(judge=None)([judged(None)])
