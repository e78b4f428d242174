"""Pairs laid out in parts without losing or moving anything, on either kind of backend."""

from functools import partial

import pytest
import torch
from datasets import Dataset
from trl.trainer.dpo_trainer import DataCollatorForPreference

from align.forest import PADDED, TREE, Backend
from align.forest.pack import tree_pack
from align.forest.packing import cut_forest
from align.trainers.collator import PreferenceCollator

PAD = 0
# Prompts of the test rows are short: share all of them.
SHARING = Backend(
    "tree", partial(tree_pack, shortest_shared=1), partial(cut_forest, shortest_shared=1)
)
BACKENDS = [PADDED, TREE, SHARING]


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


def test_padded_rows_are_laid_out_as_trls(rows: list[dict]) -> None:
    (part,) = PreferenceCollator(PADDED)(rows)["parts"]
    theirs = DataCollatorForPreference(PAD)(rows)
    assert torch.equal(part["pack"].input_ids, theirs["input_ids"])
    assert torch.equal(part["pack"].attention_mask, theirs["attention_mask"])
    scored = torch.zeros_like(theirs["completion_mask"]).flatten()
    scored[part["pack"].predictor + 1] = 1
    assert torch.equal(scored.view_as(theirs["completion_mask"]), theirs["completion_mask"])


@pytest.mark.parametrize("backend", BACKENDS, ids=["padded", "tree", "sharing"])
@pytest.mark.parametrize("budget", [None, 1, 24, 40, 77, 200, 100_000])
def test_every_pair_stands_beside_its_own_columns(
    rows: list[dict], backend: Backend, budget: int | None
) -> None:
    batch = PreferenceCollator(backend, budget)(rows)
    assert batch["row_index"].tolist() == list(range(100, 112))
    seen = []
    for part in batch["parts"]:
        seen += part["place"].tolist()
        pack, b = part["pack"], len(part["place"])
        targets = pack.target[pack.index]
        for place, pair in enumerate(part["place"].tolist()):
            row = rows[pair]
            assert part["row_index"][place] == 100 + pair
            assert part["tokens"][place] == 2 * len(row["prompt_ids"]) + len(
                row["chosen_ids"]
            ) + len(row["rejected_ids"])
            assert part["chosen_score"][place] == pair / 8
            for side, at in (("chosen", place), ("rejected", b + place)):
                n = len(row[f"{side}_ids"])
                assert targets[at, :n].tolist() == row[f"{side}_ids"]
                assert pack.mask[at].tolist() == [t < n for t in range(pack.mask.shape[1])]
                for name in (f"{side}_token_weight", f"reference_{side}_logps"):
                    assert part[name].dtype == torch.float32
                    assert part[name][place, :n].tolist() == torch.tensor(row[name]).tolist()
                    assert part[name][place, n:].eq(0).all()
        # Role columns are as wide as the log-probs that stand beside them.
        widest = max(pack.lengths[:b])
        assert part["reference_chosen_logps"].shape == (b, widest)
        assert pack.rows(0, b, pack.target.float()).token.shape == (b, widest)
        if budget is not None:
            assert pack.computed_tokens <= budget or b == 1
    assert sorted(seen) == list(range(12))
    assert (len(batch["parts"]) == 1) == (budget in (None, 100_000))
    if budget == 1:
        assert len(batch["parts"]) == 12


def test_columns_that_the_rows_do_not_carry_are_absent(rows: list[dict]) -> None:
    bare = [
        {k: row[k] for k in ("row_index", "prompt_ids", "chosen_ids", "rejected_ids")}
        for row in rows
    ]
    batch = PreferenceCollator(TREE)(bare)
    assert batch.keys() == {"row_index", "sizes", "parts"}
    assert batch["parts"][0].keys() == {"row_index", "sizes", "place", "tokens", "pack"}


def test_a_padded_part_is_as_full_as_the_budget_allows() -> None:
    """Pairs of width 4, 4, 3, 3, 3: 16 tokens hold 2 pairs of width 4, or 2 of width 3."""
    rows = [
        {"row_index": i, "prompt_ids": [1], "chosen_ids": [5] * (w - 1), "rejected_ids": [6]}
        for i, w in enumerate((3, 4, 3, 4, 3))
    ]
    parts = PreferenceCollator(PADDED, 16)(rows)["parts"]
    assert [part["row_index"].tolist() for part in parts] == [[1, 3], [0, 2], [4]]
    assert [tuple(part["pack"].input_ids.shape) for part in parts] == [(4, 4), (4, 3), (2, 3)]


def test_the_shared_prompt_is_laid_out_once() -> None:
    """One prompt of 10 tokens with 4 completions of 3: 10 + 12 tokens instead of 6 rows of 13."""
    prompt = list(range(10))
    best = [20, 21, 22]
    rows = [
        {"row_index": i, "prompt_ids": prompt, "chosen_ids": best, "rejected_ids": [30 + i] * 3}
        for i in range(3)
    ]
    (part,) = PreferenceCollator(TREE)(rows)["parts"]
    assert part["pack"].computed_tokens == 22
    assert part["pack"].row_tokens == 6 * 13
    # The best completion is scored once and stands in three pairs.
    assert part["pack"].target.numel() == 12
    assert part["pack"].index[:3].tolist() == [part["pack"].index[0].tolist()] * 3
