"""Random-weight models for the benchmark: two small ones for a CPU, three real shapes for a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM


@dataclass(frozen=True)
class Model:
    """A random-weight model.

    Attributes:
        kind: transformers' model type.
        shape: its config.
        dtype: of the weights.
        training: settings of both trainers.
    """

    kind: str
    shape: Mapping[str, Any]
    dtype: torch.dtype = torch.bfloat16
    training: Mapping[str, Any] = field(default_factory=dict)

    @property
    def vocabulary(self) -> int:
        return self.shape["vocab_size"]

    def build(self, device: str, seed: int) -> Any:
        """Random weights, on `device`."""
        torch.manual_seed(seed)
        config = AutoConfig.for_model(self.kind, **self.shape)
        with torch.device(device):
            return AutoModelForCausalLM.from_config(config, dtype=self.dtype)


def _shape(vocabulary: int, hidden: int, inner: int, layers: int, **others: Any) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        **others,
    }


_CPU: dict[str, Any] = {"dtype": torch.float32, "training": {"gradient_checkpointing": False}}
_LLAMA3 = {
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
}
_QWEN2 = {
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    "tie_word_embeddings": True,
}
MODELS = {
    "5m": Model("llama", _shape(4096, 256, 640, 4, num_attention_heads=4), **_CPU),
    "26m": Model("llama", _shape(8192, 512, 1280, 6, num_attention_heads=8), **_CPU),
    "qwen2.5-0.5b": Model("qwen2", _shape(151936, 896, 4864, 24, **_QWEN2)),
    "llama-3.2-1b": Model(
        "llama", _shape(128256, 2048, 8192, 16, head_dim=64, tie_word_embeddings=True, **_LLAMA3)
    ),
    # Two policies with gradients and two references fill the GPU; Adam's moments do not fit.
    "llama-3.1-8b": Model(
        "llama", _shape(128256, 4096, 14336, 32, **_LLAMA3), training={"optim": "adafactor"}
    ),
}
