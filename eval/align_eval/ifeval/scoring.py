"""Verdicts on answers, and the four numbers that are published, with intervals.

Prompts are independent of each other, the instructions of one prompt are not: one answer meets or
misses them together. The interval of an instruction-level share therefore counts as many
independent instructions as the clusters are worth (design effect; Kish 1965, "Survey Sampling",
chapter 5), and is Wilson's for that number.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from align.estimates import Estimate, Z, proportion
from align.instructions import met_loosely
from align_eval.ifeval.files import Question

READINGS = ("strict", "loose")


@dataclass(frozen=True)
class Verdicts:
    """What one answer met.

    Attributes:
        question: that was answered.
        strict: per instruction, by the answer as it is.
        loose: per instruction, also without what chat models wrap around an answer.
    """

    question: Question
    strict: tuple[bool, ...]
    loose: tuple[bool, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values; which instruction is which says `instruction_id_list`."""
        return {
            "key": self.question.key,
            "instruction_id_list": [one.kind for one in self.question.instructions],
            "strict": list(self.strict),
            "loose": list(self.loose),
        }


def judged(question: Question, answer: str) -> Verdicts:
    """The verdicts on an answer; an empty one meets nothing.

    Raises:
        MachineError: an instruction needs a package that is not installed.
    """
    strict = tuple(one.met(answer) for one in question.instructions)
    loose = tuple(
        met or met_loosely(one, answer)
        for one, met in zip(question.instructions, strict, strict=True)
    )
    return Verdicts(question, strict, loose)


def scores(verdicts: Sequence[Verdicts]) -> dict[str, Estimate]:
    """`prompt_strict`, `instruction_strict`, `prompt_loose`, `instruction_loose`: shares.

    A prompt counts where every one of its instructions is met.
    """
    found: dict[str, Estimate] = {}
    for reading in READINGS:
        met: list[tuple[bool, ...]] = [getattr(one, reading) for one in verdicts]
        found[f"prompt_{reading}"] = proportion(sum(map(all, met)), len(met))
        found[f"instruction_{reading}"] = clustered_proportion(met)
    return found


def by_kind(verdicts: Sequence[Verdicts]) -> dict[str, dict[str, Estimate]]:
    """Kind -> reading -> share of its instructions that were met."""
    met: Mapping[str, list[tuple[bool, bool]]] = defaultdict(list)
    for one in verdicts:
        for instruction, *both in zip(
            one.question.instructions, one.strict, one.loose, strict=True
        ):
            met[instruction.kind].append((both[0], both[1]))
    return {
        kind: {
            reading: proportion(sum(pair[at] for pair in met[kind]), len(met[kind]))
            for at, reading in enumerate(READINGS)
        }
        for kind in sorted(met)
    }


def clustered_proportion(clusters: Sequence[Sequence[bool]]) -> Estimate:
    """Share of successes among rows that come in clusters, with a 95 % interval.

    With m_i successes of k_i rows in cluster i, n = sum k_i and p = sum m_i / n, the variance of p
    is c / (c - 1) sum (m_i - p k_i)^2 / n^2 for c clusters; divided by p (1 - p) / n it is the
    design effect, and the interval is Wilson's for n over the design effect, never more than n.
    Where every row, or none, is a success, a cluster counts as one row.
    """
    n, successes = sum(map(len, clusters)), sum(map(sum, clusters))
    if n == 0:
        return Estimate(None, None, None, 0)
    share = successes / n
    size = float(len(clusters))
    if 0 < successes < n and len(clusters) > 1:
        spread = sum((sum(one) - share * len(one)) ** 2 for one in clusters)
        variance = size / (size - 1) * spread / n**2
        size = min(float(n), share * (1 - share) / variance) if variance > 0 else float(n)
    centre = (share + Z**2 / (2 * size)) / (1 + Z**2 / size)
    half = Z / (1 + Z**2 / size) * math.sqrt(share * (1 - share) / size + Z**2 / (4 * size**2))
    low, high = min(centre - half, share), max(centre + half, share)
    return Estimate(share, max(0.0, low), min(1.0, high), n)
