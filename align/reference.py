"""Frozen policies as named roles: who they are, where they come from, what they say about our rows.

A role (`reference`, `previous`, `earlier`, `guide`, `anchor`) is scored once over all rows, before
training, and its per-token log-probs become columns of the dataset; training then keeps only the
policy in memory. The scores are stored under a key made of everything that determines them, so a
stale one can never be read.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset, Features, List, Value
from torch import nn

from align.progress import progress
from align.runs.manifest import damage, file_digest, publish

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

START = "start"


def cache_root() -> Path:
    """Where scores and built-in models are kept: $ALIGN_CACHE, or ~/.cache/align."""
    return Path(os.environ.get("ALIGN_CACHE") or Path.home() / ".cache" / "align")


@dataclass(frozen=True)
class Identity:
    """Who a frozen policy is.

    Attributes:
        source: where it came from, for people: `start`, a folder, a hub id.
        weights: sha256 over every parameter and buffer, an adapter's included.
        tokenizer: sha256 over the tokenizer, its special tokens and its chat template.
        dtype: weights' dtype and the autocast dtype the scores were made in.
    """

    source: str
    weights: str
    tokenizer: str
    dtype: str

    @property
    def key(self) -> str:
        """16 hex digits of everything but `source`, which has no influence on a score."""
        return digest([self.weights, self.tokenizer, self.dtype])[:16]

    def to_json(self) -> dict[str, str]:
        """Plain values for a manifest."""
        return asdict(self)


def digest(parts: Iterable[str]) -> str:
    """Sha256 over length-prefixed texts, in hex."""
    h = hashlib.sha256()
    for part in parts:
        data = part.encode()
        h.update(len(data).to_bytes(8, "little") + data)
    return h.hexdigest()


def weights_digest(model: nn.Module, without: Sequence[str] = ()) -> str:
    """Sha256 over names, dtypes, shapes and bytes of the whole state, in hex.

    Args:
        model: whose state.
        without: tensors with one of these in their name are left out.
    """
    state = sorted(model.state_dict().items())
    return tensors_digest(state, len(state), without)


def tensors_digest(
    state: Iterable[tuple[str, Any]], total: int, without: Sequence[str] = ()
) -> str:
    """Sha256 over names, dtypes, shapes and bytes, in hex.

    Args:
        state: a model's tensors by name, in the order of their names.
        total: how many there are.
        without: tensors with one of these in their name are left out.
    """
    h = hashlib.sha256()
    with progress("hash weights", total, "tensors") as advance:
        for name, tensor in state:
            advance()
            if not isinstance(tensor, torch.Tensor) or any(part in name for part in without):
                continue
            h.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            # Viewed as bytes, because numpy knows neither bfloat16 nor float8.
            h.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return h.hexdigest()


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Sha256 over vocabulary, merges, special tokens and chat template, in hex.

    Of a processor, over how it prepares pictures too.
    """
    if (of_images := getattr(tokenizer, "image_processor", None)) is not None:
        processor: Any = tokenizer
        own = [repr(processor.chat_template), repr(processor.image_token)]
        return digest([tokenizer_digest(processor.tokenizer), of_images.to_json_string(), *own])
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = (
        backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    )
    special = repr(sorted((k, str(v)) for k, v in tokenizer.special_tokens_map.items()))
    return digest([content, special, repr(tokenizer.chat_template)])


def rows_digest(dataset: Dataset, columns: Sequence[str]) -> str:
    """Sha256 over the given columns of all rows, in order, in hex."""
    h = hashlib.sha256()
    batches: Any = dataset.select_columns(list(columns)).iter(batch_size=1000)
    for batch in batches:
        h.update(repr([batch[name] for name in columns]).encode())
    return h.hexdigest()


class ConfigOnly(nn.Module):
    """A model with a config and no weights.

    TRL's DPOTrainer loads a second copy of the policy from its original folder whenever no
    reference model is given, which is a wrong reference when the weights were changed in memory. It
    is given this instead.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.config = config


SCORED_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")


@dataclass(frozen=True)
class ScoreColumns:
    """The columns that hold a role's per-token log-probs [nats].

    Attributes:
        stored: their names on disk.
        beside: their names beside the rows, with {role} in them.
        feature: what a cell is.
    """

    stored: tuple[str, ...]
    beside: tuple[str, ...]
    feature: Any

    def of(self, role: str) -> tuple[str, ...]:
        """Names of the columns of a role."""
        return tuple(name.format(role=role) for name in self.beside)


PAIR_SCORES = ScoreColumns(
    stored=("chosen", "rejected"),
    beside=("{role}_chosen_logps", "{role}_rejected_logps"),
    feature=List(Value("float32")),
)


class RoleScores:
    """The scores of one identity over one set of rows, on disk.

    Args:
        root: folder that holds all scores.
        identity: whose scores they are.
        rows: `rows_digest` over the columns of token ids; it covers truncation and order.
        backend: how the forward pass was laid out, since each rounds in its own way.
        columns: what is kept of each row.
    """

    def __init__(
        self,
        root: Path,
        identity: Identity,
        rows: str,
        backend: str,
        columns: ScoreColumns = PAIR_SCORES,
    ) -> None:
        self.folder = root / f"{identity.key}-{rows[:16]}-{backend}"
        self._columns = columns
        self._about = {"identity": identity.to_json(), "rows": rows, "backend": backend}

    def are_there(self) -> bool:
        """Whether they are there, whole; every file is hashed."""
        return damage(self.folder) is None

    def load(self, role: str) -> Dataset | None:
        """The score columns under the role's names, or None when they are absent or damaged."""
        return self.read(role) if self.are_there() else None

    def read(self, role: str) -> Dataset:
        """The score columns under the role's names, of scores that `are_there`."""
        stored = Dataset.load_from_disk(str(self.folder / "scores"))
        return stored.rename_columns(
            dict(zip(self._columns.stored, self._columns.of(role), strict=True))
        )

    def save(self, *columns: Sequence[Any]) -> None:
        """Publishes per-token log-probs [nats], one cell per row in each of the columns."""
        stored = self._columns.stored
        features = Features(dict.fromkeys(stored, self._columns.feature))
        if damage(self.folder) is None:
            # Another run that shares the cache was quicker; its readers keep what they read.
            return
        partial = self.folder.with_name(f"{self.folder.name}.partial-{os.getpid()}")
        partial.mkdir(parents=True, exist_ok=True)
        table = Dataset.from_dict(dict(zip(stored, columns, strict=True)), features=features)
        table.save_to_disk(str(partial / "scores"))
        publish(partial, self.folder, self._about)


def content_digest(path: str) -> str:
    """Sha256 over the files at a local path; a hub id is its own name."""
    found = Path(path).expanduser()
    if not found.exists():
        return path
    h = hashlib.sha256()
    files = sorted(f for f in found.rglob("*") if f.is_file()) if found.is_dir() else [found]
    for file in files:
        h.update(str(file.relative_to(found)).encode() + b"\0")
        h.update(bytes.fromhex(file_digest(file)))
    return h.hexdigest()
