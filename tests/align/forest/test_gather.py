"""Sums over a value's readers are the gradient of indexing, in the same order each time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from align.forest.chains import GatheredChains
from align.forest.gather import Readers, gathered
from align.forest.radix import grow

# How often each value is read: all sizes of groups, those that are filled up included.
COUNTS = st.lists(st.integers(1, 20), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(counts=COUNTS, seed=st.integers(0, 1000))
def test_the_gradient_of_indexing(counts: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    places = np.repeat(np.arange(len(counts)), counts)
    rng.shuffle(places)
    readers = Readers.of(places, len(counts))
    source = torch.Generator().manual_seed(seed)
    values = torch.randn(len(counts), 2, 3, generator=source).double().requires_grad_()
    upstream = torch.randn(len(places), 2, 3, generator=source).double()
    at = torch.from_numpy(places)
    found = gathered(values, at, readers)
    assert torch.equal(found, values[at])
    (gradient,) = torch.autograd.grad(found, values, upstream)
    (expected,) = torch.autograd.grad(values[at], values, upstream)
    assert torch.allclose(gradient, expected, atol=1e-12, rtol=0)


def test_by_hand() -> None:
    """Value 0 is read by one slot, 1 by five (filled up to eight), 2 by two."""
    readers = Readers.of(np.array([1, 2, 1, 1, 0, 2, 1, 1]), 3)
    assert readers.groups == ((1, 1, False), (1, 2, False), (1, 8, True))
    assert readers.place.tolist() == [0, 2, 1]
    assert readers.slots.tolist() == [4, 1, 5, 0, 2, 3, 6, 7, 0, 0, 0]
    assert readers.real.tolist() == [True] * 8 + [False] * 3
    sums = readers.summed(torch.tensor([1.0, 2, 4, 8, 16, 32, 64, 128])[:, None])
    # 1 + 4 + 8 + 64 + 128, and 2 + 32.
    assert sums[:, 0].tolist() == [16, 205, 34]


def test_a_sum_in_16_bits_is_rounded_once() -> None:
    """256 + 1 is 256 in bfloat16, so adding one at a time would stay there: 256 + 8 x 1 = 264."""
    readers = Readers.of(np.zeros(9, np.int64), 1)
    slots = torch.tensor([256.0, *[1.0] * 8], dtype=torch.bfloat16)[:, None]
    assert readers.summed(slots).item() == 264


def test_readers_of_a_forest_are_those_of_its_gather() -> None:
    rows = [[1, 2, 3], [1, 2, 4, 5, 6], [1, 2, 4, 7], [9]]
    forest = grow([np.array(row, np.int32) for row in rows], shortest_shared=1)
    chains = GatheredChains.of(forest)
    upstream = torch.arange(1.0, len(chains.gather) + 1)[:, None]
    expected = torch.zeros(len(forest.ids), 1).index_add_(0, chains.gather, upstream)
    assert torch.equal(chains.readers.summed(upstream), expected)
    # Laid out once: another device gets the same groups.
    assert chains.to("meta").readers.groups == chains.readers.groups
    assert chains.to("meta").readers.slots.device.type == "meta"


def test_a_second_derivative_is_refused() -> None:
    values = torch.ones(1, 1, requires_grad=True)
    found = gathered(values, torch.zeros(2, dtype=torch.int64), Readers.of(np.zeros(2, int), 1))
    (gradient,) = torch.autograd.grad(found.square().sum(), values, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
