# pyright: basic
"""What a starter recipe is asked for, and the model that was named for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from align import registry
from align.app.named_models import NamedModel, named_model
from align.app.starter.choices import Fit, Here
from align.app.starter.text import Line
from align.errors import RecipeError
from align.objectives import GroupObjective, Objective
from align.policies.loading import load_config, reads_images
from align.policies.model import Model
from align.stages.policies import policy_folder


@dataclass(frozen=True)
class Wish:
    """What was asked for.

    Attributes:
        model: as `named_model` takes it; whole.
        data: pairs, or prompts of a loop: file, folder, Hub id, world.
        method: name of the formula.
        split: of a Hub data set.
        columns: `ours=theirs`.
        loop: whether the recipe goes through rounds.
        reward: of a loop: what judges.
    """

    model: str
    data: str
    method: str
    split: str
    columns: tuple[str, ...]
    loop: bool
    reward: str | None


@dataclass(frozen=True)
class Found:
    """The model that was named, with what is known of it."""

    name: str
    named: NamedModel
    tokenizer: Any
    config: Any
    here: Here

    @property
    def context(self) -> int:
        """Tokens that it takes."""
        return getattr(self.config.get_text_config(), "max_position_embeddings", None) or 2**31

    @property
    def about(self) -> str:
        """For people: family, layers, chat template."""
        config = self.config.get_text_config()
        chat = "a" if self.tokenizer.chat_template is not None else "no"
        return f"{config.model_type}, {config.num_hidden_layers} layers, {chat} chat template"


def objective_of(name: str) -> Objective:
    """The formula of a name, with its defaults.

    Raises:
        RecipeError: there is no such formula, it has a hyper-parameter without default, or it is
            one over groups.
    """
    if not registry.is_path(name) and name not in registry.names("objective"):
        raise RecipeError(f"--method: {registry.unknown('objective', name)}.")
    made: Any = registry.node("objective", name)
    if issubclass(made, GroupObjective):
        raise RecipeError(
            f"--method {name}: it learns from groups of completions, and starter recipes are of "
            "pairs; begin with one of recipes/groups, or write `data: {groups: FILE}`."
        )
    try:
        return made()
    except ValidationError as error:
        missing = ", ".join(str(fault["loc"][0]) for fault in error.errors())
        raise RecipeError(
            f"--method {name}: the formula has no default for {missing}, so a recipe must be "
            "written by hand."
        ) from error


def found_model(word: str) -> Found:
    """The model of a name, its tokenizer and configuration; only an adapter's are loaded.

    Raises:
        RecipeError: there is no such model, or it reads pictures.
        MachineError: it cannot be fetched.
    """
    named = named_model(word)
    if named.base is not None:
        # A run that begins with an adapter trains on what it makes of its base.
        section = Model(model_name_or_path=word, dtype="float32")
        named = NamedModel(word, section, policy_folder(section), None, named.run)
    tokenizer = named.tokenizer()
    config = load_config(named.section, named.folder)
    if reads_images(config):
        raise RecipeError(
            f"--model {word} reads pictures; starter recipes are for text. recipes/opa_dpo/"
            "llava.yaml is one to begin with."
        )
    return Found(word, named, tokenizer, config, Here.now())


def columns_of(wish: Wish) -> dict[str, str]:
    """Our names of columns, and where they stand in the rows.

    Raises:
        RecipeError: one is not written as `ours=theirs`.
    """
    found: dict[str, str] = {}
    for word in (part for given in wish.columns for part in given.split(",")):
        ours, equals, theirs = word.partition("=")
        if not equals or not ours or not theirs:
            raise RecipeError(f"--columns {word}: write ours=theirs, such as chosen=better.")
        found[ours.strip()] = theirs.strip()
    return found


def source_lines(wish: Wish, key: str, why: str) -> list[Line]:
    """Where the rows come from, under `key`."""
    lines = [Line(key, wish.data, why)]
    if wish.split != "train":
        lines.append(Line("split", wish.split, "of the data set"))
    if wish.columns:
        lines.append(Line("columns", columns_of(wish), "our names, and theirs"))
    return lines


def heading(wish: Wish, found: Found) -> list[str]:
    """What stands above the recipe."""
    kind = "loop" if wish.loop else "recipe"
    return [
        f"A starter {kind} by `align init` for {found.here}.",
        "Every value may be changed; `align recipe explain KEY` says what a key means, and",
        "`align recipe show` prints all keys with their defaults.",
    ]


def model_lines(found: Found, fit: Fit) -> list[Line]:
    """The `model` section."""
    lines = [Line("model_name_or_path", found.name, found.about)]
    return lines + [Line(key, value, fit.why.get(key, "")) for key, value in fit.model.items()]


def with_hint(text: str) -> str:
    """An error of the readers, in the words of the command line."""
    text = text.replace("data.pairs", "--data").replace("data.split", "--split")
    if "has no column" not in text:
        return text
    return (
        f"{text} Or say which columns they are: `--columns chosen=<theirs>,"
        "rejected=<theirs>,prompt=<theirs>`, written as data.columns. Rows of prompts alone are "
        "for --loop."
    )
