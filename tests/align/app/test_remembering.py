"""What rounds hand on: shares of the prompts' sources, and weights of rewards."""

import json
import statistics
from pathlib import Path

import pytest

from align.app.check_recipe import check_recipe
from align.data.curriculum import advantages
from align.errors import RecipeError
from align.loops.artefacts import read_lines
from align.loops.stage import check_chain, first_states
from tests import tiny_loops

ANSWERS = {k: v for k, v in tiny_loops.STAGES[1].items() if k != "run"}
ADAPT = {"name": "spread", "decay": 0.5}
DUMP = {"name": "dump", "column": "kind"}


def changes(place: Path, *, decay: float = 0.5, window: int = 300) -> dict:
    rows = [json.loads(line) for line in (place / "prompts.jsonl").read_text().splitlines()]
    kinds = [row | {"kind": "ab"[number % 3 == 0]} for number, row in enumerate(rows)]
    tiny_loops.write_rows(place / "prompts.jsonl", kinds)
    rewards = [
        ANSWERS | {"path": str(place / "answers.jsonl"), "weight": 2.0},
        {"by": "length", "weight": 0.5},
    ]
    stages = [dict(stage) for stage in tiny_loops.STAGES]
    stages[1] = {"run": "judge", "by": "rewards", "rewards": rewards}
    stages[1]["adapt"] = ADAPT | {"decay": decay}
    return {
        "prompts": {"per_round": 6, "curriculum": DUMP | {"window": window}},
        "objective": {"name": "dpo"},
        "roles": {"reference": "round_start"},
        "each_round": stages,
        "rounds": 2,
    }


def state_of(gone, number: int, stage: str, kind: str) -> dict:
    (path,) = gone.run.glob(f"rounds/{number:04}/*-{stage}/{kind}/state.json")
    return json.loads(path.read_text())


def test_what_is_remembered_is_what_was_seen(recipe_of, go, place, tmp_path) -> None:
    gone = go(recipe_of(**changes(place)), tmp_path / "run")
    seen: dict[str, list[float]] = {"a": [], "b": []}
    drawn = {"a": 0, "b": 0}
    variances: list[float] = []
    for number in (1, 2):
        asked = state_of(gone, number, "generate", "curriculum")["asked"]
        judged = list(read_lines(gone.artefact(number, "judged")))
        kinds = {
            row["prompt"][0]["content"]: row["kind"] for row in read_rows(place / "prompts.jsonl")
        }
        assert asked == [kinds[row["prompt"][0]["content"]] for row in judged]
        for kind, row in zip(asked, judged, strict=True):
            seen[kind] += [abs(a) for a in advantages([s for s in row["scores"] if s is not None])]
            drawn[kind] += 4
        found = state_of(gone, number, "judge", "curriculum")["arms"]
        for kind, arm in found.items():
            assert arm["window"] == seen[kind]
            # Four of each prompt, those among them that did not end.
            assert arm["seen"] == drawn[kind]
            assert gone.said[number, "judge"][f"learnability_{kind}"] == pytest.approx(
                statistics.fmean(seen[kind])
            )
        # The second reward is the length.
        of_prompts = [
            statistics.pvariance(map(len, row["completions"]))
            for row in judged
            if len(row["completions"]) > 1
        ]
        now = statistics.fmean(of_prompts)
        variances.append(now if not variances else 0.5 * variances[-1] + 0.5 * now)
        weights = state_of(gone, number, "judge", "reward_weights")["variances"]
        assert weights[1] == pytest.approx(variances[-1])
        assert gone.said[number, "judge"]["weight_2_length"] == pytest.approx(
            0.5 / variances[-1] ** 0.5
        )
        for row in judged:
            for text, score in zip(row["completions"], row["scores"], strict=True):
                right = float(text[0] in "abcd")
                parts = gone.said[number, "judge"]
                expected = parts["weight_1_answers"] * right
                expected += parts["weight_2_length"] * len(text)
                assert score == pytest.approx(expected)
    asked = gone.said[2, "generate"]
    assert sum(asked["asked"].values()) == 6
    assert asked["share_a"] != 0.5


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_another_setting_makes_again_what_it_touches(recipe_of, go, place, tmp_path) -> None:
    run = tmp_path / "run"
    first = go(recipe_of(**changes(place)), run)
    before = first.files()
    again = go(recipe_of(**changes(place)), run)
    assert (again.said, again.aside) == ({}, [])
    assert again.files() == before
    # A judge that forgets otherwise: the first round's answers stay.
    other = go(recipe_of(**changes(place, decay=0.9)), run)
    assert other.aside[0] == "1/02-judge"
    assert "1/01-generate" not in other.aside
    assert other.files() != before
    # Another window: all rounds are asked anew.
    narrow = go(recipe_of(**changes(place, decay=0.9, window=3)), run)
    assert narrow.aside[0] == "1/01-generate"
    # And back: the same bytes.
    back = go(recipe_of(**changes(place)), run)
    assert back.files() == before


def test_a_first_round_remembers_nothing_and_the_chain_says_so(recipe_of, shop_of, place) -> None:
    stages = shop_of(recipe_of(**changes(place))).stages()
    assert [artefact.kind for artefact in first_states(stages)] == ["curriculum", "reward_weights"]
    with pytest.raises(RecipeError, match="reads curriculum"):
        check_chain(stages, {"policy": None})
    plain = shop_of(recipe_of()).stages()
    assert first_states(plain) == []


def test_without_these_keys_a_loop_s_stages_keep_their_keys(recipe_of, shop_of) -> None:
    generate, judge, *_ = shop_of(recipe_of()).stages()
    assert "curriculum" not in generate.settings()["prompts"]
    assert "adapt" not in judge.settings()
    assert (generate.writes, judge.writes) == (("completions",), ("judged",))


def test_check_reads_the_sources(place, policy) -> None:
    path = tiny_loops.write_recipe(place, policy, **changes(place))
    assert "prompts: 6 in round 1" in check_recipe(path, [])
    tiny_loops.write_rows(place / "prompts.jsonl", [{"prompt": "abc"}, {"prompt": "abd"}])
    with pytest.raises(Exception, match="has no 'kind'"):
        check_recipe(path, [])


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ({"prompts": {"per_round": None, "curriculum": DUMP}}, "shares so many prompts out"),
        ({"prompts": {"source": "world:sums", "curriculum": DUMP}}, "a world is one source"),
        (
            {
                "prompts": {"curriculum": DUMP},
                "each_round": [{"run": "uncertainty", "labelled": "x"}, {"run": "train"}],
            },
            "what a judge stage says",
        ),
    ],
)
def test_what_cannot_stand_together_is_refused(recipe_of, written, problem) -> None:
    with pytest.raises(RecipeError, match=problem):
        recipe_of(**written)
