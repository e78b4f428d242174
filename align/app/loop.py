# pyright: basic
"""From a loop's recipe to a finished run: rounds of stages, each made once."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from rich.console import RenderableType

from align.app.check_loop import check_before_rounds
from align.errors import RecipeError
from align.loops.engine import Loop
from align.loops.history import history
from align.loops.signals import StopSignal
from align.loops.stage import Artefact, first_states, given
from align.policies.loading import load_config, load_tokenizer
from align.publishing.cards import adapter_of, model_card
from align.publishing.hub import push
from align.recipe import Recipe, default_run, load_recipe, resolved_yaml
from align.recipe.sections import ema_decay
from align.recipe.writing import plain_values
from align.report.summary import summary
from align.runs.folder import RunFolder
from align.runs.manifest import damage, publish
from align.runs.versions import versions
from align.stages.evaluate import measured
from align.stages.policies import load_round_policy, policy_folder
from align.stages.workshop import Workshop, start_content

logger = logging.getLogger("align")


def loop_recipe(
    path: Path, overrides: Sequence[str], run_path: Path | None, allow_change: Sequence[str]
) -> RenderableType:
    """Goes through the rounds of a recipe; the same call again goes on where the last one ended.

    Args:
        path: of the recipe.
        overrides: `key.path=value`.
        run_path: the run's folder; None takes outputs/<recipe>-<key>.
        allow_change: libraries whose version may differ from the one earlier stages ran with.

    Raises:
        Interrupted: a signal ended it; everything that was finished is kept.
    """
    recipe = load_recipe(path, overrides)
    if not recipe.is_loop:
        raise RecipeError(
            f"{path} has no `rounds`, so there is nothing to go through: run `align train {path}`, "
            "or add `rounds: 3`, `prompts` and `each_round`."
        )

    state = PartialState(cpu=recipe.train.use_cpu or not torch.accelerator.is_available())
    if state.num_processes > 1:
        raise RecipeError(
            "A loop is started as one process; its train stage starts the others: run `align loop` "
            "without `accelerate launch`, and write `- {run: train, launch: <config>}`."
        )
    run = RunFolder(run_path or default_run(path, recipe))
    run.claim(resolved_yaml(recipe))
    try:
        with StopSignal() as stop:
            _go_through(recipe, run, allow_change, stop)
        return summary([run.path])
    finally:
        run.release()


def _go_through(
    recipe: Recipe, run: RunFolder, allow_change: Sequence[str], stop: StopSignal
) -> None:

    with stop.abandonable():
        start = policy_folder(recipe.model)
    load_config(recipe.model, start)
    workshop = Workshop(recipe, start, load_tokenizer(recipe.model, start))
    stages = workshop.stages()
    check_before_rounds(workshop, stages)
    assert recipe.rounds is not None
    loop = Loop(
        run.path,
        stages,
        given=[*_given(workshop), *first_states(stages)],
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
        with stop.abandonable():
            before = measured(workshop, None)
        run.write_json("before.json", before)
        run.ledger.append("before", time.monotonic() - started, {})
    stop.check("the first round")
    artefacts = loop.run(stop)
    with stop.abandonable():
        _finish(recipe, run, workshop, artefacts, before)
    if recipe.hub.push or recipe.hub.dry_run:
        assert recipe.hub.repo is not None
        pushed = push(
            run.path, recipe.hub.repo, private=recipe.hub.private, dry_run=recipe.hub.dry_run
        )
        logger.info("%s", pushed.listing())


def _given(workshop: Workshop) -> list[Artefact]:
    recipe, start = workshop.loop_recipe, workshop.start
    identity = start_content(workshop)
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
    """Publishes the last policy and writes the run's history and metrics, these last."""
    policy = artefacts["policy"]
    stored = run.read_json("metrics.json")
    # Keys of all that the numbers are made from: equal weights may have another history.
    made_from = {kind: artefacts[kind].key for kind in ("policy", "metrics") if kind in artefacts}
    is_current = stored is not None and stored["loop"].get("made_from") == made_from
    if is_current and damage(run.model) is None:
        logger.info("%s is finished; nothing to do.", run.path)
        return
    assert recipe.rounds is not None
    if policy.is_removed:
        raise RecipeError(
            f"rounds is {recipe.rounds}, and the policy of that round is no longer there: the "
            f"loop went on, and keep.rounds is {recipe.keep.rounds}. Write the former number of "
            "rounds, or give this run its own --run folder."
        )
    said = history(run.path, recipe.rounds)
    if "metrics" in artefacts:
        after = json.loads((artefacts["metrics"].path / "metrics.json").read_text())
    else:
        after = measured(
            workshop, load_round_policy(recipe, policy.path, workshop.start, trainable=False)
        )
    metrics = {
        "before": before,
        "after": after,
        "n": max((value["n"] for value in after.values()), default=0),
        "seed": recipe.train.seed,
        "versions": versions(),
        "loop": {
            "rounds": recipe.rounds,
            "made_from": made_from,
            "judge_calls": sum(row.get("calls", 0) for row in said),
            recipe.learns_from: sum(
                row[recipe.learns_from] for row in said if row["stage"] == "train"
            ),
            "steps": sum(row["steps"] for row in said if row["stage"] == "train"),
        },
    }
    partial = run.path / "model.partial"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(policy.path, partial)
    # Before the folder is sealed: an adapter brings a card of its own.
    card = model_card(plain_values(recipe), metrics, {}, adapter=adapter_of(partial))
    (partial / "README.md").write_text(card, encoding="utf-8")
    publish(partial, run.model, {"versions": versions(), "rounds": recipe.rounds})
    run.write_json("history.json", said)
    run.write_json("metrics.json", metrics)
