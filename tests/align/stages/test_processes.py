"""Who makes the group of processes gives it the recipe's patience."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from align.app import train
from align.policies.loading import loading_options
from align.recipe import Model
from align.stages import launched, processes
from align.trainers import loading


class Asked(Exception):
    """What the group was asked for; nothing after it matters here."""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def asked(**said: Any) -> None:
        raise Asked(said)

    monkeypatch.setattr(processes, "PartialState", asked)
    path = tmp_path / "recipe.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "model": {"model_name_or_path": "world:sums"},
                "data": {"pairs": "world:sums"},
                "roles": {"reference": "start"},
                "objective": {"name": "dpo"},
                "train": {"ddp_timeout": 4321, "use_cpu": True},
            }
        )
    )
    return path


def test_a_run_waits_so_long(recipe, tmp_path) -> None:
    with pytest.raises(Asked) as caught:
        train.train_recipe(recipe, [], tmp_path / "run", ())
    assert caught.value.args == ({"cpu": True, "timeout": timedelta(seconds=4321)},)


def test_a_launched_round_waits_so_long(recipe, tmp_path) -> None:
    order = tmp_path / "order.json"
    order.write_text(json.dumps({"recipe": str(recipe)}))
    with pytest.raises(Asked) as caught:
        launched.main(str(order))
    assert caught.value.args == ({"cpu": True, "timeout": timedelta(seconds=4321)},)


def test_a_role_is_loaded_for_one_device(tmp_path, monkeypatch) -> None:
    """TRL's own choice on GPUs is "auto": each process would spread its copy over all of them."""
    asked: dict[str, Any] = {}

    def created(name: str, **options: Any) -> torch.nn.Module:
        asked.update(options)
        return torch.nn.Linear(1, 1)

    monkeypatch.setattr(loading, "create_model_from_path", created)
    loading.load_frozen(str(tmp_path), torch.float32)
    assert asked["device_map"] is None


@pytest.mark.parametrize(
    ("written", "weights", "computed"),
    [
        ({"load_in_4bit": True}, torch.bfloat16, torch.bfloat16),
        ({"load_in_4bit": True, "dtype": "auto"}, "auto", torch.bfloat16),
        ({"load_in_4bit": True, "dtype": "float32"}, torch.float32, torch.float32),
        ({"load_in_8bit": True}, torch.bfloat16, torch.bfloat16),
        ({}, torch.float32, None),
    ],
    ids=str,
)
def test_quantised_weights_are_computed_in_16_bits_unless_it_says_otherwise(
    written, weights, computed, tmp_path
) -> None:
    if computed is not None:
        pytest.importorskip("bitsandbytes", reason="needs the extra `qlora`")
    section = Model.of(model_name_or_path="a/b", use_peft=True, **written)
    options = loading_options(section, str(tmp_path))
    assert options["dtype"] == weights
    if computed is not None:
        assert options["quantization_config"].bnb_4bit_compute_dtype == computed
    # A resolved recipe says the same again.
    assert Model.of(**section.model_dump()).dtype == section.dtype
