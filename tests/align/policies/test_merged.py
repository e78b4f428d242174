"""What the next training starts from: a run's model, and an adapter put into its base."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from align.errors import MachineError, RecipeError
from align.policies.fetched import folder_of
from align.policies.merged import whole_folder
from align.policies.model import Model
from align.stages.policies import policy_folder
from tests import tiny_loops

IDS = torch.tensor([[1, 4, 9, 10, 2, 5]])


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny_loops.build_policy(tmp_path_factory.mktemp("base"))


def adapter(base: Path, folder: Path, task: str = "CAUSAL_LM") -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base)
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    adapted = get_peft_model(model, lora)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    adapted.save_pretrained(folder)
    tiny_loops.letters_tokenizer().save_pretrained(folder)
    if task != "CAUSAL_LM":
        about = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps(about | {"task_type": task}))
    return folder


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


def test_the_sum_answers_as_the_adapter_on_its_base(base, tmp_path) -> None:
    folder = adapter(base, tmp_path / "adapter")
    section = Model(model_name_or_path=str(folder))
    whole = Path(policy_folder(section))
    assert not (whole / "adapter_config.json").exists()
    on_base = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
    expected, found = logits(on_base), logits(AutoModelForCausalLM.from_pretrained(whole))
    assert torch.allclose(found, expected, atol=1e-5)
    alone = logits(AutoModelForCausalLM.from_pretrained(base))
    assert float((expected - alone).abs().max()) > 0.1, "an adapter that does nothing"
    # Made once, until the adapter is another one; and kept in the type that is asked for.
    made = (whole / "model.safetensors").stat().st_mtime_ns
    assert policy_folder(section) == str(whole)
    assert (whole / "model.safetensors").stat().st_mtime_ns == made
    half = whole_folder(Model(model_name_or_path=str(folder), dtype="bfloat16"), str(folder))
    assert AutoModelForCausalLM.from_pretrained(half, dtype="auto").dtype == torch.bfloat16


def test_a_run_stands_for_its_model(base, tmp_path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text("kind: sft\n")
    with pytest.raises(RecipeError, match="left no model yet"):
        folder_of(str(run))
    (run / "model").symlink_to(base)
    assert folder_of(str(run)) == str(run / "model")
    assert policy_folder(Model(model_name_or_path=str(run))) == str(run / "model")
    assert folder_of(str(base)) == str(base)
    assert folder_of("owner/name") == "owner/name"


def test_an_adapter_of_a_classifier_starts_nothing(base, tmp_path) -> None:
    folder = adapter(base, tmp_path / "adapter", task="SEQ_CLS")
    with pytest.raises(RecipeError, match="adapter of a reward or preference model"):
        policy_folder(Model(model_name_or_path=str(folder)))


def test_a_base_that_is_gone_is_named(base, tmp_path) -> None:
    folder = adapter(base, tmp_path / "adapter")
    about = json.loads((folder / "adapter_config.json").read_text())
    about["base_model_name_or_path"] = str(tmp_path / "gone")
    (folder / "adapter_config.json").write_text(json.dumps(about))
    with pytest.raises(MachineError, match=r"stands on .*gone, which cannot be loaded"):
        policy_folder(Model(model_name_or_path=str(folder)))
