# pyright: basic
"""Preference models: both answers in one input, both orders computed.

    d = f(x, chosen, rejected) - f(x, rejected, chosen),   P(chosen beats rejected) = sigmoid(d)
    loss = -q log sigmoid(d) - (1 - q) log sigmoid(-d),    q = the label, 1 where there is none

The difference changes its sign with the order of the answers, so P(a beats b) + P(b beats a) = 1
and P = 1/2 for equal answers by construction, whatever f is. No score stands behind it: it can say
that a beats b, b beats c and c beats a, as the game-theoretic methods allow (Munos et al. 2023,
arXiv:2312.00886).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import softplus
from trl.trainer.reward_trainer import RewardTrainer

from align.trainers.reward import RewardModelTrainer


class _BothOrders(RewardTrainer):
    """`trl.RewardTrainer` whose two sides are the two orders of one pair, with soft labels."""

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        """Cross entropy against the labels; TRL's own loss where every label is 1."""
        label = inputs.pop("preference", None)
        if label is None:
            return super().compute_loss(
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
            )
        # TRL's pass fills the metrics and gives the logits; its loss knows no labels.
        found: Any = super().compute_loss(
            model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
        )
        outputs = found[1]
        straight, swapped = outputs.logits.squeeze(-1).float().chunk(2)
        loss = cross_entropy(straight - swapped, label).mean()
        return (loss, outputs) if return_outputs else loss


class PreferenceModelTrainer(RewardModelTrainer, _BothOrders):
    """Trains a preference model on tokenised pairs.

    Args:
        model: a sequence classifier with one output.
        args: a `trl.RewardConfig` without `center_rewards_coefficient`: f has no level to centre.
        train_dataset: columns `chosen_ids`, a row with the chosen answer first, `rejected_ids`, the
            same row with the rejected one first, and optionally `preference`; see `GuardedTrainer`
            for the others.
        peft_config: of an adapter; its `modules_to_save` must hold the head.
    """

    kind = "preference_model"
    read_columns: ClassVar[tuple[str, ...]] = ("chosen_ids", "rejected_ids", "preference")


def cross_entropy(difference: Tensor, label: Tensor) -> Tensor:
    """Cross entropy of sigmoid(difference) against soft labels, [B] nats.

    Args:
        difference: d, [B].
        label: P(chosen beats rejected), [B] in [0, 1].
    """
    label = label.to(difference)
    return torch.lerp(softplus(difference), softplus(-difference), label)
