# diffusers does not declare what it exports.
# pyright: reportPrivateImportUsage=false
"""What a recipe's model section names, loaded."""

from __future__ import annotations

from diffusers import DDPMScheduler, UNet2DConditionModel

from align.diffusion.components import Components
from align.diffusion.pipelines import load_pipeline
from align.diffusion.settings import DiffusionModel
from align.worlds.shapes import Shapes


def load_components(model: DiffusionModel) -> Components:
    """The start of training: the world's base model, or a pipeline from a folder or the Hub.

    Raises:
        RecipeError: a pipeline of a kind that is not supported.
        MachineError: it cannot be loaded.
    """
    return _load_world() if model.is_world else load_pipeline(model)


def _load_world() -> Components:
    world = Shapes()
    folder = world.base_model()
    network = UNet2DConditionModel.from_pretrained(folder / "unet")
    scheduler = DDPMScheduler.from_pretrained(folder / "scheduler")
    return Components(network.eval(), scheduler, world.encoder(folder))
