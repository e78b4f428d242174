"""One remark in one of five styles, liked in a circle: `what of green tea?`, `is green tea old?`.

The judge (`align.worlds.style_game`) is exact and intransitive. The base model, trained from
scratch, mostly makes the two kinds of remark that nobody likes. A topic has thirty well-formed
answers, whose probabilities under a language model are computed one by one, so its exploitability
is a number and not an estimate.
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
from align.estimates import Estimate, mean
from align.judges.rule import RuleJudge
from align.judges.table import TableJudge
from align.policies.sampling import sample_completions
from align.runs.cache import cached_folder, made_by
from align.worlds import chat, style_game
from align.worlds.base import Split, World
from align.worlds.chat import tiny_llama
from align.worlds.style_game import (
    ADJECTIVES,
    MALFORMED,
    MAX_NEW_TOKENS,
    NOUNS,
    OUTCOMES,
    PREFERENCE,
    QUALITIES,
    STYLES,
    TEMPLATES,
    Topic,
    answer_ids,
    answers_of,
    outcome_of,
    preference_of,
    prompt_ids,
    prompt_of,
    split_of,
    styles_tokenizer,
)


@dataclass(frozen=True)
class StylesSettings:
    """What the base model is made from.

    Attributes:
        shares: of the demonstrations, in the order of STYLES.
        layers: of the Llama.
        width: hidden size; the feed-forward layer is three times as wide.
        heads: attention heads.
        steps: optimizer steps.
        batch: demonstrations per step.
        learning_rate: peak of the one-cycle schedule.
        seed: of weights and demonstrations.
    """

    shares: tuple[float, ...] = (0.35, 0.25, 0.15, 0.15, 0.10)
    layers: int = 2
    width: int = 64
    heads: int = 4
    steps: int = 400
    batch: int = 64
    learning_rate: float = 8e-3
    seed: int = 0


@dataclass(frozen=True)
class StylePairs:
    """Preference pairs that a policy made, and the count of everything that made none.

    Attributes:
        pairs: two neighbouring samples each, in the order of the topics.
        samples: completions drawn, twice the comparisons.
        comparisons: looked at; pairs + ties + unusable.
        ties: both of one style, or neither well formed.
        unusable: a sample never ended, is empty or holds a special token.
    """

    pairs: list[PreferencePair] = field(repr=False)
    samples: int
    comparisons: int
    ties: int
    unusable: int


class Styles(World):
    """The world of remarks in styles; `StylesSettings` say how its base model is made."""

    name = "styles"
    judged_by = "comparisons"

    def __init__(self, settings: StylesSettings | None = None):
        self.settings = settings or StylesSettings()

    def base_model(self) -> Path:
        """The folder of the base model and its tokenizer, trained on the first call (seconds)."""
        parts = {
            "settings": asdict(self.settings),
            **made_by(__file__, style_game.__file__, chat.__file__),
        }
        return cached_folder(f"worlds/{self.name}", parts, self._build)

    def topics(self, split: Split, n: int | None = None, *, seed: int) -> list[Topic]:
        """`n` different topics of one split, or all, in an order that `seed` shuffles."""
        pool = [
            (adjective, noun)
            for adjective in ADJECTIVES
            for noun in NOUNS
            if split_of((adjective, noun)) == split
        ]
        wanted = len(pool) if n is None else n
        if wanted > len(pool):
            raise ValueError(f"The {split} split of styles has {len(pool)} topics, not {n}.")
        return random.Random(f"styles/{split}/{seed}").sample(pool, wanted)

    def prompts(self, split: Split, n: int, *, seed: int) -> list[Prompt]:
        """The same topics as rows for a policy; all of them where there are fewer than `n`."""
        every = self.topics(split, seed=seed)
        # Held-out topics are the first of all, as `measure` takes them.
        asked = (
            every[:n] if split == "held_out" else self.topics(split, min(n, len(every)), seed=seed)
        )
        return [
            Prompt(
                prompt=(Message(role="user", content=prompt_of(topic)),),
                group_id=prompt_of(topic),
                source=f"world:styles/{split}/seed-{seed}",
                row=row,
            )
            for row, topic in enumerate(asked, start=1)
        ]

    def judge(self) -> TableJudge:
        """The exact, intransitive judge."""
        return styles_judge()

    def checks(self, *, loosely: bool) -> RuleJudge:
        """1.0 for a well-formed remark on the topic that was asked about."""

        def is_remark(question: str, completion: str) -> float:
            if not loosely:
                return float(outcome_of(question, completion) != MALFORMED)
            match = re.fullmatch(r"what of ([a-z]+) ([a-z]+)\?", question)
            assert match is not None
            there = {_loosely(text) for text in answers_of((match[1], match[2]))}
            return float(_loosely(completion) in there)

        return RuleJudge(f"styles-{'world_loosely' if loosely else 'world'}", is_remark)

    def outcome(self, question: str, completion: str) -> str:
        """The style of a remark, or malformed."""
        return outcome_of(question, completion)

    def measure(
        self, model: Any, tokenizer: Any, *, reference: Any, n: int, seed: int
    ) -> Mapping[str, Estimate]:
        """Exact values per topic, by scoring every answer there is; the mean is over topics.

        exploitability is what the best reply to the policy's own mixture wins above one half.
        """
        topics = self.topics("held_out", seed=seed)[:n]
        found = style_game.measure(model, tokenizer, topics, reference=reference)
        return {
            "exploitability": mean(found.exploitability, what="exploitability"),
            "win_rate": mean(found.win_rate, what="win_rate"),
            "well_formed": mean(1 - found.outcomes[:, -1], what="well_formed"),
            "kl_to_reference": mean(found.kl, what="kl"),
        }

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
    ) -> StylePairs:
        """Pairs of the policy's own completions: samples 1 and 2 of a topic, 3 and 4, and so on.

        `chosen` is the one that wins more often, `preference` how often; ties make no pair.
        """
        asked = self.topics(split, problems, seed=seed)
        rows = [topic for topic in asked for _ in range(samples_per_problem)]
        samples = sample_completions(
            model,
            [prompt_ids(tokenizer, topic) for topic in rows],
            end_ids=[cast(int, tokenizer.eos_token_id)],
            max_new_tokens=MAX_NEW_TOKENS,
            temperature=temperature,
            seed=seed,
            batch_size=batch_size,
        )
        special = set(tokenizer.all_special_ids)
        texts = [
            cast(str, tokenizer.decode(list(sample.completion_ids[:-1])))
            if sample.finished
            and len(sample.completion_ids) > 1
            and special.isdisjoint(sample.completion_ids[:-1])
            else None
            for sample in samples
        ]
        pairs: list[PreferencePair] = []
        comparisons = ties = unusable = 0
        for row, topic in enumerate(asked):
            of_topic = texts[row * samples_per_problem : (row + 1) * samples_per_problem]
            for first, second in zip(of_topic[::2], of_topic[1::2], strict=False):
                comparisons += 1
                if first is None or second is None:
                    unusable += 1
                    continue
                p = preference_of(prompt_of(topic), first, second)
                if p == 0.5:
                    ties += 1
                    continue
                chosen, rejected = (first, second) if p > 0.5 else (second, first)
                pairs.append(
                    PreferencePair(
                        prompt=(Message(role="user", content=prompt_of(topic)),),
                        chosen=(Message(role="assistant", content=chosen),),
                        rejected=(Message(role="assistant", content=rejected),),
                        preference=max(p, 1 - p),
                        group_id=prompt_of(topic),
                        source=f"world:styles/{split}/seed-{seed}",
                        row=row + 1,
                    )
                )
        return StylePairs(pairs, len(samples), comparisons, ties, unusable)

    def _build(self, folder: Path) -> None:
        """Train the base model and save it as an ordinary transformers folder."""
        tokenizer = styles_tokenizer()
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
        draw = random.Random(f"styles/demonstrations/{settings.seed}")
        topics = self.topics("train", seed=settings.seed)
        pad_id = cast(int, tokenizer.pad_token_id)
        optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=settings.learning_rate, total_steps=settings.steps
        )
        prompts = {topic: prompt_ids(tokenizer, topic) for topic in topics}
        model.train()
        for _ in range(settings.steps):
            rows = [self._demonstration(draw, topics, tokenizer) for _ in range(settings.batch)]
            width = max(len(prompts[topic]) + len(ids) for topic, ids in rows)
            input_ids = torch.full((len(rows), width), pad_id)
            labels = torch.full((len(rows), width), -100)
            for index, (topic, ids) in enumerate(rows):
                start, end = len(prompts[topic]), len(prompts[topic]) + len(ids)
                input_ids[index, :end] = torch.tensor(prompts[topic] + ids)
                labels[index, start:end] = torch.tensor(ids)
            logits = model(input_ids=input_ids).logits[:, :-1]
            loss = functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        model.eval()

    def _demonstration(
        self, draw: random.Random, topics: Sequence[Topic], tokenizer: PreTrainedTokenizerBase
    ) -> tuple[Topic, list[int]]:
        """A topic and the token ids of one remark on it."""
        topic = draw.choice(topics)
        (style,) = draw.choices(STYLES, weights=self.settings.shares)
        text = TEMPLATES[style].format(topic=" ".join(topic), quality=draw.choice(QUALITIES))
        return topic, answer_ids(tokenizer, text)


def styles_judge() -> TableJudge:
    """The exact, intransitive judge of `world:styles`."""
    return TableJudge(OUTCOMES, PREFERENCE, outcome_of)


def _loosely(text: str) -> str:
    return " ".join(text.split()).casefold()
