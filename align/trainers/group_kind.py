# pyright: basic
"""A row that is a group: one prompt with K completions, a loss for each of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, TypeVar

import torch
from datasets import List, Value
from torch import Tensor

from align.forest import Pack
from align.forest.pack import NOTHING
from align.reference import ScoreColumns
from align.trainers.metrics import Judged, RowValues
from align.trainers.row_kind import Row, RowKind, of_scored, padded
from align.types import GroupInputs, GroupOutput, Logps

T = TypeVar("T")

# What is scored behind a prompt -> the column of a role's log-probs of it.
LEAVES = {"completions": "{role}_logps", "mismatched": "{role}_mismatched_logps"}
# The field of `GroupInputs` -> the column, a list of one thing per completion.
SCALARS = {"score": "scores", "advantage": "advantages"}
LABEL = "labels"
PER_TOKEN = {"token_advantage": "token_advantages", "token_weight": "token_weights"}
FIELDS = SCALARS | {"label": LABEL} | PER_TOKEN


class GroupKind(RowKind[Logps]):
    """Columns `prompt_ids` and, for each kind of leaf, `<leaf>_ids`: a list of K lists.

    Args:
        leaves: what is scored behind a prompt: `completions`, `mismatched` (those of another
            prompt, from which KTO estimates its KL term), or both.
    """

    noun = "group"
    compared = "log-ratio"
    columns_of = {field: (column,) for field, column in FIELDS.items()}  # noqa: RUF012 - never changed

    def __init__(self, *leaves: str) -> None:
        self._ids = tuple(f"{leaf}_ids" for leaf in leaves)
        self.ids = ("prompt_ids", *self._ids)
        self.scores = ScoreColumns(
            stored=leaves,
            beside=tuple(LEAVES[leaf] for leaf in leaves),
            feature=List(List(Value("float32"))),
        )

    def completions(self, row: Row) -> list[Sequence[int]]:
        """All K, and all K of the next kind of leaf."""
        return [ids for name in self._ids for ids in row[name]]

    def losses(self, row: Row) -> int:
        """K."""
        return len(row[self._ids[0]])

    def in_order(self, units: Sequence[Sequence[T]]) -> list[T]:
        """Row by row."""
        return list(chain.from_iterable(units))

    def shown(self, row: Row) -> Sequence[Any]:
        """Groups are of text."""
        raise NotImplementedError

    def columns(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Of all N completions: [N] float32, `labels` [N] bool, per-token ones [N, T] float32."""
        present = rows[0].keys()
        columns: dict[str, Tensor] = {}
        for name in SCALARS.values():
            if name in present:
                columns[name] = torch.tensor(_flat(rows, name), dtype=torch.float32)
        if LABEL in present:
            columns[LABEL] = torch.tensor(_flat(rows, LABEL), dtype=torch.bool)
        for name in PER_TOKEN.values():
            if name in present:
                each = [of_scored(row, values) for row in rows for values in row[name]]
                columns[name] = padded(each)
        for name in self.role_columns:
            if name in present:
                columns[name] = padded(_flat(rows, name))
        return columns

    def logps(self, pack: Pack, edge: Tensor, beside: Mapping[str, Tensor] = NOTHING) -> Logps:
        """Those of all rows of the pack."""
        return pack.rows(0, len(pack.lengths), edge, beside)

    def stored(self, role: str, part: Mapping[str, Any], policy: Logps) -> Logps:
        """Under the policy's mask."""
        (column,) = self.scores.of(role)
        return Logps(part[column], policy.mask)

    def sides(self, logps: Logps) -> tuple[Logps, ...]:
        """They have no sides."""
        return (logps,)

    def cells(self, logps: Logps, sizes: Sequence[int]) -> Iterator[tuple[Any, ...]]:
        """One list of K arrays for each kind of leaf."""
        rows = iter(
            [
                values[kept].float().cpu().numpy()
                for values, kept in zip(logps.token, logps.mask, strict=True)
            ]
        )
        for size in sizes:
            yield tuple([next(rows) for _ in range(size)] for _ in self._ids)

    def gap(self, first: Logps, second: Logps) -> Tensor:
        """Log-ratio of each completion, [N]."""
        return first.total() - second.total()

    def inputs(
        self,
        policy: Logps,
        part: Mapping[str, Any],
        frozen: Mapping[str, Logps],
        read: Collection[str],
    ) -> GroupInputs:
        """One row of tensors per completion; a row of the data set is a group."""
        optional = {field: part[column] for field, column in FIELDS.items() if column in read}
        return GroupInputs(
            policy=policy, group=_groups(part, len(policy.mask)), **frozen, **optional
        )

    def values(
        self,
        result: GroupOutput,
        policy: Logps,
        statistics: Mapping[str, Tensor],
        frozen: Logps | None,
        part: Mapping[str, Any],
    ) -> RowValues:
        """Sums over each group's completions, under TRL's names where they have labels.

        `rewards/accuracies` is over the two completions of a group whose scores (or labels)
        differ: how often the reward orders them as these do.
        """
        sizes: Tensor = part["sizes"]
        rows = _groups(part, len(policy.mask))

        def of_rows(values: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
            summed = (torch.zeros(len(sizes), dtype=torch.float64, device=rows.device),) * 2
            values, counted = values.detach().double(), counted.double()
            return summed[0].index_add(0, rows, values), summed[1].index_add(0, rows, counted)

        one = torch.ones(len(rows), device=rows.device)
        found = {
            name: of_rows(values, one)
            for name, values in {"loss": result.loss, **result.metrics}.items()
        }
        tokens = policy.lengths()
        per_completion = {"rewards": result.reward, "logps": policy.total()}
        if frozen is not None:
            per_completion["logratios"] = policy.total() - frozen.total()
        label = part.get(LABEL)
        parts = {"mean": one.bool()} if label is None else {"chosen": label, "rejected": ~label}
        for side, here in parts.items():
            for name, values in per_completion.items():
                found[f"{name}/{side}"] = of_rows(values * here, here)
            if statistics:
                logits = statistics["mean_logits"]
                found[f"logits/{side}"] = of_rows(logits * here, tokens * here)
        if statistics:
            found["entropy"] = of_rows(statistics["entropy"], tokens)
            good = one.bool() if label is None else label
            found["mean_token_accuracy"] = of_rows(statistics["is_top1"] * good, tokens * good)
        better = part.get("scores", label)
        if better is not None:
            together = rows[:, None] == rows
            differ = together & (better[:, None].double() > better)
            right = differ & (result.reward[:, None] > result.reward)
            found["rewards/accuracies"] = of_rows(right.sum(dim=1), differ.sum(dim=1))
        return found

    def judged(self, result: GroupOutput, part: Mapping[str, Any]) -> Judged:
        """Rewards [N], and the labels as 0 and 1; the scores where there are no labels."""
        label = part.get(LABEL)
        truth = part.get(SCALARS["score"]) if label is None else label.to(torch.int64)
        return Judged(result.reward, truth)

    def derived(self, means: dict[str, float]) -> dict[str, float]:
        """With `rewards/margins`, as TRL has it: the difference of the two means."""
        chosen, rejected = means.get("rewards/chosen"), means.get("rewards/rejected")
        if chosen is None or rejected is None:
            return means
        return means | {"rewards/margins": chosen - rejected}


GROUPS = GroupKind("completions")
MISMATCHED = GroupKind("mismatched")
BOTH = GroupKind("completions", "mismatched")


def _flat(rows: Sequence[Row], name: str) -> list[Any]:
    return [value for row in rows for value in row[name]]


def _groups(part: Mapping[str, Any], completions: int) -> Tensor:
    # By place: a row that accelerate repeats in a batch is another group, which counts for nothing.
    sizes: Tensor = part["sizes"]
    numbers = torch.arange(len(sizes), device=sizes.device)
    return numbers.repeat_interleave(sizes, output_size=completions)
