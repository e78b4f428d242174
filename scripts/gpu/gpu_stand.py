"""What the parts of the GPU suite stand on: models with random weights, rows, and how to say no."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

SCRIPTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(SCRIPTS))

from bench_lengths import Row, synthetic, token_rows  # noqa: E402
from bench_models import MODELS, Model  # noqa: E402

from align.forest import TokenRow  # noqa: E402

TINY = Model(
    "llama",
    {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
    },
    dtype=torch.float32,
    training={"gradient_checkpointing": False},
)


class Skipped(Exception):
    """A part has nothing to do on this machine; the text says why."""


class _Noted(list[dict[str, Any]]):
    def __init__(self, path: Path | None) -> None:
        super().__init__()
        self.path = path

    def append(self, row: dict[str, Any]) -> None:
        super().append(row)
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, default=str) + "\n")


@dataclass(frozen=True)
class Setting:
    """Where and how large.

    Attributes:
        device: `cuda` or `cpu`.
        tiny: everything so small that a CPU does it in seconds.
        work: folder for what parts write.
        seed: of weights and rows.
        notes: where rows are written down as they come, for a part that is cut off.
    """

    device: str
    tiny: bool
    work: Path
    seed: int = 0
    notes: Path | None = None

    def table(self) -> list[dict[str, Any]]:
        """A list whose rows are also written down as they come."""
        return _Noted(self.notes)

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and passes: 16 bits on a GPU, where the forest takes its CUDA kernels."""
        return torch.bfloat16 if self.device == "cuda" else torch.float32

    def models(self, *names: str) -> dict[str, Model]:
        """Models by name, in the dtype of the device; one tiny one instead where asked for."""
        if self.tiny:
            return {"tiny": replace(TINY, dtype=self.dtype)}
        return {name: replace(MODELS[name], dtype=self.dtype) for name in names}

    def pairs(self, kind: str, groups: int, vocabulary: int) -> list[Row]:
        """Pairs of a length distribution; of few tokens where tiny."""
        rows = synthetic(kind, groups, self.seed, min(vocabulary, 1 << 15))
        if not self.tiny:
            return rows
        return [
            row
            | {
                "prompt_ids": row["prompt_ids"][:40],
                "chosen_ids": row["chosen_ids"][:12],
                "rejected_ids": row["rejected_ids"][:12],
            }
            for row in rows
        ]

    def rows(self, kind: str, groups: int, vocabulary: int) -> list[TokenRow]:
        """The same as token rows, chosen sides first."""
        chosen, rejected = token_rows(self.pairs(kind, groups, vocabulary))
        return [*chosen, *rejected]


def needs(*modules: str) -> None:
    """Skips the part where a package is missing.

    Raises:
        Skipped: naming them.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise Skipped(f"not installed here: {', '.join(missing)}")


def synchronise(device: str) -> None:
    """Waits for the GPU."""
    if device == "cuda":
        torch.cuda.synchronize()


def text_of(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"


def relative(found: Any, expected: Any) -> float:
    """Norm of a tensor's error over the norm of what it should be."""
    wide = expected.detach().double()
    return float((found.detach().double() - wide).norm() / wide.norm().clamp(min=1e-300))
