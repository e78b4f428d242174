"""FlashAttention over packed sequences, as each version of torch offers it.

`torch.nn.attention.varlen.varlen_attn` changed its arguments from version to version, so they are
bound by its signature and not by torch's number:

    2.10   (query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal, return_aux)
    2.11   (..., *, return_aux, scale, window_size)
    2.12   the same with enable_gqa
    2.13   the same with what only inference uses

The kernel below takes fewer heads of keys than of queries in all of them; `enable_gqa` only lifts a
check in front of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from align.forest.chains import GatheredChains
from align.forest.refusal import UnsupportedAttention

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch < 2.10
    varlen_attn = None

# Head sizes that FlashAttention 2 was compiled for end here, in steps of eight.
WIDEST_HEAD = 256
# FlashAttention 2 begins with Ampere.
OLDEST_GPU = (8, 0)


@dataclass(frozen=True)
class VarlenKernel:
    """FlashAttention by whatever arguments one version of torch takes.

    Attributes:
        function: `varlen_attn`.
        parameters: names of its parameters.
        dtypes: what the kernel computes in.
    """

    function: Callable[..., Any]
    parameters: frozenset[str]
    dtypes: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float16)

    @classmethod
    def of(cls, function: Callable[..., Any]) -> VarlenKernel:
        """Of a function, by its signature."""
        return cls(function, frozenset(inspect.signature(function).parameters))

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        chains: GatheredChains,
        *,
        scale: float | None = None,
        window: int | None = None,
    ) -> Tensor:
        """Causal attention inside each packed sequence, aligned at the lower right.

        Args:
            query: [Q, H, D], contiguous.
            key: [K, H_kv, D], contiguous.
            value: [K, H_kv, D], contiguous, all three of one dtype.
            chains: whose borders are the sequences'.
            scale: factor on the scores; None means 1/sqrt(D).
            window: keys that a query sees at most, itself included.

        Returns:
            [Q, H, D].

        Raises:
            UnsupportedAttention: the kernel does not do that.
        """
        self._look_at(query, key, value, window)
        told: dict[str, Any] = {}
        if "window_size" in self.parameters:
            told["window_size"] = (-1 if window is None else window - 1, 0)
        else:
            told["is_causal"] = True
        if "enable_gqa" in self.parameters:
            told["enable_gqa"] = query.shape[1] != key.shape[1]
        if "scale" in self.parameters:
            told["scale"] = scale
        elif scale is not None:
            # The kernel's own factor is 1/sqrt(D).
            query = query * (scale * query.shape[2] ** 0.5)
        return self.function(
            query,
            key,
            value,
            chains.query_borders,
            chains.key_borders,
            chains.longest_query,
            chains.longest_key,
            **told,
        )

    def _look_at(self, query: Tensor, key: Tensor, value: Tensor, window: int | None) -> None:
        size = query.shape[2]
        here = capability(query.device)
        if here is not None and here < OLDEST_GPU:
            raise UnsupportedAttention(
                f"FlashAttention, which needs a GPU of compute capability 8.0 (this is {here[0]}."
                f"{here[1]})"
            )
        if query.dtype not in self.dtypes:
            dtype = str(query.dtype).removeprefix("torch.")
            raise UnsupportedAttention(f"FlashAttention, which does not compute in {dtype}")
        if value.shape[2] != size:
            raise UnsupportedAttention(
                f"FlashAttention, which wants values as wide as keys ({value.shape[2]} and {size})"
            )
        if size > WIDEST_HEAD or size % 8:
            raise UnsupportedAttention(
                f"FlashAttention, which has no heads of size {size}: multiples of 8 up to "
                f"{WIDEST_HEAD}"
            )
        if query.shape[1] % key.shape[1]:
            raise UnsupportedAttention(
                f"FlashAttention, which cannot share {key.shape[1]} heads of keys among "
                f"{query.shape[1]} heads of queries"
            )
        if window is not None and "window_size" not in self.parameters:
            raise UnsupportedAttention(
                f"torch {torch.__version__}, whose FlashAttention has no sliding window"
            )


@cache
def capability(device: torch.device) -> tuple[int, int] | None:
    """Of a GPU; None elsewhere."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


KERNEL = None if varlen_attn is None else VarlenKernel.of(varlen_attn)
