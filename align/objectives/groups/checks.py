"""What is refused before a formula over groups runs; what passes is widened and detached."""

from __future__ import annotations

import torch
from torch import Tensor

from align.errors import AlignError, DataError, RecipeError
from align.objectives.checks import with_vocabulary
from align.objectives.refusals import refuse
from align.types import ROLES, GroupInputs, Logps, at_least_float32

COLUMNS = ("score", "label", "advantage", "token_advantage", "token_weight")
PER_TOKEN = ("token_advantage", "token_weight")


def check_groups(
    inputs: GroupInputs,
    objective: str,
    needs: frozenset[str],
    accepts: frozenset[str],
    *,
    win_rates: bool,
    vocabulary: frozenset[str] = frozenset(),
) -> GroupInputs:
    """What the objective of this name reads of `inputs`, without gradient but for `policy`.

    What it does not read comes back as None, and columns in the dtype of the policy's sums.

    Args:
        inputs: N completions, as the trainer or a user gave them.
        objective: the objective's name, for the sentences.
        needs: fields that must be there.
        accepts: further fields that are read where they are there.
        win_rates: `score` must lie in [0, 1].
        vocabulary: fields of the policy's `Logps` that must be there.

    Raises:
        RecipeError: a needed role is missing, or a field of the policy's.
        DataError: anything else that is missing, not accepted, or wrong in shape or value.
    """
    policy = inputs.policy
    for field in (*ROLES, *COLUMNS):
        if field in needs and getattr(inputs, field) is None:
            raise _missing(objective, field)
    if "token_weight" not in needs | accepts and inputs.token_weight is not None:
        raise DataError(
            f"Objective `{objective}` has no form that honours `token_weight`, but the completions "
            "carry it: leave that column out, or choose an objective that accepts it."
        )
    lengths = policy.lengths()
    _refuse(lengths < 1, lengths, "no token is a completion's: leave the row out")
    policy = with_vocabulary(policy, objective, vocabulary)
    if inputs.group.shape != policy.mask.shape[:1] or inputs.group.is_floating_point():
        raise DataError(
            f"`group` has shape {list(inputs.group.shape)} and type {inputs.group.dtype}, but is "
            f"one whole number for each of {policy.mask.shape[0]} completions."
        )
    read = {
        field: getattr(inputs, field)
        for field in needs | accepts
        if getattr(inputs, field) is not None
    }
    for role in read.keys() & set(ROLES):
        read[role] = _role(role, read[role], policy)
    for name in read.keys() & {*COLUMNS, "mismatched"}:
        read[name] = _label(read[name], policy) if name == "label" else _column(name, read, policy)
    if win_rates and "score" in read:
        rates = read["score"]
        _refuse(
            ~((rates >= 0) & (rates <= 1)),
            rates,
            "`score` must be a win rate in [0, 1], because this objective regresses on win rates: "
            "turn rewards into win rates first, or choose an objective for rewards",
        )
    return GroupInputs(policy=policy, group=_numbered(inputs.group), **read)


def _numbered(group: Tensor) -> Tensor:
    """[N] int64: the same groups, numbered 0 .. G-1 in the order of their numbers."""
    ordered, place = group.sort()
    begins = torch.zeros_like(ordered)
    begins[1:] = (ordered[1:] != ordered[:-1]).long()
    return torch.empty_like(group).scatter(0, place, begins.cumsum(0))


def _missing(objective: str, field: str) -> AlignError:
    if field in ROLES:
        return RecipeError(
            f"Objective `{objective}` needs `{field}`, the log-probs of the completions under that "
            f"role, but there are none: name a policy at `roles.{field}` in the recipe."
        )
    return DataError(
        f"Objective `{objective}` needs `{field}`, but the completions carry none: give every "
        f"completion a {field}."
    )


def _role(role: str, logps: Logps, policy: Logps) -> Logps:
    other_mask = DataError(
        f"The mask of `{role}` (shape {list(logps.mask.shape)}) is not the policy's (shape "
        f"{list(policy.mask.shape)}): a role scores the same rows, cut and padded in the same "
        "way; a cache written for other rows has to be written again."
    )
    if logps.mask.shape != policy.mask.shape:
        raise other_mask
    if logps.mask is not policy.mask:
        refuse((logps.mask != policy.mask).any(dim=1), lambda _: other_mask)
    return logps.detached()


def _label(label: Tensor, policy: Logps) -> Tensor:
    if label.dtype != torch.bool or label.shape != policy.mask.shape[:1]:
        raise DataError(
            f"`label` has shape {list(label.shape)} and type {label.dtype}, but is True or False "
            f"for each of {policy.mask.shape[0]} completions."
        )
    return label


def _column(name: str, read: dict[str, Tensor], policy: Logps) -> Tensor:
    shape = policy.mask.shape if name in PER_TOKEN else policy.mask.shape[:1]
    values = read[name]
    if values.shape != shape:
        raise DataError(
            f"`{name}` has shape {list(values.shape)}, but the policy's rows ask for "
            f"{list(shape)}: build it from the same rows, padded in the same way."
        )
    values = values.detach().to(at_least_float32(policy.token).dtype)
    unusable = ~values.isfinite()
    if name in PER_TOKEN:
        unusable = (unusable & policy.mask).any(dim=1)
        values = values.masked_fill(~policy.mask, 0.0)
        _refuse(unusable, unusable, f"`{name}` must be finite on every token")
    else:
        _refuse(unusable, values, f"`{name}` must be finite: leave such completions out")
    return values


def _refuse(bad: Tensor, values: Tensor, rule: str) -> None:
    """Refuses completions where `bad` [N] is True, with the first such completion and its value."""
    refuse(
        bad,
        lambda row: DataError(
            f"Completion {row} of this batch has {float(values[row]):g}, but {rule}."
        ),
    )
