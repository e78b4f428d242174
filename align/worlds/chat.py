"""What the built-in worlds share: turn markers, a chat template, and a small Llama."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BOS, END, PAD, UNKNOWN = "<bos>", "<end>", "<pad>", "<unk>"
TURNS = {role: f"<{role}>" for role in ("system", "user", "assistant", "tool")}
SPECIAL_TOKENS = (PAD, BOS, END, UNKNOWN, *TURNS.values())

CHAT_TEMPLATE = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{{- '<' + message['role'] + '>' + message['content'] + eos_token }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<assistant>' }}{%- endif %}"
)


def chat_tokenizer(backend: Tokenizer, max_length: int) -> PreTrainedTokenizerFast:
    """`backend` as an ordinary transformers tokenizer: padding differs from end, one BOS in front.

    Args:
        backend: its vocabulary holds SPECIAL_TOKENS.
        max_length: tokens the model takes.
    """
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNKNOWN,
        additional_special_tokens=list(TURNS.values()),
        chat_template=CHAT_TEMPLATE,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )


def tiny_llama(
    tokenizer: PreTrainedTokenizerFast, *, layers: int, width: int, heads: int, seed: int
) -> LlamaForCausalLM:
    """A Llama with random weights, float32; the caller's random state is left alone.

    Args:
        tokenizer: gives the vocabulary, the control ids and the number of positions.
        layers: decoder layers.
        width: hidden size; the feed-forward layer is three times as wide.
        heads: attention heads.
        seed: of the weights.
    """
    bos, end, pad = (tokenizer.get_vocab()[token] for token in (BOS, END, PAD))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=tokenizer.model_max_length,
        tie_word_embeddings=False,
        bos_token_id=bos,
        eos_token_id=end,
        pad_token_id=pad,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)
