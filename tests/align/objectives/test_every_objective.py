"""What every member of `AnyObjective` has to do, tested for free by being a member.

`OBJECTIVES` holds each member with its defaults, and once more per value of every literal or
boolean field; what cannot be derived so (a needs that hangs on a number) goes into `FURTHER`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from itertools import product
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
import yaml
from torch import Tensor

from align.errors import AlignError
from align.objectives import TDPO, AnyObjective, Coupled, Objective, objective_from
from align.objectives.base import present
from align.types import OF_VOCABULARY, PAIR_KINDS, Logps, ObjectiveOutput, Pair, PairInputs

MEMBERS: list[type[Objective]] = list(get_args(get_args(AnyObjective)[0]))
FURTHER: Mapping[str, list[dict[str, Any]]] = {
    "inpo": [{"eta": 0.5, "tau": 0.2}],
    "spo": [{"eta": 2.0, "tau": 0.2}],  # needs reference
    "tgdpo": [{"alpha": 20.0}],  # weights of both signs
    "alphapo": [{"alpha": 0.0}, {"alpha": -0.5}],
    "cpo": [{"alpha": 0.0}],
    "ld_dpo": [{"alpha": 0.0}],
    "dpo": [{"f_divergence": "alpha_divergence", "alpha": 2.0}],
    "aot": [{"label_smoothing": 0.2}],
    "aot_unpaired": [{"label_smoothing": 0.2}],
    "sum": [
        {"of": [{"weight": 0.8, "objective": {"name": name}} for name in names]}
        for names in (["dpo", "chosen_nll"], ["hinge", "rebel"], ["simpo"], ["bco", "dpo", "aot"])
    ]
    + [{"of": [{"pair_weight": "wpo", "objective": {"name": "simpo"}}]}],
    "tdpo": [{"alpha": 0.0}],
}
STOPS_GRADIENT = {  # by choice of the formula: no gradcheck, but goldens with frozen copies
    "p3o": "the importance ratio of the other side is a constant weight",
    "wpo": "the probabilities of both sides are a constant weight",
    "aot_unpaired": "half of a loss whose other half is constant in another pair",
}

ONE_SIDED = {"chosen_nll"}  # by choice of the formula: rejected has no gradient
ORDERED_SCORES = {"odpo"}  # of which one form takes the logarithm of the difference

ROLES = ("policy", "reference", "previous", "earlier", "guide", "anchor")
OPTIONAL = {field.name for field in fields(PairInputs)} - {"policy"}
WITH_A_NEUTRAL_NONE = ("preference", "token_weight", "coupling")
B, T = 6, 5


def variants(member: type[Objective]) -> list[Objective]:
    choices = {}
    for name, field in member.model_fields.items():
        if field.annotation is bool:
            choices[name] = [False, True]
        elif get_origin(field.annotation) is Literal:
            choices[name] = list(get_args(field.annotation))
    needed = [name for name, field in member.model_fields.items() if field.is_required()]
    nodes = [
        dict(zip(choices, values, strict=True))
        for values in product(*choices.values())
        if not needed
    ]
    nodes += FURTHER.get(member.model_fields["name"].default, [])
    return [member(**node) for node in nodes]


OBJECTIVES = [objective for member in MEMBERS for objective in variants(member)]
every_objective = pytest.mark.parametrize(
    "objective",
    OBJECTIVES,
    ids=lambda o: (
        "-".join(["sum", *o.labels])
        if o.name == "sum"
        else "-".join(str(v) for v in o.model_dump().values() if not isinstance(v, float))
    ),
)


def random_inputs(
    objective: Objective, dtype: torch.dtype = torch.float64, optional: bool = True, seed: int = 0
) -> PairInputs:
    """Every role and column, but of preference and token_weight only what it accepts."""
    torch.manual_seed(seed)
    lengths = {side: torch.randint(1, T + 1, (B,)) for side in ("chosen", "rejected")}

    def logps(side: str) -> Logps:
        mask = torch.arange(T) < lengths[side][:, None]
        token = -torch.rand(B, T, dtype=torch.float64) * 2
        return Logps(token.masked_fill(~mask, 0.0).to(dtype), mask)

    inputs = PairInputs(
        **{role: Pair(logps("chosen"), logps("rejected")) for role in ROLES},
        score=Pair(*torch.rand(2, B, dtype=torch.float64).to(dtype)),
    )
    sides = (inputs.policy.chosen, inputs.policy.rejected)
    inputs = replace(inputs, policy=Pair(*(of_vocabulary(side) for side in sides)))
    if objective.name in ORDERED_SCORES:
        score = present(inputs.score)
        high, low = (
            torch.maximum(score.chosen, score.rejected),
            score.rejected.minimum(score.chosen),
        )
        inputs = replace(inputs, score=Pair(high, low))
    if optional and "preference" in objective.needs | objective.accepts:
        inputs = replace(inputs, preference=torch.rand(B, dtype=torch.float64).to(dtype))
    if optional and "token_weight" in objective.needs | objective.accepts:
        weight = torch.rand(2, B, T, dtype=torch.float64).to(dtype)
        inputs = replace(inputs, token_weight=Pair(*weight))
    if "pair_kind" in objective.needs | objective.accepts:
        inputs = replace(inputs, pair_kind=(torch.arange(B) + seed) % len(PAIR_KINDS))
    if isinstance(objective, Coupled) and objective.couples:
        # What the step gave is one more column of the pairs: the same for every part of them.
        coupling, _ = objective.couple(objective.measured(inputs), {})
        inputs = replace(inputs, coupling=coupling)
    return inputs


def of_vocabulary(policy: Logps) -> Logps:
    """With a collision and a divergence at every token."""
    drawn = torch.rand(2, B, T, dtype=torch.float64).to(policy.token.dtype)
    return replace(policy, collision=-2 * drawn[0], divergence=drawn[1])


def mapped(
    inputs: PairInputs,
    per_pair: Callable[[Tensor], Tensor],
    per_token: Callable[[Tensor, Tensor], Tensor],
) -> PairInputs:
    """`inputs` with a change to every [B] tensor, and to every [B, T] one (given its mask)."""

    def role(pair: Pair[Logps] | None) -> Pair[Logps] | None:
        return pair and Pair(*[logps(side) for side in (pair.chosen, pair.rejected)])

    def logps(side: Logps) -> Logps:
        others = {name: getattr(side, name) for name in OF_VOCABULARY}
        return Logps(
            per_token(side.token, side.mask),
            per_token(side.mask, side.mask),
            **{n: None if x is None else per_token(x, side.mask) for n, x in others.items()},
        )

    score, preference, weight = inputs.score, inputs.preference, inputs.token_weight
    kind, coupling = inputs.pair_kind, inputs.coupling
    return PairInputs(
        **{name: role(getattr(inputs, name)) for name in ROLES},
        score=score and Pair(per_pair(score.chosen), per_pair(score.rejected)),
        preference=None if preference is None else per_pair(preference),
        pair_kind=None if kind is None else per_pair(kind).to(kind.dtype),
        coupling=None if coupling is None else per_pair(coupling),
        token_weight=weight
        and Pair(
            per_token(weight.chosen, inputs.policy.chosen.mask),
            per_token(weight.rejected, inputs.policy.rejected.mask),
        ),
    )


def rows(inputs: PairInputs, index: Any) -> PairInputs:
    return mapped(inputs, lambda x: x[index], lambda x, _: x[index])


def tensors(output: ObjectiveOutput) -> dict[str, Tensor]:
    return {
        "loss": output.loss,
        "reward chosen": output.reward.chosen,
        "reward rejected": output.reward.rejected,
        **output.metrics,
    }


def assert_same(
    found: ObjectiveOutput | dict[str, Tensor], wanted: ObjectiveOutput | dict[str, Tensor]
) -> None:
    found = found if isinstance(found, dict) else tensors(found)
    wanted = wanted if isinstance(wanted, dict) else tensors(wanted)
    assert found.keys() == wanted.keys()
    for name in found:
        torch.testing.assert_close(
            found[name], wanted[name], rtol=1e-12, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}"
        )


def with_gradient(inputs: PairInputs, field: str) -> tuple[PairInputs, list[Tensor]]:
    """`inputs` whose tensors of this field are leaves that ask for gradient, and these leaves."""
    leaves: list[Tensor] = []

    def leaf(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x
        leaves.append(x.detach().clone().requires_grad_())
        return leaves[-1]

    value = getattr(inputs, field)
    if isinstance(value, Tensor):
        return replace(inputs, **{field: leaf(value)}), leaves
    sides = [
        replace(side, token=leaf(side.token)) if isinstance(side, Logps) else leaf(side)
        for side in (value.chosen, value.rejected)
    ]
    return replace(inputs, **{field: Pair(*sides)}), leaves


def loss_and_gradients(objective: Objective, inputs: PairInputs) -> tuple[Tensor, list[Tensor]]:
    inputs, leaves = with_gradient(inputs, "policy")
    loss = objective(inputs).loss
    return loss.detach(), list(torch.autograd.grad(loss.sum(), leaves, materialize_grads=True))


@every_objective
def test_everything_is_per_pair_and_only_the_loss_has_gradient(objective):
    inputs, _ = with_gradient(random_inputs(objective), "policy")
    output = objective(inputs)
    assert output.loss.requires_grad
    for name, value in tensors(output).items():
        assert value.shape == (B,), name
        assert value.requires_grad == (name == "loss"), name


@every_objective
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("at", ["right", "left"])
def test_what_is_masked_counts_for_nothing(objective, garbage, at):
    inputs = random_inputs(objective)

    def pad(x: Tensor, mask: Tensor) -> Tensor:
        if x.dtype == torch.bool:
            extra = torch.zeros(B, 3, dtype=torch.bool)
        else:
            x, extra = x.masked_fill(~mask, garbage), torch.full((B, 3), garbage, dtype=x.dtype)
        return torch.cat([x, extra] if at == "right" else [extra, x], dim=1)

    padded = mapped(inputs, lambda x: x, pad)
    assert_same(objective(padded), objective(inputs))

    _, wanted = loss_and_gradients(objective, inputs)
    _, found = loss_and_gradients(objective, padded)
    for side, grad, own in zip(("chosen", "rejected"), found, wanted, strict=True):
        mask = getattr(padded.policy, side).mask
        assert torch.equal(grad[~mask], torch.zeros_like(grad[~mask]))
        torch.testing.assert_close(grad[mask], own[getattr(inputs.policy, side).mask])


@every_objective
def test_a_batch_is_its_halves_one_after_the_other(objective):
    inputs = random_inputs(objective)
    halves = [tensors(objective(rows(inputs, half))) for half in (slice(0, 2), slice(2, B))]
    joined = {name: torch.cat([half[name] for half in halves]) for name in halves[0]}
    assert_same(joined, objective(inputs))


@every_objective
def test_the_order_of_the_pairs_does_not_matter(objective):
    inputs, order = random_inputs(objective), torch.tensor([3, 0, 5, 1, 4, 2])
    wanted = {name: value[order] for name, value in tensors(objective(inputs)).items()}
    assert_same(objective(rows(inputs, order)), wanted)


@every_objective
def test_an_empty_batch_has_an_empty_loss(objective):
    assert objective(rows(random_inputs(objective), slice(0, 0))).loss.shape == (0,)


@every_objective
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("side", ["chosen", "rejected", "both", "none"])
def test_loss_and_gradient_are_finite_far_away_and_at_the_start(objective, dtype, side):
    """A side at -1e4 nats per token under the policy; with "none" the policy equals every role."""
    inputs = random_inputs(objective, dtype)
    inputs = replace(inputs, **dict.fromkeys(ROLES, inputs.policy))
    policy = {
        name: replace(logps, token=torch.full_like(logps.token, -1e4))
        if side in (name, "both")
        else logps
        for name, logps in (("chosen", inputs.policy.chosen), ("rejected", inputs.policy.rejected))
    }
    loss, grads = loss_and_gradients(objective, replace(inputs, policy=Pair(**policy)))
    assert loss.isfinite().all()
    assert all(grad.isfinite().all() for grad in grads)


@every_objective
def test_the_gradient_is_that_of_the_loss(objective):
    inputs = random_inputs(objective)

    def loss(chosen: Tensor, rejected: Tensor) -> Tensor:
        policy = Pair(
            replace(inputs.policy.chosen, token=chosen),
            replace(inputs.policy.rejected, token=rejected),
        )
        return objective(replace(inputs, policy=policy)).loss

    _, leaves = with_gradient(inputs, "policy")
    weighted = objective.name == "sum" and any(part.pair_weight == "wpo" for part in objective.of)
    if objective.name not in STOPS_GRADIENT and not weighted:
        assert torch.autograd.gradcheck(loss, leaves)
    grads = torch.autograd.grad(loss(*leaves).sum(), leaves, materialize_grads=True)
    asked = grads[:1] if objective.name in ONE_SIDED else grads
    assert all(grad.abs().sum() > 0 for grad in asked)


@every_objective
def test_nothing_but_the_policy_gets_gradient(objective):
    inputs, _ = with_gradient(random_inputs(objective), "policy")
    for field in sorted(OPTIONAL):
        if getattr(inputs, field) is not None:
            leaking, leaves = with_gradient(inputs, field)
            objective(leaking).loss.sum().backward()
            assert all(leaf.grad is None or not leaf.grad.any() for leaf in leaves), field


@every_objective
@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_the_maths_is_done_in_float32_or_wider(objective, given, wanted):
    inputs = random_inputs(objective, given)
    found = tensors(objective(inputs))
    assert {value.dtype for value in found.values()} == {wanted}
    # and not widened after the event: as exact as float64 maths on the same rounded inputs
    exact = objective(
        mapped(inputs, Tensor.double, lambda x, _: x if x.dtype == torch.bool else x.double())
    )
    torch.testing.assert_close(found["loss"].double(), exact.loss, rtol=1e-5, atol=1e-5)


@every_objective
def test_the_dtype_is_the_policys_whatever_the_columns_are(objective):
    inputs = random_inputs(objective, torch.float32)
    wide = mapped(inputs, Tensor.double, lambda x, _: x)
    assert objective(wide).loss.dtype == torch.float32


@every_objective
def test_it_survives_yaml(objective):
    node = yaml.safe_load(yaml.safe_dump(objective.model_dump()))
    again = objective_from(node)
    assert again == objective
    assert hash(again) == hash(objective)
    assert type(again) is type(objective)


@every_objective
def test_it_is_frozen(objective):
    for name in type(objective).model_fields:
        with pytest.raises(ValueError, match="frozen"):
            setattr(objective, name, getattr(objective, name))


@every_objective
def test_needs_and_accepts_name_fields_of_the_inputs(objective):
    assert objective.needs <= OPTIONAL
    assert objective.accepts <= OPTIONAL
    assert not objective.needs & objective.accepts


@every_objective
def test_a_declared_need_that_is_missing_is_named(objective):
    inputs = random_inputs(objective)
    for field in sorted(objective.needs):
        with pytest.raises(AlignError, match=f"`{objective.name}` needs `{field}`"):
            objective(replace(inputs, **{field: None}))


@every_objective
def test_what_is_not_declared_is_not_read(objective):
    inputs = random_inputs(objective)
    undeclared = OPTIONAL - objective.needs - objective.accepts - set(WITH_A_NEUTRAL_NONE)
    poisoned, absent = inputs, inputs
    for field in sorted(undeclared):
        pair = getattr(inputs, field)
        if pair is None:
            continue
        nan = Pair(
            *[
                Logps(x.token * math.nan, ~x.mask) if isinstance(x, Logps) else x * math.nan
                for x in (pair.chosen, pair.rejected)
            ]
        )
        poisoned = replace(poisoned, **{field: nan})
        absent = replace(absent, **{field: None})
    assert_same(objective(poisoned), objective(inputs))
    assert_same(objective(absent), objective(inputs))


def with_policy(inputs: PairInputs, **fields: Tensor | None) -> PairInputs:
    sides = (inputs.policy.chosen, inputs.policy.rejected)
    return replace(inputs, policy=Pair(*(replace(side, **fields) for side in sides)))


@every_objective
@pytest.mark.parametrize("name", OF_VOCABULARY)
def test_what_is_declared_of_the_vocabulary_is_read_and_nothing_else(objective, name):
    inputs = random_inputs(objective)
    absent = with_policy(inputs, **{name: None})
    if name not in objective.vocabulary:
        poisoned = with_policy(inputs, **{name: torch.full((B, T), math.nan)})
        assert_same(objective(poisoned), objective(inputs))
        assert_same(objective(absent), objective(inputs))
        return
    with pytest.raises(AlignError, match=f"`{objective.name}` needs `{name}` of the policy's"):
        objective(absent)
    if objective != TDPO(alpha=0.0):
        # Another number on each side, since some formulas read a difference.
        other = with_policy(inputs, **{name: torch.rand(B, T, dtype=torch.float64)})
        other = replace(other, policy=Pair(other.policy.chosen, inputs.policy.rejected))
        assert not torch.allclose(objective(other).loss, objective(inputs).loss)


@every_objective
def test_only_the_divergence_of_the_policy_has_gradient(objective):
    inputs = random_inputs(objective)
    leaves = {
        name: [torch.rand(B, T, dtype=torch.float64, requires_grad=True) for _ in range(2)]
        for name in OF_VOCABULARY
    }
    sides = (inputs.policy.chosen, inputs.policy.rejected)
    given = [
        replace(side, **{name: leaf[i] for name, leaf in leaves.items()})
        for i, side in enumerate(sides)
    ]
    inputs, _ = with_gradient(replace(inputs, policy=Pair(*given)), "policy")
    objective(inputs).loss.sum().backward()
    assert all(leaf.grad is None for leaf in leaves["collision"])
    reads = "divergence" in objective.vocabulary and objective != TDPO(alpha=0.0)
    assert any(leaf.grad is not None and leaf.grad.any() for leaf in leaves["divergence"]) == reads


@every_objective
def test_what_is_declared_is_read(objective):
    inputs, other = random_inputs(objective), random_inputs(objective, seed=1)
    other = replace(other, **{role: _over(inputs, getattr(other, role)) for role in ROLES})
    inputs = replace(inputs, coupling=None)  # it would hold what it was computed from
    for field in sorted(objective.needs | objective.accepts):
        changed = replace(inputs, **{field: getattr(other, field)})
        assert not torch.allclose(objective(changed).loss, objective(inputs).loss), field


def _over(inputs: PairInputs, pair: Pair[Logps]) -> Pair[Logps]:
    """The values of `pair` over the masks of `inputs`."""
    return Pair(
        Logps(pair.chosen.token, inputs.policy.chosen.mask),
        Logps(pair.rejected.token, inputs.policy.rejected.mask),
    )


@every_objective
def test_a_preference_is_honoured_or_refused(objective):
    inputs = random_inputs(objective, optional=False)
    sure, unsure = torch.ones(B), torch.full((B,), 0.5)
    if "preference" not in objective.needs | objective.accepts:
        with pytest.raises(AlignError, match=f"`{objective.name}` .*`preference`"):
            objective(replace(inputs, preference=sure))
        return
    assert_same(objective(replace(inputs, preference=sure)), objective(inputs))
    for bad in (1.2, -0.1, math.nan, math.inf):
        column = unsure.clone()
        column[2] = bad
        with pytest.raises(AlignError, match=r"Pair 2 .*`preference`"):
            objective(replace(inputs, preference=column))


@every_objective
def test_token_weights_are_honoured_or_refused(objective):
    inputs = random_inputs(objective, optional=False)
    ones = Pair(torch.ones(B, T), torch.ones(B, T))
    if "token_weight" not in objective.needs | objective.accepts:
        with pytest.raises(AlignError, match=f"`{objective.name}` .*`token_weight`"):
            objective(replace(inputs, token_weight=ones))
        return
    assert_same(objective(replace(inputs, token_weight=ones)), objective(inputs))
    for side in ("chosen", "rejected"):
        broken = {"chosen": torch.ones(B, T), "rejected": torch.ones(B, T)}
        broken[side][4, 0] = math.inf
        with pytest.raises(AlignError, match=f"Pair 4 .*`{side}_token_weight`"):
            objective(replace(inputs, token_weight=Pair(**broken)))


@pytest.mark.parametrize("objective", [o for o in OBJECTIVES if "score" in o.needs])
def test_scores_that_are_not_finite_are_refused(objective):
    inputs = random_inputs(objective)
    for side in ("chosen", "rejected"):
        for bad in (math.nan, math.inf):
            both = {
                "chosen": inputs.score.chosen.clone(),
                "rejected": inputs.score.rejected.clone(),
            }
            both[side][3] = bad
            with pytest.raises(AlignError, match=f"Pair 3 .*`{side}_score`"):
                objective(replace(inputs, score=Pair(**both)))


@every_objective
@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_roles_scored_over_other_tokens_are_refused(objective, side):
    inputs = random_inputs(objective)
    for role in sorted(objective.needs & set(ROLES)):
        pair = getattr(inputs, role)
        logps = getattr(pair, side)
        shorter = Logps(logps.token[:, :-1], logps.mask[:, :-1])
        shifted = Logps(logps.token, logps.mask.roll(1, dims=0))
        for other in (shorter, shifted):
            with pytest.raises(AlignError, match=f"{side} mask of `{role}`"):
                objective(replace(inputs, **{role: replace(pair, **{side: other})}))


@every_objective
@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_a_completion_without_tokens_is_refused(objective, side):
    inputs = random_inputs(objective)
    logps = getattr(inputs.policy, side)
    mask = logps.mask.clone()
    mask[1] = False
    inputs = replace(inputs, policy=replace(inputs.policy, **{side: Logps(logps.token, mask)}))
    with pytest.raises(AlignError, match=f"Pair 1 .*{side} completion"):
        objective(inputs)


@every_objective
def test_columns_of_another_shape_are_refused(objective):
    inputs = random_inputs(objective)
    for field in sorted((objective.needs | objective.accepts) - set(ROLES)):
        value = getattr(inputs, field)
        cut = value[:-1] if isinstance(value, Tensor) else Pair(value.chosen[:-1], value.rejected)
        with pytest.raises(AlignError, match=rf"{field}` has shape \["):
            objective(replace(inputs, **{field: cut}))


@every_objective
def test_sides_of_different_counts_are_refused(objective):
    inputs = random_inputs(objective)
    fewer = Pair(inputs.policy.chosen, rows(inputs, slice(0, 4)).policy.rejected)
    with pytest.raises(AlignError, match="6 chosen completions and 4 rejected"):
        objective(replace(inputs, policy=fewer))


@pytest.mark.parametrize("member", MEMBERS, ids=lambda m: m.__name__)
def test_hyper_parameters_are_finite_described_numbers(member):
    name = member.model_fields["name"].default
    for key, field in member.model_fields.items():
        if key == "name":
            continue
        assert field.description, f"{name}.{key} has no description"
        assert not field.is_required() or name == "sum", f"{name}.{key} has no default"
        if field.annotation is float:
            for bad in (math.nan, math.inf, -math.inf, -1.0, True, "much", None):
                with pytest.raises(AlignError, match=key):
                    objective_from({"name": name, key: bad})
