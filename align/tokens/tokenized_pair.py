"""The token ids of a preference pair."""

from __future__ import annotations

from dataclasses import dataclass

from align.data.pairs import PreferencePair


@dataclass(frozen=True)
class TokenizedPair:
    """Token ids of one pair.

    Attributes:
        prompt_ids: shared by both sides.
        chosen_ids: the completion's ids, the end token included where it ends.
        rejected_ids: the same for the other side.
        pair: the row they come from.
        notes: what was done to the row (`boundary_merge`, `control_tokens_split`, `cut_prompt`,
            `cut_completion`, `given_ids`, `no_prompt`).
    """

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    pair: PreferencePair
    notes: tuple[str, ...] = ()
