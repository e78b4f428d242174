"""Every Python block of docs/library.md and of the README runs, on tiny worlds, as it stands."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState

import align
from tests.align.judges.fault_server import FaultServer

ROOT = Path(__file__).resolve().parents[2]
LIBRARY, README = ROOT / "docs" / "library.md", ROOT / "README.md"
# Where the documentation says that a server stands.
ADDRESS = "http://localhost:8000/v1"
# "Under ten lines", whatever the formatter makes of a long one; imports are not counted.
MOST = 9


def blocks(file: Path) -> list[tuple[str, str]]:
    """(its heading, code with the file's own line numbers) of each Python block."""
    found: list[tuple[str, str]] = []
    heading, lines, start = "", file.read_text(encoding="utf-8").splitlines(), None
    for number, line in enumerate(lines):
        if start is not None and line.startswith("```"):
            found.append((heading, "\n" * start + "\n".join(lines[start:number])))
            start = None
        elif start is None and line == "```python":
            start = number + 1
        elif start is None and line.startswith("#"):
            heading = line.lstrip("# ")
    return found


FIRST, *REST = blocks(LIBRARY)
SECTIONS = {
    heading: [code for _, code in group]
    for heading, group in itertools.groupby(REST, key=lambda block: block[0])
}


def run(code: str, file: Path, names: dict[str, Any]) -> None:
    exec(compile(code, str(file), "exec"), names)


@pytest.fixture
def answering() -> Iterator[Callable[[str], str]]:
    """Puts the address of a server in the place of the documentation's."""

    def answer(body: dict[str, Any]) -> str:
        code = re.search(r"VERDICT, the code (\w+)", body["messages"][-1]["content"])
        return f"VERDICT {code[1]}: A" if code else "?"

    with FaultServer(answer) as server:
        yield lambda code: code.replace(ADDRESS, server.url)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The names that the first block makes; it and those after it stand in one empty folder."""
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("library"))
        run(FIRST[1], LIBRARY, names)
        yield names


@pytest.fixture
def _fresh() -> None:
    """A process trains in one precision; the sections are to stand for as many processes."""
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("_fresh")
@pytest.mark.parametrize("section", SECTIONS)
def test_the_blocks_of_a_section_run(section, prepared, answering, capsys) -> None:
    if section == "Diffusion models" and importlib.util.find_spec("diffusers") is None:
        pytest.skip("diffusers is optional")
    names = dict(prepared)
    for code in SECTIONS[section]:
        run(answering(code), LIBRARY, names)
    said = capsys.readouterr().out
    assert "JudgeFailed" not in said
    assert "nan" not in said


@pytest.mark.usefixtures("_fresh")
def test_the_blocks_of_the_readme_run(tmp_path, monkeypatch, answering) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for _, code in blocks(README):
        run(answering(code), README, names)


def lines(code: str) -> int:
    """Lines on which a statement other than an import begins."""
    found = (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.stmt))
    return len({node.lineno for node in found if not isinstance(node, ast.Import | ast.ImportFrom)})


@pytest.mark.parametrize("place", range(1 + len(REST)))
def test_every_block_is_short(place) -> None:
    heading, code = [FIRST, *REST][place]
    assert lines(code) <= MOST, heading


def test_every_name_is_told() -> None:
    """Trainers and configs by the names of their formulas, which stand in one list."""
    text = LIBRARY.read_text(encoding="utf-8")
    told = {name.removesuffix("Trainer").removesuffix("Config") for name in align.__all__}
    assert [name for name in sorted(told) if not re.search(rf"\b{name}", text)] == []


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", LIBRARY.read_text(encoding="utf-8")):
        assert (LIBRARY.parent / target).exists(), target
