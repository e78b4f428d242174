"""Pairs of records -> pairs of token ids, every row that cannot be used named and counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from align.data.pairs import PreferencePair
from align.data.problems import DroppedRow, RowProblem
from align.data.row_policy import RowPolicy
from align.data.row_report import RowReport
from align.tokens.dataset import present_columns
from align.tokens.encoder import Encoder
from align.tokens.tokenized_pair import TokenizedPair
from align.tokens.vision.encoder import VisionEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, ProcessorMixin


def encode_pair(
    pair: PreferencePair, tokenizer: PreTrainedTokenizerBase | ProcessorMixin, policy: RowPolicy
) -> TokenizedPair:
    """Token ids of one pair, cut as `policy` says.

    Raises:
        RowProblem: the row cannot be used; `align.data.problems.REASONS` lists the codes.
        DataError: no such row can be used with this tokenizer (no chat template, no end token).
    """
    encoder = encoder_of(tokenizer, policy)
    return encoder.cut(encoder.encode(pair))


def encode_pairs(
    pairs: Sequence[PreferencePair],
    tokenizer: PreTrainedTokenizerBase | ProcessorMixin,
    policy: RowPolicy,
    report: RowReport,
) -> list[TokenizedPair]:
    """Token ids of all pairs that can be used, in order; the others move to `report.dropped`.

    A fresh report counts `pairs` as read; the one that came with them counts them already.

    Raises:
        DataError: a policy says to stop at such a row, more rows than `policy.max_dropped` are
            dropped by now, none is left, or the tokenizer cannot encode such rows.
    """
    if report.read == 0:
        report.read = report.kept = len(pairs)
    if report.kept < len(pairs):
        raise ValueError(f"the report counts {report.kept} kept rows, and {len(pairs)} were given")
    encoder = encoder_of(tokenizer, policy)
    tokenized: list[TokenizedPair] = []
    for pair in pairs:
        try:
            row = encoder.cut(encoder.encode(pair))
        except RowProblem as problem:
            dropped = DroppedRow.of(problem, pair.source, pair.row)
            policy.obey(dropped)
            report.drop_kept(dropped)
            continue
        report.notes.update(row.notes)
        tokenized.append(row)
    report.check(policy.max_dropped)
    present = present_columns(tokenized)
    report.ignore_columns(
        [
            f"{name} (on {count} of {len(tokenized)} rows)"
            for name, count in present.items()
            if count < len(tokenized)
        ]
    )
    return tokenized


def encoder_of(tokenizer: PreTrainedTokenizerBase | ProcessorMixin, policy: RowPolicy) -> Encoder:
    """The encoder of a text model's tokenizer, or of a vision-language model's processor."""
    if hasattr(tokenizer, "image_processor"):
        return VisionEncoder(cast("ProcessorMixin", tokenizer), policy)
    return Encoder(cast("PreTrainedTokenizerBase", tokenizer), policy)
