"""From a recipe of one of the kinds to a finished run: rows, training, measuring."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset

from align.policies.loading import load_config, load_tokenizer
from align.policies.precision import refuse_rate_of
from align.policies.start import Start
from align.recipe import KindRecipe, SFTRecipe
from align.runs.folder import RunFolder
from align.runs.versions import versions
from align.stages.evaluate import (
    benchmarks,
    folders_of,
    measurements,
    run_benchmarks,
    scores_of,
    subject_of,
)
from align.stages.kind_measures import measured_classifier, measured_imitation
from align.stages.kind_rows import read_kind_pairs, rows_of
from align.stages.kind_training import train_kind
from align.stages.pairs import Pairs
from align.stages.policies import policy_folder, start_beside

logger = logging.getLogger("align")


def train_kind_run(
    recipe: KindRecipe, run: RunFolder, state: PartialState, allow_change: Sequence[str]
) -> None:
    """Trains a reward model, a preference model, or a policy that imitates, in a run's folder.

    Args:
        recipe: of the kind.
        run: claimed by the main process.
        state: of this process.
        allow_change: settings that may differ from the checkpoint that is resumed from.
    """
    is_main = state.is_main_process
    if is_main:
        with run.recorded("base"):
            policy_folder(recipe.model)
    state.wait_for_everyone()
    folder = policy_folder(recipe.model)
    tokenizer: Any = load_tokenizer(recipe.model, folder)
    config = load_config(recipe.model, folder)
    if state.num_processes == 1:  # several may shard, and keep copies in float32
        is_classifier = recipe.kind != "sft"
        refuse_rate_of(recipe.model, recipe.train, folder, config, classifier=is_classifier)
    pairs: Pairs | None = None
    rows = run.path / "pairs"
    if is_main:
        with run.recorded("pairs") as about:
            pairs = read_kind_pairs(recipe, folder, tokenizer)
            about |= pairs.counts()
            logger.info("%s", pairs.report.summary())
            run.write_json("data_report.json", pairs.report.to_json())
            shutil.rmtree(rows, ignore_errors=True)
            for name in ("train", "held_out"):
                if part := getattr(pairs, name):
                    rows_of(recipe.kind, part, tokenizer).save_to_disk(str(rows / name))
    state.wait_for_everyone()
    train, held_out = _read(rows / "train"), _read(rows / "held_out")
    assert train is not None, "no rows to train on are refused where they are read"
    if held_out is None:
        logger.warning("No row is held out, so nothing of the finished model is measured on rows.")
    measuring = _Measuring(recipe, run, folder, tokenizer, pairs, held_out)
    with run.recorded("train") if is_main else nullcontext(dict[str, Any]()) as about:
        trained = train_kind(
            recipe,
            run,
            folder,
            tokenizer,
            train,
            held_out,
            measuring,
            allow_change=allow_change,
        )
        about["versions"] = versions()
    if not is_main:
        return
    assert pairs is not None
    run.write_json("log_history.json", trained.log_history)
    extra = {
        name: {"before": trained.before[name], "after": trained.after[name]}
        for name in trained.after
        if name not in ("measures", "scores")
    }
    run.write_json(
        "metrics.json",
        {
            "kind": recipe.kind,
            "before": trained.before["measures"],
            "after": trained.after["measures"],
            **extra,
            **({"scores": trained.after["scores"]} if trained.after.get("scores") else {}),
            "n": len(pairs.held_out),
            "seed": recipe.train.seed,
            "versions": versions(),
            "data": pairs.counts(),
            "training": {
                "steps": max((row["step"] for row in trained.log_history), default=0),
                "processes": state.num_processes,
            },
        },
    )


def _read(folder: Path) -> Dataset | None:
    return Dataset.load_from_disk(str(folder)) if folder.is_dir() else None


class _Measuring:
    """What is measured of the start and of the finished model; called with the start first."""

    def __init__(
        self,
        recipe: KindRecipe,
        run: RunFolder,
        folder: str,
        tokenizer: Any,
        pairs: Pairs | None,
        held_out: Dataset | None,
    ) -> None:
        self._recipe = recipe
        self._run = run
        self._folder = folder
        self._tokenizer = tokenizer
        self._pairs = pairs
        self._held_out = held_out

    def __call__(self, model: Any) -> dict[str, Any]:
        """`measures`, and of a classifier the reliability table, of a policy the benchmarks."""
        recipe, size = self._recipe, self._recipe.train.per_device_eval_batch_size
        if isinstance(recipe, SFTRecipe):
            return self._of_policy(recipe, model, size)
        measures, table = measured_classifier(
            recipe.kind,
            model,
            self._held_out,
            pad=self._tokenizer.pad_token_id,
            batch_size=size,
        )
        return {"measures": measures, "reliability": table}

    def _of_policy(self, recipe: SFTRecipe, model: Any, size: int) -> dict[str, Any]:
        assert self._pairs is not None
        measures = measured_imitation(model, self._pairs.held_out, batch_size=size)
        nodes = recipe.evaluate.nodes()
        if not nodes:
            return {"measures": measures, "scores": {}}
        is_start = self._run.read_json("before.json") is None
        # Both ask for nothing but sections that this recipe has too.
        sections: Any = recipe
        start = (
            Start.in_memory(model)
            if is_start
            else start_beside(sections, self._folder, None, model)
        )
        subject = subject_of(
            sections, model, start, self._tokenizer, self._pairs.held_out, self._run.path.name
        )
        scores: dict[str, float] = {}
        if not is_start:
            chosen = benchmarks(nodes)
            for result in run_benchmarks(chosen, folders_of(self._run.path, chosen), subject):
                scores |= scores_of(result)
        return {"measures": measures | measurements(nodes, subject), "scores": scores}
