"""SePPO, Diffusion-DPO and fine-tuning, as formulas over denoising errors.

SePPO: Zhang et al. 2024, arXiv:2410.05255. Diffusion-DPO: Wallace et al. 2023, arXiv:2311.12908,
whose script gives the scale: errors are means over channels and pixels, B = beta / 2, and beta
holds the number of timesteps. SPIN-Diffusion (arXiv:2402.10210) is SePPO without the flip.

Axes: B records of a batch. An error is |target - prediction|^2 of one noised image, the mean or the
sum over channels and pixels; it has no unit. This module knows nothing of diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, TypeAlias

import torch
from pydantic import BaseModel, Field
from torch import Tensor
from torch.nn.functional import softplus

from align.types import Pair, at_least_float32

Reduction: TypeAlias = Literal["mean", "sum"]
Selection: TypeAlias = Literal["random", "latest", "initial"]


@dataclass(frozen=True, eq=False)
class DenoisingErrors:
    """How well two models denoise the two images of B records, at one timestep and noise each.

    Attributes:
        policy: [B] each, with gradient; `rejected` is the image that counts as the worse one (in
            SePPO the reference's own sample), and None where a formula reads chosen images alone.
        reference: [B] each, without gradient; None where there is no reference.
    """

    policy: Pair[Tensor] | Pair[Tensor | None]
    reference: Pair[Tensor] | None = None


@dataclass(frozen=True, eq=False)
class DenoisingOutput:
    """What a formula returns about B records.

    Attributes:
        loss: [B], unreduced, float32 or wider.
        metrics: detached tensors [B] by name.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor]


def squared_error(target: Tensor, prediction: Tensor, reduction: Reduction) -> Tensor:
    """[B] float32 or wider: |target - prediction|^2 of each record."""
    # Subtracted in float32: under autocast the difference of two close bfloat16 is mostly rounding.
    squared = (at_least_float32(target) - at_least_float32(prediction)).square().flatten(1)
    return squared.mean(dim=1) if reduction == "mean" else squared.sum(dim=1)


def anchor(policy: Tensor, reference: Tensor) -> Tensor:
    """[B] SePPO's criterion: +1 contrast the sample, -1 learn from it as well. No gradient.

    Where the reference denoises the chosen image better than the policy does, it is judged to be
    the better model here, and its sample no longer counts as the worse image.

    Args:
        policy: [B] errors of the policy on the chosen images.
        reference: [B] errors of the reference on the same noised images.
    """
    # A tie is +1: at policy = reference every record ties, and sign(0) = 0 would drop the sample.
    better = policy.detach() <= reference.detach()
    return torch.where(better, 1.0, -1.0).to(policy.dtype)


def pairwise_denoising_loss(
    errors: DenoisingErrors, scale: float, anchor: Tensor | float
) -> DenoisingOutput:
    """-log sigmoid(-B (d_chosen - a d_rejected)),   d = error of the policy - of the reference.

    The one kernel of Diffusion-DPO (a = 1), SPIN-Diffusion (a = 1) and SePPO.

    Args:
        errors: both sides, both models.
        scale: B of the formula.
        anchor: a, [B] or one number.
    """
    policy, reference = errors.policy, errors.reference
    assert reference is not None, "the kernel compares with a reference"
    assert policy.chosen is not None, "the kernel reads the chosen image"
    assert policy.rejected is not None, "the kernel reads both images"
    d_chosen = policy.chosen - reference.chosen.detach()
    d_rejected = policy.rejected - reference.rejected.detach()
    logit = -scale * (d_chosen - anchor * d_rejected)
    # Ties count half: at policy = reference nothing is preferred yet.
    accuracy = torch.where(d_chosen == d_rejected, 0.5, (d_chosen < d_rejected).to(logit.dtype))
    return DenoisingOutput(
        loss=softplus(-logit),
        metrics={
            "rewards/chosen": (-scale * d_chosen).detach(),
            "rewards/rejected": (-scale * d_rejected).detach(),
            "rewards/margins": (-scale * (d_chosen - d_rejected)).detach(),
            "rewards/accuracies": accuracy.detach(),
            "weight": torch.sigmoid(-logit).detach(),
            "errors/chosen": policy.chosen.detach(),
            "errors/rejected": policy.rejected.detach(),
        },
    )


class DiffusionObjective(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """A loss over denoising errors; its fields are the hyper-parameters.

    Attributes:
        name: what recipes call it.
        needs: `reference` (a frozen model) and `rejected` (a worse image in every record).
        samples_reference: the worse image is a sample of the reference, made during training.
    """

    name: str
    needs: ClassVar[frozenset[str]] = frozenset()
    samples_reference: ClassVar[bool] = False

    error_reduction: Reduction = Field(
        default="mean",
        description="Over channels and pixels. A beta for means, divided by their number, is the "
        "same loss with sums.",
    )

    @property
    def selection(self) -> Selection:
        """Which earlier checkpoint is the reference of a round."""
        return "initial"

    def __call__(self, errors: DenoisingErrors) -> DenoisingOutput:
        """The unreduced loss of B records, in float32 or wider."""
        raise NotImplementedError


class SePPO(DiffusionObjective, frozen=True):
    r"""L = -log sigmoid(-beta/2 (d_chosen - a d_sample)),  a = 1 if d_chosen <= 0 else -1.

    with d = error of the policy - error of the reference; the sample is the reference's own, and
    the reference one of the policy's earlier checkpoints.
    """

    name: Literal["seppo"] = "seppo"
    needs: ClassVar[frozenset[str]] = frozenset({"reference"})
    samples_reference: ClassVar[bool] = True

    beta: float = Field(
        default=2000.0, gt=0, description="Strength of the pull to the reference; holds T."
    )
    reference_selection: Selection = Field(
        default="random", description="Which earlier checkpoint is the reference of a round."
    )
    anchor_flip: bool = Field(
        default=True, description="False keeps a = +1 throughout: SPIN-Diffusion's loss."
    )

    @property
    def selection(self) -> Selection:
        """Which earlier checkpoint is the reference of a round."""
        return self.reference_selection

    def __call__(self, errors: DenoisingErrors) -> DenoisingOutput:
        """The unreduced loss of B records; `rejected` holds the reference's samples."""
        chosen, reference = errors.policy.chosen, errors.reference
        assert chosen is not None
        assert reference is not None
        sign = anchor(chosen, reference.chosen) if self.anchor_flip else torch.ones_like(chosen)
        output = pairwise_denoising_loss(errors, self.beta / 2, sign)
        flipped = (sign < 0).to(output.loss.dtype).detach()
        return DenoisingOutput(output.loss, {**output.metrics, "flip_rate": flipped})


class DiffusionDPO(DiffusionObjective, frozen=True):
    r"""L = -log sigmoid(-beta/2 (d_chosen - d_rejected)), against the model before training."""

    name: Literal["diffusion_dpo"] = "diffusion_dpo"
    needs: ClassVar[frozenset[str]] = frozenset({"reference", "rejected"})

    beta: float = Field(
        default=5000.0, gt=0, description="Strength of the pull to the reference; holds T."
    )

    def __call__(self, errors: DenoisingErrors) -> DenoisingOutput:
        """The unreduced loss of B records."""
        return pairwise_denoising_loss(errors, self.beta / 2, 1.0)


class DiffusionSFT(DiffusionObjective, frozen=True):
    r"""L = error of the policy on the chosen image: plain denoising."""

    name: Literal["diffusion_sft"] = "diffusion_sft"

    def __call__(self, errors: DenoisingErrors) -> DenoisingOutput:
        """The unreduced loss of B records."""
        chosen = errors.policy.chosen
        assert chosen is not None
        return DenoisingOutput(chosen, {"errors/chosen": chosen.detach()})


AnyDiffusionObjective: TypeAlias = Annotated[
    SePPO | DiffusionDPO | DiffusionSFT, Field(discriminator="name")
]
