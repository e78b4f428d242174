"""On-policy alignment: the policy learns the ground truths and revisions, to be trained from there.

Yang et al. 2025, OPA-DPO (arXiv 2501.09695): a pair helps only where the policy finds its chosen
side likely. So the policy is fine-tuned with LoRA on ground truths and revisions, never on its own
response; the result is policy and reference of the training that follows.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn import functional
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    get_cosine_schedule_with_warmup,
)

from align.data.built import Built
from align.data.messages import Text
from align.data.problems import DroppedRow, RowProblem
from align.data.records import Record
from align.errors import DataError, NumericalError
from align.forest import TokenRow, score_rows
from align.forest.padded import Pictures
from align.policies.prompting import Prompting
from align.progress import progress
from align.tokens.vision.columns import Shown
from align.tokens.vision.pixels import pictures_of
from align_data.expert_correction.settings import OnPolicyAlignmentSettings

Kind = Literal["gt", "rev", "gen"]
IGNORED = -100


class Response(Record):
    """One answer to a prompt: the ground truth, the revision, or the policy's own."""

    prompt: Text
    response: str
    kind: Kind
    images: tuple[str, ...] | None = None
    source: str
    row: int


@dataclass(frozen=True)
class _Row:
    """A response in tokens, behind a prompt that shows `shown`."""

    tokens: TokenRow
    shown: Shown

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Aligned:
    """What the alignment did.

    Attributes:
        learned: responses trained on.
        steps: of the optimizer.
        losses: per step [nats per token].
        before: mean log-prob [nats per token] of the responses of each kind, before.
        after: likewise; on-policy means that `gt` and `rev` have come near to `gen`.
        merging: largest change of these means by merging the adapter; None where it is not merged.
        dropped: responses that could not be used.
    """

    learned: int
    steps: int
    losses: tuple[float, ...]
    before: dict[str, float]
    after: dict[str, float]
    merging: float | None
    dropped: tuple[DroppedRow, ...]


def responses_in(built: Iterable[Built]) -> list[Response]:
    """All that a pipeline's records hold for the alignment."""
    return [Response.model_validate(one) for b in built for one in b.record.get("responses", ())]


def align_on_policy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | ProcessorMixin,
    responses: Sequence[Response],
    settings: OnPolicyAlignmentSettings,
    *,
    seed: int,
    folder: Path,
) -> Aligned:
    """Fine-tunes `model`, which is used up, and saves the result with its tokenizer in `folder`.

    Args:
        model: on its device, in the precision to be trained in; the adapter is float32.
        tokenizer: of the model; its processor where it reads pictures.
        responses: ground truths and revisions are learned, the policy's own are only scored.
        settings: the recipe's node.
        seed: of the adapter, the order and the dropout.
        folder: is made; a whole model or an adapter, as `settings.save` says.

    Raises:
        DataError: there is nothing to learn.
        NumericalError: a loss is not finite.
    """
    rows, dropped = _encode(responses, tokenizer, settings.max_length)
    learned = [row for kind in ("gt", "rev") for row in rows[kind]]
    if not learned:
        raise DataError(
            f"None of the {len(responses)} responses can be learned: {len(dropped)} of them cannot "
            "be used, and the policy's own never are. Look at what the expert corrected, and at "
            "max_length."
        )
    before = _means(model, tokenizer, rows)
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(_seed(seed, "adapter"))
        adapter = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=list(settings.target_modules) or "all-linear",
            task_type="CAUSAL_LM",
        )
        adapted: Any = get_peft_model(model, adapter)
        losses = _train(adapted, learned, tokenizer, settings, seed)
    after = _means(adapted, tokenizer, rows)
    merging = None
    if settings.save == "merged":
        adapted = adapted.merge_and_unload()
        merged = _means(adapted, tokenizer, rows)
        merging = max(abs(merged[kind] - after[kind]) for kind in after)
        after = merged
    adapted.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Aligned(len(learned), len(losses), losses, before, after, merging, dropped)


def _encode(
    responses: Sequence[Response],
    tokenizer: PreTrainedTokenizerBase | ProcessorMixin,
    max_length: int,
) -> tuple[dict[Kind, list[_Row]], tuple[DroppedRow, ...]]:
    prompting = Prompting(tokenizer)
    rows: dict[Kind, list[_Row]] = {kind: [] for kind in get_args(Kind)}
    dropped: list[DroppedRow] = []
    for one in responses:
        try:
            tokens = prompting.row(one.prompt, one.response, one.images)
            row = _Row(tokens, Shown(one.images or ()))
            if len(row) > max_length:
                detail = f"{len(row)} tokens, max_length is {max_length}"
                raise RowProblem("too_long", one.kind, detail)
        except RowProblem as problem:
            dropped.append(DroppedRow.of(problem, one.source, one.row))
            continue
        rows[one.kind].append(row)
    return rows, tuple(dropped)


def _means(model: Any, tokenizer: Any, rows: dict[Kind, list[_Row]]) -> dict[str, float]:
    """Mean log-prob of a token [nats] of each kind that there is."""
    means: dict[str, float] = {}
    for kind, some in rows.items():
        if some:
            pictures = pictures_of(tokenizer, [row.shown for row in some])
            logps = score_rows(model, [row.tokens for row in some], pictures=pictures)
            means[kind] = float(logps.total().double().sum() / logps.mask.sum())
    return means


def _train(
    model: Any,
    rows: Sequence[_Row],
    tokenizer: Any,
    settings: OnPolicyAlignmentSettings,
    seed: int,
) -> tuple[float, ...]:
    """The loss of every step: the mean over all completion tokens of its responses."""
    parameters = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0.0)
    steps = settings.epochs * math.ceil(len(rows) / settings.batch)
    schedule = get_cosine_schedule_with_warmup(
        optimizer, math.ceil(settings.warmup_share * steps), steps
    )
    written = getattr(tokenizer, "tokenizer", tokenizer).pad_token_id
    pad = written if isinstance(written, int) else 0
    losses: list[float] = []
    model.train()
    with progress("on-policy alignment", steps, "steps") as advance:
        for batch in _batches(rows, settings, seed):
            tokens = sum(len(row.tokens.completion_ids) for row in batch)
            total = 0.0
            # By length, so that a forward pass holds little padding.
            batch.sort(key=len)
            for start in range(0, len(batch), settings.batch_rows):
                some = batch[start : start + settings.batch_rows]
                pictures = pictures_of(tokenizer, [row.shown for row in some])
                loss = _nll(model, [row.tokens for row in some], pad, pictures) / tokens
                loss.backward()
                total += float(loss.detach())
            if not math.isfinite(total):
                raise NumericalError(
                    f"On-policy alignment: the loss of step {len(losses) + 1} is {total}. Lower "
                    "learning_rate, or train in bfloat16 or float32."
                )
            torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            losses.append(total)
            advance(tokens=tokens, note=f"loss {total:.4f}")
    model.eval()
    return tuple(losses)


def _batches(
    rows: Sequence[_Row], settings: OnPolicyAlignmentSettings, seed: int
) -> Iterator[list[_Row]]:
    for epoch in range(settings.epochs):
        order = list(range(len(rows)))
        random.Random(_seed(seed, f"order/{epoch}")).shuffle(order)
        for start in range(0, len(order), settings.batch):
            yield [rows[k] for k in order[start : start + settings.batch]]


def _nll(
    model: Any, rows: Sequence[TokenRow], pad: int, pictures: Pictures | None = None
) -> Tensor:
    """Negative log-prob [nats] of all completion tokens, summed; float32."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad)
    labels = torch.full((len(rows), width), IGNORED)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for n, row in enumerate(rows):
        tokens = torch.from_numpy(row.tokens().astype("int64"))
        ids[n, : len(row)], mask[n, : len(row)] = tokens, 1
        labels[n, len(row.prompt_ids) : len(row)] = tokens[len(row.prompt_ids) :]
    device = model.device
    inputs = {"input_ids": ids, "attention_mask": mask}
    if pictures is not None:
        inputs |= pictures(range(len(rows)), ids)
    logits = model(**{name: value.to(device) for name, value in inputs.items()}).logits[:, :-1]
    targets = labels[:, 1:].to(device)
    counted = targets != IGNORED
    return functional.cross_entropy(logits[counted].float(), targets[counted], reduction="sum")


def _seed(seed: int, purpose: str) -> int:
    text = f"{seed}/on_policy_alignment/{purpose}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
