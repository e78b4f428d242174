"""Every pair once an epoch, with the pairs of one prompt in one batch wherever they fit."""

from collections import Counter

import pytest
from datasets import Dataset, concatenate_datasets

from align.trainers import PreferenceConfig, PreferenceTrainer
from align.trainers.sampling import GroupedSampler


def batches(order: list[int], size: int) -> list[list[int]]:
    return [order[begin : begin + size] for begin in range(0, len(order), size)]


@pytest.mark.parametrize("size", [1, 3, 4, 7, 16])
def test_every_pair_comes_once(size: int) -> None:
    groups = [i // 3 for i in range(40)] + ["alone", "of two", "of two"]
    order = list(GroupedSampler(groups, size, seed=1))
    assert sorted(order) == list(range(43))


def test_groups_that_fit_are_whole() -> None:
    """Groups of 3 and of 1 into batches of 4: a 3 and a 1 each, and never a torn group."""
    groups = [f"three {i // 3}" for i in range(30)] + [f"one {i}" for i in range(10)]
    order = list(GroupedSampler(groups, 4, seed=0))
    for batch in batches(order, 4):
        counts = Counter(groups[pair] for pair in batch)
        assert sorted(counts.values()) == [1, 3]
    # In the order of a random sampler hardly any batch looks like this.
    assert order != sorted(order)


def test_a_group_larger_than_a_batch_fills_batches() -> None:
    order = list(GroupedSampler(["big"] * 10 + ["a", "b"], 4, seed=0))
    whole = [b for b in batches(order, 4) if all(pair < 10 for pair in b)]
    assert len(whole) == 2


def test_an_epoch_has_an_order_of_its_own_and_the_same_one_again() -> None:
    sampler = GroupedSampler([i // 2 for i in range(50)], 8, seed=3)
    first = list(sampler)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    sampler.set_epoch(0)
    assert list(sampler) == first
    assert list(GroupedSampler([i // 2 for i in range(50)], 8, seed=4)) != first


@pytest.fixture
def tripled(pairs: Dataset) -> Dataset:
    """Each row three times over, the copies far apart, told apart by their last token."""
    rejected = [[[*ids[:-1], 4 + k, ids[-1]] for ids in pairs["rejected_ids"]] for k in range(3)]
    return concatenate_datasets(
        [
            pairs.remove_columns("rejected_ids").add_column("rejected_ids", column)
            for column in rejected
        ]
    )


@pytest.mark.parametrize("column", ["prompt_ids", "group_id"])
def test_the_trainer_keeps_pairs_of_one_prompt_together(
    tripled: Dataset, column: str, tiny_folder, tiny_tokenizer, tmp_path
) -> None:
    if column == "group_id":
        tripled = tripled.add_column("group_id", [f"g{i % 12 // 2}" for i in range(36)])
    trainer = PreferenceTrainer(
        tiny_folder,
        args=PreferenceConfig(
            output_dir=str(tmp_path),
            per_device_train_batch_size=6,
            train_sampling_strategy="group_by_prompt",
            num_train_epochs=1,
            use_cpu=True,
            bf16=False,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            gradient_checkpointing=False,
        ),
        train_dataset=tripled,
        processing_class=tiny_tokenizer,
        objective={"name": "dpo", "beta": 0.1},
    )
    seen = []
    for batch in trainer.get_train_dataloader():
        rows = batch["row_index"].tolist()
        seen += rows
        groups = Counter(i % 12 // 2 if column == "group_id" else i % 12 for i in rows)
        assert set(groups.values()) == ({6} if column == "group_id" else {3})
    assert sorted(seen) == list(range(36))
    trainer.train()
    logged = [row for row in trainer.state.log_history if "train_loss" in row]
    assert len(logged) == 1


def test_the_trainer_groups_by_length(tiny_folder, tiny_tokenizer, make_rows, tmp_path) -> None:
    pairs = Dataset.from_list(make_rows(120))
    trainer = PreferenceTrainer(
        tiny_folder,
        args=PreferenceConfig(
            output_dir=str(tmp_path),
            per_device_train_batch_size=3,
            train_sampling_strategy="group_by_length",
            use_cpu=True,
            bf16=False,
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=pairs,
        processing_class=tiny_tokenizer,
        objective={"name": "dpo", "beta": 0.1},
    )

    def length(i: int) -> int:
        row = pairs[i]
        return len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))

    def padding(order: list[int]) -> int:
        sizes = [[length(i) for i in batch] for batch in batches(order, 3)]
        return sum(max(batch) * len(batch) - sum(batch) for batch in sizes)

    order = list(trainer._get_train_sampler())
    assert sorted(order) == list(range(120))
    assert padding(order) < padding(list(range(120))) / 2
