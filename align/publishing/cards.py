"""The model and data set cards: what a stranger needs to know, from the files of a run.

A card is a README.md with a metadata block, as the Hub reads it
(https://huggingface.co/docs/hub/model-cards). It names no folder of the machine it was made on.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from align.errors import AlignError, DataError
from align.publishing.origins import (
    base_licence,
    base_loading,
    hub_base,
    is_hub_id,
    named,
    pairs_told,
    shown_name,
)
from align.publishing.training_card import training
from align.report.measures import (
    Estimate,
    Measure,
    RunMetrics,
    measures_of,
    metrics_from,
    read_json,
)


def write_model_card(run_dir: Path, *, licence: str | None = None) -> Path:
    """Write `model/README.md` from the run's `recipe.yaml` and `metrics.json`; return its path.

    Args:
        run_dir: the run's folder.
        licence: the Hub's short name of the model's licence; unknown where it is not given.

    Raises:
        DataError: one of the two files is missing or broken.
    """
    run_dir = Path(run_dir)
    try:
        recipe = yaml.safe_load((run_dir / "recipe.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        recipe = None
    if not isinstance(recipe, Mapping):
        raise DataError(
            f"{run_dir / 'recipe.yaml'} is missing or is no YAML mapping, so the model card cannot "
            "say what was trained. Run the command that made this run again."
        )
    metrics = read_json(run_dir / "metrics.json")
    adapter = adapter_of(run_dir / "model")
    data = metrics.get("data") if isinstance(metrics, Mapping) else None
    path = run_dir / "model" / "README.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    card = model_card(recipe, metrics, data or {}, adapter=adapter, licence=licence)
    path.write_text(card, encoding="utf-8")
    return path


def adapter_of(folder: Path) -> dict[str, Any] | None:
    """What the `adapter_config.json` of a model's folder says; None where it holds whole weights.

    Raises:
        DataError: it is no JSON.
    """
    path = folder / "adapter_config.json"
    return read_json(path) if path.is_file() else None


def model_card(
    recipe: Mapping[str, Any],
    metrics: Mapping[str, Any],
    data: Mapping[str, Any],
    *,
    adapter: Mapping[str, Any] | None = None,
    licence: str | None = None,
) -> str:
    """The text of a model card.

    Args:
        recipe: the resolved recipe.
        metrics: what `metrics.json` holds.
        data: the row counts `{"read", "kept", "dropped": {reason: rows}}`; may be empty.
        adapter: of a folder that holds a LoRA adapter, what its `adapter_config.json` says.
        licence: the Hub's short name of the licence; unknown where it is not given.

    Raises:
        DataError: the metrics are broken.
    """
    is_adapter = adapter is not None
    run = metrics_from(metrics, name="this model", where="the run's metrics")
    base = str(recipe.get("model", {}).get("model_name_or_path", "unknown"))
    revision = recipe.get("model", {}).get("model_revision")
    rows: Mapping[str, Any] = recipe.get("data", {})
    asked: Mapping[str, Any] | None = recipe.get("prompts")
    given = rows.get("groups") or rows.get("pairs", "unknown")
    source = str(asked.get("source", "unknown") if asked else given)
    objective = dict(recipe.get("objective", {}))
    method = str(objective.get("name", "unknown"))
    title = f"{shown_name(base).split('/')[-1].replace(':', '-')}-{method}"
    metadata = {
        "license": licence or "unknown",
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": [
            "preference-alignment",
            "align-toolkit",
            method,
            *(["lora"] if is_adapter else []),
        ],
    }
    # The Hub refuses a card whose base_model or datasets are not ids of its own.
    if (known := hub_base(base)) is not None:
        metadata["base_model"] = known
    if is_hub_id(source):
        metadata["datasets"] = [source.split("@")[0]]
    theirs = base_licence(base, revision)
    sections = [
        front_matter(metadata),
        f"# {title}",
        f"{capital(named(base))} after preference training with `{method}`, made with "
        f"align-toolkit{f' (seed {run.seed})' if run.seed is not None else ''}. "
        f"{'This repository holds a LoRA adapter; load it on top of its base. ' * is_adapter}"
        "`recipe.yaml` beside this card is the whole recipe, `metrics.json` every number below.",
        "## Objective",
        _objective(objective),
        "## Training",
        training(recipe, metrics, adapter),
        "## Data",
        pairs_told(recipe, metrics),
        counts(data),
        "## Before and after",
        results(run),
        "## How to load",
        _how_to_load(base, revision, is_adapter=is_adapter),
        "## Versions",
        "\n".join(f"- {name} {version}" for name, version in sorted(run.versions.items()))
        or "Not recorded.",
        "## Limits",
        "Preference training shifts a model towards the pairs it saw; it adds no knowledge and no "
        "guarantee of safe or true answers. The numbers above are of one training run, on "
        "its held-out rows, and say nothing about other tasks. "
        + ("" if licence else "No licence was stated when the model was saved: ask its owner. ")
        + (f"The base model's own card states the licence `{theirs}`. " if theirs else "")
        + "The licences of the base model and of the data apply as well.",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def dataset_card(
    name: str,
    sources: Sequence[str],
    data: Mapping[str, Any],
    *,
    how_made: str,
    licence: str | None = None,
    size: int | None = None,
) -> str:
    """The text of a card for preference pairs.

    Args:
        name: the data set's name.
        sources: the files and Hub data sets that the rows come from.
        data: the row counts `{"read", "kept", "dropped": {reason: rows}}`.
        how_made: a sentence or two on what was done to the rows.
        licence: the Hub's short name of the licence; unknown where it is not given.
        size: rows; given where the rows lie beside the card, under `data/`.
    """
    metadata: dict[str, Any] = {
        "license": licence or "unknown",
        "tags": ["preference", "align-toolkit"],
        "task_categories": ["text-generation"],
    }
    if size is not None:
        files = [{"split": "train", "path": "data/train-*.parquet"}]
        metadata["configs"] = [{"config_name": "default", "data_files": files}]
    hub_sources = [source.split("@")[0] for source in sources if is_hub_id(source)]
    if hub_sources:
        metadata["source_datasets"] = hub_sources
    sections = [
        front_matter(metadata),
        f"# {shown_name(name)}",
        "Preference pairs (`prompt`, `chosen`, `rejected`), made with align-toolkit.",
        "## Sources",
        "\n".join(f"- {named(source)}" for source in sources) or "Not recorded.",
        "## How it was made",
        how_made,
        "## Rows",
        counts(data),
        "## Limits",
        "The texts were written by a language model and compared by one, or by a rule: they may be "
        "wrong, and hold what the model was trained on. The licences of the model and of the "
        "prompts apply.",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def capital(sentence: str) -> str:
    """The sentence with its first letter large."""
    return sentence[:1].upper() + sentence[1:]


def front_matter(metadata: Mapping[str, Any]) -> str:
    """The metadata block in front of a card."""
    body = yaml.safe_dump(dict(metadata), sort_keys=False, allow_unicode=True)
    return f"---\n{body}---"


def _objective(objective: Mapping[str, Any]) -> str:
    settings = {key: value for key, value in objective.items() if key != "name"}
    lines = [f"`{objective.get('name', 'unknown')}`" + (" with\n" if settings else "")]
    lines += [f"- `{key}` = {value}" for key, value in settings.items()]
    explained = _formula_text(objective)
    return "\n".join(lines) + (f"\n\n```text\n{explained}\n```" if explained else "")


def _formula_text(objective: Mapping[str, Any]) -> str:
    """The formula and its source: the docstrings of the objective's module and class."""
    from align.objectives import objective_from  # heavy: imports torch; a push needs none

    try:
        kind = type(objective_from(dict(objective)))
    except (AlignError, ValidationError):
        return ""
    module = inspect.getmodule(kind)
    texts = [inspect.cleandoc(holder.__doc__ or "") for holder in (module, kind) if holder]
    return "\n\n".join(text for text in texts if text)


def counts(data: Mapping[str, Any]) -> str:
    """The table of rows read, dropped and kept."""
    if "read" not in data:
        return "Row counts were not recorded."
    dropped = dict(data.get("dropped") or {})
    lines = ["| rows | number |", "| --- | ---: |", f"| read | {data['read']:,} |"]
    lines += [f"| dropped: {reason} | {count:,} |" for reason, count in sorted(dropped.items())]
    lines.append(f"| kept | {data.get('kept', 0):,} |")
    shares = {"train": "trained on", "held_out": "held out"}
    lines += [f"| of these {said} | {data[key]:,} |" for key, said in shares.items() if key in data]
    return "\n".join(lines)


def results(run: RunMetrics) -> str:
    """The table of measures before and after, with 95 % intervals."""
    lines = ["| measure | before | after | n |", "| --- | ---: | ---: | ---: |"]
    for measure in measures_of({*run.before, *run.after}):
        before, after = run.before.get(measure.key), run.after.get(measure.key)
        n = next((side.n for side in (after, before) if side is not None and side.n), None)
        name = ", ".join(filter(None, (measure.label, measure.unit)))
        lines.append(
            f"| {name} | {_cell(measure, before)} | "
            f"{_cell(measure, after)} | {'' if n is None else f'{n:,}'} |"
        )
    if len(lines) == 2:
        return "Nothing was measured."
    return "\n".join(lines) + "\n\nIn brackets: 95 % intervals."


def _cell(measure: Measure, estimate: Estimate | None) -> str:
    if estimate is None:
        return "not measured"
    if estimate.interval is None:
        return f"{measure.shown(estimate.value)} (no interval)"
    low, high = (measure.shown(end) for end in estimate.interval)
    return f"{measure.shown(estimate.value)} [{low}, {high}]"


def _how_to_load(base: str, revision: str | None, *, is_adapter: bool) -> str:
    if not is_adapter:
        return code_block(
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            'model = AutoModelForCausalLM.from_pretrained("namespace/name")',
            'tokenizer = AutoTokenizer.from_pretrained("namespace/name")',
        )
    imports, argument, said = base_loading(base, revision)
    code = code_block(
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        *(["", *imports] if imports else []),
        "",
        f"base = AutoModelForCausalLM.from_pretrained({argument})",
        'model = PeftModel.from_pretrained(base, "namespace/name")',
        'tokenizer = AutoTokenizer.from_pretrained("namespace/name")',
    )
    return f"{code}\n\n{said}" if said else code


def code_block(*lines: str) -> str:
    """Lines of Python as a card shows them."""
    return "\n".join(["```python", *lines, "```"])
