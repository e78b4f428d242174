"""The ways to lay rows out and attend to them, and the check that chooses one.

What transformers' models ask of their attention differs in small ways that no error reports (a
window applied elsewhere, layers that are not attention at all). So a backend is not trusted by the
model's name: before training, the log-probs that it gives for a few rows are compared with those
from the model's own forward pass over padded rows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from align.errors import RecipeError
from align.forest.attention import attending
from align.forest.flex import said_of
from align.forest.model import read_pack
from align.forest.pack import Pack, padded_pack, tree_flex_pack, tree_pack, tree_varlen_pack
from align.forest.packing import cut_blocks, cut_forest, cut_padded
from align.forest.refusal import UnsupportedAttention, recorded_windows
from align.forest.rows import TokenRow
from align.types import Logps

Rows = Sequence[TokenRow]


@dataclass(frozen=True)
class Backend:
    """One way to compute log-probs.

    Attributes:
        name: `tree`, `tree_varlen`, `tree_flex` or `padded`.
        lay_out: rows -> one forward pass.
        cut: (units, token budget) -> numbers of the units of each pass; a unit is rows that are
            never torn apart.
    """

    name: str
    lay_out: Callable[[Rows], Pack]
    cut: Callable[[Sequence[Rows], int | None], list[list[int]]]


TREE = Backend("tree", tree_pack, cut_forest)
TREE_VARLEN = Backend("tree_varlen", tree_varlen_pack, cut_forest)
TREE_FLEX = Backend("tree_flex", tree_flex_pack, cut_blocks)
PADDED = Backend("padded", padded_pack, cut_padded)
BACKENDS = {backend.name: backend for backend in (TREE, TREE_VARLEN, TREE_FLEX, PADDED)}
ON_CUDA = (TREE_VARLEN.name, TREE_FLEX.name)

# Differences of tokens' log-probs, root mean square in nats, that rounding explains.
TOLERANCE = {torch.float64: 1e-7, torch.float32: 3e-4}
TOLERANCE_LOW_PRECISION = 0.1


@dataclass(frozen=True)
class Choice:
    """A backend, and why.

    Attributes:
        backend: what was chosen.
        reason: one sentence.
        gap: difference of tokens' log-probs from the model's own forward pass, root mean square
            in nats; None where a backend was refused before it ran.
    """

    backend: Backend
    reason: str
    gap: float | None


def choose_backend(model: Any, rows: Rows, wanted: str | None = None) -> Choice:
    """The first backend for the model's device that gives the model's log-probs, else `padded`.

    Args:
        model: a model with an edge head, or a PEFT model around one; on its device.
        rows: a few, best some that share prefixes.
        wanted: name of the only backend to be used; None leaves the choice open.

    Raises:
        RecipeError: the wanted backend is unknown, or does not give the model's log-probs.
    """
    if wanted is not None and wanted not in BACKENDS:
        raise RecipeError(
            f"There is no forest backend {wanted!r}; there are {', '.join(BACKENDS)}, and auto."
        )
    if wanted == PADDED.name:
        return Choice(PADDED, "padded rows, as asked for", None)
    if wanted in ON_CUDA and model.device.type != "cuda":
        return _fallen_back([f"the model is on {model.device}, and it needs CUDA"], None, wanted)
    if (refusal := refused(model)) is not None:
        return _fallen_back([refusal], None, wanted)
    dtype = computed_in(model)
    tried = fitting(model.device.type, dtype) if wanted is None else (BACKENDS[wanted],)
    tolerance = TOLERANCE.get(dtype, TOLERANCE_LOW_PRECISION)
    refusals: list[str] = []
    gap = None
    with _evaluating(model), torch.no_grad():
        expected = own_logps(model, rows).token
        for backend in tried:
            gap, refusal = _compared(model, backend, rows, expected, tolerance)
            if refusal is None:
                others = f", taken because {', and because '.join(refusals)}" if refusals else ""
                return Choice(
                    backend,
                    f"`{backend.name}`, within {gap:.1e} nats per token of the model's own pass"
                    f"{others}",
                    gap,
                )
            refusals.append(refusal)
    return _fallen_back(refusals, gap, wanted)


def fitting(device: str, dtype: torch.dtype) -> tuple[Backend, ...]:
    """The forest backends for a device, best first.

    Args:
        device: type of the device.
        dtype: what matrices are multiplied in.
    """
    if device != "cuda" or dtype.itemsize > 4:
        return (TREE,)
    if dtype.itemsize == 4:
        # FlashAttention computes in 16 bits only.
        return TREE_FLEX, TREE
    if torch.are_deterministic_algorithms_enabled():
        # FlashAttention adds gradients up in any order, or slowly; FlexAttention always in one.
        return TREE_FLEX, TREE_VARLEN
    return TREE_VARLEN, TREE_FLEX


def _compared(
    model: Any, backend: Backend, rows: Rows, expected: Tensor, tolerance: float
) -> tuple[float | None, str | None]:
    """How far a backend is from the model's own log-probs, and why it is not to be used."""
    try:
        with recorded_windows() as windows:
            found = _pack_logps(model, backend.lay_out(rows))
        if backend is TREE_FLEX:
            _go_back(model, backend.lay_out(rows))
    except UnsupportedAttention as refusal:
        return None, f"of {refusal}"
    scored = sum(len(row) - row.first_scored for row in rows)
    gap = float((found - expected).double().square().sum().div(scored).sqrt())
    if not gap <= tolerance:
        return gap, (
            f"`{backend.name}` changes tokens' log-probs by {gap:.3g} nats "
            f"(rounding explains {tolerance:g})"
        )
    if windows != (asked := _windows_asked(model, len(windows))):
        return gap, (
            "the model's config has sliding windows that its layers do not "
            f"hand to attention ({windows} instead of {asked})"
        )
    return gap, None


def _go_back(model: Any, pack: Pack) -> None:
    """A backward pass, where there is something to train: it is compiled on its own.

    Raises:
        UnsupportedAttention: it could not be.
    """
    trained = next((p for p in model.parameters() if p.requires_grad), None)
    if trained is None:
        return
    pack = pack.to(model.device)
    try:
        with torch.enable_grad(), attending(model, pack.implementation):
            edge: Any = read_pack(model, pack).logps
            # Of one parameter: no gradient is left behind, and the way to it leads through all.
            torch.autograd.grad(edge.sum(), trained, allow_unused=True)
    except RuntimeError as failure:
        if (said := said_of(failure)) is failure:
            raise
        raise said from failure


def _fallen_back(refusals: Sequence[str], gap: float | None, wanted: str | None) -> Choice:
    because = ", and because ".join(refusals)
    if wanted is not None:
        raise RecipeError(
            f"The forest backend {wanted} was asked for and cannot be used, because {because}. "
            "Take it out, and what can be used is found out."
        )
    return Choice(PADDED, f"padded rows, because {because}", gap)


def refused(model: Any) -> str | None:
    """Why the model cannot use a forest, as far as its config says; None if it may."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = base.config.get_text_config()
    if not getattr(base, "_supports_attention_backend", False):
        return f"{type(base).__name__} does not look its attention up in transformers' interface"
    if getattr(base.config, "vision_config", None) is not None:
        return f"{type(base).__name__} places pictures in positions of their own"
    others = set(getattr(config, "layer_types", None) or ()) - {
        "full_attention",
        "sliding_attention",
    }
    if others:
        return f"{type(base).__name__} has layers of type {', '.join(sorted(others))}"
    peft = getattr(model, "active_peft_config", None)
    if peft is not None and peft.is_prompt_learning:
        return f"{peft.peft_type.value} puts virtual tokens before each row"
    return None


def computed_in(model: Any) -> torch.dtype:
    """What the model's matrices are multiplied in: its own dtype, or autocast's."""
    kind = model.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else model.dtype


def own_logps(model: Any, rows: Rows) -> Logps:
    """[R, T] nats from full logits of padded rows, with the model's own attention and head."""
    pack = padded_pack(rows).to(model.device)
    output = model(
        input_ids=pack.input_ids, attention_mask=pack.attention_mask, use_cache=False
    ).logits
    edges = [
        logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)
        for logits in output[:, -pack.input_ids.shape[1] :].flatten(0, 1)[pack.predictor].split(512)
    ]
    edge = torch.cat(edges).gather(1, pack.target.to(output.device)[:, None])[:, 0]
    return pack.to(edge.device).rows(0, len(rows), edge)


def _pack_logps(model: Any, pack: Pack) -> Tensor:
    pack = pack.to(model.device)
    with attending(model, pack.implementation):
        edge: Any = read_pack(model, pack).logps
    return pack.to(edge.device).rows(0, pack.index.shape[0], edge).token


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _windows_asked(model: Any, layers: int) -> list[int | None]:
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", True) is False:
        window = None
    types = getattr(config, "layer_types", None)
    if types is None:
        return [window] * layers
    return [window if kind == "sliding_attention" else None for kind in types[:layers]]
