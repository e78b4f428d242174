"""The start policy: known without its weights, and an adapter's base in place of a second model."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from align.forest import TokenRow, score_rows
from align.policies import start as start_module
from align.policies.loaded import LoadedModel
from align.policies.model import Model
from align.policies.start import AdapterOff, Start, start_identity, wears_the_start
from tests import tiny_loops

ROWS = [TokenRow([1, 4, 8, 9, 10], [11, 12, 3]), TokenRow([1, 4, 8], [13, 14, 15, 3])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_loops.build_policy(tmp_path_factory.mktemp("start"))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_loops.letters_tokenizer()


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def adapted(folder: Path, **settings: Any) -> Any:
    """A LoRA policy whose adapter is far from nothing."""
    torch.manual_seed(0)
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], **settings)
    policy = get_peft_model(load(folder), config)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * (0.5 if "lora" in name else 0.1))
    return policy.eval()


@pytest.mark.parametrize(
    "settings", [{}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}], ids=str
)
def test_a_policy_without_its_adapter_is_its_start_to_the_last_bit(folder, settings) -> None:
    policy = adapted(folder, **settings)
    with_adapter = score_rows(policy, ROWS).token
    assert torch.equal(
        score_rows(AdapterOff(policy), ROWS).token, score_rows(load(folder), ROWS).token
    )
    assert (with_adapter - score_rows(load(folder), ROWS).token).abs().max() > 0.01
    assert torch.equal(score_rows(policy, ROWS).token, with_adapter)


@pytest.mark.parametrize("trainable", [False, True])
def test_the_adapter_is_given_back_as_it_was(folder, tmp_path: Path, trainable: bool) -> None:
    adapted(folder).save_pretrained(tmp_path / "adapter")
    policy = PeftModel.from_pretrained(
        load(folder), str(tmp_path / "adapter"), is_trainable=trainable
    ).train()
    was = {name: parameter.requires_grad for name, parameter in policy.named_parameters()}
    assert any(was.values()) == trainable
    off = AdapterOff(policy)
    score_rows(off, ROWS)
    off.generate(torch.tensor([[1, 4, 8]]), max_new_tokens=2, do_sample=False)
    assert {n: p.requires_grad for n, p in policy.named_parameters()} == was
    assert policy.training
    assert off.config is policy.config


def test_without_its_adapter_it_is_the_start_by_its_weights_too(folder, tokenizer) -> None:
    # Else what is kept of the start under this name would be looked for in vain, or, with the
    # adapter counted in, be taken from the policy itself.
    policy = adapted(folder)
    off, base, on = (
        LoadedModel(model, tokenizer).identity
        for model in (AdapterOff(policy), load(folder), policy)
    )
    assert off == base
    assert off != on


def test_generation_is_the_starts(folder) -> None:
    ids = torch.tensor([[1, 4, 8, 9]])
    how = {"max_new_tokens": 4, "do_sample": False, "output_logits": True}
    how |= {"return_dict_in_generate": True, "eos_token_id": None}
    policy = adapted(folder)
    off, base, on = (
        model.generate(ids, **how).logits[0] for model in (AdapterOff(policy), load(folder), policy)
    )
    torch.testing.assert_close(off, base, atol=1e-5, rtol=0)
    assert (on - base).abs().max() > 0.01


def test_which_policies_wear_their_start(folder, tmp_path: Path) -> None:
    policy = adapted(folder)
    assert wears_the_start(policy, str(folder))
    assert not wears_the_start(load(folder), str(folder))
    assert not wears_the_start(None, str(folder))
    # Of a start that is an adapter itself, more than the run's adapter would be switched off.
    policy.save_pretrained(tmp_path / "adapter")
    start = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter", dtype=torch.float32)
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])
    with warnings.catch_warnings():
        # peft warns of two adapters on one model, which this is about.
        warnings.simplefilter("ignore", UserWarning)
        both = get_peft_model(start, config)
    assert not wears_the_start(both, str(tmp_path / "adapter"))
    assert not wears_the_start(both, "owner/adapter")


def test_weights_are_loaded_once_and_only_when_asked_for() -> None:
    loaded: list[object] = []

    def load() -> object:
        loaded.append(object())
        return loaded[-1]

    start = Start(None, load)
    assert not start.is_model(object())
    assert not loaded
    assert start.model is start.model
    assert len(loaded) == 1
    assert start.is_model(loaded[0])
    assert not start.is_model(object())
    model = object()
    assert Start.in_memory(model).is_model(model)


def section(**keys: Any) -> Model:
    return Model(model_name_or_path="a/b", **keys)


def test_an_identity_changes_with_whatever_changes_a_score(folder, tokenizer, tmp_path) -> None:
    def key(at: Path, model: Model, of: Any) -> str:
        found = start_identity(model, str(at), of)
        assert found is not None
        return found.key

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    same = key(folder, section(), tokenizer)
    # Another place, and keys of training alone, are the same policy.
    assert key(copy, section(use_peft=True, lora_r=4), tokenizer) == same
    other_template = tiny_loops.letters_tokenizer()
    other_template.chat_template += " "
    changed = {
        key(folder, section(dtype="bfloat16"), tokenizer),
        key(folder, section(use_peft=True, load_in_4bit=True), tokenizer),
        key(folder, section(attn_implementation="eager"), tokenizer),
        key(folder, section(), other_template),
    }
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    changed.add(key(copy, section(), tokenizer))
    assert len(changed | {same}) == 6


def test_an_adapters_identity_holds_its_base(folder, tokenizer, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(folder, base)
    adapter = tmp_path / "adapter"
    adapted(base).save_pretrained(adapter)
    before = start_identity(section(), str(adapter), tokenizer)
    about = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(about | {"rope_theta": 5.0}))
    after = start_identity(section(), str(adapter), tokenizer)
    assert before is not None
    assert after is not None
    assert before.key != after.key


def test_a_hub_id_is_known_by_its_commit_or_not_at_all(tokenizer, monkeypatch) -> None:
    def at(commit: str | None) -> Any:
        place = None if commit is None else f"/cache/models--a--b/snapshots/{commit}/config.json"
        monkeypatch.setattr(start_module, "try_to_load_from_cache", lambda *_, **__: place)
        return start_identity(section(), "a/b", tokenizer)

    assert at(None) is None
    assert at("c1").key == at("c1").key != at("c2").key
