# pyright: basic
"""Models from folders and hub ids: the policy that is trained, and frozen ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import AutoPeftModelForCausalLM, PeftConfig, PeftModel
from transformers import (
    AutoConfig,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from trl.trainer.utils import create_model_from_path

from align.policies.fetched import folder_of
from align.policies.loading import reads_images
from align.trainers.config import PreferenceConfig


def load_frozen(
    source: str, dtype: torch.dtype, trust_remote_code: bool = False
) -> PreTrainedModel:
    """A frozen policy from a folder or hub id (`id@revision`), an adapter's folder included."""
    name, _, revision = folder_of(source).partition("@")
    # TRL would spread it over all devices; whoever scores with it moves it to one.
    options: dict[str, Any] = {"device_map": None, "dtype": dtype}
    options["trust_remote_code"] = trust_remote_code
    if revision:
        options["revision"] = revision
    if torch.distributed.is_initialized():
        # TRL's default would spread each process's copy over all devices.
        options["device_map"] = None
    if (Path(name) / "adapter_config.json").is_file():
        model: Any = _adapted(name, options)
    else:
        model = create_model_from_path(name, **options)
    return model.requires_grad_(False).eval()


def _adapted(name: str, options: dict[str, Any]) -> Any:
    base = PeftConfig.from_pretrained(name).base_model_name_or_path
    trust = {"trust_remote_code": options["trust_remote_code"]}
    if base is None or not reads_images(AutoConfig.from_pretrained(base, **trust)):
        return AutoPeftModelForCausalLM.from_pretrained(name, **options)
    return PeftModel.from_pretrained(create_model_from_path(base, **options), name)


def load_trained(
    name: str,
    args: PreferenceConfig,
    processing_class: PreTrainedTokenizerBase | None,
    quantization_config: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The policy and its tokenizer, as TRL loads them with `args.model_init_kwargs`."""
    name = folder_of(name)
    init: Any = args.model_init_kwargs or {}
    options: dict[str, Any] = dict(init)
    options.setdefault("trust_remote_code", args.trust_remote_code)
    if quantization_config is not None:
        options["quantization_config"] = quantization_config
    launch: Any = args.distributed_state
    if launch.distributed_type in ("MULTI_GPU", "DEEPSPEED"):
        options["device_map"] = None
    model = create_model_from_path(name, **options)
    # TRL warns when it finds these beside a loaded model.
    args.model_init_kwargs = None
    if processing_class is None:
        reader = AutoProcessor if reads_images(model.config) else AutoTokenizer
        tokenizer: Any = reader.from_pretrained(
            name, revision=options.get("revision"), trust_remote_code=options["trust_remote_code"]
        )
        return model, tokenizer
    return model, processing_class
