"""A recipe that measures a model and trains nothing: `align eval`."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from align.node import Conflict, Node
from align.policies.model import Model
from align.recipe.sections import Evaluate
from align.servers.endpoint import Endpoint


class EvalRecipe(Node):
    """Evaluations of one model: what `align eval` reads and writes back as recipe.yaml."""

    model: Model
    """The model that is measured: a Hub id, a folder, the `model` folder of a run, or a world."""
    name: str | None = Field(default=None, min_length=1)
    """Its name in tables; null takes model_name_or_path."""
    engine: str = Field(default="transformers", min_length=1)
    """What generates: transformers in this process, vllm where it is installed, or a policy of
    one's own."""
    batch_rows: int = Field(default=128, ge=1)
    """Answers drawn at a time; it changes no answer."""
    server: Endpoint | None = None
    """Where the model is served, in place of an engine here."""
    evaluate: Evaluate
    """What is measured: alpaca_eval, arena_hard, win_rate, tasks, and what else a suite holds."""

    def conflicts(self) -> Iterator[Conflict]:  # noqa: D102
        if self.server is not None and self.engine != "transformers":
            yield "engine", "the model is behind a server; take one of the two out"
        if not self.evaluate.suite:
            yield "evaluate.suite", "is empty; name what is measured, such as sums"
        if self.evaluate.needs_pairs:
            yield (
                "evaluate.suite",
                f"{self.evaluate.pair_readers[0]} needs held-out pairs, which a recipe of "
                "evaluations alone has not; take it out, or measure it by `align train`",
            )


EVAL_PLAIN = ("name", "engine", "batch_rows")
EVAL_SECTIONS = tuple(name for name in EvalRecipe.model_fields if name not in EVAL_PLAIN)
