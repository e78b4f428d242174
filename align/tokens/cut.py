"""Pairs within the budget of tokens."""

from __future__ import annotations

from dataclasses import replace

from align.data.problems import RowProblem
from align.data.row_policy import RowPolicy
from align.tokens.tokenized_pair import TokenizedPair


def cut_pair(tokenized: TokenizedPair, policy: RowPolicy, bos: int | None) -> TokenizedPair:
    """`tokenized` within `policy.max_length`, and with two different completions.

    Args:
        tokenized: uncut.
        policy: what is cut, and from how many tokens on.
        bos: the beginning-of-sequence token, which stays.

    Raises:
        RowProblem: `too_long` or `equal_after_cut`.
    """
    prompt_ids = tokenized.prompt_ids
    chosen_ids, rejected_ids = tokenized.chosen_ids, tokenized.rejected_ids
    longest = max(len(chosen_ids), len(rejected_ids))
    notes = set(tokenized.notes)
    limit = policy.max_length
    if limit is not None and len(prompt_ids) + longest > limit:
        if policy.on_too_long == "cut_prompt":
            prompt_ids = cut_prompt(prompt_ids, limit - longest, bos)
            notes.add("cut_prompt")
        elif policy.on_too_long == "cut_completion":
            room = limit - len(prompt_ids)
            if room < policy.min_completion_tokens:
                raise RowProblem(
                    "too_long",
                    "prompt",
                    f"{len(prompt_ids)} tokens leave a completion {max(room, 0)} of {limit}",
                )
            chosen_ids, rejected_ids = chosen_ids[:room], rejected_ids[:room]
            notes.add("cut_completion")
        else:
            at = "chosen" if len(chosen_ids) >= len(rejected_ids) else "rejected"
            raise RowProblem(
                "too_long",
                at,
                f"{len(prompt_ids)} + {longest} tokens, data.max_length is {limit}",
            )
    if chosen_ids == rejected_ids and tokenized.pair.rejected_images is None:
        raise RowProblem("equal_after_cut", "rejected", "the same tokens as chosen")
    return replace(
        tokenized,
        prompt_ids=prompt_ids,
        chosen_ids=chosen_ids,
        rejected_ids=rejected_ids,
        notes=tuple(sorted(notes)),
    )


def cut_prompt(prompt_ids: list[int], room: int, bos: int | None) -> list[int]:
    """The last `room` ids of a prompt, its beginning-of-sequence token among them.

    Raises:
        RowProblem: `too_long`.
    """
    kept = prompt_ids[:1] if bos is not None and prompt_ids[:1] == [bos] else []
    if room <= len(kept):
        raise RowProblem(
            "too_long", "prompt", f"the longer completion leaves {max(room, 0)} tokens for it"
        )
    return kept + prompt_ids[len(prompt_ids) - (room - len(kept)) :]
