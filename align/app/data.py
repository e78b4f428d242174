# pyright: basic
"""From the recipe of a data set to Parquet files with a card: one round of stages, none trains."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from align import registry
from align.data.built import BuiltPair
from align.data.pairs import PreferencePair
from align.data.parquet import quality, write_rows
from align.errors import DataError, RecipeError
from align.loops.artefacts import read_lines
from align.loops.engine import Loop
from align.loops.retention import Retention
from align.loops.signals import StopSignal
from align.loops.stage import Artefact, Stage, check_chain, first_states, given
from align.policies.base import Sampling
from align.policies.loading import load_config, load_tokenizer
from align.policies.prompting import Prompting
from align.publishing.cards import dataset_card
from align.publishing.hub import push
from align.publishing.origins import is_machine_path, shown_name
from align.recipe import DataRecipe, default_run, load_data_recipe, resolved_yaml
from align.recipe.writing import plain_values
from align.runs.folder import RunFolder
from align.runs.manifest import damage, publish
from align.runs.versions import versions
from align.stages.policies import policy_folder
from align.stages.prompts import PromptSource
from align.stages.workshop import Workshop, start_content

logger = logging.getLogger("align")


def build_data(
    path: Path, overrides: Sequence[str], run_path: Path | None, allow_change: Sequence[str]
) -> str:
    """Makes a recipe's data set; the same call again goes on where the last one ended.

    Args:
        path: of the recipe.
        overrides: `key.path=value`.
        run_path: the run's folder; None takes outputs/<recipe>-<key>.
        allow_change: libraries whose version may differ from the one earlier stages ran with.

    Returns:
        What was made, for people.

    Raises:
        Interrupted: a signal ended it; everything that was finished is kept.
    """
    recipe = load_data_recipe(path, overrides)
    run = RunFolder(run_path or default_run(path, recipe))
    run.claim(resolved_yaml(recipe))
    try:
        with StopSignal() as stop:
            report = _build(recipe, run, allow_change, stop)
        if recipe.hub.push or recipe.hub.dry_run:
            assert recipe.hub.repo is not None
            pushed = push(
                run.path, recipe.hub.repo, private=recipe.hub.private, dry_run=recipe.hub.dry_run
            )
            report += "\n" + pushed.listing()
        return report
    finally:
        run.release()


def check_data(recipe: DataRecipe, show_example: bool) -> str:
    """The dry run of a data recipe: its stages and prompts, without a model's weights.

    Raises:
        RecipeError: the stages do not fit together.
        DataError: no prompt can be continued.
    """
    start = policy_folder(recipe.model)
    config = load_config(recipe.model, start)
    tokenizer = load_tokenizer(recipe.model, start)
    stages = _checked(Workshop(recipe, start, tokenizer))
    lines = [f"stages: {', '.join(stage.name for stage in stages)}; they fit together"]
    assert recipe.prompts is not None
    source = PromptSource(recipe.prompts, recipe.data)
    prompts = source.of_round(1)
    longest = getattr(config.get_text_config(), "max_position_embeddings", None) or 2**31
    begun = Prompting(tokenizer).begin(prompts, 1, Sampling(max_new_tokens=1), longest)
    refused: list[Any] = [of[0] for of in begun.results if of]
    if not begun.ids:
        raise DataError(
            f"None of the {len(prompts)} prompts can be continued; the first: "
            f"{refused[0].reason} ({refused[0].detail}). Mend the prompts."
        )
    if rows := source.counts():
        dropped = sum(rows["rows"]["dropped"].values())
        lines.append(f"rows: {rows['rows']['read']} read, {dropped} dropped")
    lengths = sorted(len(ids) for ids in begun.ids.values())
    lines += [
        f"prompts: {len(prompts)}, of which {len(refused)} cannot be continued",
        f"prompt tokens: median {lengths[len(lengths) // 2]}, longest {lengths[-1]} of {longest}",
        f"work: {recipe.work.engine}",
    ]
    if show_example:
        first = next(iter(begun.ids.values()))
        lines += ["", "what the policy continues:", repr(tokenizer.decode(first))]
    return "\n".join(lines)


def _checked(workshop: Workshop) -> list[Stage]:
    stages = workshop.stages()
    check_chain(stages, dict.fromkeys(["policy", *(a.kind for a in first_states(stages))]))
    for node in workshop.nodes:
        node.look_ahead(workshop)
    if any("groups" in stage.writes for stage in stages):
        raise RecipeError(
            "build: a data set is one of pairs, and `rule: groups` makes groups; write another "
            "rule, or make the groups in a loop (`align loop`)."
        )
    if not any("pairs" in stage.writes for stage in stages):
        raise RecipeError("build: no stage leaves pairs; end with select, or with a pipeline.")
    return stages


def _build(
    recipe: DataRecipe, run: RunFolder, allow_change: Sequence[str], stop: StopSignal
) -> str:

    with stop.abandonable():
        start = policy_folder(recipe.model)
    load_config(recipe.model, start)
    workshop = Workshop(recipe, start, load_tokenizer(recipe.model, start))
    stages = _checked(workshop)
    identity = start_content(workshop)
    loop = Loop(
        run.path,
        stages,
        given=[given("policy", Path(start), identity), *first_states(stages)],
        rounds=1,
        seed=recipe.seed,
        ledger=run.ledger,
        versions=versions(),
        # Nothing is superseded by a later round.
        retention=Retention(bulky=()),
        allow_change=allow_change,
    )
    artefacts = loop.run(stop)
    with stop.abandonable():
        return _finish(recipe, run, artefacts)


def _finish(recipe: DataRecipe, run: RunFolder, artefacts: Mapping[str, Artefact]) -> str:
    """Publishes the data set with its card, then the metrics."""
    made = artefacts["pairs"]
    said = _said(made)
    folder = run.path / "dataset"
    stored = run.read_json("metrics.json")
    if stored is not None and stored["made_from"] == made.key and damage(folder) is None:
        logger.info("%s is finished; nothing to do.", run.path)
        return _report(run.path, stored)
    pairs = [_row(row) for row in read_lines(made.path)]
    pairs = [
        pair.model_copy(update={"source": shown_name(pair.source)})
        if is_machine_path(pair.source)
        else pair
        for pair in pairs
    ]
    counts = {key: said[key] for key in ("read", "kept", "dropped")}
    metrics = {
        "before": {},
        "after": {},
        "n": len(pairs),
        "seed": recipe.seed,
        "versions": versions(),
        "made_from": made.key,
        "rows": counts,
        "quality": quality(pairs, said.get("counts", {})),
        "counts": said.get("counts", {}),
    }
    partial = run.path / "dataset.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    write_rows(partial, pairs)
    sources = [recipe.prompts.source] if recipe.prompts is not None else []
    card = dataset_card(
        run.path.name,
        sources,
        counts,
        how_made=_how_made(recipe, metrics["quality"]),
        size=len(pairs),
    )
    (partial / "README.md").write_text(card, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    publish(partial, folder, {"versions": versions(), "made_from": made.key})
    run.write_json("metrics.json", metrics)
    return _report(run.path, metrics)


def _said(artefact: Artefact) -> Mapping[str, Any]:
    """What the stage that made the artefact told the ledger."""
    manifest = json.loads((artefact.path.parent / "manifest.json").read_text())
    return manifest["about"]["about"]


def _row(row: Mapping[str, Any]) -> BuiltPair:
    """A pair; one that no pipeline made has no provenance but its source."""
    if "uid" in row:
        return BuiltPair.model_validate(row)
    pair: Any = PreferencePair.model_validate(row)
    return pair


def _how_made(recipe: DataRecipe, found: Mapping[str, Any]) -> str:
    """The card's account of the stages, and of what the rows are like."""
    stages = "\n".join(
        f"{number}. `{stage.run}`: "
        + ", ".join(
            f"{key} {value}"
            for key, value in stage.model_dump(mode="json", exclude_unset=True).items()
            if key not in ("run", "server")
        )
        for number, stage in enumerate(recipe.build, start=1)
    )
    lines = [
        f"Policy: `{plain_values(recipe)['model']['model_name_or_path']}`, seed {recipe.seed}."
    ]
    lines += ["", stages, ""]
    longer = found["chosen_is_longer"]
    lines.append(
        f"Chosen is longer than rejected in {longer:.1%} of the {found['pairs']} rows and shorter "
        f"in {found['chosen_is_shorter']:.1%}."
    )
    lines += [
        f"`{name}`: {found[name]['from']:.4g} to {found[name]['to']:.4g}, "
        f"mean {found[name]['mean']:.4g} ({found[name]['rows']} rows)."
        for name in ("margin", "preference", "uncertainty", "prob_chosen")
        if name in found
    ]
    return "\n".join(lines)


def _report(run: Path, metrics: Mapping[str, Any]) -> str:
    rows, found = metrics["rows"], metrics["quality"]
    lost = ", ".join(f"{n} {reason}" for reason, n in rows["dropped"].items()) or "none"
    lines = [
        f"{run / 'dataset'}: {rows['kept']} pairs of {rows['read']} candidates",
        f"  dropped: {lost}",
        f"  chosen is longer in {found['chosen_is_longer']:.1%}, "
        f"shorter in {found['chosen_is_shorter']:.1%}",
    ]
    lines += [
        f"  {name}: mean {found[name]['mean']:.4g}, from {found[name]['from']:.4g} to "
        f"{found[name]['to']:.4g}"
        for name in ("margin", "preference", "uncertainty", "prob_chosen")
        if name in found
    ]
    lines += [f"  {name.replace('_', ' ')}: {n}" for name, n in metrics["counts"].items()]
    return "\n".join(lines)


def show_tree(run: Path, number: int, *, as_html: bool) -> str:
    """One tree of a run that searched.

    Args:
        run: folder of `align data build`, or of a loop.
        number: of the tree, from 1, over all rounds.
        as_html: a piece of an HTML page in place of text.

    Raises:
        DataError: there is no such tree.
    """
    rows: list[tuple[str, Mapping[str, Any]]] = []
    for folder in sorted(run.glob("rounds/*/[0-9]*-*/records")):
        stage = folder.parent.name.partition("-")[2]
        rows += [(stage, row["record"]) for row in read_lines(folder)]
    trees = [(stage, record) for stage, record in rows if "nodes" in record]
    if not trees:
        raise DataError(f"{run} holds no tree: give the folder of a run with a stage `mcts`.")
    if not 1 <= number <= len(trees):
        raise DataError(f"{run} holds {len(trees)} trees; there is no tree {number}.")
    stage, record = trees[number - 1]
    # Its own stage knows how to show what it left.
    shown: Any = registry.node("stage", stage)
    return shown.show(record, as_html=as_html)
