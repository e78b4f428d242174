"""LM heads: what makes logits of hidden states, in a model or as it once was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from align.errors import RecipeError


@dataclass(frozen=True, eq=False)
class Head:
    """An LM head: logits = softcap(scale * (hidden @ weight^T + bias)).

    Attributes:
        weight: [V, d].
        bias: [V] or None.
        scale: factor on the logits.
        softcap: c in c * tanh(logits / c), or None.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None


@dataclass(frozen=True, eq=False)
class LayerHead:
    """An LM head that is more than a matrix, such as one with an adapter on it.

    Attributes:
        layer: hidden [n, d] -> [n, V]; V is its `out_features`, as for every linear layer.
        scale: as in `Head`.
        softcap: as in `Head`.
    """

    layer: nn.Module
    scale: float = 1.0
    softcap: float | None = None


AnyHead = Head | LayerHead


def head_of(model: nn.Module) -> AnyHead:
    """The LM head of a transformers causal language model, by its own and its config's word."""
    language: Any = model
    layer = language.get_output_embeddings()
    config = language.config.get_text_config()
    scale, softcap = _scale(config), getattr(config, "final_logit_softcapping", None)
    # By its forward pass: adapters and quantised layers are Linear by name or by inheritance, and
    # FSDP2 makes a class of its own of each layer that it shards.
    if getattr(type(layer), "forward", None) is not nn.Linear.forward:
        return LayerHead(layer, scale, softcap)
    weight, bias = layer.weight, layer.bias
    # FSDP2 shards parameters as DTensors.
    weight, bias = (
        tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        for tensor in (weight, bias)
    )
    return Head(weight, bias, scale, softcap)


def _scale(config: Any) -> float:
    # Cohere, Muse Glimmer and Falcon-H1 multiply; Granite divides, HyperCLOVA X does not.
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, name, None) is not None:
            return float(getattr(config, name))
    if (scaling := getattr(config, "logits_scaling", None)) is not None:
        return float(scaling) if config.model_type == "hyperclovax" else 1.0 / float(scaling)
    return 1.0


def vocabulary_of(head: AnyHead) -> int:
    """V."""
    return len(head.weight) if isinstance(head, Head) else cast("int", head.layer.out_features)


def as_computed(hidden: Tensor, head: Head) -> tuple[Tensor, Tensor, Tensor | None]:
    """Hidden states, weight and bias on one device and in the dtype that they are multiplied in."""
    weight, bias = head.weight, head.bias
    if torch.is_autocast_enabled(hidden.device.type):
        hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
    # With the model split across devices, the backbone can end on another one than the head.
    hidden = hidden.to(weight.device)
    # An autocast backbone gives another dtype than the head's weights have.
    return hidden, weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)


def matrix_logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float, softcap: float | None
) -> Tensor:
    """[n, V] in float32 or wider."""
    if multiplies_widely(hidden):
        # A product of 16 bits is added up in float32 anyway: here it stays there.
        z = torch.mm(hidden, weight.T, out_dtype=torch.float32)
    else:
        z = hidden @ weight.T
    if bias is not None:
        z += bias
    return bent(z, scale, softcap)


def multiplies_widely(hidden: Tensor) -> bool:
    """Whether a product of 16-bit matrices can be had in float32: on CUDA, where torch offers it.

    It has no gradient of its own, so not where autograd records.
    """
    narrow = hidden.is_cuda and hidden.dtype.itemsize == 2 and not torch.is_grad_enabled()
    return narrow and hasattr(torch.ops.aten.mm, "dtype")


def bent(z: Tensor, scale: float, softcap: float | None) -> Tensor:
    """What a layer gives, [n, V], as logits in float32 or wider."""
    if z.dtype.itemsize < 4:
        z = z.float()
    if scale != 1.0:
        z = z * scale
    return z if softcap is None else torch.tanh(z / softcap) * softcap


def kept(head: AnyHead) -> AnyHead:
    """A head that goes on computing what this one does now, without gradient.

    Of what is trained it has a copy, since that is changed in place.
    """
    if isinstance(head, Head):
        bias = None if head.bias is None else _kept_value(head.bias)
        return Head(_kept_value(head.weight), bias, head.scale, head.softcap)
    return LayerHead(_KeptLayer(head.layer), head.scale, head.softcap)


def _kept_value(value: Tensor) -> Tensor:
    return value.detach().clone() if value.requires_grad else value.detach()


class _KeptLayer(nn.Module):
    """A layer with the trainable parameters of the moment it was made, and without dropout."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.out_features: Any = layer.out_features
        # In a tuple, so that it is no module of this one: it belongs to its model.
        self._layer = (layer,)
        # Those alone: a quantised weight is more than its tensor.
        self._values = {n: _kept_value(p) for n, p in layer.named_parameters() if p.requires_grad}

    def forward(self, states: Tensor) -> Tensor:
        (layer,) = self._layer
        modes = [(module, module.training) for module in layer.modules()]
        layer.eval()
        try:
            return functional_call(layer, self._values, (states,))
        finally:
            for module, was_training in modes:
                module.training = was_training


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a frozen model predicts at E edges, before its head: the logits would be [E, V].

    Attributes:
        hidden: [E, d], without gradient.
        head: that model's, as it is to be.
    """

    hidden: Tensor
    head: AnyHead

    def log_probs(self, vocabulary: int, device: torch.device) -> Callable[[slice], Tensor]:
        """A function from some of the edges to log-probs of all tokens, [n, V] nats.

        It computes as is done at the time of this call, with autocast or without.

        Args:
            vocabulary: of the policy that is compared.
            device: for the log-probs.

        Raises:
            RecipeError: the frozen model has another vocabulary.
        """
        if (own := vocabulary_of(self.head)) != vocabulary:
            raise RecipeError(
                f"The reference gives a probability to {own} tokens and the policy to "
                f"{vocabulary}, so their distributions cannot be compared: name a reference with "
                "the policy's vocabulary at `roles.reference`."
            )
        head, hidden, kind = self.head, self.hidden, self.hidden.device.type
        is_cast, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        matrix = as_computed(hidden, head) if isinstance(head, Head) else None

        @torch.no_grad()
        def of_part(part: slice) -> Tensor:
            if matrix is None:
                assert isinstance(head, LayerHead)
                with torch.autocast(kind, dtype, enabled=is_cast):
                    z = bent(head.layer(hidden[part]), head.scale, head.softcap)
            else:
                states, weight, bias = matrix
                z = matrix_logits(states[part], weight, bias, head.scale, head.softcap)
            z = z.to(device)
            # As the policy's are normalised, so that equal logits give equal log-probs.
            return z.sub_(z.logsumexp(dim=1)[:, None])

        return of_part
