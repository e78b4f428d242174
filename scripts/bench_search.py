"""CPU time of tree searches: B trees in lock-step against one tree at a time, the same result.

    python scripts/bench_search.py [--trees 4 16 64] [--repeats 3]

The tiny model of the world of sums, on the CPU, both searches. The two ways take
turns; the table holds medians, and the median of the ratios. The trees must be the same, node by
node, and their values equal to rounding.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
from collections.abc import Sequence
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch loads

import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from align.data.built import Built
from align.data.messages import Message
from align.data.questions import Question
from align.policies.token_writer import InProcessWriter
from align.worlds.additions import MAX_NEW_TOKENS, prompt_of
from align.worlds.sums import Sums
from align_data.mcts.settings import AgentQSettings, Search, XieSettings
from align_data.mcts.verify import SumsVerifier
from align_data.mcts.work import MCTSWork

SEARCHES: dict[str, Search] = {
    "xie": XieSettings(confidence="none", step_tokens=16, finish_tokens=MAX_NEW_TOKENS),
    "agent_q": AgentQSettings(ranking="none", mix=1, step_tokens=16, finish_tokens=MAX_NEW_TOKENS),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trees", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    world = Sums()
    folder = world.base_model()
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    writer = InProcessWriter(model, AutoTokenizer.from_pretrained(folder), rows=256)
    print("| search | trees | one at a time, s | in lock-step, s | ratio | tokens/s | same |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | --- |")
    for name, settings in SEARCHES.items():
        work = MCTSWork(settings, writer, SumsVerifier(), seed=0, config_hash="bench")
        for trees in asked.trees:
            questions = [
                Question(
                    prompt=(Message(role="user", content=prompt_of(operands)),),
                    source="world:sums",
                    row=row,
                )
                for row, operands in enumerate(world.problems("train", trees, seed=0), start=1)
            ]
            work(questions[:2])
            print(line(name, work, questions, asked.repeats), flush=True)


def line(name: str, work: MCTSWork, questions: Sequence[Question], repeats: int) -> str:
    alone: list[float] = []
    together: list[float] = []
    same = True
    tokens = 0
    for _ in range(repeats):
        started = time.process_time()
        apart = [one for question in questions for one in work([question])]
        alone.append(time.process_time() - started)
        started = time.process_time()
        joined = work(questions)
        together.append(time.process_time() - started)
        same = same and all(is_same(a, b) for a, b in zip(apart, joined, strict=True))
        tokens = sum(one.counts["drawn_tokens"] for one in joined)
    ratio = statistics.median(a / b for a, b in zip(alone, together, strict=True))
    spent = statistics.median(together)
    return (
        f"| {name} | {len(questions)} | {statistics.median(alone):.2f} | {spent:.2f} | "
        f"{ratio:.1f} | {tokens / spent:.0f} | {'yes' if same else 'NO'} |"
    )


def is_same(one: Built, other: Built) -> bool:
    """The same nodes, visits and pairs; numbers within the rounding of two batches."""
    return is_close(one.model_dump(mode="json"), other.model_dump(mode="json"))


def is_close(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, abs_tol=1e-4)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(is_close(one[k], other[k]) for k in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(is_close, one, other))
    return one == other


if __name__ == "__main__":
    main()
