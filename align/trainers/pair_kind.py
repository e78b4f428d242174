# pyright: basic
"""A row that is a pair: one prompt, a chosen and a rejected completion, one loss."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from align.forest import Pack
from align.forest.pack import NOTHING
from align.reference import PAIR_SCORES, SCORED_COLUMNS
from align.tokens.vision.columns import sides_in
from align.trainers.metrics import Judged, RowValues
from align.trainers.row_kind import Row, RowKind, of_scored, padded
from align.types import PAIR_KINDS, Logps, ObjectiveOutput, Pair, PairInputs

T = TypeVar("T")

SCALARS = ("chosen_score", "rejected_score", "preference")
PAIR_KIND = "pair_kind"
TOKEN_WEIGHTS = ("chosen_token_weight", "rejected_token_weight")


class PairKind(RowKind[Pair[Logps]]):
    """Columns `prompt_ids`, `chosen_ids`, `rejected_ids`; in a pass all chosen come first."""

    noun = "pair"
    compared = "margin"
    ids = SCORED_COLUMNS
    scores = PAIR_SCORES
    columns_of = {  # noqa: RUF012 - a class's constant, never changed
        "score": ("chosen_score", "rejected_score"),
        "preference": ("preference",),
        "token_weight": TOKEN_WEIGHTS,
        PAIR_KIND: (PAIR_KIND,),
    }
    # Which kind a pair is, is provenance to every objective but one.
    provenance = frozenset({PAIR_KIND})

    def completions(self, row: Row) -> list[Sequence[int]]:
        """The chosen and the rejected one."""
        return [row["chosen_ids"], row["rejected_ids"]]

    def losses(self, row: Row) -> int:
        """One."""
        del row
        return 1

    def in_order(self, units: Sequence[Sequence[T]]) -> list[T]:
        """All chosen, then all rejected."""
        return [unit[side] for side in (0, 1) for unit in units]

    def shown(self, row: Row) -> Sequence[Any]:
        """The pictures of either side."""
        return sides_in(row)

    def columns(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Scalars [b], token weights and role log-probs [b, T] per side in float32, kinds [b]."""
        present = rows[0].keys()
        columns: dict[str, Tensor] = {}
        for name in SCALARS:
            if name in present:
                columns[name] = torch.tensor([row[name] for row in rows], dtype=torch.float32)
        if PAIR_KIND in present:
            columns[PAIR_KIND] = torch.tensor([PAIR_KINDS.index(row[PAIR_KIND]) for row in rows])
        for name in TOKEN_WEIGHTS:
            if name in present:
                columns[name] = padded([of_scored(row, row[name]) for row in rows])
        for name in self.role_columns:
            if name in present:
                columns[name] = padded([row[name] for row in rows])
        return columns

    def logps(
        self, pack: Pack, edge: Tensor, beside: Mapping[str, Tensor] = NOTHING
    ) -> Pair[Logps]:
        """Those of the chosen rows and of the rejected rows."""
        pairs = len(pack.lengths) // 2
        return Pair(pack.rows(0, pairs, edge, beside), pack.rows(pairs, 2 * pairs, edge, beside))

    def stored(self, role: str, part: Mapping[str, Any], policy: Pair[Logps]) -> Pair[Logps]:
        """Under the policy's masks."""
        chosen, rejected = self.scores.of(role)
        return Pair(
            Logps(part[chosen], policy.chosen.mask), Logps(part[rejected], policy.rejected.mask)
        )

    def sides(self, logps: Pair[Logps]) -> tuple[Logps, ...]:
        """Chosen and rejected."""
        return logps.chosen, logps.rejected

    def cells(self, logps: Pair[Logps], sizes: Sequence[int]) -> Iterator[tuple[Any, ...]]:
        """One array per side."""
        for b in range(len(sizes)):
            yield tuple(
                side.token[b][side.mask[b]].float().cpu().numpy() for side in self.sides(logps)
            )

    def gap(self, first: Pair[Logps], second: Pair[Logps]) -> Tensor:
        """Difference of the log-ratios of the two sides, [b]."""
        return (first.chosen.total() - second.chosen.total()) - (
            first.rejected.total() - second.rejected.total()
        )

    def inputs(
        self,
        policy: Pair[Logps],
        part: Mapping[str, Any],
        frozen: Mapping[str, Pair[Logps]],
        read: Collection[str],
    ) -> PairInputs:
        """One row of tensors per pair."""
        optional: dict[str, Any] = {}
        for field in ("score", "token_weight"):
            names = self.columns_of[field]
            if names[0] in read:
                optional[field] = Pair(*(part[name] for name in names))
        for name in ("preference", PAIR_KIND):
            if name in read:
                optional[name] = part[name]
        return PairInputs(policy=policy, **frozen, **optional)

    def values(
        self,
        result: ObjectiveOutput,
        policy: Pair[Logps],
        statistics: Mapping[str, Tensor],
        frozen: Pair[Logps] | None,
        part: Mapping[str, Any],
    ) -> RowValues:
        """Under TRL's names, with `logratios/chosen` and `logratios/rejected` [nats] as our own.

        Unlike log-probs those start at 0 and do not move with the batch.
        """
        del part
        return row_values(result, policy, statistics, frozen)

    def judged(self, result: ObjectiveOutput, part: Mapping[str, Any]) -> Judged:
        """Rewards of chosen and rejected, [b, 2], and the place of the preferred side, 0."""
        del part
        rewards = torch.stack([result.reward.chosen, result.reward.rejected], dim=1)
        return Judged(rewards, torch.zeros(len(rewards), dtype=torch.int64, device=rewards.device))


PAIRS = PairKind()


def row_values(
    result: ObjectiveOutput,
    policy: Pair[Logps],
    statistics: Mapping[str, Tensor],
    frozen: Pair[Logps] | None = None,
) -> RowValues:
    """Numerator and denominator of each metric for each pair, [B] each.

    Args:
        result: what the objective said about the pairs.
        policy: the policy's log-probs.
        statistics: what `statistics_of` found.
        frozen: log-probs of the policy that this one is compared with; None leaves its metrics out.
    """
    one = torch.ones_like(result.loss.detach())
    chosen, rejected = result.reward.chosen, result.reward.rejected
    per_pair = {
        "loss": result.loss.detach(),
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": (chosen > rejected).double(),
        "rewards/ties": (chosen == rejected).double(),
        "logps/chosen": policy.chosen.total().detach(),
        "logps/rejected": policy.rejected.total().detach(),
        **result.metrics,
    }
    if frozen is not None:
        for side in ("chosen", "rejected"):
            ours, theirs = getattr(policy, side), getattr(frozen, side)
            per_pair[f"logratios/{side}"] = ours.total().detach() - theirs.total()
    rows: dict[str, tuple[Tensor, Tensor]] = {
        name: (value, one) for name, value in per_pair.items()
    }
    if statistics:
        tokens = Pair(policy.chosen.lengths(), policy.rejected.lengths())
        entropy, logits, is_top1 = (
            Pair(*statistics[name].chunk(2)) for name in ("entropy", "mean_logits", "is_top1")
        )
        rows["logits/chosen"] = (logits.chosen, tokens.chosen)
        rows["logits/rejected"] = (logits.rejected, tokens.rejected)
        rows["entropy"] = (entropy.chosen + entropy.rejected, tokens.chosen + tokens.rejected)
        rows["mean_token_accuracy"] = (is_top1.chosen, tokens.chosen)
    return rows
