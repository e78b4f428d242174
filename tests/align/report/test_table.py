"""The before/after table: marks, gaps, and when the runs share a baseline."""

import json

import pytest
from rich.console import Console

from align.errors import DataError
from align.report.table import compare


def estimate(value, half_width, n=1024):
    return {"value": value, "low": value - half_width, "high": value + half_width, "n": n}


def make_run(folder, *, before, after, seed=0):
    folder.mkdir(parents=True)
    node = {"before": before, "after": after, "n": 1024, "seed": seed}
    (folder / "metrics.json").write_text(json.dumps(node))
    return folder


def text_of(table, width=120):
    console = Console(width=width, no_color=True, legacy_windows=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def row(text, label):
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if label in line)
    return [cell.strip() for cell in lines[at].strip("│").split("│")], [
        cell.strip() for cell in lines[at + 1].strip("│").split("│")
    ]


BASE = {
    "sums/sampled_accuracy": estimate(0.385, 0.03),
    "preference/chosen_logps": estimate(-4.12, 0.15),
}


@pytest.fixture
def runs(tmp_path):
    dpo = {
        "sums/sampled_accuracy": estimate(0.389, 0.03),
        "preference/chosen_logps": estimate(-5.67, 0.15),
    }
    rpo = {"sums/sampled_accuracy": estimate(0.522, 0.03)}
    return [
        make_run(tmp_path / "dpo", before=BASE, after=dpo),
        make_run(tmp_path / "rpo", before=BASE, after=rpo),
    ]


def test_runs_with_one_baseline_share_its_column(runs):
    text = text_of(compare(runs))
    values, intervals = row(text, "sampled accuracy")
    # .385 +- .03 and .389 +- .03 overlap (.359 < .415); .522 - .03 = .492 > .415
    assert values == ["sampled accuracy", "38.5", "38.9", "▲ 52.2"]
    assert intervals == ["%", "[35.5, 41.5]", "[35.9, 41.9]", "[49.2, 55.2]"]


def test_a_fall_is_marked_downwards_and_a_gap_is_said(runs):
    values, intervals = row(text_of(compare(runs)), "chosen log-prob")
    assert values == ["chosen log-prob", "-4.12", "▼ -5.67", "not measured"]
    assert intervals == ["nats", "[-4.27, -3.97]", "[-5.82, -5.52]", ""]
    assert "greedy accuracy" not in text_of(compare(runs)), "no run measured it"


def test_runs_with_different_baselines_each_show_their_own(runs, tmp_path):
    other = {**BASE, "sums/sampled_accuracy": estimate(0.5, 0.03)}
    runs.append(make_run(tmp_path / "other", before=other, after=other, seed=1))
    text = text_of(compare(runs), width=160)
    values, _ = row(text, "sampled accuracy")
    assert values[1:] == ["38.5", "38.9", "38.5", "▲ 52.2", "50.0", "50.0"]
    assert "other: n = 1024, seed 1" in text


def test_a_value_without_interval_says_so_and_gets_no_mark(tmp_path):
    bare = {"sums/sampled_accuracy": {"value": 0.9, "low": None, "high": None, "n": None}}
    run = make_run(tmp_path / "x", before=BASE, after=bare)
    values, intervals = row(text_of(compare([run])), "sampled accuracy")
    assert values[2] == "90.0"
    assert intervals[2] == "no interval"


def test_brackets_in_the_caption_and_in_names_are_not_mark_up(runs, tmp_path):
    runs.append(make_run(tmp_path / "[bold]x", before=BASE, after=BASE))
    runs.append(make_run(tmp_path / "again" / "rpo", before=BASE, after=BASE))
    text = text_of(compare(runs))
    assert "[low, high]: 95 % interval" in text
    assert "[bold]x" in text
    assert "rpo (1)" in text
    assert "rpo (2)" in text


def test_the_table_of_two_runs_fits_80_columns(runs):
    text = text_of(compare(runs), width=80)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "…" not in text


def test_a_folder_without_metrics_is_named(runs, tmp_path):
    with pytest.raises(DataError, match=r"nothing-here.metrics\.json does not exist"):
        compare([*runs, tmp_path / "nothing-here"])


def test_below_ten_rows_there_is_no_interval_and_no_mark(tmp_path):
    few = {"sums/sampled_accuracy": estimate(0.1, 0.01, n=9)}
    after = {"sums/sampled_accuracy": estimate(0.9, 0.01, n=9)}
    text = text_of(compare([make_run(tmp_path / "few", before=few, after=after)]))
    values, intervals = row(text, "sampled accuracy")
    assert values[1:] == ["10.0", "90.0"]
    assert intervals[1:] == ["no interval, n = 9"] * 2
