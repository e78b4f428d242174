"""The typed recipe: load it strictly, override keys, write it back resolved, explain a key.

A recipe is YAML read by YAML 1.2's rules for plain words (`7e-7` is a number, `no` is text), so
that no value changes its type behind the writer's back; a key given twice, an alias, a merge key
and every tag but the plain ones are refused. All problems are reported at once, each with its
line. Keys of `model` and `train` are those of TRL 1.16 (`ModelConfig`, `DPOConfig`), those of
`objective` the fields of the formulas. Loading a recipe never imports transformers, trl or
datasets.
"""

from align.policies.model import Model
from align.recipe.data_recipe import DataRecipe, Workers
from align.recipe.eval_recipe import EvalRecipe
from align.recipe.explaining import explain
from align.recipe.kinds import (
    KINDS,
    KindRecipe,
    PreferenceModelRecipe,
    RewardRecipe,
    SFTRecipe,
)
from align.recipe.loading import (
    USUAL_LEARNING_RATE,
    USUAL_LEARNING_RATE_LORA,
    code_named,
    kind_of,
    load_data_recipe,
    load_eval_recipe,
    load_kind_recipe,
    load_recipe,
    notices,
)
from align.recipe.refused import REFUSED
from align.recipe.sections import (
    SECTIONS,
    Data,
    Evaluate,
    Hub,
    Prompts,
    Recipe,
    Roles,
    Sample,
)
from align.recipe.train import Optimizer, Scheduler, Train
from align.recipe.writing import default_run, recipe_key, resolved_yaml

__all__ = [
    "KINDS",
    "REFUSED",
    "SECTIONS",
    "USUAL_LEARNING_RATE",
    "USUAL_LEARNING_RATE_LORA",
    "Data",
    "DataRecipe",
    "EvalRecipe",
    "Evaluate",
    "Hub",
    "KindRecipe",
    "Model",
    "Optimizer",
    "PreferenceModelRecipe",
    "Prompts",
    "Recipe",
    "RewardRecipe",
    "Roles",
    "SFTRecipe",
    "Sample",
    "Scheduler",
    "Train",
    "Workers",
    "code_named",
    "default_run",
    "explain",
    "kind_of",
    "load_data_recipe",
    "load_eval_recipe",
    "load_kind_recipe",
    "load_recipe",
    "notices",
    "recipe_key",
    "resolved_yaml",
]
