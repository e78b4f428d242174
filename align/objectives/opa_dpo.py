"""OPA-DPO: DPO on four kinds of pairs of one question with a picture, anchored.

Yang et al. 2025, arXiv:2501.09695; coefficients, the anchor's signs and the mean over positions are
those of the authors' program. The pairs of a question are rows, so its loss is the sum over its
rows; a trainer takes the mean over all rows. Weights of tokens are columns of the rows.

Differs from the authors' program: log-ratios are summed over the completion, as in the paper. With
`reduction: position` they are compared position by position (token t of one completion against
token t of the other, whatever they say) and averaged over `positions`, padding included; its
gradient at the reference is the summed one's divided by `positions`. The program pushes the ground
truth up and the revision down, on purpose as its author says, and counts both anchors twice; that
is `anchor: code`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor
from torch.nn.functional import pad, softplus

from align.errors import DataError
from align.objectives.base import Objective, detached, logratios, present
from align.objectives.refusals import refuse
from align.types import PAIR_KINDS, Logps, ObjectiveOutput, Pair, PairInputs, at_least_float32

TRUTH, REVISION, *_ = range(len(PAIR_KINDS))
# Sign and count of the anchor on the ground truth and on the revision.
ANCHORS = {"paper": (1, 1), "code": (2, -2), "gt_only": (1, 0), "none": (0, 0)}


class OPADPO(Objective, frozen=True):
    r"""L = c_kind (-log sigmoid(m)) + anchor_weight a_kind,   m = beta (rho_chosen - rho_rejected).

    With rho = log pi(y|x) - log pi_ref(y|x), summed over completion tokens, weighted in m where
    `token_weight` is given; c = 1 for gt_vs_gen and rev_vs_gen, `image_weight` for gt_img and
    rev_img. The anchor a = -log sigmoid(s (beta rho_chosen - anchor_margin)), unweighted tokens, is
    there on gt_vs_gen and rev_vs_gen: s = 1 on both (paper), on the ground truth alone (gt_only),
    or 2 a with s = 1 and 2 a with s = -1 (code). Reward: beta rho.
    """

    name: Literal["opa_dpo"] = "opa_dpo"
    needs = frozenset({"reference", "pair_kind"})
    accepts = frozenset({"token_weight"})

    beta: float = Field(
        default=0.1, gt=0, description="Reward per nat of log-ratio; larger stays nearer pi_ref."
    )
    image_weight: float = Field(
        default=0.2, ge=0, description="Weight of the pairs that differ in the picture alone."
    )
    anchor: Literal["paper", "code", "gt_only", "none"] = Field(
        default="paper",
        description="What is held up: paper both chosen sides, gt_only the ground truth; code also "
        "pushes the revision down, and counts twice.",
    )
    anchor_weight: float = Field(default=1.0, ge=0, description="Weight of the anchor.")
    anchor_margin: float = Field(default=0.0, ge=0, description="Reward that the anchor asks for.")
    reduction: Literal["sequence", "position"] = Field(
        default="sequence",
        description="sequence sums log-ratios; position compares them place by place (reproduces "
        "the authors' program).",
    )
    positions: int = Field(
        default=896, ge=1, description="Places that `reduction: position` averages over."
    )

    def __call__(self, inputs: PairInputs) -> ObjectiveOutput:
        """Loss and reward of B pairs."""
        inputs = self.checked(inputs)
        reference, kind = present(inputs.reference), present(inputs.pair_kind)
        rho = self._log_ratios(inputs.policy, reference, None)
        weighted = self._log_ratios(inputs.policy, reference, inputs.token_weight)
        contrast = softplus(-self.beta * (weighted.chosen - weighted.rejected)).mean(dim=1)
        excess = self.beta * rho.chosen - self.anchor_margin
        of_truth, of_revision = ANCHORS[self.anchor]
        held = _held(excess, of_truth) * (kind == TRUTH)
        held = held + _held(excess, of_revision) * (kind == REVISION)
        shown = (kind > REVISION).to(contrast.dtype)
        scale = 1 + shown * (self.image_weight - 1)
        summed = logratios(inputs.policy, reference)
        return ObjectiveOutput(
            loss=scale * contrast + self.anchor_weight * held,
            reward=detached(self.beta * summed.chosen, self.beta * summed.rejected),
            metrics={},
        )

    def _log_ratios(
        self, policy: Pair[Logps], frozen: Pair[Logps], weight: Pair[Tensor] | None
    ) -> Pair[Tensor]:
        """[B, 1] nats, or [B, positions] nats by place."""
        if self.reduction == "sequence":
            rho = logratios(policy, frozen, weight)
            return Pair(rho.chosen[:, None], rho.rejected[:, None])
        weight_of = weight or Pair(None, None)
        return Pair(
            self._by_place(policy.chosen, frozen.chosen, weight_of.chosen),
            self._by_place(policy.rejected, frozen.rejected, weight_of.rejected),
        )

    def _by_place(self, policy: Logps, frozen: Logps, weight: Tensor | None) -> Tensor:
        lengths = policy.lengths()
        refuse(
            lengths > self.positions,
            lambda _: DataError(
                f"A completion has {int(lengths.max())} tokens, and objective.positions "
                f"is {self.positions}: raise it, or leave longer rows out."
            ),
        )
        rho = at_least_float32(policy.token) - at_least_float32(frozen.token)
        if weight is not None:
            # As in `logratios`: a masked token's gradient is its weight times 0.
            rho = rho * weight.masked_fill(~policy.mask, 0.0)
        rho = rho.masked_fill(~policy.mask, 0.0)[:, : self.positions]
        return pad(rho, (0, self.positions - rho.shape[1]))


def _held(excess: Tensor, sign_and_count: int) -> Tensor:
    """[B]: |count| times -log sigmoid of the excess with the count's sign, mean over places."""
    sign = 1 if sign_and_count > 0 else -1
    return abs(sign_and_count) * softplus(-sign * excess).mean(dim=1)
