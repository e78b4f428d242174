"""One sequence to score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TokenRow:
    """One sequence to score: log p(completion | prompt)."""

    prompt_ids: Sequence[int]
    completion_ids: Sequence[int]

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)

    @property
    def first_scored(self) -> int:
        """Place of the first token with a log-prob; nothing predicts a row's very first token."""
        return max(len(self.prompt_ids), 1)

    def tokens(self) -> np.ndarray:
        """Prompt and completion, [len] int32."""
        return np.concatenate(
            [np.asarray(self.prompt_ids, np.int32), np.asarray(self.completion_ids, np.int32)]
        )
