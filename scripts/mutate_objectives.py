"""Plants faults in copies of the objectives, one at a time, and sees whether a test notices.

    python scripts/mutate_objectives.py            # all of them
    python scripts/mutate_objectives.py copg spo   # those in these files
    python scripts/mutate_objectives.py groups/dapo

Every fault is an exact text of a file and what stands in its place, planted in a copy of the tree
in a temporary folder. Only the fast tests of this objective run there, its own file first. Exit
code 1: a fault survived, its text is no longer in the file, or it broke more than a formula (the
tests could not even be collected).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OBJECTIVES = Path("align/objectives")
TESTS = Path("tests/align/objectives")
GROUP_TESTS = TESTS / "groups"
EVERY = {TESTS: "test_every_objective.py", GROUP_TESTS: "test_every_group_objective.py"}
AT_ONCE = 2
SECONDS = 120.0  # of one fault's tests, at most


@dataclass(frozen=True)
class Mutation:
    """`old`, which stands exactly once in align/objectives/`file`.py, becomes `new`.

    `tested` is the objective whose tests run, where the file is not one itself.
    """

    name: str
    file: str
    old: str
    new: str
    tested: str = ""

    @property
    def objective(self) -> str:
        return self.tested or Path(self.file).name


@dataclass(frozen=True)
class Outcome:
    """`killed`: by a test that failed, whose name is `by`; else `by` is what happened instead."""

    mutation: Mutation
    killed: bool
    by: str


MUTATIONS = (
    # DPO and its kin
    Mutation("sign of the margin", "dpo", "softplus(-margin) +", "softplus(margin) +"),
    Mutation(
        "missing beta",
        "dpo",
        "margin = self.beta * (chosen - rejected)",
        "margin = chosen - rejected",
    ),
    Mutation("mean for a sum", "dpo", "if self.length_normalised", "if True"),
    Mutation(
        "both sides by one length",
        "dpo",
        "rejected / inputs.policy.rejected.lengths()",
        "rejected / inputs.policy.chosen.lengths()",
    ),
    Mutation("alpha without a reader let in", "dpo", "self.alpha != 0.5", "self.alpha < 0"),
    Mutation("JS without its half", "divergences", "softplus(-rho)", "2 * softplus(-rho)", "dpo"),
    Mutation("forward KL's sign", "divergences", '"forward_kl": -1.0', '"forward_kl": 1.0', "dpo"),
    Mutation("alpha's power", "divergences", "alpha - 1}", "alpha}", "dpo"),
    Mutation("no division by the power", "divergences", ".expm1() / power", ".expm1()", "dpo"),
    Mutation(
        "exponential that overflows", "divergences", ".clamp(max=LARGEST_EXPONENT)", "", "dpo"
    ),
    Mutation("soft label unused", "dpo", "if inputs.preference is None", "if True"),
    Mutation("token weights unused", "dpo", ", inputs.token_weight)", ")"),
    Mutation(
        "swapped roles of the labels",
        "cdpo",
        "(1 - eps) * softplus(-margin) + eps * softplus(margin)",
        "eps * softplus(-margin) + (1 - eps) * softplus(margin)",
    ),
    Mutation(
        "rdpo adds as cdpo does", "rdpo", "softplus(-margin) - eps", "softplus(-margin) + eps"
    ),
    Mutation("rdpo's normaliser", "rdpo", "(1 - 2 * eps)", "(1 - eps)"),
    Mutation("wrong target constant", "ipo", "(p - 0.5) / self.tau", "p / self.tau"),
    Mutation("mean for a sum", "ipo", "if self.length_normalised", "if True"),
    Mutation(
        "both sides by one length",
        "ipo",
        "rejected / inputs.policy.rejected.lengths()",
        "rejected / inputs.policy.chosen.lengths()",
    ),
    Mutation(
        "missing beta of the likelihood", "rpo", "-self.beta * chosen.total()", "-chosen.total()"
    ),
    Mutation(
        "sum for a mean",
        "rpo",
        'if self.form == "cumulative" else -chosen.average()',
        'if self.form == "cumulative" else -chosen.total()',
    ),
    Mutation("likelihood pushed down", "rpo", "dpo.loss + self.eta", "dpo.loss - self.eta"),
    # TGDPO
    Mutation(
        "rejected weighed like chosen",
        "tgdpo",
        "1 - step * _token_logratio",
        "1 + step * _token_logratio",
    ),
    Mutation("missing beta in the weights", "tgdpo", "self.alpha * self.beta", "self.alpha"),
    Mutation("guide unused", "tgdpo", "reference, weight)", "reference)"),
    Mutation(
        "weights from guide against itself",
        "tgdpo",
        "at_least_float32(guide.token) - at_least_float32(reference.token)",
        "at_least_float32(reference.token) - at_least_float32(guide.token)",
    ),
    Mutation("padding counted", "tgdpo", "((weight <= 0) & logps.mask)", "(weight <= 0)"),
    Mutation("zero counted as positive", "tgdpo", "(weight <= 0)", "(weight < 0)"),
    Mutation("warns every time", "tgdpo", "@cache\n", ""),
    # CoPG, REBEL
    Mutation("missing half", "copg", "self.beta / 2 * h**2", "self.beta * h**2"),
    Mutation("maximised", "copg", "- gain * h", "+ gain * h"),
    Mutation(
        "one reward for a difference", "copg", "score.chosen - score.rejected", "score.chosen"
    ),
    Mutation("step unused", "rebel", "self.eta * (score", "(score"),
    Mutation("target's sign", "rebel", "d.rejected - target", "d.rejected + target"),
    Mutation("the paper's scale", "rebel", "- target) ** 2", "- target) ** 2 / self.eta**2"),
    # P3O
    Mutation("clip on the wrong side", "p3o", "torch.minimum(", "torch.maximum("),
    Mutation("no clip", "p3o", "x.clamp(x0 - self.clip, x0 + self.clip)", "x"),
    Mutation(
        "missing half of the joint form",
        "p3o",
        "advantage * joint / 2, x, x0",
        "advantage * joint, x, x0",
    ),
    Mutation("undetached ratio", "p3o", "advantage * q2.detach()", "advantage * q2"),
    Mutation("sides' advantages alike", "p3o", "(-advantage * q1", "(advantage * q1"),
    Mutation("KL's sign", "p3o", "- self.kl_beta *", "+ self.kl_beta *"),
    Mutation(
        "KL of the policy",
        "p3o",
        "logratios(previous, inputs.reference)",
        "logratios(inputs.policy, inputs.reference)",
    ),
    Mutation("ratio of one side", "p3o", "d.chosen + d.rejected)", "d.chosen)"),
    Mutation("ratio without a cap", "p3o", ".clamp(max=LARGEST_LOG_RATIO)", ""),
    Mutation(
        "gradient lost at the cap",
        "p3o",
        "d.detach().clamp(max=LARGEST_LOG_RATIO).exp() * (d - d.detach()).exp()",
        "d.clamp(max=LARGEST_LOG_RATIO).exp()",
    ),
    # INPO, Nash-MP, SPO
    Mutation(
        "swapped roles",
        "inpo",
        "weighted_sum(share, rho, 1 - share, d)",
        "weighted_sum(share, d, 1 - share, rho)",
    ),
    Mutation("weight upside down", "inpo", "self.tau / self.eta\n", "1 - self.tau / self.eta\n"),
    Mutation("target without 1/eta", "inpo", "(p - 0.5) / self.eta", "(p - 0.5)"),
    Mutation("label unused", "inpo", "if inputs.preference is None", "if True"),
    Mutation(
        "tau above eta let in", "inpo", "if self.tau > self.eta", "if self.tau > 2 * self.eta"
    ),
    Mutation("missing beta", "nash_mp", "weighted_sum(self.beta, rho", "weighted_sum(1.0, rho"),
    Mutation("eta for 1/eta", "nash_mp", "1 / self.eta, a)", "self.eta, a)"),
    Mutation("wrong target constant", "nash_mp", "- (p - 0.5)) ** 2", "- p) ** 2"),
    Mutation(
        "anchor is the reference",
        "nash_mp",
        "a = logratios(inputs.policy, inputs.anchor)",
        "a = rho",
    ),
    Mutation(
        "needs a reference it does not read",
        "spo",
        "if self.tau > 0 else set()",
        "if self.tau >= 0 else set()",
    ),
    Mutation(
        "swapped roles",
        "spo",
        "weighted_sum(share, rho, 1 - share, g)",
        "weighted_sum(share, g, 1 - share, rho)",
    ),
    Mutation("eta divides", "spo", "self.eta * (win_rate", "1 / self.eta * (win_rate"),
    Mutation(
        "rewards let in", "spo", "scores_are_win_rates = True", "scores_are_win_rates = False"
    ),
    # APO, SPPO
    Mutation("momentum's sign", "apo", "-self.momentum, step", "self.momentum, step"),
    Mutation(
        "momentum off the wrong policy",
        "apo",
        "logratios(present(inputs.previous), inputs.earlier)",
        "logratios(inputs.policy, inputs.earlier)",
    ),
    Mutation(
        "swapped roles",
        "apo",
        "logratios(inputs.policy, inputs.previous)",
        "logratios(inputs.policy, inputs.earlier)",
    ),
    Mutation(
        "missing beta of one label",
        "apo",
        "(1 - p) * softplus(self.beta * h)",
        "(1 - p) * softplus(h)",
    ),
    Mutation(
        "target times beta",
        "apo",
        "win_rate.rejected) / self.beta",
        "win_rate.rejected) * self.beta",
    ),
    Mutation("half of the inner sppo", "apo", "loss = (h - (", "loss = 0.5 * (h - ("),
    Mutation(
        "missing half", "sppo", "0.5 * (chosen**2 + rejected**2)", "(chosen**2 + rejected**2)"
    ),
    Mutation(
        "wrong target constant", "sppo", "(win_rate.rejected - 0.5)", "(win_rate.rejected - 1.0)"
    ),
    # The losses of other libraries
    Mutation("sign of the margin", "hinge", "1 - self.beta", "1 + self.beta"),
    Mutation("squared hinge", "hinge", ".relu()", ".relu() ** 2"),
    Mutation("sides mixed up", "slic", "- chosen + rejected", "+ chosen - rejected"),
    Mutation("likelihood pushed down", "slic", "- self.nll_weight", "+ self.nll_weight"),
    Mutation("the other direction of the KL", "exo", "torch.sigmoid(margin) * wins", "wins"),
    Mutation("target swapped", "exo", "math.log1p(-eps)", "math.log(eps)"),
    Mutation("whole for a half", "nca", "0.5 * softplus(chosen)", "softplus(chosen)"),
    Mutation("rejected pushed up", "nca", "0.5 * softplus(rejected)", "0.5 * softplus(-rejected)"),
    Mutation(
        "chosen pushed down", "anchored_zero", "torch.sigmoid(-chosen)", "torch.sigmoid(chosen)"
    ),
    Mutation(
        "chosen pushed up", "anchored_down", "torch.sigmoid(chosen)", "torch.sigmoid(-chosen)"
    ),
    Mutation("blend the wrong way", "discopop", "sigmoid(-margin / self.tau)", "sigmoid(margin)"),
    Mutation("no exponential", "discopop", "logistic + exponential", "logistic"),
    Mutation("sum for an average", "simpo", "policy.chosen.average()", "policy.chosen.total()"),
    Mutation("margin given for nothing", "simpo", "- self.gamma", "+ self.gamma"),
    Mutation("label unused", "simpo", "if inputs.preference is None", "if True"),
    Mutation("likelihood pushed down", "cpo", "+ self.alpha * nll", "- self.alpha * nll"),
    Mutation("average for a sum", "cpo", "policy.rejected.total()", "policy.rejected.average()"),
    Mutation("probability for odds", "orpo", "return logp - complement", "return logp"),
    Mutation("sides mixed up", "orpo", "(rejected - chosen)", "(chosen - rejected)"),
    Mutation("certainty is infinite", "orpo", "logp.clamp(max=LARGEST_AVERAGE)", "logp"),
    Mutation("the power's sign", "alphapo", "(-self.alpha * average)", "(self.alpha * average)"),
    Mutation("margin given for nothing", "alphapo", "self.gamma - (", "-self.gamma - ("),
    Mutation("charged for a rise", "dpop", "(-rho.chosen).relu()", "rho.chosen.relu()"),
    Mutation("charge outside beta", "dpop", "self.penalty * fallen)", "fallen)"),
    Mutation("no log part", "chipo", ".exp() + rho", ".exp()"),
    Mutation("no clip", "chipo", ".clamp(-self.clip, self.clip)", ""),
    Mutation("whole for a half", "cal_dpo", "0.5 * calibration", "calibration"),
    Mutation("target's sign", "cal_dpo", "rho.rejected + target", "rho.rejected - target"),
    Mutation(
        "one side's weight",
        "wpo",
        "weight.chosen * weight.rejected * dpo.loss",
        "weight.chosen * dpo.loss",
    ),
    Mutation("gradient through a weight", "wpo", "logps.token.detach()", "logps.token"),
    Mutation("collision added", "wpo", "token - at_least", "token + at_least"),
    Mutation("never aligned", "wpo", 'if alignment == "sampled":', "if False:"),
    Mutation("every term weighed", "sum", 'if part.pair_weight == "one" else', "if False else"),
    Mutation(
        "divergence's sign",
        "tdpo",
        "(far.rejected - still.chosen)",
        "(still.chosen - far.rejected)",
    ),
    Mutation("no gradient stopped", "tdpo", "detached(far.chosen, far.rejected)", "far"),
    Mutation(
        "flipped pair as it stands",
        "tdpo",
        "still.rejected - far.chosen",
        "far.rejected - still.chosen",
    ),
    Mutation("alpha of tdpo2 unused", "tdpo", '1.0 if self.form == "tdpo1" else self.alpha', "1.0"),
    Mutation("missing beta", "tdpo", "margin = self.beta * (gap", "margin = 1.0 * (gap"),
    Mutation("the longer length", "ld_dpo", "torch.minimum(", "torch.maximum("),
    Mutation("places count padding", "ld_dpo", "logps.mask.cumsum", "(logps.mask | True).cumsum"),
    Mutation("offset's sign", "odpo", "softplus(offset - margin)", "softplus(-offset - margin)"),
    Mutation("no logarithm", "odpo", "return difference.log()", "return difference"),
    Mutation("wrong order let in", "odpo", "bad = difference <= 0", "bad = difference < -1e9"),
    Mutation("step unused", "refuel", "REBEL(eta=self.eta)", "REBEL()"),
    Mutation("rejected too", "chosen_nll", "loss=-chosen,", "loss=-chosen - rejected,"),
    Mutation("sum for an average", "chosen_nll", "if self.length_normalised", "if False"),
    Mutation("weight unused", "sum", "weight * term for", "term for"),
    Mutation(
        "columns handed to every part", "sum", "_restricted(inputs, part.objective)", "inputs"
    ),
    Mutation("names counted from 0", "sum", ".count(name) + 1", ".count(name)"),
    # What looks at the whole step
    Mutation(
        "partner of its own pair",
        "aot",
        "partners(measured[:, 0], measured[:, 1])[:, None]",
        "measured[:, 1:]",
    ),
    Mutation("gap's sign", "aot", "softplus(-gap) + eps", "softplus(gap) + eps"),
    Mutation("smoothing unused", "aot", "eps, rho = self.label_smoothing", "eps, rho = 0.0"),
    Mutation("half of the gradient", "aot_unpaired", "both - both.detach() / 2", "both / 2"),
    Mutation("twice the value", "aot_unpaired", "both - both.detach() / 2", "both"),
    Mutation("sides of one pair", "aot_unpaired", "partners(chosen, rejected), ", "rejected, "),
    Mutation("rejected's partner upside down", "aot_unpaired", "of_rejected - rho", "rho"),
    Mutation("shift's sign", "bco", "rewards.chosen - delta", "rewards.chosen + delta"),
    Mutation("mean of the step alone", "bco", 'carried.get("total", 0.0) + ', ""),
    Mutation("pairs counted for rewards", "bco", "measured.numel()", "len(measured)"),
    Mutation("shift where none is asked", "bco", 'self.shift == "running_mean"', "True"),
    Mutation("gap above zero", "beta_dpo", '(gap - carried.get("mean", 0.0))', "gap"),
    Mutation("no floor", "beta_dpo", "max(LEAST_BETA, self.beta", "max(-9.0, self.beta"),
    Mutation("kept pairs weigh 1", "beta_dpo", "= len(gap) / len(kept)", "= 1.0"),
    Mutation("beta of all pairs", "beta_dpo", "float(gap[kept].mean())", "float(gap.mean())"),
    Mutation("unusual gaps are kept", "beta_dpo", "(-0.5 * far**2", "(0.5 * far**2"),
    Mutation("a draw without weights", "beta_dpo", "-0.5 * far**2", "0 * far"),
    Mutation("the same draw in each step", "beta_dpo", 'int(ahead["steps"])', "1"),
    Mutation("the past counted whole", "beta_dpo", "self.momentum * average", "average"),
    Mutation("an evaluation leaves pairs out", "beta_dpo", "torch.ones_like(gap)", "0 * gap"),
    Mutation(
        "ranks unsorted", "coupled", "second.sort(stable=True).values", "second", "aot_unpaired"
    ),
    Mutation("a coupling keeps its gradient", "coupled", "coupling.detach()", "coupling", "bco"),
    Mutation("a part is given another's", "sum", "coupling=shares.get(label)", "coupling=None"),
    # Over groups of completions
    Mutation(
        "leave-one-out is the group's mean",
        "groups/advantages",
        "(count / (count - 1).clamp(min=1))[group]",
        "1.0",
        "group_relative",
    ),
    Mutation(
        "deviation of a population",
        "groups/advantages",
        "count - 1 if self.scale",
        "count if self.scale",
        "group_relative",
    ),
    Mutation(
        "scaled where it must not be",
        "groups/advantages",
        'if self.scale != "none":',
        "if True:",
        "group_relative",
    ),
    Mutation(
        "equal scores compared",
        "groups/advantages",
        "torch.where(compares, advantage, 0.0)",
        "advantage",
        "group_relative",
    ),
    Mutation(
        "KL's sign",
        "groups/advantages",
        "gain - self.kl_beta * kl",
        "gain + self.kl_beta * kl",
        "group_relative",
    ),
    Mutation(
        "KL to the sampler",
        "groups/advantages",
        "k3(inputs.policy, present(inputs.reference))",
        "k3(inputs.policy, present(inputs.previous))",
        "group_relative",
    ),
    Mutation(
        "loss to be maximised",
        "groups/advantages",
        "loss=-token_sum",
        "loss=token_sum",
        "group_relative",
    ),
    Mutation(
        "tokens of each completion",
        "groups/token_mean",
        "measured.mean(dim=0, keepdim=True).expand(len(measured), 1)",
        "measured",
        "dapo",
    ),
    Mutation(
        "worst of both for the best",
        "groups/tokens",
        "torch.minimum(kept",
        "torch.maximum(kept",
        "group_relative",
    ),
    Mutation(
        "largest ratio unused",
        "groups/tokens",
        "u if largest is None else u.clamp(max=largest)",
        "u",
        "dapo",
    ),
    Mutation(
        "the clip's sides mixed up",
        "groups/tokens",
        "u.clamp(1 - low, 1 + high) * advantage",
        "u.clamp(1 - high, 1 + low) * advantage",
        "dapo",
    ),
    Mutation(
        "stopped counted on the wrong side",
        "groups/tokens",
        "(advantage * (u - u.clamp(1 - low, 1 + high)) > 0)",
        "(advantage * (u - u.clamp(1 - low, 1 + high)) < 0)",
        "dapo",
    ),
    Mutation(
        "sum for a mean",
        "groups/tokens",
        "token_sum(logratio, policy.mask) / policy.lengths()",
        "token_sum(logratio, policy.mask)",
        "gspo",
    ),
    Mutation(
        "upper clip unused",
        "groups/group_relative",
        "self.clip if self.clip_high is None else self.clip_high",
        "self.clip",
    ),
    Mutation("largest ratio unused", "groups/group_relative", ", self.largest_ratio)", ")"),
    Mutation(
        "mean of each completion",
        "groups/dapo",
        "self.mean_tokens(inputs)",
        "inputs.policy.lengths()",
    ),
    Mutation(
        "one clip for both sides",
        "groups/dapo",
        "clipped_gain(value, u, self.clip_low, self.clip_high",
        "clipped_gain(value, u, self.clip_low, self.clip_low",
    ),
    Mutation("largest ratio unused", "groups/dapo", ", self.largest_ratio)", ")"),
    Mutation(
        "the ratio keeps its gradient",
        "groups/cispo",
        "present(inputs.previous))).detach()",
        "present(inputs.previous)))",
    ),
    Mutation(
        "nothing is cut", "groups/cispo", "u.clamp(max=self.largest_ratio)", "u.clamp(max=1e9)"
    ),
    Mutation("cut from below", "groups/cispo", "u.clamp(max=self", "u.clamp(min=self"),
    Mutation(
        "mean of each completion",
        "groups/cispo",
        "self.mean_tokens(inputs)",
        "inputs.policy.lengths()",
    ),
    Mutation("advantage unused", "groups/cispo", "cut * advantages.value[:, None] *", "cut *"),
    Mutation("temperatures mixed up", "groups/sapo", "(value > 0).long()", "(value < 0).long()"),
    Mutation("gate not centred", "groups/sapo", "tau * (u - 1)", "tau * u"),
    Mutation("gate not normalised", "groups/sapo", "4 / tau * torch", "4 * torch"),
    Mutation(
        "tokens of the step",
        "groups/sapo",
        "inputs.policy.lengths(), advantages",
        "1.0, advantages",
    ),
    Mutation(
        "one clip for both sides",
        "groups/gspo",
        "self.clip_low, self.clip_high, self.largest_ratio",
        "self.clip_low, self.clip_low, self.largest_ratio",
    ),
    Mutation(
        "times length",
        "groups/gspo",
        "policy.lengths(),\n            advantages",
        "1.0,\n            advantages",
    ),
    Mutation("largest ratio unused", "groups/gspo", ", self.largest_ratio)", ")"),
    Mutation(
        "no length",
        "groups/luspo",
        "expand_as(policy.mask), 1.0, adv",
        "expand_as(policy.mask), policy.lengths(), adv",
    ),
    Mutation(
        "the clip's sides mixed up",
        "groups/luspo",
        "self.clip_low, self.clip_high, self.largest_ratio",
        "self.clip_high, self.clip_low, self.largest_ratio",
    ),
    Mutation(
        "clip after the mean",
        "groups/gmpo",
        "ratio(mean_logratio(kept, policy))",
        "ratio(mean_logratio(logratio, policy).clamp(-self.clip_low, self.clip_high))",
    ),
    Mutation(
        "sides mixed up",
        "groups/gmpo",
        "advantages.value[:, None] > 0",
        "advantages.value[:, None] < 0",
    ),
    Mutation(
        "both sides cut",
        "groups/gmpo",
        "logratio.clamp(max=self.clip_high)",
        "logratio.clamp(-self.clip_low, self.clip_high)",
    ),
    Mutation(
        "the weight keeps its gradient",
        "groups/vespo",
        "present(inputs.previous)).detach()",
        "present(inputs.previous))",
    ),
    Mutation("sides mixed up", "groups/vespo", "(advantage >= 0).long()", "(advantage < 0).long()"),
    Mutation("not 1 on-policy", "groups/vespo", "rate * (1 - log_w.exp())", "rate * -log_w.exp()"),
    Mutation(
        "far ratios uncut", "groups/vespo", ".clamp(LEAST_LOG_RATIO, LARGEST_LOG_RATIO)\n", "\n"
    ),
    Mutation(
        "far tokens uncut",
        "groups/vespo",
        "logratio.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)",
        "logratio",
    ),
    Mutation(
        "mean of each completion",
        "groups/vespo",
        "self.mean_tokens(inputs)",
        "inputs.policy.lengths()",
    ),
    Mutation(
        "the own return in the baseline",
        "groups/rloo",
        "[inputs.group] - returns",
        "[inputs.group]",
    ),
    Mutation(
        "KL's sign", "groups/rloo", "returns - self.kl_beta * kl", "returns + self.kl_beta * kl"
    ),
    Mutation(
        "one alone is compared",
        "groups/rloo",
        "torch.where(count > 1, returns",
        "torch.where(count > 0, returns",
    ),
    Mutation(
        "one clip for both sides",
        "groups/rloo",
        "clipped_gain(advantage, w, self.clip_low, self.clip_high)",
        "clipped_gain(advantage, w, self.clip_low, self.clip_low)",
    ),
    Mutation(
        "KL of the policy as it is",
        "groups/rloo",
        "token_logratio(previous, present(inputs.reference))",
        "token_logratio(inputs.policy, present(inputs.reference)).detach()",
    ),
    Mutation(
        "reward so far for reward to go",
        "groups/reinforce_pp",
        "reward.flip(1).cumsum(dim=1).flip(1)",
        "reward.cumsum(dim=1)",
    ),
    Mutation(
        "KL's sign",
        "groups/reinforce_pp",
        "reward - self.kl_beta * kl",
        "reward + self.kl_beta * kl",
    ),
    Mutation(
        "mean over completions",
        "groups/reinforce_pp",
        "(lengths * means).sum() / lengths.sum()",
        "means.mean()",
    ),
    Mutation(
        "spread within completions alone",
        "groups/reinforce_pp",
        "squares + lengths * (means - mean) ** 2",
        "squares",
    ),
    Mutation(
        "not centred",
        "groups/reinforce_pp",
        "self.returns(inputs) - mean[:, None]",
        "self.returns(inputs)",
    ),
    Mutation(
        "baseline unused", "groups/reinforce_pp", 'if self.baseline == "group_mean":', "if False:"
    ),
    Mutation(
        "mean of each completion",
        "groups/reinforce_pp",
        "token_sum(gain, mask) / mean_tokens",
        "token_sum(gain, mask) / lengths",
    ),
    # What they share
    Mutation(
        "a role keeps its gradient", "checks", "logps.chosen.detached()", "logps.chosen", "dpo"
    ),
    Mutation("a column keeps its gradient", "checks", "values.detach().to(", "values.to(", "copg"),
    Mutation(
        "a masked weight counts", "base", "weight.masked_fill(~policy.mask, 0.0)", "weight", "tgdpo"
    ),
    Mutation(
        "reward keeps its gradient",
        "base",
        "Pair(chosen.detach(), rejected.detach())",
        "Pair(chosen, rejected)",
        "dpo",
    ),
    Mutation("sides mixed up", "base", "b * second.rejected", "b * second.chosen", "inpo"),
)


def plant(tree: Path, mutation: Mutation) -> bool:
    """Writes the fault into a copy; False where its text does not stand there exactly once."""
    path = tree / OBJECTIVES / f"{mutation.file}.py"
    text = path.read_text(encoding="utf-8")
    if text.count(mutation.old) != 1:
        return False
    path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    return True


def copy_of_the_tree(folder: Path) -> Path:
    tree = folder / "tree"
    without_caches = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(ROOT / "align", tree / "align", ignore=without_caches)
    shutil.copytree(ROOT / TESTS, tree / TESTS, ignore=without_caches)
    shutil.copy(ROOT / "tests" / "conftest.py", tree / "tests")
    shutil.copy(ROOT / "pyproject.toml", tree)
    return tree


def run(tree: Path, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """python in the copy: `-m` puts its folder before the installed package's."""
    settings = {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": str(tree),
    }
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=tree,
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def room_of(objective: str) -> Path:
    """Where the tests of an objective lie: over pairs, or over groups."""
    over_groups = (ROOT / GROUP_TESTS / f"test_{objective}.py").exists()
    return GROUP_TESTS if over_groups else TESTS


def tests_of(objectives: Sequence[str]) -> list[str]:
    """Arguments for pytest: each one's own file, then what every objective has to do."""
    rooms = {name: room_of(name) for name in objectives}
    own = [str(room / f"test_{name}.py") for name, room in rooms.items()]
    every = sorted({str(room / EVERY[room]) for room in rooms.values()})
    # The names of the free tests hold the objective's, those of a file that of the file.
    chosen = " or ".join(f"test_{name} or {name}" for name in objectives)
    options = ["-x", "-q", "-n0", "-p", "no:cacheprovider", "--tb=no", "-rfE"]
    return ["-m", "pytest", *options, *own, *every, "-k", chosen]


def tried(mutation: Mutation) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="mutate-") as folder:
        tree = copy_of_the_tree(Path(folder))
        if not plant(tree, mutation):
            return Outcome(mutation, killed=False, by="its text is not in the file exactly once")
        try:
            done = run(tree, tests_of([mutation.objective]))
        except subprocess.TimeoutExpired:
            return Outcome(mutation, killed=False, by=f"no verdict in {SECONDS:g} s")
    if done.returncode == 0:
        return Outcome(mutation, killed=False, by="no test failed")
    failed = re.search(r"^FAILED \S*?(\w+)\.py::(\S+)", done.stdout, flags=re.MULTILINE)
    if failed is None:
        return Outcome(
            mutation, killed=False, by=f"broken: {done.stdout[-300:]}{done.stderr[-300:]}"
        )
    return Outcome(mutation, killed=True, by=f"{failed[1]}::{failed[2]}")


def without_faults(objectives: Sequence[str]) -> str:
    """What is wrong before any fault is planted; empty if nothing is."""
    with tempfile.TemporaryDirectory(prefix="mutate-") as folder:
        tree = copy_of_the_tree(Path(folder))
        where = run(tree, ["-c", "import align.objectives; print(align.objectives.__file__)"])
        if Path(where.stdout.strip()).parent != tree / OBJECTIVES:
            return f"the copy is not what is imported: {where.stdout}{where.stderr}"
        done = run(tree, tests_of(objectives))
        return "" if done.returncode == 0 else f"tests fail without a fault:\n{done.stdout[-2000:]}"


def rows(outcomes: Sequence[Outcome]) -> Iterator[str]:
    for outcome in outcomes:
        mutation = outcome.mutation
        verdict = "killed" if outcome.killed else "SURVIVED"
        yield f"{mutation.file:21} {mutation.name:38} {verdict:9} {outcome.by}"


def main(names: Sequence[str]) -> int:
    unknown = set(names) - {mutation.file for mutation in MUTATIONS}
    if unknown:
        print(f"no mutation is in {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    mutations = [mutation for mutation in MUTATIONS if not names or mutation.file in names]
    objectives = sorted({mutation.objective for mutation in mutations})
    if problem := without_faults(objectives):
        print(problem, file=sys.stderr)
        return 1
    with ThreadPoolExecutor(AT_ONCE) as pool:
        outcomes = list(pool.map(tried, mutations))
    print("\n".join(rows(outcomes)))
    killed = sum(outcome.killed for outcome in outcomes)
    print(f"\n{killed} of {len(outcomes)} planted faults were noticed")
    return 0 if killed == len(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
