"""What an evaluation is: a node of `evaluate.suite` that measures one model.

A `Measurement` gives numbers with intervals of a model in memory; it is taken before and after
training and in every round. A `Benchmark` leaves files of its own, such as the verdicts of a judge,
and is run on what came out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from align.errors import RecipeError
from align.node import Node

if TYPE_CHECKING:
    from align.estimates import Estimate
    from align.policies.base import Policy
    from align.policies.start import Start
    from align.tokens.tokenized_pair import TokenizedPair


@dataclass(frozen=True)
class Weights:
    """A model in memory.

    Attributes:
        model: the policy, on its device; left as it was found.
        tokenizer: its own; its processor where it reads pictures.
        start: what it is compared with: the policy that the run began with.
    """

    model: Any
    tokenizer: Any
    start: Start

    @property
    def reference(self) -> Any:
        """The start policy's weights, the model itself before training; loaded by who asks first.

        Without an adapter that is a second model in memory.
        """
        return self.start.model


@dataclass(frozen=True)
class Subject:
    """The model that is measured.

    Attributes:
        name: in tables.
        policy: gives it as a writer; loaded by the first who asks.
        weights: gives it as weights in memory; None where it is behind a server.
        held_out: tokenised pairs, none of which was trained on.
        n: questions at most, of evaluations that do not say themselves; None means 1024.
        seed: likewise.
        pairs_at_once: held-out pairs of one forward pass, where `token_budget` is no number.
        token_budget: tokens of one forward pass over them, as in a recipe's `train` section.
    """

    name: str
    policy: Callable[[], Policy]
    weights: Callable[[], Weights] | None
    held_out: Sequence[TokenizedPair]
    n: int | None
    seed: int
    pairs_at_once: int = 8
    token_budget: int | Literal["auto"] | None = None

    def in_memory(self, asked_by: str) -> Weights:
        """The weights.

        Raises:
            RecipeError: the model is behind a server.
        """
        if self.weights is None:
            raise RecipeError(
                f"evaluate.suite: {asked_by} reads the model's log-probs, and the model is behind "
                "a server; take `server` out, or leave this evaluation out."
            )
        return self.weights()


class EvaluationNode(Node):
    """One entry of `evaluate.suite`."""

    run: Any  # a Literal in every child
    """Which evaluation."""

    @property
    def word(self) -> str | None:
        """What stands in the suite for this very value, where a word does."""
        plain = self.model_dump(exclude_defaults=True, exclude={"run"})
        return None if plain else self.run

    def settings(self) -> Any:
        """What its numbers depend on, for a stage's key."""
        return self.word or self.model_dump(mode="json")

    def reads_files(self) -> Sequence[str]:
        """Files that it reads, for the dry run."""
        return ()

    def asks_policy(self) -> bool:
        """Whether the model must answer; else its outputs are read from a file."""
        return True

    def planned(self) -> Sequence[str]:
        """What it would ask, one line each, for the dry run; reads every file that it names.

        Raises:
            AlignError: a file is none of its kind, or lacks something; else the run would end so.
        """
        return ()


class Measurement(EvaluationNode):
    """Numbers of a model in memory, taken before and after."""

    needs_pairs: ClassVar[bool] = False
    """Whether it reads the held-out pairs."""
    reads_start: ClassVar[bool] = False
    """Whether it wants the start policy's weights beside the policy's."""

    @property
    def label(self) -> str:
        """What stands before its metrics' names."""
        return self.run

    def estimates(self, subject: Subject) -> Mapping[str, Estimate]:
        """Metric -> number with its interval; the same for the same subject."""
        raise NotImplementedError


class Benchmark(EvaluationNode):
    """An evaluation with files of its own; running it again asks only what failed."""

    def measure(self, subject: Subject, folder: Path) -> dict[str, Any]:
        """Runs it in `folder`, which is there, and leaves results.json and table.md.

        Returns:
            What results.json holds.

        Raises:
            AlignError: an input does not fit, too much failed, or a server cannot be used.
        """
        raise NotImplementedError
