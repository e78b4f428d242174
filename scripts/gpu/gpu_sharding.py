"""FSDP2 on one rank: log-probs and gradients of sharded weights beside whole ones."""

from __future__ import annotations

import importlib
from typing import Any

import torch
import torch.distributed as dist
from gpu_stand import Setting, relative
from torch.distributed.device_mesh import init_device_mesh

from align.forest import choose_backend
from align.forest.attention import attending
from align.forest.model import add_edge_head, read_pack


def measure(setting: Setting) -> dict[str, Any]:
    # Its name since torch 2.6.
    shard: Any = importlib.import_module("torch.distributed.fsdp").fully_shard
    on_gpu = setting.device == "cuda"
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        init_method=f"file://{setting.work}/rendezvous",
        rank=0,
        world_size=1,
    )
    try:
        mesh = init_device_mesh(setting.device, (1,))
        found = setting.table()
        for name, specification in setting.models("llama-3.2-1b").items():
            rows = setting.rows("hh", 2 if setting.tiny else 8, specification.vocabulary)
            whole = specification.build(setting.device, setting.seed)
            add_edge_head(whole)
            sharded = specification.build(setting.device, setting.seed)
            add_edge_head(sharded)
            for layer in sharded.model.layers:
                shard(layer, mesh=mesh)
            shard(sharded, mesh=mesh)
            backend = choose_backend(whole, rows).backend
            logps, gradients = zip(
                *(_pass(model, rows, backend, setting.device) for model in (whole, sharded)),
                strict=True,
            )
            found.append(
                {
                    "model": name,
                    "backend": backend.name,
                    "logps": relative(logps[1], logps[0]),
                    "gradient": max(
                        relative(gradients[1][at], one) for at, one in gradients[0].items()
                    ),
                }
            )
    finally:
        dist.destroy_process_group()
    return {"one_rank": found}


def _pass(
    model: Any, rows: Any, backend: Any, device: str
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    pack = backend.lay_out(rows).to(device)
    with attending(model, pack.implementation):
        logps: Any = read_pack(model, pack).logps
        logps.sum().backward()
    gradients = {}
    for name, parameter in model.named_parameters():
        gradient: Any = parameter.grad
        if gradient is not None:
            gradients[name] = getattr(gradient, "full_tensor", lambda g=gradient: g)()
    return logps.detach(), gradients
