"""Versions of everything that can move a number."""

from __future__ import annotations

from importlib.metadata import version

LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")


def versions() -> dict[str, str]:
    """Of this toolkit, as `align`, and of the libraries under it."""
    return {"align": version("align-toolkit")} | {name: version(name) for name in LIBRARIES}
