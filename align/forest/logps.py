"""The log-probs of token rows in one call, with gradient, for a training loop of one's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.functional import pad

from align.forest.attention import attending
from align.forest.backends import (
    PADDED,
    Backend,
    Choice,
    choose_backend,
    computed_in,
    own_logps,
    refused,
)
from align.forest.model import add_edge_head, read_pack
from align.forest.radix import SHORTEST_SHARED
from align.forest.rows import TokenRow
from align.types import Logps

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

# A row, or the ids of its prompt and of its completion.
Row: TypeAlias = TokenRow | tuple[Sequence[int], Sequence[int]]
# The forest is checked against the model's own forward pass on so many of the shortest rows.
PROBED = 4

# Model -> what it ran on and in -> what the check chose.
_chosen: WeakKeyDictionary[nn.Module, dict[tuple[str, torch.dtype], Choice]] = WeakKeyDictionary()


def forest_logps(
    model: PreTrainedModel | PeftModel, rows: Sequence[Row], *, token_budget: int | None = None
) -> Logps:
    """Log-probs of every row's completion tokens; beginnings that rows share are computed once.

    Gradients flow where torch's grad mode is on. The model stays in the mode it is in, so dropout
    is active in `model.train()`. The first call of a model compares the forest with the model's own
    forward pass on a few rows; where the two differ, where the model's attention cannot be
    replaced, or where layers are computed again in the backward pass (gradient checkpointing), rows
    are padded instead, with the same result.

    Args:
        model: a causal language model of transformers or peft, on its device and not wrapped for
            several processes.
        rows: prompts and completions as token ids; rows with equal beginnings in any order.
        token_budget: tokens of one forward pass at most, shared ones counted once and padding
            where there is any included; a longer row is a pass of its own. None means one pass.

    Returns:
        [N, T] nats in the order of `rows`, on the model's device, float32 (float64 for a float64
        model).

    Raises:
        ValueError: there is no row, a row has no prompt or no completion token, or the budget is
            less than one token.
    """
    whole = [row if isinstance(row, TokenRow) else TokenRow(*row) for row in rows]
    if not whole:
        raise ValueError("forest_logps was given no row; give at least one.")
    for r, row in enumerate(whole):
        if not len(row.prompt_ids) or not len(row.completion_ids):
            raise ValueError(
                f"row {r} cannot be scored: its prompt or its completion has no token."
            )
    if token_budget is not None and token_budget < 1:
        raise ValueError(f"token_budget is {token_budget}; give 1 token or more, or None.")
    network: Any = model
    with edge_head(network):
        backend = choice_for(network, whole).backend
        passes = backend.cut([[row] for row in whole], token_budget)
        parts = [_one_pass(network, backend, [whole[r] for r in numbers]) for numbers in passes]
    width = max(part.token.shape[1] for part in parts)
    token, mask = (
        torch.cat([pad(tensor, (0, width - tensor.shape[1])) for tensor in tensors])
        for tensors in zip(*((part.token, part.mask) for part in parts), strict=True)
    )
    place = torch.tensor([r for numbers in passes for r in numbers]).argsort().to(token.device)
    return Logps(token[place], mask[place])


def _one_pass(model: Any, backend: Backend, rows: Sequence[TokenRow]) -> Logps:
    if backend is PADDED:
        return own_logps(model, rows)
    pack = backend.lay_out(rows).to(model.device)
    with attending(model, pack.implementation):
        edge = read_pack(model, pack).logps
    assert edge is not None
    return pack.to(edge.device).rows(0, len(rows), edge)


def choice_for(model: Any, rows: Sequence[TokenRow]) -> Choice:
    """The backend that a model may use now; the check itself is made once.

    Args:
        model: inside `edge_head`.
        rows: that are to be scored; a few of the shortest are checked.
    """
    if (refusal := refused(model)) is not None:
        return Choice(PADDED, f"padded rows, because {refusal}", None)
    if _attends_again(model):
        reason = "padded rows, because layers are computed again in the backward pass"
        return Choice(PADDED, reason, None)
    now = (str(model.device), computed_in(model))
    of_model = _chosen.setdefault(model, {})
    if now not in of_model:
        of_model[now] = choose_backend(model, _probes(rows))
    return of_model[now]


def _attends_again(model: nn.Module) -> bool:
    """Whether a backward pass, which comes after this call, would call the attention."""
    return torch.is_grad_enabled() and any(
        module.training and getattr(module, "gradient_checkpointing", False)
        for module in model.modules()
    )


def _probes(rows: Sequence[TokenRow]) -> list[TokenRow]:
    """Rows that surely share a beginning in twos, whatever is to be scored."""
    probes: list[TokenRow] = []
    for row in sorted(rows, key=len)[:PROBED]:
        copies = -(-SHORTEST_SHARED // len(row.prompt_ids))
        prompt = [*row.prompt_ids] * copies
        probes.append(TokenRow(prompt, row.completion_ids))
        probes.append(TokenRow(prompt, [prompt[0], *row.completion_ids]))
    return probes


@contextmanager
def edge_head(model: Any) -> Iterator[None]:
    """The model reads packs inside, and is given back as it came.

    A head that stayed would go along into a deep copy, such as one that becomes the reference,
    whose ordinary forward pass would then be this model's.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    before = vars(base).get("forward")
    add_edge_head(base)
    try:
        yield
    finally:
        if before is None:
            del base.forward
        else:
            base.forward = before
