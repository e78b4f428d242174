"""A data set on disk: typed columns, equal bytes, rows that are read back as they were."""

import json
from pathlib import Path

import datasets
import pytest

from align.data.built import BuiltPair, SpanWeight
from align.data.messages import Message
from align.data.pairs import PreferencePair
from align.data.parquet import quality, write_rows


def built(number: int, *, chosen: str, rejected: str, **more: object) -> BuiltPair:
    return BuiltPair(
        prompt=(Message(role="user", content=f"question {number}"),),
        chosen=(Message(role="assistant", content=chosen),),
        rejected=(Message(role="assistant", content=rejected),),
        source="test",
        row=number,
        uid=str(number),
        pipeline="mcts",
        model="m",
        config_hash="c",
        seed=0,
        **more,
    )


ROWS = [
    built(1, chosen="long answer", rejected="short", margin=1.0, visit_counts=(9, 3)),
    built(2, chosen="a", rejected="bc", margin=3.0, detail={"votes": [1, 2]}),
    built(
        3,
        chosen="a",
        rejected="b",
        chosen_span_weights=(SpanWeight(start=0, end=1, weight=2.5),),
        chosen_ends=False,
        prompt_ids=(1,),
        chosen_ids=(2,),
        rejected_ids=(3,),
    ),
]


def test_rows_come_back_and_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        folder.mkdir()
        (name,) = write_rows(folder, ROWS)
    assert (first / name).read_bytes() == (second / name).read_bytes()
    table = datasets.Dataset.from_parquet(str(first / name), cache_dir=str(tmp_path / "cache"))
    rows = list(table)
    assert [row["visit_counts"] for row in rows] == [[9, 3], None, None]
    assert json.loads(rows[1]["detail"]) == {"votes": [1, 2]}
    back = [
        BuiltPair.model_validate(
            {k: v for k, v in row.items() if v is not None} | {"detail": json.loads(row["detail"])}
        )
        for row in rows
    ]
    assert back == ROWS


def test_rows_of_two_pipelines_have_the_same_columns(tmp_path: Path) -> None:
    plain = PreferencePair.model_validate(
        {k: v for k, v in ROWS[0].model_dump().items() if k in PreferencePair.model_fields}
    )
    tables = []
    for folder, rows in ((tmp_path / "a", ROWS), (tmp_path / "b", [plain])):
        folder.mkdir()
        (name,) = write_rows(folder, rows)
        tables.append(
            datasets.Dataset.from_parquet(str(folder / name), cache_dir=str(folder / "cache"))
        )
    assert tables[0].features == tables[1].features
    assert len(datasets.concatenate_datasets(tables)) == 4


def test_two_kinds_of_text_are_refused(tmp_path: Path) -> None:
    plain = PreferencePair(prompt="p", chosen="c", rejected="r", source="s", row=1)
    with pytest.raises(ValueError, match="one file"):
        write_rows(tmp_path, [*ROWS, plain])


def test_quality_counts_what_can_be_counted() -> None:
    found = quality(ROWS, {"tokens": 30})
    # Chosen is longer by 6, -1 and 0 characters.
    assert (found["chosen_is_longer"], found["chosen_is_shorter"]) == (0.3333, 0.3333)
    assert found["median_characters_more"] == 0
    assert found["margin"] == {
        "rows": 2, "mean": 2.0, "from": 1.0, "to": 3.0, "counts": [1, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    }  # fmt: skip
    assert "uncertainty" not in found
    assert found["per_pair"] == {"tokens": 10.0}
