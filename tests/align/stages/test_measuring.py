"""A run's evaluations: the start scored once, one model in memory, the model safe first."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import align.stages.policies
import align.stages.training
from align.app.cli import main
from align.runs.manifest import damage
from align_eval import preference
from tests import tiny_loops

LORA = {"use_peft": True, "lora_r": 2, "lora_target_modules": ["q_proj", "v_proj"]}
# An evaluation that reads the start's weights: 1.0 where they are another model in memory.
READS_START = """
from align.estimates import mean
from align.evaluation import Measurement


class Apart(Measurement):
    run: str = "evaluations.py:Apart"
    reads_start = True

    def estimates(self, subject):
        found = subject.in_memory(self.run)
        shared = found.reference.config is found.model.config
        assert found.reference.device == found.model.device
        return {"model": mean([float(not shared)], what="model")}
"""


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_loops.build_policy(tmp_path_factory.mktemp("start"))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    tiny_loops.build_rows(tmp_path)
    (tmp_path / "evaluations.py").write_text(READS_START)
    return tmp_path


@pytest.fixture
def train(start: Path, place: Path) -> Callable[..., dict[str, Any]]:
    """Function: (run, model keys, suite) -> metrics of a finished `align train`."""

    def finished(run: str, suite: Any = ("preference",), **model: Any) -> dict[str, Any]:
        recipe = {
            "model": {"model_name_or_path": str(start), **model},
            "roles": {"reference": "start"},
            "data": {"pairs": "eval.jsonl", "eval_pairs": "eval.jsonl"},
            "objective": {"name": "dpo", "beta": 0.1},
            "train": tiny_loops.TRAIN | {"learning_rate": 1e-2},
            "evaluate": {"suite": list(suite)},
        }
        (place / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        main(["train", "recipe.yaml", "--run", run])
        return json.loads((place / run / "metrics.json").read_text())

    return finished


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Who was loaded and who was scored, in order."""
    found: list[str] = []
    score = preference.score_pairs

    def scored(*args: Any, title: str, **kwargs: Any) -> Any:
        found.append(title)
        return score(*args, title=title, **kwargs)

    monkeypatch.setattr(preference, "score_pairs", scored)
    for module in (align.stages.training, align.stages.policies):
        load = module.load_policy

        def loaded(*args: Any, load: Any = load) -> Any:
            found.append("load")
            return load(*args)

        monkeypatch.setattr(module, "load_policy", loaded)
    return found


def test_a_run_loads_one_model_and_scores_its_start_once(train, said) -> None:
    first = train("first", **LORA)
    assert said == ["load", "score start", "score policy"]
    assert first["after"]["preference/margin"]["value"] > 0.1
    said.clear()
    # Another run of the same start on the same pairs.
    assert train("second", **LORA)["after"] == first["after"]
    assert said == ["load", "score policy"]


@pytest.mark.parametrize(("model", "models"), [({}, 2), (LORA, 1)], ids=["full", "lora"])
def test_who_reads_the_starts_weights_gets_them(train, said, model, models) -> None:
    found = train("run", ["preference", "evaluations.py:Apart"], **model)
    assert found["before"]["evaluations.py:Apart/model"]["value"] == 0.0
    assert found["after"]["evaluations.py:Apart/model"]["value"] == models - 1
    assert said.count("load") == models


def test_the_model_is_safe_and_the_optimizer_gone_before_it_is_measured(
    train, place, said, monkeypatch
) -> None:
    expected = train("straight")
    assert said == ["load", "score start", "score policy"]
    seen: dict[str, Any] = {}
    score = preference.score_pairs

    def fails(*args: Any, title: str, **kwargs: Any) -> Any:
        if title == "score policy":
            seen["damage"] = damage(place / "cut" / "model")
            alive = [o for o in gc.get_objects() if issubclass(type(o), torch.optim.Optimizer)]
            seen["optimizers"] = len(alive)
            raise RuntimeError("no number")
        return score(*args, title=title, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(preference, "score_pairs", fails)
        with pytest.raises(RuntimeError, match="no number"):
            train("cut")
    assert seen == {"damage": None, "optimizers": 0}
    assert not (place / "cut" / "metrics.json").exists()
    weights = (place / "cut" / "model" / "model.safetensors").read_bytes()
    said.clear()
    assert train("cut")["after"] == expected["after"]
    assert said == ["load", "score policy"]
    assert (place / "cut" / "model" / "model.safetensors").read_bytes() == weights


def test_a_loop_scores_its_start_once_for_all_rounds(start, place, said) -> None:
    stages = [*tiny_loops.STAGES, {"run": "evaluate"}]
    recipe = tiny_loops.write_recipe(
        place,
        start,
        rounds=2,
        each_round=stages,
        objective={"name": "dpo"},
        roles={"reference": "round_start"},
    )
    main(["loop", str(recipe), "--run", "run"])
    assert [word for word in said if word != "load"] == [
        "score start",
        "score policy",
        "score policy",
    ]
    # The start to be measured, and the policy that all rounds hand on.
    assert said.count("load") == 2
