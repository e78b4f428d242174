# pyright: basic
"""The policy that a run begins with: measured once, and in memory only while somebody asks.

Every policy of a run is compared with it. Its scores are kept under its identity, which is known
from its files; so most comparisons need no second model.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import try_to_load_from_cache

from align.reference import Identity, content_digest, digest, tokenizer_digest

if TYPE_CHECKING:
    from align.policies.model import Model

ADAPTER_CONFIG = "adapter_config.json"
# Keys of the `model` section that decide what numbers the same files give.
LOADING = (
    "dtype",
    "attn_implementation",
    "load_in_8bit",
    "load_in_4bit",
    "bnb_4bit_quant_type",
    "use_bnb_nested_quant",
    "bnb_4bit_quant_storage",
)


class Start:
    """A run's start policy.

    Args:
        identity: what its scores are kept under; None where its files do not tell who it is.
        load: gives the model, on its device; called once, by the first who asks for `model`.
    """

    def __init__(self, identity: Identity | None, load: Callable[[], Any]) -> None:
        self.identity = identity
        self._load = load
        self._model: Any = None

    @classmethod
    def in_memory(cls, model: Any, identity: Identity | None = None) -> Start:
        """One that is loaded already."""
        start = cls(identity, lambda: model)
        start._model = model
        return start

    @property
    def model(self) -> Any:
        """Its weights."""
        if self._model is None:
            self._model = self._load()
        return self._model

    def is_model(self, model: Any) -> bool:
        """Whether that very object is the start policy; loads nothing."""
        return self._model is model


class AdapterOff:
    """A model with an adapter, answering without it: its base as a model of its own.

    It stands where a second copy of the base would; everything but the answer is the model's own.

    Args:
        policy: a PEFT model.
    """

    def __init__(self, policy: Any) -> None:
        self._policy = policy

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The base's forward pass."""
        return self._without(self._policy, *args, **kwargs)

    def state_dict(self) -> dict[str, Any]:
        """The base's own tensors under its own names, by which it is known."""
        adapters = [f".{name}." for name in self._policy.peft_config]
        return {
            name.replace(".base_layer.", ".").replace(".original_module.", "."): tensor
            for name, tensor in self._policy.get_base_model().state_dict().items()
            if not any(part in name for part in adapters)
        }

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The base's continuations."""
        return self._without(self._policy.generate, *args, **kwargs)

    def _without(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        trained = [parameter.requires_grad for parameter in self._policy.parameters()]
        try:
            with self._policy.disable_adapter():
                return call(*args, **kwargs)
        finally:
            # peft gives an adapter back as one that is trained.
            for parameter, was in zip(self._policy.parameters(), trained, strict=True):
                parameter.requires_grad_(was)


def wears_the_start(policy: Any, start: str) -> bool:
    """Whether a policy of the run is the start policy under one adapter that can be switched off.

    Args:
        policy: in memory; its base, where it has one, was loaded from `start`.
        start: folder or hub id.
    """
    # A start that is an adapter itself would be switched off too.
    is_adapter = (Path(start) / ADAPTER_CONFIG).is_file()
    base_is_adapted = getattr(policy, "_hf_peft_config_loaded", False)
    return hasattr(policy, "peft_config") and not is_adapter and not base_is_adapted


def start_identity(model: Model, folder: str, tokenizer: Any) -> Identity | None:
    """Who the start policy is, from its files and how they are loaded; loads no weights.

    Args:
        model: the recipe's `model` section.
        folder: folder or hub id of the start policy.
        tokenizer: its own; its processor where it reads pictures.

    Returns:
        None for a hub id whose commit is not known here.
    """
    files = _files(folder, model.model_revision)
    if files is None:
        return None
    loading = {name: getattr(model, name) for name in LOADING}
    return Identity(
        source=folder,
        weights=digest([*files, json.dumps(loading)]),
        tokenizer=tokenizer_digest(tokenizer),
        dtype=f"{model.dtype}/no",
    )


def _files(folder: str, revision: str) -> list[str] | None:
    """What tells the files of a model from others, its base's included; None: nothing does."""
    found = Path(folder).expanduser()
    if not found.is_dir():
        config = try_to_load_from_cache(folder, "config.json", revision=revision)
        # The cache keeps a commit's files in a folder of its name.
        return [folder, Path(config).parent.name] if isinstance(config, str) else None
    files = [content_digest(folder)]
    if (found / ADAPTER_CONFIG).is_file():
        about = json.loads((found / ADAPTER_CONFIG).read_text())
        base = _files(about["base_model_name_or_path"], about.get("revision") or "main")
        return None if base is None else files + base
    return files
