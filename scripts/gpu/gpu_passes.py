"""Passes over forests with and without checkpointing: speed, share of the card, memory as foretold.

The share is of the card's 16-bit rate (MFU): 6 operations per parameter and token of the body, what
checkpointing computes twice not counted, and 6 per parameter of the head and scored token.
"""

from __future__ import annotations

import gc
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from bench_turns import meter_of
from gpu_stand import Setting, text_of

from align.forest import choose_backend
from align.forest.attention import attending
from align.forest.model import add_edge_head, read_pack
from align.forest.packing import unique_tokens

# Dense bfloat16 operations per second, by the makers' sheets.
RATES = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12}
TOKENS = 8192


def measure(setting: Setting) -> dict[str, Any]:
    found = setting.table()
    for name, specification in setting.models(
        "qwen2.5-0.5b", "llama-3.2-1b", "llama-3.1-8b"
    ).items():
        for is_checkpointing in (False, True):
            row: dict[str, Any] = {"model": name, "checkpointing": is_checkpointing}
            try:
                row |= _measured(specification, is_checkpointing, setting)
            except Exception as error:
                row["why"] = text_of(error)
            found.append(row)
            gc.collect()
            torch.cuda.empty_cache()
    return {"passes": found, "rate": _rate(setting)}


def _measured(specification: Any, is_checkpointing: bool, setting: Setting) -> dict[str, Any]:
    device = setting.device
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if device == "cuda" else 0
    model = specification.build(device, setting.seed)
    add_edge_head(model)
    pool = setting.rows("hh", 4 if setting.tiny else 40, specification.vocabulary)
    half = len(pool) // 2
    pairs = half
    while pairs > 1 and unique_tokens([*pool[:pairs], *pool[half : half + pairs]]) > TOKENS:
        pairs -= 1
    rows = [*pool[:pairs], *pool[half : half + pairs]]
    choice = choose_backend(model, [*rows[:2], *rows[pairs : pairs + 2]])
    pack = choice.backend.lay_out(rows).to(device)
    model.train()
    if is_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    meter, times = meter_of(device), []
    for turn in range(2 if setting.tiny else 8):
        meter.begin()
        with attending(model, pack.implementation):
            logps: Any = read_pack(model, pack).logps
            logps.sum().backward()
        seconds, *_ = meter.end()
        if setting.tiny or turn >= 3:
            times.append(seconds)
    # Of the last pass, which found the gradients there: the meter forgets the peaks before.
    peak = torch.cuda.max_memory_allocated() - before if device == "cuda" else None
    seconds = median(times)
    tokens, edges = pack.computed_tokens, len(pack.target)
    head = model.get_output_embeddings().weight.numel()
    tables = model.get_input_embeddings().weight.numel()
    body = sum(p.numel() for p in model.parameters()) - tables
    body -= 0 if model.config.tie_word_embeddings else head
    rate = _rate(setting)
    foretold = _foretold(model, tokens, is_checkpointing)
    return {
        "backend": choice.backend.name,
        "pairs": pairs,
        "tokens": tokens,
        "edges": edges,
        "seconds": seconds,
        "pairs_per_second": pairs / seconds,
        "tokens_per_second": tokens / seconds,
        "mfu": None if rate is None else 6 * (body * tokens + head * edges) / seconds / rate,
        "peak_gib": None if peak is None else peak / 2**30,
        "foretold_gib": foretold if isinstance(foretold, str) else foretold / 2**30,
    }


def _foretold(model: Any, tokens: int, is_checkpointing: bool) -> int | str:
    """Bytes by `align check`: weights, gradients, activations and logits; no optimizer here."""
    try:
        from align.app.memory import Parameters, training_memory
    except ImportError as error:
        return text_of(error)
    recipe: Any = SimpleNamespace(
        model=SimpleNamespace(
            dtype=str(model.dtype).removeprefix("torch."),
            load_in_4bit=False,
            load_in_8bit=False,
            use_peft=False,
        ),
        train=SimpleNamespace(
            gradient_checkpointing=is_checkpointing, bf16=False, fp16=False, optim="adamw_torch"
        ),
    )
    count = sum(p.numel() for p in model.parameters())
    memory = training_memory(
        recipe, tokens, Parameters(total=count, trained=count, adapter=0, quantised=0), model.config
    )
    return memory.total - memory.optimizer


def _rate(setting: Setting) -> float | None:
    if setting.device != "cuda":
        return None
    name = torch.cuda.get_device_name()
    return next((rate for card, rate in RATES.items() if card in name), None)
