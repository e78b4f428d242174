"""P3O: clipped policy gradient on the difference of two rewards, so that only comparisons count.

Pairwise Proximal Policy Optimization, Wu et al. 2023, arXiv:2310.00212. The gradient is that of
the authors' text; where each form clips is unverified against the paper ("joint" has the shape of a
public implementation whose authors we could not establish).

Differs from that implementation: the KL term is taken at `previous`, as in the paper, not at the
current policy; the ratio is not capped at 10. Differs from the paper: ratios end at e^20, so that
losses stay finite, and keep their gradient there. Loss values mean little (without clipping
"separate" is always 0); watch the gradient and the metric `clipped`.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from align.objectives.base import Objective, detached, logratios, present
from align.types import ObjectiveOutput, PairInputs

LARGEST_LOG_RATIO = 20.0  # nats


class P3O(Objective, frozen=True):
    r"""Unclipped gradient: -(r_1 - r_2) q_1 q_2 / 2 in log pi(y_1), its opposite in log pi(y_2).

    separate:  L = -(least(A sg[q_2], q_1, 1) + least(-A sg[q_1], q_2, 1)) / 2
    joint:     L = -least(A sg[q_1 q_2], x, x_previous) / 2,   x = log pi(y_1) - log pi(y_2)
    least(A, x, x0) = min(A x, A clip(x, x0 - clip, x0 + clip)),   A = r_1 - r_2

    r = R - kl_beta (log pi_previous - log pi_ref), q = pi / pi_previous of the whole completion,
    R = `score` in its own units; 1 and 2 are the sides, sg stops the gradient. Reward: log q.
    """

    name: Literal["p3o"] = "p3o"
    needs = frozenset({"previous", "reference", "score"})

    kl_beta: float = Field(
        default=0.05, ge=0, description="Score taken off per nat of previous over pi_ref."
    )
    clip: float = Field(
        default=0.2, gt=0, description="Largest move from previous: of q, or of x in nats (joint)."
    )
    form: Literal["joint", "separate"] = Field(
        default="joint", description="Clip the pair's log-ratio, or each side's ratio."
    )

    def __call__(self, inputs: PairInputs) -> ObjectiveOutput:
        """Loss and reward of B pairs, and the share of a pair's terms that the clip has stopped."""
        inputs = self.checked(inputs)
        previous, score = present(inputs.previous), present(inputs.score)
        d, kl = logratios(inputs.policy, previous), logratios(previous, inputs.reference)
        advantage = score.chosen - score.rejected - self.kl_beta * (kl.chosen - kl.rejected)
        if self.form == "joint":
            x = inputs.policy.chosen.total() - inputs.policy.rejected.total()
            x0 = previous.chosen.total() - previous.rejected.total()
            joint = _ratio(d.chosen + d.rejected).detach()
            terms = [self._least(advantage * joint / 2, x, x0)]
        else:
            q1, q2 = _ratio(d.chosen), _ratio(d.rejected)
            one = torch.ones_like(advantage)
            terms = [
                self._least(advantage * q2.detach() / 2, q1, one),
                self._least(-advantage * q1.detach() / 2, q2, one),
            ]
        loss = -torch.stack([term for term, _ in terms]).sum(dim=0)
        stopped = torch.stack([stopped for _, stopped in terms]).to(loss.dtype).mean(dim=0)
        reward = detached(d.chosen, d.rejected)
        return ObjectiveOutput(loss=loss, reward=reward, metrics={"clipped": stopped})

    def _least(self, advantage: Tensor, x: Tensor, x0: Tensor) -> tuple[Tensor, Tensor]:
        """`least` of the formula, and where the clip makes it constant; [B] each."""
        clipped = x.clamp(x0 - self.clip, x0 + self.clip)
        least = torch.minimum(advantage * x, advantage * clipped)
        return least, advantage * (x - clipped).detach() > 0


def _ratio(d: Tensor) -> Tensor:
    """exp(d), with its value capped and the gradient of what is left."""
    return d.detach().clamp(max=LARGEST_LOG_RATIO).exp() * (d - d.detach()).exp()
