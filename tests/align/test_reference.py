"""An identity changes with anything that can change a score; stored scores are exact or absent."""

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

from align.reference import (
    SCORED_COLUMNS,
    Identity,
    RoleScores,
    rows_digest,
    tokenizer_digest,
    weights_digest,
)

WHO = Identity(source="start", weights="w", tokenizer="t", dtype="torch.float32/no")


def layer(dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2).to(dtype)


def test_equal_weights_have_one_digest() -> None:
    assert weights_digest(layer()) == weights_digest(layer())
    frozen = layer().requires_grad_(False)
    assert weights_digest(frozen) == weights_digest(layer())


def test_one_unit_in_the_last_place_changes_the_digest() -> None:
    changed = layer()
    with torch.no_grad():
        changed.bias[1] = torch.nextafter(changed.bias[1], torch.tensor(9.0))
    assert weights_digest(changed) != weights_digest(layer())


def test_dtype_name_shape_and_buffers_change_the_digest() -> None:
    zeros = nn.Linear(3, 2)
    nn.init.zeros_(zeros.weight)
    nn.init.zeros_(zeros.bias)
    # All zeros: the bytes alone would not tell these apart.
    others = {
        "dtype": nn.Linear(3, 2).bfloat16(),
        "shape": nn.Linear(2, 3),
        "name": nn.ModuleDict({"inner": nn.Linear(3, 2)}),
        "buffer": nn.Linear(3, 2),
    }
    others["buffer"].register_buffer("scale", torch.zeros(1))
    for other in others.values():
        for parameter in other.parameters():
            nn.init.zeros_(parameter)
    digests = [weights_digest(zeros), *(weights_digest(other) for other in others.values())]
    assert len(set(digests)) == len(digests)


def tokenizer(words: str = "a b c", **special: str) -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<end>", *words.split()])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, **({"eos_token": "</s>", "pad_token": "<pad>"} | special)
    )


def test_the_tokenizers_digest_covers_vocabulary_special_tokens_and_template() -> None:
    with_template = tokenizer()
    with_template.chat_template = "{{ messages }}"
    other_template = tokenizer()
    other_template.chat_template = "{{ messages }} "
    digests = [
        tokenizer_digest(one)
        for one in (
            tokenizer(),
            tokenizer("a c b"),
            tokenizer(eos_token="<end>"),
            with_template,
            other_template,
        )
    ]
    assert len(set(digests)) == len(digests)
    assert tokenizer_digest(tokenizer()) == digests[0]


def test_where_a_policy_came_from_is_not_part_of_its_key() -> None:
    assert Identity("elsewhere", "w", "t", "torch.float32/no").key == WHO.key
    others = [
        Identity("start", "v", "t", "torch.float32/no"),
        Identity("start", "w", "s", "torch.float32/no"),
        Identity("start", "w", "t", "torch.float32/bf16"),
        # The parts are told apart, not glued together.
        Identity("start", "wt", "", "torch.float32/no"),
    ]
    assert len({WHO.key, *(other.key for other in others)}) == 5


def test_the_rows_digest_sees_order_truncation_and_sides() -> None:
    rows = [
        {"prompt_ids": [1], "chosen_ids": [2, 3], "rejected_ids": [4]},
        {"prompt_ids": [5], "chosen_ids": [6], "rejected_ids": [7, 8]},
    ]
    swapped = [r | {"chosen_ids": r["rejected_ids"], "rejected_ids": r["chosen_ids"]} for r in rows]
    cut = [rows[0] | {"chosen_ids": [2]}, rows[1]]
    moved = [rows[0] | {"prompt_ids": [1, 2], "chosen_ids": [3]}, rows[1]]
    digests = [
        rows_digest(Dataset.from_list(table), SCORED_COLUMNS)
        for table in (rows, rows[::-1], rows[:1], swapped, cut, moved)
    ]
    assert len(set(digests)) == len(digests)


def test_the_rows_digest_reads_the_given_columns_only() -> None:
    rows = {"prompt_ids": [[1]], "chosen_ids": [[2]], "rejected_ids": [[3]]}
    plain, named = Dataset.from_dict(rows), Dataset.from_dict(rows | {"source": ["file"]})
    assert rows_digest(plain, SCORED_COLUMNS) == rows_digest(named, SCORED_COLUMNS)


CHOSEN = [np.float32([-0.1, -1e-30]), np.float32([-7.7])]
REJECTED = [np.float32([-3.3]), np.float32([-2.5, -1 / 3, -1e4])]


@pytest.fixture
def scores(tmp_path: Path) -> RoleScores:
    stored = RoleScores(tmp_path, WHO, "a" * 64, "tree")
    assert stored.load("reference") is None
    stored.save(CHOSEN, REJECTED)
    return stored


def test_scores_come_back_bit_by_bit_under_the_roles_names(scores: RoleScores) -> None:
    found = scores.load("guide")
    assert found is not None
    assert set(found.column_names) == {"guide_chosen_logps", "guide_rejected_logps"}
    for name, expected in (("guide_chosen_logps", CHOSEN), ("guide_rejected_logps", REJECTED)):
        for row, values in zip(found[name], expected, strict=True):
            assert np.float32(row).tobytes() == values.tobytes()


def test_another_policy_or_other_rows_do_not_see_them(scores: RoleScores, tmp_path: Path) -> None:
    other = Identity("start", "v", "t", "torch.float32/no")
    assert RoleScores(tmp_path, other, "a" * 64, "tree").load("reference") is None
    assert RoleScores(tmp_path, WHO, "b" * 64, "tree").load("reference") is None
    assert RoleScores(tmp_path, WHO, "a" * 64, "padded").load("reference") is None


def test_a_damaged_folder_is_no_folder_and_is_written_anew(scores: RoleScores) -> None:
    table = next((scores.folder / "scores").glob("*.arrow"))
    content = bytearray(table.read_bytes())
    content[len(content) // 2] ^= 1
    table.write_bytes(content)
    assert scores.load("reference") is None
    scores.save(CHOSEN, REJECTED)
    assert scores.load("reference") is not None


def test_a_whole_folder_is_left_to_its_readers(scores: RoleScores) -> None:
    before = scores.folder.stat().st_ino
    scores.save(CHOSEN, REJECTED)
    assert scores.folder.stat().st_ino == before
    assert list(scores.folder.parent.iterdir()) == [scores.folder]
