"""What every stage of a run works with."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from align.loops.stage import Stage, StageNode
from align.policies.start import start_identity
from align.recipe import DataRecipe, Recipe
from align.reference import Identity, content_digest


@dataclass(frozen=True)
class Workshop:
    """The recipe of a run, and the policy that it begins with.

    Attributes:
        recipe: of a loop, or of a data set.
        start: folder or hub id of the policy that the run begins with.
        tokenizer: of all its policies; a processor where they read pictures.
    """

    recipe: Recipe | DataRecipe
    start: str
    tokenizer: PreTrainedTokenizerBase

    @property
    def loop_recipe(self) -> Recipe:
        """Of a loop, which trains and measures; a recipe of a data set does neither."""
        assert isinstance(self.recipe, Recipe), "data recipes refuse train and evaluate stages"
        return self.recipe

    @property
    def nodes(self) -> tuple[StageNode, ...]:
        """The settings of all stages, in order."""
        return self.recipe.each_round

    @property
    def model_settings(self) -> dict[str, Any]:
        """How weights are loaded, which moves numbers."""
        return self.recipe.model.model_dump(mode="json")

    @cached_property
    def start_identity(self) -> Identity | None:
        """Who the run's first policy is; its files are read by the first who asks."""
        return start_identity(self.recipe.model, self.start, self.tokenizer)

    def stages(self) -> list[Stage]:
        """The stages of these settings.

        Raises:
            RecipeError: one of them does not fit the rest of the recipe.
        """
        return [node.stage(self) for node in self.nodes]


def start_content(workshop: Workshop) -> str:
    """The content of the policy that a run begins with; a hub id with its revision."""
    name = content_digest(workshop.start)
    is_hub = name == workshop.start
    return f"{name}@{workshop.recipe.model.model_revision}" if is_hub else name
