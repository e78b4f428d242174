"""Which files of a finished run, its model or its data set, may be published; what is refused.

Three things never leave the machine: pickles (the trainer library leaves some, and loading one runs
code), secrets, and the paths of the machine. Files are chosen by a list of what a model needs, then
each is checked for being what its name says.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from align.errors import RecipeError
from align.publishing.leaks import SHAPES, home_as_tilde, known_secrets, secrets_in
from align.publishing.origins import is_local_name, is_machine_path, shown_name

MODEL_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "classifier.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "processor_config.json",
    "preprocessor_config.json",
    # A diffusion model: the network that was trained, and how it is sampled from.
    "unet/*.safetensors",
    "unet/*.safetensors.index.json",
    "unet/config.json",
    "scheduler/scheduler_config.json",
    "README.md",
)
DATASET_FILES = ("README.md", "data/*.parquet")
RUN_FILES = ("recipe.yaml", "metrics.json", "curves.png", "before.png", "after.png")
REQUIRED = ("README.md", "recipe.yaml", "metrics.json")
# Vocabularies are lists of words: "/root" alone is a word there, "/root/model" is not.
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "*.model")


class NotPublishable(RecipeError):
    """A run folder holds, under a name that would be published, what must not leave the machine."""


@dataclass(frozen=True)
class File:
    """One file of a push.

    Attributes:
        name: its path in the repository.
        source: the file in the run folder.
        size: bytes that are sent.
        content: the bytes that were checked and are sent; None for weights, sent from `source`.
        note: what was changed on the way, if anything.
    """

    name: str
    source: Path
    size: int
    content: bytes | None
    note: str = ""


def publishable_files(run_dir: Path, *, secrets: Sequence[str] = ()) -> list[File]:
    """The files of a finished run that a push sends, each checked.

    Local paths in `recipe.yaml` and in the configurations are shown by their last folder's name.

    Args:
        run_dir: the run's folder, with `model/` or `dataset/`, `recipe.yaml` and `metrics.json`.
        secrets: further strings that must not occur, besides what the environment holds.

    Raises:
        NotPublishable: something is missing, is a pickle or another kind of file than its name
            says, or holds a secret or the home folder's path. Nothing is sent then.
    """
    chosen, _ = choose(Path(run_dir))
    files = [_load(name, source) for name, source in chosen]
    _require_whole(run_dir, files)
    _refuse_secrets(run_dir, files, secrets)
    return files


def choose(run_dir: Path) -> tuple[list[tuple[str, Path]], list[tuple[str, str]]]:
    """(name in the repository, source) of what goes; (path, reason) of what stays."""
    chosen: list[tuple[str, Path]] = []
    left_out: list[tuple[str, str]] = []
    made = f"{made_folder(run_dir)}/"
    for path in sorted(_files_under(run_dir)):
        inside = path.relative_to(run_dir).as_posix()
        name = inside.removeprefix(made)
        patterns = RUN_FILES
        if inside.startswith(made):
            patterns = MODEL_FILES if made == "model/" else DATASET_FILES
        # fnmatch's * crosses folders, so the depth must agree too.
        if any(fnmatchcase(name, p) and name.count("/") == p.count("/") for p in patterns):
            root = run_dir / made if inside.startswith(made) else run_dir
            if not path.resolve().is_relative_to(root.resolve()):
                raise NotPublishable(
                    f"{inside} is a link that leads out of the run folder. Nothing was sent. Put "
                    "the file itself in its place and push again."
                )
            chosen.append((name, path))
        else:
            left_out.append((inside, _why_not(name)))
    return chosen, left_out


def made_folder(run_dir: Path) -> str:
    """`dataset` for the run of a data set, else `model`."""
    return "dataset" if (run_dir / "dataset").is_dir() else "model"


def _files_under(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        raise NotPublishable(
            f"{home_as_tilde(folder)} is not a folder. Give the folder of a finished run, the one "
            "that holds recipe.yaml, metrics.json and model/."
        )
    # model/ itself may be a link to a larger disk; rglob does not follow links.
    yield from (path for path in folder.rglob("*") if path.is_file())
    if (folder / "model").is_symlink():
        yield from (path for path in (folder / "model").rglob("*") if path.is_file())


def _why_not(name: str) -> str:
    if fnmatchcase(name, "*.bin") or name.endswith((".pt", ".pth", ".pkl", ".pickle", ".ckpt")):
        return "may be a pickle, which runs code when loaded"
    if name.startswith("checkpoint"):
        return "part of a checkpoint"
    return "not among the files that a published model needs"


def _load(name: str, source: Path) -> File:
    """Read one chosen file, check that it is what its name says, and take local paths out of it."""
    if name.endswith(".safetensors"):
        _safetensors_header(name, source)
        return File(name, source, source.stat().st_size, None)
    raw = source.read_bytes()
    content, note = raw, ""
    if name.endswith(".json"):
        node = _parsed(name, raw, json.loads)
        changes = {}
        if name == "metrics.json":
            changes = _without_local_paths(node, _is_machine_path_value)
        elif name in ("config.json", "adapter_config.json", "tokenizer_config.json"):
            changes = _without_local_paths(node, _is_local_model)
        if changes:
            content = (json.dumps(node, indent=2, ensure_ascii=False) + "\n").encode()
            note = _note(changes)
    elif name.endswith(".yaml"):
        node = _parsed(name, raw, yaml.safe_load)
        changes = _without_local_paths(node, _is_machine_path_value)
        if changes:
            content = yaml.safe_dump(node, sort_keys=False, allow_unicode=True).encode()
            note = _note(changes)
    elif name.endswith(".parquet"):
        if not (raw[:4] == raw[-4:] == b"PAR1"):
            raise _not_what_it_says(name, "Parquet")
    elif name.endswith(".png"):
        if not raw.startswith(b"\x89PNG\r\n\x1a\n"):
            raise _not_what_it_says(name, "a PNG picture")
    elif name.endswith(".model"):
        # Field 1 of sentencepiece's ModelProto, length-delimited: every such file begins with it.
        if not raw.startswith(b"\n"):
            raise _not_what_it_says(name, "a sentencepiece model")
    elif b"\0" in raw or _is_text_pickle(raw) or not _is_utf8(raw):
        raise _not_what_it_says(name, "text")
    return File(name, source, len(content), content, note)


def _safetensors_header(name: str, source: Path) -> bytes:
    """The JSON header of a safetensors file whose length agrees with it."""
    size = source.stat().st_size
    with source.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, 100_000_000):
            raise _not_what_it_says(name, "safetensors")
        header = stream.read(length)
    node = _parsed(name, header, json.loads)
    try:
        ends = [entry["data_offsets"][1] for key, entry in node.items() if key != "__metadata__"]
    except (AttributeError, KeyError, TypeError, IndexError):
        raise _not_what_it_says(name, "safetensors") from None
    if max(ends, default=0) != size - 8 - length:
        raise NotPublishable(
            f"{name} is cut off: its header promises {max(ends, default=0):,} bytes of weights and "
            f"{size - 8 - length:,} are there. Nothing was sent. Save the model, then push again."
        )
    return header


def _parsed(name: str, raw: bytes, parse: Callable[[str], Any]) -> Any:
    try:
        node = parse(raw.decode("utf-8"))
    except (ValueError, yaml.YAMLError):
        node = None
    if not isinstance(node, dict):
        raise _not_what_it_says(name, "safetensors, JSON or YAML, as its name says")
    return node


def _not_what_it_says(name: str, kind: str) -> NotPublishable:
    return NotPublishable(
        f"{name} is not {kind}, and a file of another kind, a pickle for one, is never sent. "
        "Nothing was sent. Save the model again with safe serialisation, or take the file "
        "out of the run folder, and push again."
    )


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _is_text_pickle(raw: bytes) -> bool:
    # Protocols 0 and 1 are printable: marks, GLOBAL "c<module>\n<name>\n", and STOP "." at the end.
    return bool(re.match(rb"[(\]}ld]*[ci][\w.]+\n[\w.]+\n", raw)) and raw.rstrip().endswith(b".")


def _is_machine_path_value(_key: str, value: str) -> bool:
    return is_machine_path(value)


def _is_local_model(key: str, value: str) -> bool:
    return key.endswith("name_or_path") and is_local_name(value)


def _without_local_paths(
    node: Any, is_local: Callable[[str, str], bool], at: str = ""
) -> dict[str, str]:
    """Replace local paths in place by their last name; the changes as {key: what stands there}."""
    changes: dict[str, str] = {}
    for key, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
        where = f"{at}.{key}" if at else str(key)
        if isinstance(value, dict | list):
            changes |= _without_local_paths(value, is_local, where)
        elif isinstance(value, str) and is_local(str(key), value):
            node[key] = changes[where] = shown_name(value)
    return changes


def _note(changes: Mapping[str, str]) -> str:
    return "; ".join(f"{key}: local path sent as {value!r}" for key, value in changes.items())


def _require_whole(run_dir: Path, files: Sequence[File]) -> None:
    have = {file.name for file in files}
    missing = [name for name in REQUIRED if name not in have]
    if made_folder(run_dir) == "dataset":
        if not any(name.endswith(".parquet") for name in have):
            missing.append("dataset/data/*.parquet")
    elif not have & {"config.json", "adapter_config.json", "unet/config.json"}:
        missing.append("model/config.json or model/adapter_config.json")
    elif not any(name.endswith(".safetensors") for name in have):
        missing.append("model/*.safetensors")
    for file in files:
        if file.name.endswith(".index.json") and file.content is not None:
            shards = set(json.loads(file.content).get("weight_map", {}).values())
            missing += sorted(f"model/{shard}" for shard in shards - have)
    if missing:
        raise NotPublishable(
            f"{home_as_tilde(run_dir)} is not the folder of a finished run: {', '.join(missing)} "
            "is missing. Nothing was sent. Run the command that made this folder again; it goes "
            "on where it stopped. Then push again."
        )


def _texts_of(parquet: bytes) -> bytes:
    """The rows of a Parquet file, one JSON object per line: what it holds is compressed."""
    import pyarrow.parquet  # heavy: only for a data set

    file = pyarrow.parquet.ParquetFile(io.BytesIO(parquet))
    lines = (
        json.dumps(row, ensure_ascii=False)
        for batch in file.iter_batches()
        for row in batch.to_pylist()
    )
    return "\n".join(lines).encode()


def _refuse_secrets(run_dir: Path, files: Sequence[File], secrets: Sequence[str]) -> None:
    needles = [*SHAPES, *known_secrets(secrets)]
    found: list[str] = []
    for file in files:
        content = file.content
        if content is None:
            content = _safetensors_header(file.name, file.source)
        if file.name.endswith(".parquet"):
            content = _texts_of(content)
        is_vocabulary = any(fnmatchcase(file.name, pattern) for pattern in VOCABULARIES)
        for what, at in secrets_in(content, needles, is_vocabulary=is_vocabulary):
            line = content.count(b"\n", 0, at) + 1
            found.append(f"{file.name}, line {line}, holds {what}")
    if found:
        more = f" (and {len(found) - 5} more)" if len(found) > 5 else ""
        raise NotPublishable(
            f"Secrets would be published: {'; '.join(found[:5])}{more}. Nothing was sent. Take "
            "them out where they come from, change those that others may have seen, and push again."
        )
