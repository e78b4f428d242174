"""Loops over groups: what a round leaves, what is refused before it, what its key holds."""

import json
from pathlib import Path
from typing import Any

import pytest

from align.app.check_loop import check_before_rounds, check_loop
from align.errors import RecipeError
from align.loops.artefacts import read_lines
from align.stages import launched, train
from align.stages.train import train_on
from tests import tiny_loops

GRPO = {"name": "group_relative"}
ON_POLICY = {"previous": "round_start"}
REMAX = {"name": "remax", "kl_beta": 0.0}
RULE = {"run": "select", "rule": "groups"}


def stages(rule: dict[str, Any], **generate: Any) -> list[dict[str, Any]]:
    first, judge, _, train = (dict(stage) for stage in tiny_loops.STAGES)
    return [first | generate, judge, RULE | rule, train]


@pytest.fixture
def groups_of(recipe_of):
    """Function: objective, roles, rule, changes of the generate stage -> the recipe of a loop."""

    def make(objective=GRPO, roles=ON_POLICY, rule=None, generate=None, **changes):
        each_round = stages(rule or {}, **(generate or {}))
        return recipe_of(objective=objective, roles=roles, each_round=each_round, **changes)

    return make


def test_a_round_makes_groups_of_all_completions_and_trains_on_them(
    groups_of, go, tmp_path: Path
) -> None:
    rule = {"label": {"above": 0.5}, "advantage": "mean"}
    gone = go(groups_of(rule=rule, rounds=1), tmp_path / "run")
    judged = list(read_lines(gone.artefact(1, "judged")))
    groups = list(read_lines(gone.artefact(1, "groups")))
    said, trained = gone.said[1, "select"], gone.said[1, "train"]
    assert (said["read"], said["kept"]) == (4, 4)
    for row, group in zip(judged, groups, strict=True):
        texts = [turns[0]["content"] for turns in group["completions"]]
        assert texts == row["completions"]
        assert group["scores"] == row["scores"]
        # Right is what begins with one of the first four letters.
        assert group["labels"] == [text[0] in "abcd" for text in texts]
        mean = sum(group["scores"]) / len(texts)
        assert group["advantages"] == pytest.approx([s - mean for s in group["scores"]])
    scores = [score for group in groups for score in group["scores"]]
    assert said["completions"] == len(scores)
    assert said["mean_score"] == said["desirable"] == pytest.approx(sum(scores) / len(scores))
    equal = sum(len(set(group["scores"])) == 1 for group in groups)
    assert said["equal_scores"] == equal
    assert trained["groups"] == len(groups) - sum(trained["dropped"].values())
    assert trained["steps"] == -(-trained["groups"] // 2)
    assert trained["roles"]["previous"]["source"] == "round_start"


def test_remax_measures_from_the_likeliest_answer_and_does_not_train_on_it(
    groups_of, go, tmp_path: Path
) -> None:
    recipe = groups_of(REMAX, {}, {"advantage": "greedy"}, {"greedy": True, "max_new_tokens": 24})
    gone = go(recipe.model_copy(update={"rounds": 1}), tmp_path / "run")
    lines = list(read_lines(gone.artefact(1, "completions")))
    judged = list(read_lines(gone.artefact(1, "judged")))
    groups = {row["row"]: row for row in read_lines(gone.artefact(1, "groups"))}
    assert groups
    for line, row in zip(lines, judged, strict=True):
        place = line["greedy"]
        assert row["greedy"] == place
        if place is None:
            assert line["row"] not in groups
            continue
        assert place == len(line["completions"]) - 1
        group = groups[line["row"]]
        texts = [turns[0]["content"] for turns in group["completions"]]
        assert texts == line["completions"][:place]
        baseline = row["scores"][place]
        assert group["advantages"] == [score - baseline for score in row["scores"][:place]]
    said = gone.said[1, "judge"]
    assert said["scored"] == sum(
        line["greedy"] != at for line in lines for at in range(len(line["completions"]))
    )
    assert 0 <= said["greedy_score"] <= 1
    # Greedy is greedy: another seed draws other samples, and the same likeliest answers.
    other = groups_of(
        REMAX,
        {},
        {"advantage": "greedy"},
        {"greedy": True, "max_new_tokens": 24},
        train={"seed": 5},
    )
    again = go(other.model_copy(update={"rounds": 1}), tmp_path / "other")
    rows = list(read_lines(again.artefact(1, "completions")))

    def likeliest(of: list[Any]) -> list[Any]:
        return [r["greedy"] is not None and r["completions"][r["greedy"]] for r in of]

    assert likeliest(rows) == likeliest(lines)
    assert [r["completions"] for r in rows] != [r["completions"] for r in lines]


def test_launched_processes_train_on_the_same_groups(
    groups_of, go, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []

    def told(*args: Any) -> Any:
        seeds.append(args[5])
        return train_on(*args)

    monkeypatch.setattr(train, "train_on", told)
    gone = go(groups_of(rounds=1), tmp_path / "run")
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "scratch").mkdir()
    order = {
        "recipe": str(tmp_path / "recipe.yaml"),
        "start": str(policy),
        "policy": str(policy),
        "rows": str(gone.artefact(1, "groups")),
        "roles": {"previous": "start"},
        "seed": seeds[0],
        "scratch": str(tmp_path / "scratch"),
        "out": str(out),
    }
    (tmp_path / "order.json").write_text(json.dumps(order))
    assert launched.main(str(tmp_path / "order.json")) == 0
    inside = (gone.artefact(1, "policy") / "model.safetensors").read_bytes()
    assert (out / "model.safetensors").read_bytes() == inside
    assert inside != (policy / "model.safetensors").read_bytes()


KEYS = {
    "label": ({"label": {"above": 0.25}}, {}, "select"),
    "advantage": ({"advantage": "others"}, {}, "select"),
    "filter": ({"filter": "best_worst"}, {}, "select"),
    "greedy": ({}, {"greedy": True}, "generate"),
}


@pytest.mark.parametrize("key", KEYS)
def test_a_stages_key_holds_what_its_rows_depend_on(key, groups_of, shop_of) -> None:
    rule, generate, stage = KEYS[key]

    def settings(recipe) -> list[Any]:
        of_stage = {s.name: s.settings() for s in shop_of(recipe).stages()}
        return [json.dumps(of_stage[name], sort_keys=True) for name in ("generate", "select")]

    before, after = settings(groups_of()), settings(groups_of(rule=rule, generate=generate))
    assert [a != b for a, b in zip(before, after, strict=True)] == [
        stage == "generate",
        stage == "select",
    ]


def test_a_loop_without_the_likeliest_answers_keeps_the_key_it_had(groups_of, shop_of) -> None:
    generate = shop_of(groups_of()).stages()[0]
    assert "greedy" not in generate.settings()


REFUSED = {
    "pairs for an objective over groups": (
        {"rule": {"rule": "best_vs_worst"}},
        "group_relative learns from groups, and the rounds make pairs; write `rule: groups`",
    ),
    "groups for an objective over pairs": (
        {"objective": {"name": "dpo"}, "roles": {"reference": "start"}},
        "dpo learns from pairs, and the rounds make groups",
    ),
    "no labels": (
        {"objective": {"name": "gepo"}, "roles": {"reference": "start"}},
        r"gepo needs the column label of each completion.*`label: \{above: 0.5\}`",
    ),
    "no advantages": (
        {"objective": REMAX, "roles": {}},
        "remax needs the column advantage of each completion.*`advantage: mean`",
    ),
    "no likeliest answers": (
        {"objective": REMAX, "roles": {}, "rule": {"advantage": "greedy"}},
        "write `greedy: true` there",
    ),
    "likeliest answers that nobody reads": (
        {"generate": {"greedy": True}},
        "nothing reads them",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_stages_that_do_not_fit_the_objective_are_refused_before_the_first_round(
    case, groups_of, shop_of
) -> None:
    changes, sentence = REFUSED[case]
    shop = shop_of(groups_of(**changes))
    with pytest.raises(RecipeError, match=sentence):
        check_before_rounds(shop, shop.stages())


def test_a_loop_over_groups_is_described_without_running_it(groups_of) -> None:
    """4 prompts, 4 samples and the likeliest answer of each: 20 scores a round, 4 groups."""
    recipe = groups_of(REMAX, {}, {"advantage": "greedy"}, {"greedy": True})
    said = check_loop(recipe, show_example=False).splitlines()
    assert "completions: 4 a prompt, and the likeliest one, of at most 16 tokens" in said
    assert "judge: asked for scores, at most 20 calls a round, 60 in all" in said
    assert "groups: at most 4 a round, in at most 2 steps" in said
