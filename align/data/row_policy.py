"""What is done with rows that cannot be used as they are."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from align.data.problems import DroppedRow
from align.errors import DataError

# Reason of a dropped row -> the field of `RowPolicy` that says what is done with such rows.
SWITCHES: dict[str, str] = {
    "too_long": "on_too_long",
    "equal": "on_equal",
    "equal_after_cut": "on_equal",
    "empty_prompt": "on_empty",
    "empty_completion": "on_empty",
    "wrong_roles": "on_wrong_roles",
    "bad_unicode": "on_bad_unicode",
    "control_tokens": "on_control_tokens",
    "swapped_duplicate": "on_swapped_duplicate",
}

OnEmpty = Literal["drop", "keep_prompt", "error"]


class RowPolicy(BaseModel):
    """What to do with rows that cannot be used as they are; part of the recipe's data section.

    "drop" keeps the row out and counts it, "error" stops at the first one. Rows of the wrong shape
    (`unreadable`, `wrong_type`, `missing_field`, ...) are always dropped and counted.

    Attributes:
        max_length: tokens of prompt and completion together; None means no limit.
        on_too_long: "cut_prompt" takes tokens from the left of the prompt and keeps its BOS;
            "cut_completion" takes them from the right, so that side has no end token left.
        min_completion_tokens: a completion that a cut leaves shorter than this is too long.
        on_equal: chosen and rejected the same, as text or as tokens.
        on_empty: an empty prompt, turn or completion. "keep_prompt" is for trainers in scripts:
            plain pairs and groups without a prompt stay, from the first predicted token on.
        on_wrong_roles: roles that make no question-and-answer.
        on_bad_unicode: "replace" puts U+FFFD where a lone surrogate stood.
        on_control_tokens: "split" encodes a special token's spelling as ordinary tokens; "keep"
            as the token itself, for texts rendered with a chat template beforehand.
        on_swapped_duplicate: the same pair again with the labels the other way round; "keep" is
            for annotations in which two people may disagree.
        max_dropped: fraction of the rows read that may be dropped before it is an error.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    max_length: int | None = Field(default=1024, ge=2)
    on_too_long: Literal["drop", "cut_prompt", "cut_completion", "error"] = "drop"
    min_completion_tokens: int = Field(default=1, ge=1)
    on_equal: Literal["drop", "error"] = "drop"
    on_empty: OnEmpty = "drop"
    on_wrong_roles: Literal["drop", "error"] = "drop"
    on_bad_unicode: Literal["drop", "replace", "error"] = "drop"
    on_control_tokens: Literal["split", "keep", "drop", "error"] = "split"
    on_swapped_duplicate: Literal["keep", "drop", "error"] = "drop"
    max_dropped: float = Field(default=0.05, ge=0.0, le=1.0)

    def obey(self, dropped: DroppedRow) -> None:
        """Raise where the policy for this reason is to stop at the first such row.

        Raises:
            DataError: naming the row and the key of the recipe.
        """
        switch = SWITCHES.get(dropped.reason)
        if switch is not None and getattr(self, switch) == "error":
            raise DataError(
                f"{dropped}. data.{switch} is 'error', so the first such row stops the run: mend "
                f"the row, or choose another policy for data.{switch}."
            )
