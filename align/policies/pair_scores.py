"""Log-probs of pairs that are only looked at: passes over shared prefixes, each pair once."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor

from align.errors import MachineError
from align.forest import PADDED, Backend, TokenRow
from align.forest.attention import attending
from align.forest.budget import free_memory, largest_budget, peak_of
from align.forest.logps import choice_for, edge_head
from align.forest.model import read_pack
from align.forest.padded import Pictures, own_edges
from align.policies.loaded import evaluating
from align.progress import Phase, progress
from align.types import Logps, Pair

if TYPE_CHECKING:
    from align.forest import Pack

logger = logging.getLogger("align")

Rows: TypeAlias = Pair[list[TokenRow]]
TokenBudget: TypeAlias = int | Literal["auto"] | None


def backend_for(model: Any, rows: Rows) -> Backend:
    """How a model's pairs are laid out; why they are padded, where they are, is said once."""
    with edge_head(model), evaluating(model):
        choice = choice_for(model, [*rows.chosen, *rows.rejected])
    if choice.backend is PADDED:
        _warn(choice.reason)
    return choice.backend


@cache
def _warn(reason: str) -> None:
    logger.warning("Log-probs are computed by %s.", reason)


def score_pairs(
    model: Any,
    rows: Rows,
    backend: Backend,
    *,
    pairs_at_once: int,
    token_budget: TokenBudget,
    pictures: Pictures | None = None,
    title: str = "score pairs",
) -> Pair[Logps]:
    """Log-probs of both sides of every pair, without gradient and without dropout.

    The model is given back as it came.

    Args:
        model: on its device.
        rows: the two sides, in the same order.
        backend: of `backend_for`.
        pairs_at_once: of one forward pass, where `token_budget` gives no number.
        token_budget: tokens of one forward pass at most; `auto` takes as many as fit, up to those
            of the `pairs_at_once` longest pairs.
        pictures: for a vision-language model, (numbers among the chosen rows and then the rejected
            ones, their token ids) -> what the model reads beside them.
        title: of what is shown while it lasts.

    Returns:
        [N, T] nats each, float32 (float64 for a float64 model), on the CPU, in the order of `rows`.

    Raises:
        ValueError: a row has no completion token, or no prompt token to predict the first one from.
        MachineError: not even the longest pair fits into memory.
    """
    for side, of_side in (("chosen", rows.chosen), ("rejected", rows.rejected)):
        for r, row in enumerate(of_side):
            if not row.prompt_ids or not row.completion_ids:
                raise ValueError(
                    f"pair {r} cannot be scored: {side} has no prompt or no completion token."
                )
    with (
        edge_head(model),
        evaluating(model),
        progress(title, len(rows.chosen), "pairs") as advance,
    ):
        scoring = _Scoring(model, rows, backend, pictures, advance)
        if token_budget == "auto":
            scoring.run_all(scoring.found_budget(pairs_at_once))
        elif token_budget is None:
            for pairs in scoring.groups(pairs_at_once):
                scoring.run(pairs)
        else:
            scoring.run_all(token_budget)
        return scoring.found


class _Scoring:
    """Pairs that wait for their forward pass, and the log-probs of the others."""

    def __init__(
        self, model: Any, rows: Rows, backend: Backend, pictures: Pictures | None, advance: Phase
    ) -> None:
        self._model = model
        self._rows = rows
        self._backend = backend
        self._pictures = pictures
        self._advance = advance
        self._waiting = list(range(len(rows.chosen)))
        dtype = torch.float64 if model.dtype == torch.float64 else torch.float32
        self.found = Pair(_empty(rows.chosen, dtype), _empty(rows.rejected, dtype))

    def groups(self, size: int) -> Iterator[list[int]]:
        """The pairs, those side by side that share a prompt or, padded, are of one length."""
        ordered = sorted(self._waiting, key=self._place)
        return (ordered[at : at + size] for at in range(0, len(ordered), size))

    def run_all(self, token_budget: int) -> None:
        """Every pair that waits, in passes of at most so many tokens."""
        for pairs in self._cut(token_budget):
            self.run(pairs)

    def found_budget(self, pairs_at_once: int) -> int:
        """Tokens that fit into one pass; what is found out by passes is not computed again."""
        longest = sorted(self._waiting, key=lambda p: -self._tokens([p]))
        smallest, largest = (self._lay_out(longest[:n]).computed_tokens for n in (1, pairs_at_once))
        free = free_memory(self._model.device)
        found = largest_budget(self._tried, free, smallest, largest)
        if found is None:
            raise MachineError(
                f"The longest held-out pair ({smallest} tokens) does not fit into the "
                f"{free / 2**30:.1f} GiB that are free. Lower data.max_length, or free memory."
            )
        return found

    def run(self, pairs: Sequence[int]) -> None:
        """One forward pass; its pairs wait no longer."""
        pack = self._lay_out(pairs).to(self._model.device)
        edge = self._edges(pack, pairs)
        pack = pack.to(edge.device)
        for into, first in ((self.found.chosen, 0), (self.found.rejected, len(pairs))):
            logps = pack.rows(first, first + len(pairs), edge)
            width = logps.token.shape[1]
            into.token[pairs, :width] = logps.token.cpu().to(into.token.dtype)
            into.mask[pairs, :width] = logps.mask.cpu()
        done = set(pairs)
        self._waiting = [p for p in self._waiting if p not in done]
        self._advance(len(pairs), tokens=self._tokens(pairs))

    def _edges(self, pack: Pack, pairs: Sequence[int]) -> Tensor:
        if self._backend is not PADDED:
            with attending(self._model, pack.implementation):
                edge = read_pack(self._model, pack).logps
            assert edge is not None
            return edge
        # A model may be padded because its head is not what its config says: so by its own.
        numbers = [*pairs, *(p + len(self._rows.chosen) for p in pairs)]
        shown = {} if self._pictures is None else self._pictures(numbers, pack.input_ids)
        return own_edges(self._model, pack, shown)

    def _tried(self, token_budget: int) -> int | None:
        """Bytes that a pass of so many tokens would take, by one that was made; 0 without pairs."""
        passes = self._cut(token_budget)
        if not passes:
            return 0
        tokens = self._lay_out(passes[0]).computed_tokens
        peak = peak_of(lambda: self.run(passes[0]), self._model.device)
        return None if peak is None else peak * token_budget // tokens

    def _cut(self, token_budget: int) -> list[list[int]]:
        waiting = self._waiting
        units = [(self._rows.chosen[p], self._rows.rejected[p]) for p in waiting]
        passes = self._backend.cut(units, token_budget)
        return [[waiting[p] for p in pairs] for pairs in passes]

    def _lay_out(self, pairs: Sequence[int]) -> Pack:
        sides = (self._rows.chosen, self._rows.rejected)
        return self._backend.lay_out([side[p] for side in sides for p in pairs])

    def _place(self, pair: int) -> Any:
        chosen, rejected = self._rows.chosen[pair], self._rows.rejected[pair]
        if self._backend is PADDED:
            return max(len(chosen), len(rejected)), pair
        return list(chosen.prompt_ids), pair

    def _tokens(self, pairs: Sequence[int]) -> int:
        """Of both completions and of their prompt, once."""
        return sum(
            len(self._rows.chosen[p]) + len(self._rows.rejected[p].completion_ids) for p in pairs
        )


def _empty(rows: Sequence[TokenRow], dtype: torch.dtype) -> Logps:
    width = max((len(row.completion_ids) for row in rows), default=0)
    return Logps(
        torch.zeros(len(rows), width, dtype=dtype),
        torch.zeros(len(rows), width, dtype=torch.bool),
    )
