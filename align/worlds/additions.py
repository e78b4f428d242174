"""The problems of the world of sums: what is asked, what is right, how it is spelled."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import cast

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from align.worlds.base import Split
from align.worlds.chat import BOS, SPECIAL_TOKENS, UNKNOWN, chat_tokenizer

Operands = tuple[int, int, int]

CHARACTERS = "0123456789+=?\n"
COMPLETION = re.compile(r"(\d+)\+(\d+)=(\d+)\n(\d+)\+(\d+)=(\d+)\n(\d+)", flags=re.ASCII)
# One line is at most 9 characters ("117+39=156"), the whole answer 24 and the end token.
MAX_NEW_TOKENS = 32
HELD_OUT_SHARE = 10


@dataclass(frozen=True)
class Verdict:
    """What the judge says about one completion.

    Attributes:
        well_formed: three lines of the right shape and nothing else.
        steps_right: per partial sum: its operands are the carried ones and its sum is their sum;
            None where the completion is not well formed.
        right: well formed, and the last line is the sum of the three operands.
    """

    well_formed: bool
    steps_right: tuple[bool, bool] | None
    right: bool


def prompt_of(operands: Operands) -> str:
    """The user's message."""
    return "{}+{}+{}?".format(*operands)


def solution_of(operands: Operands) -> str:
    """The right completion."""
    a, b, c = operands
    return written(operands, a + b, a + b + c)


def judge(operands: Operands, completion: str) -> Verdict:
    """The exact judge; `completion` is the text before the end token."""
    match = COMPLETION.fullmatch(completion)
    if match is None:
        return Verdict(well_formed=False, steps_right=None, right=False)
    a, b, c = operands
    left1, right1, sum1, left2, right2, sum2, answer = map(int, match.groups())
    return Verdict(
        well_formed=True,
        steps_right=(
            (left1, right1) == (a, b) and sum1 == a + b,
            (left2, right2) == (sum1, c) and sum2 == sum1 + c,
        ),
        right=answer == a + b + c,
    )


def split_of(operands: Operands) -> Split:
    """By a hash of the sorted operands: no reordering of a held-out problem is trained on."""
    text = "+".join(map(str, sorted(operands)))
    bucket = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % HELD_OUT_SHARE
    return "held_out" if bucket == 0 else "train"


def sums_tokenizer() -> PreTrainedTokenizerFast:
    """One token per character, the turn markers as special tokens."""
    vocabulary = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *CHARACTERS))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    backend.post_processor = TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, vocabulary[BOS])]
    )
    return chat_tokenizer(backend, max_length=128)


def written(operands: Operands, first: int, second: int) -> str:
    """The two partial sums as lines, then the answer."""
    a, b, c = operands
    return f"{a}+{b}={first}\n{first}+{c}={second}\n{second}"


def prompt_ids(tokenizer: PreTrainedTokenizerBase, operands: Operands) -> list[int]:
    """The chat template's own ids, generation prompt included."""
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt_of(operands)}],
        add_generation_prompt=True,
        return_dict=False,
    )
    return cast(list[int], ids)
