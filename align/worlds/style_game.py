"""The game that the world of styles plays: what is an answer, and which one beats which.

The judge looks at the style alone, and its preferences are not transitive: asking beats shouting,
shouting beats listing, listing beats asking, and all three beat plain and hedging remarks. No
reward explains that, every single style can be beaten, and the one policy that cannot is a mixture
of the three.

    user       what of green tea?
    assistant  green tea is old.              plain
               perhaps green tea is old.      hedging
               is green tea not old?          asking
               green tea! old!                shouting
               - green tea\\n- old             listing
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from align.forest import TokenRow, score_rows
from align.worlds.base import Split
from align.worlds.chat import BOS, END, SPECIAL_TOKENS, UNKNOWN, chat_tokenizer

Topic = tuple[str, str]

ADJECTIVES = (
    *("green", "red", "small", "big", "quiet", "loud"),
    *("round", "wild", "cold", "young", "slow", "bright"),
)
NOUNS = (
    *("tea", "rain", "bread", "stone", "river", "song"),
    *("horse", "paper", "garden", "winter", "letter", "boat"),
)
QUALITIES = ("warm", "old", "soft", "dear", "rare", "odd")
TEMPLATES = {
    "plain": "{topic} is {quality}.",
    "hedging": "perhaps {topic} is {quality}.",
    "asking": "is {topic} not {quality}?",
    "shouting": "{topic}! {quality}!",
    "listing": "- {topic}\n- {quality}",
}
STYLES = tuple(TEMPLATES)
MALFORMED = "malformed"  # any other text, another topic included
OUTCOMES = (*STYLES, MALFORMED)
PREFERENCE = (
    (0.50, 0.55, 0.30, 0.40, 0.35, 0.95),
    (0.45, 0.50, 0.30, 0.20, 0.25, 0.95),
    (0.70, 0.70, 0.50, 0.85, 0.20, 0.95),
    (0.60, 0.80, 0.15, 0.50, 0.75, 0.95),
    (0.65, 0.75, 0.80, 0.25, 0.50, 0.95),
    (0.05, 0.05, 0.05, 0.05, 0.05, 0.50),
)
"""P(row's outcome beats column's), in the order of OUTCOMES."""
# Of a circle with margins .35, .25, .30 above a half: each plays the margin of the other two.
NASH = (0.0, 0.0, 25 / 90, 30 / 90, 35 / 90, 0.0)
"""The one policy that nothing beats."""

WORDS = ("what", "of", "is", "not", "perhaps", *ADJECTIVES, *NOUNS, *QUALITIES)
MARKS = (*".?!-\n ",)
# The longest remark, in listing style, is 6 words and marks, and the end token.
MAX_NEW_TOKENS = 12
HELD_OUT_SHARE = 6


@dataclass(frozen=True, eq=False)
class Measured:
    """What a language model does on X topics, exactly.

    Attributes:
        outcomes: [X, 6] probability of each of OUTCOMES, float64; rows sum to one.
        exploitability: [X] in [0, 1/2], what the best reply wins above a half.
        win_rate: [X], P(an answer beats one of the reference).
        kl: [X] nats, KL to the reference, with all malformed texts taken as one; a lower bound
            that is exact where nothing is malformed.
    """

    outcomes: Tensor
    exploitability: Tensor
    win_rate: Tensor
    kl: Tensor


def prompt_of(topic: Topic) -> str:
    """The user's message."""
    return "what of {} {}?".format(*topic)


def answers_of(topic: Topic) -> dict[str, str]:
    """Every well-formed answer and its style."""
    return {
        template.format(topic=" ".join(topic), quality=quality): style
        for style, template in TEMPLATES.items()
        for quality in QUALITIES
    }


def outcome_of(prompt: str, completion: str) -> str:
    """The exact classifier: one of OUTCOMES; `completion` is the text before the end token."""
    match = re.fullmatch(r"what of ([a-z]+) ([a-z]+)\?", prompt)
    if match is None:
        raise ValueError("a prompt of the world of styles reads `what of <adjective> <noun>?`")
    return answers_of((match[1], match[2])).get(completion, MALFORMED)


def preference_of(prompt: str, first: str, second: str) -> float:
    """P(first beats second), exact."""
    i, j = (OUTCOMES.index(outcome_of(prompt, text)) for text in (first, second))
    return PREFERENCE[i][j]


def exploitability(outcomes: Tensor) -> Tensor:
    """[X] in [0, 1/2]: what the best reply to each row of `outcomes` [X, 6] wins above a half."""
    table = torch.tensor(PREFERENCE, dtype=outcomes.dtype)
    return (outcomes @ table.T).amax(dim=1) - 0.5


def split_of(topic: Topic) -> Split:
    """By a hash of the topic; every word of a held-out topic is trained on in other topics."""
    bucket = int.from_bytes(hashlib.sha256(" ".join(topic).encode()).digest()[:8], "big")
    return "held_out" if bucket % HELD_OUT_SHARE == 0 else "train"


def styles_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word and mark; a word behind a space is a token of its own."""
    words = [*WORDS, *(f" {word}" for word in WORDS)]
    vocabulary = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *words, *MARKS))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[a-z]+|[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    backend.post_processor = TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, vocabulary[BOS])]
    )
    return chat_tokenizer(backend, max_length=64)


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    topics: Sequence[Topic],
    *,
    reference: PreTrainedModel,
    batch_size: int = 256,
) -> Measured:
    """Outcomes, exploitability, win rate and KL by scoring every well-formed answer."""
    policy = answer_logps(model, tokenizer, topics, batch_size=batch_size)
    base = (
        policy
        if reference is model
        else answer_logps(reference, tokenizer, topics, batch_size=batch_size)
    )
    p, q = _outcomes(policy), _outcomes(base)
    kl = (policy.exp() * (policy - base)).sum(dim=1)
    # All malformed texts enter as one more answer; 0 log 0 is 0.
    kl += torch.special.xlogy(p[:, -1], p[:, -1]) - torch.special.xlogy(p[:, -1], q[:, -1])
    table = torch.tensor(PREFERENCE, dtype=p.dtype)
    return Measured(
        outcomes=p,
        exploitability=exploitability(p),
        win_rate=torch.einsum("xi,ij,xj->x", p, table, q),
        kl=kl,
    )


def answer_logps(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    topics: Sequence[Topic],
    *,
    batch_size: int = 256,
) -> Tensor:
    """[X, 30] log p(answer, end token | prompt) in nats, float64, in the order of `answers_of`."""
    rows = [
        TokenRow(prompt_ids(tokenizer, topic), answer_ids(tokenizer, answer))
        for topic in topics
        for answer in answers_of(topic)
    ]
    totals = score_rows(model, rows, batch_size=batch_size).token.double().sum(dim=1)
    return totals.reshape(len(topics), -1)


def _outcomes(logps: Tensor) -> Tensor:
    """[X, 6] from the log-probs [X, 30] of the well-formed answers."""
    styles = logps.exp().reshape(len(logps), len(STYLES), -1).sum(dim=2)
    # Float32 log-probs can sum to a little more than one.
    rest = (1 - styles.sum(dim=1, keepdim=True)).clamp(min=0)
    return torch.cat([styles, rest], dim=1)


def answer_ids(tokenizer: PreTrainedTokenizerBase, answer: str) -> list[int]:
    """Ids of an answer and its end token."""
    return tokenizer.encode(answer + END, add_special_tokens=False)


def prompt_ids(tokenizer: PreTrainedTokenizerBase, topic: Topic) -> list[int]:
    """The chat template's own ids, generation prompt included."""
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt_of(topic)}],
        add_generation_prompt=True,
        return_dict=False,
    )
    return cast(list[int], ids)
