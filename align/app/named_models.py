# pyright: basic
"""The model that a command's argument names: a folder, a run, an adapter, a Hub id, a built-in one.

A recipe's `model.model_name_or_path` is resolved by the same function; what a command takes beside
that are the folders that runs leave, with adapters on whatever base they were trained on.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import yaml
from pydantic import ValidationError
from transformers import AutoTokenizer

from align.errors import AlignError, DataError, RecipeError
from align.policies.loading import load_config, load_tokenizer, reads_images
from align.policies.model import Model
from align.registry import no_such_world
from align.stages.policies import load_adapted, load_whole, policy_folder

DType: TypeAlias = Literal["auto", "float32", "bfloat16", "float16"]
KINDS = "a folder that `save_pretrained` made, a run's folder, a Hub id, or world:sums"


@dataclass(frozen=True)
class NamedModel:
    """What a command's word for a model stands for.

    Attributes:
        word: as it was given.
        section: how weights are loaded: of an adapter the base's, as its run's recipe says.
        folder: folder or Hub id of the weights, or the adapter's folder.
        base: of an adapter: folder or Hub id of what it was trained on; None of a whole model.
        run: the run's folder that it is of, if it is of one.
    """

    word: str
    section: Model
    folder: str
    base: str | None
    run: Path | None

    @property
    def weights(self) -> str:
        """Folder or Hub id of the whole weights: the model's own, or the base's."""
        return self.folder if self.base is None else self.base

    def model(self) -> Any:
        """The weights, on this process's device; an adapter as a `PeftModel` on its base.

        Raises:
            RecipeError: the adapter does not fit the base.
        """
        if self.base is None:
            return load_whole(self.section, self.folder)
        try:
            return load_adapted(self.section, Path(self.folder), self.base, trainable=False)
        except (RuntimeError, ValueError) as error:
            # So torch tells of other shapes, and peft of layers that are not there.
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise RecipeError(
                f"{self.word}: the adapter does not fit its base {self.base} "
                f"({' '.join(lines[:2])[:300]}). Name the base it was trained on with --base."
            ) from error

    def tokenizer(self) -> Any:
        """The model's own, an adapter's where it brings one; a processor where it reads pictures.

        Raises:
            RecipeError: there is no such folder or Hub id, or it holds none.
            MachineError: the Hub cannot be reached.
        """
        try:
            found = load_tokenizer(self.section, self.weights)
            is_reader = reads_images(load_config(self.section, self.weights))
        except AlignError as error:
            where = "MODEL" if self.base is None else f"{self.word}, its base"
            text = str(error).replace("model.model_name_or_path", where)
            hint = "" if self.base is None else " Or say with --base where the base lies."
            raise type(error)(text + hint) from error
        if self.base is None or is_reader:
            return found
        if (Path(self.folder) / "tokenizer_config.json").is_file():
            found = AutoTokenizer.from_pretrained(self.folder)
            if found.pad_token is None:
                found.pad_token = found.eos_token
        return found


def named_model(word: str, *, base: str | None = None, dtype: DType | None = None) -> NamedModel:
    """What `word` stands for; nothing is loaded.

    Args:
        word: a folder, a run's folder or its `model`, an adapter's folder, a Hub id, world:NAME, or
            the name of a model that is fetched.
        base: where an adapter's base lies, in place of where it lay in training.
        dtype: type of the weights; None takes the one they were saved in, and for an adapter the
            one that its run's recipe says.

    Raises:
        RecipeError: it stands for nothing, a run that is not finished, or an adapter without base.
    """
    path = Path(word).expanduser()
    if not path.is_dir():
        if _is_gone(word):
            raise RecipeError(f"MODEL: there is no folder {word!r}. Give {KINDS}.")
        if base is not None:
            raise RecipeError(f"--base {base}: {word} is no adapter's folder, so it has no base.")
        section = _section(word, dtype)
        return NamedModel(word, section, policy_folder(section), None, None)
    run = _run_of(path)
    folder = path if run is None else run / "model"
    if run is not None and not folder.is_dir():
        raise RecipeError(
            f"{word} is the folder of a run that has made no model yet: run its command again to "
            "finish it, or give the folder of a finished run."
        )
    if (folder / "adapter_config.json").is_file():
        return _adapted(word, folder, run, base, dtype)
    if not (folder / "config.json").is_file():
        what = "a diffusion model" if (folder / "unet").is_dir() else "no config.json, no adapter"
        raise RecipeError(f"{word} holds {what}, and no language model. Give {KINDS}.")
    if base is not None:
        raise RecipeError(f"--base {base}: {word} is a whole model, not an adapter.")
    return NamedModel(word, _section(str(folder), dtype), str(folder), None, run)


def _run_of(path: Path) -> Path | None:
    """The run's folder that a path is, or is the `model` of."""
    found = path.resolve().parent if path.resolve().name == "model" else path
    return found if (found / "recipe.yaml").is_file() else None


def _section(name: str, dtype: DType | None) -> Model:
    if (problem := no_such_world(name)) is not None:
        raise RecipeError(f"MODEL: {problem}. Give {KINDS}.")
    return Model(model_name_or_path=name, dtype=dtype or "auto")


def _adapted(
    word: str, folder: Path, run: Path | None, base: str | None, dtype: DType | None
) -> NamedModel:
    recorded = _recorded_base(folder)
    section = _section(recorded or str(folder), dtype) if run is None else _recipe_section(run)
    if dtype is not None:
        section = section.model_copy(update={"dtype": dtype})
    if base is None:
        found = recorded
        if found is None or (run is not None and not Path(found).is_dir()):
            # The folder may have moved; a built-in or fetched base is made anew.
            found = policy_folder(section)
    else:
        found = named_model(base).folder
    if _is_gone(found):
        raise RecipeError(
            f"{word} is an adapter, and its base lay at {found!r}, which is not here. Say with "
            "--base where it lies."
        )
    if (Path(found) / "adapter_config.json").is_file():
        raise RecipeError(
            f"{word} is an adapter on {found}, which is an adapter itself: `align merge` that one, "
            "and name the merged folder with --base."
        )
    return NamedModel(word, section, str(folder), found, run)


def _is_gone(name: str) -> bool:
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1
    return looks_local and not Path(name).expanduser().is_dir()


def _recorded_base(folder: Path) -> str | None:
    """Where an adapter's base lay when it was trained, as peft wrote it down."""
    path = folder / "adapter_config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path") or None
    except (ValueError, AttributeError) as error:
        raise DataError(f"{path} is no JSON of an adapter: save or fetch it again.") from error


def _recipe_section(run: Path) -> Model:
    """The `model` section of a run's recipe."""
    path = run / "recipe.yaml"
    try:
        stored = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Model.model_validate(stored["model"])
    except (yaml.YAMLError, UnicodeDecodeError, ValidationError, KeyError, TypeError) as error:
        first = str(error).splitlines()[0]
        raise DataError(
            f"{path} says no longer how the model was loaded ({first}): put the file back, or copy "
            "the adapter's folder elsewhere and name its base with --base."
        ) from error
