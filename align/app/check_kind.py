"""The dry run of a reward model, a preference model, or supervised fine-tuning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from align.app.check import CheckReport, require_disk
from align.app.cost import (
    Lengths,
    Machine,
    optimizer_steps,
    run_disk,
)
from align.app.fitting import check_invariants
from align.app.memory import Memory, count_parameters, training_memory
from align.policies.loading import load_config, load_tokenizer
from align.policies.precision import refuse_rate_of
from align.recipe import KindRecipe
from align.stages.kind_rows import read_kind_pairs, rows_of
from align.stages.pairs import Pairs
from align.stages.policies import policy_folder

_ID = 8  # bytes of a stored token id


def check_kind(recipe: KindRecipe, run_dir: Path, show_example: bool) -> str:
    """Everything about a run that can be known before it; no weight is loaded.

    Args:
        recipe: what would be trained.
        run_dir: where the run would lie.
        show_example: render the first row as it is trained on; rows may hold offensive text.

    Raises:
        RecipeError: the learning rate cannot move weights of 16 bits.
        DataError: no row, columns that the kind does not read, or a broken token invariant.
        MachineError: the disk does not suffice.
    """
    folder = policy_folder(recipe.model)
    tokenizer: Any = load_tokenizer(recipe.model, folder)
    config = load_config(recipe.model, folder)
    is_classifier = recipe.kind != "sft"
    refuse_rate_of(recipe.model, recipe.train, folder, config, classifier=is_classifier)
    pairs = read_kind_pairs(recipe, folder, tokenizer)
    # Cut rows keep fewer promises, and the wider limit of both answers is checked where it is cut.
    check_invariants([*pairs.train, *pairs.held_out], tokenizer, recipe.data, config)
    rows = rows_of(recipe.kind, pairs.train, tokenizer)
    columns = ("input_ids",) if recipe.kind == "sft" else ("chosen_ids", "rejected_ids")
    sizes = [max(map(len, sides)) for sides in zip(*(rows[name] for name in columns), strict=True)]
    per_step = recipe.train.per_device_train_batch_size
    batch = sum(sorted(sizes, reverse=True)[:1]) * min(per_step, len(sizes)) * len(columns)
    parameters = count_parameters(recipe, config, classifier=is_classifier)
    memory = training_memory(
        recipe, batch, parameters, config, outputs=1 if is_classifier else None
    )
    steps = optimizer_steps(recipe.train, len(pairs.train), 1)
    caches = _ID * sum(sizes) * len(columns)
    disk = run_disk(recipe, parameters, config, steps, caches)
    machine = Machine.here(run_dir, use_cpu=recipe.train.use_cpu)
    require_disk(disk, machine)
    return str(
        CheckReport(
            rows=pairs.report.summary().rstrip("."),
            pairs=len(pairs.train),
            held_out=len(pairs.held_out),
            lengths=_lengths(recipe, pairs, sizes),
            steps=steps,
            parameters=parameters,
            memory=memory,
            disk=disk,
            machine=machine,
            warnings=tuple(_warnings(recipe, pairs, memory, machine)),
            example=tokenizer.decode(rows[0][columns[0]]) if show_example else None,
            unit="completions" if recipe.kind == "sft" else "pairs",
        )
    )


def _lengths(recipe: KindRecipe, pairs: Pairs, sizes: Sequence[int]) -> dict[str, Lengths]:
    found = {"prompt": Lengths.of([len(row.prompt_ids) for row in pairs.train])}
    if recipe.kind == "sft":
        return found | {"completion": Lengths.of([len(row.chosen_ids) for row in pairs.train])}
    return found | {
        "chosen": Lengths.of([len(row.chosen_ids) for row in pairs.train]),
        "rejected": Lengths.of([len(row.rejected_ids) for row in pairs.train]),
        "whole row": Lengths.of(list(sizes)),
    }


def _warnings(recipe: KindRecipe, pairs: Pairs, memory: Memory, machine: Machine) -> Iterator[str]:
    if not pairs.held_out:
        yield "data.held_out: no row is held out, so nothing is measured on rows"
    if memory.total > machine.free_memory:
        yield (
            f"memory: about {memory.total / 1e9:.3g} GB is more than the "
            f"{machine.free_memory / 1e9:.3g} GB free on {machine.memory_of}; lower "
            "train.per_device_train_batch_size, or train an adapter"
        )
    if recipe.train.max_steps < 0 and recipe.train.per_device_train_batch_size > len(pairs.train):
        yield "train.per_device_train_batch_size: every step sees all rows"
