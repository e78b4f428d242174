"""A tiny policy and its rows, and whole loops run in this process."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from align.loops.engine import Loop
from align.loops.retention import Retention
from align.loops.stage import Artefact, first_states, given
from align.recipe import Recipe
from align.reference import content_digest
from align.runs.ledger import Ledger
from align.stages.workshop import Workshop
from tests import tiny_loops


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_loops.build_policy(tmp_path_factory.mktemp("start"))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the rows of `tiny_loops.build_rows`."""
    tiny_loops.build_rows(tmp_path)
    return tmp_path


@pytest.fixture
def recipe_of(place: Path, policy: Path) -> Callable[..., Recipe]:
    """Function: changes to the tiny loop's recipe -> the recipe."""
    return lambda **changes: tiny_loops.tiny_recipe(place, policy, **changes)


@pytest.fixture(scope="session")
def shop_of(policy: Path) -> Callable[[Recipe], Workshop]:
    """Function: a recipe -> what its stages work with."""
    tokenizer = tiny_loops.letters_tokenizer()
    return lambda recipe: Workshop(recipe, str(policy), tokenizer)


@dataclass
class Gone:
    """A loop that was gone through.

    Attributes:
        run: its folder.
        newest: artefact of each kind.
        said: (round, stage) -> what the ledger says, of the stages that were made this time.
        aside: places of the stages that were set aside this time.
    """

    run: Path
    newest: dict[str, Artefact]
    said: dict[tuple[int, str], dict[str, Any]]
    aside: list[str]

    def artefact(self, number: int, kind: str) -> Path:
        (found,) = (self.run / "rounds" / f"{number:04}").glob(f"[0-9]*/{kind}")
        return found

    def files(self) -> dict[str, bytes]:
        """Everything that the stages made, by its place in the run's folder."""
        return {
            path.relative_to(self.run).as_posix(): path.read_bytes()
            for path in sorted(self.run.glob("rounds/*/[0-9]*/**/*"))
            if path.is_file()
        }


@pytest.fixture
def go(shop_of: Callable[[Recipe], Workshop], policy: Path) -> Callable[..., Gone]:
    """Function: goes through a recipe's rounds in a folder, all artefacts kept."""

    def run(recipe: Recipe, folder: Path) -> Gone:
        folder.mkdir(exist_ok=True)
        start = content_digest(str(policy))
        assert recipe.rounds is not None
        with Ledger(folder / "ledger.jsonl") as ledger:
            before = len(list(ledger.records()))
            stages = shop_of(recipe).stages()
            first = [given("policy", policy, start), given("anchor", policy, start)]
            loop = Loop(
                folder,
                stages,
                given=[*first, *first_states(stages)],
                rounds=recipe.rounds,
                seed=recipe.train.seed,
                ledger=ledger,
                versions={},
                retention=Retention(rounds=9),
            )
            newest = loop.run()
            records = list(ledger.records())[before:]
        said = {(r["round"], r["step"]): r["about"] for r in records if r["step"] != "set-aside"}
        aside = [f"{r['round']}/{r['folder']}" for r in records if r["step"] == "set-aside"]
        return Gone(folder, newest, said, aside)

    return run


@pytest.fixture
def reloading(monkeypatch: pytest.MonkeyPatch) -> None:
    """No stage finds an object in memory: each loads what it needs from disk."""
    from align.loops.stage import LiveObjects

    monkeypatch.setattr(LiveObjects, "take", lambda self, artefact: None)
