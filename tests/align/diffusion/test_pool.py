from pathlib import Path

import pytest
import torch

from align.diffusion.denoiser import DiffusersDenoiser, Sampler
from align.diffusion.pool import (
    batches_of_round,
    kept_samples,
    rows_of_round,
    sample_rows,
)
from align.diffusion.settings import DiffusionSampler
from align.errors import NumericalError
from align.worlds.unet import scheduler_from_scratch
from tests.align.diffusion.small import random_records, small_network


def test_a_draw_takes_every_record_before_it_takes_one_twice() -> None:
    places, rows = rows_of_round(5, 13, seed=0, number=1)
    assert places == list(range(13))
    assert sorted(rows[:5]) == sorted(rows[5:10]) == [0, 1, 2, 3, 4]
    assert rows_of_round(5, 13, seed=0, number=1)[1] == rows
    assert rows_of_round(5, 13, seed=0, number=2)[1] != rows


def test_processes_share_one_draw() -> None:
    whole = rows_of_round(50, 12, seed=0, number=3)
    parts = [rows_of_round(50, 12, 0, 3, process, 3) for process in range(3)]
    found = sorted((p, r) for places, rows in parts for p, r in zip(places, rows, strict=True))
    assert found == list(zip(*whole, strict=True))


def test_batches_are_whole_passes() -> None:
    order = batches_of_round(8, 3, 8, 1, 0, seed=0)
    assert order.shape == (8, 3)
    flat = order.flatten().tolist()
    assert sorted(flat[:8]) == sorted(flat[8:16]) == list(range(8))
    assert flat[:8] != flat[8:16]
    assert not torch.equal(order, batches_of_round(8, 3, 8, 1, 1, seed=0))


def sampled(rows, keys, batch, guidance=1.0, network=None):
    sampler = DiffusionSampler(steps=3, guidance_scale=guidance, batch=batch)
    denoiser = DiffusersDenoiser(
        scheduler_from_scratch(50), Sampler(steps=3, guidance_scale=guidance)
    )
    return sample_rows(
        denoiser,
        network or small_network(),
        random_records(),
        rows,
        keys,
        sampler,
        name="test",
        seed=0,
        device=torch.device("cpu"),
    )


def test_a_sample_belongs_to_its_place_and_not_to_its_batch() -> None:
    together = sampled([0, 1, 2, 3, 4], [0, 1, 2, 3, 4], batch=5)
    apart = sampled([0, 1, 2, 3, 4], [0, 1, 2, 3, 4], batch=2)
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)
    alone = sampled([3], [3], batch=1)
    torch.testing.assert_close(alone[0], together[3], atol=1e-5, rtol=1e-5)
    # The same record at another place has other noise.
    assert not torch.allclose(sampled([3], [4], batch=1)[0], together[3], atol=1e-2)


def test_guidance_moves_samples() -> None:
    assert not torch.allclose(sampled([1], [0], 1), sampled([1], [0], 1, guidance=5.0), atol=1e-3)


def test_samples_that_are_not_finite_stop_the_run() -> None:
    network = small_network()
    with torch.no_grad():
        network.conv_out.bias.fill_(float("nan"))
    with pytest.raises(NumericalError, match="2 of 2 samples"):
        sampled([0, 1], [0, 1], 2, network=network)


def test_kept_samples_are_read_again_under_their_key_only(tmp_path: Path) -> None:
    path, calls = tmp_path / "samples" / "s.safetensors", []

    def make() -> torch.Tensor:
        calls.append(1)
        return torch.full((1, 2), float(len(calls)))

    assert kept_samples(path, "a", make).tolist() == [[1, 1]]
    assert kept_samples(path, "a", make).tolist() == [[1, 1]]
    assert kept_samples(path, "b", make).tolist() == [[2, 2]]
    assert kept_samples(path, "a", make).tolist() == [[3, 3]]
    assert kept_samples(None, "a", make).tolist() == [[4, 4]]
