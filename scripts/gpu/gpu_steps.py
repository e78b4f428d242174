"""A training loop of a few lines over forests, for parts that want no trainer around them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from gpu_stand import Setting

from align.forest import Backend, TokenRow, choose_backend
from align.forest.attention import attending
from align.forest.model import read_pack
from align.objectives import DPO
from align.types import Logps, Pair, PairInputs


def scored(model: Any, rows: Sequence[TokenRow], backend: Backend, device: str) -> Logps:
    """[R, T] log-probs of rows, in one pass."""
    pack = backend.lay_out(rows).to(device)
    with attending(model, pack.implementation):
        logps: Any = read_pack(model, pack).logps
    return pack.rows(0, len(rows), logps)


class Steps:
    """DPO on one batch of pairs again and again, against the model as it began."""

    def __init__(self, model: Any, rows: list[TokenRow], setting: Setting, rate: float) -> None:
        self.model, self.rows, self.device = model, rows, setting.device
        self.autocast = torch.autocast(setting.device, torch.bfloat16)
        with self.autocast, torch.no_grad():
            model.eval()
            self.choice = choose_backend(model, rows)
            self.reference = self._scores()
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)

    def _scores(self) -> Logps:
        return scored(self.model, self.rows, self.choice.backend, self.device)

    def _loss(self, found: Logps) -> torch.Tensor:
        half = len(self.rows) // 2
        policy, reference = (
            Pair(*(Logps(one.token[part], one.mask[part]) for part in (_first(half), _rest(half))))
            for one in (found, self.reference)
        )
        return DPO(beta=0.1)(PairInputs(policy=policy, reference=reference)).loss.mean()

    def train(self, steps: int) -> list[float]:
        """The loss before each step."""
        self.model.train()
        losses = []
        for _ in range(steps):
            pack = self.choice.backend.lay_out(self.rows).to(self.device)
            with self.autocast, attending(self.model, pack.implementation):
                logps: Any = read_pack(self.model, pack).logps
                loss = self._loss(pack.rows(0, len(self.rows), logps))
                loss.backward()
            self.gradient = _norm(self.model)
            self.optimizer.step()
            self.optimizer.zero_grad()
            losses.append(float(loss.detach()))
        return losses

    @torch.no_grad()
    def evaluate(self) -> float:
        """The loss, in eval mode."""
        self.model.eval()
        with self.autocast:
            return float(self._loss(self._scores()))


def _first(half: int) -> slice:
    return slice(0, half)


def _rest(half: int) -> slice:
    return slice(half, None)


def _norm(model: Any) -> float:
    squares = [p.grad.float().square().sum() for p in model.parameters() if p.grad is not None]
    return float(torch.stack(squares).sum().sqrt())
