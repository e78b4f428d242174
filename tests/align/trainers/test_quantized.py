"""4-bit layers on a CPU must go on learning after a forward pass without gradient."""

from pathlib import Path

import pytest

pytest.importorskip("bitsandbytes", reason="needs the extra `qlora`")

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from align.errors import NumericalError
from align.policies.loading import load_policy
from align.policies.quantization import keep_gradients_on_cpu
from align.recipe import Model
from align.stages.training import adapter_of
from align.trainers import DPOConfig, DPOTrainer

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


def trained(folder: str, tokenizer, pairs, out: Path) -> DPOTrainer:
    section = Model(model_name_or_path=folder, **SECTION)
    trainer = DPOTrainer(
        load_policy(section, folder),
        args=DPOConfig(
            output_dir=str(out),
            max_steps=4,
            learning_rate=1e-2,
            per_device_train_batch_size=4,
            logging_steps=1,
            eval_strategy="steps",
            eval_steps=1,
            save_strategy="no",
            bf16=False,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            gradient_checkpointing=False,
        ),
        train_dataset=pairs,
        eval_dataset=pairs,
        processing_class=tokenizer,
        peft_config=adapter_of(section),
    )
    trainer.train()
    return trainer


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
