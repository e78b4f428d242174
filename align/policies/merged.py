# pyright: basic
"""An adapter put into its base, so that the next training can start from what the last one made."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from align.errors import MachineError, RecipeError
from align.policies.loading import reads_images
from align.policies.model import Model
from align.reference import content_digest
from align.runs.cache import cached_folder

logger = logging.getLogger("align")


def whole_folder(model: Model, folder: str) -> str:
    """The folder itself; of an adapter's, one with base and adapter as one model, made once.

    A second adapter on top of the first would name a base that lies nowhere: loaded again, it would
    answer otherwise than it was trained. The sum is made in float32 and kept in the type that the
    weights are loaded in, under a key of adapter, base and type.

    Args:
        model: the recipe's section, which says in what type weights are loaded.
        folder: folder or hub id.

    Raises:
        RecipeError: it is the adapter of a classifier.
        MachineError: the adapter's base is not where it was, or the cache cannot be written.
    """
    if not (Path(folder) / "adapter_config.json").is_file():
        return folder
    adapter = PeftConfig.from_pretrained(folder)
    base = str(adapter.base_model_name_or_path)
    if adapter.task_type == "SEQ_CLS":
        raise RecipeError(
            f"model.model_name_or_path: {folder} holds the adapter of a reward or preference "
            "model, which writes nothing and starts no other training. Name the policy it was "
            f"trained from, {base}, or a judge's `path` or `model` for what it is."
        )
    try:
        config = AutoConfig.from_pretrained(base)
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise MachineError(
            f"The adapter in {folder} stands on {base}, which cannot be loaded ({first}). Put its "
            "base back there, or train from a whole model."
        ) from error
    if reads_images(config):
        return folder

    def build(target: Path) -> None:
        logger.info("Putting the adapter of %s into its base, once.", folder)
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        whole: Any = PeftModel.from_pretrained(plain, folder).merge_and_unload(safe_merge=True)
        saved_in = getattr(config, "dtype", None) or torch.float32
        dtype = saved_in if model.dtype == "auto" else getattr(torch, model.dtype)
        whole.to(dtype).save_pretrained(target)
        AutoTokenizer.from_pretrained(folder).save_pretrained(target)

    parts = {
        "adapter": content_digest(str(Path(folder) / "adapter_model.safetensors")),
        "settings": content_digest(str(Path(folder) / "adapter_config.json")),
        "base": content_digest(base),
        "dtype": model.dtype,
    }
    return str(cached_folder("merged", parts, build))
