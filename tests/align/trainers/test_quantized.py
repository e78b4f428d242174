"""4-bit layers on a CPU must go on learning after a forward pass without gradient."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("bitsandbytes", reason="needs the extra `qlora`")

import torch
from datasets import Dataset
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM
from trl.trainer.sft_config import SFTConfig

from align.errors import NumericalError
from align.policies.loading import load_policy
from align.policies.quantization import keep_gradients_on_cpu
from align.recipe import Model
from align.stages.training import adapter_of
from align.trainers import DPOConfig, DPOTrainer
from align.trainers.sft import ImitationTrainer

SECTION = {
    "load_in_4bit": True,
    "use_peft": True,
    "lora_r": 4,
    "lora_dropout": 0.0,
    "lora_target_modules": ("q_proj", "v_proj"),
}


@pytest.fixture
def folder(tmp_path: Path, tiny_tokenizer) -> str:
    torch.manual_seed(0)
    # Widths are multiples of the 4-bit block of 64.
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "policy")
    return str(tmp_path / "policy")


def trainer_of(model: Any, tokenizer, pairs, out: Path, **changes: Any) -> DPOTrainer:
    peft_config = changes.pop("peft_config", None)
    settings: dict[str, Any] = {
        "output_dir": str(out),
        "max_steps": 4,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "no",
        "bf16": False,
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "gradient_checkpointing": False,
    }
    return DPOTrainer(
        model,
        args=DPOConfig(**(settings | changes)),
        train_dataset=pairs,
        eval_dataset=pairs,
        processing_class=tokenizer,
        peft_config=peft_config,
    )


def trained(folder: str, tokenizer, pairs, out: Path) -> DPOTrainer:
    section = Model(model_name_or_path=folder, **SECTION)
    model = load_policy(section, folder)
    trainer = trainer_of(model, tokenizer, pairs, out, peft_config=adapter_of(section))
    trainer.train()
    return trainer


def adapter(model: Any) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def test_the_adapter_of_a_quantised_model_is_trained_in_float32(
    folder, tiny_tokenizer, pairs, tmp_path
) -> None:
    """TRL makes it bfloat16, in which a step of 5e-6 is lost on most of A.

    A of peft is uniform up to 1 / sqrt(64) = 0.125, and 0.06 / 512 = 1.2e-4 is far above the rate.
    """
    section = Model(model_name_or_path=folder, **SECTION)
    trainer = trainer_of(
        load_policy(section, folder),
        tiny_tokenizer,
        pairs,
        tmp_path / "out",
        peft_config=adapter_of(section),
        learning_rate=5e-6,
        eval_strategy="no",
    )
    before = adapter(trainer.model)
    assert {value.dtype for value in before.values()} == {torch.float32}
    trainer.train()
    after = adapter(trainer.model)
    assert {value.dtype for value in after.values()} == {torch.float32}
    moved = [after[name] != before[name] for name in before if "lora_A" in name]
    # From the second step on, when B is no longer 0.
    assert float(torch.cat([m.flatten() for m in moved]).double().mean()) > 0.9


def test_an_adapter_that_is_there_keeps_its_weights_to_the_last_bit(
    folder, tiny_tokenizer, pairs, tmp_path
) -> None:
    """A loop hands the adapter of one round to the next."""
    section = Model(model_name_or_path=folder, **SECTION)
    model = get_peft_model(load_policy(section, folder), adapter_of(section))
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn_like(parameter.data) / 30
    before = adapter(model)
    after = adapter(trainer_of(model, tiny_tokenizer, pairs, tmp_path / "out").model)
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert after[name].dtype == value.dtype == torch.float32
        assert torch.equal(after[name], value), name


def test_supervised_training_keeps_them_too(folder, tiny_tokenizer, tmp_path) -> None:
    section = Model(model_name_or_path=folder, **SECTION)
    model = get_peft_model(load_policy(section, folder), adapter_of(section))
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn_like(parameter.data) / 30
    before = adapter(model)
    row = {"input_ids": [1, 5, 6, 2], "labels": [-100, -100, 6, 2], "source": "a", "row": 0}
    trainer = ImitationTrainer(
        model,
        args=SFTConfig(str(tmp_path), max_length=None, bf16=False, use_cpu=True, report_to=[]),
        processing_class=tiny_tokenizer,
        train_dataset=Dataset.from_list([row]),
    )
    for name, value in adapter(trainer.model).items():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[name]), name


def test_gradients_survive_evaluations(folder, tiny_tokenizer, pairs, tmp_path) -> None:
    trainer = trained(folder, tiny_tokenizer, pairs, tmp_path / "out")
    norms = [row["grad_norm"] for row in trainer.state.log_history if "grad_norm" in row]
    assert len(norms) == 4
    assert min(norms) > 1e-4
    assert trainer.probe is not None
    assert trainer.probe["margin"] == 0.0


def test_without_the_switch_the_run_is_stopped(
    folder, tiny_tokenizer, pairs, tmp_path, monkeypatch
) -> None:
    """The negative control: what the switch prevents, and that the zero-gradient guard sees it."""
    probe = load_policy(Model(model_name_or_path=folder, **SECTION), folder)
    if keep_gradients_on_cpu(probe) == 0:
        pytest.skip("this CPU has no AVX512-BF16, so bitsandbytes never repacks")
    monkeypatch.setattr("align.trainers.objective_trainer.keep_gradients_on_cpu", lambda model: 0)
    with (
        pytest.raises(NumericalError, match="gradient's norm is exactly 0"),
        pytest.warns(UserWarning, match="an autograd kernel was not registered"),
    ):
        trained(folder, tiny_tokenizer, pairs, tmp_path / "out")
