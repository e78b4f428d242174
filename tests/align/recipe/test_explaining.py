"""`align recipe explain` knows every key of everything that can stand in a recipe."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from align import registry
from align.app.cli import main
from align.errors import RecipeError
from align.judges.by import judge_class
from align.recipe import explain, load_recipe
from align.recipe.schemas import ROOTS, model_within

PLACES = {"stage": "each_round", "evaluation": "evaluate.suite", "objective": "objective"}


def keys_of(
    path: str, found: type[BaseModel], above: tuple[type[BaseModel], ...] = ()
) -> Iterator[str]:
    """Every key below a path: of a class, of the classes that a word chooses, and within."""
    yield path
    for name, field in found.model_fields.items():
        if name == "name" and path.startswith("objective."):
            continue
        inner = model_within(field.annotation)
        if inner is not None and inner not in above:
            yield from keys_of(f"{path}.{name}", inner, (*above, found))
        else:
            yield f"{path}.{name}"
    of_words: Any = found
    for word, chosen in of_words.classes().items() if hasattr(found, "classes") else ():
        if chosen not in above:
            yield from keys_of(f"{path}.{word}", chosen, (*above, found))


def everything() -> Iterator[str]:
    for kind, place in PLACES.items():
        for name in registry.names(kind):  # type: ignore[arg-type]
            yield from keys_of(f"{place}.{name}", registry.node(kind, name))  # type: ignore[arg-type]
    for name in (*registry.names("judge"), *registry.names("reward")):
        yield from keys_of(f"each_round.judge.{name}", judge_class(name))
    for root in ROOTS:
        kind = root.model_fields["kind"].default if "kind" in root.model_fields else None
        for name, field in root.model_fields.items():
            inner = model_within(field.annotation)
            if name == "objective" or inner is None:
                continue
            refused = getattr(inner, "unread", ())
            for key in keys_of(f"kind.{kind}.{name}" if kind else name, inner):
                if key.rpartition(".")[2] not in refused:
                    yield key


def test_every_key_of_every_node_is_explained() -> None:
    """Over the registry, so that what is added is explained or fails here."""
    found = list(dict.fromkeys(everything()))
    assert len(found) > 600, "the walk goes over everything"
    silent = [key for key in found if len(_meaning(key)) < 4 or "see `" in _meaning(key)]
    assert silent == []
    for key in ("each_round.mcts.server.revision", "each_round.judge.llm.how.criterion"):
        assert key in found


def _meaning(key: str) -> str:
    return explain(key).splitlines()[0].partition(": ")[2]


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("judge", ["judge: A judge scores", "and the keys of by, one of"]),
        ("judge.by.llm", ["server: Where it is served", "how: How it is asked"]),
        ("judge.llm.server.revision", ["a word of your own", "must be given"]),
        ("server.revision", ["a word of your own"]),
        ("judge.llm.max_failed", ["Share of verdicts", "default: 0.05"]),
        ("build.mcts", ["root_simulations", "chunk"]),
        ("mcts.server", ["base_url: of the API", "revision: which weights"]),
        ("select.tournament.min_margin", ["a number >= 0.0 and < 0.5"]),
        ("select.groups", ["advantage: Makes advantages of the scores", "label: Makes labels"]),
        ("select.groups.label.best", ["an integer >= 1 or null"]),
        ("data.groups", ["for objectives over groups"]),
        ("data.label.above", ["a number or null"]),
        ("each_round.select.random_pair", ["pairs: Drawn per prompt"]),
        ("judge.rewards.rewards", ["weight: What its scores are multiplied by"]),
        ("evaluate.suite.alpaca_eval", ["reference_outputs"]),
        ("objective.rpo.eta", ["objective.rpo.eta: Weight of the likelihood", "default: 0.005"]),
        ("judge.length", ["Characters of a completion"]),
    ],
)
def test_short_ways_lead_there_too(key: str, words: list[str]) -> None:
    said = explain(key)
    for word in words:
        assert word in said


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("generate.sample", "`samples`"),
        ("judge.llm.server.revison", "`revision`"),
        ("judge.llm.server.revision.x", "no keys of its own"),
        ("select.turnament", "`tournament`"),
        ("objective.rpo.ета", "rpo has beta, eta, form"),
        ("objective.rppo", "`objective.rpo`"),
        ("each_round.generte.samples", "`generate`"),
        ("train.seeds", "`train.seed`"),
    ],
)
def test_a_wrong_key_is_looked_for_where_it_stands(key: str, hint: str) -> None:
    with pytest.raises(RecipeError) as error:
        explain(key)
    assert hint in str(error.value)


LOOP: dict[str, Any] = {
    "model": {"model_name_or_path": "world:sums"},
    "prompts": {"source": "world:sums", "per_round": 8},
    "objective": {"name": "dpo"},
    "roles": {"reference": "start"},
    "evaluate": {"suite": ["sums"]},
    "rounds": 1,
}


def problems(tmp_path: Path, judge: dict[str, Any], **changes: Any) -> list[str]:
    stages = [{"run": "judge", **judge}, {"run": "select", "rule": "best_vs_worst"}]
    recipe = LOOP | {"each_round": [{"run": "generate"}, *stages, {"run": "train"}]} | changes
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(RecipeError) as error:
        load_recipe(tmp_path / "r.yaml")
    return str(error.value).splitlines()


def test_a_key_within_a_list_of_an_entry_gets_its_own_neighbour_and_one_line(
    tmp_path: Path,
) -> None:
    judge = {"by": "rewards", "rewards": [{"by": "length", "wieght": 2}]}
    (line,) = problems(tmp_path, judge)
    assert line.endswith("wieght: no such key; did you mean `each_round.1.rewards.0.weight`?")


def test_a_slip_is_looked_for_in_its_section_and_a_whole_name_elsewhere(tmp_path: Path) -> None:
    train = {"split": "x", "lora_target_modules": ["q_proj"]}
    changes = {"prompts": {"source": "world:sums", "seeds": 1}, "train": train}
    said = problems(tmp_path, {"by": "world"}, **changes)
    assert any("prompts.seeds: no such key; did you mean `prompts.seed`?" in line for line in said)
    assert any("train.split: no such key; did you mean `data.split`?" in line for line in said)
    # Not the near `train.optim_target_modules`: the whole name is a key of another section.
    assert any("did you mean `model.lora_target_modules`?" in line for line in said)


def test_own_code_is_explained_when_it_may_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.py").write_text(
        textwrap.dedent(
            '''
            from typing import ClassVar
            from align.judges.base import JudgeNode
            from align.objectives.base import Objective
            from align.stages.rows import RowsStage

            open("ran", "w").close()

            class Keyword(JudgeNode):
                """Counts a word."""

                word: str
                """What is counted."""
                gives = "scores"

            class Short(RowsStage):
                """Leaves long pairs out."""

                most: int = 40
                """Characters at most."""

            class Hinge(Objective, frozen=True):
                """L = max(0, 1 - x)."""

                name: str = "hinge"
                needs = frozenset({"reference"})
                beta: float = 0.1
                """The scale."""

            def right(prompt, completion, answer):
                """1 where the answer is right."""
            '''
        )
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        main(["recipe", "explain", "judge.own.py:Keyword.word"])
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert "Keyword of own.py" in said
    assert "--run-code" in said
    assert not Path("ran").exists()
    for key, words in {
        "judge.own.py:Keyword.word": "What is counted.",
        "each_round.judge.by.own.py:Keyword": "Counts a word.",
        "own.py:Keyword": "word: What is counted.",
        "each_round.own.py:Short.most": "default: 40",
        "objective.own.py:Hinge.beta": "The scale.",
        "judge.own.py:right": "1 where the answer is right.",
    }.items():
        main(["recipe", "explain", key, "--run-code"])
        assert words in capsys.readouterr().out, key
