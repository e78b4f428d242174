# pyright: basic
"""Frozen roles that are adapters on the policy's own base: no second copy of the base in memory."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from accelerate.utils import is_peft_model

ROLE_ADAPTER = "frozen_role"


def on_same_base(policy: Any, source: str) -> bool:
    """Whether `source` is the base of the policy's adapter, or an adapter's folder on that base."""
    if not is_peft_model(policy):
        return False
    own = policy.get_base_model().config._name_or_path
    about = Path(source) / "adapter_config.json"
    base = json.loads(about.read_text())["base_model_name_or_path"] if about.is_file() else source
    return bool(own) and base == own


@contextlib.contextmanager
def as_adapter(policy: Any, source: str, digest: Callable[..., str]) -> Iterator[str]:
    """Inside, the policy answers as `source`, one `on_same_base`; outside, as itself again.

    Args:
        policy: with an adapter of its own.
        source: folder or hub id.
        digest: as `weights_digest`.

    Yields:
        Sha256 over the weights that answer, in hex.
    """
    if not (Path(source) / "adapter_config.json").is_file():
        with policy.disable_adapter():
            yield digest(policy, without=[f".{name}." for name in policy.peft_config])
        return
    active = policy.active_adapter
    trained = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    policy.load_adapter(source, adapter_name=ROLE_ADAPTER, is_trainable=False)
    try:
        policy.set_adapter(ROLE_ADAPTER)
        others = [f".{name}." for name in policy.peft_config if name != ROLE_ADAPTER]
        yield digest(policy, without=others)
    finally:
        policy.set_adapter(active)
        policy.delete_adapter(ROLE_ADAPTER)
        for name, parameter in policy.named_parameters():
            parameter.requires_grad_(name in trained)
