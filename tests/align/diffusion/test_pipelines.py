"""Stable Diffusion 1.5 and XL through recipes: the real classes, tiny weights made here."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from PIL import Image

from align.app.diffusion import train_diffusion
from align.app.diffusion_recipe import DiffusionRecipe
from align.diffusion.components import denoiser_of
from align.diffusion.images import FittedImage
from align.diffusion.loading import load_components
from align.diffusion.settings import DiffusionModel, DiffusionSampler
from align.errors import MachineError, RecipeError
from align.runs.folder import RunFolder
from align.runs.manifest import damage
from tests.align.diffusion.tiny_pipelines import save_sd15, save_sdxl

# diffusers' own way to read a folder still asks for the older name of an argument.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch_dtype.*:FutureWarning")


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory) -> dict[str, Path]:
    made = tmp_path_factory.mktemp("pipelines")
    return {"sd15": save_sd15(made / "sd15"), "sdxl": save_sdxl(made / "sdxl")}


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("records")
    rows = []
    for number, colour in enumerate(("red", "lime", "blue", "white", "gray", "navy")):
        Image.new("RGB", (40, 36 + number), colour).save(folder / f"{colour}.png")
        Image.new("RGB", (40, 36), "black").save(folder / "black.png")
        row = {"image": f"{colour}.png", "caption": colour, "rejected_image": "black.png"}
        rows.append(json.dumps(row))
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n")
    return folder / "rows.jsonl"


def recipe(model: Path, records: Path, objective: dict[str, Any], **of_model: Any):
    return DiffusionRecipe(
        model={"model_name_or_path": str(model), **of_model},
        data={"records": str(records), "resolution": 32, "held_out": 2, "encode_batch": 4},
        objective=objective,
        train={
            "rounds": 2, "updates_per_round": 2, "per_device_train_batch_size": 2,
            "learning_rate": 1e-3, "gradient_checkpointing": True, "use_cpu": True,
            "logging_steps": 1,
            "sampler": {"steps": 2, "guidance_scale": 3.0, "batch": 2},
        },
        evaluate={"suite": ["denoising"], "pictures": 2},
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
@pytest.mark.parametrize("use_peft", [False, True])
def test_seppo_through_a_recipe(pipelines, records, tmp_path, kind, use_peft) -> None:
    lora = {"use_peft": True, "lora_r": 2, "lora_alpha": 8} if use_peft else {}
    run = RunFolder(tmp_path / "run")
    metrics = train_diffusion(recipe(pipelines[kind], records, {"name": "seppo"}, **lora), run)
    assert metrics is not None
    assert metrics["data"]["read"] == 6
    assert metrics["before"] != metrics["after"]
    log = json.loads((run.path / "log_history.json").read_text())
    assert log[0]["loss"] == pytest.approx(0.6931472, abs=1e-6)
    assert damage(run.model) is None
    for name in ("recipe.yaml", "ledger.jsonl", "before.png", "after.png"):
        assert (run.path / name).is_file()
    # What was saved is what was trained: diffusers loads it and predicts something else.
    pipe = DiffusionPipeline.from_pretrained(pipelines[kind])
    components = load_components(DiffusionModel(model_name_or_path=str(pipelines[kind])))
    given = components.edges.captions(["red"])
    image = FittedImage(Image.new("RGB", (32, 32), "red"), 32)
    latents, of_image = components.edges.images([image])
    given |= of_image
    denoiser = denoiser_of(components.scheduler, DiffusionSampler(steps=2))
    t = torch.tensor([500])

    def predicted(network: Any) -> torch.Tensor:
        with torch.no_grad():
            return denoiser.predict(network.eval(), latents, t, given)

    base = predicted(pipe.unet)
    if use_peft:
        pipe.load_lora_weights(run.model)
        loaded = pipe.unet
        [adapter] = loaded.peft_config.values()
        assert (adapter.r, adapter.lora_alpha) == (2, 8)
    else:
        loaded = UNet2DConditionModel.from_pretrained(run.model / "unet")
    assert not torch.allclose(predicted(loaded), base, atol=1e-5)
    policy = json.loads((run.model / "manifest.json").read_text())["about"]
    assert policy["step"] == 4
    # A second call finds everything done.
    before = (run.path / "metrics.json").stat().st_mtime_ns
    train_diffusion(recipe(pipelines[kind], records, {"name": "seppo"}, **lora), run)
    assert (run.path / "metrics.json").stat().st_mtime_ns == before


def test_diffusion_dpo_through_a_recipe(pipelines, records, tmp_path) -> None:
    run = RunFolder(tmp_path / "run")
    metrics = train_diffusion(recipe(pipelines["sd15"], records, {"name": "diffusion_dpo"}), run)
    assert metrics is not None
    assert "denoising/rejected_error" in metrics["after"]


def test_encoders(pipelines) -> None:
    components = load_components(DiffusionModel(model_name_or_path=str(pipelines["sdxl"])))
    edges = components.edges
    red = FittedImage(Image.new("RGB", (64, 48), "red"), 32)
    latents, of_image = edges.images([red, red])
    assert latents.shape == (2, 4, 4, 4)
    assert torch.equal(latents[0], latents[1])
    # 64 x 48 becomes 43 x 32, of which the middle 32 starts at 5.
    assert of_image["added_cond_kwargs.time_ids"][0].tolist() == [48, 64, 0, 5, 32, 32]
    one, both = edges.captions(["a cat"]), edges.captions(["dog", "a cat"])
    for name, tensor in one.items():
        torch.testing.assert_close(tensor[0], both[name][1])
    assert edges.no_caption().keys() == one.keys()
    # XL forces the other half of guidance to zeros.
    assert edges.no_caption()["encoder_hidden_states"].abs().max() == 0
    pictures = edges.pictures(latents)
    assert pictures.shape == (2, 32, 32, 3)
    assert pictures.dtype == np.uint8


def test_latents_carry_the_scale_of_the_model(pipelines) -> None:
    components = load_components(DiffusionModel(model_name_or_path=str(pipelines["sd15"])))
    pipe = DiffusionPipeline.from_pretrained(pipelines["sd15"], safety_checker=None)
    red = FittedImage(Image.new("RGB", (32, 32), "red"), 32)
    with torch.no_grad():
        coded = pipe.vae.encode(red.pixels[None]).latent_dist.mode()
    latents, of_image = components.edges.images([red])
    torch.testing.assert_close(latents, coded * pipe.vae.config.scaling_factor)
    assert of_image == {}
    plain = pipe.encode_prompt("red", torch.device("cpu"), 1, True)
    found = components.edges.captions(["red"])["encoder_hidden_states"]
    torch.testing.assert_close(found, plain[0])
    empty = components.edges.no_caption()["encoder_hidden_states"]
    torch.testing.assert_close(empty, plain[1])


def test_what_is_no_pipeline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="cannot be loaded"):
        load_components(DiffusionModel(model_name_or_path=str(tmp_path)))
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(RecipeError, match="is a FluxPipeline"):
        load_components(DiffusionModel(model_name_or_path=str(tmp_path)))
