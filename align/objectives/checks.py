"""What is refused before a formula runs, and the widening and detaching of what is let through."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from align.errors import AlignError, DataError, RecipeError
from align.objectives.refusals import refuse
from align.types import (
    OF_VOCABULARY,
    PAIR_KINDS,
    ROLES,
    Logps,
    Pair,
    PairInputs,
    at_least_float32,
)

SIDES = ("chosen", "rejected")
COLUMNS = ("score", "preference", "token_weight", "pair_kind")


def check_inputs(
    inputs: PairInputs,
    objective: str,
    needs: frozenset[str],
    accepts: frozenset[str],
    *,
    win_rates: bool,
    vocabulary: frozenset[str] = frozenset(),
) -> PairInputs:
    """What the objective of this name reads of `inputs`, without gradient but for `policy`.

    What it does not read comes back as None, and columns in the dtype of the policy's sums, so that
    a float64 column does not widen a float32 loss.

    Args:
        inputs: B pairs, as the trainer or a user gave them.
        objective: the objective's name, for the sentences.
        needs: fields that must be there.
        accepts: further fields that are read where they are there.
        win_rates: `score` must lie in [0, 1].
        vocabulary: fields of the policy's `Logps` that must be there.

    Raises:
        RecipeError: a needed role is missing, or a field of the policy's.
        DataError: anything else that is missing, not accepted, or wrong in shape or value.
    """
    for field in (*ROLES, *COLUMNS):
        if field in needs and getattr(inputs, field) is None:
            raise _missing(objective, field)
    for field in ("preference", "token_weight"):
        if field not in needs | accepts and getattr(inputs, field) is not None:
            raise DataError(
                f"Objective `{objective}` has no form that honours `{field}`, but the pairs carry "
                "it: leave that column out, or choose an objective that accepts it."
            )
    _check_policy(inputs.policy)
    policy = Pair(
        with_vocabulary(inputs.policy.chosen, objective, vocabulary),
        with_vocabulary(inputs.policy.rejected, objective, vocabulary),
    )
    read = {
        field: getattr(inputs, field)
        for field in needs | accepts
        if getattr(inputs, field) is not None
    }
    for role in read.keys() & set(ROLES):
        read[role] = _role(role, read[role], inputs.policy)
    if "score" in read:
        read["score"] = _score(read["score"], inputs.policy, win_rates)
    if "preference" in read:
        read["preference"] = _preference(read["preference"], inputs.policy)
    if "token_weight" in read:
        read["token_weight"] = _token_weight(read["token_weight"], inputs.policy)
    if "pair_kind" in read:
        read["pair_kind"] = _pair_kind(read["pair_kind"], inputs.policy)
    return PairInputs(policy=policy, **read)


def with_vocabulary(policy: Logps, objective: str, declared: frozenset[str]) -> Logps:
    """The policy's log-probs with those fields of the whole vocabulary that are declared.

    Raises:
        RecipeError: one of them is missing, or there is none of that name.
    """
    if unknown := declared - {*OF_VOCABULARY}:
        raise RecipeError(
            f"Objective `{objective}`: `vocabulary` names {', '.join(sorted(unknown))}; there are "
            f"{' and '.join(OF_VOCABULARY)}."
        )
    for name in sorted(declared):
        if getattr(policy, name) is None:
            raise RecipeError(
                f"Objective `{objective}` needs `{name}` of the policy's log-probs, which takes "
                "the whole vocabulary at every completion token, but it was not computed: the "
                "trainers of align.trainers compute what an objective's `vocabulary` names; "
                f"log-probs of your own must bring it as Logps(..., {name}=...)."
            )
    if "collision" in declared and policy.collision is not None:
        policy = replace(policy, collision=policy.collision.detach())
    return replace(policy, **dict.fromkeys({*OF_VOCABULARY} - declared))


def _missing(objective: str, field: str) -> AlignError:
    if field in ROLES:
        return RecipeError(
            f"Objective `{objective}` needs `{field}`, the log-probs of both completions under "
            f"that role, but there are none: name a policy at `roles.{field}` in the recipe."
        )
    columns = f"chosen_{field} and rejected_{field}"
    if field in ("preference", "pair_kind"):
        columns = field
    return DataError(
        f"Objective `{objective}` needs `{field}`, but the pairs carry none: give every row "
        f"{columns}."
    )


def _check_policy(policy: Pair[Logps]) -> None:
    if policy.chosen.mask.shape[0] != policy.rejected.mask.shape[0]:
        raise DataError(
            f"`policy` has {policy.chosen.mask.shape[0]} chosen completions and "
            f"{policy.rejected.mask.shape[0]} rejected ones: row b of each is pair b."
        )
    for side in SIDES:
        lengths = getattr(policy, side).lengths()
        _refuse(
            lengths < 1,
            lengths,
            f"a {side} completion has no token: its mask is False everywhere, so leave the row out",
        )


def _role(role: str, logps: Pair[Logps], policy: Pair[Logps]) -> Pair[Logps]:
    for side in SIDES:
        own, wanted = getattr(logps, side).mask, getattr(policy, side).mask
        other_mask = DataError(
            f"The {side} mask of `{role}` (shape {list(own.shape)}) is not the policy's (shape "
            f"{list(wanted.shape)}): a role scores the same rows, cut and padded in the same "
            "way; a cache written for other rows has to be written again."
        )
        if own.shape != wanted.shape:
            raise other_mask
        if own is not wanted:
            refuse((own != wanted).any(dim=1), lambda _, error=other_mask: error)
    return Pair(logps.chosen.detached(), logps.rejected.detached())


def _column(name: str, values: Tensor, logps: Logps, shape: torch.Size) -> Tensor:
    if values.shape != shape:
        raise DataError(
            f"`{name}` has shape {list(values.shape)}, but the policy's rows ask for "
            f"{list(shape)}: build it from the same rows, padded in the same way."
        )
    return values.detach().to(at_least_float32(logps.token).dtype)


def _score(score: Pair[Tensor], policy: Pair[Logps], win_rates: bool) -> Pair[Tensor]:
    def side(name: str, values: Tensor, logps: Logps) -> Tensor:
        values = _column(name, values, logps, logps.mask.shape[:1])
        if win_rates:
            _refuse(
                _outside_0_1(values),
                values,
                f"`{name}` must be a win rate in [0, 1], because this objective regresses on win "
                "rates: turn rewards into win rates first, or choose an objective for rewards",
            )
        _refuse(~values.isfinite(), values, f"`{name}` must be finite: leave such rows out")
        return values

    return Pair(
        side("chosen_score", score.chosen, policy.chosen),
        side("rejected_score", score.rejected, policy.rejected),
    )


def _preference(preference: Tensor, policy: Pair[Logps]) -> Tensor:
    values = _column("preference", preference, policy.chosen, policy.chosen.mask.shape[:1])
    _refuse(
        _outside_0_1(values),
        values,
        "`preference` must be the probability in [0, 1] that chosen beats rejected",
    )
    return values


def _token_weight(weight: Pair[Tensor], policy: Pair[Logps]) -> Pair[Tensor]:
    def side(name: str, values: Tensor, logps: Logps) -> Tensor:
        values = _column(name, values, logps, logps.mask.shape)
        unusable = ~values.isfinite() & logps.mask
        _refuse(unusable.any(dim=1), unusable.sum(dim=1), f"`{name}` must be finite on every token")
        return values

    return Pair(
        side("chosen_token_weight", weight.chosen, policy.chosen),
        side("rejected_token_weight", weight.rejected, policy.rejected),
    )


def _pair_kind(kind: Tensor, policy: Pair[Logps]) -> Tensor:
    if kind.shape != policy.chosen.mask.shape[:1] or kind.is_floating_point():
        raise DataError(
            f"`pair_kind` has shape {list(kind.shape)} and type {kind.dtype}, but is one whole "
            "number per pair: build it from the same rows."
        )
    rule = f"`pair_kind` counts {', '.join(PAIR_KINDS)} from 0"
    _refuse((kind < 0) | (kind >= len(PAIR_KINDS)), kind, rule)
    return kind


def _outside_0_1(values: Tensor) -> Tensor:
    return ~((values >= 0) & (values <= 1))  # so written, nan is outside


def _refuse(bad: Tensor, values: Tensor, rule: str) -> None:
    """Refuses the pairs where `bad` [B] is True, with the first such pair and its value."""
    refuse(
        bad,
        lambda row: DataError(f"Pair {row} of this batch has {float(values[row]):g}, but {rule}."),
    )
