"""CPU time of sampling: `InProcessPolicy` against plain `generate(num_return_sequences=n)`.

    python scripts/bench_generation.py

A 5M-parameter Llama with random weights, 8 prompts (median 200 tokens), 4 samples each, 48 new
tokens. "equal" lengths: nothing ends early; "ragged": one token of 48 ends a completion. The two
ways take turns; the table holds medians.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from align.data.prompts import Prompt
from align.policies.base import Sampling
from align.policies.in_process import InProcessPolicy
from align.worlds.bytes import COMMON_WORDS, bytes_tokenizer

NEW_TOKENS = 48


def small_llama(vocabulary: int, ends: list[int]) -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=256,
            intermediate_size=704,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=2048,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=ends,
        )
    ).eval()
    model.generation_config.eos_token_id = ends
    model.generation_config.pad_token_id = 0
    return model


def some_prompts(tokenizer, n: int) -> list[Prompt]:
    draw = random.Random(0)
    words = COMMON_WORDS.split()
    made: list[Prompt] = []
    for row, length in enumerate(range(160, 240, 80 // n), start=1):
        text = ""
        while len(tokenizer(text)["input_ids"]) < length:
            text += " " + draw.choice(words)
        made.append(Prompt(prompt=text, source="bench", row=row))
    return made[:n]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--samples", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = bytes_tokenizer(2048)
    prompts = some_prompts(tokenizer, options.prompts)
    sampling = Sampling(max_new_tokens=NEW_TOKENS)
    vocabulary = len(tokenizer)
    cases = {"equal": [2], "ragged": [2, *range(100, 100 + vocabulary // NEW_TOKENS)]}
    print(f"{'lengths':8} {'generate [s]':>13} {'in process [s]':>15} {'ratio':>6}")
    for name, ends in cases.items():
        model: Any = small_llama(vocabulary, ends)
        policy = InProcessPolicy(model, tokenizer)
        batch = tokenizer(
            [str(prompt.prompt) for prompt in prompts],
            return_tensors="pt",
            padding=True,
            padding_side="left",
        )

        def plainly(model=model, batch=batch) -> None:
            with torch.no_grad():
                model.generate(
                    input_ids=batch["input_ids"],
                    attention_mask=batch["attention_mask"],
                    do_sample=True,
                    top_k=0,
                    max_new_tokens=NEW_TOKENS,
                    num_return_sequences=options.samples,
                )

        def in_process(policy=policy) -> None:
            policy.generate(prompts, options.samples, sampling, seed=0)

        ways: dict[str, Callable[[], None]] = {"plain": plainly, "ours": in_process}
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for repeat in range(options.repeats + 1):
            for way, run in ways.items():
                begin = time.process_time()
                run()
                if repeat > 0:  # the first turn warms up
                    seconds[way].append(time.process_time() - begin)
        plain, ours = (statistics.median(seconds[way]) for way in ways)
        print(f"{name:8} {plain:13.3f} {ours:15.3f} {plain / ours:6.2f}")


if __name__ == "__main__":
    main()
