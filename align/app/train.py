"""From a recipe to a finished run: pairs or groups, training, measuring, card."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from rich.console import RenderableType

from align.app.fitting import check_roles
from align.app.recipe_rows import RecipeRows, read_rows
from align.app.train_kind import train_kind_run
from align.errors import AlignError, RecipeError
from align.policies.loading import load_config, load_tokenizer
from align.policies.start import Start
from align.publishing.cards import write_model_card
from align.publishing.hub import push
from align.publishing.kind_card import write_kind_card
from align.recipe import (
    KINDS,
    KindRecipe,
    Recipe,
    default_run,
    kind_of,
    load_kind_recipe,
    load_recipe,
    resolved_yaml,
)
from align.recipe.own_code import code_digests
from align.recipe.writing import plain_values
from align.report.curves import plot_run_curves
from align.report.summary import summary
from align.runs.folder import RunFolder
from align.runs.manifest import damage
from align.stages.evaluate import (
    benchmarks,
    folders_of,
    measurements,
    run_benchmarks,
    scores_of,
    subject_of,
)
from align.stages.policies import policy_folder
from align.stages.trained_rows import rows_for
from align.stages.training import train_policy

logger = logging.getLogger("align")


def train_recipe(
    path: Path, overrides: Sequence[str], run_path: Path | None, allow_change: Sequence[str]
) -> RenderableType | None:
    """Everything between a recipe and a finished run's folder.

    Returns:
        The before/after table, on the main process; None on the others.
    """
    if kind_of(path, overrides) == "diffusion":
        from align.app.diffusion import train_diffusion_recipe  # diffusers is optional

        return train_diffusion_recipe(path, overrides, run_path)
    recipe = _loaded(path, overrides)
    run = RunFolder(run_path or default_run(path, recipe))
    # Several CPU processes find each other only when the CPU is asked for.
    state = PartialState(
        cpu=recipe.train.use_cpu or not torch.accelerator.is_available(),
        # Others wait while the main process tokenises rows, or hashes a large checkpoint.
        timeout=timedelta(seconds=recipe.train.ddp_timeout),
    )
    if state.is_main_process:
        run.claim(resolved_yaml(recipe))
        _refuse_other_code(run, recipe)
    state.wait_for_everyone()
    try:
        if run.read_json("metrics.json") is None or damage(run.model) is not None:
            if isinstance(recipe, KindRecipe):
                train_kind_run(recipe, run, state, allow_change)
            else:
                _train(recipe, run, state, allow_change)
            if state.is_main_process:
                write_card = write_kind_card if isinstance(recipe, KindRecipe) else write_model_card
                write_card(run.path)
                _draw(run)
        elif state.is_main_process:
            logger.info("%s is finished; nothing to do.", run.path)
        if not state.is_main_process:
            return None
        if recipe.hub.push or recipe.hub.dry_run:
            _push(recipe, run)
        return summary([run.path])
    finally:
        run.release()


def _loaded(path: Path, overrides: Sequence[str]) -> Recipe | KindRecipe:
    if kind_of(path, overrides) in KINDS:
        return load_kind_recipe(path, overrides)
    recipe = load_recipe(path, overrides)
    if recipe.is_loop:
        raise RecipeError(f"{path} has rounds: run `align loop {path}`.")
    return recipe


def _refuse_other_code(run: RunFolder, recipe: Recipe | KindRecipe) -> None:
    """The code that a recipe names belongs to its run as the recipe does."""
    code = code_digests(plain_values(recipe))
    was = run.read_json("code.json")
    if was is not None and was != code:
        changed = ", ".join(
            sorted(word for word in {*was, *code} if was.get(word) != code.get(word))
        )
        run.release()
        raise RecipeError(
            f"{run.path} was made with another content of {changed}. Give this one its own --run "
            "folder, or put the file back."
        )
    if code:
        run.write_json("code.json", code)


def _train(recipe: Recipe, run: RunFolder, state: Any, allow_change: Sequence[str]) -> None:
    nodes = recipe.evaluate.nodes()
    kind = rows_for(recipe.objective)
    rows = run.path / kind.name
    found: RecipeRows | None = None
    if state.is_main_process:
        with _recorded(run, "base"):
            folder = policy_folder(recipe.model)
    state.wait_for_everyone()
    folder = policy_folder(recipe.model)
    tokenizer = load_tokenizer(recipe.model, folder)
    load_config(recipe.model, folder)
    check_roles(recipe)
    if state.is_main_process:
        with _recorded(run, kind.name) as about:
            found = read_rows(recipe, folder, tokenizer)
            about |= found.counts
            logger.info("%s", found.report.summary())
            run.write_json("data_report.json", found.report.to_json())
            shutil.rmtree(rows, ignore_errors=True)
            kind.table(found.train).save_to_disk(str(rows / "train"))
            if found.held_out:
                kind.table(found.held_out).save_to_disk(str(rows / "held_out"))
    state.wait_for_everyone()
    train: Dataset = Dataset.load_from_disk(str(rows / "train"))
    held_out = (
        Dataset.load_from_disk(str(rows / "held_out")) if (rows / "held_out").is_dir() else None
    )

    scores: dict[str, float] = {}

    def evaluation(policy: Any, start: Start) -> dict[str, Any]:
        assert found is not None
        subject = subject_of(recipe, policy, start, tokenizer, found.measured, run.path.name)
        if not start.is_model(policy):
            chosen = benchmarks(nodes)
            for result in run_benchmarks(chosen, folders_of(run.path, chosen), subject):
                scores.update(scores_of(result))
        return measurements(nodes, subject)

    with _recorded(run, "train") if state.is_main_process else _nothing() as about:
        trained = train_policy(
            recipe, run, folder, tokenizer, train, held_out, evaluation, allow_change=allow_change
        )
        about |= {"roles": trained.roles, "versions": trained.versions}
    if not state.is_main_process:
        return
    assert found is not None
    run.write_json("log_history.json", trained.log_history)
    run.write_json(
        "metrics.json",
        {
            "before": trained.before,
            "after": trained.after,
            **({"scores": scores} if scores else {}),
            "n": recipe.evaluate.n or len(found.measured),
            "seed": recipe.train.seed,
            "versions": trained.versions,
            "data": found.counts,
            "training": {
                "steps": max((row["step"] for row in trained.log_history), default=0),
                "processes": state.num_processes,
            },
            "roles": trained.roles,
            "probe": trained.probe,
            "forward": trained.forward,
        },
    )


def _draw(run: RunFolder) -> None:
    try:
        plot_run_curves(run.path)
    except AlignError as error:
        # The run is whole without its picture: matplotlib is missing, or too few steps were logged.
        logger.warning("No picture of the training curves: %s", error)


def _push(recipe: Recipe | KindRecipe, run: RunFolder) -> None:
    hub = recipe.hub
    assert hub.repo is not None
    pushed = push(run.path, hub.repo, private=hub.private, dry_run=hub.dry_run)
    logger.info("%s", pushed.listing())


@contextmanager
def _recorded(run: RunFolder, step: str) -> Iterator[dict[str, Any]]:
    about: dict[str, Any] = {}
    started = time.monotonic()
    yield about
    run.record(step, time.monotonic() - started, about)


@contextmanager
def _nothing() -> Iterator[dict[str, Any]]:
    yield {}
