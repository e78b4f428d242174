"""Whether rows, roles and a tokenizer fit a recipe: looked at before anything is trained."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.data.messages import Text
from align.data.row_policy import RowPolicy
from align.errors import DataError, RecipeError
from align.policies.fetched import is_fetched
from align.recipe import Recipe
from align.tokens.tokenized_pair import TokenizedPair

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Encoded:
    """A prompt with its completions as they are trained on.

    Attributes:
        prompt: its text.
        prompt_ids: its token ids.
        sides: the completions' ids, each by what errors call it.
        notes: what was done to the row.
        shows: pictures; where they stand in the prompt only its processor knows.
        open_sides: completions that are the beginning of an answer.
        per_token: numbers of a completion's tokens.
    """

    prompt: Text
    prompt_ids: list[int]
    sides: Mapping[str, list[int]]
    notes: tuple[str, ...]
    shows: bool = False
    open_sides: frozenset[str] = frozenset()
    per_token: Mapping[str, Sequence[float]] = field(default_factory=dict[str, Sequence[float]])


def broken_invariant(
    row: TokenizedPair, tokenizer: PreTrainedTokenizerBase, policy: RowPolicy, vocabulary: int
) -> str | None:
    """The first promise of `align.tokens.encoder` that a pair breaks; None when it keeps all.

    Args:
        row: token ids of a pair.
        tokenizer: the one that encoded it.
        policy: that it was encoded under.
        vocabulary: rows of the model's embedding.
    """
    names = ("chosen", "rejected")
    weights = {side: getattr(row.pair, f"{side}_token_weight") for side in names}
    encoded = Encoded(
        row.pair.prompt,
        row.prompt_ids,
        {"chosen": row.chosen_ids, "rejected": row.rejected_ids},
        row.notes,
        shows=bool(row.pair.images),
        open_sides=frozenset(s for s in names if getattr(row.pair, f"{s}_ends") is False),
        per_token={side: weight for side, weight in weights.items() if weight is not None},
    )
    if (problem := broken_promise(encoded, tokenizer, policy, vocabulary)) is not None:
        return problem
    if row.chosen_ids == row.rejected_ids:
        return "chosen and rejected are the same tokens"
    return None


def broken_promise(
    row: Encoded, tokenizer: PreTrainedTokenizerBase, policy: RowPolicy, vocabulary: int
) -> str | None:
    """The same of any prompt with its completions."""
    if not row.prompt_ids:
        return "the prompt has no token"
    if not {"cut_prompt", "control_tokens_split"} & set(row.notes) and not row.shows:
        seen = _generation_ids(row.prompt, tokenizer)
        if seen[: len(row.prompt_ids)] != row.prompt_ids:
            return "the prompt's tokens are not those that generation would see"
    bos = tokenizer.bos_token_id
    if bos is not None and row.prompt_ids[:2] == [bos, bos]:
        return "the prompt begins with two BOS tokens"
    for side, ids in row.sides.items():
        if len(ids) < policy.min_completion_tokens:
            return f"{side} has {len(ids)} tokens, fewer than data.min_completion_tokens"
        if policy.max_length is not None and len(row.prompt_ids) + len(ids) > policy.max_length:
            return f"prompt and {side} have more tokens than data.max_length"
        if bos is not None and bos in ids[:-1]:
            return f"{side} holds a BOS token"
        if side in row.open_sides:
            if _control_ids(tokenizer) & set(ids):
                return f"{side} is the beginning of an answer and holds a control token"
        elif "cut_completion" not in row.notes:
            if ids[-1] not in _end_ids(row, tokenizer):
                return f"{side} does not end with an end token"
            if ids.count(ids[-1]) > 1:
                return f"{side} holds its end token more than once"
        if side in row.per_token and len(row.per_token[side]) < len(ids):
            return f"{side} has fewer token weights than tokens"
        beyond = max(*row.prompt_ids, *ids)
        if beyond >= vocabulary:
            return f"token id {beyond} has no row in the model's embedding of {vocabulary}"
    return None


def _generation_ids(prompt: Text, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    if isinstance(prompt, str):
        return list(tokenizer(prompt, verbose=False)["input_ids"])
    messages = [{"role": message.role, "content": message.content} for message in prompt]
    ids: Any = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    return list(ids)


def _end_ids(row: Encoded, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    if isinstance(row.prompt, str) and "given_ids" not in row.notes:
        return {tokenizer.eos_token_id} if isinstance(tokenizer.eos_token_id, int) else set()
    # Templates end a turn with a token of their own (`<|im_end|>`), not always a special one; a
    # model's generation config may name more of them.
    return {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}


def _control_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Special tokens; an unknown character is none."""
    return {i for i in tokenizer.all_special_ids if i != tokenizer.unk_token_id}


def check_invariants(
    rows: Sequence[TokenizedPair],
    tokenizer: PreTrainedTokenizerBase,
    policy: RowPolicy,
    model_config: PreTrainedConfig,
) -> None:
    """Looks at every row as it will be trained on.

    Raises:
        DataError: an invariant of the tokens is broken, with the first row that breaks it.
    """
    vocabulary = model_config.get_text_config().vocab_size
    broken = [
        f"{row.pair.source}:{row.pair.row}: {problem}"
        for row in rows
        if (problem := broken_invariant(row, tokenizer, policy, vocabulary)) is not None
    ]
    refuse_broken(broken, len(rows), "pairs")


def refuse_broken(broken: Sequence[str], rows: int, noun: str) -> None:
    """Raises where a row breaks an invariant.

    Args:
        broken: what is wrong, with its place, of every such row.
        rows: looked at.
        noun: what errors call them.

    Raises:
        DataError: with the first of them.
    """
    if broken:
        raise DataError(
            f"{len(broken)} of {rows} {noun} break a token invariant: {'; '.join(broken[:3])}. "
            "Take these rows out, or mend the tokenizer's chat template so that a prompt is a "
            "prefix of its answer and an answer has one end token."
        )


def check_columns(recipe: Recipe, pairs: Sequence[TokenizedPair]) -> None:
    """Whether the rows carry what the objective needs, and nothing that it would ignore.

    Raises:
        DataError: naming the column.
    """
    objective = recipe.objective
    if "score" in objective.needs:
        without = [p for p in pairs if p.pair.chosen_score is None or p.pair.rejected_score is None]
        if without:
            first = without[0].pair
            raise DataError(
                f"Objective `{objective.name}` needs scores, and {len(without)} of {len(pairs)} "
                f"pairs have none (first: {first.source}:{first.row}): give every row chosen_score "
                "and rejected_score, or choose an objective without `score`."
            )
    for column, name in (("preference", "preference"), ("chosen_token_weight", "token_weight")):
        carried = all(getattr(pair.pair, column) is not None for pair in pairs)
        if carried and name not in objective.needs | objective.accepts:
            raise DataError(
                f"The pairs carry `{column}`, and objective `{objective.name}` has no form that "
                "honours it: leave that column out, or choose an objective that accepts it."
            )


def check_roles(recipe: Recipe) -> None:
    """Whether the folders of the roles that the objective needs are there.

    Raises:
        RecipeError: naming the role.
    """
    for role, source in recipe.roles.given.items():
        is_folder = source != "start" and "@" not in source and not is_fetched(source)
        hub_id = source if re.fullmatch(r"\w[\w.-]*/[\w.-]+", source) else "owner/name"
        if role in recipe.objective.needs and is_folder and not Path(source).exists():
            raise RecipeError(
                f"roles.{role}: there is no folder {source!r}; write one that `save_pretrained` "
                "made, `start` for the policy before training, or a Hub id with its revision, "
                f"`{hub_id}@main`, better with a commit hash."
            )
