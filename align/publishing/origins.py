"""Where a model and its pairs come from, as a card can truthfully say it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from align.policies.fetched import FETCHED, is_fetched
from align.registry import WORLD

_HUB_CACHE = re.compile(r"(?:^|[/\\])(models|datasets)--([^/\\]+?)--([^/\\]+)(?:[/\\]|$)")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_MACHINE_PATH = re.compile(r"(/|~|\.{1,2}[/\\]|[A-Za-z]:[\\/]|\\\\|file:).+", re.DOTALL)


def is_machine_path(name: str) -> bool:
    """Whether `name` is written as a path that only one machine has (absolute, ~, ./ or ../)."""
    return _MACHINE_PATH.fullmatch(name) is not None


def is_local_name(name: str) -> bool:
    """Whether a model's or data set's name is of this machine rather than of the Hub."""
    if is_machine_path(name) or Path(name).exists():
        return True
    return _HUB_ID.fullmatch(name) is None and "/" in name


def is_hub_id(name: str) -> bool:
    """Whether a name is an id of the Hub, which the Hub accepts in a card's metadata."""
    return _HUB_ID.fullmatch(name) is not None and not is_local_name(name)


def shown_name(name: str) -> str:
    """`name` for strangers: a local path by its last part, a Hub cache folder by its Hub id."""
    cached = _HUB_CACHE.search(name)
    if cached:
        return f"{cached.group(2)}/{cached.group(3)}"
    if not is_local_name(name):
        return name
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1]


def named(name: str) -> str:
    """A model or data set as a sentence names it."""
    shown = shown_name(name)
    if shown.startswith(WORLD):
        return f"the built-in `{shown}`"
    return f"the local `{shown}`" if is_local_name(name) and "/" not in shown else f"`{shown}`"


def hub_base(base: str) -> str | None:
    """The base's id on the Hub, without revision; None where it has none."""
    if is_fetched(base):
        return FETCHED[base].hub
    shown = shown_name(base)
    return shown.partition("@")[0] if is_hub_id(base) or _HUB_CACHE.search(base) else None


def base_loading(base: str, revision: str | None = None) -> tuple[list[str], str, str]:
    """How the base is named in a program.

    Returns:
        Lines to import, the argument of `from_pretrained`, and what to say about it, if anything.
    """
    if base.startswith(WORLD):
        world = base.removeprefix(WORLD)
        return ["import align"], f'str(align.world("{world}").base_model())', ""
    if is_fetched(base):
        imports = ["from align.policies.fetched import fetched_folder"]
        return imports, f'fetched_folder("{base}")', f"{FETCHED[base].note}."
    found = hub_base(base)
    if found is not None:
        pinned = revision if revision not in (None, "main") else base.partition("@")[2]
        return [], f'"{found}"' + (f', revision="{pinned}"' if pinned else ""), ""
    if not is_local_name(base):
        # The first models of the Hub have names without an owner.
        return [], f'"{base}"', ""
    said = (
        f"The base was a local folder named `{shown_name(base)}`, which is nowhere else: put the "
        "path of your own copy in its place."
    )
    return [], '"path/to/the/base"', said


def base_licence(base: str, revision: str | None = None) -> str | None:
    """The licence that the base's own card states, read without a network; None where unknown."""
    if is_fetched(base):
        return FETCHED[base].licence
    card = Path(base).expanduser() / "README.md"
    if not card.is_file():
        found = hub_base(base)
        if found is None:
            return None
        from huggingface_hub import try_to_load_from_cache  # heavy: only where a card is written

        cached = try_to_load_from_cache(found, "README.md", revision=revision)
        if not isinstance(cached, str):
            return None
        card = Path(cached)
    try:
        text = card.read_text(encoding="utf-8")
        about: Any = yaml.safe_load(text.split("---\n")[1]) if text.startswith("---\n") else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, IndexError):
        return None
    licence: Any = about.get("license") if isinstance(about, Mapping) else None  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return licence if isinstance(licence, str) and licence != "unknown" else None


def split_of(recipe: Mapping[str, Any]) -> str:
    """Split and revision of the data, behind a comma each; a file has neither."""
    node: Mapping[str, Any] = recipe.get("data", {})
    source = str(node.get("completions") or node.get("groups") or node.get("pairs"))
    return split_in(node, source)


def split_in(node: Mapping[str, Any], source: str) -> str:
    """The same of any section with a source."""
    if not is_hub_id(source):
        return ""
    revision = f", revision `{node['revision']}`" if node.get("revision") else ""
    return (f", split `{node['split']}`" if node.get("split") else "") + revision


def pairs_told(recipe: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """Where the pairs or groups are from: rows that were there, or the policy's own answers."""
    prompts: Mapping[str, Any] | None = recipe.get("prompts")
    if prompts is None:
        data: Mapping[str, Any] = recipe.get("data", {})
        if data.get("groups"):
            groups = str(data["groups"])
            return f"Groups of completions from {named(groups)}{split_of(recipe)}."
        pairs = str(data.get("pairs", "unknown"))
        return f"Preference pairs from {named(pairs)}{split_of(recipe)}."
    asked = str(prompts.get("source", "unknown"))
    loop: Mapping[str, Any] = metrics.get("loop") or {}
    stages: Sequence[Mapping[str, Any]] = recipe.get("each_round") or ()
    judge = next((stage["by"] for stage in stages if stage.get("run") == "judge"), None)
    judged = f", judged by `{judge}`" if judge else ""
    calls = f" and {loop['judge_calls']:,} judgements" if loop.get("judge_calls") else ""
    kind = "groups" if loop.get("groups") else "pairs"
    made = f" They are {loop[kind]:,} {kind}{calls} in all." if loop.get(kind) else ""
    rounds = recipe.get("rounds", "its")
    return (
        f"{kind.capitalize()} that the loop made in {rounds} rounds out of its policies' own "
        f"answers{judged}. Prompts from {named(asked)}{split_in(prompts, asked)}.{made}"
    )
