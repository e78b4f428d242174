"""How fast every method comes to its answer, and how exploitable it is on the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from align.report.pictures import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    SKY,
    SOFT,
    VERMILION,
    dress,
    headline,
    new_figure,
    save,
)
from tests.fidelity.laboratory import FAMILIES, Bandits, Population, bandits, uniform_law
from tests.fidelity.rounds import apo_rounds, inpo_rounds, nash_mp_rounds, spo_rounds
from tests.fidelity.solvers import (
    exploitability,
    kl,
    kl_regularised_optimum,
    normalised,
    regularised_nash,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TAU, BETA = 0.05, 0.3
STYLES = {
    "DPO": (INK, "o"),
    "rDPO, 30 % flips": (ORANGE, "v"),
    "CoPG": (PURPLE, "D"),
    "INPO": (BLUE, "s"),
    "Nash-MP": (GREEN, "^"),
    "APO, momentum 0.5": (SKY, "P"),
    "SPO, average policy": (VERMILION, "X"),
}
NASH = f"regularised Nash, tau {TAU:g}"
TITLES = {
    "bradley-terry": "A reward explains the preferences (Bradley-Terry)",
    "rock-paper-scissors": "No reward does (rock-paper-scissors)",
}
NEAREST = 1e-16  # nats; a KL below this is drawn here


def draw(path: Path, seeds: Sequence[int]) -> Path:
    """Write the figure of both families as a PNG."""
    figure = new_figure(11.0, 7.6)
    headline(figure, "Every method, driven through its shipped objective, on games solved exactly")
    grid = figure.subplots(2, 2, sharex="row", sharey="row")
    for column, family in enumerate(FAMILIES):
        world = bandits(family, seeds)
        _distances(grid[0, column], world)
        _exploitabilities(grid[1, column], world)
        grid[0, column].set_title(TITLES[family], loc="left", fontsize=10.5, fontweight="bold")
    grid[0, 0].set_ylabel("KL to its own known answer, nats", color=SOFT, fontsize=9)
    grid[1, 0].set_ylabel("exploitability", color=SOFT, fontsize=9)
    handles = [grid[0, 0].get_lines(), grid[1, 0].get_lines()]
    by_name = {line.get_label(): line for lines in handles for line in lines}
    figure.legend(
        [by_name[name] for name in (*STYLES, NASH)],
        [*STYLES, NASH],
        loc="outside lower center",
        ncols=len(STYLES) + 1,
        frameon=False,
        fontsize=8.5,
        columnspacing=1.1,
        handlelength=1.6,
    )
    return save(figure, path)


def descent(run: Population, start: Tensor) -> Iterator[Tensor]:
    """[X, A] of full-batch gradient descent in the logits, each bandit at its own safe step."""
    # The gradient divided by pi_ref (a fixed mirror) keeps rare actions from lagging; the largest
    # eigenvalue of the Hessian so scaled sets the step.
    _, hessian = run.derivatives(start)
    scale = start.exp()
    step = 1 / torch.linalg.eigvals(hessian / scale[:, :, None]).real.amax(-1, keepdim=True)
    policy = start
    while True:
        yield policy
        policy = normalised(policy - step * run.gradient(policy) / scale)


def _distances(axes: Axes, world: Bandits) -> None:
    steps = 100
    law, reference = uniform_law(world.reference), world.reference
    flipped = 2 * (0.7 * law * world.preference + 0.3 * law * world.preference.mT)
    plain = Population(
        {"name": "dpo", "beta": BETA}, law, reference=reference, preference=world.preference
    )
    robust = Population(
        {"name": "rdpo", "beta": BETA, "flip_probability": 0.3}, flipped, reference=reference
    )
    score = world.reward if world.reward is not None else world.preference.mean(-1)
    scored = Population({"name": "copg", "beta": BETA}, law, reference=reference, score=score)
    nash = regularised_nash(world.preference, reference, TAU)
    fitted = plain.minimum(reference)
    paths = {
        "DPO": (descent(plain, reference), fitted),
        "rDPO, 30 % flips": (descent(robust, reference), fitted),
        "CoPG": (descent(scored, reference), kl_regularised_optimum(reference, score, BETA)),
        "INPO": (inpo_rounds(world, TAU, lambda t: TAU * (t + 2) / 2), nash),
        "Nash-MP": (nash_mp_rounds(world, TAU, 2.0), nash),
    }
    for name, (path, answer) in paths.items():
        values = [float(kl(answer, at).median()) for at in islice(path, steps + 1)]
        # rDPO lies on DPO's line, which is the claim: markers at other steps show both.
        every = (6 if "rDPO" in name else 0, 12)
        _line(axes, name, np.arange(steps + 1), np.maximum(values, NEAREST), every)
    axes.set_yscale("log")
    axes.set_ylim(NEAREST / 3, 10)
    axes.set_xlabel("gradient steps (DPO, rDPO, CoPG) or rounds (INPO, Nash-MP)", fontsize=9)
    _dress(axes)


def _exploitabilities(axes: Axes, world: Bandits) -> None:
    rounds = 1000
    start = torch.full_like(world.reference, 1 / world.shape[1]).log()
    plain = Population(
        {"name": "dpo", "beta": BETA},
        uniform_law(world.reference),
        reference=world.reference,
        preference=world.preference,
    )
    hedge = spo_rounds(world, float(np.sqrt(8 * np.log(world.shape[1]) / rounds)), start)
    paths = {
        "DPO": (descent(plain, world.reference), rounds),
        "APO, momentum 0.5": (apo_rounds(world, 2.0, 0.5), 40),
        "INPO": (inpo_rounds(world, TAU, lambda t: TAU * (t + 2) / 2), rounds),
        "Nash-MP": (nash_mp_rounds(world, TAU, 2.0), rounds),
        "SPO, average policy": (_averages(hedge), rounds),
    }
    for name, (path, last) in paths.items():
        values = [
            float(exploitability(world.preference, at).mean()) for at in islice(path, 1, last + 1)
        ]
        _line(axes, name, np.arange(1, last + 1), values, every=(0.0, 0.13))
    nash = regularised_nash(world.preference, world.reference, TAU)
    level = float(exploitability(world.preference, nash).mean())
    axes.axhline(level, label=NASH, color=SOFT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.set_xscale("log")
    axes.set_ylim(0, 0.32)
    axes.set_xlabel("steps or rounds", fontsize=9)
    _dress(axes)


def _averages(path: Iterator[Tensor]) -> Iterator[Tensor]:
    total = None
    for count, policy in enumerate(path, start=1):
        total = policy.exp() if total is None else total + policy.exp()
        yield (total / count).log()


def _line(
    axes: Axes,
    name: str,
    x: np.ndarray,
    y: Sequence[float] | np.ndarray,
    every: tuple[float, float],
) -> None:
    colour, marker = STYLES[name]
    axes.plot(
        x,
        y,
        label=name,
        color=colour,
        marker=marker,
        markevery=every,
        markersize=4.5,
        linewidth=1.6,
    )


def _dress(axes: Axes) -> None:
    title = axes.get_title(loc="left")
    dress(axes, title)
    axes.xaxis.label.set_color(SOFT)
