"""A script for `trl.RewardTrainer` with its import changed: the same steps, and guarded runs."""

from __future__ import annotations

import pytest
import torch
import trl
from datasets import Dataset, IterableDataset
from peft import LoraConfig

from align.errors import DataError, NumericalError, RecipeError
from align.trainers import RewardConfig, RewardTrainer
from tests.align.trainers.classifiers_in_code import ARGUMENTS, classifier, losses


def raw_rows(n: int = 8) -> Dataset:
    words = ["sky", "tea", "red", "kite", "stone", "warm", "rain", "song"]
    pick = [words[i % 8] for i in range(n)]
    return Dataset.from_dict(
        {
            "prompt": [f"a {word} " for word in pick],
            "chosen": [f"is {words[(i + 3) % 8]} and {word}" for i, word in enumerate(pick)],
            "rejected": [f"was {words[(i + 5) % 8]}" for i in range(n)],
        }
    )


def config(out, **changes) -> RewardConfig:
    return RewardConfig(str(out), **ARGUMENTS | {"max_length": 512} | changes)


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_raw_rows_take_trls_steps_under_trls_names(
    adapter, tiny_folder, tiny_tokenizer, tmp_path
) -> None:
    lora = LoraConfig(
        r=4,
        target_modules=["q_proj"],
        lora_dropout=0.0,
        task_type="SEQ_CLS",
        modules_to_save=["score"],
    )

    def trained(kind, out):
        trainer = kind(
            classifier(tiny_folder),
            args=config(out, center_rewards_coefficient=0.05),
            train_dataset=raw_rows(),
            processing_class=tiny_tokenizer,
            peft_config=lora if adapter else None,
        )
        trainer.train()
        return trainer

    ours, theirs = (
        trained(RewardTrainer, tmp_path / "a"),
        trained(trl.RewardTrainer, tmp_path / "b"),
    )
    assert losses(ours) == losses(theirs)
    assert max(losses(ours)) - min(losses(ours)) > 1e-3, "nothing was learned"
    named = ("margin", "accuracy", "mean_reward", "num_tokens")
    assert [[row[name] for name in named] for row in ours.state.log_history[:4]] == [
        [row[name] for name in named] for row in theirs.state.log_history[:4]
    ]
    state = theirs.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in ours.model.state_dict().items())


def test_a_row_that_is_too_long_is_left_out_and_the_others_keep_their_numbers(
    tiny_folder, tiny_tokenizer, tmp_path
) -> None:
    rows = raw_rows().to_list()
    rows[0]["chosen"] = "word " * 600
    trainer = RewardTrainer(
        classifier(tiny_folder),
        config(tmp_path),
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny_tokenizer,
    )
    assert len(trainer.train_dataset) == 7
    assert trainer._named([0, 6]) == "train data:1, train data:7"
    with pytest.raises(DataError, match="no row of at most max_length = 2 tokens"):
        RewardTrainer(
            classifier(tiny_folder),
            config(tmp_path, max_length=2),
            train_dataset=raw_rows(),
            processing_class=tiny_tokenizer,
        )


@pytest.mark.parametrize("stream", [False, True], ids=["table", "stream"])
def test_a_loss_that_is_no_number_names_its_rows(
    stream, tiny_folder, tiny_tokenizer, tmp_path
) -> None:
    model = classifier(tiny_folder)
    rows = raw_rows().add_column("margin", [0.0] * 5 + [float("nan")] + [0.0] * 2)
    given = IterableDataset.from_generator(lambda: iter(rows.to_list())) if stream else rows
    trainer = RewardTrainer(
        model,
        config(tmp_path, per_device_train_batch_size=2, train_sampling_strategy="sequential"),
        train_dataset=given,
        processing_class=tiny_tokenizer,
    )
    name = "row 4 of a stream, row 5 of a stream" if stream else "train data:4, train data:5"
    with pytest.raises(NumericalError, match=rf"Step 3: the loss of a batch is nan.*{name}"):
        trainer.train()


def test_runs_are_sealed_and_other_runs_refused(tiny_folder, tiny_tokenizer, tmp_path) -> None:
    def made(**changes):
        return RewardTrainer(
            classifier(tiny_folder),
            config(tmp_path, save_strategy="steps", save_steps=2, **changes),
            train_dataset=raw_rows(),
            processing_class=tiny_tokenizer,
        )

    made(max_steps=2).train()
    resumed = made(max_steps=4)
    resumed.train(resume_from_checkpoint=True)
    assert [row["step"] for row in resumed.state.log_history if "loss" in row] == [1, 2, 3, 4]
    with pytest.raises(RecipeError, match="Changed since it was written: learning_rate"):
        made(learning_rate=1e-4).train(resume_from_checkpoint=True)


def test_a_collator_of_ones_own_and_new_rows_to_evaluate(
    tiny_folder, tiny_tokenizer, tmp_path
) -> None:
    from trl.trainer.reward_trainer import DataCollatorForPreference

    class Own(DataCollatorForPreference):
        pass

    trainer = RewardTrainer(
        classifier(tiny_folder),
        config(tmp_path),
        Own(pad_token_id=0),
        raw_rows(),
        raw_rows(4),
        tiny_tokenizer,
    )
    trainer.train()
    first = trainer.evaluate()["eval_loss"]
    assert trainer.evaluate(raw_rows(4))["eval_loss"] == first
    swapped = raw_rows(4).rename_columns({"chosen": "a", "rejected": "chosen"})
    assert trainer.evaluate(swapped.rename_columns({"a": "rejected"}))["eval_loss"] > first + 1
