"""Roles that are adapters on the policy's base score as separate models do, and leave no trace."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from align.forest import TokenRow, score_rows
from align.trainers import PreferenceConfig, PreferenceTrainer, scoring

LORA = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": ["q_proj", "v_proj"]}


def shaken(model: PeftModel, seed: int) -> PeftModel:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture
def guide(tiny_folder: str, tmp_path: Path) -> str:
    """Folder of a LoRA adapter on the tiny policy, far from doing nothing."""
    base = AutoModelForCausalLM.from_pretrained(tiny_folder)
    shaken(get_peft_model(base, LoraConfig(**LORA)), seed=1).save_pretrained(tmp_path / "guide")
    return str(tmp_path / "guide")


@pytest.fixture
def make(tiny_folder, tiny_tokenizer, tmp_path, pairs, monkeypatch):
    def build(guide: str) -> PreferenceTrainer:
        base = AutoModelForCausalLM.from_pretrained(tiny_folder)
        policy = shaken(get_peft_model(base, LoraConfig(**LORA)), seed=2)
        loaded: list[str] = []
        monkeypatch.setattr(scoring, "load_frozen", lambda source, *_: loaded.append(source))
        trainer = PreferenceTrainer(
            policy,
            args=PreferenceConfig(
                output_dir=str(tmp_path / "out"),
                learning_rate=1e-2,
                max_steps=2,
                per_device_train_batch_size=4,
                logging_steps=1,
                bf16=False,
                use_cpu=True,
                report_to=[],
                disable_tqdm=True,
                save_strategy="no",
                gradient_checkpointing=False,
            ),
            train_dataset=pairs,
            processing_class=tiny_tokenizer,
            objective={"name": "tgdpo", "beta": 0.1, "alpha": 0.5},
            roles={"guide": guide},
        )
        assert loaded == [], "a second copy of the base was loaded"
        return trainer

    return build


def scores(model, pairs, side: str) -> list[list[float]]:
    found = score_rows(model, [TokenRow(r["prompt_ids"], r[f"{side}_ids"]) for r in pairs])
    return [token[mask].tolist() for token, mask in zip(found.token, found.mask, strict=True)]


@pytest.mark.parametrize("which", ["adapter", "base"])
def test_scores_are_those_of_a_separate_model(make, guide, tiny_folder, pairs, which: str) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_folder)
    separate = PeftModel.from_pretrained(base, guide) if which == "adapter" else base
    trainer = make(guide if which == "adapter" else tiny_folder)
    for side in ("chosen", "rejected"):
        expected = scores(separate, pairs, side)
        for i, row in enumerate(trainer.train_dataset):
            assert row[f"guide_{side}_logps"] == pytest.approx(expected[i], abs=1e-4), (side, i)
            assert row[f"reference_{side}_logps"] != pytest.approx(expected[i], abs=1e-2)


def test_the_policy_is_itself_again(make, guide, tiny_folder) -> None:
    trainer = make(guide)
    policy = trainer.model
    assert list(policy.peft_config) == ["default"]
    assert policy.active_adapter == "default"
    trained = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in policy.named_parameters() if "lora_" in name}
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    trainer.train()
    moved = {n for n, p in policy.named_parameters() if not torch.equal(p, before[n])}
    assert moved == trained


def test_each_adapter_is_somebody_else(make, guide, tmp_path, tiny_folder) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_folder)
    other = shaken(get_peft_model(base, LoraConfig(**LORA)), seed=9)
    other.save_pretrained(tmp_path / "other")
    who = {
        name: make(source).identities["guide"].weights
        for name, source in (
            ("guide", guide),
            ("again", guide),
            ("other", str(tmp_path / "other")),
            ("base", tiny_folder),
        )
    }
    assert who["guide"] == who["again"]
    assert len(set(who.values())) == 3
