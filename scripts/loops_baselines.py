"""What the on-policy loops are compared with: the start policy, and imitation of its best."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from align.judges.matrix import win_rates
from align.policies.loading import load_tokenizer
from align.policies.sampling import sample_completions
from align.policies.start import Start
from align.recipe import Recipe
from align.stages.evaluate import measure
from align.stages.generate import Generate
from align.stages.policies import load_round_policy, policy_folder
from align.worlds import style_game, world
from align.worlds.styles import Styles
from align.worlds.sums import Sums

Demonstration = tuple[tuple[int, ...], tuple[int, ...]]  # prompt, best completion and end token
Found = tuple[dict[str, Any], dict[str, int]]
EPOCHS = 2
BATCH = 32
LEARNING_RATES = {"sums": 1e-4, "styles": 1e-3}


@dataclass(frozen=True)
class Budget:
    """What a loop spends.

    Attributes:
        rounds: in all.
        prompts: of one round.
        samples: per prompt.
        max_new_tokens: per sample.
        calls: of the judge, in all.
    """

    rounds: int
    prompts: int
    samples: int
    max_new_tokens: int
    calls: int

    @classmethod
    def of(cls, recipe: Recipe) -> Budget:
        assert recipe.rounds is not None
        assert recipe.prompts is not None
        assert recipe.prompts.per_round is not None
        node = next(node for node in recipe.each_round if isinstance(node, Generate))
        asked = world(recipe.prompts.source)
        prompts, k = recipe.prompts.per_round, node.samples
        # The world of sums scores each sample, the world of styles compares every two.
        per_prompt = k * (k - 1) // 2 if asked.judged_by == "comparisons" else k
        calls = recipe.rounds * prompts * per_prompt
        return cls(recipe.rounds, prompts, k, node.max_new_tokens, calls)


def start_alone(recipe: Recipe) -> Found:
    """The start policy, untrained."""
    start, tokenizer = _start(recipe, trainable=False)
    found = measure(recipe, start, Start.in_memory(start), tokenizer, [])
    return found, {"judge_calls": 0, "pairs": 0}


def best_reply(recipe: Recipe) -> Found:
    """The one style that wins most often against the start policy, always: a reward's argmax.

    On each topic it keeps the start policy's answers of that style; nothing is trained.
    """
    start, tokenizer = _start(recipe, trainable=False)
    topics = Styles().topics("held_out", seed=recipe.evaluate.seed)
    base = style_game.measure(start, tokenizer, topics, reference=start).outcomes.mean(dim=0)
    table = torch.tensor(style_game.PREFERENCE, dtype=base.dtype)
    won = table @ base
    best = int(won.argmax())
    always = functional.one_hot(torch.tensor(best), len(base)).to(base.dtype)
    found = {
        "exploitability": float(style_game.exploitability(always[None])),
        "win_rate": float(won[best]),
        "kl_to_reference": float(-base[best].log()),
    }
    nothing = {"judge_calls": 0, "pairs": 0}
    return {f"styles/{name}": {"value": value} for name, value in found.items()}, nothing


def best_only(recipe: Recipe) -> Found:
    """Cross-entropy on the completions that the judge puts first among those of their prompt."""
    policy, tokenizer = _start(recipe, trainable=True)
    assert recipe.prompts is not None
    asked = world(recipe.prompts.source)
    budget = Budget.of(recipe)
    seed = recipe.train.seed
    if isinstance(asked, Sums):
        rows = _right_sums(asked, policy, tokenizer, budget, seed)
    else:
        assert isinstance(asked, Styles), "the worlds of the loops' table"
        rows = _liked_remarks(asked, policy, tokenizer, budget, seed)
    imitate(policy, cast(int, tokenizer.pad_token_id), rows, LEARNING_RATES[asked.name], seed)
    start, _ = _start(recipe, trainable=False)
    found = measure(recipe, policy, Start.in_memory(start), tokenizer, [])
    return found, {"judge_calls": budget.calls, "pairs": len(rows)}


def imitate(
    model: PreTrainedModel, pad_id: int, rows: list[Demonstration], learning_rate: float, seed: int
) -> None:
    """Maximum likelihood of the completions; the rate falls linearly to zero."""
    order = torch.Generator().manual_seed(seed)
    steps = EPOCHS * -(-len(rows) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    model.train()
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(rows), generator=order).split(BATCH):
            batch = [rows[i] for i in chosen.tolist()]
            width = max(len(prompt) + len(completion) for prompt, completion in batch)
            input_ids = torch.full((len(batch), width), pad_id)
            labels = torch.full((len(batch), width), -100)
            for index, (prompt, completion) in enumerate(batch):
                end = len(prompt) + len(completion)
                input_ids[index, :end] = torch.tensor(prompt + completion)
                labels[index, len(prompt) : end] = torch.tensor(completion)
            logits = model(input_ids=input_ids).logits[:, :-1]
            loss = functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    model.eval()


def _right_sums(
    sums: Sums,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    budget: Budget,
    seed: int,
) -> list[Demonstration]:
    """One right answer of each problem that has one."""
    problems = sums.problems("train", budget.rounds * budget.prompts, seed=seed)
    asked = [operands for operands in problems for _ in range(budget.samples)]
    attempts = sums.attempts(policy, tokenizer, asked, temperature=1.0, seed=seed)
    first = {a.operands: a for a in reversed(attempts) if a.verdict.right}
    return [(a.prompt_ids, a.completion_ids) for a in first.values()]


def _liked_remarks(
    styles: Styles,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    budget: Budget,
    seed: int,
) -> list[Demonstration]:
    """Of every few samples of a topic the one with the highest win rate, where they differ."""
    k = budget.samples
    topics = styles.topics("train", budget.prompts, seed=seed)
    asked = [topic for topic in topics for _ in range(budget.rounds * k)]
    prompts = [tuple(style_game.prompt_ids(tokenizer, topic)) for topic in asked]
    samples = sample_completions(
        policy,
        prompts,
        end_ids=[cast(int, tokenizer.eos_token_id)],
        max_new_tokens=budget.max_new_tokens,
        temperature=1.0,
        seed=seed,
    )
    rows: list[Demonstration] = []
    for at in range(0, len(asked), k):
        question = style_game.prompt_of(asked[at])
        ids = [sample.completion_ids for sample in samples[at : at + k] if sample.finished]
        texts = [cast(str, tokenizer.decode(list(row[:-1]))) for row in ids]
        matrix = tuple(
            tuple(style_game.preference_of(question, a, b) for b in texts) for a in texts
        )
        rates = win_rates(matrix)
        known = {i: rate for i, rate in enumerate(rates) if rate is not None}
        if known and max(known.values()) > min(known.values()):
            rows.append((prompts[at], ids[max(known, key=known.__getitem__)]))
    return rows


def _start(recipe: Recipe, *, trainable: bool) -> tuple[Any, PreTrainedTokenizerBase]:
    folder = policy_folder(recipe.model)
    policy = load_round_policy(recipe, Path(folder), folder, trainable=trainable)
    return policy, load_tokenizer(recipe.model, folder)
