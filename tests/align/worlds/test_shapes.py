"""The world of shapes: what it draws, and whether reward and guard are exact."""

import math

import numpy as np
import pytest
import torch

from align.diffusion.latents import Record, encode, load_latents
from align.diffusion.loading import load_components
from align.diffusion.settings import DiffusionModel
from align.errors import DataError
from align.worlds import shapes
from align.worlds.shapes import (
    CAPTIONS,
    MASKS,
    NOT_RED,
    RED,
    SHAPES,
    Shapes,
    ShapesEncoder,
    ShapesSettings,
    draw,
    estimate,
    reward,
    shape_quality,
    to_pixels,
)


def painted(*marks: tuple[int, int], colour=(1.0, 0.0, 0.0)) -> torch.Tensor:
    image = torch.zeros(1, 3, 8, 8)
    for y, x in marks:
        image[0, :, y, x] = torch.tensor(colour)
    return image


def test_shapes_by_hand() -> None:
    # Size 3, at the top left.
    drawn = MASKS[:, 0, :3, :3].int().tolist()
    assert drawn[0] == [[1, 1, 1], [1, 1, 1], [1, 1, 1]]
    assert drawn[1] == [[0, 1, 0], [1, 1, 1], [0, 1, 0]]
    assert drawn[2] == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    assert MASKS.shape == (3, 32, 8, 8)
    # 9 and 25 pixels, 5 and 9, 5 and 9; all 96 different.
    assert [sorted(set(MASKS[i].sum((1, 2)).tolist())) for i in range(3)] == [
        [9, 25],
        [5, 9],
        [5, 9],
    ]
    assert len({mask.numpy().tobytes() for mask in MASKS.flatten(0, 1)}) == 96


def test_reward_by_hand() -> None:
    four = [(0, 0), (0, 1), (5, 5), (7, 7)]
    assert reward(painted(*four)).item() == 1
    # 0.8 - (0.2 + 0.4) / 2 = 0.5
    assert reward(painted(*four, colour=(0.8, 0.2, 0.4))).item() == pytest.approx(0.5)
    assert reward(painted(*four, colour=(0.0, 1.0, 1.0))).item() == -1
    # Three pixels are no image; pixels under the threshold are ground and move nothing.
    assert reward(painted(*four[:3])).item() == -1
    dim = painted(*four) + painted((3, 3), (3, 4), colour=(0.0, 0.14, 0.0))
    assert reward(dim).item() == 1


def test_quality_by_hand() -> None:
    plus = [(0, 1), (1, 0), (1, 1), (1, 2), (2, 1)]
    of = SHAPES.index
    assert shape_quality(painted(*plus), torch.tensor([of("plus")])).item() == 1
    # Against a square of 9 pixels: 5 of 9.
    found = shape_quality(painted(*plus), torch.tensor([of("square")])).item()
    assert found == pytest.approx(5 / 9)
    # One pixel lost: 4 of 5; one too many elsewhere: 5 of 6.
    plus_of = torch.tensor([of("plus")])
    assert shape_quality(painted(*plus[1:]), plus_of).item() == pytest.approx(4 / 5)
    assert shape_quality(painted(*plus, (7, 7)), plus_of).item() == pytest.approx(5 / 6)
    # A red flood has the whole reward and next to no quality: 25 of 64 is the best square.
    flood = torch.zeros(1, 3, 8, 8)
    flood[:, 0] = 1
    assert reward(flood).item() == 1
    assert shape_quality(flood, torch.tensor([of("square")])).item() == pytest.approx(25 / 64)
    assert shape_quality(flood, plus_of).item() == pytest.approx(9 / 64)


def test_drawn_images_are_perfect_and_their_colour_is_the_reward() -> None:
    generator = torch.Generator().manual_seed(0)
    red = draw(300, generator, RED)
    other = draw(300, generator, NOT_RED, red.shape_of)
    for images in (red, other):
        assert shape_quality(images.pixels, images.shape_of).tolist() == [1] * 300
        wrong = (images.shape_of + 1) % 3
        assert (shape_quality(images.pixels, wrong) < 1).all()
    # Red: 0.85 - 0.25 on average; the others the same the other way round.
    assert reward(red.pixels).mean().item() == pytest.approx(0.6, abs=0.02)
    assert reward(other.pixels).mean().item() == pytest.approx(-0.6, abs=0.02)
    assert red.captions == [CAPTIONS[i] for i in red.shape_of.tolist()]
    assert set(red.captions) == set(CAPTIONS)


def test_records_go_by_their_seed() -> None:
    one, same, other = (Shapes().records(5, seed=seed) for seed in (0, 0, 1))
    for a, b in zip(one, same, strict=True):
        assert torch.equal(a[0], b[0])
        assert a[1] == b[1]
        assert torch.equal(a[2], b[2])
    assert any(not torch.equal(a[0], c[0]) for a, c in zip(one, other, strict=True))


def test_asked_shapes_are_balanced() -> None:
    asked = Shapes().asked(192, seed=0)
    assert [asked.count(i) for i in range(3)] == [64, 64, 64]
    assert asked != Shapes().asked(192, seed=1)


def test_estimate_by_hand() -> None:
    # Mean 2, standard deviation 1, so 1.96 / sqrt(3) to each side.
    found = estimate(torch.tensor([1.0, 2.0, 3.0]))
    assert found["value"] == 2
    assert found["high"] - 2 == pytest.approx(1.96 / math.sqrt(3))
    assert found["n"] == 3


def test_pixels_and_latents() -> None:
    encoder = ShapesEncoder(torch.randn(3, 32))
    pixels = draw(4, torch.Generator().manual_seed(0), RED).pixels
    latents, of_image = encoder.images(list(pixels))
    assert of_image == {}
    assert latents.min() == -1
    torch.testing.assert_close(latents.max(), 2 * pixels.max() - 1)
    torch.testing.assert_close(to_pixels(latents), pixels, atol=1 / 255, rtol=0)
    pictures = encoder.pictures(latents)
    assert pictures.shape == (4, 8, 8, 3)
    assert pictures.dtype == np.uint8
    assert to_pixels(torch.tensor([-3.0, 3.0])).tolist() == [0, 1]
    with pytest.raises(DataError, match="a circle"):
        encoder.captions(["a circle"])


def test_a_base_model_is_built_once_and_loads(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path))
    world = Shapes(ShapesSettings(channels=(8, 8), images=16, steps=2, batch=4, times=20))
    folder = world.base_model()
    before = (folder / "captions.safetensors").stat().st_mtime_ns
    assert world.base_model() == folder
    assert (folder / "captions.safetensors").stat().st_mtime_ns == before
    monkeypatch.setattr(shapes.Shapes, "base_model", lambda _: folder)
    components = load_components(DiffusionModel(model_name_or_path="world:shapes"))
    given = components.edges.captions(["a plus", "a square"])
    z = torch.randn(2, 3, 8, 8)
    t = torch.tensor([0, 19])
    with torch.no_grad():
        assert components.network(z, t, **given).sample.shape == z.shape
    assert not torch.allclose(*given["encoder_hidden_states"])
    made = tmp_path / "latents"
    made.mkdir()
    rows = [Record(*row) for row in world.records(7, seed=0)]
    encode(rows, components.edges, made, batch=3, dtype="float32")
    data = load_latents(made)
    assert len(data) == 7
    torch.testing.assert_close(data.batch([4]).chosen[0], rows[4].image * 2 - 1)
    torch.testing.assert_close(data.batch([4]).rejected[0], rows[4].rejected * 2 - 1)
    assert data.caption(4) == rows[4].caption
    wanted = components.edges.captions([rows[4].caption])["encoder_hidden_states"]
    assert torch.equal(data.conditions([4])["encoder_hidden_states"], wanted)
