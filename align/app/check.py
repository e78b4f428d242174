"""The dry run of a recipe that trains once on pairs: rows, token invariants, memory and disk.

`check` computes from what it is given and loads no weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from align.app.cost import (
    Disk,
    Lengths,
    Machine,
    estimate_disk,
    in_units,
    optimizer_steps,
)
from align.app.evaluation_cost import evaluation_memory
from align.app.fitting import check_columns, check_invariants, check_roles
from align.app.launch import ALONE, Launch
from align.app.memory import Memory, Parameters, count_parameters, estimate_memory
from align.app.room import would_fit
from align.data.row_report import RowReport
from align.errors import DataError, MachineError
from align.forest.rows import TokenRow
from align.recipe import Recipe, notices
from align.tokens.tokenized_pair import TokenizedPair

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


@dataclass(frozen=True)
class CheckReport:
    """What a recipe would train on and what it would take."""

    rows: str
    pairs: int
    held_out: int
    lengths: dict[str, Lengths]
    steps: int
    parameters: Parameters
    memory: Memory
    disk: Disk
    machine: Machine
    warnings: tuple[str, ...]
    example: str | None
    unit: str = "pairs"
    """What the rows are."""
    evaluating: Memory | None = None
    """While the policy is measured; None where nothing is counted."""
    beside: tuple[str, ...] = ()
    """More about the rows, a line each."""

    def __str__(self) -> str:
        """The report for people."""
        lines = [
            f"rows: {self.rows}",
            f"{self.unit}: {self.pairs} to train on, {self.held_out} held out, {self.steps} steps",
            *self.beside,
            *(f"{part} tokens: {lengths}" for part, lengths in self.lengths.items()),
            f"token invariants: hold on all {self.unit}",
            f"parameters: {self.parameters.total:,}, trained {self.parameters.trained:,}",
            f"memory: about {self._memory(self.memory)}; "
            f"{in_units(self.machine.free_memory)} free on {self.machine.memory_of}",
            *([f"evaluation: about {self._memory(self.evaluating)}"] if self.evaluating else []),
            f"disk: about {in_units(self.disk.total)} ({self.disk.checkpoints} checkpoints of "
            f"{in_units(self.disk.checkpoint)}, model {in_units(self.disk.model)}, caches "
            f"{in_units(self.disk.caches)}); {in_units(self.machine.free_disk)} free",
            *(f"warning: {warning}" for warning in self.warnings),
        ]
        if self.example is not None:
            lines += ["", self.example]
        return "\n".join(lines)

    def _memory(self, of: Memory) -> str:
        parts = {f.name: getattr(of, f.name) for f in fields(Memory)}
        parts |= {"program": self.machine.program}
        listed = ", ".join(f"{name} {in_units(size)}" for name, size in parts.items() if size)
        return f"{in_units(of.total + self.machine.program)} per device ({listed})"


def check(
    recipe: Recipe,
    *,
    train: Sequence[TokenizedPair],
    held_out: Sequence[TokenizedPair],
    report: RowReport,
    tokenizer: PreTrainedTokenizerBase,
    model_config: PreTrainedConfig,
    run_dir: Path,
    machine: Machine | None = None,
    launch: Launch = ALONE,
    show_example: bool = False,
) -> CheckReport:
    """Everything about a run that can be known before it.

    Args:
        recipe: what would be trained.
        train: the rows to train on.
        held_out: the rows to evaluate on.
        report: the count of all rows read.
        tokenizer: the one that encoded the rows.
        model_config: of the policy.
        run_dir: where the run would lie.
        machine: what is free; None asks this machine.
        launch: the devices that share the work.
        show_example: render the first pair; preference data holds offensive text.

    Raises:
        DataError: no row, a broken token invariant, or columns that do not suit the objective.
        RecipeError: a role's folder does not exist.
        MachineError: the disk does not suffice.
    """
    machine = machine or Machine.here(run_dir, use_cpu=recipe.train.use_cpu)
    # A model that reads pictures has a processor around its tokenizer.
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    if not train:
        raise DataError(
            f"No pair is left to train on: {report.summary()} Mend the rows or data.pairs."
        )
    check_invariants([*train, *held_out], tokenizer, recipe.data, model_config)
    check_columns(recipe, train)
    check_roles(recipe)
    steps = optimizer_steps(recipe.train, len(train), launch.processes)
    parameters = count_parameters(recipe, model_config)
    units = rows_of_pairs(train)
    memory = estimate_memory(recipe, units, parameters, model_config, launch)
    evaluating = evaluation_memory(recipe, held_out, parameters, model_config)
    disk = estimate_disk(recipe, [*train, *held_out], parameters, model_config, steps)
    require_disk(disk, machine)
    return CheckReport(
        rows=report.summary().rstrip("."),
        pairs=len(train),
        held_out=len(held_out),
        lengths={
            "prompt": Lengths.of([len(row.prompt_ids) for row in train]),
            "chosen": Lengths.of([len(row.chosen_ids) for row in train]),
            "rejected": Lengths.of([len(row.rejected_ids) for row in train]),
        },
        steps=steps,
        parameters=parameters,
        memory=memory,
        disk=disk,
        machine=machine,
        warnings=(
            *warnings_of(recipe, len(train), tokenizer, steps, launch.processes),
            *would_fit(recipe, units, memory, model_config, launch, machine),
            *_warnings_of_pairs(recipe, train, held_out),
            *too_large(evaluating, machine),
        ),
        example=_render(train[0], tokenizer) if show_example else None,
        evaluating=evaluating,
    )


def require_disk(disk: Disk, machine: Machine) -> None:
    """Raise where a run would not fit.

    Raises:
        MachineError: the disk does not suffice.
    """
    if disk.total > machine.free_disk:
        raise MachineError(
            f"The run needs about {in_units(disk.total)} of disk ({disk.checkpoints} checkpoints "
            f"of {in_units(disk.checkpoint)}, model {in_units(disk.model)}, caches "
            f"{in_units(disk.caches)}) and {in_units(machine.free_disk)} are free: set "
            "train.save_total_limit: 1, raise train.save_steps, or name a --run folder on another "
            "disk."
        )


def warnings_of(
    recipe: Recipe,
    rows: int,
    tokenizer: PreTrainedTokenizerBase,
    steps: int,
    processes: int,
) -> Iterator[str]:
    """What is allowed and yet probably not meant, of training on so many rows of any kind."""
    yield from notices(recipe)
    train = recipe.train
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id == tokenizer.eos_token_id:
        yield (
            "the pad token is the end token; masks come from lengths here, but tools that mask by "
            "token id would hide the end of every completion from this model"
        )
    if train.per_device_train_batch_size * processes > rows:
        yield (
            f"train.per_device_train_batch_size: {train.per_device_train_batch_size} on "
            f"{processes} processes is more than all {rows} {recipe.learns_from}; every step sees "
            "them all"
        )
    if train.warmup_steps >= 1 and train.warmup_steps >= steps and train.max_steps < 1:
        yield f"train.warmup_steps: warm-up lasts as long as the whole run of {steps} steps"


def rows_of_pairs(pairs: Sequence[TokenizedPair]) -> list[list[TokenRow]]:
    """The two rows of each pair."""
    return [
        [TokenRow(pair.prompt_ids, pair.chosen_ids), TokenRow(pair.prompt_ids, pair.rejected_ids)]
        for pair in pairs
    ]


def _warnings_of_pairs(
    recipe: Recipe, pairs: Sequence[TokenizedPair], held_out: Sequence[TokenizedPair]
) -> Iterator[str]:
    if not held_out and recipe.evaluate.needs_pairs:
        yield "evaluate.suite: no pair is held out, so preference has nothing to measure"
    scored = all(pair.pair.chosen_score is not None for pair in pairs)
    if scored and "score" not in recipe.objective.needs | recipe.objective.accepts:
        yield f"chosen_score, rejected_score: {recipe.objective.name} does not read them"


def too_large(evaluating: Memory | None, machine: Machine) -> Iterator[str]:
    """That the evaluation may not fit."""
    if evaluating is not None and evaluating.total > machine.free_memory:
        yield (
            f"evaluation: about {in_units(evaluating.total)} is more than the "
            f"{in_units(machine.free_memory)} free on {machine.memory_of}; lower "
            "train.token_budget, or train.per_device_eval_batch_size where there is none"
        )


def _render(row: TokenizedPair, tokenizer: PreTrainedTokenizerBase) -> str:
    """The first pair as text, every control token spelled out, and where a side goes on."""
    parts = {"prompt": row.prompt_ids, "chosen": row.chosen_ids, "rejected": row.rejected_ids}
    text = {
        name: tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        for name, ids in parts.items()
    }
    open_sides = {
        "chosen": row.pair.chosen_ends is False,
        "rejected": row.pair.rejected_ends is False,
    }
    counts = {
        name: f"{len(ids)} tokens, a beginning without end token"
        if open_sides.get(name)
        else f"{len(ids)} tokens"
        for name, ids in parts.items()
    }
    return "\n".join(f"--- {name} ({counts[name]}) ---\n{text[name]}" for name in parts)
