# pyright: basic
"""The policy of a recipe's `model` section: its folder, configuration, tokenizer and weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from align.errors import AlignError, MachineError, RecipeError
from align.policies.model import Model
from align.reach import is_out_of_reach


def load_policy(model: Model, folder: str) -> PreTrainedModel:
    """The policy of a recipe's `model` section, from a folder or hub id, quantised if it says so.

    Raises:
        MachineError: 4- or 8-bit weights without bitsandbytes.
    """
    options = loading_options(model, folder)
    about = {k: v for k, v in options.items() if k in ("trust_remote_code", "revision")}
    kind: Any = AutoModelForCausalLM
    # A folder with an adapter alone has no configuration of its own; transformers finds its base.
    is_adapter = (Path(folder) / "adapter_config.json").is_file()
    if not is_adapter and reads_images(AutoConfig.from_pretrained(folder, **about)):
        kind = AutoModelForImageTextToText
    return kind.from_pretrained(folder, **options)


def loading_options(model: Model, folder: str) -> dict[str, Any]:
    """How transformers is to load the weights of a recipe's `model` section from a folder.

    Raises:
        MachineError: 4- or 8-bit weights without bitsandbytes.
    """
    options: dict[str, Any] = {
        "dtype": model.dtype if model.dtype == "auto" else getattr(torch, model.dtype),
        "trust_remote_code": model.trust_remote_code,
    }
    if not Path(folder).is_dir():
        options["revision"] = model.model_revision
    if model.attn_implementation != "auto":
        options["attn_implementation"] = model.attn_implementation
    if model.load_in_4bit or model.load_in_8bit:
        try:
            import bitsandbytes  # noqa: F401
        except ImportError as error:
            raise MachineError(
                "model.load_in_4bit and load_in_8bit need bitsandbytes, which is not installed. "
                "Install the extra: pip install 'align-toolkit[qlora]'."
            ) from error
        storage = model.bnb_4bit_quant_storage
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=model.load_in_4bit,
            load_in_8bit=model.load_in_8bit,
            bnb_4bit_quant_type=model.bnb_4bit_quant_type,
            bnb_4bit_use_double_quant=model.use_bnb_nested_quant,
            bnb_4bit_compute_dtype=options["dtype"] if model.dtype != "auto" else torch.bfloat16,
            bnb_4bit_quant_storage=getattr(torch, storage) if storage else None,
        )
        options["device_map"] = {"": PartialState().device}
    return options


def will_shard() -> bool:
    """Whether this process was launched to train on sharded weights."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def reads_images(config: Any) -> bool:
    """Whether a model's config is of one that reads pictures beside text."""
    return getattr(config, "vision_config", None) is not None


def _revision(model: Model, folder: str) -> dict[str, Any]:
    options: dict[str, Any] = {"trust_remote_code": model.trust_remote_code}
    if not Path(folder).is_dir():
        options["revision"] = model.model_revision
    return options


def load_tokenizer(model: Model, folder: str) -> Any:
    """The start policy's tokenizer, or its processor where it reads pictures; it can pad.

    Raises:
        RecipeError: there is no such folder or hub id, or it holds no tokenizer or processor.
        MachineError: the Hub cannot be reached.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **_revision(model, folder))
    except Exception as error:  # tokenizers raises plain Exception for a damaged file
        raise _no_part_of_a_model("tokenizer", folder, error) from error
    if reads_images(load_config(model, folder)):
        try:
            processor = AutoProcessor.from_pretrained(folder, **_revision(model, folder))
        except Exception as error:  # torchvision is missing, or the folder has none
            raise _no_part_of_a_model("processor", folder, error) from error
        if processor.tokenizer.pad_token is None:
            processor.tokenizer.pad_token = processor.tokenizer.eos_token
        return processor
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_config(model: Model, folder: str) -> PreTrainedConfig:
    """The start policy's configuration.

    Raises:
        RecipeError: there is none, or none that this version of transformers knows.
        MachineError: the Hub cannot be reached.
    """
    try:
        return AutoConfig.from_pretrained(folder, **_revision(model, folder))
    except (OSError, ValueError) as error:
        raise _no_part_of_a_model("configuration", folder, error) from error


def _no_part_of_a_model(part: str, folder: str, error: Exception) -> AlignError:
    how = "Write a folder that `save_pretrained` made, a Hub id, or world:sums."
    looks_local = folder.startswith((".", "/", "~")) or folder.count("/") > 1
    if Path(folder).is_dir():
        first = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(" .:")
        found = f"the folder {folder!r} holds no {part} that can be read ({first})"
    elif looks_local:
        found = f"there is no folder {folder!r}"
    elif is_out_of_reach(error):
        return MachineError(
            f"model.model_name_or_path: the Hub cannot be reached for {folder!r}, and it is not in "
            "the local cache. Check the network and HF_HUB_OFFLINE, or write a local folder."
        )
    else:
        first = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        found = f"no {part} could be loaded from {folder!r} ({first})"
    return RecipeError(f"model.model_name_or_path: {found}. {how}")
