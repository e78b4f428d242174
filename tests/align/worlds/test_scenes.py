"""The world `scenes`: pictures, what they show, what is false about them, its model's parts."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from align.data.images import png
from align.data.messages import Message
from align.data.pairs import PreferencePair
from align.data.row_policy import RowPolicy
from align.tokens.encoding import encode_pair
from align.worlds import scene_model, world
from align.worlds.scene_words import (
    COLOURS,
    SHAPES,
    Object,
    caption,
    false_and_said,
    place_and_object,
    sentences_of,
)
from align.worlds.scenes import (
    QUESTION,
    Scenes,
    ScenesSettings,
    array,
    picture,
    scene_in,
    split_of,
    stencil,
)

RED, BLUE = Object("red", "square"), Object("blue", "cross")
SCENE = (RED, None, None, BLUE)


def test_what_a_picture_shows_is_read_off_its_pixels_exactly() -> None:
    scenes = Scenes().scenes("train", 200, seed=1)
    assert len(set(scenes)) == 200
    assert [scene_in(png(picture(scene))) for scene in scenes] == scenes
    assert {one.colour for scene in scenes for one in scene if one} == set(COLOURS)
    assert {one.shape for scene in scenes for one in scene if one} == set(SHAPES)


def test_another_picture_is_refused() -> None:
    pixels = array(SCENE)
    pixels[0, 0] = 200
    from PIL import Image

    with pytest.raises(ValueError, match="no shape of the world"):
        scene_in(png(Image.fromarray(pixels)))
    with pytest.raises(ValueError, match="28 x 28"):
        scene_in(png(Image.new("RGB", (14, 28))))


def test_shapes_differ_by_more_than_a_few_pixels() -> None:
    masks = [stencil(shape) for shape in SHAPES]
    assert min(int((a ^ b).sum()) for a in masks for b in masks if a is not b) > 20


def test_splits_are_disjoint_and_draws_belong_to_their_seed() -> None:
    world_ = Scenes()
    train, held_out = (set(world_.scenes(split, 150, seed=3)) for split in ("train", "held_out"))
    assert not train & held_out
    assert {split_of(scene) for scene in held_out} == {"held_out"}
    assert world_.scenes("train", 20, seed=3) == world_.scenes("train", 20, seed=3)
    assert world_.scenes("train", 20, seed=3) != world_.scenes("train", 20, seed=4)


@pytest.mark.parametrize(
    ("text", "false", "said"),
    [
        (caption(SCENE, "crowd"), 0, 2),
        (caption(SCENE, "annotator"), 0, 2),
        ("red square top left.", 0, 1),
        ("red disc top left. blue cross bottom right.", 1, 2),  # another shape
        ("red square top right.", 1, 1),  # another place
        ("red square top left. red square top left.", 1, 2),  # told twice
        ("red square top left. red red.", 1, 2),  # no sentence
        ("red square top left", 1, 1),  # no end
        ("", 0, 0),
    ],
)
def test_false_sentences_are_counted(text: str, false: int, said: int) -> None:
    assert false_and_said(text, SCENE) == (false, said)


def test_sentences_cover_the_text_and_say_what_they_say() -> None:
    text = caption(SCENE, "annotator")
    assert text == (
        "there is a red square in the top left. there is a blue cross in the bottom right."
    )
    assert [place_and_object(one) for one in sentences_of(text)] == [(0, RED), (3, BLUE)]
    assert " ".join(sentences_of(text)) == text


def test_the_crowd_is_as_careless_as_it_is_told_to_be() -> None:
    """Shares of 2000 captions, each within four standard errors of what the settings say."""
    world_ = Scenes(ScenesSettings(wrong=0.15, invented=0.4, annotated=0.0))
    draw = random.Random(0)
    wrong = told = invented = room = 0
    for scene in world_.scenes("train", 2000, seed=0):
        seen = dict(
            found
            for one in sentences_of(world_.crowd_caption(scene, draw))
            if (found := place_and_object(one)) is not None
        )
        told += sum(one is not None for one in scene)
        wrong += sum(one is not None and seen[i] != one for i, one in enumerate(scene))
        room += any(one is None for one in scene)
        invented += any(one is None and i in seen for i, one in enumerate(scene))
    assert wrong / told == pytest.approx(0.15, abs=4 * (0.15 * 0.85 / told) ** 0.5)
    assert invented / room == pytest.approx(0.4, abs=4 * (0.4 * 0.6 / room) ** 0.5)


def test_off_policy_pairs_prefer_the_truth_in_the_annotators_words() -> None:
    pairs = Scenes().sample_pairs(
        None, None, problems=40, samples_per_problem=1, temperature=1.0, seed=2
    )
    for pair in pairs.pairs:
        assert pair.images is not None
        scene = scene_in(pair.images[0])
        assert pair.chosen[0].content == caption(scene, "annotator")
        assert false_and_said(pair.rejected[0].content, scene)[0] > 0


def test_every_caption_is_spelled_without_unknown_words() -> None:
    processor = scene_model.processor()
    scene = Scenes().scenes("train", 1, seed=0)[0]
    row = PreferencePair(
        prompt=(Message(role="user", content=QUESTION),),
        chosen=(Message(role="assistant", content=caption(scene, "annotator")),),
        rejected=(Message(role="assistant", content=caption(scene, "crowd")),),
        images=(png(picture(scene)),),
        source="test",
        row=1,
    )
    encoded = encode_pair(row, processor, RowPolicy())
    tokenizer = processor.tokenizer
    assert tokenizer.unk_token_id not in encoded.chosen_ids + encoded.prompt_ids
    assert tokenizer.decode(encoded.chosen_ids[:-1]) == caption(scene, "annotator")
    # The base model learns from the very tokens that training and generation see.
    batch = scene_model.batch(processor, QUESTION, [caption(scene, "crowd")], [array(scene)])
    assert batch["input_ids"][0].tolist() == encoded.prompt_ids + encoded.rejected_ids
    answer = batch["labels"][0]
    assert answer[answer != scene_model.IGNORED].tolist() == encoded.rejected_ids


def test_pixels_made_all_at_once_are_the_processors() -> None:
    processor = scene_model.processor()
    scenes = Scenes().scenes("train", 5, seed=0)
    own = processor(images=[[picture(one)] for one in scenes], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(
        scene_model.pixels(processor, [array(one) for one in scenes]), own.float()
    )


def test_a_model_is_built_once_and_tells(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path))
    from transformers import AutoModelForImageTextToText, AutoProcessor

    hasty = Scenes(replace(ScenesSettings(), steps=4, batch=8, layers=1, width=32))
    folder = hasty.base_model()
    assert hasty.base_model() == folder
    model = AutoModelForImageTextToText.from_pretrained(folder)
    told = hasty.tell(model, AutoProcessor.from_pretrained(folder), 8, seed=0)
    assert told.pictures == 8
    assert told.sentences >= told.false >= told.unfinished
    assert len(told.rates) == 8
    assert told.objects == sum(
        one is not None for scene in hasty.scenes("held_out", 8, seed=0) for one in scene
    )


def test_the_world_goes_by_its_name() -> None:
    assert isinstance(world("world:scenes"), Scenes)
    assert np.array_equal(array(SCENE), array(SCENE))
