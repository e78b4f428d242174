"""Files that pipelines write, read as training data."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from align.data.built import BuiltPair
from align.data.messages import Message
from align.data.pair_files import read_pairs
from align.data.row_policy import RowPolicy
from align.data.row_report import RowReport
from align.policies.base import Sampling
from align.policies.token_writer import InProcessWriter
from align.policies.writer import Draw, Stem
from align.tokens.encoding import encode_pairs
from align.worlds.additions import sums_tokenizer

LENIENT = RowPolicy(max_dropped=0.9)
TOKENIZER = sums_tokenizer()
PROVENANCE = {
    "uid": "u",
    "pipeline": "mcts",
    "model": "m",
    "config_hash": "c",
    "seed": 0,
    "source": "questions.jsonl",
    "row": 7,
    "visit_counts": (3, 1),
    "detail": {"q": [0.5, None]},
}


def turn(role: Any, content: str) -> tuple[Message, ...]:
    return (Message(role=role, content=content),)


def pair(row: int = 7, **columns: Any) -> BuiltPair:
    texts = {
        "prompt": turn("user", "1+2?"),
        "chosen": turn("assistant", "3"),
        "rejected": turn("assistant", "4"),
    }
    return BuiltPair(**(texts | PROVENANCE | {"row": row} | columns))


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            out = csv.DictWriter(file, list(rows[0]))
            out.writeheader()
            for row in rows:
                out.writerow(
                    {k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in row.items()}
                )
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


IDS = {"prompt_ids": (5, 6), "chosen_ids": (7, 8), "rejected_ids": (9,)}


@pytest.mark.parametrize("kind", [".jsonl", ".parquet", ".csv"])
def test_all_columns_come_back(tmp_path: Path, kind: str):
    written = [pair(chosen_ends=False, rejected_ends=True, **IDS), pair(group_id="tree")]
    rows = [one.model_dump(mode="json") for one in written]
    if kind == ".csv":
        rows = [{k: v for k, v in row.items() if k != "detail"} for row in rows]
    path = write(tmp_path / f"rows{kind}", rows)
    pairs, report = read_pairs(path, policy=RowPolicy())
    assert (report.read, report.kept) == (2, 2)
    first, second = pairs
    assert (first.prompt, first.chosen) == (written[0].prompt, written[0].chosen)
    assert (first.chosen_ends, first.rejected_ends) == (False, True)
    found = {name: getattr(first, name) for name in IDS}
    assert found == IDS
    assert (second.chosen_ends, second.prompt_ids, second.group_id) == (None, None, "tree")
    # Where the pair comes from has no influence, and is said once.
    ignored = report.ignored_columns
    assert len(ignored) == len(set(ignored))
    assert {"uid", "pipeline", "visit_counts", "config_hash"} <= set(ignored)
    assert not {"chosen_ends", "rejected_ends", *IDS, "group_id"} & set(ignored)


WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "text as ends": ({"chosen_ends": "false"}, "wrong_type", "chosen_ends"),
    "number as ends": ({"rejected_ends": 0}, "wrong_type", "rejected_ends"),
    "no list": ({"prompt_ids": 5}, "wrong_type", "prompt_ids"),
    "text in the list": ({"chosen_ids": [5, "6"]}, "wrong_type", "chosen_ids[1]"),
    "truth in the list": ({"chosen_ids": [True]}, "wrong_type", "chosen_ids[0]"),
    "fraction in the list": ({"chosen_ids": [1.5]}, "wrong_type", "chosen_ids[0]"),
    "below 0": ({"rejected_ids": [-1]}, "wrong_type", "rejected_ids[0]"),
    "empty": ({"rejected_ids": []}, "missing_field", "rejected_ids"),
    "two of three": ({"prompt_ids": None}, "missing_field", "prompt_ids"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_has_another_type_costs_its_row(tmp_path: Path, case: str):
    change, reason, field = WRONG[case]
    good = pair(chosen_ends=False, **IDS).model_dump(mode="json")
    path = write(tmp_path / "rows.jsonl", [good | change, good])
    pairs, report = read_pairs(path, policy=LENIENT)
    assert (report.read, report.kept) == (2, len(pairs)) == (2, 1)
    (dropped,) = report.rows
    assert (dropped.row, dropped.reason, dropped.field) == (1, reason, field)


def test_a_csv_cell_that_is_no_json_costs_its_row(tmp_path: Path):
    good = {k: v for k, v in pair(**IDS).model_dump(mode="json").items() if k != "detail"}
    path = write(tmp_path / "rows.csv", [good | {"chosen_ids": "5 6"}, good])
    _, report = read_pairs(path, policy=LENIENT)
    (dropped,) = report.rows
    assert (dropped.reason, dropped.field) == ("wrong_type", "chosen_ids")


def test_what_a_writer_draws_is_what_is_trained_on(tmp_path: Path):
    torch.manual_seed(3)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(TOKENIZER),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=64,
            bos_token_id=TOKENIZER.bos_token_id,
            eos_token_id=TOKENIZER.eos_token_id,
        )
    )
    writer = InProcessWriter(model, TOKENIZER)
    question = turn("user", "1+2?")
    prompt_ids = writer.prompt_ids(question)
    behind = prompt_ids[-1]
    prefix = tuple(TOKENIZER.encode("1+2=3\n", add_special_tokens=False))
    stem = Stem(prompt_ids, prefix, "tree/1")
    (drawn,) = writer.draw([Draw(stem, 40, Sampling(max_new_tokens=5, stop=("\n",)))], 0)
    built: list[BuiltPair] = []
    for row, (a, b) in enumerate(zip(drawn[::2], drawn[1::2], strict=True), start=1):
        chosen, rejected = ((*prefix, *one.ids) for one in (a, b))
        texts = [writer.text(ids, behind) for ids in (chosen, rejected)]
        if texts[0] == texts[1] or "<unk>" in "".join(texts):
            continue
        built.append(
            pair(
                row,
                prompt=question,
                chosen=turn("assistant", texts[0]),
                rejected=turn("assistant", texts[1]),
                prompt_ids=prompt_ids,
                chosen_ids=chosen,
                rejected_ids=rejected,
                chosen_ends=a.finish == "end",
                rejected_ends=b.finish == "end",
                assistant_prefix="1+2=3\n",
            )
        )
    assert {one.chosen_ends for one in built} == {True, False}
    path = write(tmp_path / "rows.jsonl", [one.model_dump(mode="json") for one in built])
    pairs, report = read_pairs(path, policy=RowPolicy())
    tokenized = encode_pairs(pairs, TOKENIZER, RowPolicy(), report)
    assert report.notes["given_ids"] == report.kept == len(built) > 10
    for made, one in zip(tokenized, built, strict=True):
        assert tuple(made.prompt_ids) == one.prompt_ids
        assert tuple(made.chosen_ids) == one.chosen_ids
        assert tuple(made.rejected_ids) == one.rejected_ids
    fresh = RowReport()
    encode_pairs([one for one in pairs if one.chosen_ends], TOKENIZER, RowPolicy(), fresh)
    assert not fresh.dropped
