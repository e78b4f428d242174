"""Preference models: cross entropy against soft labels, on the difference of both orders."""

import math

import pytest
import torch
from datasets import Dataset
from torch.nn.functional import binary_cross_entropy_with_logits

from align.trainers.preference_model import cross_entropy
from tests.align.trainers.classifiers_in_code import (
    classifier,
    losses,
    scores,
    trainer_of,
    whole_pairs,
)


def test_cross_entropy_by_hand() -> None:
    # d = 0.8: log(1 + e^-0.8) = 0.37110, log(1 + e^0.8) = 1.17110
    label = torch.tensor([1.0, 0.0, 0.7, 0.5])
    found = cross_entropy(torch.full((4,), 0.8), label)
    expected = [0.37110, 1.17110, 0.7 * 0.37110 + 0.3 * 1.17110, 0.77110]
    assert found.tolist() == pytest.approx(expected, abs=1e-5)
    assert torch.allclose(
        found, binary_cross_entropy_with_logits(torch.full((4,), 0.8), label, reduction="none")
    )
    # Far from 0 it is linear and finite.
    assert cross_entropy(torch.tensor([-1e4]), torch.tensor([1.0])).item() == 1e4


def test_the_first_loss_by_hand(tiny_folder, tiny_tokenizer, tmp_path) -> None:
    rows = whole_pairs(4, preference=[1.0, 0.9, 0.5, 0.2])
    model = classifier(tiny_folder)
    differences = [
        a - b
        for a, b in zip(
            scores(model, rows["chosen_ids"]), scores(model, rows["rejected_ids"]), strict=True
        )
    ]
    by_hand = [
        q * math.log1p(math.exp(-d)) + (1 - q) * math.log1p(math.exp(d))
        for q, d in zip(rows["preference"], differences, strict=True)
    ]
    trainer = trainer_of("preference_model", model, tiny_tokenizer, rows, tmp_path, max_steps=1)
    trainer.train()
    assert losses(trainer) == [pytest.approx(sum(by_hand) / 4, abs=1e-4)]


def test_labels_of_one_are_no_labels(tiny_folder, tiny_tokenizer, tmp_path) -> None:
    found = []
    for columns in ({}, {"preference": [1.0] * 12}):
        trainer = trainer_of(
            "preference_model",
            classifier(tiny_folder),
            tiny_tokenizer,
            whole_pairs(**columns),
            tmp_path,
        )
        trainer.train()
        found.append(losses(trainer))
    assert found[0] == pytest.approx(found[1], abs=1e-5)


def rock_paper_scissors(n: int, seed: int) -> Dataset:
    """Letters 4 beats 5 beats 6 beats 4: no score can say that."""
    generator = torch.Generator().manual_seed(seed)
    winners = torch.randint(0, 3, (n,), generator=generator).tolist()
    filler = torch.randint(10, 30, (n,), generator=generator).tolist()
    pairs = [(f, 4 + w, 4 + (w + 1) % 3) for f, w in zip(filler, winners, strict=True)]
    return Dataset.from_dict(
        {
            "chosen_ids": [[1, f, a, 2, b, 3] for f, a, b in pairs],
            "rejected_ids": [[1, f, b, 2, a, 3] for f, a, b in pairs],
            "source": ["made"] * n,
            "row": list(range(1, n + 1)),
        }
    )


def test_a_circle_is_learned(tiny_folder, tiny_tokenizer, tmp_path) -> None:
    trainer = trainer_of(
        "preference_model",
        classifier(tiny_folder),
        tiny_tokenizer,
        rock_paper_scissors(192, 0),
        tmp_path,
        max_steps=50,
        per_device_train_batch_size=32,
        learning_rate=1e-2,
        logging_steps=25,
    )
    trainer.train()
    held_out = rock_paper_scissors(60, 1)
    straight, swapped = (
        torch.tensor(scores(trainer.model, held_out[side]))
        for side in ("chosen_ids", "rejected_ids")
    )
    assert float((straight > swapped).double().mean()) >= 0.95
