"""The table of names: everything in it is there, and nothing that should be in it is missing."""

import importlib
import pickle
import pkgutil
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

import align
import align_data
import align_eval
from align import registry
from align.built_in import BUILT_IN, KINDS
from align.errors import RecipeError
from align.evaluation import EvaluationNode
from align.judges.base import JudgeNode
from align.judges.by import JudgedBy, judge_class
from align.loops.stage import StageNode
from align.node import Node
from align.objectives import AnyGroupObjective, AnyObjective
from align.objectives.base import Formula
from align.stages.judge import Judge
from align.stages.select import Select
from align.worlds.base import World

EVERY = [(kind, name) for kind in KINDS for name in BUILT_IN[kind]]
BASES = {
    "objective": Formula,
    "stage": StageNode,
    "judge": JudgeNode,
    "evaluation": EvaluationNode,
}


@pytest.mark.parametrize(("kind", "name"), EVERY, ids=lambda word: str(word))
def test_every_name_is_there_and_is_what_its_kind_promises(kind: Any, name: str) -> None:
    found = registry.find(kind, name)
    assert found.code is None, "built-in code has the version of the package"
    if kind in BASES:
        node: Any = registry.node(kind, name)
        assert issubclass(node, BASES[kind])
        assert node.model_fields[registry.TAGS[kind]].default == name
        described = [key for key, field in node.model_fields.items() if not field.description]
        assert kind == "objective" or described == []
    elif kind == "world":
        assert issubclass(found.value, World)
        assert found.value.name == name
    elif kind == "task":
        assert found.value.stem == name
    else:
        assert callable(found.value)


def test_every_objective_of_the_unions_has_its_name() -> None:
    unions = (AnyObjective, AnyGroupObjective)
    members = [member for union in unions for member in get_args(get_args(union)[0])]
    assert len(members) == len(BUILT_IN["objective"]), "a name is in one of the two"
    named = {registry.node("objective", name) for name in BUILT_IN["objective"]}
    assert named == set(members)


def _all_classes(of: type) -> set[type]:
    return {inner for child in of.__subclasses__() for inner in {child, *_all_classes(child)}}


@pytest.mark.parametrize(
    ("kind", "base"), [("stage", StageNode), ("judge", JudgeNode), ("evaluation", EvaluationNode)]
)
def test_no_node_of_the_toolkit_is_without_a_name(kind: Any, base: type) -> None:
    """A node that nobody can write in a recipe has been forgotten in the table."""
    for package in (align, align_data, align_eval):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith(("__main__", "launched", "ray_engine")):
                importlib.import_module(module.name)
    named = {registry.node(kind, name) for name in BUILT_IN[kind]}
    tag = registry.TAGS[kind]
    concrete = {
        node
        for node in _all_classes(base)
        if node.__module__.partition(".")[0] in ("align", "align_data", "align_eval")
        and isinstance(node.model_fields[tag].default, str)  # type: ignore[attr-defined]
        and node.__qualname__ == node.__name__
        and getattr(importlib.import_module(node.__module__), node.__name__, None) is node
    }
    assert concrete == named


def test_worlds_without_a_name_are_none() -> None:
    named = {registry.find("world", name).value for name in BUILT_IN["world"]}
    built_in = {w for w in _all_classes(World) if w.__module__.startswith("align.")}
    assert built_in == named


def test_a_node_has_the_keys_of_the_judge_that_by_names_and_travels_between_processes() -> None:
    node: Any = Judge.of(by="answers", path="a.jsonl", max_failed=0.5)
    assert isinstance(node, Judge)
    assert isinstance(node, judge_class("answers"))
    assert (node.path, node.max_failed) == ("a.jsonl", 0.5)
    again = pickle.loads(pickle.dumps(node))
    assert again == node
    assert type(again) is type(node)
    rule: Any = Select.of(rule="random_pair", pairs=3)
    assert pickle.loads(pickle.dumps(rule)) == rule


def test_what_stands_beside_by_is_checked_by_both() -> None:
    class Doubtful(JudgedBy):
        by: Any
        flips: float = 0.0

        def conflicts(self) -> Any:
            yield from super().conflicts()
            if self.flips > 1:
                yield "flips", "is more than all"

    with pytest.raises(ValueError, match="flips: is more than all"):
        Doubtful.of(by="answers", path="a", flips=2.0)
    with pytest.raises(ValueError, match="path"):
        Doubtful.of(by="answers", flips=0.5)


def test_would_run_reads_and_does_not_run(tmp_path: Path) -> None:
    source = tmp_path / "own.py"
    source.write_text("raise SystemExit\n")
    said = registry.would_run(f"{source}:thing")
    assert said is not None
    assert f"thing of {source} (1 lines, sha256 " in said
    assert registry.would_run("dpo") is None
    missing = registry.would_run(f"{tmp_path}/no.py:thing")
    assert missing is not None
    assert "which is not there" in missing


def test_what_is_no_node_of_its_kind_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "own.py"
    source.write_text("class Plain:\n    pass\n\n\nnumber = 3\n")
    for kind, what in (("objective", "Objective"), ("stage", "StageNode")):
        with pytest.raises(RecipeError, match=f"is no subclass of .*{what}"):
            registry.node(kind, f"{source}:Plain")  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="is no function, and no subclass"):
        judge_class(f"{source}:number")


def test_node_is_the_base_of_all() -> None:
    assert issubclass(StageNode, Node)
    assert issubclass(Node, BaseModel)
