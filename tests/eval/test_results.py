import gzip
import json

import pytest

from align.errors import DataError
from align_eval.results import Result, versions, write_result
from align_eval.row_files import read_rows, write_json


def result(failed, n=100, **settings):
    reasons = {"refused": failed} if failed else {}
    row = {"model": "a|b", "score": 12.3456, "low": None, "n": 3}
    return Result("thing", {"score": 1.5}, [row], n, n - failed, failed, reasons, **settings)


def test_a_result_is_one_json_and_one_table(tmp_path):
    found = write_result(tmp_path, result(1, provenance={"judge": "j"}), max_failed=0.01)
    assert json.loads((tmp_path / "results.json").read_text()) == found
    assert (found["n"], found["n_judged"], found["n_failed"], found["flag"]) == (100, 99, 1, None)
    assert found["provenance"] == {"judge": "j"}
    assert found["versions"]["python"] == versions()["python"]
    assert (tmp_path / "table.md").read_text() == (
        "| model | score | low | n |\n| --- | --- | --- | --- |\n| a/b | 12.35 | - | 3 |\n\n"
        "thing: 100 rows, 99 judged, 1 failed.\n"
    )


def test_over_one_percent_is_flagged_and_over_the_limit_refused(tmp_path):
    found = write_result(tmp_path, result(2), max_failed=0.05)
    words = "2 of 100 failed (2.0 %; 2 refused): not comparable with published numbers"
    assert found["flag"] == words
    assert f"**{words}.**" in (tmp_path / "table.md").read_text()
    with pytest.raises(DataError, match=r"max_failed .0\.01. allows, so there is no score"):
        write_result(tmp_path, result(2), max_failed=0.01)
    assert json.loads((tmp_path / "results.json").read_text())["scores"] is None
    assert not (tmp_path / "table.md").exists()
    with pytest.raises(DataError, match="no score"):
        write_result(tmp_path, result(0, n=0), max_failed=0.5)


@pytest.mark.parametrize("name", ["x.json", "x.json.gz", "x.jsonl", "x.jsonl.gz"])
def test_rows_come_from_four_kinds_of_files(tmp_path, name):
    rows = [{"a": 1, "b": "é\u2028"}, {"a": 2, "b": ""}]
    is_lines = ".jsonl" in name
    text = "\n".join(map(json.dumps, rows)) + "\n\n" if is_lines else json.dumps(rows)
    data = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(data, mtime=0) if name.endswith("gz") else data)
    assert read_rows(tmp_path / name, needs=("a",)) == rows
    with pytest.raises(DataError, match=rf"{name}:1: the row has no c"):
        read_rows(tmp_path / name, needs=("a", "c"))


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("x.json", b"{", "no JSON list"),
        ("x.json", b"3", "no JSON list"),
        ("x.json", b"[3]", "the row has no {}"),
        ("x.jsonl", b"{}\nx\n", "no JSON Lines file"),
        ("x.json", b"\xff", "not UTF-8"),
        ("x.json.gz", b"plain", "no gzip file"),
        ("x.json.gz", gzip.compress(b"[]", mtime=0)[:-4], "damaged"),
    ],
)
def test_files_that_hold_no_rows_are_named(tmp_path, name, data, words):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=words):
        read_rows(tmp_path / name)
    with pytest.raises(DataError, match="cannot be read"):
        read_rows(tmp_path / "absent.json")


def test_a_number_that_is_none_is_never_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", [{"a": float("nan")}])
    assert not (tmp_path / "x.json").exists()
