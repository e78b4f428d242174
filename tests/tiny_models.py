"""Models small enough for tests that read any text: a Llama over bytes, and an adapter on it."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from align.worlds.bytes import bytes_tokenizer


def build_llama(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Random weights, wide enough that answers differ; two query heads to a key head."""
    tokenizer = bytes_tokenizer(512)
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "tie_word_embeddings": True,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**(shape | changes)))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def build_adapter(folder: Path, base: Path, *, scale: float = 0.1, seed: int = 1) -> Path:
    """A LoRA adapter that moves every linear layer; with `scale` 0 it changes nothing."""
    torch.manual_seed(seed)
    model: Any = LlamaForCausalLM.from_pretrained(base)
    adapted: Any = get_peft_model(
        model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=scale)
    adapted.save_pretrained(folder)
    (folder / "README.md").unlink()
    return folder


def build_run(folder: Path, made: Path, **model: Any) -> Path:
    """A run's folder with what `made` holds as its model, and a recipe's `model` section."""
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(json.dumps({"model": model}))
    (folder / "model").symlink_to(made)
    return folder
