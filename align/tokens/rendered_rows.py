"""Conversations that only a chat template understands: tools, reasoning, its own arguments.

Such a row has a column `tools` or `chat_template_kwargs`, messages with more than a role and a
content, completions of several turns or a role of the model's own. Everything in it goes to the
template as it stands, as TRL does it; so content that spells a control token cannot be told from
the template's own, and the row is dropped unless the policy keeps it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from align.data.formats.reading import CHAT_ROLES, Reading
from align.data.formats.record import pair_of_row
from align.data.problems import DroppedRow, RowProblem
from align.data.row_policy import RowPolicy
from align.data.row_report import RowReport
from align.tokens.chat_template import ChatTemplate
from align.tokens.encoding import encoder_of
from align.tokens.text_ids import TextIds
from align.tokens.tokenized_pair import TokenizedPair

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOOLS, ARGUMENTS = "tools", "chat_template_kwargs"
PLAIN_KEYS = frozenset({"role", "content"})


def needs_template(
    row: Mapping[str, Any], columns: Iterable[str] = ("prompt", "chosen", "rejected")
) -> bool:
    """Whether a row holds in its columns of messages what plain records do not."""
    if row.get(TOOLS) or row.get(ARGUMENTS):
        return True
    for column in columns:
        messages = row.get(column)
        if not isinstance(messages, list) or not all(isinstance(m, Mapping) for m in messages):
            continue
        if any(m.get("role") not in CHAT_ROLES and "role" in m for m in messages):
            return True
        if any(
            value and key not in PLAIN_KEYS
            for m in messages
            for key, value in m.items()
            if "role" in m
        ):
            return True
        if column != "prompt" and "prompt" in row and isinstance(row["prompt"], list):
            turns = (
                messages[len(row["prompt"]) :] if messages[:1] == row["prompt"][:1] else messages
            )
            if len(turns) > 1:
                return True
    return False


def encode_rendered(
    rows: Iterable[tuple[int, Mapping[str, Any]]],
    tokenizer: PreTrainedTokenizerBase,
    policy: RowPolicy,
    source: str,
) -> tuple[list[TokenizedPair], RowReport]:
    """Token ids of rows in TRL's format, each rendered as it stands, and the report on the others.

    Args:
        rows: each with its 1-based number.
        tokenizer: of a text model, with a chat template.
        policy: what to do with rows that cannot be used.
        source: what errors call the rows.
    """
    encoder = encoder_of(tokenizer, policy)
    texts, template = TextIds(tokenizer), ChatTemplate(tokenizer)
    report = RowReport()
    reading = Reading(policy, report, explicit_prompt=True)
    made: list[TokenizedPair] = []
    for number, row in rows:
        try:
            if policy.on_control_tokens != "keep":
                refuse_control(row, ("prompt", "chosen", "rejected"), encoder.spelling)
            sides = {at: row[at] for at in ("chosen", "rejected")}
            prompt_ids, ids, notes = rendered_ids(row, sides, template, texts, encoder.control_ids)
            # The record is of the messages' JSON, which names the row; its ids are those above.
            spelled = tuple(json.dumps(row[name]) for name in ("prompt", "chosen", "rejected"))
            rest = {key: value for key, value in row.items() if key not in (TOOLS, ARGUMENTS)}
            pair = pair_of_row(rest, spelled, reading, source, number)  # type: ignore[arg-type]
            made.append(
                encoder.cut(TokenizedPair(prompt_ids, ids["chosen"], ids["rejected"], pair, notes))
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


def rendered_ids(
    row: Mapping[str, Any],
    sides: Mapping[str, Sequence[Mapping[str, Any]]],
    template: ChatTemplate,
    texts: TextIds,
    control: frozenset[int],
) -> tuple[list[int], dict[str, list[int]], tuple[str, ...]]:
    """Ids of a row's prompt and of its completions, as the template renders them.

    Args:
        row: with `prompt`, and tools or arguments of the template's own where it has them.
        sides: the messages of each completion, by what errors call it.
        template: of the tokenizer.
        texts: its ids.
        control: its control tokens.

    Returns:
        As `Encoder.encode_sides`.
    """
    tools = row.get(TOOLS)
    options = {
        "tools": json.loads(tools) if isinstance(tools, str) else tools or None,
        **_present(row.get(ARGUMENTS) or {}),
    }
    prompt = [_present(message) for message in row["prompt"]]
    prompt_ids = texts.ids(template.rendered(prompt, "generation", **options))
    whole: dict[str, list[int]] = {}
    for at, messages in sides.items():
        turns = [_present(message) for message in messages]
        whole[at] = texts.ids(template.rendered([*prompt, *turns], "conversation", **options))
    # Some templates write the end of the prompt in another way once it is answered.
    shared = min(_common(prompt_ids, ids) for ids in whole.values())
    notes = () if shared == len(prompt_ids) else ("prompt_diverges",)
    completions: dict[str, list[int]] = {}
    for at, ids in whole.items():
        completion = ids[shared:]
        ends = [n for n, i in enumerate(completion) if i in control]
        if not ends:
            raise RowProblem(
                "template_mismatch", at, "the chat template writes no end token behind it"
            )
        completions[at] = completion[: ends[-1] + 1]
    return prompt_ids[:shared], completions, notes


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    pairs = enumerate(zip(first, second, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(first), len(second)))


def _present(message: Mapping[str, Any]) -> dict[str, Any]:
    # A table fills what a row's mapping does not have with nulls, which templates take for values.
    return {key: value for key, value in message.items() if value is not None}


def refuse_control(row: Mapping[str, Any], columns: Iterable[str], spelling: Any) -> None:
    """Raise where a message of one of the columns spells a control token."""
    for at in columns:
        for i, message in enumerate(row[at]):
            content = message.get("content")
            if isinstance(content, str) and (found := spelling.search(content)):
                detail = f"spells {found[0]!r} at character {found.start() + 1}"
                raise RowProblem("control_tokens", f"{at}[{i}].content", detail)
