"""Pairs over steps from a search against pairs over whole answers, on the world of sums: one table.

    python scripts/search_table.py [--seeds 0 1 2] [--only search] [--out outputs/search-table]

Every method draws as many tokens from the policy as the others (--tokens), then trains DPO on its
pairs: `outcome` on right and wrong whole answers of one problem, `search` on the steps of
`{run: mcts}`, `agent_q` on those of `{run: agent_q}`. `_twice` spends half of the tokens
on the start policy and half on what it became, which is then trained on. Writes results.json and
table.md; what results.json already holds is not run again.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch loads
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import transformers  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from align.app.train import train_recipe  # noqa: E402
from align.data.messages import Message  # noqa: E402
from align.data.pairs import PreferencePair  # noqa: E402
from align.data.questions import Question  # noqa: E402
from align.forest import TokenRow, score_rows  # noqa: E402
from align.policies.base import Sampling  # noqa: E402
from align.policies.token_writer import InProcessWriter  # noqa: E402
from align.policies.writer import Draw, Drawn, Stem  # noqa: E402
from align.worlds.additions import MAX_NEW_TOKENS, prompt_of, solution_of  # noqa: E402
from align.worlds.sums import Sums  # noqa: E402
from align_data.mcts.settings import AgentQSettings, Search, XieSettings  # noqa: E402
from align_data.mcts.verify import SumsVerifier  # noqa: E402
from align_data.mcts.work import MCTSWork  # noqa: E402

CHUNK = 32
ANSWERS = 4
MEASURED = 1024
SCORED = 2048
SEARCHES: dict[str, Search] = {
    "search": XieSettings(
        confidence="none", step_tokens=16, finish_tokens=MAX_NEW_TOKENS, chunk=CHUNK
    ),
    "agent_q": AgentQSettings(
        ranking="none",
        mix=1,
        step_tokens=16,
        finish_tokens=MAX_NEW_TOKENS,
        chunk=CHUNK,
    ),
}
METHODS = ("base", "outcome", "search", "outcome_twice", "search_twice", "agent_q")
COLUMNS = {
    "greedy, %": ("greedy_accuracy", 100, 1),
    "sampled, %": ("sampled_accuracy", 100, 1),
    "p(right), %": ("right_probability", 100, 1),
    "KL, nats": ("kl_to_reference", 1, 3),
}
RECIPE = """
model: {{model_name_or_path: {policy}}}
roles: {{reference: start}}
data: {{pairs: {pairs}, held_out: 0}}
objective: {{name: dpo, beta: {beta}}}
train:
  learning_rate: {learning_rate}
  lr_scheduler_type: linear
  num_train_epochs: 2
  per_device_train_batch_size: 32
  per_device_eval_batch_size: 64
  gradient_checkpointing: false
  logging_steps: 50
  save_strategy: "no"
  disable_tqdm: true
  seed: {seed}
evaluate: {{suite: [sums], n: 16}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--tokens", type=int, default=96_000, help="drawn by each method")
    parser.add_argument("--beta", type=float, default=5.0)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "search-table")
    asked = parser.parse_args()
    logging.getLogger("align").setLevel(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    asked.out.mkdir(parents=True, exist_ok=True)
    file = asked.out / "results.json"
    results: list[dict[str, Any]] = json.loads(file.read_text()) if file.is_file() else []
    known = {(row["method"], row["seed"]) for row in results}
    for seed in asked.seeds:
        for method in asked.only:
            if (method, seed) in known:
                continue
            results.append(run(method, seed, asked, asked.out / "runs"))
            file.write_text(json.dumps(results, indent=1) + "\n")
            print(json.dumps(results[-1]), flush=True)
    text = table(results)
    (asked.out / "table.md").write_text(text)
    print(text)


def run(method: str, seed: int, asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One method with one seed: what it measured and what it spent."""
    started = time.monotonic()
    target = folder / f"{method}-{seed}"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    world = Sums()
    policy = world.base_model()
    spent = {"tokens": 0, "problems": 0, "pairs": 0}
    # The pool of problems is shared, so that a round never asks what an earlier one asked.
    problems = iter(world.problems("train", 20_000, seed=seed))
    rounds = 2 if method.endswith("_twice") else 1
    how = method.removesuffix("_twice")
    start = policy
    for number in range(rounds if how != "base" else 0):
        pairs = draw(how, policy, problems, asked.tokens // rounds, seed, number + 1, spent)
        file = target / f"pairs-{number}.jsonl"
        lines = [
            pair.model_dump_json(exclude={"source", "row"}, exclude_none=True) for pair in pairs
        ]
        file.write_text("".join(line + "\n" for line in lines))
        recipe = target / f"recipe-{number}.yaml"
        recipe.write_text(
            RECIPE.format(
                policy=policy,
                pairs=file,
                beta=asked.beta,
                learning_rate=asked.learning_rate,
                seed=seed,
            )
        )
        train_recipe(recipe, [], target / f"round-{number}", ())
        policy = target / f"round-{number}" / "model"
    model = AutoModelForCausalLM.from_pretrained(policy).eval()
    tokenizer = AutoTokenizer.from_pretrained(start)
    reference = AutoModelForCausalLM.from_pretrained(start).eval()
    report = world.measure(model, tokenizer, reference=reference, n=MEASURED, seed=seed)
    shutil.rmtree(target)
    return {
        "method": method,
        "seed": seed,
        "metrics": {
            **{name: estimate.value for name, estimate in report.items()},
            "right_probability": right_probability(world, InProcessWriter(model, tokenizer)),
        },
        **spent,
        "beta": asked.beta,
        "learning_rate": asked.learning_rate,
        "seconds": round(time.monotonic() - started, 1),
    }


def right_probability(world: Sums, writer: InProcessWriter) -> float:
    """Mean probability of the right solution: sampled accuracy without the noise of sampling.

    A sample that comes to the right answer by two wrong sums that cancel is not counted.
    """
    problems = world.problems("held_out", SCORED, seed=0)
    rows: list[TokenRow] = []
    for operands in problems:
        prompt = (Message(role="user", content=prompt_of(operands)),)
        ids = writer.answer_ids(prompt, solution_of(operands))
        rows.append(TokenRow(list(writer.prompt_ids(prompt)), list(ids)))
    return float(score_rows(writer.model, rows).total().exp().mean())


def draw(
    how: str,
    policy: Path,
    problems: Any,
    tokens: int,
    seed: int,
    number: int,
    spent: dict[str, int],
) -> list[PreferencePair]:
    """Pairs of chunk after chunk of problems, until so many tokens are drawn."""
    model = AutoModelForCausalLM.from_pretrained(policy).eval()
    writer = InProcessWriter(model, AutoTokenizer.from_pretrained(policy), rows=256)
    pairs: list[PreferencePair] = []
    end = spent["tokens"] + tokens
    while spent["tokens"] < end:
        questions = [
            Question(
                prompt=(Message(role="user", content=prompt_of(next(problems))),),
                source="world:sums/train",
                row=spent["problems"] + i + 1,
            )
            for i in range(CHUNK)
        ]
        spent["problems"] += len(questions)
        if how in SEARCHES:
            settings = SEARCHES[how]
            work = MCTSWork(
                settings,
                writer,
                SumsVerifier(),
                seed=seed,
                config_hash=settings.config_hash,
                round=number,
            )
            for one in work(questions):
                pairs += one.pairs
                spent["tokens"] += one.counts["drawn_tokens"]
        else:
            pairs += outcome_pairs(writer, questions, seed, spent)
    spent["pairs"] += len(pairs)
    return pairs


def outcome_pairs(
    writer: InProcessWriter, questions: Sequence[Question], seed: int, spent: dict[str, int]
) -> list[PreferencePair]:
    """Right and wrong answers of the same problem, each in one pair at most."""
    verifier = SumsVerifier()
    sampling = Sampling(max_new_tokens=MAX_NEW_TOKENS)
    prompts = [writer.prompt_ids(question.prompt) for question in questions]
    requests = [
        Draw(Stem(ids, (), f"{seed}/{question.prompt}"), ANSWERS, sampling)
        for ids, question in zip(prompts, questions, strict=True)
    ]
    pairs: list[PreferencePair] = []
    for ids, question, drawn in zip(prompts, questions, writer.draw(requests, seed), strict=True):
        assert isinstance(drawn, list)
        spent["tokens"] += sum(len(one.ids) for one in drawn)
        ended = list({one.text: one for one in drawn if one.finish == "end"}.values())
        right = [one for one in ended if verifier.right(question, one.text)]
        wrong = [one for one in ended if one.text and not verifier.right(question, one.text)]
        for chosen, rejected in zip(right, wrong, strict=False):
            pairs.append(whole_answers(question, ids, chosen, rejected))
    return pairs


def whole_answers(
    question: Question, prompt_ids: tuple[int, ...], chosen: Drawn, rejected: Drawn
) -> PreferencePair:
    return PreferencePair(
        prompt=question.prompt,
        chosen=(Message(role="assistant", content=chosen.text),),
        rejected=(Message(role="assistant", content=rejected.text),),
        prompt_ids=prompt_ids,
        chosen_ids=chosen.ids,
        rejected_ids=rejected.ids,
        source=question.source,
        row=question.row,
    )


def table(results: Sequence[dict[str, Any]]) -> str:
    """Mean over seeds, and the range of the seeds."""
    heads = (*COLUMNS, "tokens drawn", "pairs")
    lines = ["| | " + " | ".join(heads) + " |", "| --- |" + " ---: |" * len(heads)]
    for method in METHODS:
        rows = [row for row in results if row["method"] == method]
        if not rows:
            continue
        cells = [
            cell([row["metrics"][key] * scale for row in rows], decimals)
            for key, scale, decimals in COLUMNS.values()
        ]
        cells += [cell([row[name] for row in rows], 0) for name in ("tokens", "pairs")]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def cell(values: Sequence[float], decimals: int) -> str:
    low, high = (f"{bound:.{decimals}f}" for bound in (min(values), max(values)))
    return f"{statistics.fmean(values):.{decimals}f} ({low} to {high})"


if __name__ == "__main__":
    main()
