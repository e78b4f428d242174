"""A recipe that builds preference data and trains nothing: `align data build`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from align.loops.stage import StageNode
from align.node import Conflict, Node
from align.policies.model import Model
from align.recipe.sections import Data, Hub, Prompts
from align.unions import Named


class Workers(Node):
    """Who works on the chunks of a pipeline; the rows are the same whoever does."""

    engine: Literal["local", "ray"] = "local"
    """local (this process) or ray (actors of Ray Data, here or on a cluster)."""
    workers: int = Field(default=2, ge=1)
    """Actors of Ray, each of which loads the models once."""
    cpus: float = Field(default=1.0, gt=0)
    """CPUs of each actor."""
    gpus: float = Field(default=0.0, ge=0)
    """GPUs of each actor; a fraction lets several share one."""

    def conflicts(self) -> Iterator[Conflict]:  # noqa: D102
        for key in ("workers", "cpus", "gpus"):
            if self.engine == "local" and getattr(self, key) != Workers.model_fields[key].default:
                yield key, "only `engine: ray` reads it; take it out"


class DataRecipe(Node):
    """One data set, complete: what `align data build` reads and writes back as recipe.yaml."""

    model: Model
    """The policy that writes: answers, steps, critiques."""
    data: Data = Data()
    """What to do with rows that cannot be used; for pipelines that read pairs, also the pairs."""
    prompts: Prompts | None = None
    """What the policy is asked."""
    build: tuple[Annotated[StageNode, Named("stage")], ...] = Field(min_length=1)
    """The stages, in order; the last ones must leave pairs."""
    work: Workers = Workers()
    """Who works on the chunks of a pipeline."""
    seed: int = Field(default=0, ge=0)
    """Seed of all draws."""
    hub: Hub = Hub()
    """Where the data set is pushed."""

    @property
    def each_round(self) -> tuple[Annotated[StageNode, Named("stage")], ...]:
        """The stages, as a loop of one round calls them."""
        return self.build

    def conflicts(self) -> Iterator[Conflict]:  # noqa: D102
        for i, stage in enumerate(self.build):
            if stage.trains:
                yield (
                    f"build.{i}.run",
                    f"{stage.run} makes no data; write it under each_round of a loop",
                )
        if self.prompts is not None and self.prompts.curriculum is not None:
            yield "prompts.curriculum", "it goes from round to round, and a data set is built once"
        if self.prompts is None and any(s.needs_prompts for s in self.build):
            yield "prompts", "is missing; write `prompts: {source: <file>}`"


DATA_PLAIN = ("build", "seed")
DATA_SECTIONS = tuple(name for name in DataRecipe.model_fields if name not in DATA_PLAIN)
