"""The cards of reward models, preference models and imitating policies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from align.errors import DataError
from align.publishing.cards import adapter_of, capital, code_block, counts, front_matter, results
from align.publishing.origins import (
    base_licence,
    base_loading,
    hub_base,
    is_hub_id,
    named,
    shown_name,
    split_of,
)
from align.publishing.training_card import training
from align.report.measures import metrics_from, read_json

_MADE: Mapping[str, str] = {
    "reward": "made a Bradley-Terry reward model",
    "preference_model": "made a preference model: it reads two answers at once, in both orders",
    "sft": "fine-tuned on completions",
}
_LIMITS: Mapping[str, str] = {
    "reward": "A reward model repeats the taste of those who labelled its pairs, and what is easy "
    "to see in them, such as length; answers unlike its pairs get scores all the same. ",
    "preference_model": "A preference model repeats the taste of those who labelled its pairs, and "
    "what is easy to see in them, such as length; answers unlike its pairs are compared all the "
    "same. ",
    "sft": "A model that imitates takes over what its completions get wrong too. ",
}


def write_kind_card(run_dir: Path) -> Path:
    """Write `model/README.md` from the run's `recipe.yaml` and `metrics.json`; return its path.

    Raises:
        DataError: one of the two files is missing or broken.
    """
    try:
        recipe: Any = yaml.safe_load((run_dir / "recipe.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(
            f"{run_dir / 'recipe.yaml'} cannot be read, so the model card cannot say what was "
            "trained. Run the command that made this run again."
        ) from error
    path = run_dir / "model" / "README.md"
    metrics = read_json(run_dir / "metrics.json")
    path.write_text(kind_card(recipe, metrics, adapter_of(path.parent)), encoding="utf-8")
    return path


def kind_card(
    recipe: Mapping[str, Any], metrics: Mapping[str, Any], adapter: Mapping[str, Any] | None
) -> str:
    """The text of a card.

    Args:
        recipe: the resolved recipe.
        metrics: what `metrics.json` holds.
        adapter: of a folder that holds a LoRA adapter, what its `adapter_config.json` says.

    Raises:
        DataError: the metrics are broken.
    """
    run = metrics_from(metrics, name="this model", where="the run's metrics")
    kind, model, data = (recipe[key] for key in ("kind", "model", "data"))
    base, rows = str(model["model_name_or_path"]), str(data.get("completions") or data["pairs"])
    revision = model.get("model_revision")
    word, is_adapter = kind.replace("_", "-"), adapter is not None
    metadata: dict[str, Any] = {
        "license": "unknown",
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": "text-generation" if kind == "sft" else "text-classification",
        "tags": ["preference-alignment", "align-toolkit", word, *(["lora"] if is_adapter else [])],
    }
    if (known := hub_base(base)) is not None:
        metadata["base_model"] = known
    if is_hub_id(rows):
        metadata["datasets"] = [rows.split("@")[0]]
    theirs = base_licence(base, revision)
    sections = [
        front_matter(metadata),
        f"# {shown_name(base).split('/')[-1].replace(':', '-')}-{word}",
        f"{capital(named(base))}, {_MADE[kind]}, with align-toolkit (seed {run.seed}). "
        "`recipe.yaml` beside this card is the whole recipe, `metrics.json` every number below.",
        "## Training",
        training(recipe, metrics, adapter),
        _centred(recipe["train"]),
        "## Data",
        f"{capital(named(rows))}{split_of(recipe)}.",
        counts(run.data),
        "## Before and after",
        ("Before, the head was random. " if kind != "sft" else "") + results(run),
        *_reliability(metrics),
        "## How to use it",
        _how_to_use(kind, base, revision, is_adapter=is_adapter),
        "## Versions",
        "\n".join(f"- {name} {version}" for name, version in sorted(run.versions.items())),
        "## Limits",
        _LIMITS[kind] + "The numbers above are of one training run, on its held-out rows. No "
        "licence was stated when the model was saved: ask its owner. "
        + (f"The base model's own card states the licence `{theirs}`. " if theirs else "")
        + "The licences of the base model and of the data apply as well.",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _centred(train: Mapping[str, Any]) -> str:
    weight = train.get("center_rewards_coefficient")
    return "" if weight is None else f"Rewards are kept around 0 with a weight of {weight:g}."


def _reliability(metrics: Mapping[str, Any]) -> list[str]:
    table: Sequence[Mapping[str, Any]] = (metrics.get("reliability") or {}).get("after") or []
    shown = [one for one in table if one["n"]]
    if not shown:
        return []
    lines = [
        "| it says | mean | labels agree | pairs |",
        "| --- | ---: | ---: | ---: |",
        *(
            f"| {one['low']:.0%} to {one['high']:.0%} | {one['confidence']:.1%} | "
            f"{one['agreement']:.1%} | {one['n']} |"
            for one in shown
        ),
    ]
    return ["How sure it is of its winner, and how often that is right:", "\n".join(lines)]


def _how_to_use(kind: str, base: str, revision: str | None, *, is_adapter: bool) -> str:
    network = "AutoModelForCausalLM" if kind == "sft" else "AutoModelForSequenceClassification"
    loading = _loading(network, base, revision, is_adapter=is_adapter)
    if kind == "sft":
        return f"{loading}\n\nIts folder is also the `model_name_or_path` of a recipe."
    judge, rows = _JUDGES[kind]
    return "\n\n".join(
        [
            "As the judge of a loop, with align-toolkit:",
            f"```yaml\n- {{run: judge, {judge}: <this folder>}}\n```",
            rows,
            "In transformers:",
            loading,
        ]
    )


_JUDGES: Mapping[str, tuple[str, str]] = {
    "reward": (
        "by: reward_model, path",
        "A row is the chat template's whole text of prompt and answer; its score is the logit.",
    ),
    "preference_model": (
        "by: preference_model, model",
        "A row is the prompt, the first answer, the opening of another assistant turn and the "
        "second answer, in the chat template's own tokens. With f for the logit of such a row, "
        "P(first is better) = sigmoid(f(first, second) - f(second, first)).",
    ),
}


def _loading(network: str, base: str, revision: str | None, *, is_adapter: bool) -> str:
    head = [f"from transformers import {network}, AutoTokenizer"]
    tokenizer = 'tokenizer = AutoTokenizer.from_pretrained("namespace/name")'
    if not is_adapter:
        model = f'model = {network}.from_pretrained("namespace/name")'
        return code_block(*head, "", model, tokenizer)
    imports, argument, said = base_loading(base, revision)
    labels = "" if network == "AutoModelForCausalLM" else ", num_labels=1"
    code = code_block(
        "from peft import PeftModel",
        *head,
        *(["", *imports] if imports else []),
        "",
        f"base = {network}.from_pretrained({argument}{labels})",
        'model = PeftModel.from_pretrained(base, "namespace/name")',
        tokenizer,
    )
    return f"{code}\n\n{said}" if said else code
