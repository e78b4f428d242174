"""Where TRL has the loss, our trainer walks TRL's trajectory."""

from pathlib import Path

import pytest
import torch
import trl
from datasets import Dataset
from peft import LoraConfig

from align.trainers import PreferenceConfig, PreferenceTrainer

STEPS = 4
LOSSES = {
    "dpo": ({"loss_type": ["sigmoid"], "beta": 0.3}, {"name": "dpo", "beta": 0.3}),
    "rdpo": (
        {"loss_type": ["robust"], "beta": 0.3, "label_smoothing": 0.2},
        {"name": "rdpo", "beta": 0.3, "flip_probability": 0.2},
    ),
    "ipo": (
        {"loss_type": ["ipo"], "beta": 0.2},
        {"name": "ipo", "tau": 0.2, "length_normalised": True},
    ),
}
PER_PAIR = ("loss", "grad_norm", "num_tokens", "logps/chosen", "logps/rejected")
# TRL logs beta times the summed log-ratio whatever the loss compares; IPO compares averages, so
# there they differ.
REWARDS = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")
# TRL averages these over micro-batches, we over tokens: equal only where a step is one micro-batch.
PER_TOKEN = ("entropy", "logits/chosen", "logits/rejected", "mean_token_accuracy")
ACCUMULATION = {"dpo": 1, "rdpo": 2, "ipo": 1}


class TakesTokens(trl.DPOTrainer):
    """TRL's trainer on rows that are tokenised already."""

    def _prepare_dataset(self, dataset, *args, **kwargs):
        return dataset


def settings(folder: Path, accumulation: int) -> dict:
    return {
        "output_dir": str(folder),
        "learning_rate": 5e-3,
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": accumulation,
        "logging_steps": 1,
        "bf16": False,
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "gradient_checkpointing": False,
    }


def lora() -> LoraConfig:
    return LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], lora_dropout=0.0)


@pytest.mark.parametrize("adapter", ["full", "lora"])
@pytest.mark.parametrize("loss", LOSSES)
def test_same_trajectory_as_trl(
    loss: str, adapter: str, tiny_folder: str, tiny_tokenizer, pairs: Dataset, tmp_path: Path
) -> None:
    theirs_args, ours_objective = LOSSES[loss]
    common = {"train_dataset": pairs, "processing_class": tiny_tokenizer}
    if adapter == "lora":
        common["peft_config"] = lora()
    accumulation = ACCUMULATION[loss]
    theirs = TakesTokens(
        tiny_folder,
        args=trl.DPOConfig(**settings(tmp_path / "trl", accumulation), **theirs_args),
        **common,
    )
    theirs.train()
    ours = PreferenceTrainer(
        tiny_folder,
        args=PreferenceConfig(**settings(tmp_path / "ours", accumulation)),
        objective=ours_objective,
        **common,
    )
    ours.train()

    expected = [row for row in theirs.state.log_history if "loss" in row]
    found = [row for row in ours.state.log_history if "loss" in row]
    assert len(found) == len(expected) == STEPS
    names = PER_PAIR + (REWARDS if loss != "ipo" else ()) + (PER_TOKEN if accumulation == 1 else ())
    for step, (mine, trls) in enumerate(zip(found, expected, strict=True)):
        for name in names:
            if name == "rewards/accuracies" and step == 0:
                continue  # policy = reference: every pair is a tie up to rounding
            assert mine[name] == pytest.approx(trls[name], abs=1e-5, rel=1e-5), (step, name)
    assert abs(found[-1]["rewards/margins"]) > 1e-4, "nothing was learned"


def shared_pairs() -> Dataset:
    """12 pairs over 4 prompts of 20-26 tokens; each prompt's pairs share their chosen answer."""
    generator = torch.Generator().manual_seed(7)

    def tokens(n: int) -> list[int]:
        return torch.randint(4, 30, (n,), generator=generator).tolist()

    rows = []
    for p in range(4):
        prompt, best = [1, *tokens(19 + 2 * p)], [*tokens(6), 2]
        rows += [
            {"prompt_ids": prompt, "chosen_ids": best, "rejected_ids": [*tokens(4 + k), 2]}
            for k in range(3)
        ]
    return Dataset.from_list(rows)


@pytest.mark.parametrize("sampling", ["random", "sequential"])
def test_shared_prefixes_change_nothing_in_trls_trajectory(
    sampling: str, tiny_folder: str, tiny_tokenizer, tmp_path: Path
) -> None:
    """Six steps at a rate that moves the loss in its third decimal, within 2e-6 of TRL's."""
    changes = {
        "max_steps": 6,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 6,
        "train_sampling_strategy": sampling,
    }
    common = {"train_dataset": shared_pairs(), "processing_class": tiny_tokenizer}
    theirs = TakesTokens(
        tiny_folder, args=trl.DPOConfig(**settings(tmp_path / "trl", 1) | changes), **common
    )
    ours = PreferenceTrainer(
        tiny_folder,
        args=PreferenceConfig(**settings(tmp_path / "ours", 1) | changes, token_budget=150),
        objective={"name": "dpo", "beta": 0.1},
        **common,
    )
    for trainer in (theirs, ours):
        trainer.train()
    expected, found = (
        [row["loss"] for row in trainer.state.log_history if "loss" in row]
        for trainer in (theirs, ours)
    )
    assert len(found) == 6
    assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) < 2e-6
    assert max(found) - min(found) > 1e-3, "nothing was learned"
    last = [row for row in ours.state.log_history if "loss" in row][-1]
    assert last["num_computed_tokens"] < 0.7 * last["num_tokens"], "nothing was shared"
