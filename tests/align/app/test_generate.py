"""`align generate`: prompts of every kind, a file that is gone on with, models of every kind."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from align.app.cli import main
from align.policies.token_writer import InProcessWriter
from tests import tiny_loops, tiny_models


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Six texts, one of them twice."""
    path = tmp_path / "prompts.txt"
    path.write_text("abc\nbcd\n\nabc\nhea\nfgh\ngab\ndde\n")
    return path


def answer(words: list[Any], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    code = 0
    try:
        main([str(word) for word in words])
    except SystemExit as stop:
        code = int(stop.code or 0)
    said = capsys.readouterr()
    return code, said.out, said.err


def rows_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def asked(model: Path, source: Any, *more: Any) -> list[Any]:
    return ["generate", model, source, "--max-new-tokens", 8, "--batch-rows", 4, *more]


def test_lines_are_asked_as_a_users_turn(
    policy: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "answers.jsonl"
    code, said, _ = answer(asked(policy, prompts, "-o", out, "--samples", 2), capsys)
    assert code == 0
    assert "6 prompts x 2" in said
    rows = rows_of(out.read_text())
    assert [(row["prompt"][0]["content"], row["sample"]) for row in rows] == [
        (text, sample) for text in ("abc", "bcd", "hea", "fgh", "gab", "dde") for sample in (0, 1)
    ]
    # The file's line numbers: a blank line and a repeated one are none of them.
    assert [row["row"] for row in rows[::2]] == [1, 2, 5, 6, 7, 8]
    assert all(row["prompt"][0]["role"] == "user" for row in rows)
    assert len({row["key"] for row in rows}) == 12
    for row in rows:
        # The end token is counted, and is no part of the text.
        assert row["finished"] == (row["tokens"] == len(row["completion"]) + 1)
        assert row["finished"] or row["tokens"] == 8
    assert any(row["finished"] for row in rows)


def test_a_file_is_gone_on_with(
    policy: Path,
    prompts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, torn = tmp_path / "whole.jsonl", tmp_path / "torn.jsonl"
    assert answer(asked(policy, prompts, "-o", whole, "--samples", 2), capsys)[0] == 0
    # A kill within the sixth line: the third prompt has one of its two samples.
    content = whole.read_bytes()
    end = [i for i, byte in enumerate(content) if byte == 10][5]
    torn.write_bytes(content[: end - 7])
    drawn: list[str] = []
    draw = InProcessWriter.draw

    def counting(self: InProcessWriter, requests: Any, seed: int) -> Any:
        drawn.extend(request.stem.key for request in requests)
        return draw(self, requests, seed)

    monkeypatch.setattr(InProcessWriter, "draw", counting)
    code, said, _ = answer(asked(policy, prompts, "-o", torn, "--samples", 2), capsys)
    assert code == 0
    assert "5 were there, 7 drawn" in said
    assert torn.read_bytes() == content
    # Two prompts were whole, four were not.
    assert len(drawn) == 4
    drawn.clear()
    code, said, _ = answer(asked(policy, prompts, "-o", torn, "--samples", 2), capsys)
    assert (code, drawn, torn.read_bytes()) == (0, [], content)
    # More prompts: the old rows stay as they are.
    prompts.write_text(prompts.read_text() + "ecf\n")
    code, said, _ = answer(asked(policy, prompts, "-o", torn, "--samples", 2), capsys)
    assert code == 0
    assert torn.read_bytes().startswith(content)
    assert len(rows_of(torn.read_text())) == 14


@pytest.mark.parametrize("change", [("--seed", 1), ("--temperature", 0.5), ("--stop", "a")])
def test_a_file_of_other_settings_is_not_mixed_with(
    policy: Path,
    prompts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: tuple[str, Any],
) -> None:
    out = tmp_path / "answers.jsonl"
    assert answer(asked(policy, prompts, "-o", out), capsys)[0] == 0
    before = out.read_bytes()
    code, _, said = answer(asked(policy, prompts, "-o", out, *change), capsys)
    assert code == 2
    assert "answers.jsonl:1" in said
    assert out.read_bytes() == before


def test_rows_of_files_are_read_as_recipes_read_them(
    policy: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = tmp_path / "rows.jsonl"
    tiny_loops.write_rows(source, [{"question": "abc"}, {"question": ""}, {"question": "bcd"}])
    code, said, told = answer(asked(policy, source, "--temperature", 0), capsys)
    assert code == 0
    rows = rows_of(said)
    assert [row["row"] for row in rows] == [1, 3]
    # What is not a row of the answer is said where it is no part of them.
    assert "2 prompts x 1: 2 drawn" in told
    assert "1 empty_prompt" in told
    # The same texts from stdin give the same answers.
    monkeypatch.setattr("sys.stdin", io.StringIO("abc\nbcd\n"))
    code, said, _ = answer(asked(policy, "-", "--temperature", 0), capsys)
    assert [row["completion"] for row in rows_of(said)] == [row["completion"] for row in rows]
    csv = tmp_path / "rows.csv"
    csv.write_text("question\nabc\nbcd\n")
    code, said, _ = answer(asked(policy, csv, "--temperature", 0), capsys)
    assert [row["completion"] for row in rows_of(said)] == [row["completion"] for row in rows]
    # A plain prompt is continued as it stands, which a user of a chat model is told.
    tiny_loops.write_rows(source, [{"prompt": "abc"}])
    code, said, told = answer(asked(policy, source, "--temperature", 0), capsys)
    assert rows_of(said)[0]["prompt"] == "abc"
    assert "continued as they stand" in told


def test_a_stop_text_ends_an_answer(
    policy: Path, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hot = ("--temperature", 1.0, "--top-p", 1.0)
    _, said, _ = answer(asked(policy, prompts, *hot), capsys)
    free = [row["completion"] for row in rows_of(said)]
    letter = next(text[1] for text in free if len(text) > 1 and text[1] != text[0])
    _, said, _ = answer(asked(policy, prompts, *hot, "--stop", letter), capsys)
    rows = rows_of(said)
    assert [row["completion"] for row in rows] == [text.split(letter)[0] for text in free]
    assert all(row["finished"] for row, text in zip(rows, free, strict=True) if letter in text)


def test_runs_and_adapters_are_models_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], prompts: Path
) -> None:
    base = tiny_models.build_llama(tmp_path / "base")
    adapter = tiny_models.build_adapter(tmp_path / "adapter", base)
    nothing = tiny_models.build_adapter(tmp_path / "nothing", base, scale=0.0)
    section = {"model_name_or_path": str(base), "use_peft": True}
    run = tiny_models.build_run(tmp_path / "run", adapter, **section)
    whole = tiny_models.build_run(tmp_path / "whole", base, model_name_or_path="world:bytes")
    said = {
        model: [
            row["completion"]
            for row in rows_of(answer(asked(model, prompts, "--temperature", 0), capsys)[1])
        ]
        for model in (base, adapter, nothing, run, run / "model", whole)
    }
    assert len(said[base]) == 6
    assert said[nothing] == said[base] == said[whole]
    assert said[adapter] != said[base]
    assert said[run] == said[run / "model"] == said[adapter]


def test_prompts_beyond_the_context_are_counted(
    policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "prompts.txt"
    source.write_text("abc\n" + "a" * 70 + "\n")
    code, said, told = answer(asked(policy, source, "--temperature", 0), capsys)
    assert code == 0
    assert len(rows_of(said)) == 1
    assert "left out: 1 prompts, too_long" in told
    source.write_text("a" * 70 + "\n")
    code, _, told = answer(asked(policy, source), capsys)
    assert code == 3
    assert "None of 1 prompts can be continued" in told


def test_what_cannot_be_generated_from_is_said(
    policy: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty, foreign = tmp_path / "empty.txt", tmp_path / "foreign.jsonl"
    empty.write_text("\n \n")
    foreign.write_text('{"text": "a"}\n')
    (tmp_path / "nothing").mkdir()
    expected = {
        "no line to ask": (3, asked(policy, empty)),
        "There is no file": (3, asked(policy, tmp_path / "nowhere.jsonl")),
        "the same completion": (2, asked(policy, prompts, "--samples", 2, "--temperature", 0)),
        "--top-p": (2, asked(policy, prompts, "--top-p", 0)),
        "there is no folder": (2, asked(tmp_path / "nowhere", prompts)),
        "no language model": (2, asked(tmp_path / "nothing", prompts)),
        "did you mean world:sums": (2, asked(Path("world:sum"), prompts)),
        "this is no row": (3, asked(policy, prompts, "-o", foreign)),
        "so it has no base": (2, asked(Path("world:bytes"), prompts, "--base", "x")),
    }
    for words, (code, command) in expected.items():
        found, _, said = answer(command, capsys)
        assert (found, words in said.replace("\n", " ")) == (code, True), (words, said)
