"""What a writer draws is what is trained on, on eleven tokenizers built in code."""

import importlib.util
import math
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from align.data.messages import Message
from align.data.pairs import PreferencePair
from align.data.row_policy import RowPolicy
from align.policies.base import Sampling
from align.policies.token_writer import InProcessWriter
from align.policies.writer import Draw, Stem
from align.tokens.encoding import encode_pair


def _load_tokenizers():
    path = Path(__file__).resolve().parents[2] / "tokenizers_in_code.py"
    spec = importlib.util.spec_from_file_location("tokenizers_in_code", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["tokenizers_in_code"] = module
    spec.loader.exec_module(module)
    return module


IN_CODE = _load_tokenizers()
UNCUT = RowPolicy(max_length=None)
QUESTION = (Message(role="user", content="the quick 1 + 2?"),)


def writer_of(tokenizer):
    torch.manual_seed(1)
    size = max(tokenizer.get_vocab().values()) + 3
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    head = torch.nn.Linear(8, size)
    head.weight.data.normal_(std=0.3)
    head.bias.data.zero_()
    # Ends come often, so that both kinds of sides are met.
    writer = InProcessWriter(model, tokenizer)
    head.weight.data[list(writer.end_ids)] = 0.0
    head.bias.data[list(writer.end_ids)] = math.log(size / 6 / len(writer.end_ids))
    model.lm_head = head
    return writer


CASES = [(name, True) for name in IN_CODE.BUILDERS] + [
    (name, False) for name in ("qwen", "mistral", "words")
]


@pytest.mark.parametrize(("name", "chat"), CASES)
def test_drawn_ids_are_trained_on_exactly(name, chat):
    tokenizer = IN_CODE.tokenizer_in_code(name)
    writer = writer_of(tokenizer)
    prompt = QUESTION if chat else "the quick 1 + 2?\n"
    prompt_ids = writer.prompt_ids(prompt)
    prefix = writer.answer_ids(prompt, "quick 3\nthe")[:-1]
    (row,) = writer.draw(
        [Draw(Stem(prompt_ids, prefix, "s"), 30, Sampling(max_new_tokens=8, stop=("\n",)))], 0
    )
    sides = []
    for one in row:
        ids = (*prefix, *one.ids)
        text = writer.text(ids, prompt_ids[-1])
        # The step's own text is the rest of the whole, but for characters cut in two.
        if "\ufffd" not in text:
            begun = writer.text(prefix, prompt_ids[-1])
            assert text == begun + one.text
        sides.append((ids, text, one.finish == "end"))
    assert {ends for _, _, ends in sides} == {True, False}
    kept = 0
    for chosen, rejected in zip(sides[::2], sides[1::2], strict=True):
        if chosen[1] == rejected[1]:
            continue
        kept += 1
        texts = [
            (Message(role="assistant", content=text),) if chat else text
            for text in (chosen[1], rejected[1])
        ]
        pair = PreferencePair(
            prompt=prompt,
            chosen=texts[0],
            rejected=texts[1],
            prompt_ids=prompt_ids,
            chosen_ids=chosen[0],
            rejected_ids=rejected[0],
            chosen_ends=chosen[2],
            rejected_ends=rejected[2],
            source="s",
            row=1,
        )
        made = encode_pair(pair, tokenizer, UNCUT)
        assert tuple(made.prompt_ids) == prompt_ids
        assert tuple(made.chosen_ids) == chosen[0]
        assert tuple(made.rejected_ids) == rejected[0]
    assert kept > 8
