"""What every member of `AnyGroupObjective` has to do, tested for free by being a member.

`OBJECTIVES` holds each member with its defaults, once more per value of every literal field, and
what `FURTHER` adds.
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
from align.objectives import AnyGroupObjective, CoupledGroups, GroupObjective, objective_from
from align.types import GroupInputs, GroupOutput, Logps

MEMBERS: list[type[GroupObjective]] = list(get_args(get_args(AnyGroupObjective)[0]))
FURTHER: Mapping[str, list[dict[str, Any]]] = {
    "gepo": [{"variance_weight": 0.0}],
    "trpa": [{"trust_weight": 0.0}, {"top_score": 0.5, "trust_weight": 1.0}],
    "nft": [{"negative_weight": 0.0, "divisor": 1.0}, {"floor": 0.1}],
    "remax": [{"kl_beta": 0.0}, {"gamma": 0.9, "clip": 0.3}],
    "rto": [{"guide_beta": 0.5, "kl_beta": 0.3, "score_clip": 0.4}],
    "group_relative": [
        {"kl_beta": 0.04},
        {"divisor": 10.0, "scale": "none"},
        {"clip_high": 0.5, "largest_ratio": 2.0},
    ],
    "dapo": [{"kl_beta": 0.04}, {"largest_ratio": 2.0}],
    "cispo": [{"kl_beta": 0.04}, {"largest_ratio": 0.9}],
    "sapo": [{"kl_beta": 0.04}, {"temperature_pos": 3.0, "temperature_neg": 0.2}],
    "gspo": [{"kl_beta": 0.04}, {"clip_low": 0.5, "clip_high": 0.5, "largest_ratio": 1.7}],
    "luspo": [{"kl_beta": 0.04}, {"clip_low": 0.5, "clip_high": 0.5, "largest_ratio": 1.7}],
    "gmpo": [{"kl_beta": 0.04}, {"clip_low": 0.1, "clip_high": 2.0}],
    "vespo": [{"kl_beta": 0.04}, {"k_pos": 0.0, "lambda_neg": 0.5}],
    "rloo": [{"kl_beta": 0.0}, {"clip_low": 0.9, "clip_high": 5.0}],
    "reinforce_pp": [{"kl_beta": 0.0}, {"kl_beta": 0.5}],
}
STOPS_GRADIENT = {  # by choice of the formula: no gradcheck, but goldens with frozen copies
    "nft": "the floor changes a value and keeps its slope",
    "cispo": "the ratio is a weight",
    "vespo": "the ratio is a weight",
}
SIGNED = {"trpa.top_score"}  # numbers that may be below 0
# Of one completion a prompt, these see nothing to compare; GRPO's k3 and TRPA's stay.
COMPARES = {
    "gepo",
    "copg_group",
    "plackett_luce",
    "lipo",
    "nft",
    "rto",
    "trpa-0.0",
    "rloo",
    *(
        f"{name}-0.0"
        for name in ("group_relative", "dapo", "cispo", "sapo", "gspo", "luspo", "gmpo", "vespo")
    ),
}

ROLES = ("policy", "reference", "previous", "earlier", "guide", "anchor")
OPTIONAL = {field.name for field in fields(GroupInputs)} - {"policy", "group"}
WITH_A_NEUTRAL_NONE = ("token_weight", "coupling")
GROUPS = (3, 0, 3, 7, 0, 3, 7, 3, 5)  # numbers mean nothing; 5 is of one completion
N, T = len(GROUPS), 5


def variants(member: type[GroupObjective]) -> list[GroupObjective]:
    choices = {
        name: list(get_args(field.annotation))
        for name, field in member.model_fields.items()
        if get_origin(field.annotation) is Literal
    }
    nodes = [dict(zip(choices, values, strict=True)) for values in product(*choices.values())]
    nodes += FURTHER.get(member.model_fields["name"].default, [])
    return [member(**node) for node in nodes]


OBJECTIVES = [objective for member in MEMBERS for objective in variants(member)]
every_objective = pytest.mark.parametrize(
    "objective",
    OBJECTIVES,
    ids=lambda o: "-".join(str(v) for v in o.model_dump().values()),
)


def random_inputs(
    objective: GroupObjective, dtype: torch.dtype = torch.float64, seed: int = 0
) -> GroupInputs:
    """Every role and column; what the step gave, where it gives anything."""
    generator = torch.Generator().manual_seed(seed)

    def some(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    lengths = torch.randint(1, T + 1, (N,), generator=generator)
    mask = torch.arange(T) < lengths[:, None]

    def logps() -> Logps:
        return Logps((-some(N, T) * 2).masked_fill(~mask, 0.0).to(dtype), mask)

    score = some(N)
    if objective.name == "nft":
        score = torch.tensor([1, 0, 0, 1, 1, 0, 0, 1, 1], dtype=torch.float64)
        score = score.roll(seed)
    label = torch.tensor([True, False, False, True, True, True, False, True, True]).roll(seed)
    inputs = GroupInputs(
        **{role: logps() for role in ROLES},
        group=torch.tensor(GROUPS),
        score=score.to(dtype),
        label=label,
        advantage=some(N).to(dtype),
        token_advantage=some(N, T).to(dtype),
        mismatched=some(N).to(dtype),
    )
    if isinstance(objective, CoupledGroups) and objective.couples:
        # What the step gave is one more column: the same for every part of it.
        coupling, _ = objective.couple(objective.measured(inputs), {})
        inputs = replace(inputs, coupling=coupling)
    return inputs


def mapped(
    inputs: GroupInputs,
    per_row: Callable[[Tensor], Tensor],
    per_token: Callable[[Tensor, Tensor], Tensor],
) -> GroupInputs:
    """`inputs` with a change to every [N] tensor, and to every [N, T] one (given its mask)."""
    found: dict[str, Any] = {}
    for field in fields(inputs):
        value = getattr(inputs, field.name)
        if isinstance(value, Logps):
            value = Logps(per_token(value.token, value.mask), per_token(value.mask, value.mask))
        elif value is not None and field.name.startswith("token_"):
            value = per_token(value, inputs.policy.mask)
        elif value is not None:
            value = per_row(value)
        found[field.name] = value
    return GroupInputs(**found)


def rows(inputs: GroupInputs, index: Any) -> GroupInputs:
    return mapped(inputs, lambda x: x[index], lambda x, _: x[index])


def tensors(output: GroupOutput) -> dict[str, Tensor]:
    return {"loss": output.loss, "reward": output.reward, **output.metrics}


def assert_same(
    found: GroupOutput | dict[str, Tensor], wanted: GroupOutput | dict[str, Tensor]
) -> None:
    found = found if isinstance(found, dict) else tensors(found)
    wanted = wanted if isinstance(wanted, dict) else tensors(wanted)
    assert found.keys() == wanted.keys()
    for name in found:
        torch.testing.assert_close(
            found[name], wanted[name], rtol=1e-12, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}"
        )


def with_gradient(inputs: GroupInputs, field: str) -> tuple[GroupInputs, Tensor | None]:
    """`inputs` whose tensor of this field is a leaf that asks for gradient, and this leaf."""
    value = getattr(inputs, field)
    tensor = value.token if isinstance(value, Logps) else value
    if not tensor.is_floating_point():
        return inputs, None
    leaf = tensor.detach().clone().requires_grad_()
    return replace(
        inputs, **{field: Logps(leaf, value.mask) if isinstance(value, Logps) else leaf}
    ), leaf


def loss_and_gradient(objective: GroupObjective, inputs: GroupInputs) -> tuple[Tensor, Tensor]:
    inputs, leaf = with_gradient(inputs, "policy")
    assert leaf is not None
    loss = objective(inputs).loss
    (gradient,) = torch.autograd.grad(loss.sum(), leaf, materialize_grads=True)
    return loss.detach(), gradient


def compares_only(objective: GroupObjective) -> bool:
    weight = getattr(objective, "trust_weight", getattr(objective, "kl_beta", None))
    return objective.name in COMPARES or f"{objective.name}-{weight}" in COMPARES


@every_objective
def test_everything_is_per_completion_and_only_the_loss_has_gradient(objective):
    inputs, _ = with_gradient(random_inputs(objective), "policy")
    output = objective(inputs)
    assert output.loss.requires_grad
    for name, value in tensors(output).items():
        assert value.shape == (N,), name
        assert value.requires_grad == (name == "loss"), name


@every_objective
def test_what_is_masked_counts_for_nothing(objective):
    inputs = random_inputs(objective)
    at_hand, (_, wanted) = objective(inputs), loss_and_gradient(objective, inputs)
    for garbage, left in ((math.nan, 0), (math.inf, 3), (-math.inf, 0), (1e30, 3), (math.nan, 3)):

        def pad(x: Tensor, mask: Tensor, value: float = garbage, left: int = left) -> Tensor:
            is_mask = x.dtype == torch.bool
            x = x if is_mask else x.masked_fill(~mask, value)
            return torch.nn.functional.pad(x, (left, 3), value=False if is_mask else value)

        padded = mapped(inputs, lambda x: x, pad)
        assert_same(objective(padded), at_hand)
        _, found = loss_and_gradient(objective, padded)
        mask = padded.policy.mask
        assert torch.equal(found[~mask], torch.zeros_like(found[~mask]))
        torch.testing.assert_close(found[mask], wanted[inputs.policy.mask])


@every_objective
def test_a_step_in_parts_of_whole_groups_is_the_step(objective):
    inputs = random_inputs(objective)
    parts = [torch.isin(inputs.group, torch.tensor(own)) for own in ([3, 5], [0], [7])]
    whole, found = tensors(objective(inputs)), dict[str, Tensor]()
    for part in parts:
        for name, value in tensors(objective(rows(inputs, part))).items():
            found.setdefault(name, torch.full((N,), math.nan, dtype=value.dtype))[part] = value
    assert_same(found, whole)
    _, wanted = loss_and_gradient(objective, inputs)
    for part in parts:
        _, gradient = loss_and_gradient(objective, rows(inputs, part))
        torch.testing.assert_close(gradient, wanted[part], rtol=1e-12, atol=1e-12)


@every_objective
def test_neither_order_nor_numbers_of_groups_matter(objective):
    inputs, order = random_inputs(objective), torch.tensor([3, 8, 0, 5, 1, 7, 4, 2, 6])
    renamed = {3: 11, 0: 40, 7: -2, 5: 4}
    other = rows(inputs, order)
    other = replace(other, group=torch.tensor([renamed[g] for g in other.group.tolist()]))
    wanted = {name: value[order] for name, value in tensors(objective(inputs)).items()}
    assert_same(objective(other), wanted)


@every_objective
def test_the_coupling_is_that_of_the_rows_in_any_order(objective):
    if not isinstance(objective, CoupledGroups) or not objective.couples:
        return
    inputs = replace(random_inputs(objective), coupling=None)
    given, _ = objective.couple(objective.measured(inputs), {})
    assert given.shape == (N, len(objective.gives))
    assert objective.measured(inputs).shape == (N, len(objective.measures))
    assert_same(objective(inputs), objective(replace(inputs, coupling=given)))
    with pytest.raises(AlignError, match=f"objective `{objective.name}` gives"):
        objective(replace(inputs, coupling=torch.zeros(N, given.shape[1] + 1)))


@every_objective
def test_an_empty_batch_has_an_empty_loss(objective):
    assert objective(rows(random_inputs(objective), slice(0, 0))).loss.shape == (0,)


@every_objective
def test_groups_of_one_are_finite_and_compare_nothing(objective):
    inputs = replace(random_inputs(objective), group=torch.arange(N))
    inputs, leaf = with_gradient(inputs, "policy")
    loss = objective(inputs).loss
    loss.sum().backward()
    assert loss.isfinite().all()
    assert leaf is not None
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()
    if compares_only(objective):
        assert loss.requires_grad
        assert not loss.any()
        assert not leaf.grad.any()
    else:
        assert leaf.grad.any()


@every_objective
def test_equal_scores_and_labels_compare_nothing(objective):
    if not compares_only(objective) or objective.name in ("copg_group", "rto", "rloo"):
        return  # these compare log-ratios and token rewards as well
    inputs = random_inputs(objective)
    # 0.1, whose mean over three rounds to another number; nft reads verdicts
    level = 1.0 if objective.name == "nft" else 0.1
    inputs = replace(inputs, score=torch.full((N,), level), label=torch.ones(N, dtype=torch.bool))
    loss, gradient = loss_and_gradient(objective, inputs)
    assert not loss.any()
    assert not gradient.any()


@every_objective
def test_loss_and_gradient_are_finite_far_away_and_at_the_start(objective):
    """Someone at -1e4 nats per token; with "none" the policy equals every role."""
    for dtype, far in product(
        (torch.float64, torch.float32, torch.bfloat16), ("policy", "one", "roles", "none")
    ):
        inputs = random_inputs(objective, dtype)
        inputs = replace(inputs, **dict.fromkeys(ROLES, inputs.policy))
        away = torch.full_like(inputs.policy.token, -1e4)
        if far == "one":
            away[1:] = inputs.policy.token[1:]
        if far in ("policy", "one"):
            inputs = replace(inputs, policy=Logps(away, inputs.policy.mask))
        if far == "roles":
            inputs = replace(inputs, **dict.fromkeys(ROLES[1:], Logps(away, inputs.policy.mask)))
        loss, gradient = loss_and_gradient(objective, inputs)
        assert loss.isfinite().all(), (dtype, far)
        assert gradient.isfinite().all(), (dtype, far)


@every_objective
def test_the_gradient_is_that_of_the_loss(objective):
    inputs = random_inputs(objective)

    def loss(token: Tensor) -> Tensor:
        return objective(replace(inputs, policy=Logps(token, inputs.policy.mask))).loss

    leaf = inputs.policy.token.detach().clone().requires_grad_()
    if objective.name not in STOPS_GRADIENT:
        assert torch.autograd.gradcheck(loss, (leaf,))
    (gradient,) = torch.autograd.grad(loss(leaf).sum(), leaf)
    assert gradient.abs().sum() > 0


@every_objective
def test_nothing_but_the_policy_gets_gradient(objective):
    inputs, _ = with_gradient(random_inputs(objective), "policy")
    for field in sorted(OPTIONAL):
        if getattr(inputs, field) is not None:
            leaking, leaf = with_gradient(inputs, field)
            objective(leaking).loss.sum().backward()
            assert leaf is None or leaf.grad is None or not leaf.grad.any(), field


@every_objective
def test_the_maths_is_done_in_float32_or_wider(objective):
    for given in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        wanted = torch.float64 if given == torch.float64 else torch.float32
        inputs = random_inputs(objective, given)
        found = tensors(objective(inputs))
        assert {value.dtype for value in found.values()} == {wanted}
        # and not widened after the event: as exact as float64 maths on the same rounded inputs
        wide = mapped(
            inputs,
            lambda x: x.double() if x.is_floating_point() else x,
            lambda x, _: x if x.dtype == torch.bool else x.double(),
        )
        exact = objective(wide).loss
        torch.testing.assert_close(found["loss"].double(), exact, rtol=1e-5, atol=1e-5)


@every_objective
def test_the_dtype_is_the_policys_whatever_the_columns_are(objective):
    inputs = random_inputs(objective, torch.float32)
    wide = mapped(inputs, lambda x: x.double() if x.is_floating_point() else x, lambda x, _: x)
    assert objective(wide).loss.dtype == torch.float32


@every_objective
def test_it_survives_yaml(objective):
    again = objective_from(yaml.safe_load(yaml.safe_dump(objective.model_dump())))
    assert again == objective
    assert hash(again) == hash(objective)
    assert type(again) is type(objective)


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
        value = getattr(inputs, field)
        nan = value
        if isinstance(value, Logps):
            nan = Logps(value.token * math.nan, ~value.mask)
        elif value is not None:
            nan = value * math.nan
        poisoned = replace(poisoned, **{field: nan})
        absent = replace(absent, **{field: None})
    assert_same(objective(poisoned), objective(inputs))
    assert_same(objective(absent), objective(inputs))


@every_objective
def test_what_is_declared_is_read(objective):
    inputs, other = random_inputs(objective), random_inputs(objective, seed=1)
    inputs = replace(inputs, coupling=None)  # it would hold what it was computed from
    mask = inputs.policy.mask
    for field in sorted(objective.needs | objective.accepts):
        value = getattr(other, field)
        if isinstance(value, Logps):
            value = Logps(value.token.masked_fill(~mask, 0.0), mask)
        changed = replace(inputs, **{field: value})
        (loss, gradient), (was, before) = (
            loss_and_gradient(objective, one) for one in (changed, inputs)
        )
        # A score may move what is clipped and no more than that.
        assert not torch.allclose(loss, was) or not torch.allclose(gradient, before), field


@every_objective
def test_token_weights_are_refused(objective):
    inputs = replace(random_inputs(objective), token_weight=torch.ones(N, T))
    with pytest.raises(AlignError, match=f"`{objective.name}` .*`token_weight`"):
        objective(inputs)


@pytest.mark.parametrize("column", ["score", "advantage", "mismatched"])
def test_numbers_that_are_not_finite_are_refused(column):
    for objective in OBJECTIVES:
        if column in objective.needs | objective.accepts:
            for bad in (math.nan, math.inf):
                inputs = random_inputs(objective)
                values = getattr(inputs, column).clone()
                values[3] = bad
                with pytest.raises(AlignError, match=f"Completion 3 .*`{column}`"):
                    objective(replace(inputs, **{column: values}))


@every_objective
def test_roles_scored_over_other_tokens_are_refused(objective):
    inputs = random_inputs(objective)
    for role in sorted(objective.needs & set(ROLES)):
        logps = getattr(inputs, role)
        shorter = Logps(logps.token[:, :-1], logps.mask[:, :-1])
        shifted = Logps(logps.token, logps.mask.roll(1, dims=0))
        for other in (shorter, shifted):
            with pytest.raises(AlignError, match=f"mask of `{role}`"):
                objective(replace(inputs, **{role: other}))


@every_objective
def test_a_completion_without_tokens_is_refused(objective):
    inputs = random_inputs(objective)
    mask = inputs.policy.mask.clone()
    mask[1] = False
    with pytest.raises(AlignError, match=r"Completion 1 .*no token"):
        objective(replace(inputs, policy=Logps(inputs.policy.token, mask)))


@every_objective
def test_columns_of_another_shape_are_refused(objective):
    inputs = random_inputs(objective)
    for field in sorted((objective.needs | objective.accepts) - set(ROLES)):
        with pytest.raises(AlignError, match=rf"{field}` has shape \["):
            objective(replace(inputs, **{field: getattr(inputs, field)[:-1]}))
    with pytest.raises(AlignError, match=r"`group` has shape \["):
        objective(replace(inputs, group=inputs.group[:-1]))
    with pytest.raises(AlignError, match=r"`group` has .*float"):
        objective(replace(inputs, group=inputs.group.double()))


@pytest.mark.parametrize("member", MEMBERS, ids=lambda m: m.__name__)
def test_hyper_parameters_are_finite_described_numbers(member):
    name = member.model_fields["name"].default
    for key, field in member.model_fields.items():
        if key == "name":
            continue
        assert field.description, f"{name}.{key} has no description"
        assert not field.is_required(), f"{name}.{key} has no default"
        if float in (field.annotation, *get_args(field.annotation)):
            bad = [math.nan, math.inf, -math.inf, True, "much"]
            bad += [] if f"{name}.{key}" in SIGNED else [-1.0]
            for value in bad:
                with pytest.raises(AlignError, match=key):
                    objective_from({"name": name, key: value})
