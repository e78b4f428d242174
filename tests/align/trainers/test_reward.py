"""Reward models are TRL's, step by step, and resume; what they learn is what the labels say."""

import json
import math

import pytest
import torch
import trl
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback

from align.errors import DataError, NumericalError, RecipeError
from tests.align.trainers.classifiers_in_code import (
    ARGUMENTS,
    classifier,
    losses,
    scores,
    trainer_of,
    whole_pairs,
)


def test_the_first_loss_by_hand(tiny_folder, tiny_tokenizer, tmp_path) -> None:
    """-log sigmoid(r_c - r_r - margin) + 0.01 (r_c + r_r)^2, the mean over the batch."""
    rows = whole_pairs(4, margin=[0.0, 0.5, 1.0, -0.25])
    model = classifier(tiny_folder)
    chosen, rejected = scores(model, rows["chosen_ids"]), scores(model, rows["rejected_ids"])
    by_hand = [
        math.log1p(math.exp(-(c - r - m))) + 0.01 * (c + r) ** 2
        for c, r, m in zip(chosen, rejected, rows["margin"], strict=True)
    ]
    assert max(map(abs, chosen)) > 0.1, "a head of zeros would hide what the terms are"
    trainer = trainer_of(
        "reward",
        model,
        tiny_tokenizer,
        rows,
        tmp_path,
        max_steps=1,
        center_rewards_coefficient=0.01,
    )
    trainer.train()
    (logged,) = [row for row in trainer.state.log_history if "loss" in row]
    assert logged["loss"] == pytest.approx(sum(by_hand) / 4, abs=1e-5)
    margins = [c - r for c, r in zip(chosen, rejected, strict=True)]
    assert logged["rewards/margins"] == pytest.approx(sum(margins) / 4, abs=1e-5)
    assert logged["rewards/accuracies"] == sum(m > 0 for m in margins) / 4


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_same_trajectory_as_trl(adapter: bool, tiny_folder, tiny_tokenizer, tmp_path) -> None:
    rows = whole_pairs(12, margin=[0.1] * 12)
    lora = LoraConfig(r=4, target_modules=["q_proj"], lora_dropout=0.0, task_type="SEQ_CLS")
    given = {"center_rewards_coefficient": 0.05}
    ours = trainer_of(
        "reward",
        classifier(tiny_folder),
        tiny_tokenizer,
        rows,
        tmp_path / "ours",
        adapter=lora if adapter else None,
        **given,
    )
    theirs = trl.RewardTrainer(
        classifier(tiny_folder),
        args=trl.RewardConfig(str(tmp_path / "theirs"), max_length=None, **ARGUMENTS, **given),
        train_dataset=rows,
        processing_class=tiny_tokenizer,
        peft_config=lora if adapter else None,
    )
    for trainer in (ours, theirs):
        trainer.train()
    assert losses(ours) == losses(theirs)
    assert max(losses(ours)) - min(losses(ours)) > 1e-3, "nothing was learned"
    state = theirs.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in ours.model.state_dict().items())


def separable(n: int, seed: int, *, swapped: bool = False) -> Dataset:
    """Answers of three letters; each letter has a hidden worth, the higher sum is chosen."""
    generator = torch.Generator().manual_seed(seed)
    rows: dict[str, list] = {"chosen_ids": [], "rejected_ids": []}
    while len(rows["chosen_ids"]) < n:
        one, other = torch.randint(4, 12, (2, 3), generator=generator).tolist()
        if sum(one) == sum(other):
            continue
        better, worse = (one, other) if sum(one) > sum(other) else (other, one)
        first, second = (worse, better) if swapped else (better, worse)
        rows["chosen_ids"].append([1, 29, *first])
        rows["rejected_ids"].append([1, 29, *second])
    return Dataset.from_dict({**rows, "source": ["made"] * n, "row": list(range(1, n + 1))})


def learned(folder, tokenizer, out, *, swapped: bool) -> tuple[float, float]:
    """Held-out accuracy by the true worths, and their rank correlation with the scores."""
    trainer = trainer_of(
        "reward",
        classifier(folder),
        tokenizer,
        separable(256, 0, swapped=swapped),
        out,
        max_steps=60,
        per_device_train_batch_size=32,
        learning_rate=1e-2,
        logging_steps=20,
    )
    trainer.train()
    held_out = separable(200, 1)
    chosen, rejected = (
        torch.tensor(scores(trainer.model, held_out[side]))
        for side in ("chosen_ids", "rejected_ids")
    )
    worth = torch.tensor([float(sum(row[2:])) for row in held_out["chosen_ids"]])
    ranks = torch.stack([worth.argsort().argsort(), chosen.argsort().argsort()]).double()
    return float((chosen > rejected).double().mean()), float(torch.corrcoef(ranks)[0, 1])


def test_hidden_worths_are_recovered_from_pairs(tiny_folder, tiny_tokenizer, tmp_path) -> None:
    accuracy, order = learned(tiny_folder, tiny_tokenizer, tmp_path, swapped=False)
    assert accuracy >= 0.95
    assert order > 0.9


def test_swapped_labels_teach_the_opposite(tiny_folder, tiny_tokenizer, tmp_path) -> None:
    accuracy, order = learned(tiny_folder, tiny_tokenizer, tmp_path, swapped=True)
    assert accuracy <= 0.05
    assert order < -0.9


class KilledAtStep(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


CLOCKS = ("train_runtime", "train_loss")


def history(trainer) -> list[dict]:
    return [
        {k: v for k, v in row.items() if k not in CLOCKS and not k.endswith("per_second")}
        for row in trainer.state.log_history
    ]


SAVING = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6, "logging_steps": 4}


@pytest.mark.parametrize("kind", ["reward", "preference_model"])
def test_resumed_equals_uninterrupted_bitwise(
    kind: str, tiny_folder, tiny_tokenizer, tmp_path
) -> None:
    """Killed between two logs: what was counted for the next one is found again."""

    def made(out):
        model = classifier(tiny_folder)
        # Anew each time: peft writes the head into it.
        lora = LoraConfig(r=4, target_modules=["q_proj"], lora_dropout=0.1, task_type="SEQ_CLS")
        return trainer_of(kind, model, tiny_tokenizer, whole_pairs(), out, adapter=lora, **SAVING)

    straight = made(tmp_path / "straight")
    straight.train()
    killed = made(tmp_path / "cut")
    killed.add_callback(KilledAtStep(3))
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    resumed = made(tmp_path / "cut")
    resumed.train(resume_from_checkpoint=True)
    found = resumed.model.state_dict()
    for name, value in straight.model.state_dict().items():
        assert torch.equal(value, found[name]), name
    assert history(resumed) == history(straight)
    moved = made(tmp_path / "start").model.state_dict()
    assert any(not torch.equal(value, found[name]) for name, value in moved.items())


@pytest.mark.parametrize(
    ("change", "rows"),
    [
        ({"center_rewards_coefficient": 0.3}, {}),
        ({"learning_rate": 1e-3}, {}),
        ({}, {"seed": 1}),
        ({}, {"margin": [0.5] * 12}),
    ],
    ids=["center_rewards_coefficient", "learning_rate", "rows", "margin"],
)
def test_a_run_with_other_settings_is_not_gone_on_with(
    change, rows, tiny_folder, tiny_tokenizer, tmp_path, request
) -> None:
    first = trainer_of(
        "reward", classifier(tiny_folder), tiny_tokenizer, whole_pairs(), tmp_path, **SAVING
    )
    first.train()
    about = json.loads((tmp_path / "checkpoint-6" / "manifest.json").read_text())["about"]
    assert about["run"]["kind"] == "reward"
    other = trainer_of(
        "reward",
        classifier(tiny_folder),
        tiny_tokenizer,
        whole_pairs(**rows),
        tmp_path,
        **SAVING | change,
    )
    field = next(iter(change), "rows")
    with pytest.raises(RecipeError, match=rf"Changed since it was written: {field}: "):
        other.train(resume_from_checkpoint=True)


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_rows(
    tiny_folder, tiny_tokenizer, tmp_path
) -> None:
    model = classifier(tiny_folder)
    with torch.no_grad():
        model.model.embed_tokens.weight[whole_pairs()["chosen_ids"][2][1]] = float("inf")
    trainer = trainer_of(
        "reward",
        model,
        tiny_tokenizer,
        whole_pairs(),
        tmp_path,
        train_sampling_strategy="sequential",
    )
    with pytest.raises(NumericalError, match=r"Step 1: .* rows\.jsonl:1, .*rows\.jsonl:3"):
        trainer.train()


def test_a_model_of_which_nothing_is_trained_stops_the_run(
    tiny_folder, tiny_tokenizer, tmp_path
) -> None:
    model = classifier(tiny_folder)
    model.model.requires_grad_(False)
    with torch.no_grad():
        # The head's gradient is the difference of what reaches it: none, where all states are 0.
        model.model.norm.weight.zero_()
    trainer = trainer_of("reward", model, tiny_tokenizer, whole_pairs(), tmp_path)
    with pytest.raises(NumericalError, match="Nothing reaches a trained weight"):
        trainer.train()


def test_no_rows_are_refused(tiny_folder, tiny_tokenizer, tmp_path) -> None:
    with pytest.raises(DataError, match="no rows"):
        trainer_of(
            "reward", classifier(tiny_folder), tiny_tokenizer, whole_pairs().select([]), tmp_path
        )
