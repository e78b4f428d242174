# pyright: basic
"""Supervised fine-tuning on completions, by TRL's SFTTrainer: the mean over the completion tokens
of a step of -log p(token | prompt, tokens before it); a prompt's tokens teach nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling, SFTTrainer

from align.trainers.guarded import GuardedTrainer, with_row_index

# A token without a label has no loss, in torch's and transformers' convention.
NO_LABEL = -100


class ImitationTrainer(GuardedTrainer, SFTTrainer):
    """`trl.SFTTrainer` on tokenised completions, as a run wants it.

    Args:
        model: a causal language model.
        args: a `trl.SFTConfig`.
        train_dataset: columns `input_ids` and `labels`; see `GuardedTrainer` for the others.
        peft_config: of an adapter.
    """

    kind = "sft"
    read_columns: ClassVar[tuple[str, ...]] = ("input_ids", "labels")

    def __init__(self, model: Any, *, args: SFTConfig, processing_class: Any, **given: Any):
        super().__init__(
            model,
            args=args,
            processing_class=processing_class,
            data_collator=Completions(pad_token_id=processing_class.pad_token_id),
            **given,
        )


@dataclass
class Completions(DataCollatorForLanguageModeling):
    """TRL's collator, with the numbers of the rows."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """A batch of rows, [B, T]."""
        return with_row_index(super().torch_call(examples), examples)
