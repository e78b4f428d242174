# pyright: basic
"""What one row of a data set is to the trainer: a pair of completions, or a group of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import torch
from datasets import Dataset
from torch import Tensor

from align.forest import Pack, TokenRow
from align.forest.pack import NOTHING
from align.reference import ScoreColumns
from align.trainers.metrics import Judged, RowValues
from align.types import ROLES, Logps

X = TypeVar("X")
T = TypeVar("T")

Row = Mapping[str, Any]


class RowKind(ABC, Generic[X]):
    """A kind of row; X is what log-probs of several rows look like to its objectives.

    A row is never torn apart: all of its completions are in one forward pass.

    Attributes:
        noun: what messages call a row.
        ids: columns of token ids, the prompt's first.
        scores: the columns of a role's log-probs.
        columns_of: what an objective may ask for beside log-probs -> the columns that carry it.
        provenance: columns that may go unread without a word about it.
        compared: what the start-up probe measures, which is 0 between equal policies.
    """

    noun: ClassVar[str]
    ids: tuple[str, ...]
    scores: ScoreColumns
    columns_of: ClassVar[Mapping[str, tuple[str, ...]]]
    provenance: ClassVar[frozenset[str]] = frozenset()
    compared: ClassVar[str]

    @property
    def role_columns(self) -> tuple[str, ...]:
        """The columns of all roles' log-probs."""
        return tuple(name for role in ROLES for name in self.scores.of(role))

    @property
    def read_columns(self) -> tuple[str, ...]:
        """Every column of a tokenised row that a batch is made of."""
        given = (name for names in self.columns_of.values() for name in names)
        return tuple(dict.fromkeys((*self.ids, *given, *self.role_columns)))

    @abstractmethod
    def completions(self, row: Row) -> list[Sequence[int]]:
        """Token ids of each completion that is scored."""

    @abstractmethod
    def losses(self, row: Row) -> int:
        """How many numbers an objective's loss has for a row."""

    @abstractmethod
    def in_order(self, units: Sequence[Sequence[T]]) -> list[T]:
        """One thing per completion, in a pass's order; `units` has those of each row."""

    @abstractmethod
    def shown(self, row: Row) -> Sequence[Any]:
        """The pictures of each completion's prompt."""

    @abstractmethod
    def columns(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """The other columns that b rows carry, as a pass over them reads them."""

    @abstractmethod
    def logps(self, pack: Pack, edge: Tensor, beside: Mapping[str, Tensor] = NOTHING) -> X:
        """Values at a pack's edges, [E], as those of its rows; `beside` as in `Pack.rows`."""

    @abstractmethod
    def stored(self, role: str, part: Mapping[str, Any], policy: X) -> X:
        """A role's log-probs from the columns of a part, beside the policy's."""

    @abstractmethod
    def sides(self, logps: X) -> tuple[Logps, ...]:
        """The same as plain log-probs, all of them."""

    @abstractmethod
    def cells(self, logps: X, sizes: Sequence[int]) -> Iterator[tuple[Any, ...]]:
        """What `scores` keeps of each row, float32; `sizes` are the rows' `losses`."""

    @abstractmethod
    def gap(self, first: X, second: X) -> Tensor:
        """Nats by which two policies differ in what objectives compare (`compared`)."""

    @abstractmethod
    def inputs(
        self, policy: X, part: Mapping[str, Any], frozen: Mapping[str, X], read: Collection[str]
    ) -> Any:
        """What an objective reads of a part; `read` names the columns that it is given."""

    @abstractmethod
    def values(
        self,
        result: Any,
        policy: X,
        statistics: Mapping[str, Tensor],
        frozen: X | None,
        part: Mapping[str, Any],
    ) -> RowValues:
        """Numerator and denominator of each metric for each of b rows, [b] each.

        Args:
            result: what the objective said.
            policy: the policy's log-probs.
            statistics: what `statistics_of` found.
            frozen: log-probs of the policy that this one is compared with, where there is one.
            part: whose rows they are.
        """

    @abstractmethod
    def judged(self, result: Any, part: Mapping[str, Any]) -> Judged:
        """What `compute_metrics` is given of a part: rewards, and what they are compared with."""

    def derived(self, means: dict[str, float]) -> dict[str, float]:
        """Metrics with those that follow from them."""
        return means

    def unit(self, row: Row) -> list[TokenRow]:
        """A row's sequences, which are scored in one pass."""
        return [TokenRow(row["prompt_ids"], ids) for ids in self.completions(row)]

    def tokens(self, row: Row) -> int:
        """Tokens of all sequences, shared ones counted for each."""
        return sum(len(sequence) for sequence in self.unit(row))

    def longest(self, row: Row) -> int:
        """Tokens of the longest sequence."""
        return max(len(sequence) for sequence in self.unit(row))

    def read(self, row: Row) -> int:
        """Tokens of the prompt and of all completions."""
        return len(row["prompt_ids"]) + sum(len(ids) for ids in self.completions(row))

    def id_rows(self, dataset: Dataset) -> Iterator[Row]:
        """The token ids of each row."""
        columns: list[Any] = [dataset[name] for name in self.ids]
        for values in zip(*columns, strict=True):
            yield dict(zip(self.ids, values, strict=True))


def of_scored(row: Row, values: Sequence[float]) -> Sequence[float]:
    """Numbers of a completion's tokens without the first, where the row has no prompt.

    Nothing predicts that token, so it has no log-prob.
    """
    return values if row["prompt_ids"] else values[1:]


def padded(lists: Sequence[Sequence[float]]) -> Tensor:
    """[N, T] float32, zeros behind the shorter ones."""
    values = [torch.tensor(one, dtype=torch.float32) for one in lists]
    return torch.nn.utils.rnn.pad_sequence(values, batch_first=True)
