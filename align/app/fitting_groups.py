"""Whether groups of completions fit a recipe: looked at before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from align.app.fitting import Encoded, broken_promise, refuse_broken
from align.data.row_policy import RowPolicy
from align.errors import DataError
from align.recipe import Recipe
from align.tokens.groups import TokenizedGroup

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

# What an objective may ask for -> the rows' column, and where else it may come from.
COLUMNS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "score": ("scores", ""),
        "label": (
            "labels",
            "; or write `label: {above: 0.5}` under data, which makes them of scores",
        ),
        "advantage": (
            "advantages",
            "; or write `advantage: mean` under data, which makes them of scores",
        ),
        "token_advantage": ("token_advantages", ""),
        "token_weight": ("token_weights", ""),
    }
)


def check_group_columns(recipe: Recipe, groups: Sequence[TokenizedGroup]) -> None:
    """Whether the rows carry what the objective needs, and nothing that it would ignore.

    Raises:
        DataError: naming the column.
    """
    objective = recipe.objective
    for need, (column, hint) in COLUMNS.items():
        without = [row.group for row in groups if getattr(row.group, column) is None]
        if need in objective.needs and without:
            raise DataError(
                f"Objective `{objective.name}` needs the column {need} of each completion, and "
                f"{len(without)} of {len(groups)} groups have none (first: {without[0].source}:"
                f"{without[0].row}): give every row `{need}`, or `{column}` where it has several "
                f"completions{hint}."
            )
    if unread(recipe, groups, "token_weight"):
        raise DataError(
            f"The groups carry `token_weights`, and objective `{objective.name}` has no form that "
            "honours them: leave that column out, or choose an objective that accepts it."
        )


def unread(recipe: Recipe, groups: Sequence[TokenizedGroup], name: str) -> bool:
    """Whether all groups carry what an objective may ask for, and this one does not."""
    column, _ = COLUMNS[name]
    carried = all(getattr(row.group, column) is not None for row in groups)
    return carried and name not in recipe.objective.needs | recipe.objective.accepts


def check_group_invariants(
    rows: Sequence[TokenizedGroup],
    tokenizer: PreTrainedTokenizerBase,
    policy: RowPolicy,
    model_config: PreTrainedConfig,
) -> None:
    """Looks at every completion as it will be trained on.

    Raises:
        DataError: an invariant of the tokens is broken, with the first row that breaks it.
    """
    vocabulary = model_config.get_text_config().vocab_size
    broken: list[str] = []
    for row in rows:
        sides = {f"completions[{k}]": ids for k, ids in enumerate(row.completions_ids)}
        ends = zip(sides, row.group.ends(), strict=True)
        is_open = frozenset(side for side, whole in ends if not whole)
        encoded = Encoded(row.group.prompt, row.prompt_ids, sides, row.notes, open_sides=is_open)
        problem = broken_promise(encoded, tokenizer, policy, vocabulary)
        if problem is not None:
            broken.append(f"{row.group.source}:{row.group.row}: {problem}")
    refuse_broken(broken, len(rows), "groups")
