"""What every objective is: a frozen value; its fields are the hyper-parameters, its call the maths.

A file of this room holds one formula: a child of `Objective` that states `name`, `needs`, `accepts`
and the fields, and whose `__call__` opens with `inputs = self.checked(inputs)`. After that line
nothing but the policy carries gradient, and what the class did not declare is None.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, TypeVar, cast, get_args

from pydantic import BaseModel, model_validator
from torch import Tensor

from align.objectives.checks import check_inputs
from align.types import Logps, ObjectiveOutput, Pair, PairInputs, at_least_float32

X = TypeVar("X")


class Formula(
    BaseModel, frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
):
    """What losses over pairs and losses over groups have in common: a name, and what they read.

    Children repeat `frozen=True`, which type checkers ask for.

    Attributes:
        name: what recipes call it.
        needs: optional fields of the inputs that the formula cannot do without. A class whose
            needs or accepts depend on its fields makes them a property.
        accepts: optional fields that it honours when they are there.
        scores_are_win_rates: where `score` is read, it must lie in [0, 1].
        vocabulary: which of the policy's `OF_VOCABULARY` fields it cannot do without: `collision`,
            `divergence`. They are computed for formulas that say so, and for no others.
    """

    name: str
    needs: ClassVar[frozenset[str]]
    accepts: ClassVar[frozenset[str]] = frozenset()
    scores_are_win_rates: ClassVar[bool] = False
    vocabulary: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _no_boolean_for_a_number(cls, node: Any) -> Any:
        for key, field in cls.model_fields.items():
            kinds = (field.annotation, *get_args(field.annotation))
            if float in kinds and _holds_boolean(node, key):
                raise ValueError(f"`{key}` is a boolean, but must be a number")
        return node


class Objective(Formula, frozen=True):
    """A loss over preference pairs."""

    @abstractmethod
    def __call__(self, inputs: PairInputs) -> ObjectiveOutput:
        """The unreduced loss of B pairs, in float32 or wider.

        Raises:
            RecipeError: a needed role is missing, or what is needed of the whole vocabulary.
            DataError: a needed column is missing, one that is not accepted is there, or a shape or
                value of what the formula reads is not what `PairInputs` says.
        """

    def checked(self, inputs: PairInputs) -> PairInputs:
        """What the formula reads of `inputs`: checked, detached but for the policy; the rest None.

        Raises:
            RecipeError, DataError: as `__call__` says.
        """
        return check_inputs(
            inputs,
            self.name,
            self.needs,
            self.accepts,
            win_rates=self.scores_are_win_rates,
            vocabulary=self.vocabulary,
        )


def logratios(
    policy: Pair[Logps], frozen: Pair[Logps] | None, token_weight: Pair[Tensor] | None = None
) -> Pair[Tensor]:
    """Log-ratio of each side, log pi(y|x) - log pi_frozen(y|x).

    Args:
        policy: the policy that is trained.
        frozen: the role it is compared with, over the same tokens; None only where the formula
            did not declare it.
        token_weight: [B, T] each, weighs every token's log-ratio; None means all ones.

    Returns:
        [B] nats each, summed over completion tokens.
    """
    frozen = present(frozen)
    weight = token_weight or Pair(None, None)
    return Pair(
        logratio(policy.chosen, frozen.chosen, weight.chosen),
        logratio(policy.rejected, frozen.rejected, weight.rejected),
    )


def logratio(policy: Logps, frozen: Logps, weight: Tensor | None = None) -> Tensor:
    """[B] nats: log pi(y|x) - log pi_frozen(y|x), tokens weighed by `weight` [B, T]."""
    # Per token before the sum: equal policies give exactly 0, and long answers lose no digits.
    logratio = at_least_float32(policy.token) - at_least_float32(frozen.token)
    if weight is not None:
        # A masked token's gradient is its weight times 0, and inf * 0 is nan: so zeros there.
        logratio = logratio * weight.masked_fill(~policy.mask, 0.0)
    return Logps(logratio, policy.mask).total()


def weighted_sum(a: float, first: Pair[Tensor], b: float, second: Pair[Tensor]) -> Pair[Tensor]:
    """[B] each: a first + b second, side by side."""
    return Pair(
        a * first.chosen + b * second.chosen,
        a * first.rejected + b * second.rejected,
    )


def detached(chosen: Tensor, rejected: Tensor) -> Pair[Tensor]:
    """Both sides without gradient."""
    return Pair(chosen.detach(), rejected.detach())


def present(field: X | None) -> X:
    """A field that `needs` declares, and that the call has therefore found to be there."""
    assert field is not None, "the formula reads a field that its `needs` does not declare"
    return field


def _holds_boolean(node: object, key: str) -> bool:
    # pydantic would take `beta: true` for 1.0
    return isinstance(node, dict) and isinstance(cast("dict[str, object]", node).get(key), bool)
