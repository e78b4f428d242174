"""The table of the pipeline's README: an MLP with dropout, 600 clean pairs, 4000 with flips.

A pair is the difference of two feature vectors, better where a hidden direction says so. Flips fall
on close pairs (as a Bradley-Terry annotator makes them) or anywhere.
"""

import numpy as np
import pytest
import torch

from align_data.uncertainty.dropout import Spot, Thinning
from align_data.uncertainty.information import estimate_of
from align_data.uncertainty.select import Row, select
from align_data.uncertainty.settings import Legacy, Mu, Top

FEATURES, WIDTH, PSEUDO, PASSES = 16, 64, 4000, 10


def trained(seed):
    draw = np.random.Generator(np.random.Philox(seed))
    direction = draw.normal(size=FEATURES)
    direction /= np.linalg.norm(direction)
    clean = draw.normal(size=(600, FEATURES))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = torch.nn.Sequential(
            torch.nn.Linear(FEATURES, WIDTH), torch.nn.ReLU(),
            torch.nn.Linear(WIDTH, WIDTH), torch.nn.ReLU(),
            torch.nn.Linear(WIDTH, 1),
        )  # fmt: skip
    thinning = Thinning([Spot("1", net[1], "output"), Spot("3", net[3], "output")], 0.1, seed)
    x = torch.tensor(np.concatenate([clean, -clean]), dtype=torch.float32)
    y = (x @ torch.tensor(direction, dtype=torch.float32) > 0).float()
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for step in range(250):
        with thinning.training_step(step):
            out = net(x)[:, 0]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(out, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net, thinning, direction, draw


def planted(model, noise):
    """Rows, and whether each label is right."""
    net, thinning, direction, draw = model
    x = draw.normal(size=(PSEUDO, FEATURES))
    gap = x @ direction
    chance = 1 / (1 + np.exp(np.abs(gap) / 0.45)) if noise == "close" else np.full(PSEUDO, 0.25)
    is_flipped = draw.random(PSEUDO) < chance
    chosen_first = torch.tensor(
        x * (np.sign(gap) * np.where(is_flipped, -1, 1))[:, None], dtype=torch.float32
    )
    straight, swapped = [], []
    with torch.no_grad():
        for number in range(PASSES):
            with thinning.network(number):
                straight.append(net(chosen_first)[:, 0].double().sigmoid())
                swapped.append(net(-chosen_first)[:, 0].double().sigmoid())
    rows = []
    both = zip(torch.stack(straight, 1).tolist(), torch.stack(swapped, 1).tolist(), strict=True)
    for i, (p, q) in enumerate(both):
        estimate = estimate_of(p, q)
        rows.append(Row(str(i), str(i), abs(gap[i]), estimate.information, estimate.agrees))
    return rows, ~is_flipped


def precision(rows, right, rule):
    choices = select(rows, rule, seed=0)
    return right[[choice.bucket is not None for choice in choices]].mean()


@pytest.fixture(scope="module")
def model():
    return trained(seed=0)


@pytest.mark.parametrize("noise", ["close", "uniform"])
def test_agreement_finds_the_flips_and_low_information_the_rest(model, noise):
    rows, right = planted(model, noise)
    base = right.mean()
    assert 0.7 < base < 0.82
    agreed = precision(rows, right, Top(keep=1.0))
    lowest = precision(rows, right, Top(keep=0.5))
    assert agreed >= base + 0.15
    assert lowest >= 0.98
    assert lowest >= agreed
    order = np.argsort([row.information for row in rows])
    agrees = np.array([row.agrees for row in rows])
    highest = [i for i in order[::-1] if agrees[i]][: int(agrees.sum()) // 2]
    assert lowest > right[highest].mean()
    # mu = 1 is nearly uniform: B is small, so 1 - B is near 1.
    assert precision(rows, right, Mu(mu=1)) == pytest.approx(agreed, abs=0.012)
    # The published mixture brings the flips of its far pairs back.
    assert base < precision(rows, right, Legacy()) < agreed


def test_information_alone_does_not_see_flips_that_fall_anywhere(model):
    rows, right = planted(model, "uniform")
    order = np.argsort([row.information for row in rows])
    assert abs(right[order[: PSEUDO // 2]].mean() - right.mean()) < 0.02
    assert abs(precision(rows, right, Mu(agreement="ignored")) - right.mean()) < 0.02
