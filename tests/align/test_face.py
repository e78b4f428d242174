"""`import align`: lazy, complete, the same for people and checkers, and clear when wrong."""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import align
import align.judges
from align.errors import MachineError

WHERE = align._WHERE
HEAVY = ("torch", "transformers", "trl", "pydantic", "diffusers", "align_data")


def python(code: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    return ended.stdout.strip()


def test_importing_it_imports_nothing_heavy() -> None:
    code = f"import sys, align; dir(align); print([m for m in {HEAVY} if m in sys.modules])"
    assert python(code) == "[]"


def test_the_loop_needs_no_torch() -> None:
    code = "import sys; from align import Ledger, Loop, given; print('torch' in sys.modules)"
    assert python(code) == "False"


@pytest.mark.parametrize("name", align.__all__)
def test_every_name_is_what_its_room_calls_so(name) -> None:
    module, _, attribute = WHERE[name].partition(":")
    assert attribute == name
    assert getattr(align, name) is getattr(importlib.import_module(module), name)


def test_table_list_and_directory_hold_the_same_names() -> None:
    assert set(align.__all__) == set(WHERE)
    assert len(set(align.__all__)) == len(align.__all__)
    assert set(align.__all__) <= set(dir(align))


def for_checkers() -> ast.If:
    tree = ast.parse(Path(align.__file__).read_text(encoding="utf-8"))
    return next(node for node in tree.body if isinstance(node, ast.If))


def test_checkers_see_the_same_names_in_the_same_rooms() -> None:
    block = for_checkers()
    seen = {
        alias.name: f"{node.module}:{alias.name}"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    [stub] = [node.name for node in block.body if isinstance(node, ast.FunctionDef)]
    assert {name: seen[name] for name in WHERE if name != stub} == {
        name: where for name, where in WHERE.items() if name != stub
    }
    assert stub == "mcts_step_pairs"


def test_what_checkers_see_of_the_search_is_its_signature() -> None:
    [stub] = [node for node in for_checkers().body if isinstance(node, ast.FunctionDef)]
    real = inspect.signature(align.mcts_step_pairs).parameters.values()
    of_kind = {
        kind: [p.name for p in real if p.kind is kind]
        for kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    }
    assert list(of_kind.values()) == [
        [argument.arg for argument in arguments]
        for arguments in (stub.args.args, stub.args.kwonlyargs)
    ]
    defaults = [ast.literal_eval(default) for default in stub.args.kw_defaults if default]
    assert defaults == [p.default for p in real if p.kind is p.KEYWORD_ONLY]


def test_every_trainer_config_objective_and_judge_is_offered() -> None:
    from align import objectives, trainers

    every = {name for name in objectives.__all__ if not name.startswith("Any")}
    assert {*trainers.__all__, *every} <= set(align.__all__)
    folder = Path(align.judges.__file__).parent
    judges = {
        node.name
        for file in folder.glob("*.py")
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
        and {"score", "compare"} & {m.name for m in node.body if isinstance(m, ast.FunctionDef)}
    }
    # The two protocols, what a function in a recipe is wrapped in, and what a loop hands state to.
    inner = {"PairJudge", "ScoreJudge", "ScoringFunction", "ComparingFunction", "AdaptiveJudge"}
    assert judges - inner <= set(align.__all__)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("DPOTraner", "DPOTrainer"), ("forest_logp", "forest_logps"), ("ledger", "Ledger")],
)
def test_a_wrong_name_is_answered_with_the_nearest(wrong, right) -> None:
    said = rf"module 'align' has no attribute '{wrong}'; did you mean `{right}`\?"
    with pytest.raises(AttributeError, match=said):
        getattr(align, wrong)
    with pytest.raises(ImportError):
        exec(f"from align import {wrong}")


def test_a_far_name_and_pythons_own_get_no_hint() -> None:
    for name in ("zebra", "__wrapped__", "_hidden"):
        with pytest.raises(AttributeError, match=rf"no attribute '{name}'$"):
            getattr(align, name)


def test_without_diffusers_it_says_what_to_install(monkeypatch) -> None:
    real = builtins.__import__

    def without(name, *rest):
        if name.partition(".")[0] == "diffusers":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *rest)

    for module in [m for m in sys.modules if m.startswith("align.diffusion.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.delitem(vars(align), "SePPOTrainer", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MachineError, match=r"pip install 'align-toolkit\[diffusion\]'"):
        _ = align.SePPOTrainer


def test_another_missing_module_is_not_taken_for_it(monkeypatch) -> None:
    monkeypatch.setitem(WHERE, "world", "align.no_such_room:world")
    monkeypatch.delitem(vars(align), "world", raising=False)
    with pytest.raises(ModuleNotFoundError, match="no_such_room"):
        _ = align.world
