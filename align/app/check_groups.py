"""The dry run of a recipe that trains once on groups of completions; see `align.app.check`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from align.app.check import CheckReport, require_disk, too_large, warnings_of
from align.app.cost import (
    Lengths,
    Machine,
    cached_bytes,
    optimizer_steps,
    run_disk,
)
from align.app.evaluation_cost import evaluation_memory
from align.app.fitting import check_invariants, check_roles
from align.app.fitting_groups import (
    COLUMNS,
    check_group_columns,
    check_group_invariants,
    unread,
)
from align.app.launch import ALONE, Launch
from align.app.memory import count_parameters, estimate_memory
from align.app.room import would_fit
from align.data.row_report import RowReport
from align.errors import DataError
from align.forest.rows import TokenRow
from align.recipe import Recipe
from align.tokens.groups import TokenizedGroup
from align.tokens.tokenized_pair import TokenizedPair

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


def check_groups(
    recipe: Recipe,
    *,
    train: Sequence[TokenizedGroup],
    held_out: Sequence[TokenizedGroup],
    measured: Sequence[TokenizedPair],
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
        train: the groups to train on.
        held_out: the groups to evaluate on.
        measured: the pairs that the suite reads.
        report: the count of all rows read.
        tokenizer: the one that encoded the rows.
        model_config: of the policy.
        run_dir: where the run would lie.
        machine: what is free; None asks this machine.
        launch: the devices that share the work.
        show_example: render the first group; preference data holds offensive text.

    Raises:
        DataError: no row, a broken token invariant, or columns that do not suit the objective.
        RecipeError: a role's folder does not exist.
        MachineError: the disk does not suffice.
    """
    machine = machine or Machine.here(run_dir, use_cpu=recipe.train.use_cpu)
    if not train:
        raise DataError(
            f"No group is left to train on: {report.summary()} Mend the rows or data.groups."
        )
    check_group_invariants([*train, *held_out], tokenizer, recipe.data, model_config)
    check_invariants(measured, tokenizer, recipe.data, model_config)
    check_group_columns(recipe, train)
    check_roles(recipe)
    steps = optimizer_steps(recipe.train, len(train), launch.processes)
    parameters = count_parameters(recipe, model_config)
    completions = [len(ids) for row in train for ids in row.completions_ids]
    sizes = [len(row.prompt_ids) + sum(map(len, row.completions_ids)) for row in train]
    units = [[TokenRow(row.prompt_ids, ids) for ids in row.completions_ids] for row in train]
    memory = estimate_memory(recipe, units, parameters, model_config, launch)
    evaluating = evaluation_memory(recipe, measured, parameters, model_config)
    rows = [*train, *held_out]
    caches = cached_bytes(
        recipe,
        sum(len(row.prompt_ids) for row in rows),
        sum(len(ids) for row in rows for ids in row.completions_ids),
    )
    disk = run_disk(recipe, parameters, model_config, steps, caches)
    require_disk(disk, machine)
    return CheckReport(
        rows=report.summary().rstrip("."),
        pairs=len(train),
        held_out=len(held_out),
        lengths={
            "prompt": Lengths.of([len(row.prompt_ids) for row in train]),
            "completion": Lengths.of(completions),
            "group": Lengths.of(sizes),
        },
        steps=steps,
        parameters=parameters,
        memory=memory,
        disk=disk,
        machine=machine,
        warnings=(
            *warnings_of(recipe, len(train), tokenizer, steps, launch.processes),
            *would_fit(recipe, units, memory, model_config, launch, machine),
            *_warnings(recipe, train),
            *too_large(evaluating, machine),
        ),
        example=_render(train[0], tokenizer) if show_example else None,
        unit="groups",
        evaluating=evaluating,
        beside=(_sizes(train), *_balance(train)),
    )


def _sizes(groups: Sequence[TokenizedGroup]) -> str:
    counts = [len(row.completions_ids) for row in groups]
    most = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    return f"completions: {sum(counts)}, {most} in a group"


def _balance(groups: Sequence[TokenizedGroup]) -> Iterator[str]:
    """What the columns say, where all rows have them."""
    labels = [label for row in groups for label in row.group.labels or ()]
    if labels:
        yield f"labels: {sum(labels)} of {len(labels)} completions are desirable"
    several = [row.group.scores for row in groups if row.group.scores is not None]
    if several:
        equal = sum(len(set(scores)) == 1 for scores in several)
        yield f"scores: {equal} of {len(several)} groups have equal ones, nothing to compare"


def _warnings(recipe: Recipe, groups: Sequence[TokenizedGroup]) -> Iterator[str]:
    for name, (column, _) in COLUMNS.items():
        made = {"label": recipe.data.label, "advantage": recipe.data.advantage}.get(name)
        # What the recipe itself makes of a world's scores is not in the user's rows.
        if made is None and unread(recipe, groups, name):
            yield f"{column}: {recipe.objective.name} does not read them"


def _render(row: TokenizedGroup, tokenizer: PreTrainedTokenizerBase) -> str:
    """The first group as text, every control token spelled out."""

    def shown(ids: list[int]) -> str:
        return str(
            tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        )

    parts = [f"--- prompt ({len(row.prompt_ids)} tokens) ---\n{shown(row.prompt_ids)}"]
    for k, ids in enumerate(row.completions_ids):
        about = [f"{len(ids)} tokens"]
        for name in ("scores", "labels", "advantages"):
            values = getattr(row.group, name)
            if values is not None:
                about.append(f"{name.removesuffix('s')} {values[k]}")
        parts.append(f"--- completion {k + 1} ({', '.join(about)}) ---\n{shown(ids)}")
    return "\n".join(parts)
