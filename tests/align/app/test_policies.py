"""Policies of a loop on disk and in memory."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GenerationConfig

from align.reference import weights_digest
from align.stages.policies import (
    load_round_policy,
    save_policy,
    unpatched,
    update_average,
)
from align.stages.train import start_source
from tests import tiny_loops


def start_model(policy: Path, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(policy, dtype=dtype)


def adapter(policy: Path, dtype: torch.dtype) -> Any:
    """With weights that are not those of a new adapter."""
    torch.manual_seed(0)
    targets = ["q_proj", "v_proj", "o_proj"]
    model = get_peft_model(start_model(policy, dtype), LoraConfig(r=2, target_modules=targets))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_()
    return model


def test_a_saved_policy_says_that_it_is_sampled_from(policy: Path, tmp_path: Path) -> None:
    assert not GenerationConfig.from_pretrained(policy).do_sample
    save_policy(start_model(policy), tiny_loops.letters_tokenizer(), tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path).do_sample


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_comes_back_with_its_bits_and_its_type(
    dtype: torch.dtype, recipe_of, policy: Path, tmp_path: Path
) -> None:
    """On a quantised base TRL trains in bfloat16 what peft would load in float32."""
    model = adapter(policy, torch.bfloat16)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(dtype)
    save_policy(model, tiny_loops.letters_tokenizer(), tmp_path / "policy")
    recipe = recipe_of(model={"use_peft": True, "dtype": "bfloat16"})
    loaded = load_round_policy(recipe, tmp_path / "policy", str(policy), trainable=True)
    assert weights_digest(loaded) == weights_digest(model)
    trained = {name for name, p in loaded.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if "lora_" in name}


@pytest.mark.e2e
def test_an_adapter_is_written_in_the_same_words_by_every_process(
    policy: Path, tmp_path: Path, root: Path
) -> None:
    """Sets of texts have another order in each process."""
    script = (
        "import sys; from pathlib import Path; import torch; from peft import *;"
        "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T;"
        "from align.stages.policies import save_policy; torch.manual_seed(0);"
        "at = ['q_proj', 'k_proj', 'v_proj', 'o_proj', 'up_proj', 'gate_proj', 'down_proj'];"
        "m = get_peft_model(M.from_pretrained(sys.argv[1]), LoraConfig(r=2, target_modules=at));"
        "save_policy(m, T.from_pretrained(sys.argv[1]), Path(sys.argv[2]))"
    )
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", script, str(policy), str(tmp_path / seed)],
            env=tiny_loops.environment(root, tmp_path) | {"PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
        )
    first = {path.name: path.read_bytes() for path in (tmp_path / "1").iterdir()}
    second = {path.name: path.read_bytes() for path in (tmp_path / "2").iterdir()}
    assert first == second
    targets = json.loads(first["adapter_config.json"])["target_modules"]
    assert targets == sorted(targets)
    assert len(targets) == 7


def test_a_start_that_is_an_adapter_is_loaded_once(recipe_of, policy: Path, tmp_path: Path) -> None:
    save_policy(adapter(policy, torch.float32), tiny_loops.letters_tokenizer(), tmp_path / "a")
    model = load_round_policy(recipe_of(), tmp_path / "a", str(tmp_path / "a"), trainable=False)
    assert type(model).__name__ == "LlamaForCausalLM"


def test_the_start_of_a_loop_of_adapters_is_their_base(recipe_of, policy: Path) -> None:
    adapters, whole = recipe_of(model={"use_peft": True}), recipe_of()
    assert start_source(adapters, "owner/name") == "owner/name"
    assert start_source(whole, "owner/name") == "owner/name@main"
    assert start_source(whole, str(policy)) == str(policy)


def test_an_average_moves_by_its_share(policy: Path) -> None:
    """0.75 x 2 + 0.25 x 6 = 3, in the average's own type."""
    average, newest = start_model(policy, torch.bfloat16), start_model(policy)
    for model, value in ((average, 2.0), (newest, 6.0)):
        for parameter in model.parameters():
            parameter.data.fill_(value)
    update_average(average, newest, 0.75)
    for parameter in average.parameters():
        assert parameter.dtype == torch.bfloat16
        assert bool((parameter == 3.0).all())
    assert all(bool((parameter == 6.0).all()) for parameter in newest.parameters())


def test_unpatched_takes_off_what_a_trainer_puts_on(policy: Path) -> None:
    from align.forest.model import add_edge_head

    model = start_model(policy).train()
    for _ in range(2):
        add_edge_head(model)
        model.enable_input_require_grads()
        unpatched(model)
    assert "forward" not in vars(model)
    assert not model.get_input_embeddings()._forward_hooks
    assert not model.training
