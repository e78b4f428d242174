"""The groups of a recipe: read, gathered, labelled, tokenised, held out; and sampled by a world."""

import json
from pathlib import Path

import pytest

from align.errors import DataError, RecipeError
from align.recipe import Recipe, load_recipe
from align.stages.groups import read_recipe_groups, sampled_groups
from align.stages.trained_rows import GROUPS, PAIRS, rows_for
from align.worlds.base import World
from tests import tiny_loops


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_loops.letters_tokenizer()


@pytest.fixture
def recipe_of(tmp_path: Path):
    """Function: rows, objective, changes of `data` -> the recipe of a file of them."""

    def make(rows, objective="gepo", **data) -> Recipe:
        tiny_loops.write_rows(tmp_path / "rows.jsonl", rows)
        path = tmp_path / "recipe.yaml"
        nodes = {
            "model": {"model_name_or_path": "a/b"},
            "roles": {"reference": "start"},
            "data": {"groups": str(tmp_path / "rows.jsonl"), "held_out": 0} | data,
            "objective": {"name": objective},
            "train": {"train_sampling_strategy": "sequential"},
            "evaluate": {"suite": []},
        }
        path.write_text(json.dumps(nodes))
        return load_recipe(path)

    return make


def group(prompt, texts, **columns):
    return {"prompt": prompt, "completions": list(texts)} | columns


def one(prompt, text, **columns):
    return {"prompt": prompt, "completion": text} | columns


def columns(rows):
    return [(row.group.prompt, row.group.completions, row.group.labels) for row in rows.train]


def test_what_an_objective_is_over_says_what_trains_it(recipe_of):
    assert rows_for(recipe_of([group("a", "bc")]).objective) is GROUPS
    assert (GROUPS.name, PAIRS.name) == ("groups", "pairs")


def test_single_completions_of_one_prompt_become_a_group(recipe_of, tokenizer):
    """TRL's unpaired format; the report counts the row that went into another as a note."""
    rows = [one("a", "bc", label=True), one("d", "e", label=True), one("a", "f", label=False)]
    found = read_recipe_groups(recipe_of(rows), "", tokenizer)
    assert columns(found) == [("a", ("bc", "f"), (True, False)), ("d", ("e",), (True,))]
    counts = found.counts()
    assert (counts["read"], counts["kept"], counts["train"], counts["completions"]) == (2, 2, 2, 3)
    assert counts["notes"]["gathered_by_prompt"] == 1
    # kto looks at the row before each row.
    single = read_recipe_groups(recipe_of(rows, "kto"), "", tokenizer)
    assert [row.group.completions for row in single.train] == [("bc",), ("e",), ("f",)]


def test_labels_and_advantages_are_made_of_the_whole_prompts_scores(recipe_of, tokenizer):
    rows = [one("a", "bc", score=3), one("d", "e", score=1), one("a", "f", score=1)]
    recipe = recipe_of(rows, label={"above": 1.5}, advantage="mean")
    found = read_recipe_groups(recipe, "", tokenizer)
    assert columns(found)[0] == ("a", ("bc", "f"), (True, False))
    assert [row.group.advantages for row in found.train] == [(1.0, -1.0), (0.0,)]


def test_rows_whose_scores_say_nothing_are_dropped_by_reason(recipe_of, tokenizer):
    rows = [group("a", "bc", scores=[2, 1]), group("d", "ef", scores=[1, 1]), group("b", "gh")]
    recipe = recipe_of(rows, label={"best": 1}, max_dropped=0.9)
    found = read_recipe_groups(recipe, "", tokenizer)
    assert found.report.dropped == {"tie": 1, "missing_field": 1}
    assert (found.report.read, found.report.kept, len(found.train)) == (3, 1, 1)


def test_labels_of_the_rows_own_are_not_made_again(recipe_of, tokenizer):
    rows = [group("a", "bc", scores=[2, 1], labels=[False, True])]
    with pytest.raises(DataError, match=r"bad_score") as caught:
        read_recipe_groups(recipe_of(rows, label={"above": 1.5}), "", tokenizer)
    assert "data.label would make them" in str(caught.value)


def test_errors_name_the_recipes_own_key(recipe_of, tokenizer, tmp_path):
    recipe = recipe_of([group("a", "bc")])
    (tmp_path / "rows.jsonl").unlink()
    with pytest.raises(DataError, match=r"Check data\.groups"):
        read_recipe_groups(recipe, "", tokenizer)


def test_held_out_groups_share_no_prompt_with_the_others(recipe_of, tokenizer):
    rows = [one(p, t, label=True) for t in "ef" for p in "abcd"]
    found = read_recipe_groups(recipe_of(rows, "kto", held_out=2), "", tokenizer)
    held = {row.group.prompt for row in found.held_out}
    assert (len(found.train), len(found.held_out)) == (6, 2)
    assert held.isdisjoint(row.group.prompt for row in found.train)
    with pytest.raises(DataError, match="asks for 8 of 8 groups"):
        read_recipe_groups(recipe_of(rows, "kto", held_out=8), "", tokenizer)
    limited = read_recipe_groups(recipe_of(rows, "kto", limit=3), "", tokenizer)
    assert (len(limited.train), limited.report.read) == (3, 3)


class Letters(World):
    """Three-letter prompts; an answer is worth the place of its first letter, or beats by it."""

    name = "letters"
    max_new_tokens = 12

    def __init__(self, judged_by):
        self.judged_by = judged_by

    def base_model(self):
        raise NotImplementedError

    def prompts(self, split, n, *, seed):
        from align.data.messages import Message
        from align.data.prompts import Prompt

        assert split == "train"
        return [
            Prompt(
                prompt=(Message(role="user", content=f"{letter}bc"),),
                group_id=letter,
                source=f"letters/{seed}",
                row=row,
            )
            for row, letter in enumerate(tiny_loops.LETTERS[:n], start=1)
        ]

    def judge(self):
        from align.judges.base import Prefers, Tie
        from align.judges.rule import RuleJudge

        if self.judged_by == "scores":
            return RuleJudge("letters", lambda question, text: float(ord(text[0])))

        class Compare:
            identity = "letters"

            def compare(self, items):
                return [
                    Tie()
                    if i.first[0] == i.second[0]
                    else Prefers("first", 1.0)
                    if i.first[0] > i.second[0]
                    else Prefers("second", 0.0)
                    for i in items
                ]

        return Compare()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from transformers import LlamaForCausalLM

    folder = tiny_loops.build_policy(tmp_path_factory.mktemp("start"))
    return LlamaForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("judged_by", ["scores", "comparisons"])
def test_a_world_samples_groups_with_exact_scores(judged_by, model, tokenizer):
    found = sampled_groups(
        Letters(judged_by), model, tokenizer, prompts=6, completions=5, temperature=1.0, seed=0
    )
    assert len(found) == 6
    for one_group in found:
        first = [text[-1].content[0] for text in one_group.completions]
        assert 1 < len(first) <= 5
        if judged_by == "scores":
            assert list(one_group.scores) == [float(ord(letter)) for letter in first]
            continue
        for k, letter in enumerate(first):
            others = [*first[:k], *first[k + 1 :]]
            won = sum(1.0 if letter > o else 0.5 if letter == o else 0.0 for o in others)
            assert one_group.scores[k] == pytest.approx(won / len(others))


def test_a_world_without_a_judge_has_no_groups(model, tokenizer):
    with pytest.raises(RecipeError, match="has no groups of judged answers"):
        sampled_groups(
            Letters(None), model, tokenizer, prompts=2, completions=2, temperature=1.0, seed=0
        )
