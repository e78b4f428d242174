"""Where a pipeline's work is done, what it is made of there, and who does it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from transformers import GenerationConfig

from align.errors import RecipeError
from align.policies.loading import load_config, load_tokenizer
from align.recipe import DataRecipe, Recipe
from align.registry import WORLD
from align.servers.cached import cached_caller
from align.servers.caller import CachedCaller
from align.servers.endpoint import Endpoint
from align.stages.policies import load_round_policy
from align_data.chunks import Engine, InProcess
from align_data.ray_engine import RayActors

T = TypeVar("T")


@dataclass(frozen=True)
class Site:
    """Where a worker finds what its work is made of; it can be sent to another process.

    Attributes:
        recipe: its model section says how weights are loaded.
        start: folder or hub id of the policy that the loop begins with.
        policy: folder of the newest one.
        loop: the loop's folder, with its call store.
        seed: of the stage.
        round: of the loop.
        model: the policy, where it is in memory.
    """

    recipe: Recipe | DataRecipe
    start: str
    policy: Path
    loop: Path
    seed: int
    round: int
    model: Any | None = None

    @property
    def prompts(self) -> str:
        """What the recipe names as source of its prompts."""
        return source_of(self.recipe)

    def load(self) -> Any:
        """The policy."""
        if self.model is not None:
            return self.model
        return load_round_policy(self.recipe, self.policy, self.start, trainable=False)

    def tokenizer(self) -> Any:
        """Of the policy."""
        return load_tokenizer(self.recipe.model, self.start)

    def caller(self, server: Endpoint, stack: ExitStack) -> CachedCaller:
        """Asks a server; its answers are kept with the loop's."""
        return stack.enter_context(cached_caller(server, self.loop))

    def limits(self) -> tuple[int, Sequence[int]]:
        """Tokens that the policy takes, and the end tokens of its generation config."""
        config: Any = load_config(self.recipe.model, self.start).get_text_config()
        longest = getattr(config, "max_position_embeddings", None) or 2**31
        try:
            named: Any = GenerationConfig.from_pretrained(self.start).eos_token_id
        except OSError:
            named = None
        return longest, [named] if isinstance(named, int) else named or []


def engine_of(recipe: Recipe | DataRecipe) -> Engine:
    """Who works on the chunks; loops work in process."""
    if isinstance(recipe, Recipe) or recipe.work.engine == "local":
        return InProcess()
    return RayActors(recipe.work.workers, recipe.work.cpus, recipe.work.gpus)


def source_of(recipe: Recipe | DataRecipe) -> str:
    """What a recipe names as source of its prompts; empty where it has none."""
    return "" if recipe.prompts is None else recipe.prompts.source


def of_world(known: Mapping[str, T], prompts: str, key: str, instead: str) -> T:
    """What a pipeline has for the world that the prompts come from.

    Args:
        known: by the names of worlds.
        prompts: their source.
        key: that asks for it, with the word `world`.
        instead: another word for `key`.

    Raises:
        RecipeError: the prompts come from no world, or from one that `known` lacks.
    """
    name = prompts.removeprefix(WORLD)
    if name == prompts or name not in known:
        there = " or ".join(WORLD + name for name in known)
        raise RecipeError(
            f"`{key}: world` goes by the prompts of {there}, and prompts.source is {prompts!r}; "
            f"change one of the two, for example to `{key}: {instead}`."
        )
    return known[name]
