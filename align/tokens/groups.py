"""Groups of completions -> token ids, every row that cannot be used named and counted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import datasets

from align.data.formats.groups import group_of_row
from align.data.formats.reading import Reading
from align.data.groups import CompletionGroup
from align.data.problems import DroppedRow, RowProblem
from align.data.row_policy import RowPolicy
from align.data.row_report import RowReport
from align.tokens.chat_template import ChatTemplate
from align.tokens.cut import cut_prompt
from align.tokens.encoder import Encoder, check_completion_ids
from align.tokens.rendered_rows import ARGUMENTS, TOOLS, refuse_control, rendered_ids
from align.tokens.text_ids import TextIds

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PER_TOKEN = ("token_advantages", "token_weights")
PER_COMPLETION = ("scores", "labels", "advantages", *PER_TOKEN)


@dataclass(frozen=True)
class TokenizedGroup:
    """Token ids of one group.

    Attributes:
        prompt_ids: shared by all completions.
        completions_ids: of each, the end token included where it was not cut.
        group: the row they come from.
        notes: what was done to the row.
    """

    prompt_ids: list[int]
    completions_ids: list[list[int]]
    group: CompletionGroup
    notes: tuple[str, ...] = ()


def encode_groups(
    groups: Sequence[CompletionGroup],
    tokenizer: PreTrainedTokenizerBase,
    policy: RowPolicy,
    report: RowReport,
) -> list[TokenizedGroup]:
    """Token ids of all groups that can be used, in order; the others move to `report.dropped`.

    Raises:
        DataError: a policy says to stop at such a row, more rows than `policy.max_dropped` are
            dropped by now, none is left, or the tokenizer cannot encode such rows.
    """
    encoder = Encoder(tokenizer, policy)
    made: list[TokenizedGroup] = []
    for group in groups:
        try:
            sides = group.named()
            whole = {at for at, ends in zip(sides, group.ends(), strict=True) if ends}
            prompt_ids, ids, notes = encoder.encode_sides(group.prompt, sides, whole)
            made.append(
                _checked(TokenizedGroup(prompt_ids, [*ids.values()], group, notes), encoder)
            )
        except RowProblem as problem:
            dropped = DroppedRow.of(problem, group.source, group.row)
            policy.obey(dropped)
            report.drop_kept(dropped)
            continue
        report.notes.update(made[-1].notes)
    report.check(policy.max_dropped)
    for name in PER_COMPLETION:
        count = sum(getattr(row.group, name) is not None for row in made)
        if 0 < count < len(made):
            report.ignore_columns([f"{name} (on {count} of {len(made)} rows)"])
    return made


def encode_rendered_groups(
    rows: Iterable[tuple[int, Mapping[str, Any]]],
    tokenizer: PreTrainedTokenizerBase,
    policy: RowPolicy,
    source: str,
) -> tuple[list[TokenizedGroup], RowReport]:
    """Token ids of conversations that only a chat template understands, and the report.

    Args:
        rows: each with its 1-based number; see `align.tokens.rendered_rows`.
        tokenizer: of a text model, with a chat template.
        policy: what to do with rows that cannot be used.
        source: what errors call the rows.
    """
    encoder = Encoder(tokenizer, policy)
    texts, template = TextIds(tokenizer), ChatTemplate(tokenizer)
    report = RowReport()
    reading = Reading(policy, report, explicit_prompt=True)
    made: list[TokenizedGroup] = []
    for number, row in rows:
        try:
            several = row.get("completions") is not None
            given: Any = row["completions"] if several else [row["completion"]]
            sides = {f"completions[{k}]": messages for k, messages in enumerate(given)}
            if policy.on_control_tokens != "keep":
                refuse_control({**row, **sides}, ("prompt", *sides), encoder.spelling)
            prompt_ids, ids, notes = rendered_ids(row, sides, template, texts, encoder.control_ids)
            # What stands beside the texts; these themselves are said by the ids above.
            beside = {k: v for k, v in row.items() if k not in (TOOLS, ARGUMENTS, "completion")}
            told = beside | {"prompt": "-", "completions" if several else "completion": "-"}
            if several:
                told["completions"] = ["-"] * len(given)
            group = group_of_row(told, reading, source, number)
            made.append(
                _checked(TokenizedGroup(prompt_ids, [*ids.values()], group, notes), encoder)
            )
        except RowProblem as problem:
            dropped = DroppedRow.of(problem, source, number)
            policy.obey(dropped)
            report.drop(dropped)
            continue
        report.notes.update(made[-1].notes)
        report.keep()
    report.check(policy.max_dropped)
    return made, report


def group_table(rows: Sequence[TokenizedGroup]) -> datasets.Dataset:
    """The columns a trainer of groups reads; an optional one only where every row has it.

    Numbers per token are cut with their completion. The columns are prompt_ids, completions_ids,
    those of `PER_COMPLETION`, group_id, source and row.
    """
    number, text = datasets.Value("float64"), datasets.Value("string")
    ids = datasets.List(datasets.Value("int64"))
    features: dict[str, Any] = {"prompt_ids": ids, "completions_ids": datasets.List(ids)}
    columns: dict[str, list[Any]] = {
        "prompt_ids": [row.prompt_ids for row in rows],
        "completions_ids": [row.completions_ids for row in rows],
    }
    for name in PER_COMPLETION:
        if not rows or any(getattr(row.group, name) is None for row in rows):
            continue
        features[name] = datasets.List(datasets.Value("bool") if name == "labels" else number)
        columns[name] = [list(getattr(row.group, name)) for row in rows]
        if name in PER_TOKEN:
            features[name] = datasets.List(datasets.List(number))
            columns[name] = [
                [
                    list(values[: len(ids)])
                    for values, ids in zip(of_row, row.completions_ids, strict=True)
                ]
                for of_row, row in zip(columns[name], rows, strict=True)
            ]
    if rows and all(row.group.group_id is not None for row in rows):
        features["group_id"] = text
        columns["group_id"] = [row.group.group_id for row in rows]
    features |= {"source": text, "row": datasets.Value("int64")}
    columns["source"] = [row.group.source for row in rows]
    columns["row"] = [row.group.row for row in rows]
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def _checked(made: TokenizedGroup, encoder: Encoder) -> TokenizedGroup:
    """`made` with numbers for each of its tokens, within the budget of tokens."""
    group = made.group
    for k, (ids, ends) in enumerate(zip(made.completions_ids, group.ends(), strict=True)):
        check_completion_ids(made.prompt_ids, ids, f"completions[{k}]", ends=ends)
        for name in PER_TOKEN:
            values = getattr(group, name)
            if values is not None and len(values[k]) != len(ids):
                detail = f"{len(values[k])} numbers for {len(ids)} tokens, end token included"
                raise RowProblem("bad_score", f"{name}[{k}]", detail)
    bos = cast("int | None", encoder.tokenizer.bos_token_id)
    return _cut(made, encoder.policy, bos)


def _cut(made: TokenizedGroup, policy: RowPolicy, bos: int | None) -> TokenizedGroup:
    prompt_ids, completions = made.prompt_ids, made.completions_ids
    longest, limit = max(map(len, completions)), policy.max_length
    if limit is None or len(prompt_ids) + longest <= limit:
        return made
    if policy.on_too_long == "cut_prompt":
        prompt_ids = cut_prompt(prompt_ids, limit - longest, bos)
    elif policy.on_too_long == "cut_completion":
        room = limit - len(prompt_ids)
        if room < policy.min_completion_tokens:
            detail = f"{len(prompt_ids)} tokens leave a completion {max(room, 0)} of {limit}"
            raise RowProblem("too_long", "prompt", detail)
        completions = [ids[:room] for ids in completions]
    else:
        at = f"completions[{[*map(len, completions)].index(longest)}]"
        detail = f"{len(prompt_ids)} + {longest} tokens, data.max_length is {limit}"
        raise RowProblem("too_long", at, detail)
    notes = tuple(sorted({*made.notes, policy.on_too_long}))
    return TokenizedGroup(prompt_ids, completions, made.group, notes)
