import math
from collections import Counter

import pytest

from align.data.messages import Message
from align.data.pairs import PreferencePair
from align.data.questions import Candidates
from align.worlds.sums import sums_judge
from align_data.uncertainty.finish import finish
from align_data.uncertainty.report import findings, warnings
from align_data.uncertainty.select import uniform
from align_data.uncertainty.settings import Legacy, Mu, Smoothing, Top, UncertaintySettings
from align_data.uncertainty.work import UncertaintyWork
from align_data.uncertainty.world import FlippedJudge, truth

RIGHT = "11+12=23\n23+{0}={1}\n{1}"
WRONG = "11+12=24\n24+{0}={1}\n{1}"


class Sums:
    """Knows the sums, less surely for higher ones."""

    identity = "sums"

    def read(self, items, networks):
        results = []
        for item in items:
            c = int(item.prompt[0].content[6:-1])
            better = item.first.endswith(str(23 + c))
            sure = 0.8 - 0.002 * c
            shift = 0.15 * c / 50
            results.append(
                tuple(
                    p if better else 1 - p
                    for p in (sure + shift * ((n or 0) % 2 * 2 - 1) for n in networks)
                )
            )
        return results


def units(n=80):
    made = []
    for row in range(1, n + 1):
        c = 10 + row % 40
        right, wrong = RIGHT.format(c, 23 + c), WRONG.format(c, 24 + c)
        asked = (Message(role="user", content=f"11+12+{c}?"),)
        responses = (right, wrong, right + "0", wrong + "0")
        made.append(
            Candidates(prompt=asked, responses=responses, policy="p", source="made", row=row)
        )
    return made


def labelled(n=20):
    return [
        PreferencePair(
            prompt=(Message(role="user", content=f"11+13+{row}?"),),
            chosen=(Message(role="assistant", content="1"),),
            rejected=(Message(role="assistant", content="2"),),
            source="labels",
            row=row,
        )
        for row in range(10, 10 + n)
    ]


@pytest.fixture(scope="module")
def estimated():
    work = UncertaintyWork(
        UncertaintySettings(), Sums(), FlippedJudge(sums_judge(), flips=0.25, seed=3), seed=1,
        config_hash="h",
    )  # fmt: skip
    return work(units())


def finished(estimated, labels=(), **settings):
    found = finish(
        estimated, UncertaintySettings(**settings), seed=1, config_hash="h", labelled=labels
    )
    assert all(b.read == len(b.pairs) + len(b.dropped) for b in found)
    assert sum(b.read for b in found[: len(estimated)]) == sum(b.read for b in estimated)
    return found


def pairs(built):
    return [pair for one in built for pair in one.pairs]


def test_planted_noise_is_filtered(estimated):
    before = truth(pairs(estimated), sums_judge())
    after = truth(pairs(finished(estimated)), sums_judge())
    assert 0.5 < before.precision < 0.9
    assert after.precision == 1.0
    assert after.right == len(pairs(finished(estimated)))
    # The paper's own rule does not ask for agreement and keeps the noise.
    paper = truth(pairs(finished(estimated, select=Mu(agreement="ignored"))), sums_judge())
    assert paper.wrong > 0


def test_a_kept_pair_has_a_soft_label_by_its_information(estimated):
    kept = pairs(finished(estimated))
    assert {pair.pair_kind for pair in kept} == {"reliable"}
    for pair in kept:
        alpha = 0.5 * pair.uncertainty / math.log(2)
        assert pair.preference == pytest.approx(1 - alpha, abs=1e-15)
        assert 0.5 <= pair.preference <= 1
    least = max(pair.uncertainty for pair in kept)
    agreed = [p for p in pairs(estimated) if p.detail["agree"]]
    assert len(kept) == math.floor(0.5 * len(agreed) + 0.5)
    assert sum(p.uncertainty < least for p in agreed) < len(kept)


@pytest.mark.parametrize("mode", ["none", "probability", "odds", "printed"])
def test_each_form_of_smoothing_reaches_the_rows(estimated, mode):
    kept = pairs(finished(estimated, select=Top(keep=1.0), smoothing=Smoothing(mode=mode)))
    values = [pair.preference for pair in kept]
    if mode == "none":
        assert set(values) == {1.0}
    elif mode == "printed":
        assert max(values) <= 0.5
    else:
        assert 0.5 <= min(values) < max(values) <= 1


def test_one_pair_per_prompt_only_when_asked(estimated):
    def most(**settings):
        counted = Counter(p.prompt for p in pairs(finished(estimated, **settings)))
        return max(counted.values())

    assert most() > 1
    assert most(dedupe="prompt") == 1


def test_labelled_pairs_join_last(estimated):
    found = finished(estimated, labelled(), replay=0.4)
    last = found[-1]
    assert len(found) == len(estimated) + 1
    assert {pair.pair_kind for pair in last.pairs} == {"labelled"}
    assert len(last.pairs) == 8
    assert {pair.preference for pair in last.pairs} == {1.0}
    assert {pair.source for pair in last.pairs} == {"labels"}
    assert len(finished(estimated, labelled())) == len(estimated)
    twice = finished(estimated, [*labelled(5), *labelled(5)], replay=1.0, dedupe="prompt")[-1]
    assert (len(twice.pairs), len(twice.dropped), twice.read) == (5, 5, 10)


def test_the_published_mixture_names_its_buckets(estimated):
    kept = pairs(finished(estimated, select=Legacy(), smoothing=Smoothing(mode="none")))
    assert {pair.pair_kind for pair in kept} == {"easy", "hard", "far"}
    assert any(not pair.detail["agree"] for pair in kept)
    assert {pair.preference for pair in kept} == {1.0}


def test_finishing_is_the_same_again_and_does_not_touch_what_it_was_given(estimated):
    before = [one.model_dump_json() for one in estimated]
    first = [one.model_dump_json() for one in finished(estimated)]
    assert first == [one.model_dump_json() for one in finished(estimated)]
    assert before == [one.model_dump_json() for one in estimated]


def test_the_findings_add_up(estimated):
    found = finished(estimated)
    told = findings(found)
    assert told["candidates"] == told["kept"] + sum(told["dropped"].values())
    assert told["kept_by_kind"] == {"reliable": told["kept"]}
    assert told["first_wins"] == pytest.approx(1 - told["first_wins_swapped"])
    assert sum(told["information"]["bins"]) == told["estimated"]
    assert warnings(told) == []
    collapsed = {**told, "first_wins": 0.97, "first_wins_swapped": 0.96}
    assert "looks at the position" in warnings(collapsed)[0]
    flat = {**told, "information": {**told["information"], "max": 1e-9}}
    assert "rounding noise" in warnings(flat)[0]


def test_a_misread_question_turns_all_its_scores_over():
    from align.judges.base import Answer

    flipped = FlippedJudge(sums_judge(), flips=0.25, seed=3)
    answers = [Answer(u.prompt, r, "") for u in units(30) for r in u.responses]
    exact, noisy = sums_judge().score(answers), flipped.score(answers)
    turned = [a != b for a, b in zip(exact, noisy, strict=True)]
    assert all(len(set(turned[i : i + 4])) == 1 for i in range(0, 120, 4))
    assert 0 < sum(turned) / 120 < 0.6
    assert all(a + b == 1 for a, b, t in zip(exact, noisy, turned, strict=True) if t)
    assert uniform(3, "x", "flip") != uniform(4, "x", "flip")


def test_a_prompt_that_is_there_twice_is_chosen_from_twice(estimated):
    twice = [estimated[0], estimated[0], *estimated[1:]]
    found = finished(twice, select=Top(keep=1.0), dedupe="prompt")
    counted = Counter(p.prompt for p in pairs(found))
    assert set(counted.values()) == {1}
