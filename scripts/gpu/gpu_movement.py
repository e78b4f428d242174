"""How far 16-bit adapters and weights move, against float32 ones, in the same steps."""

from __future__ import annotations

from typing import Any

import torch
from gpu_stand import Setting, needs
from gpu_steps import Steps

from align.forest.model import add_edge_head

RATES = (5e-6, 5e-5)


def measure(setting: Setting) -> dict[str, Any]:
    needs("peft")
    found = setting.table()
    for rate in RATES:
        moved = {}
        for width in (torch.float32, torch.bfloat16):
            moved[width] = _moved(setting, width, rate)
        for part in ("A", "B"):
            wide, narrow = moved[torch.float32][part], moved[torch.bfloat16][part]
            found.append(
                {
                    "rate": rate,
                    "adapter": part,
                    "moved_float32": float(wide.norm()),
                    "moved_bfloat16": float(narrow.norm()),
                    "share": float(narrow.norm() / wide.norm()),
                    "cosine": float(wide @ narrow / wide.norm() / narrow.norm().clamp(min=1e-30)),
                    "unmoved_bfloat16": float((narrow == 0).float().mean()),
                }
            )
    return {"movement": found}


def _moved(setting: Setting, dtype: torch.dtype, rate: float) -> dict[str, torch.Tensor]:
    from peft import LoraConfig, get_peft_model

    (specification,) = setting.models("qwen2.5-0.5b").values()
    base = specification.build(setting.device, setting.seed)
    add_edge_head(base)
    torch.manual_seed(setting.seed)
    config = LoraConfig(
        r=16, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    model: Any = get_peft_model(base, config)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for parameter in trained.values():
        parameter.data = parameter.data.to(dtype)
    start = {name: p.detach().float().clone() for name, p in trained.items()}
    rows = setting.rows("hh", 2 if setting.tiny else 8, specification.vocabulary)
    Steps(model, rows, setting, rate).train(5 if setting.tiny else 40)
    moved: dict[str, list[torch.Tensor]] = {"A": [], "B": []}
    for name, parameter in trained.items():
        part = "A" if "lora_A" in name else "B"
        moved[part].append((parameter.detach().float() - start[name]).flatten())
    return {part: torch.cat(parts) for part, parts in moved.items()}
