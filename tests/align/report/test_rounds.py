"""The rounds of a loop as a table."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from align.errors import DataError
from align.report.rounds import rounds_table
from align.report.summary import summary


def left(run: Path, number: int, position: int, name: str, said: dict[str, Any]) -> None:
    folder = run / "rounds" / f"{number:04}" / f"{position:02}-{name}"
    folder.mkdir(parents=True)
    about = {"about": said, "stage": {"round": number, "name": name}}
    (folder / "manifest.json").write_text(json.dumps({"about": about, "files": {}}))


def text_of(renderable: Any) -> str:
    console = Console(width=160, no_color=True)
    with console.capture() as captured:
        console.print(renderable)
    return captured.get()


def cells(text: str) -> dict[str, list[str]]:
    rows = [line.strip("│").split("│") for line in text.splitlines() if "│" in line]
    return {row[1].strip().partition("  ")[0]: [cell.strip() for cell in row[2:]] for row in rows}


def test_a_number_that_a_round_does_not_say_is_no_zero(tmp_path: Path) -> None:
    left(tmp_path, 1, 1, "generate", {"completions": 96, "failed": {}})
    left(tmp_path, 2, 1, "generate", {"completions": 90, "failed": {"too_long": 6}})
    left(tmp_path, 2, 2, "select", {"kept": 0, "ties": 4})
    found = cells(text_of(rounds_table(tmp_path)))
    assert found["completions"] == ["96", "90"]
    assert found["failed: too long"] == ["-", "6"]
    assert found["kept"] == ["-", "0"]


def test_a_stage_that_stands_twice_is_two(tmp_path: Path) -> None:
    left(tmp_path, 1, 1, "only_short", {"rows": 5})
    left(tmp_path, 1, 2, "only_short", {"rows": 3})
    text = text_of(rounds_table(tmp_path))
    assert "only_short (2)" in text


def test_of_many_rounds_the_first_and_the_last_stay(tmp_path: Path) -> None:
    for number in range(1, 101):
        left(tmp_path, number, 1, "train", {"steps": number})
    steps = cells(text_of(rounds_table(tmp_path)))["steps"]
    assert len(steps) == 8
    assert (steps[0], steps[-1]) == ("1", "100")
    assert "8 of 100" in text_of(rounds_table(tmp_path))


def test_a_loop_under_way_shows_what_there_is_and_what_was_set_aside_is_not_there(
    tmp_path: Path,
) -> None:
    left(tmp_path, 1, 1, "generate", {"completions": 96})
    aside = tmp_path / "rounds" / "0001" / "set-aside-02-judge"
    aside.mkdir()
    (aside / "manifest.json").write_text("{}")
    text = text_of(summary([tmp_path]))
    assert cells(text)["completions"] == ["96"]
    assert "has not finished" in text


def test_a_folder_without_rounds_and_metrics_is_no_run(tmp_path: Path) -> None:
    assert rounds_table(tmp_path) is None
    with pytest.raises(DataError, match=r"metrics\.json does not exist"):
        summary([tmp_path])
