"""An adapter on 8B parameters in 4 bits learns, is evaluated, and goes on learning."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from gpu_stand import Setting, needs, synchronise
from gpu_steps import Steps
from torch import nn

from align.forest.model import add_edge_head
from align.policies.quantization import keep_gradients_on_cpu


def measure(setting: Setting) -> dict[str, Any]:
    needs("peft", "bitsandbytes")
    from peft import LoraConfig, get_peft_model

    (name, specification), *_ = setting.models("llama-3.1-8b").items()
    base = specification.build(setting.device, setting.seed)
    layers = _in_4_bits(base, setting.dtype, setting.device)
    add_edge_head(base)
    config = LoraConfig(
        r=64 if not setting.tiny else 4,
        lora_alpha=64,
        target_modules=[
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "down_proj",
        ],
        task_type="CAUSAL_LM",
    )
    model: Any = get_peft_model(base, config)
    keep_gradients_on_cpu(model)
    # A frozen base gives checkpointed layers no input with a gradient.
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    rows = setting.rows("hh", 2 if setting.tiny else 16, specification.vocabulary)
    if setting.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    steps = Steps(model, rows, setting, rate=1e-3 if setting.tiny else 1e-4)
    before = steps.train(3 if setting.tiny else 6)
    norm_before = steps.gradient
    between = steps.evaluate()
    after = steps.train(3 if setting.tiny else 6)
    synchronise(setting.device)
    # Bitsandbytes' CPU kernels once lost every gradient after an evaluation, without a word.
    if not steps.gradient > 0 or not after[-1] < before[0]:
        raise ArithmeticError(f"nothing was learned: {before} {between} {after} {steps.gradient}")
    kinds = {str(p.dtype) for p in model.parameters() if p.requires_grad}
    return {
        "model": name,
        "layers_in_4_bits": layers,
        "adapter_dtypes": sorted(kinds),
        "backend": steps.choice.reason,
        "losses_before": before,
        "evaluated": between,
        "losses_after": after,
        "gradient_before": norm_before,
        "gradient_after": steps.gradient,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if setting.device == "cuda" else None,
    }


def _in_4_bits(model: Any, dtype: torch.dtype, device: str) -> int:
    """Every matrix but the head in NF4, one after the other; nothing is read from a disk."""
    bits: Any = importlib.import_module("bitsandbytes.nn")
    head = model.get_output_embeddings()
    found = [
        (parent, name, child)
        for parent in list(model.modules())
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear) and child is not head
    ]
    for parent, name, child in found:
        made = bits.Linear4bit(
            child.in_features, child.out_features, bias=False, compute_dtype=dtype, quant_type="nf4"
        )
        weight = child.weight.detach().to("cpu")
        made.weight = bits.Params4bit(weight, requires_grad=False, quant_type="nf4")
        setattr(parent, name, made.to(device))
        # Or both would be in memory until the last one is done.
        del child.weight
    model.is_loaded_in_4bit = True
    model.requires_grad_(False)
    return len(found)
