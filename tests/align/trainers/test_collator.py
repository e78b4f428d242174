"""Batches laid out as TRL lays them out, and cut into parts without losing or moving anything."""

import pytest
import torch
from datasets import Dataset
from trl.trainer.dpo_trainer import DataCollatorForPreference

from align.trainers.collator import PreferenceCollator, within_budget

PAD = 0


@pytest.fixture
def rows(pairs: Dataset) -> list[dict]:
    """12 rows with every optional column; a token's number says row, side and position."""

    def tokens(row: int, side: int, n: int) -> list[float]:
        return [row + side / 10 + t / 100 for t in range(1, n + 1)]

    return [
        row
        | {
            "row_index": 100 + i,
            "chosen_score": i / 8,
            "rejected_score": -i / 8,
            "preference": 0.75,
            "chosen_token_weight": tokens(i, 1, len(row["chosen_ids"])),
            "rejected_token_weight": tokens(i, 2, len(row["rejected_ids"])),
            "reference_chosen_logps": tokens(-i, -3, len(row["chosen_ids"])),
            "reference_rejected_logps": tokens(-i, -4, len(row["rejected_ids"])),
        }
        for i, row in enumerate(pairs)
    ]


def test_the_layout_is_trls(rows: list[dict]) -> None:
    ours, theirs = PreferenceCollator(PAD)(rows), DataCollatorForPreference(PAD)(rows)
    assert theirs.keys() == {"input_ids", "attention_mask", "completion_mask"}
    for name, expected in theirs.items():
        assert ours[name].dtype == expected.dtype
        assert torch.equal(ours[name], expected), name


def test_scalars_and_tokens_stand_beside_their_rows(rows: list[dict]) -> None:
    batch = PreferenceCollator(PAD)(rows)
    assert batch["row_index"].tolist() == list(range(100, 112))
    assert batch["chosen_score"].tolist() == [i / 8 for i in range(12)]
    assert batch["preference"].dtype == torch.float32
    for name in ("chosen_token_weight", "reference_chosen_logps", "reference_rejected_logps"):
        assert batch[name].dtype == torch.float32
        for b, row in enumerate(rows):
            n = len(row[name])
            assert batch[name][b, :n].tolist() == torch.tensor(row[name]).tolist()
            assert batch[name][b, n:].eq(0).all()


def test_columns_that_the_rows_do_not_carry_are_absent(rows: list[dict]) -> None:
    bare = [
        {k: row[k] for k in ("row_index", "prompt_ids", "chosen_ids", "rejected_ids")}
        for row in rows
    ]
    assert PreferenceCollator(PAD)(bare).keys() == {
        "row_index",
        "input_ids",
        "attention_mask",
        "completion_mask",
    }


def test_no_budget_is_one_part(rows: list[dict]) -> None:
    batch = PreferenceCollator(PAD)(rows)
    (part,) = within_budget(batch, None)
    assert part.keys() == batch.keys()
    assert all(torch.equal(part[name], batch[name]) for name in batch)


@pytest.mark.parametrize("budget", [1, 24, 40, 77, 200, 100_000])
def test_each_part_is_the_batch_of_its_own_rows(rows: list[dict], budget: int) -> None:
    """So nothing is lost, moved between sides, or padded more than the part needs."""
    collate = PreferenceCollator(PAD)
    parts = within_budget(collate(rows), budget)
    seen = []
    for part in parts:
        indices = part["row_index"].tolist()
        seen += indices
        expected = collate([rows[i - 100] for i in indices])
        assert part.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(part[name], tensor), name
        assert part["input_ids"].numel() <= budget or len(indices) == 1
    assert sorted(seen) == list(range(100, 112))
    assert (len(parts) == 1) == (budget == 100_000)
    assert (len(parts) == 12) == (budget <= 24)


def test_a_part_is_as_full_as_the_budget_allows() -> None:
    """Pairs of width 4, 4, 3, 3, 3: 16 tokens hold 2 pairs of width 4, or 2 of width 3."""
    rows = [
        {"row_index": i, "prompt_ids": [1], "chosen_ids": [5] * (w - 1), "rejected_ids": [6]}
        for i, w in enumerate((3, 4, 3, 4, 3))
    ]
    parts = within_budget(PreferenceCollator(PAD)(rows), 16)
    assert [part["row_index"].tolist() for part in parts] == [[1, 3], [0, 2], [4]]
    assert [tuple(part["input_ids"].shape) for part in parts] == [(4, 4), (4, 3), (2, 3)]
