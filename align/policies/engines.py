"""What writes with a policy's weights, by the recipe's word: `engine: transformers`, `vllm`, own.

An engine is a function `(Loading) -> context manager of a Policy`; what it opens it closes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align import registry
from align.policies.base import Policy
from align.policies.in_process import InProcessPolicy
from align.policies.vllm_engine import VLLMPolicy


@dataclass(frozen=True)
class Loading:
    """The weights that an engine is to write with.

    Attributes:
        folder: where they lie.
        borrowed: gives them loaded, in this process, and takes them back unchanged.
        tokenizer: of them.
        rows: texts drawn at a time, where the engine asks for that.
    """

    folder: Path
    borrowed: Callable[[], AbstractContextManager[Any]]
    tokenizer: Any
    rows: int


def opened(engine: str, loading: Loading) -> AbstractContextManager[Policy]:
    """The policy that an engine makes of weights.

    Raises:
        RecipeError: there is no such engine, or it is not installed.
    """
    return registry.find("policy", engine).value(loading)


@contextmanager
def in_process(loading: Loading) -> Iterator[Policy]:
    """transformers, in this process."""
    with loading.borrowed() as model:
        yield InProcessPolicy(model, loading.tokenizer, rows=loading.rows)


@contextmanager
def vllm(loading: Loading) -> Iterator[Policy]:
    """vLLM, in this process."""
    yield VLLMPolicy(loading.folder)


def problem_with(engine: str) -> str | None:
    """What is wrong with the word, by its name alone; None where it is fine."""
    if registry.is_path(engine) or engine in registry.names("policy"):
        return None
    return registry.unknown("policy", engine)
