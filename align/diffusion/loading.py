# diffusers does not declare what it exports.
# pyright: reportPrivateImportUsage=false
"""What a recipe's model section names, loaded."""

from __future__ import annotations

from typing import Any

from diffusers import DDPMScheduler, UNet2DConditionModel

from align.diffusion import pipelines
from align.diffusion.components import Components
from align.diffusion.settings import DiffusionModel
from align.worlds.shapes import Shapes


def load_components(model: DiffusionModel) -> Components:
    """The start of training: the world's base model, or a pipeline from a folder or the Hub.

    Raises:
        RecipeError: a pipeline of a kind that is not supported.
        MachineError: it cannot be loaded.
    """
    return _load_world() if model.is_world else pipelines.load_pipeline(model)


def network_config(model: DiffusionModel) -> dict[str, Any]:
    """The configuration of the network that would be trained, without its weights.

    Raises:
        RecipeError: a pipeline of a kind that is not supported.
        MachineError: it cannot be loaded.
    """
    if not model.is_world:
        return pipelines.network_config(model)
    found: Any = UNet2DConditionModel.load_config(Shapes().base_model() / "unet")
    return found


def _load_world() -> Components:
    world = Shapes()
    folder = world.base_model()
    network = UNet2DConditionModel.from_pretrained(folder / "unet")
    scheduler = DDPMScheduler.from_pretrained(folder / "scheduler")
    return Components(network.eval(), scheduler, world.encoder(folder))
