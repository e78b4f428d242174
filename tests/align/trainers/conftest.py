"""A tiny policy on disk and a few tokenised pairs, built in code."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", "?", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="?",
    )


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory, tiny_tokenizer) -> str:
    """Folder of a random 2-layer Llama and its tokenizer."""
    folder = tmp_path_factory.mktemp("policy")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        # Far from uniform, so that context matters.
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(6)
    model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return str(folder)


def make_pairs(n: int, seed: int = 0) -> Dataset:
    """N random pairs with prompts of 2-6 and completions of 2-9 tokens, the end token last."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high, (), generator=generator))
        return torch.randint(4, 30, (length,), generator=generator).tolist()

    return Dataset.from_list(
        [
            {
                "prompt_ids": [1, *tokens(2, 7)],
                "chosen_ids": [*tokens(2, 10), 2],
                "rejected_ids": [*tokens(2, 10), 2],
            }
            for _ in range(n)
        ]
    )


@pytest.fixture(scope="session")
def make_rows() -> Callable[[int], list[dict[str, list[int]]]]:
    """Function: number of rows -> that many random tokenised pairs, always the same ones."""
    return lambda n: make_pairs(n).to_list()


@pytest.fixture
def pairs() -> Dataset:
    return make_pairs(12)
