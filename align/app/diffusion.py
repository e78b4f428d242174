"""Training a diffusion model: what `align train` does with such a recipe."""

from __future__ import annotations

import importlib.metadata
import logging
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from rich.table import Table

from align.app.diffusion_recipe import (
    DiffusionRecipe,
    default_diffusion_run,
    diffusion_yaml,
    load_diffusion_recipe,
)
from align.diffusion.grid import save_grid
from align.diffusion.latents import Record, encode, load_latents
from align.diffusion.records import RecordReader
from align.errors import DataError, MachineError
from align.loops.signals import StopSignal
from align.publishing.diffusion_card import diffusion_card
from align.publishing.hub import push
from align.report.table import compare
from align.runs.folder import RunFolder
from align.runs.manifest import damage, publish
from align.worlds.shapes import Shapes

if TYPE_CHECKING:
    from align.diffusion.components import Components
    from align.diffusion.measuring import Measured

logger = logging.getLogger(__name__)

WORLD_RECORDS = 512


def train_diffusion(recipe: DiffusionRecipe, run: RunFolder) -> dict[str, Any] | None:
    """Everything between a recipe and a finished run's folder.

    It claims the folder and leaves in it recipe.yaml, metrics.json, log_history.json,
    ledger.jsonl, model/, before.png and after.png; `latents/` holds the encoded records and
    `checkpoints/` what an interrupted run goes on from.

    Returns:
        What metrics.json holds, on the main process; None on the others.

    Raises:
        Interrupted: a signal ended training; the same call goes on from its checkpoint.
        MachineError: diffusers is not installed.
    """
    need_diffusers()
    state = PartialState(cpu=recipe.train.use_cpu or not torch.accelerator.is_available())
    if state.is_main_process:
        run.claim(diffusion_yaml(recipe))
    state.wait_for_everyone()
    try:
        is_finished = run.read_json("metrics.json") is not None and damage(run.model) is None
        state.wait_for_everyone()
        if not is_finished:
            with StopSignal() as stop:
                _train(recipe, run, state, stop)
        elif state.is_main_process:
            logger.info("%s is finished; nothing to do.", run.path)
        if not state.is_main_process:
            return None
        if recipe.hub.push or recipe.hub.dry_run:
            assert recipe.hub.repo is not None
            pushed = push(
                run.path,
                recipe.hub.repo,
                private=recipe.hub.private,
                dry_run=recipe.hub.dry_run,
            )
            logger.info("%s", pushed.listing())
        return run.read_json("metrics.json")
    finally:
        run.release()


def _train(recipe: DiffusionRecipe, run: RunFolder, state: Any, stop: StopSignal) -> None:
    # diffusers is optional.
    from align.diffusion.components import denoiser_of, policy_of, save_model
    from align.diffusion.loading import load_components
    from align.diffusion.measuring import measure_model
    from align.diffusion.trainer import DiffusionTrainer

    is_main = state.is_main_process
    with _recorded(run, "base") if is_main else _nothing():
        # A world's model is built by one process while the others wait for its lock.
        components = load_components(recipe.model)
    if is_main:
        _encode(recipe, run, components)
    state.wait_for_everyone()
    train, held_out = load_latents(run.path / "latents").split(
        recipe.data.held_out, recipe.data.seed
    )
    denoiser = denoiser_of(components.scheduler, recipe.train.sampler)
    policy = policy_of(recipe.model, components.network, recipe.objective, recipe.train.seed)
    trainer = DiffusionTrainer(
        policy, denoiser, recipe.objective, recipe.train, train, output_dir=run.checkpoints
    )

    def measured() -> Measured:
        with trainer.accelerator.autocast():
            found = measure_model(
                recipe.evaluate, recipe.train.sampler, denoiser, policy.network, components.edges,
                train, held_out, trainer.device,
            )  # fmt: skip
        components.edges.release()
        return found

    if is_main and run.read_json("before.json") is None:
        with _recorded(run, "before"):
            found = measured()
            _draw(found, run.path / "before.png")
            run.write_json("before.json", found.metrics)
    state.wait_for_everyone()
    with _recorded(run, "train") if is_main else _nothing() as about:
        log = trainer.train(lambda: stop.requested)
        about |= {"updates": trainer.step, "last": log[-1] if log else {}}
    if not is_main:
        return
    run.write_json("log_history.json", log)
    with _recorded(run, "after"):
        after = measured()
        _draw(after, run.path / "after.png")
    partial = run.path / "model.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    save_model(policy, components, partial)
    metrics = {
        "before": run.read_json("before.json"),
        "after": after.metrics,
        "n": max(measure["n"] for measure in after.metrics.values()) if after.metrics else 0,
        "seed": recipe.train.seed,
        "versions": _versions(),
        "data": _counts(run, len(train), len(held_out) if held_out is not None else 0),
        "training": {"updates": trainer.step, "flip_rate": _mean(log, "flip_rate")},
    }
    (partial / "README.md").write_text(_card(recipe, run, metrics), encoding="utf-8")
    publish(partial, run.model, {"versions": metrics["versions"], "step": trainer.step})
    run.write_json("metrics.json", metrics)


def _encode(recipe: DiffusionRecipe, run: RunFolder, components: Components) -> None:
    """Reads and encodes the records, once for a run."""
    folder = run.path / "latents"
    if damage(folder) is None:
        return
    with _recorded(run, "latents") as about:
        partial = run.path / "latents.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        records = _records(recipe, run)
        data = recipe.data
        encode(
            records,
            components.edges,
            partial,
            batch=data.encode_batch,
            dtype=data.latents_dtype,
        )
        components.edges.release()
        publish(partial, folder, {"data": data.model_dump(mode="json")})
        about |= run.read_json("data_report.json") or {}


def _records(recipe: DiffusionRecipe, run: RunFolder) -> Iterable[Record]:
    data = recipe.data
    if recipe.model.is_world:
        count = data.limit or WORLD_RECORDS
        run.write_json("data_report.json", {"read": count, "kept": count, "dropped": {}})
        drawn = Shapes().records(count, seed=data.seed)
        return [Record(image, caption, rejected) for image, caption, rejected in drawn]

    def recorded() -> Iterator[Record]:
        reader = RecordReader(data, with_rejected="rejected" in recipe.objective.needs)
        yield from reader
        run.write_json("data_report.json", reader.report.to_json())
        logger.info("%s", reader.report.summary())
        if not reader.report.read:
            raise DataError(
                f"data.records: {data.records} holds no row. Check the file and data.split."
            )
        reader.report.check(data.max_dropped)

    return recorded()


def _counts(run: RunFolder, train: int, held_out: int) -> dict[str, Any]:
    report = run.read_json("data_report.json") or {}
    said = {key: report[key] for key in ("read", "kept", "dropped") if key in report}
    return {**said, "train": train, "held_out": held_out}


def _draw(found: Measured, path: Path) -> None:
    if found.pictures is not None:
        save_grid(found.pictures, path)


def _mean(log: list[dict[str, Any]], key: str) -> float | None:
    values = [entry[key] for entry in log if key in entry]
    return sum(values) / len(values) if values else None


def _versions() -> dict[str, str]:
    names = ("torch", "diffusers", "transformers", "accelerate", "peft")
    versions = {name: importlib.metadata.version(name) for name in names}
    return {"align": importlib.metadata.version("align-toolkit"), **versions}


def _card(recipe: DiffusionRecipe, run: RunFolder, metrics: dict[str, Any]) -> str:
    return diffusion_card(
        recipe.model, recipe.data, recipe.objective, recipe.train, run.path.name, metrics
    )


def need_diffusers() -> None:
    """Says which extra is missing.

    Raises:
        MachineError: diffusers is not installed.
    """
    try:
        import diffusers  # noqa: F401 - diffusers is optional
    except ImportError as error:
        raise MachineError(
            "Diffusion models need diffusers, which is not installed. Install the extra: "
            "pip install 'align-toolkit[diffusion]'."
        ) from error


@contextmanager
def _recorded(run: RunFolder, step: str) -> Iterator[dict[str, Any]]:
    """A line in the ledger for what was done inside, when it is done."""
    started = time.monotonic()
    about: dict[str, Any] = {}
    yield about
    run.record(step, time.monotonic() - started, about)


@contextmanager
def _nothing() -> Iterator[dict[str, Any]]:
    yield {}


def train_diffusion_recipe(
    path: Path, overrides: Sequence[str], run_path: Path | None
) -> Table | None:
    """`align train` with the recipe of a diffusion model.

    Returns:
        The before/after table, on the main process; None on the others.
    """
    recipe = load_diffusion_recipe(path, overrides)
    run = RunFolder(run_path or default_diffusion_run(path, recipe))
    return None if train_diffusion(recipe, run) is None else compare([run.path])
