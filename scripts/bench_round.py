"""CPU time of a loop's round of 64 prompts against its parts called directly, without the engine.

    python scripts/bench_round.py

A 1M-parameter Llama with random weights, 64 prompts of three words, 4 samples of at most 24 tokens,
known answers, best against worst, one epoch. The parts: generation with `InProcessPolicy`, the
judge, the selection, and a trainer on the pairs; nothing is written. The round: the stages of a
recipe from one published policy to the next. Both load the model. The two take turns; the ratio is
that of the medians.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from align.data.completions import Completion
from align.judges import base as judges
from align.loops.engine import Loop
from align.loops.stage import given
from align.policies.base import Sampling
from align.policies.in_process import InProcessPolicy
from align.recipe import Recipe, load_recipe
from align.reference import content_digest
from align.runs.ledger import Ledger
from align.stages.judge import judge_prompts
from align.stages.policies import load_round_policy, unpatched
from align.stages.prompts import PromptSource
from align.stages.rules import BestVsWorst, select
from align.stages.train import train_on
from align.stages.workshop import Workshop
from align.worlds import chat
from align.worlds.bytes import COMMON_WORDS, bytes_tokenizer

PROMPTS = 64


def start_policy(folder: Path) -> Path:
    tokenizer = bytes_tokenizer(512)
    model = chat.tiny_llama(tokenizer, layers=4, width=128, heads=4, seed=0)
    # About one token in 12 ends an answer.
    ends = [tokenizer.eos_token_id, *range(100, 100 + len(tokenizer) // 12)]
    model.generation_config.eos_token_id = ends
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def loop_recipe(folder: Path, start: Path) -> Recipe:
    draw = random.Random(0)
    words = COMMON_WORDS.split()
    texts = {" ".join(draw.choices(words, k=3)) for _ in range(2 * PROMPTS)}
    prompts = [{"prompt": [{"role": "user", "content": t}]} for t in sorted(texts)[:PROMPTS]]
    answers = [{"prompt": t, "answer": ""} for t in sorted(texts)]
    for name, rows in (("prompts", prompts), ("answers", answers)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    nodes = {
        "model": {"model_name_or_path": str(start)},
        "prompts": {"source": str(folder / "prompts.jsonl")},
        "objective": {"name": "dpo"},
        "roles": {"reference": "round_start"},
        "data": {"eval_pairs": "none.jsonl", "max_dropped": 1.0},
        "train": {
            "learning_rate": 1e-5,
            "num_train_epochs": 1,
            "per_device_train_batch_size": 8,
            "gradient_checkpointing": False,
            "save_strategy": "no",
        },
        "rounds": 1,
        "each_round": [
            {"run": "generate", "samples": 4, "max_new_tokens": 24},
            # Right is whatever begins with a letter of the alphabet's first half.
            {
                "run": "judge",
                "by": "answers",
                "path": str(folder / "answers.jsonl"),
                "pattern": r"^(?=\s?[a-mA-M])()",
            },
            {"run": "select", "rule": "best_vs_worst"},
            {"run": "train"},
        ],
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(nodes))
    return load_recipe(path)


class Bench:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.start = start_policy(folder / "start")
        self.recipe = loop_recipe(folder, self.start)
        tokenizer = bytes_tokenizer(512)
        self.workshop = Workshop(self.recipe, str(self.start), tokenizer)
        self.digest = content_digest(str(self.start))
        self.turn = 0
        self.pairs: list[int] = []

    def _fresh(self) -> Path:
        """A folder of this turn's own; role scores are cached, so the cache is new as well."""
        self.turn += 1
        os.environ["ALIGN_CACHE"] = str(self.folder / f"cache-{self.turn}")
        return self.folder / f"run-{self.turn}"

    def by_the_engine(self) -> float:
        run = self._fresh()
        run.mkdir()
        began = time.process_time()
        with Ledger(run / "ledger.jsonl") as ledger:
            found = Loop(
                run,
                self.workshop.stages(),
                given=[given("policy", self.start, self.digest)],
                rounds=1,
                seed=0,
                ledger=ledger,
                versions={},
            ).run()
        spent = time.process_time() - began
        self.pairs.append(len((found["pairs"].path / "rows.jsonl").read_text().splitlines()))
        return spent

    def by_hand(self) -> float:
        scratch = self._fresh()
        generate, judge_node, _, _ = self.recipe.each_round
        assert self.recipe.prompts is not None
        began = time.process_time()
        model: Any = load_round_policy(self.recipe, self.start, str(self.start), trainable=True)
        prompts = PromptSource(self.recipe.prompts, self.recipe.data).of_round(1)
        policy = InProcessPolicy(model, self.workshop.tokenizer)
        node: Any = generate
        sampling = Sampling(max_new_tokens=node.max_new_tokens)
        answers = policy.generate(prompts, node.samples, sampling, seed=1)
        lines = [
            {
                **prompt.model_dump(mode="json"),
                "sampler": policy.identity,
                "completions": [
                    a.completion[-1].content
                    for a in of
                    if isinstance(a, Completion) and not isinstance(a.completion, str)
                ],
                "failures": [],
            }
            for prompt, of in zip(prompts, answers, strict=True)
        ]
        named: Any = judge_node
        bench = judges.Bench(scratch, self.recipe.prompts.source)
        with named.judge.open(bench) as judge:
            judged = judge_prompts(judge, "scores", named, None, lines, 1)
        pairs, _ = select(judged, BestVsWorst())
        roles = {"reference": "start"}
        trainer, _ = train_on(self.recipe, self.workshop, model, pairs, roles, 1, scratch)
        unpatched(trainer.model)
        self.pairs.append(len(pairs))
        return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        ways: dict[str, Callable[[], float]] = {
            "parts": bench.by_hand,
            "round": bench.by_the_engine,
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for way in ways.values():
            way()
        for _ in range(options.repeats):
            for name, way in ways.items():
                seconds[name].append(way())
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    for name, median in medians.items():
        shown = ", ".join(f"{s:.2f}" for s in sorted(seconds[name]))
        print(f"{name:6} {median:6.2f} s   ({shown})")
    low, high = min(bench.pairs), max(bench.pairs)
    print(f"ratio  {medians['round'] / medians['parts']:6.2f}     ({low} to {high} pairs)")


if __name__ == "__main__":
    main()
