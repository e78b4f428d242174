"""Small random models of the kinds that recipes name, which write letters and digits.

Llama 3, Llama 2, Mistral, Zephyr and LLaVA as transformers has them, with tokenizers and chat
templates of these families; a reward model; Stable Diffusion 1.5 and XL. What a model writes hardly
depends on what it reads: one channel of its embeddings is the same for all tokens, and the head
turns it into fixed odds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlavaForConditionalGeneration,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from align.policies.classifiers import new_classifier
from align.policies.model import Model
from align.worlds import world
from tests.align.diffusion import tiny_pipelines
from tests.align.trainers import vision_in_code
from tests.tokenizers_in_code import tokenizer_in_code

# Words, of which the last one ends a sentence; a search finds a right answer among a few.
WRITES = ("1", "2", "a", "b", "c", ".")
OF_PICTURES = ("red", "green", "blue", "is", "x")
# Half of such texts hold no comma, and most are long enough for an earnest answer; the numbers are
# answers to questions, the letters verdicts.
SENTENCES = (
    *("1", "2", "A", "B"),
    *("\u0120quick", "\u0120brown", "\u0120fox", "\u0120jumps", "\u0120over", "\u0120the"),
    *("\u0120lazy", "\u0120dog", "\u0120sea", "\u0120wind", "\u0120water", ",", "."),
)
OFTEN = 8.0  # of what stands in the first channels of an embedding


def _speak(model: Any, words: list[int], end: int) -> None:
    """Gives the model's next token odds of its own.

    The last of the words is twice as likely as each other, the end follows it, and all other
    tokens come nearly never. So the likeliest answer is neither empty nor endless.
    """
    inputs, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    last = words[-1]
    # The channel is most of the norm, so behind the last norm it is about sqrt(width).
    unit = inputs.shape[1] ** -0.5
    with torch.no_grad():
        inputs[:, :2] = torch.tensor([OFTEN, 0.0])
        inputs[last, 1] = OFTEN
        head[:, :2] = torch.tensor([-20 * unit, 0.0])
        head[words, 0] = 0
        head[last, 0] = 0.7 * unit
        head[end, 0] = -2 * unit
        head[end, 1] = 9 * unit


def _config(tokenizer: Any, config: type[Any], layers: int = 2) -> Any:
    pad = tokenizer.pad_token_id
    return config(
        vocab_size=len(tokenizer),
        # bitsandbytes packs blocks of 64 weights on a CPU.
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id if pad is None else pad,
    )


def _language_model(
    family: str,
    config: type[Any],
    kind: type[Any],
    layers: int = 2,
    words: Sequence[str] = WRITES,
) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        tokenizer = tokenizer_in_code(family)
        known = tokenizer.get_vocab()
        torch.manual_seed(0)
        model = kind(_config(tokenizer, config, layers))
        _speak(model, [known[word] for word in words], known[tokenizer.eos_token])
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return save


def _reward_model(folder: Path) -> None:
    tokenizer = tokenizer_in_code("llama3")
    config = _config(tokenizer, LlamaConfig)
    config.num_labels = 1
    torch.manual_seed(1)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _sums(folder: Path) -> None:
    base = world("sums").base_model()
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)


def _sums_dpo(folder: Path) -> None:
    """The base model a little further on, so that there is a log-ratio."""
    base = world("sums").base_model()
    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1e-3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)


def _sums_reward(folder: Path) -> None:
    base = str(world("sums").base_model())
    torch.manual_seed(1)
    new_classifier(Model(model_name_or_path=base), base).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)


def _llava(folder: Path) -> None:
    vision_in_code.llava(folder)
    model = LlavaForConditionalGeneration.from_pretrained(folder)
    known = vision_in_code.tokenizer().get_vocab()
    _speak(model, [known[word] for word in OF_PICTURES], known["</s>"])
    model.save_pretrained(folder)


BUILDERS: dict[str, Callable[[Path], object]] = {
    "llama3": _language_model("llama3", LlamaConfig, LlamaForCausalLM),
    "llama2": _language_model("llama2", LlamaConfig, LlamaForCausalLM),
    "mistral": _language_model("mistral", MistralConfig, MistralForCausalLM),
    "zephyr": _language_model("zephyr", MistralConfig, MistralForCausalLM),
    "reward_model": _reward_model,
    "sums": _sums,
    "sums_reward": _sums_reward,
    "sums_dpo": _sums_dpo,
    "llava": _llava,
    "qwen": _language_model("qwen", Qwen2Config, Qwen2ForCausalLM),
    # Recipes name some of SmolLM2-135M's 30 layers.
    "smollm2": _language_model("qwen", LlamaConfig, LlamaForCausalLM, 30, SENTENCES),
    "sd15": tiny_pipelines.save_sd15,
    "sdxl": tiny_pipelines.save_sdxl,
}
