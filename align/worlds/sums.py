"""Three-term additions: `17+35+28?` is answered by one line per partial sum, then the answer.

The base model is trained from scratch on demonstrations of mixed quality: every partial sum is
wrong with some probability and the error is carried on. It learns the arithmetic and imitates the
crowd, which is exactly what preference training can mend: its greedy answers are mostly right, its
samples mostly not. The judge is exact.

    user       17+35+28?
    assistant  17+35=52
               52+28=80
               80
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch.nn import functional
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from align.data.messages import Message
from align.data.pairs import PreferencePair
from align.data.prompts import Prompt
from align.data.questions import Question
from align.estimates import Estimate, kl_divergence, proportion
from align.forest import TokenRow, score_rows
from align.judges.base import JudgeFailed
from align.judges.rule import RuleJudge
from align.policies.sampling import sample_completions
from align.runs.cache import cached_folder, made_by
from align.worlds import additions, chat
from align.worlds.additions import (
    MAX_NEW_TOKENS,
    Operands,
    Verdict,
    judge,
    prompt_ids,
    prompt_of,
    solution_of,
    split_of,
    sums_tokenizer,
    written,
)
from align.worlds.base import Split, World
from align.worlds.chat import END, tiny_llama

SLIPS = (-10, -1, 1, 10)
ROWS = 64  # of one forward pass of a measurement


@dataclass(frozen=True)
class SumsSettings:
    """What the base model is made from.

    Attributes:
        lowest: smallest operand.
        highest: largest operand, at most 99.
        error_rate: probability that one partial sum of a demonstration is wrong.
        layers: of the Llama.
        width: hidden size; the feed-forward layer is three times as wide.
        heads: attention heads.
        steps: optimizer steps.
        batch: problems per step.
        learning_rate: peak of the one-cycle schedule.
        seed: of weights and demonstrations.
    """

    lowest: int = 10
    highest: int = 39
    error_rate: float = 0.25
    layers: int = 4
    width: int = 128
    heads: int = 4
    steps: int = 400
    batch: int = 64
    learning_rate: float = 2e-3
    seed: int = 0


@dataclass(frozen=True)
class Attempt:
    """One completion of one problem.

    Attributes:
        prompt_ids: generation prompt included.
        completion_ids: as drawn, the end token included where it was drawn.
        finished: the end token was drawn in time.
    """

    operands: Operands
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    text: str
    finished: bool
    verdict: Verdict


@dataclass(frozen=True)
class PairSample:
    """Preference pairs that a policy made, and the count of everything that made none.

    Attributes:
        pairs: at most one per problem, in the order of the problems.
        problems: asked.
        samples: completions drawn; right + wrong = samples.
        malformed: those of the wrong ones that are not three lines of the right shape.
        unfinished: those of the wrong ones without an end token; they enter no pair.
        all_right: problems without a wrong completion to pair.
        all_wrong: problems without a right completion to pair.
    """

    pairs: list[PreferencePair] = field(repr=False)
    problems: int
    samples: int
    right: int
    wrong: int
    malformed: int
    unfinished: int
    all_right: int
    all_wrong: int


class Sums(World):
    """The world of three-term additions; `SumsSettings` say how its base model is made."""

    name = "sums"
    judged_by = "scores"

    def __init__(self, settings: SumsSettings | None = None):
        self.settings = settings or SumsSettings()

    def base_model(self) -> Path:
        """The folder of the base model and its tokenizer, trained on the first call (a minute)."""
        parts = {
            "settings": asdict(self.settings),
            **made_by(__file__, additions.__file__, chat.__file__),
        }
        return cached_folder(f"worlds/{self.name}", parts, self._build)

    def problems(self, split: Split, n: int, *, seed: int) -> list[Operands]:
        """`n` different problems of one split, in an order that `seed` shuffles."""
        span = range(self.settings.lowest, self.settings.highest + 1)
        every = [(a, b, c) for a in span for b in span for c in span]
        pool = [operands for operands in every if split_of(operands) == split]
        if n > len(pool):
            raise ValueError(f"The {split} split of sums has {len(pool)} problems, not {n}.")
        return random.Random(f"sums/{split}/{seed}").sample(pool, n)

    def prompts(self, split: Split, n: int, *, seed: int) -> list[Prompt]:
        """The same problems as rows for a policy."""
        return [
            Prompt(
                prompt=(Message(role="user", content=prompt_of(operands)),),
                group_id=prompt_of(operands),
                source=f"world:sums/{split}/seed-{seed}",
                row=row,
            )
            for row, operands in enumerate(self.problems(split, n, seed=seed), start=1)
        ]

    def question(self, prompt: Prompt) -> Question:
        """One of its prompts with the sum and the written-out solution."""
        assert not isinstance(prompt.prompt, str)
        operands: Any = tuple(map(int, prompt.prompt[-1].content.removesuffix("?").split("+")))
        return Question(
            prompt=prompt.prompt,
            answer=str(sum(operands)),
            solution=solution_of(operands),
            group_id=prompt.group_id,
            source=prompt.source,
            row=prompt.row,
        )

    def judge(self) -> RuleJudge:
        """1.0 for a right answer, else 0.0."""
        return sums_judge()

    def checks(self, *, loosely: bool) -> RuleJudge:
        """The same; there is one way to spell a sum."""
        return sums_judge()

    def measure(
        self, model: Any, tokenizer: Any, *, reference: Any, n: int, seed: int
    ) -> Mapping[str, Estimate]:
        """Accuracy of one greedy and one sampled answer per problem, and the samples' KL."""
        problems = self.problems("held_out", n, seed=seed)
        greedy, sampled = (
            self.attempts(
                model, tokenizer, problems, temperature=temperature, seed=seed, batch_size=ROWS
            )
            for temperature in (0.0, 1.0)
        )
        rows = [TokenRow(attempt.prompt_ids, attempt.completion_ids) for attempt in sampled]
        policy = score_rows(model, rows, batch_size=ROWS)
        is_start = reference is model
        return {
            "greedy_accuracy": proportion(sum(a.verdict.right for a in greedy), n),
            "sampled_accuracy": proportion(sum(a.verdict.right for a in sampled), n),
            "well_formed": proportion(sum(a.verdict.well_formed for a in sampled), n),
            "kl_to_reference": kl_divergence(
                policy, policy if is_start else score_rows(reference, rows, batch_size=ROWS)
            ),
        }

    def attempts(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        problems: Sequence[Operands],
        *,
        temperature: float,
        seed: int,
        batch_size: int = 512,
    ) -> list[Attempt]:
        """One judged completion per problem; repeat a problem for more of them."""
        prompts = {operands: prompt_ids(tokenizer, operands) for operands in problems}
        samples = sample_completions(
            model,
            [prompts[operands] for operands in problems],
            end_ids=[cast(int, tokenizer.eos_token_id)],
            max_new_tokens=MAX_NEW_TOKENS,
            temperature=temperature,
            seed=seed,
            batch_size=batch_size,
        )
        attempts: list[Attempt] = []
        for operands, sample in zip(problems, samples, strict=True):
            ids = sample.completion_ids[:-1] if sample.finished else sample.completion_ids
            text = cast(str, tokenizer.decode(list(ids), skip_special_tokens=False))
            verdict = judge(operands, text)
            if not sample.finished:
                verdict = Verdict(well_formed=False, steps_right=None, right=False)
            attempts.append(
                Attempt(
                    operands,
                    tuple(prompts[operands]),
                    sample.completion_ids,
                    text,
                    sample.finished,
                    verdict,
                )
            )
        return attempts

    def sample_pairs(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        problems: int,
        samples_per_problem: int,
        seed: int,
        split: Split = "train",
        temperature: float = 1.0,
        batch_size: int = 512,
    ) -> PairSample:
        """Pairs of the policy's own completions: the first right and the first wrong of a problem.

        A right and a wrong completion differ, so there are no ties and no equal sides; a problem
        gives at most one pair. The scores are win rates against the policy's samples of the same
        problem, itself included at one half. Wrong completions that never ended or hold a special
        token are counted and enter no pair, since their text would not give their tokens back.
        """
        asked = self.problems(split, problems, seed=seed)
        attempts = self.attempts(
            model,
            tokenizer,
            [operands for operands in asked for _ in range(samples_per_problem)],
            temperature=temperature,
            seed=seed,
            batch_size=batch_size,
        )
        special = set(tokenizer.all_special_ids)
        pairs: list[PreferencePair] = []
        all_right = all_wrong = 0
        for row, operands in enumerate(asked):
            of_problem = attempts[row * samples_per_problem : (row + 1) * samples_per_problem]
            right = [attempt.text for attempt in of_problem if attempt.verdict.right]
            wrong = [
                attempt.text
                for attempt in of_problem
                if not attempt.verdict.right
                and attempt.finished
                and attempt.text
                and special.isdisjoint(attempt.completion_ids[:-1])
            ]
            all_right += not wrong
            all_wrong += not right
            if right and wrong:
                share_right = len(right) / samples_per_problem
                pairs.append(
                    PreferencePair(
                        prompt=(Message(role="user", content=prompt_of(operands)),),
                        chosen=(Message(role="assistant", content=right[0]),),
                        rejected=(Message(role="assistant", content=wrong[0]),),
                        # A right answer beats every wrong one and ties with the right ones.
                        chosen_score=1 - share_right / 2,
                        rejected_score=(1 - share_right) / 2,
                        group_id=prompt_of(operands),
                        source=f"world:sums/{split}/seed-{seed}",
                        row=row + 1,
                    )
                )
        verdicts = [attempt.verdict for attempt in attempts]
        return PairSample(
            pairs=pairs,
            problems=len(asked),
            samples=len(attempts),
            right=sum(verdict.right for verdict in verdicts),
            wrong=sum(not verdict.right for verdict in verdicts),
            malformed=sum(not verdict.well_formed for verdict in verdicts),
            unfinished=sum(not attempt.finished for attempt in attempts),
            all_right=all_right,
            all_wrong=all_wrong,
        )

    def _build(self, folder: Path) -> None:
        """Train the base model and save it as an ordinary transformers folder."""
        tokenizer = sums_tokenizer()
        settings = self.settings
        model = tiny_llama(
            tokenizer,
            layers=settings.layers,
            width=settings.width,
            heads=settings.heads,
            seed=settings.seed,
        )
        self._imitate(model, tokenizer)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    def _imitate(self, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
        """Maximum likelihood on the demonstrations, counted on completion tokens."""
        settings = self.settings
        draw = random.Random(f"sums/demonstrations/{settings.seed}")
        pad_id = cast(int, tokenizer.pad_token_id)
        optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=settings.learning_rate, total_steps=settings.steps
        )
        model.train()
        for _ in range(settings.steps):
            rows = [self._demonstration(draw, tokenizer) for _ in range(settings.batch)]
            width = max(len(ids) for ids, _ in rows)
            input_ids = torch.full((len(rows), width), pad_id)
            labels = torch.full((len(rows), width), -100)
            for index, (ids, prompt_length) in enumerate(rows):
                input_ids[index, : len(ids)] = torch.tensor(ids)
                labels[index, prompt_length : len(ids)] = torch.tensor(ids[prompt_length:])
            logits = model(input_ids=input_ids).logits[:, :-1]
            loss = functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        model.eval()

    def _demonstration(
        self, draw: random.Random, tokenizer: PreTrainedTokenizerBase
    ) -> tuple[list[int], int]:
        """Token ids of one demonstration of the training split, and the length of its prompt."""
        settings = self.settings
        while True:
            a, b, c = (draw.randint(settings.lowest, settings.highest) for _ in range(3))
            if split_of((a, b, c)) == "train":
                break

        def slip() -> int:
            return draw.choice(SLIPS) if draw.random() < settings.error_rate else 0

        first = a + b + slip()
        completion = written((a, b, c), first, first + c + slip())
        asked = prompt_ids(tokenizer, (a, b, c))
        ids = tokenizer.encode(completion + END, add_special_tokens=False)
        return asked + ids, len(asked)


def sums_judge() -> RuleJudge:
    """1.0 for a right answer in the world of sums, else 0.0."""

    def rule(question: str, completion: str) -> float | JudgeFailed:
        match = re.fullmatch(r"(\d+)\+(\d+)\+(\d+)\?", question, flags=re.ASCII)
        if match is None:
            return JudgeFailed("not_a_sum", "the prompt is no question of the world of sums")
        a, b, c = map(int, match.groups())
        return float(judge((a, b, c), completion).right)

    return RuleJudge("sums", rule)
