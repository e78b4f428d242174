"""`align merge`: base and adapter are one afterwards, on disk and in a GGUF file."""

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from align.app.cli import main
from align.app.exporting import read_back
from align.app.probing import probe_logps, probe_rows
from align.publishing.gguf_file import interleaved, write_gguf
from align.runs.manifest import damage, read_about
from align.worlds.bytes import bytes_tokenizer
from tests import tiny_models


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build_llama(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    return tiny_models.build_adapter(tmp_path_factory.mktemp("adapter"), base)


def logps(model: Any) -> torch.Tensor:
    return probe_logps(model, probe_rows(bytes_tokenizer(512)))


def adapted(base: Path, adapter: Path) -> torch.Tensor:
    whole: Any = AutoModelForCausalLM.from_pretrained(base)
    return logps(PeftModel.from_pretrained(whole, str(adapter)))


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder)


def answer(words: list[Any], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    code = 0
    try:
        main([str(word) for word in words])
    except SystemExit as stop:
        code = int(stop.code or 0)
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_merged_folder_is_base_and_adapter(
    base: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said, _ = answer(["merge", adapter, "-o", tmp_path / "whole"], capsys)
    assert code == 0
    merged = loaded(tmp_path / "whole")
    assert merged.dtype == torch.float32
    assert torch.allclose(logps(merged), adapted(base, adapter), atol=1e-4)
    # The adapter does something, or the test could not fail.
    assert (logps(merged) - logps(loaded(base))).abs().mean() > 0.1
    assert "nats a token on average" in said
    assert damage(tmp_path / "whole") is None
    about = read_about(tmp_path / "whole")["merged"]
    assert about["difference"]["largest"] < 1e-3 < about["moved"]["mean"]
    card = (tmp_path / "whole" / "README.md").read_text()
    assert "saved in float32" in card
    assert str(tmp_path) not in card
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "whole")
    assert tokenizer.chat_template == bytes_tokenizer(512).chat_template
    assert not list(tmp_path.glob(".*"))


def test_a_half_precision_folder_says_what_rounding_costs(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["merge", adapter, "-o", tmp_path / "half", "--dtype", "bfloat16"]
    assert answer(words, capsys)[0] == 0
    assert loaded(tmp_path / "half").dtype == torch.bfloat16
    about = read_about(tmp_path / "half")["merged"]
    assert about["dtype"] == "bfloat16"
    assert 1e-4 < about["difference"]["mean"] < 0.2


def test_an_adapter_that_changes_nothing_is_said_to(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = tiny_models.build_adapter(tmp_path / "nothing", base, scale=0.0)
    code, said, _ = answer(["merge", nothing], capsys)
    assert code == 0
    assert "the adapter changes nothing" in said
    assert (tmp_path / "nothing-merged" / "config.json").is_file()


def test_a_sum_that_answers_otherwise_is_not_written(
    adapter: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from align.app import merging

    true_logps = merging.probe_logps
    monkeypatch.setattr(merging, "SUM_TOLERANCE", -1.0)
    code, _, said = answer(["merge", adapter, "-o", tmp_path / "whole"], capsys)
    assert (code, list(tmp_path.iterdir())) == (5, [])
    assert "nothing was written" in said.replace("\n", " ")
    monkeypatch.setattr(merging, "SUM_TOLERANCE", 1e-3)
    seen: list[int] = []

    def falsified(model: Any, rows: Any) -> torch.Tensor:
        seen.append(1)
        return true_logps(model, rows) + (1.0 if len(seen) == 4 else 0.0)

    # The fourth look is at what was saved.
    monkeypatch.setattr(merging, "probe_logps", falsified)
    code, _, said = answer(["merge", adapter, "-o", tmp_path / "whole"], capsys)
    assert (code, list(tmp_path.iterdir())) == (5, [])
    assert "so it was deleted" in said.replace("\n", " ")


def test_a_run_of_a_quantised_base_wants_a_word(
    base: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    section = {"model_name_or_path": str(base), "load_in_4bit": True, "use_peft": True}
    run = tiny_models.build_run(tmp_path / "run", adapter, **section)
    code, _, said = answer(["merge", run], capsys)
    assert code == 2
    assert "--dequantize" in said
    assert answer(["merge", run, "--dequantize"], capsys)[0] == 0
    assert torch.allclose(logps(loaded(run / "merged")), adapted(base, adapter), atol=1e-4)
    assert "quantised base" in (run / "merged" / "README.md").read_text()
    code, _, said = answer(["merge", run, "--dequantize"], capsys)
    assert code == 2
    assert "is there already" in said


def test_a_base_that_is_stored_quantised_is_refused(
    base: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = tmp_path / "stored"
    shutil.copytree(base, stored)
    config = json.loads((stored / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (stored / "config.json").write_text(json.dumps(config))
    code, _, said = answer(["merge", adapter, "--base", stored, "-o", tmp_path / "x"], capsys)
    assert code == 2
    assert "stored quantised" in said.replace("\n", " ")


def test_what_cannot_be_merged_is_refused(
    base: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, said = answer(["merge", base], capsys)
    assert code == 2
    assert "whole model" in said
    code, _, said = answer(["merge", adapter, "--dequantize", "-o", tmp_path / "x"], capsys)
    assert code == 2
    assert "not quantised" in said
    code, _, said = answer(["merge", tmp_path / "nowhere"], capsys)
    assert code == 2
    assert "there is no folder" in said
    code, _, said = answer(["merge", "nowhere"], capsys)
    assert code == 2
    assert "There is no folder" in said
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("model: {model_name_or_path: world:bytes}\n")
    code, _, said = answer(["merge", tmp_path / "run"], capsys)
    assert code == 2
    assert "has made no model yet" in said.replace("\n", " ")


def test_a_base_that_moved_is_named(
    base: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = tmp_path / "lost"
    shutil.copytree(adapter, lost)
    config = json.loads((lost / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "/no/such/base"
    (lost / "adapter_config.json").write_text(json.dumps(config))
    code, _, said = answer(["merge", lost], capsys)
    assert code == 2
    assert "--base" in said
    assert answer(["merge", lost, "--base", base], capsys)[0] == 0
    assert torch.allclose(
        logps(loaded(tmp_path / "lost-merged")), adapted(base, adapter), atol=1e-4
    )
    other = tiny_models.build_llama(tmp_path / "other", hidden_size=48)
    code, _, said = answer(["merge", lost, "--base", other, "-o", tmp_path / "y"], capsys)
    assert code == 2
    assert "does not fit its base" in said.replace("\n", " ")


@pytest.mark.parametrize("tied", [True, False])
def test_a_gguf_file_read_back_is_the_model(tmp_path: Path, tied: bool) -> None:
    folder = tiny_models.build_llama(tmp_path / "m", tie_word_embeddings=tied, head_dim=16)
    model, tokenizer = loaded(folder), bytes_tokenizer(512)
    before = logps(model)
    write_gguf(model, tokenizer, tmp_path / "f16.gguf", "f16")
    read = read_back(tmp_path / "f16.gguf", torch.float32, None)
    assert read.config.num_key_value_heads == 2
    assert read.config.head_dim == 16
    assert read.config.tie_word_embeddings is tied
    assert (logps(read) - before).abs().max() < 0.01
    write_gguf(model, tokenizer, tmp_path / "q8_0.gguf", "q8_0")
    read = read_back(tmp_path / "q8_0.gguf", torch.float32, None)
    for name, weight in model.state_dict().items():
        apart = (read.state_dict()[name] - weight).abs()
        # 32 numbers share a float16 scale, a 127th of the largest, and round to a half of it.
        scale = weight.unflatten(-1, (-1, 32)).abs().amax(-1) / 127
        allowed = 0.6 * scale.repeat_interleave(32, -1) if weight.dim() > 1 else torch.tensor(0.0)
        assert (apart <= allowed).all(), name
    write_gguf(model.bfloat16(), tokenizer, tmp_path / "bf16.gguf", "bf16")
    read = read_back(tmp_path / "bf16.gguf", torch.bfloat16, None)
    for name, weight in model.state_dict().items():
        assert torch.equal(read.state_dict()[name], weight), name
    named: Any = {"gguf_file": "bf16.gguf"}
    again: Any = AutoTokenizer.from_pretrained(tmp_path, **named)
    text = "It's 12345 o'clock,\n\n  naïve <|end|> 日本"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert again.chat_template == tokenizer.chat_template
    assert again.eos_token_id == tokenizer.eos_token_id


def test_scaled_rotations_stand_in_a_gguf_file(tmp_path: Path) -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    folder = tiny_models.build_llama(tmp_path / "m", rope_parameters=rope)
    model = loaded(folder)
    write_gguf(model, bytes_tokenizer(512), tmp_path / "m.gguf", "f16")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    (divisors,) = [t.data for t in reader.tensors if t.name == "rope_freqs.weight"]
    # Heads of 8: wavelengths 2 pi 10^(0, 1, 2, 3) = 6, 63, 628, 6283 positions. Up to 64/4 they
    # stay, from 64/1 on they are divided by 8; in between, at 62.8, the weight of the unscaled
    # one is (64/62.83 - 1) / (4 - 1) = 0.00619, so 1 / (0.99381 / 8 + 0.00619) = 7.668.
    assert divisors.tolist() == pytest.approx([1.0, 7.668, 8.0, 8.0], rel=1e-3)
    read = read_back(tmp_path / "m.gguf", torch.float32, model.config)
    assert (logps(read) - logps(model)).abs().max() < 0.01


def test_rows_of_heads_are_interleaved() -> None:
    # Two heads of four rows: halves (0, 1) and (2, 3) of each side by side.
    rows = torch.arange(8.0)[:, None].expand(8, 3)
    assert interleaved(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_merge_writes_a_gguf_file(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["merge", adapter, "-o", tmp_path / "whole", "--gguf", tmp_path / "m.gguf"]
    code, said, _ = answer(words, capsys)
    assert code == 0
    assert "m.gguf: f16" in said.replace("\n", "")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.gguf", "whole"]
    read = read_back(tmp_path / "m.gguf", torch.float32, None)
    assert (logps(read) - logps(loaded(tmp_path / "whole"))).abs().max() < 0.01
    code, _, said = answer(["merge", tmp_path / "whole", "--gguf", tmp_path / "m.gguf"], capsys)
    assert code == 2
    assert "is there already" in said


def test_other_families_get_no_gguf_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], base: Path
) -> None:
    tokenizer = bytes_tokenizer(128)
    config = GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=len(tokenizer), n_positions=128)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    code, _, said = answer(["merge", tmp_path / "gpt2", "--gguf", tmp_path / "m.gguf"], capsys)
    assert code == 2
    assert "Llama family only" in said
    from tests.tokenizers_in_code import tokenizer_in_code

    odd = tmp_path / "odd"
    shutil.copytree(base, odd)
    tokenizer_in_code("llama2").save_pretrained(odd)
    code, _, said = answer(["merge", odd, "--gguf", tmp_path / "m.gguf"], capsys)
    assert code == 2
    assert "byte-level BPE" in said
    # An adapter on it is not merged first.
    other = tiny_models.build_llama(tmp_path / "other", attention_bias=True)
    adapter = tiny_models.build_adapter(tmp_path / "adapter", other)
    words = ["merge", adapter, "-o", tmp_path / "whole", "--gguf", tmp_path / "m.gguf"]
    code, _, said = answer(words, capsys)
    assert code == 2
    assert "attention_bias" in said
    assert not (tmp_path / "whole").exists()
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize(("name", "split"), [("llama3", "gpt-2"), ("qwen", "gpt-2")])
def test_the_split_is_named_by_the_pre_tokenizer(name: str, split: str) -> None:
    import json as js

    from tokenizers import Regex, pre_tokenizers

    from align.errors import RecipeError
    from align.publishing.gguf_file import SPLITS, _split_name
    from tests.tokenizers_in_code import tokenizer_in_code

    backend: Any = tokenizer_in_code(name).backend_tokenizer  # type: ignore[attr-defined]
    assert _split_name(js.loads(backend.to_str())["pre_tokenizer"]) == split
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)

    def named(*parts: Any) -> str:
        backend.pre_tokenizer = pre_tokenizers.Sequence([*parts])
        return _split_name(js.loads(backend.to_str())["pre_tokenizer"])

    before = backend.pre_tokenizer
    try:
        for pattern, word in SPLITS.items():
            if pattern not in (None, "digits"):
                assert named(pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level) == word
        digits = pre_tokenizers.Digits(individual_digits=True)
        whole = pre_tokenizers.ByteLevel(add_prefix_space=False)
        assert named(digits, whole) == "smollm"
        for parts in (
            (pre_tokenizers.Split(Regex(r"\d+"), "isolated"), byte_level),
            (digits, byte_level),
            (byte_level,),
            (pre_tokenizers.ByteLevel(add_prefix_space=True),),
            (pre_tokenizers.Whitespace(),),
        ):
            with pytest.raises(RecipeError, match="splits text"):
                named(*parts)
    finally:
        backend.pre_tokenizer = before
