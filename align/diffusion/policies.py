# diffusers does not declare what it exports.
# pyright: reportPrivateImportUsage=false
"""The policy and its frozen reference: two networks, or one network with two LoRA adapters.

A checkpoint is what is trained and nothing else: all weights, or one adapter's. `state` copies it
out of the policy, `become` copies it into the reference, and nothing else ever writes there.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import torch
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from align.errors import RecipeError

State: TypeAlias = dict[str, Tensor]
POLICY, REFERENCE = "policy", "ref"


class PolicyAndReference(Protocol):
    """What the trainer asks of the two."""

    network: nn.Module
    """What is trained, and what is wrapped for several processes."""

    def state(self) -> State:
        """A copy of the policy's trained weights, on the CPU."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Puts weights into the policy."""
        ...

    def become(self, state: Mapping[str, Tensor]) -> None:
        """Puts weights into the reference."""
        ...

    def reference_state(self) -> State:
        """A copy of the reference's weights, on the CPU."""
        ...

    def reference(self) -> Any:
        """A context in which the reference, without gradient, can be called."""
        ...


def _copied(state: Mapping[str, Tensor]) -> State:
    # clone: `state_dict` hands out the live tensors, and all checkpoints would be the newest one.
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}


class TwoNetworks:
    """All weights are trained; the reference is a second network that never has a gradient.

    Args:
        network: the policy; the reference starts as its copy.
        with_reference: False where a formula compares with none.
    """

    def __init__(self, network: nn.Module, *, with_reference: bool = True) -> None:
        # Evaluation mode throughout: dropout would make policy and reference differ before the
        # first step. Gradients do not depend on the mode.
        self.network = network.eval().requires_grad_(True)
        self._frozen = copy.deepcopy(network).requires_grad_(False) if with_reference else None

    def state(self) -> State:
        """A copy of the policy's weights, on the CPU."""
        return _copied(self.network.state_dict())

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Puts weights into the policy."""
        self.network.load_state_dict(state)

    def become(self, state: Mapping[str, Tensor]) -> None:
        """Puts weights into the reference."""
        assert self._frozen is not None
        self._frozen.load_state_dict(state)

    def reference_state(self) -> State:
        """A copy of the reference's weights, on the CPU."""
        assert self._frozen is not None
        return _copied(self._frozen.state_dict())

    @contextmanager
    def reference(self) -> Iterator[nn.Module]:
        """The frozen network, where the policy is, without gradient."""
        assert self._frozen is not None
        device = next(self.network.parameters()).device
        self._frozen.to(device)
        with torch.no_grad():
            yield self._frozen


class TwoAdapters:
    """One frozen base with the LoRA adapters `policy` and `ref`.

    Args:
        network: a model of diffusers with its peft mixin.
        rank: of the adapters.
        alpha: alpha / rank multiplies an adapter's output.
        target_modules: layers that get an adapter, by the end of their names.
        seed: of the adapters' first weights; their output starts at zero all the same.

    Raises:
        RecipeError: the model takes no adapters, or has no such layers.
    """

    def __init__(
        self,
        network: Any,
        *,
        rank: int,
        alpha: int,
        target_modules: tuple[str, ...],
        seed: int,
    ) -> None:
        if not hasattr(network, "add_adapter"):
            raise RecipeError(
                f"{type(network).__name__} takes no LoRA adapters in diffusers: write "
                "`use_peft: false` under model, or take a model that does."
            )
        network.eval().requires_grad_(False)
        # No dropout: policy and reference would differ before the first step.
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha,
            target_modules=list(target_modules),
            lora_dropout=0.0,
            init_lora_weights="gaussian",
        )
        try:
            with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
                # peft advises against two adapters on one model in general.
                warnings.filterwarnings("ignore", message=".*multiple adapters.*")
                torch.manual_seed(seed)
                network.add_adapter(config, POLICY)
                network.add_adapter(config, REFERENCE)
        except ValueError as error:
            raise RecipeError(
                f"model.lora_target_modules: the model has no layers that end in "
                f"{', '.join(target_modules)} ({error})."
            ) from error
        self.network = network
        for name, parameter in network.named_parameters():
            # Adapters in float32 under mixed precision, both alike: else policy = reference would
            # not give equal errors.
            if f".{POLICY}." in name or f".{REFERENCE}." in name:
                parameter.data = parameter.data.float()
        self.become(self.state())
        # Adding an adapter activates it and freezes the one before.
        network.set_adapter(POLICY)

    def state(self) -> State:
        """A copy of the adapter `policy`, on the CPU; its names carry no adapter's name."""
        return self._of(POLICY)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Puts weights into the adapter `policy`."""
        self._into(POLICY, state)

    def become(self, state: Mapping[str, Tensor]) -> None:
        """Puts weights into the adapter `ref`."""
        self._into(REFERENCE, state)

    def reference_state(self) -> State:
        """A copy of the adapter `ref`, on the CPU."""
        return self._of(REFERENCE)

    @contextmanager
    def reference(self) -> Iterator[nn.Module]:
        """The base with the adapter `ref`; `policy` is active again after it, also on an error.

        Never between the policy's forward and backward pass: activating an adapter freezes the
        other one's weights.
        """
        self.network.set_adapter(REFERENCE)
        try:
            with torch.no_grad():
                yield self.network
        finally:
            self.network.set_adapter(POLICY)

    def save(self, folder: Path) -> None:
        """Writes the adapter as `pytorch_lora_weights.safetensors`, for `load_lora_weights`."""
        named = convert_state_dict_to_diffusers(self.state())
        prefix = "unet" if "UNet" in type(self.network).__name__ else "transformer"
        adapter = self.network.peft_config[POLICY]
        # diffusers' own way to keep the scale, which no weight tells.
        settings = {
            f"{prefix}.r": adapter.r,
            f"{prefix}.lora_alpha": adapter.lora_alpha,
            f"{prefix}.target_modules": sorted(adapter.target_modules),
        }
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {f"{prefix}.{name}": tensor.contiguous() for name, tensor in named.items()},
            folder / "pytorch_lora_weights.safetensors",
            metadata={
                "format": "pt",
                "lora_adapter_metadata": json.dumps(settings, sort_keys=True),
            },
        )

    def _of(self, adapter: str) -> State:
        return _copied(get_peft_model_state_dict(self.network, adapter_name=adapter))

    def _into(self, adapter: str, state: Mapping[str, Tensor]) -> None:
        set_peft_model_state_dict(self.network, dict(state), adapter_name=adapter)
