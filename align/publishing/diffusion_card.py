"""The card of a diffusion model: what a stranger needs to know, from the recipe and the metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from align.diffusion.objectives import AnyDiffusionObjective
from align.diffusion.settings import DiffusionData, DiffusionModel, DiffusionTrain
from align.publishing.origins import is_local_name, shown_name

_LABELS = {
    "denoising/chosen_error": "denoising error, held-out chosen images",
    "denoising/rejected_error": "denoising error, held-out rejected images",
    "shapes/reward": "reward (redness)",
    "shapes/red": "share of red images",
    "shapes/quality": "shape quality (overlap)",
}


def diffusion_card(
    model: DiffusionModel,
    data: DiffusionData,
    objective: AnyDiffusionObjective,
    train: DiffusionTrain,
    name: str,
    metrics: Mapping[str, Any],
) -> str:
    """The text of a model card.

    Args:
        model: what was trained.
        data: on what.
        objective: by which formula.
        train: how.
        name: of the run.
        metrics: what `metrics.json` holds.
    """
    base = model.model_name_or_path
    method = objective.name
    metadata: dict[str, Any] = {
        "license": "unknown",
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["preference-alignment", "align-toolkit", method],
    }
    if model.use_peft:
        metadata["tags"].append("lora")
    if not model.is_world and not is_local_name(base):
        metadata["base_model"] = base
    fields = objective.model_dump(mode="json", exclude={"name"})
    parts = [
        f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---",
        f"# {name}",
        f"`{shown_name(base)}` after training with `{method}`, made with align-toolkit (seed "
        f"{train.seed}). `recipe.yaml` beside this card is the whole recipe.",
        "## Objective",
        ", ".join(f"{key} {value}" for key, value in fields.items()) + ".",
        f"{train.rounds} rounds of {train.updates_per_round} updates, learning rate "
        f"{train.learning_rate:g}.",
        "## Data",
        f"`{shown_name(data.records)}`: {metrics['data']['train']} records trained on, "
        f"{metrics['data']['held_out']} held out.",
        "## Before and after",
        _table(metrics),
        "## How to load",
        _how_to_load(model),
        "## Versions",
        "\n".join(f"- {key} {value}" for key, value in sorted(metrics["versions"].items())),
        "## Limits",
        "The numbers above are of one training run. Preference training shifts a model towards the "
        "images it saw; it gives no guarantee of safe or true images. No licence was stated when "
        "the model was saved: the licences of the base model and of the data apply.",
    ]
    return "\n\n".join(parts) + "\n"


def _table(metrics: Mapping[str, Any]) -> str:
    lines = ["| | before | after |", "| --- | ---: | ---: |"]
    for key, after in metrics["after"].items():
        cells = [_cell(found) for found in (metrics["before"][key], after)]
        lines.append(f"| {_LABELS.get(key, key)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n\nIn brackets: 95 % interval."


def _cell(found: Mapping[str, float]) -> str:
    return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def _how_to_load(model: DiffusionModel) -> str:
    base = shown_name(model.model_name_or_path)
    if model.use_peft:
        code = (
            f'pipe = DiffusionPipeline.from_pretrained("{base}")\npipe.load_lora_weights("model")'
        )
        return f"```python\nfrom diffusers import DiffusionPipeline\n\n{code}\n```"
    code = 'unet = UNet2DConditionModel.from_pretrained("model/unet")'
    if not model.is_world:
        code += f'\npipe = DiffusionPipeline.from_pretrained("{base}", unet=unet)'
    imports = "from diffusers import DiffusionPipeline, UNet2DConditionModel"
    return f"```python\n{imports}\n\n{code}\n```"
