"""From a file and overrides to a checked recipe, and what is odd about it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

from align.errors import RecipeError
from align.nearest import did_you_mean
from align.policies.model import Model
from align.recipe.building import build, build_data, build_eval, build_kind
from align.recipe.data_recipe import DataRecipe
from align.recipe.eval_recipe import EvalRecipe
from align.recipe.kinds import KINDS, KindName, KindRecipe
from align.recipe.own_code import own_words
from align.recipe.reading import Draft, apply_override, position_of, read_draft
from align.recipe.sections import Recipe
from align.recipe.train import Train

logger = logging.getLogger(__name__)

# Loading a recipe of another kind imports nothing of diffusion models.
DIFFUSION_OBJECTIVES = ("seppo", "diffusion_dpo", "diffusion_sft")

# Published DPO runs: full fine-tuning 5e-7 (Zephyr, arXiv:2310.16944; Tulu 3, arXiv:2411.15124) to
# 1e-6 (Rafailov et al., arXiv:2305.18290); LoRA 5e-6 (Zephyr's QLoRA recipe), some 1e-4.
USUAL_LEARNING_RATE = 1e-5
USUAL_LEARNING_RATE_LORA = 2e-4


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        path: YAML file.
        overrides: `key.path=value` with the value in YAML; a later one wins. Another
            `objective.name` drops the fields in the file that the new formula does not have.

    Raises:
        RecipeError: everything wrong with the file and the overrides, one line each.
    """
    draft = _draft(path, overrides)
    command = {"data": "align data build", "eval": "align eval"}.get(_kind(draft))
    if command is not None:
        raise RecipeError(f"{draft.file}:1: this recipe trains nothing; run `{command} {path}`")
    if _kind(draft) == "diffusion":
        raise RecipeError(f"{draft.file}:1: a diffusion model is trained by `align train {path}`")
    if _kind(draft) in KINDS:
        raise RecipeError(
            f"{draft.where(('kind',))}: a recipe with `kind: {_kind(draft)}` is trained by `align "
            f"train {path}`"
        )
    recipe = build(draft)
    _refuse(draft)
    assert recipe is not None
    for notice in [*draft.notices, *notices(recipe)]:
        logger.warning("%s: %s", draft.file, notice)
    return recipe


def load_kind_recipe(path: str | Path, overrides: Sequence[str] = ()) -> KindRecipe:
    """Read and check a recipe of a reward model, a preference model, or supervised fine-tuning.

    Args:
        path: YAML file.
        overrides: `key.path=value` with the value in YAML; a later one wins.

    Raises:
        RecipeError: everything wrong with the file and the overrides, one line each.
    """
    draft = _draft(path, overrides)
    root = KINDS.get(_kind(draft))
    if root is None:
        raise RecipeError(
            f"{draft.file}:1: `kind` is missing; write one of {', '.join(KINDS)} in front"
        )
    recipe = build_kind(draft, root)
    _refuse(draft)
    assert recipe is not None
    for notice in [*draft.notices, *_notices_of_training(recipe.model, recipe.train)]:
        logger.warning("%s: %s", draft.file, notice)
    return recipe


def load_data_recipe(path: str | Path, overrides: Sequence[str] = ()) -> DataRecipe:
    """Read and check the recipe of a data set.

    Args:
        path: YAML file.
        overrides: `key.path=value` with the value in YAML; a later one wins.

    Raises:
        RecipeError: everything wrong with the file and the overrides, one line each.
    """
    draft = _draft(path, overrides)
    if "build" not in draft.values:
        raise RecipeError(
            f"{draft.file}:1: build: is missing, so no data set is made; write "
            "`build: [{run: mcts}]`, or run `align train` or `align loop`"
        )
    recipe = build_data(draft)
    _refuse(draft)
    assert recipe is not None
    return recipe


Kind = Literal["train", "data", "eval", "diffusion"] | KindName


def kind_of(path: str | Path, overrides: Sequence[str] = ()) -> Kind:
    """Whether a recipe trains (by an objective, or what `kind` says), makes data, or measures.

    Raises:
        RecipeError: it cannot be read as one YAML mapping.
    """
    return _kind(_draft(path, overrides))


def code_named(path: str | Path, overrides: Sequence[str] = ()) -> list[str]:
    """The words of a recipe that name code of its writer's own; none of it is run.

    Raises:
        RecipeError: it cannot be read as one YAML mapping.
    """
    return list(dict.fromkeys(own_words(_draft(path, overrides).values)))


def load_eval_recipe(path: str | Path, overrides: Sequence[str] = ()) -> EvalRecipe:
    """Read and check a recipe of evaluations.

    Raises:
        RecipeError: everything wrong with the file and the overrides, one line each.
    """
    draft = _draft(path, overrides)
    if _kind(draft) != "eval":
        raise RecipeError(
            f"{draft.file}:1: nothing but a model and `evaluate` stands in a recipe for "
            "`align eval`; write `evaluate: {suite: [{run: tasks, tasks: [sums]}]}`, and take out "
            "what trains."
        )
    recipe = build_eval(draft)
    _refuse(draft)
    assert recipe is not None
    return recipe


def _kind(draft: Draft) -> Kind:
    named: Any = draft.values.get("kind")
    if named is not None:
        if named not in KINDS:
            near = did_you_mean(str(named), [*KINDS])
            raise RecipeError(
                f"{draft.where(('kind',))}: kind: found {named!r}{near}; there are "
                f"{', '.join(KINDS)}, and a recipe without `kind` trains by its objective"
            )
        return named
    objective: Any = draft.values.get("objective")
    if isinstance(objective, dict) and cast("Any", objective).get("name") in DIFFUSION_OBJECTIVES:
        return "diffusion"
    if "objective" in draft.values:
        return "train"
    if "build" in draft.values:
        return "data"
    measures = {"evaluate", "evaluations"} & {*draft.values}
    is_eval = measures and not {"train", "rounds", "roles"} & {*draft.values}
    return "eval" if is_eval else "train"


def _draft(path: str | Path, overrides: Sequence[str]) -> Draft:
    draft = read_draft(Path(path))
    for override in overrides:
        apply_override(draft, override)
    return draft


def _refuse(draft: Draft) -> None:
    if draft.problems:
        problems = [str(problem) for problem in sorted(draft.problems, key=position_of)]
        heading = f"{draft.file}: {len(problems)} problems\n" if len(problems) > 1 else ""
        raise RecipeError(heading + "\n".join(problems))


def notices(recipe: Recipe) -> list[str]:
    """What is allowed and yet probably not meant: one sentence each."""
    said: list[str] = []
    model, train = recipe.model, recipe.train
    for role in recipe.roles.given:
        if role not in recipe.objective.needs | recipe.objective.accepts:
            said.append(f"roles.{role}: {recipe.objective.name} does not read it")
    usual = USUAL_LEARNING_RATE_LORA if model.use_peft else USUAL_LEARNING_RATE
    if train.learning_rate > usual and not model.is_world:
        said.append(
            f"train.learning_rate: {train.learning_rate:g} is beyond what preference training of "
            f"{'an adapter' if model.use_peft else 'all weights'} usually bears ({usual:g}); "
            "watch the log-probs of chosen"
        )
    return [*said, *_notices_of_training(model, train)]


def _notices_of_training(model: Model, train: Train) -> list[str]:
    said: list[str] = []
    if not model.use_peft:
        for key in Model.model_fields:
            if key.startswith("lora_") and getattr(model, key) != Model.model_fields[key].default:
                said.append(f"model.{key}: has no effect without `use_peft: true`")
    if train.eval_steps is not None and train.eval_strategy != "steps":
        said.append("train.eval_steps: has no effect without `eval_strategy: steps`")
    if train.save_only_model and train.save_strategy != "no":
        said.append("train.save_only_model: a run that is interrupted cannot resume")
    if train.max_steps > 0 and train.warmup_steps >= train.max_steps:
        said.append("train.warmup_steps: warm-up lasts as long as the whole run")
    return said
