"""TRL's DPOTrainer beside ours on the first steps of the same run: losses and time, in turns."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from bench_loops import Measured, Trl
from bench_turns import Side, Turns, meter_of
from datasets import Dataset
from trl.trainer.dpo_config import DPOConfig

from align.policies.loading import load_policy, load_tokenizer
from align.recipe import Recipe
from align.stages.pairs import read_recipe_pairs
from align.stages.policies import policy_folder
from align.stages.training import adapter_of, arguments_here
from align.trainers import PreferenceConfig, PreferenceTrainer

COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")


class WholeSteps(Measured):
    """The loss of a step that is made of several batches is their mean, not the last one's."""

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        self.of_step = 0.0
        return super().get_batch_samples(*args, **kwargs)

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        loss = super().training_step(model, inputs, *args, **kwargs)
        self.of_step += float(loss)
        self.side.loss = loss.new_tensor(self.of_step)
        return loss


class TheirSteps(WholeSteps, Trl):
    """TRL's, on rows that are tokenised already."""


class OurSteps(WholeSteps, PreferenceTrainer):
    """Ours; how long the reference takes is measured apart, since it is scored beforehand."""

    reference_seconds = 0.0

    def _score(self, role: str, model: Any, dataset: Any) -> Any:
        began = time.process_time()
        found = super()._score(role, model, dataset)
        self.reference_seconds += time.process_time() - began
        return found


def compared(recipe: Recipe, steps: int, their_batch: int, work: Path) -> dict[str, Any]:
    """Both trainers over the first pairs, in one process, step by step in turns.

    Both start from the same weights and adapter, by the recipe's seed, and read the pairs in the
    file's order, with one type of weights and no autocast. TRL computes the reference in every
    step, its default.

    Args:
        recipe: of DPO.
        steps: optimizer steps of each.
        their_batch: pairs of one forward pass of TRL's; it accumulates them to the same step.
        work: folder for what the trainers write.

    Returns:
        Both loss curves [nats], their largest difference, CPU seconds per step, and ratios.
    """
    folder = policy_folder(recipe.model)
    tokenizer: Any = load_tokenizer(recipe.model, folder)
    size = recipe.train.per_device_train_batch_size
    pairs = read_recipe_pairs(recipe, folder, tokenizer).train[: steps * size]
    dataset = Dataset.from_dict({name: [getattr(p, name) for p in pairs] for name in COLUMNS})
    common: dict[str, Any] = arguments_here(recipe.train) | {
        "train_sampling_strategy": "sequential",
        "num_train_epochs": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    their_own: dict[str, Any] = {
        "output_dir": str(work / "trl"),
        "per_device_train_batch_size": their_batch,
        "gradient_accumulation_steps": size // their_batch,
    }
    our_own: dict[str, Any] = {"output_dir": str(work / "align")}
    theirs = TheirSteps(
        load_policy(recipe.model, folder),
        args=DPOConfig(
            **(common | their_own),
            max_length=recipe.data.max_length,
            beta=recipe.objective.model_dump()["beta"],
        ),
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=adapter_of(recipe.model),
    )
    with _cache_at(work / "cache"):
        ours = OurSteps(
            load_policy(recipe.model, folder),
            args=PreferenceConfig(
                **(common | our_own),
                max_length=recipe.data.max_length,
                token_budget=recipe.train.token_budget,
            ),
            train_dataset=dataset,
            processing_class=tokenizer,
            peft_config=adapter_of(recipe.model),
            objective=recipe.objective,
        )
    return _in_turns(theirs, ours, steps) | {
        "steps": steps,
        "pairs_per_step": size,
        "trl_pairs_at_once": their_batch,
        "weights": str(ours.model.dtype),
        "autocast": {"trl": theirs.args.bf16, "align": ours.args.bf16},
    }


@contextmanager
def _cache_at(folder: Path) -> Iterator[None]:
    """Scores that an earlier call left would take no time now."""
    shutil.rmtree(folder, ignore_errors=True)
    before = os.environ.get("ALIGN_CACHE")
    os.environ["ALIGN_CACHE"] = str(folder)
    try:
        yield
    finally:
        del os.environ["ALIGN_CACHE"]
        if before is not None:
            os.environ["ALIGN_CACHE"] = before


def _in_turns(theirs: Any, ours: Any, steps: int) -> dict[str, Any]:
    turns, meter = Turns(steps), meter_of("cpu")
    for number, trainer in enumerate((theirs, ours)):
        trainer.take_turns(Side(number, turns, meter, steps))

    def run(trainer: Any) -> None:
        try:
            trainer.train()
        except BaseException:
            turns.fail()
            raise

    with ThreadPoolExecutor(2) as threads:
        running = [threads.submit(run, trainer) for trainer in (theirs, ours)]
        try:
            done, _ = wait(running, return_when=FIRST_EXCEPTION)
        except BaseException:
            turns.fail()
            raise
        for one in done:
            one.result()
    reference = ours.reference_seconds / steps
    taken = list(zip(theirs.side.steps, ours.side.steps, strict=True))
    return {
        "losses": {"trl": [a.loss for a, _ in taken], "align": [b.loss for _, b in taken]},
        "largest_difference": max(abs(a.loss - b.loss) for a, b in taken),
        "seconds": {"trl": [a.seconds for a, _ in taken], "align": [b.seconds for _, b in taken]},
        "reference_seconds_per_step": reference,
        "step_ratio": median(a.seconds / b.seconds for a, b in taken),
        "whole_ratio": sum(a.seconds for a, _ in taken)
        / sum(b.seconds + reference for _, b in taken),
    }


def said(found: Mapping[str, Any]) -> list[str]:
    """Lines of Markdown."""
    theirs, ours = found["losses"]["trl"], found["losses"]["align"]
    lines = ["| step | TRL, loss | align, loss | difference |", "| ---: | ---: | ---: | ---: |"]
    lines += [
        f"| {number} | {a:.5f} | {b:.5f} | {b - a:+.5f} |"
        for number, (a, b) in enumerate(zip(theirs, ours, strict=True), start=1)
    ]
    step = {side: median(seconds) for side, seconds in found["seconds"].items()}
    return [
        f"The first {found['steps']} steps of {found['pairs_per_step']} pairs, both trainers in "
        f"one process, in turns; weights {found['weights']}, autocast off in both; TRL in passes "
        f"of {found['trl_pairs_at_once']} pairs. Largest difference of the losses: "
        f"{found['largest_difference']:.2g} nats. CPU time of a step: TRL {step['trl']:.1f} s, "
        f"align {step['align']:.1f} s (median ratio {found['step_ratio']:.2f}). TRL computes the "
        "reference in each step; with align's scoring of it beforehand, "
        f"{found['reference_seconds_per_step']:.1f} s a step, the ratio of the whole is "
        f"{found['whole_ratio']:.2f}.",
        "",
        *lines,
    ]
