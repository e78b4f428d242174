# pyright: basic
"""From a loop's recipe to a finished run: rounds of stages, each made once."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.errors import RecipeError
from align.loops.engine import Loop
from align.loops.stage import Artefact, given
from align.manifest import damage, publish
from align.recipe import Recipe, load_recipe, resolved_yaml
from align.runs import RunFolder

if TYPE_CHECKING:
    from rich.table import Table

    from align.commands.stages import Workshop

logger = logging.getLogger("align")


def loop_recipe(
    path: Path, overrides: Sequence[str], run_path: Path | None, allow_change: Sequence[str]
) -> Table:
    """Goes through the rounds of a recipe; the same call again goes on where the last one ended.

    Args:
        path: of the recipe.
        overrides: `key.path=value`.
        run_path: the run's folder; None takes outputs/<recipe>-<key>.
        allow_change: libraries whose version may differ from the one earlier stages ran with.

    Raises:
        Interrupted: a signal ended it; everything that was finished is kept.
    """
    from align.commands import default_run

    recipe = load_recipe(path, overrides)
    if not recipe.is_loop:
        raise RecipeError(
            f"{path} has no `rounds`, so there is nothing to go through: run `align train {path}`, "
            "or add `rounds: 3`, `prompts` and `each_round`."
        )
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=recipe.train.use_cpu or not torch.accelerator.is_available())
    if state.num_processes > 1:
        raise RecipeError(
            "A loop is started as one process; its train stage starts the others: run `align loop` "
            "without `accelerate launch`, and write `- {run: train, launch: <config>}`."
        )
    run = RunFolder(run_path or default_run(path, recipe))
    run.claim(resolved_yaml(recipe))
    try:
        return _go_through(recipe, run, allow_change)
    finally:
        run.release()


def _go_through(recipe: Recipe, run: RunFolder, allow_change: Sequence[str]) -> Table:
    from align.commands import load_config, load_tokenizer, policy_folder
    from align.commands.stages import Workshop, measured, stages_of
    from align.report.table import compare
    from align.trainers.settings import versions

    start = policy_folder(recipe.model)
    load_config(recipe.model, start)
    workshop = Workshop(recipe, start, load_tokenizer(recipe.model, start))
    stages = stages_of(workshop)
    assert recipe.rounds is not None
    loop = Loop(
        run.path,
        stages,
        given=_given(recipe, start),
        rounds=recipe.rounds,
        seed=recipe.train.seed,
        ledger=run.ledger,
        versions=versions(),
        retention=recipe.keep,
        allow_change=allow_change,
    )
    before = run.read_json("before.json")
    if before is None:
        started = time.monotonic()
        before = measured(workshop, None)
        run.write_json("before.json", before)
        run.ledger.append("before", time.monotonic() - started, {})
    artefacts = loop.run()
    _finish(recipe, run, workshop, artefacts, before)
    return compare([run.path])


def _given(recipe: Recipe, start: str) -> list[Artefact]:
    from align.commands.stages import content_digest
    from align.recipe.sections import ema_decay

    name = content_digest(start)
    identity = name if name != start else f"{start}@{recipe.model.model_revision}"
    found = [given("policy", Path(start), identity)]
    if any(ema_decay(source) is not None for source in recipe.roles.given.values()):
        found.append(given("anchor", Path(start), identity))
    return found


def _finish(
    recipe: Recipe,
    run: RunFolder,
    workshop: Workshop,
    artefacts: dict[str, Artefact],
    before: dict[str, Any],
) -> None:
    """Publishes the last policy and writes the run's metrics, card and history."""
    from align.cards import write_model_card
    from align.commands.policies import load_round_policy
    from align.commands.stages import measured
    from align.trainers.settings import versions

    policy = artefacts["policy"]
    stored = run.read_json("metrics.json")
    is_current = stored is not None and stored["loop"]["policy"] == policy.sha256
    if is_current and damage(run.model) is None:
        logger.info("%s is finished; nothing to do.", run.path)
        return
    history = _history(run.path)
    if "metrics" in artefacts:
        after = json.loads((artefacts["metrics"].path / "metrics.json").read_text())
    else:
        after = measured(
            workshop, load_round_policy(recipe, policy.path, workshop.start, trainable=False)
        )
    partial = run.path / "model.partial"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(policy.path, partial)
    publish(partial, run.model, {"versions": versions(), "rounds": recipe.rounds})
    run.write_json("history.json", history)
    run.write_json(
        "metrics.json",
        {
            "before": before,
            "after": after,
            "n": recipe.evaluate.n or 1024,
            "seed": recipe.train.seed,
            "versions": versions(),
            "loop": {
                "rounds": recipe.rounds,
                "policy": policy.sha256,
                "judge_calls": sum(row.get("calls", 0) for row in history),
                "pairs": sum(row.get("pairs", 0) for row in history if row["stage"] == "train"),
            },
        },
    )
    write_model_card(run.path)


def _history(run: Path) -> list[dict[str, Any]]:
    """What each stage of each round said, in their order, without clocks."""
    found: list[dict[str, Any]] = []
    for folder in sorted((run / "rounds").glob("*/*")):
        manifest = folder / "manifest.json"
        if folder.name.startswith((".", "set-aside")) or not manifest.is_file():
            continue
        about = json.loads(manifest.read_text())["about"]
        stage = about["stage"]
        found.append({"round": stage["round"], "stage": stage["name"], **about["about"]})
    return found
