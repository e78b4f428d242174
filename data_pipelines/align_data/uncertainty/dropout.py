"""Networks with units left out: the same ones for every pair, whatever the batch.

Gal and Ghahramani 2016, arXiv:1506.02142: a pass with dropout is a pass of a network drawn from an
approximate posterior. Here network t is drawn once, by (seed, t, place in the model), and reads
every pair in both orders: all pairs are judged by the same T networks ("consistent" dropout, Kirsch
et al. 2019, arXiv:1906.08158, section 4.2). So a pass does not depend on batches, chunks or the
random state of the process.

Differs from the paper: its program draws units anew for each token of each row, from the global
random state; on another machine, or in another order, another B comes out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from align.errors import RecipeError

DropoutIn = Literal["adapter", "blocks", "head"]
# Names of the layer that reads the last hidden state, in classifiers and language models.
HEADS = ("score", "classifier", "lm_head", "embed_out")


@dataclass(frozen=True)
class Spot:
    """Where units are left out.

    Attributes:
        name: of the module; with the seed it determines the units.
        module: whose output, added part or input it is.
        kind: "output" of the module, what a "block" adds to its input, or the "input" of a head.
        block: number of the block it stands in; None outside of them.
    """

    name: str
    module: nn.Module
    kind: Literal["output", "block", "input"]
    block: int | None = None


@dataclass
class Thinning:
    """Leaves units out at the given spots while a network is chosen; otherwise the model is whole.

    Args:
        spots: one or more.
        rate: share of the units that is left out; the others are divided by 1 - rate.
        seed: of the draw.
    """

    spots: Sequence[Spot]
    rate: float
    seed: int
    _masks: dict[tuple[str, str], np.ndarray] = field(default_factory=dict, init=False)

    @contextmanager
    def network(self, number: int | None) -> Iterator[None]:
        """One network for all rows; None is the whole one."""
        with self._hooked(None if number is None else f"network-{number}", per_row=False):
            yield

    @contextmanager
    def training_step(self, step: int) -> Iterator[None]:
        """A network of its own for each row of the step's batch."""
        with self._hooked(f"step-{step}", per_row=True):
            yield

    @contextmanager
    def _hooked(self, purpose: str | None, *, per_row: bool) -> Iterator[None]:
        if purpose is None or self.rate == 0.0:
            yield
            return
        handles = [self._hook(spot, purpose, per_row) for spot in self.spots]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, spot: Spot, purpose: str, per_row: bool) -> Any:
        def thinned(x: Tensor) -> Tensor:
            return x * self._mask(spot.name, purpose, x, per_row)

        def on_output(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            return thinned(output)

        def on_block(_: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            after = before + thinned(after - before)
            return (after, *output[1:]) if isinstance(output, tuple) else after

        def on_input(_: nn.Module, args: Any) -> Any:
            return (thinned(args[0]), *args[1:])

        if spot.kind == "output":
            return spot.module.register_forward_hook(on_output)
        if spot.kind == "block":
            return spot.module.register_forward_hook(on_block, with_kwargs=True)
        return spot.module.register_forward_pre_hook(on_input)

    def _mask(self, name: str, purpose: str, x: Tensor, per_row: bool) -> Tensor:
        """[width], or [rows, 1, ..., width]: 0 or 1 / (1 - rate)."""
        width, rows = x.shape[-1], x.shape[0]
        if per_row:
            kept = self._drawn(name, purpose, (rows, width)).reshape(
                rows, *(1,) * (x.dim() - 2), width
            )
        else:
            key = (name, purpose)
            if key not in self._masks:
                self._masks[key] = self._drawn(name, purpose, (width,))
            kept = self._masks[key]
        scale = 1.0 / (1.0 - self.rate)
        return torch.as_tensor(kept, device=x.device).to(x.dtype) * scale

    def _drawn(self, name: str, purpose: str, shape: tuple[int, ...]) -> np.ndarray:
        text = f"{self.seed}/{purpose}/{name}"
        key = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")
        return np.random.Generator(np.random.Philox(key=key)).random(shape) >= self.rate


def blocks_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The model's layers with their names, from the bottom; the outermost list of modules."""
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) > 0
    ]
    if not lists:
        return []
    name, layers = min(lists, key=lambda found: (found[0].count("."), -len(found[1])))
    return [(f"{name}.{n}", layer) for n, layer in enumerate(layers)]


def spots_of(model: nn.Module, where: DropoutIn, top_blocks: int | None) -> list[Spot]:
    """The places that `where` names.

    Args:
        model: of transformers, with or without an adapter of peft.
        where: "adapter": inputs of every LoRA layer; "blocks": what every block adds to the
            residual stream; "head": what the last layer reads.
        top_blocks: only in so many blocks, counted from the top; None takes all.

    Raises:
        RecipeError: there is no such place in this model.
    """
    blocks = blocks_of(model)
    lowest = 0 if top_blocks is None else max(len(blocks) - top_blocks, 0)
    if where == "head":
        spots = [
            Spot(name, module, "input")
            for name, module in model.named_modules()
            if name.rpartition(".")[2] in HEADS
        ][:1]
    elif where == "blocks":
        spots = [
            Spot(name, block, "block", n) for n, (name, block) in enumerate(blocks) if n >= lowest
        ]
    else:
        spots = _adapter_spots(model, blocks, lowest)
    if not spots:
        raise RecipeError(
            f"This estimator has no place for `dropout_in: {where}`: write another of adapter "
            "(needs `lora`), blocks and head."
        )
    return spots


def _adapter_spots(
    model: nn.Module, blocks: Sequence[tuple[str, nn.Module]], lowest: int
) -> list[Spot]:
    spots: list[Spot] = []
    for name, module in model.named_modules():
        dropouts: Any = getattr(module, "lora_dropout", None)
        if not isinstance(dropouts, nn.ModuleDict):
            continue
        at = next((n for n, (b, _) in enumerate(blocks) if name.startswith(f"{b}.")), None)
        if lowest > 0 and (at is None or at < lowest):
            continue
        spots += [Spot(f"{name}.{key}", own, "output", at) for key, own in dropouts.items()]
    return spots


class Passes:
    """Forward passes of one batch by many networks; the blocks that all of them share run once.

    Args:
        model: on its device.
        thinning: of its spots.
    """

    def __init__(self, model: Any, thinning: Thinning) -> None:
        self.model = model
        self.thinning = thinning
        self._lower = _shared_blocks(model, thinning.spots)

    def outputs(self, ids: Tensor, mask: Tensor, networks: Sequence[int | None]) -> Iterator[Any]:
        """The model's own output for each network, one after the other.

        Args:
            ids: [R, S].
            mask: [R, S], 1 where a token stands.
            networks: numbers; None is the whole one.
        """
        device = self.model.device
        inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
        below: list[Any] = []
        for number in networks:
            with self.thinning.network(number), self._reusing(below):
                yield self.model(**inputs, use_cache=False)

    @contextmanager
    def _reusing(self, below: list[Any]) -> Iterator[None]:
        """Keeps in `below` what the shared blocks give; from then on gives it in their place."""
        if not self._lower:
            yield
        elif below:
            with _answering(self._lower, below[0]):
                yield
        else:
            handle = self._lower[-1].register_forward_hook(lambda _, __, out: below.append(out))
            try:
                yield
            finally:
                handle.remove()


def _shared_blocks(model: nn.Module, spots: Sequence[Spot]) -> list[nn.Module]:
    """Blocks below the first spot: all networks agree up to there."""
    blocks = [block for _, block in blocks_of(model)]
    if any(spot.block is None and spot.kind != "input" for spot in spots):
        return []
    return blocks[: min((s.block for s in spots if s.block is not None), default=len(blocks))]


@contextmanager
def _answering(blocks: Sequence[nn.Module], output: Any) -> Iterator[None]:
    """The blocks do no work: each returns `output`, which the topmost of them gave before."""
    own = [vars(block).get("forward") for block in blocks]
    try:
        for block in blocks:
            block.forward = lambda *_, **__: output
        yield
    finally:
        for block, forward in zip(blocks, own, strict=True):
            if forward is None:
                del block.forward
            else:
                block.forward = forward
