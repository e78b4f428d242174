"""4-bit layers that go on learning after an evaluation on the CPU."""

from __future__ import annotations

from typing import Any

from torch import nn


def keep_gradients_on_cpu(model: nn.Module) -> int:
    """Switches off the inference-only repacking of 4-bit layers on CPUs with AVX512-BF16.

    bitsandbytes 0.50.2 repacks a layer's weight in the first forward pass without gradient; the
    repacked kernel has no backward, and train() does not undo it: every later gradient is exactly 0
    while the loss looks plausible.

    Returns:
        The number of layers that were switched.
    """
    switched = 0
    layers: list[Any] = list(model.modules())
    for layer in layers:
        if getattr(layer, "support_avx512bf16_for_cpu", False):
            layer.support_avx512bf16_for_cpu = False
            switched += 1
    return switched
