"""Step 0: how far the forest's log-probs are from the model's own, token by token, in 16 bits.

The model is sharpened until its logits are as large as a trained one's, where 16 bits are coarse.
"""

from __future__ import annotations

from typing import Any

import torch
from gpu_stand import Setting

from align.forest.attention import attending
from align.forest.backends import choose_backend, fitting, own_logps
from align.forest.model import add_edge_head, read_pack

EDGES = (0.0, 1e-4, 1e-3, 1e-2, 0.05, 0.1, 0.2, 0.5, 1.0, float("inf"))


def measure(setting: Setting) -> dict[str, Any]:
    found = setting.table()
    for name, specification in setting.models("qwen2.5-0.5b").items():
        rows = setting.rows("hh", 4 if setting.tiny else 16, specification.vocabulary)
        for way in ("autocast", "pure"):
            for sharper in (1.0, 8.0):
                found += _gaps(name, specification, rows, way, sharper, setting)
    return {"gaps": found, "edges": [str(edge) for edge in EDGES]}


def _gaps(
    name: str, specification: Any, rows: Any, way: str, sharper: float, setting: Setting
) -> list[dict[str, Any]]:
    dtype = torch.bfloat16 if way == "pure" else torch.float32
    model = type(specification)(specification.kind, specification.shape, dtype).build(
        setting.device, setting.seed
    )
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(sharper)
    add_edge_head(model)
    model.eval()
    narrow = torch.autocast(setting.device, torch.bfloat16, enabled=way == "autocast")
    found = []
    with torch.no_grad(), narrow:
        expected = own_logps(model, rows)
        choice = choose_backend(model, rows)
        for backend in fitting(setting.device, torch.bfloat16):
            pack = backend.lay_out(rows).to(setting.device)
            with attending(model, pack.implementation):
                logps: Any = read_pack(model, pack).logps
            ours = pack.rows(0, len(rows), logps)
            off = (ours.token - expected.token)[expected.mask].double().abs()
            margin = (ours.total() - expected.total()).double()
            half = len(rows) // 2
            # What a pair's margin is off by at step 0, before anything was learned.
            pairs = margin[:half] - margin[half:]
            counts = torch.histogram(off.cpu(), torch.tensor([*EDGES[:-1], 1e9]).double()).hist
            found.append(
                {
                    "model": name,
                    "way": way,
                    "sharper": sharper,
                    "backend": backend.name,
                    "chosen": choice.backend.name,
                    "rms": float(off.square().mean().sqrt()),
                    "mean": float((ours.token - expected.token)[expected.mask].double().mean()),
                    "largest": float(off.max()),
                    "over_0.05": float((off > 0.05).double().mean()),
                    "margin_rms": float(pairs.square().mean().sqrt()),
                    "margin_mean": float(pairs.mean()),
                    "histogram": [int(n) for n in counts],
                }
            )
    return found
