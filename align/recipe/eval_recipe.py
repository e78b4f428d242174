"""A recipe that measures a model and trains nothing: `align eval`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from align.policies.endpoint import Endpoint
from align.recipe.base import Conflict, Section
from align.recipe.evaluations import AnyEvaluation
from align.recipe.sections import Model


class EvalRecipe(Section):
    """Evaluations of one model: what `align eval` reads and writes back as recipe.yaml."""

    model: Model
    """The model that is measured: a Hub id, a folder, the `model` folder of a run, or a world."""
    name: str | None = Field(default=None, min_length=1)
    """Its name in tables; null takes model_name_or_path."""
    engine: Literal["transformers", "vllm"] = "transformers"
    """What generates: transformers in this process, or vLLM where it is installed."""
    batch_rows: int = Field(default=128, ge=1)
    """Answers drawn at a time; it changes no answer."""
    server: Endpoint | None = None
    """Where the model is served, in place of an engine here."""
    evaluations: tuple[AnyEvaluation, ...] = Field(min_length=1)
    """What is measured: alpaca_eval, arena_hard, win_rate, tasks."""

    def conflicts(self) -> Iterator[Conflict]:  # noqa: D102
        if self.server is not None and self.engine != "transformers":
            yield "engine", "the model is behind a server; take one of the two out"


EVAL_PLAIN = ("evaluations", "name", "engine", "batch_rows")
EVAL_SECTIONS = tuple(name for name in EvalRecipe.model_fields if name not in EVAL_PLAIN)
