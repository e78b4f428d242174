"""Sum: a weighted sum of objectives, as one objective.

TRL's `loss_type: [...]` with `loss_weights`; Mixed Preference Optimization (Wang et al. 2024,
arXiv:2411.10442) is one of three terms. Unlike TRL's, every part has its own hyper-parameters. The
`pair_weight` of a part is TRL's `use_weighting` (arXiv:2406.11827, eq. 2) for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Annotated, Any, Literal, TypeAlias

import torch
from pydantic import (
    BaseModel,
    Field,
    PlainSerializer,
    PlainValidator,
    SerializationInfo,
    TypeAdapter,
    field_validator,
)
from torch import Tensor

from align.objectives.base import Formula, Objective, detached
from align.objectives.coupled import Carried, Coupled
from align.objectives.wpo import pair_weights, read_by_weights
from align.types import ObjectiveOutput, PairInputs
from align.unions import Named


class Part(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """One term of a sum."""

    weight: float = Field(
        default=1.0, gt=0, strict=True, description="What the term is multiplied by."
    )
    pair_weight: Literal["one", "wpo"] = Field(
        default="one",
        description="wpo: each pair's loss counts by WPO's aligned weights, too, for any formula.",
    )
    objective: Annotated[Objective, Named("objective")] = Field(
        description="A formula of its own, such as {name: dpo, beta: 0.1}."
    )

    @field_validator("objective", mode="after")
    @classmethod
    def _over_pairs(cls, objective: Formula) -> Formula:
        if not isinstance(objective, Objective):
            raise ValueError(f"`{objective.name}` is a loss over groups; a sum is one over pairs")
        return objective


def _terms(given: Any) -> tuple[Part, ...]:
    # Read by an adapter of its own: a recipe is read strictly, and there a list is no tuple.
    terms = _adapter.validate_python(given)
    if not terms:
        raise ValueError("a sum has at least 1 term")
    return terms


def _written(terms: tuple[Part, ...], info: SerializationInfo) -> list[dict[str, Any]]:
    return [term.model_dump(mode=info.mode) for term in terms]


_adapter: TypeAdapter[tuple[Part, ...]] = TypeAdapter(tuple[Part, ...])
Terms: TypeAlias = Annotated[
    tuple[Part, ...],
    PlainValidator(_terms, json_schema_input_type=tuple[Part, ...]),
    PlainSerializer(_written),
]


class Sum(Coupled, frozen=True):
    r"""L = sum_i weight_i w_i L_i,   w_i = 1, or WPO's constant weight of the pair.

    Every part is given what it declares and nothing else: a `preference` softens the parts that
    accept it and leaves the others as they are. Parts that look at their whole optimizer step do so
    here too. Reward: sum_i weight_i r_i, in a mixture of the parts' units.
    """

    name: Literal["sum"] = "sum"

    of: Terms = Field(
        description="The terms: a list of {weight: 0.8, objective: {name: dpo, ...}}."
    )

    @property
    def needs(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride] - hangs on the parts
        """What any part needs."""
        return frozenset[str]().union(*(part.objective.needs for part in self.of))

    @property
    def accepts(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride] - hangs on the parts
        """What any part accepts and none needs."""
        return frozenset[str]().union(*(part.objective.accepts for part in self.of)) - self.needs

    @property
    def vocabulary(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride] - hangs on the parts
        """What any part needs of it, or its pair weight."""
        read = [part.objective.vocabulary for part in self.of]
        read += [read_by_weights("sampled") for part in self.of if part.pair_weight == "wpo"]
        return frozenset[str]().union(*read)

    @property
    def parts(self) -> tuple[Objective, ...]:
        """The objectives of the terms."""
        return tuple(part.objective for part in self.of)

    @property
    def labels(self) -> tuple[str, ...]:
        """What the metrics of each part begin with: its name, counted where it stands twice."""
        names = [part.objective.name for part in self.of]
        often = Counter(names)
        return tuple(
            name if often[name] == 1 else f"{name}_{names[:i].count(name) + 1}"
            for i, name in enumerate(names)
        )

    @property
    def _coupled(self) -> list[tuple[str, Coupled]]:
        """Labels and objectives of the parts that look beyond a pair."""
        return [
            (label, part)
            for label, part in zip(self.labels, self.parts, strict=True)
            if isinstance(part, Coupled) and part.couples
        ]

    def _columns_of(self, names: Literal["measures", "gives"]) -> dict[str, slice]:
        """Where each coupled part's columns stand, by its label."""
        widths = [len(getattr(part, names)) for _, part in self._coupled]
        ends = list(accumulate(widths))
        return {
            label: slice(end - width, end)
            for (label, _), width, end in zip(self._coupled, widths, ends, strict=True)
        }

    @property
    def couples(self) -> bool:
        """Whether any part looks beyond a pair."""
        return bool(self._coupled)

    @property
    def measures(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride] - hangs on the parts
        """What any part measures, under its name."""
        return tuple(f"{label}/{name}" for label, one in self._coupled for name in one.measures)

    @property
    def gives(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride] - hangs on the parts
        """What any part gives, under its name."""
        return tuple(f"{label}/{name}" for label, one in self._coupled for name in one.gives)

    def measure(self, inputs: PairInputs) -> Tensor:
        """[B, K]: what the parts measure, side by side."""
        found = [one.measured(_restricted(inputs, one)) for _, one in self._coupled]
        return torch.cat(found, dim=1)

    def couple(self, measured: Tensor, carried: Carried) -> tuple[Tensor, dict[str, float]]:
        """[S, G]: what the parts give, side by side; what runs on stands under the part's name."""
        columns, given, ahead = self._columns_of("measures"), list[Tensor](), dict[str, float]()
        for label, one in self._coupled:
            share, of_part = one.couple(measured[:, columns[label]], _under(label, carried))
            given.append(share)
            ahead |= {f"{label}/{name}": value for name, value in of_part.items()}
        return torch.cat(given, dim=1), ahead

    def couple_held_out(self, measured: Tensor, carried: Carried) -> Tensor:
        """[S, G]: what the parts give in an evaluation, side by side."""
        columns = self._columns_of("measures")
        given = [
            one.couple_held_out(measured[:, columns[label]], _under(label, carried))
            for label, one in self._coupled
        ]
        return torch.cat(given, dim=1)

    def __call__(self, inputs: PairInputs) -> ObjectiveOutput:
        """Loss and reward of B pairs, and `<part>/loss` and the metrics of every part."""
        inputs = self.checked(inputs)
        shares: dict[str, Tensor] = {}
        if inputs.coupling is not None:
            columns = self._columns_of("gives")
            shares = {label: inputs.coupling[:, own] for label, own in columns.items()}
        found = [
            part.objective(replace(_restricted(inputs, part.objective), coupling=shares.get(label)))
            for label, part in zip(self.labels, self.of, strict=True)
        ]
        weights = [part.weight for part in self.of]
        metrics: dict[str, Tensor] = {}
        losses = [output.loss for output in found]
        if any(part.pair_weight == "wpo" for part in self.of):
            own = pair_weights(inputs.policy, "sampled")
            metrics |= {"weights/chosen": own.chosen, "weights/rejected": own.rejected}
            losses = [
                loss if part.pair_weight == "one" else own.chosen * own.rejected * loss
                for part, loss in zip(self.of, losses, strict=True)
            ]
        for label, output in zip(self.labels, found, strict=True):
            metrics[f"{label}/loss"] = output.loss.detach()
            metrics |= {f"{label}/{key}": value for key, value in output.metrics.items()}
        return ObjectiveOutput(
            loss=_weighted(weights, losses),
            reward=detached(
                _weighted(weights, [output.reward.chosen for output in found]),
                _weighted(weights, [output.reward.rejected for output in found]),
            ),
            metrics=metrics,
        )


def _under(label: str, carried: Carried) -> dict[str, float]:
    """What a part carries, under its own names."""
    return {
        name.removeprefix(f"{label}/"): value
        for name, value in carried.items()
        if name.startswith(f"{label}/")
    }


def _weighted(weights: Sequence[float], terms: Sequence[Tensor]) -> Tensor:
    """[B]: the terms' weighted sum."""
    products = [weight * term for weight, term in zip(weights, terms, strict=True)]
    return torch.stack(products).sum(dim=0)


def _restricted(inputs: PairInputs, objective: Objective) -> PairInputs:
    """The inputs without the columns that this part has no form for."""
    read = objective.needs | objective.accepts
    unread = {"preference", "token_weight"} - read
    return replace(inputs, **dict.fromkeys(unread))
