"""What log-probs and rewards say about pairs: accuracy, margins, displacement, drift of lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from align.data.messages import Text
from align.data.pairs import PreferencePair
from align.estimates import Estimate, mean, proportion
from align.judges.base import Answer, JudgeFailed, ScoreJudge
from align.types import Logps, Pair

# Log-probs are float32 sums over up to some thousand tokens: a smaller difference is rounding.
TIE_NATS = 1e-4


def preference_metrics(policy: Pair[Logps], reference: Pair[Logps]) -> dict[str, Estimate]:
    """What the policy's log-probs say about held-out pairs, relative to the reference.

    Returns:
        accuracy: share of the untied pairs in which chosen has the larger log-ratio; its
            `n` leaves the ties out. The implicit reward is beta times the log-ratio, so beta does
            not matter here.
        ties: share of all pairs whose log-ratios differ by less than TIE_NATS; all of them
            where policy and reference are one model.
        chosen_logps, rejected_logps: summed log-prob of a completion, nats.
        chosen_logratio, rejected_logratio: the same minus the reference's. A negative one on the
            chosen side is likelihood displacement.
        margin: the difference of the two, nats, without beta.
    """
    chosen, rejected = policy.chosen.total(), policy.rejected.total()
    rho_chosen = chosen - reference.chosen.total()
    rho_rejected = rejected - reference.rejected.total()
    margin = rho_chosen - rho_rejected
    means = {
        "chosen_logps": chosen,
        "rejected_logps": rejected,
        "chosen_logratio": rho_chosen,
        "rejected_logratio": rho_rejected,
        "margin": margin,
    }
    estimates = {name: mean(values, what=name) for name, values in means.items()}
    tied = int((margin.abs() < TIE_NATS).sum())
    right = int((margin >= TIE_NATS).sum())
    return {
        "accuracy": proportion(right, len(margin) - tied),
        "ties": proportion(tied, len(margin)),
        **estimates,
    }


def displacement(policy: Logps, reference: Logps) -> dict[str, Estimate]:
    """How far training moved the log-probs of the chosen completions themselves.

    Likelihood displacement (Razin et al. 2024, arXiv 2410.08847): the margin grows while chosen
    completions become less likely.

    Args:
        policy: log-probs of chosen completions.
        reference: the same under what training started from.

    Returns:
        chosen_logratio: nats per completion.
        chosen_logratio_per_token: nats per token, the mean over completions.
        displaced: share of the completions that became less likely by more than TIE_NATS.
    """
    moved = policy.total() - reference.total()
    per_token = moved / policy.lengths().clamp(min=1)
    whole = mean(moved, what="chosen_logratio")
    return {
        "chosen_logratio": whole,
        "chosen_logratio_per_token": mean(per_token, what="chosen_logratio_per_token"),
        "displaced": proportion(int((moved < -TIE_NATS).sum()), len(moved)),
    }


def length_drift(lengths: Sequence[int], reference_lengths: Sequence[int]) -> dict[str, Estimate]:
    """How the lengths of a model's completions differ from the reference's, prompt by prompt.

    Args:
        lengths: of the model's completions, in tokens or characters.
        reference_lengths: of the reference's, of the same prompts in the same order.

    Returns:
        length: mean length of the model's.
        length_difference: mean of model minus reference.
        length_logratio: mean of log(model / reference), an empty one counting as length 1; 0.69
            says twice as long.
        longer: share of the prompts of unequal lengths at which the model's is the longer.
    """
    ours = torch.as_tensor(lengths, dtype=torch.float64)
    theirs = torch.as_tensor(reference_lengths, dtype=torch.float64)
    if ours.shape != theirs.shape:
        raise ValueError(f"{len(ours)} lengths do not pair with {len(theirs)} of the reference.")
    gap = ours - theirs
    return {
        "length": mean(ours, what="length"),
        "length_difference": mean(gap, what="length_difference"),
        "length_logratio": mean(
            ours.clamp(min=1).log() - theirs.clamp(min=1).log(), what="length_logratio"
        ),
        "longer": proportion(int((gap > 0).sum()), int((gap != 0).sum())),
    }


@dataclass(frozen=True)
class RewardAccuracy:
    """How often a reward ranks chosen above rejected.

    Attributes:
        accuracy: among the pairs whose two rewards differ.
        ties: share of the scored pairs whose rewards do not.
        n_failed: pairs without a reward of one side; they enter neither.
    """

    accuracy: Estimate
    ties: Estimate
    n_failed: int

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        return {
            "accuracy": self.accuracy.to_json(),
            "ties": self.ties.to_json(),
            "n_failed": self.n_failed,
        }


def reward_accuracy(
    chosen: Sequence[float | None], rejected: Sequence[float | None], *, tie: float = 0.0
) -> RewardAccuracy:
    """Accuracy of rewards on pairs whose chosen side is known.

    Args:
        chosen: rewards of the chosen sides; None where there is none.
        rejected: of the rejected ones, in the same order.
        tie: a smaller difference is a tie.

    Raises:
        NumericalError: a reward is NaN or infinite.
    """
    gaps = [c - r for c, r in zip(chosen, rejected, strict=True) if c is not None and r is not None]
    mean(gaps, what="reward")
    tied = sum(abs(gap) <= tie for gap in gaps)
    right = sum(gap > tie for gap in gaps)
    return RewardAccuracy(
        proportion(right, len(gaps) - tied), proportion(tied, len(gaps)), len(chosen) - len(gaps)
    )


def implicit_reward_accuracy(policy: Pair[Logps], reference: Pair[Logps]) -> RewardAccuracy:
    """Of the reward beta * (log policy - log reference) that training implies, whatever beta is."""
    chosen = (policy.chosen.total() - reference.chosen.total()).tolist()
    rejected = (policy.rejected.total() - reference.rejected.total()).tolist()
    return reward_accuracy(chosen, rejected, tie=TIE_NATS)


def explicit_reward_accuracy(
    judge: ScoreJudge, splits: Mapping[str, Sequence[PreferencePair]]
) -> dict[str, RewardAccuracy]:
    """Of a reward model, split by split: "in" and "out" of its distribution, or any other names."""
    found: dict[str, RewardAccuracy] = {}
    for split, pairs in splits.items():
        chosen, rejected = (
            [None if isinstance(score, JudgeFailed) else score for score in judge.score(answers)]
            for answers in (
                [Answer(pair.prompt, _text(getattr(pair, side)), pair.id) for pair in pairs]
                for side in ("chosen", "rejected")
            )
        )
        found[split] = reward_accuracy(chosen, rejected)
    return found


def _text(completion: Text) -> str:
    return completion if isinstance(completion, str) else completion[-1].content
