"""Rows for the benchmark as token ids: five length distributions and two real files.

The distributions are models, not taken from data sets; completions are independent random tokens,
so real pairs, whose completions can begin alike, share more.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.utils.data import RandomSampler
from transformers import PreTrainedTokenizerFast

from align.data.pair_files import read_pairs
from align.data.pairs import PreferencePair
from align.data.row_policy import RowPolicy
from align.errors import DataError
from align.forest import TokenRow
from align.forest.packing import unique_tokens
from align.tokens.encoding import encode_pairs

MAX_LENGTH = 1024
PAIRS = 8  # of one optimizer step; the counts are always of this many
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] + ': ' + message['content'] }}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
DATA = ("uf", "hh", "step", "k4", "tree", "hh_real", "demo_real")
REAL = {
    "hh_real": "hh_rlhf/hh_rlhf_harmless-base_test.jsonl.gz",
    "demo_real": "dpo_demo/llamafactory_dpo_en_demo.json.gz",
}
# Groups of a data set from which batches are drawn. Pairs of one prompt or tree meet in a batch as
# often as the set is small: these two are 24 pairs. Grouping by length needs a large set to work on
# (the sampler sorts within 50 batches at most).
SMALL = {"k4": 8, "tree": 4}
LARGE = 800

Row = dict[str, Any]


@dataclass(frozen=True)
class Lengths:
    """Lognormal numbers of tokens.

    Attributes:
        median: tokens.
        spread: standard deviation of the logarithm.
    """

    median: float
    spread: float

    def draw(self, rng: np.random.Generator, n: int) -> np.ndarray:
        drawn = rng.lognormal(np.log(self.median), self.spread, n).astype(int)
        return drawn.clip(1, MAX_LENGTH - 1)


# Prompt and completion; `k4` is `uf` with four completions. UltraFeedback-like, HH-like, steps.
PROMPT = {
    "uf": Lengths(150, 1.0),
    "k4": Lengths(150, 1.0),
    "hh": Lengths(200, 0.6),
    "step": Lengths(300, 0.4),
    "tree": Lengths(120, 0.6),
}
COMPLETION = {
    "uf": Lengths(250, 0.6),
    "k4": Lengths(250, 0.6),
    "hh": Lengths(60, 0.7),
    "step": Lengths(30, 0.5),
    "tree": Lengths(40, 0.5),
}
COMPLETIONS = {"uf": 2, "k4": 4, "hh": 2, "step": 2}
LEVELS = 6


def synthetic(name: str, groups: int, seed: int, vocabulary: int) -> list[Row]:
    """Pairs of `groups` prompts, or of `groups` search trees."""
    rng = np.random.default_rng([seed, sum(name.encode())])

    def text(length: int) -> list[int]:
        return rng.integers(len(SPECIAL), vocabulary, length).tolist()

    rows: list[Row] = []
    for group in range(groups):
        if name == "tree":
            # A level's two steps follow the better step of the level above.
            prompt = text(int(PROMPT[name].draw(rng, 1)[0]))
            for _ in range(LEVELS):
                chosen, rejected = (text(int(n)) for n in COMPLETION[name].draw(rng, 2))
                row = _row(group, prompt, chosen, rejected)
                if _longest(row) > MAX_LENGTH:
                    break
                rows.append(row)
                prompt = prompt + chosen
        else:
            completions = [text(int(n)) for n in COMPLETION[name].draw(rng, COMPLETIONS[name])]
            room = MAX_LENGTH - max(len(completion) for completion in completions)
            prompt = text(min(int(PROMPT[name].draw(rng, 1)[0]), room))
            best, *others = completions
            rows += [_row(group, prompt, best, other) for other in others]
    return rows


def _row(group: int, prompt: list[int], chosen: list[int], rejected: list[int]) -> Row:
    return {"group": group, "prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}


def real_folder() -> Path:
    """Where the real files are looked for: $ALIGN_TEST_DATA, or beside the repository."""
    beside = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
    return Path(os.environ.get("ALIGN_TEST_DATA", beside))


@functools.cache
def real(name: str, vocabulary: int) -> list[Row]:
    """Pairs of a real file, through a BPE of the given size that is trained on their own text.

    Raises:
        DataError: the file is not there.
    """
    path = real_folder() / REAL[name]
    if not path.is_file():
        raise DataError(
            f"{name} needs {path}, which is not there: set ALIGN_TEST_DATA to the folder that "
            "holds it, or choose other --data."
        )
    policy = RowPolicy(max_length=MAX_LENGTH, max_dropped=1.0)
    pairs, report = read_pairs(str(path), policy=policy)
    tokenizer = _bpe([text for pair in pairs for text in _texts(pair)], vocabulary)
    return [
        _row(i, row.prompt_ids, row.chosen_ids, row.rejected_ids)
        for i, row in enumerate(encode_pairs(pairs, tokenizer, policy, report))
    ]


def _texts(pair: PreferencePair) -> list[str]:
    return [
        text if isinstance(text, str) else "\n".join(message.content for message in text)
        for text in (pair.prompt, pair.chosen, pair.rejected)
    ]


def _bpe(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return _fast(backend)


def plain_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """What a trainer asks for beside token ids: names of special tokens."""
    words = {word: i for i, word in enumerate(SPECIAL)}
    words |= {f"t{i}": i for i in range(len(SPECIAL), vocabulary)}
    return _fast(Tokenizer(models.WordLevel(words, unk_token="<unk>")))


def _fast(backend: Tokenizer) -> PreTrainedTokenizerFast:
    pad, bos, eos, unk = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=TEMPLATE,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        unk_token=unk,
    )


def data_set(name: str, *, large: bool, seed: int, vocabulary: int) -> list[Row]:
    """The pairs among which batches are drawn."""
    if name in REAL:
        return real(name, vocabulary)
    return synthetic(name, LARGE if large else SMALL.get(name, LARGE), seed, vocabulary)


def random_steps(rows: Sequence[Row], steps: int, pairs: int, seed: int) -> list[Row]:
    """The rows of the first steps, `pairs` each, as Trainer draws them by default."""
    generator = _generator(seed)
    drawn: list[int] = []
    while len(drawn) < steps * pairs:
        epoch = list(RandomSampler(rows, generator=generator))
        drawn += epoch[: len(epoch) // pairs * pairs]
    return [rows[i] for i in drawn[: steps * pairs]]


def grouped_steps(rows: Sequence[Row], steps: int, pairs: int, seed: int) -> list[Row]:
    """The same for train_sampling_strategy="group_by_length".

    Its first steps are the longest, so these are spaced evenly over an epoch.
    """
    # Imported late: not every version of transformers has it, and only this needs it.
    from transformers.trainer_pt_utils import LengthGroupedSampler

    lengths = [_longest(row) for row in rows]
    order = list(LengthGroupedSampler(pairs, lengths=lengths, generator=_generator(seed)))
    starts = [int((i + 0.5) * (len(order) // pairs) / steps) * pairs for i in range(steps)]
    return [rows[i] for start in starts for i in order[start : start + pairs]]


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _longest(row: Row) -> int:
    return len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))


def token_rows(rows: Sequence[Row]) -> tuple[list[TokenRow], list[TokenRow]]:
    """Chosen and rejected sides."""
    chosen = [TokenRow(row["prompt_ids"], row["chosen_ids"]) for row in rows]
    return chosen, [TokenRow(row["prompt_ids"], row["rejected_ids"]) for row in rows]


@dataclass(frozen=True)
class TokensPerPair:
    """What each way of computing a data set costs, counted, in tokens per pair.

    Attributes:
        padded: random batches of `PAIRS` pairs, padded to the longest row.
        grouped: the same of neighbours in length.
        free: both rows, nothing padded.
        shared: every prefix once, where all pairs of a group are in one batch.
    """

    padded: float
    grouped: float
    free: float
    shared: float

    @classmethod
    def of(cls, rows: Sequence[Row], seed: int) -> TokensPerPair:
        lengths = np.array([_longest(row) for row in rows])
        full = len(rows) // PAIRS * PAIRS

        def padded(order: np.ndarray) -> float:
            return 2 * lengths[order][:full].reshape(-1, PAIRS).max(axis=1).mean()

        groups: dict[int, list[Row]] = {}
        for row in rows:
            groups.setdefault(row["group"], []).append(row)
        free = [
            2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"])
            for row in rows
        ]
        return cls(
            padded=padded(np.random.default_rng(seed).permutation(len(rows))),
            grouped=padded(lengths.argsort()),
            free=float(np.mean(free)),
            shared=sum(
                unique_tokens([*chosen, *rejected])
                for chosen, rejected in map(token_rows, groups.values())
            )
            / len(rows),
        )
