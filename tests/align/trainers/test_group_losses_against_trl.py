"""Losses over groups: value and gradient of TRL's own `_compute_loss`, on the same log-probs.

TRL's trainers sample, score and train in one object, so only their loss functions are called, with
a stand-in for the trainer that has what these read. Advantages are made here as TRL makes them:
that code stands within its sampling.
"""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from trl import GRPOTrainer, RLOOTrainer

with pytest.MonkeyPatch.context() as patch:
    patch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.a2po import A2POTrainer
    from trl.experimental.gmpo import GMPOTrainer

from align.objectives import DirectAdvantage, GroupObjective, objective_from
from align.types import GroupInputs, Logps

N, T, LONGEST = 10, 6, 256
GROUPS = torch.tensor([0, 0, 0, 0, 1, 1, 2, 3, 3, 3])
CLIP = {"clip_low": 0.2, "clip_high": 0.28}
TRL_CLIP = {"epsilon": 0.2, "epsilon_high": 0.28}
SEQUENCE = {"importance_sampling_level": "sequence"}
# Ours -> what TRL's GRPOTrainer is told.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "grpo": (
        {"name": "group_relative", "clip": 0.2, "clip_high": 0.28},
        {"loss_type": "grpo", **TRL_CLIP},
    ),
    "dr_grpo": (
        {"name": "group_relative", "scale": "none", "divisor": LONGEST, "largest_ratio": 1.5},
        {"loss_type": "dr_grpo", "scaled": False, "delta": 1.5},
    ),
    "dapo": ({"name": "dapo", **CLIP}, {"loss_type": "dapo", **TRL_CLIP}),
    "dapo-delta": (
        {"name": "dapo", **CLIP, "largest_ratio": 1.5},
        {"loss_type": "dapo", **TRL_CLIP, "delta": 1.5},
    ),
    "bnpo": ({"name": "dapo", **CLIP}, {"loss_type": "bnpo", **TRL_CLIP}),
    "cispo": (
        {"name": "cispo", "largest_ratio": 1.4},
        {"loss_type": "cispo", "epsilon_high": 1.4},
    ),
    "sapo": (  # TRL keeps them in float32, which has these two exactly
        {"name": "sapo", "temperature_pos": 0.75, "temperature_neg": 1.25},
        {"loss_type": "sapo", "sapo_temperature_pos": 0.75, "sapo_temperature_neg": 1.25},
    ),
    "gspo": ({"name": "gspo", **CLIP}, {"loss_type": "grpo", **SEQUENCE, **TRL_CLIP}),
    "gspo-delta": (
        {"name": "gspo", **CLIP, "largest_ratio": 1.5},
        {"loss_type": "grpo", **SEQUENCE, **TRL_CLIP, "delta": 1.5},
    ),
    "luspo": ({"name": "luspo", **CLIP}, {"loss_type": "luspo", **SEQUENCE, **TRL_CLIP}),
    "vespo": (
        {"name": "vespo", "k_pos": 1.5, "lambda_pos": 2.5, "k_neg": 2.0, "lambda_neg": 1.0},
        {
            "loss_type": "vespo",
            "vespo_k_pos": 1.5,
            "vespo_lambda_pos": 2.5,
            "vespo_k_neg": 2.0,
            "vespo_lambda_neg": 1.0,
        },
    ),
}


def random_inputs(seed: int, spread: float = 0.5) -> GroupInputs:
    """Log-ratios of -spread to spread, and scores, of ragged completions in four groups."""
    generator = torch.Generator().manual_seed(seed)

    def some(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    lengths = torch.randint(1, T + 1, (N,), generator=generator)
    mask = torch.arange(T) < lengths[:, None]
    old = -1 - 2 * some(N, T)

    def near() -> Logps:
        return Logps((old + spread * (2 * some(N, T) - 1)).masked_fill(~mask, 0.0), mask)

    return GroupInputs(
        policy=near(),
        previous=Logps(old.masked_fill(~mask, 0.0), mask),
        reference=near(),
        group=GROUPS,
        score=2 * some(N) - 1,
    )


def centred(inputs: GroupInputs, *, scaled: bool) -> Tensor:
    """Rewards less the group's mean, over its sample deviation and 1e-4."""
    assert inputs.score is not None
    found = torch.zeros(N, dtype=torch.float64)
    for g in GROUPS.unique():
        of = inputs.score[g == GROUPS]
        spread = of.std() if len(of) > 1 else torch.zeros(())
        found[g == GROUPS] = (of - of.mean()) / (spread + 1e-4 if scaled else 1.0)
    return found


def stand_in(inputs: GroupInputs, leaf: Tensor, beta: float, told: dict[str, Any]) -> Any:
    """What the loss functions read of their trainer."""
    args = {
        "delta": None,
        "use_bias_correction_kl": False,
        "steps_per_generation": 1,
        "sapo_temperature_pos": 1.0,
        "sapo_temperature_neg": 1.05,
        "vespo_k_pos": 2.0,
        "vespo_lambda_pos": 3.0,
        "vespo_k_neg": 3.0,
        "vespo_lambda_neg": 2.0,
    }
    low = told.get("epsilon", 0.2)
    return SimpleNamespace(
        args=SimpleNamespace(**{**args, **{k: v for k, v in told.items() if k in args}}),
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(
            num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x
        ),
        beta=beta,
        loss_type=told.get("loss_type"),
        importance_sampling_level=told.get("importance_sampling_level", "token"),
        epsilon_low=low,
        epsilon_high=told.get("epsilon_high", low),
        max_completion_length=LONGEST,
        current_gradient_accumulation_steps=1,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
        aux_loss_enabled=False,
        get_gamma_weights=GRPOTrainer.get_gamma_weights,
        _entropy_bonus_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _get_per_token_logps_and_entropies=lambda *_, **__: (leaf, torch.zeros_like(leaf), None),
    )


def trls(
    trainer: type, inputs: GroupInputs, advantages: Tensor, beta: float, told: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Loss and its gradient in the policy's log-probs."""
    leaf = inputs.policy.token.clone().requires_grad_()
    mask = inputs.policy.mask
    assert inputs.previous is not None
    assert inputs.reference is not None
    ids = torch.zeros(N, T, dtype=torch.int64)
    given = {
        "prompt_ids": ids[:, :1],
        "prompt_mask": ids[:, :1] + 1,
        "completion_ids": ids,
        "completion_mask": mask.double(),
        "advantages": advantages,
        "old_per_token_logps": inputs.previous.token,
        "old_logps": inputs.previous.token.sum(dim=1),
        "ref_per_token_logps": inputs.reference.token,
        "num_items_in_batch": mask.sum(),
    }
    this = stand_in(inputs, leaf, beta, told)
    loss = trainer._compute_loss(this, this.model, given)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient


def ours(objective: GroupObjective, inputs: GroupInputs) -> tuple[Tensor, Tensor]:
    leaf = inputs.policy.token.clone().requires_grad_()
    changed = GroupInputs(**{**vars(inputs), "policy": Logps(leaf, inputs.policy.mask)})
    loss = objective(changed).loss.mean()
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient


def assert_close(found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> None:
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)
    assert found[1].abs().max() > 1e-6


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("seed", [0, 1])
def test_losses_of_grpo_trainer(case, beta, seed) -> None:
    node, told = CASES[case]
    inputs = random_inputs(seed)
    advantages = centred(inputs, scaled=told.get("scaled", True))
    objective = objective_from({**node, "kl_beta": beta}, GroupObjective)
    assert_close(ours(objective, inputs), trls(GRPOTrainer, inputs, advantages, beta, told))


@pytest.mark.parametrize("spread", [9.0, 60.0])
def test_vespo_far_away(spread) -> None:
    inputs = random_inputs(3, spread)
    wanted = trls(GRPOTrainer, inputs, centred(inputs, scaled=True), 0.0, {"loss_type": "vespo"})
    assert_close(ours(objective_from({"name": "vespo"}, GroupObjective), inputs), wanted)


@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_the_loss_of_gmpo_trainer(beta) -> None:
    inputs = random_inputs(2)
    told = {"epsilon": 0.1, "epsilon_high": 0.2}
    objective = objective_from(
        {"name": "gmpo", "clip_low": 0.1, "clip_high": 0.2, "kl_beta": beta}, GroupObjective
    )
    wanted = trls(GMPOTrainer, inputs, centred(inputs, scaled=True), beta, told)
    assert_close(ours(objective, inputs), wanted)


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_the_loss_of_rloo_trainer(beta) -> None:
    inputs = random_inputs(2, 0.1)
    assert inputs.score is not None
    assert inputs.previous is not None
    assert inputs.reference is not None
    kl = (inputs.previous.token - inputs.reference.token).sum(dim=1)
    returns = inputs.score - beta * kl
    advantages = torch.zeros(N, dtype=torch.float64)
    for g in GROUPS.unique():
        of = returns[g == GROUPS]
        if len(of) > 1:
            advantages[g == GROUPS] = of - (of.sum() - of) / (len(of) - 1)
    told = {"epsilon": 0.1, "epsilon_high": 0.2}
    objective = objective_from(
        {"name": "rloo", "kl_beta": beta, "clip_low": 0.1, "clip_high": 0.2}, GroupObjective
    )
    assert_close(ours(objective, inputs), trls(RLOOTrainer, inputs, advantages, beta, told))


def test_the_loss_of_a2po_trainer_is_direct_advantage_in_other_units() -> None:
    inputs, beta = random_inputs(4), 0.3
    assert inputs.score is not None
    assert inputs.reference is not None
    value = torch.full((N,), 0.2, dtype=torch.float64)
    leaf = inputs.policy.token.clone().requires_grad_()
    this = SimpleNamespace(
        args=SimpleNamespace(beta2=beta),
        model=SimpleNamespace(training=True),
        _metrics=defaultdict(lambda: defaultdict(list)),
        _get_sequence_logps=lambda *_: leaf.sum(dim=1),
    )
    given = dict.fromkeys(("input_ids", "attention_mask", "logits_to_keep"))
    given |= {
        "ref_logps": inputs.reference.token.sum(dim=1),
        "rewards": inputs.score,
        "v_star": value,
    }
    wanted = A2POTrainer.compute_loss(this, this.model, given)
    (gradient,) = torch.autograd.grad(wanted, leaf)
    inputs = GroupInputs(**{**vars(inputs), "advantage": inputs.score - value})
    loss, found = ours(DirectAdvantage(beta=beta), inputs)
    found = found.masked_fill(~inputs.policy.mask, 0.0)
    gradient = gradient.masked_fill(~inputs.policy.mask, 0.0)
    assert_close((2 * beta**2 * loss, 2 * beta**2 * found), (wanted.detach(), gradient))
