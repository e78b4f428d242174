"""Public preference formats -> `PreferencePair` records, every bad row named, counted, kept out.

Formats, told apart by their columns (`format="auto"`) or named:

- "trl": `chosen` and `rejected`, plain or messages, with or without `prompt` (Hugging Face TRL's
  preference format). UltraFeedback-binarized belongs here: `prompt` is a string and both sides are
  whole conversations that begin with it.
- "hh": `chosen` and `rejected` are transcripts of "\\n\\nHuman:" and "\\n\\nAssistant:" turns
  (Bai et al. 2022, arXiv:2204.05862). They become messages without the white space around a turn;
  the prompt is every turn before the last Assistant turn.
- "sharegpt": a dialogue in `conversations` (or `messages`) and one answer each in `chosen` and
  `rejected`, spelled {from, value} (LLaMA-Factory) or {role, content} (axolotl).

Where plain rows have no prompt, it is what both sides begin with, cut back to the last sign of an
assistant's turn in it ("\\n\\nAssistant:", "[/INST]", "<|im_start|>assistant", ...), so a first
word that both answers share stays in the answers. Without such a sign it is cut back to a word
border and the row is counted as `prompt_guessed`. No side is left empty.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from pydantic import ValidationError

from align.errors import DataError
from align.records import (
    LONE_SURROGATE,
    Degraded,
    DroppedRow,
    ImageRef,
    Message,
    PreferencePair,
    Role,
    RowPolicy,
    RowProblem,
    RowReport,
    Text,
    check_pair,
)
from align.vision.refs import refs_of

Format = Literal["auto", "trl", "hh", "sharegpt"]
# What a source yields: where the row stands, and the row or what keeps it from being one.
RawRow = tuple[str, int, Mapping[str, Any] | RowProblem]

ACCEPTED = (
    "accepted are chosen + rejected (with prompt, or with a prompt that both begin with), "
    "conversations (or messages) + chosen + rejected, and chosen + rejected as transcripts of "
    "'\\n\\nHuman:' and '\\n\\nAssistant:' turns"
)
SAMPLED_ROWS = 64

ROLES: Mapping[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "tool": "tool",
    "observation": "tool",
}
# Columns and message keys that change what a model sees: dropped in silence, they would leave
# another conversation to train on.
UNSUPPORTED_COLUMNS = ("videos", "audios", "tools")
IMAGES = ("images", "image", "rejected_images")
UNSUPPORTED_KEYS = (
    "tool_calls",
    "function_call",
    "tool_call_id",
    "reasoning_content",
    "thinking",
    "images",
    "audio",
)
SCORES: Mapping[str, tuple[str, ...]] = {
    "chosen_score": ("chosen_score", "score_chosen"),
    "rejected_score": ("rejected_score", "score_rejected"),
    "preference": ("preference",),
    "margin": ("margin",),
}
TOKEN_WEIGHTS = ("chosen_token_weight", "rejected_token_weight")
ENDS = ("chosen_ends", "rejected_ends")
TOKEN_IDS = ("prompt_ids", "chosen_ids", "rejected_ids")

HH_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
ASSISTANT_TURN = re.compile(
    r"\n(?:Assistant|ASSISTANT|AI|Bot|A):"
    r"|(?<= )ASSISTANT:"
    r"|\n### (?:Response|Assistant):\n*"
    r"|\[/INST\]"
    r"|<\|im_start\|>assistant\n"
    r"|<\|start_header_id\|>assistant<\|end_header_id\|>\n\n"
    r"|<start_of_turn>model\n"
    r"|<\|assistant\|>\n?"
)


def pairs_from_rows(
    rows_in_place: Iterable[RawRow],
    *,
    source: str,
    format: Format = "auto",  # noqa: A002 - the recipe's own word
    policy: RowPolicy,
) -> tuple[list[PreferencePair], RowReport]:
    """All pairs that can be used, in order, and the report on the others.

    Args:
        rows_in_place: where each row stands (file, number), and the row or what keeps it from
            being one.
        source: what errors call the rows as a whole.
        format: how to read the columns; "auto" decides by the first rows.
        policy: what to do with rows that cannot be used.

    Raises:
        DataError: columns of no known format, more rows dropped than `policy.max_dropped`, or none
            left.
    """
    raws = iter(rows_in_place)
    sample = list(itertools.islice(raws, SAMPLED_ROWS))
    rows = [row for _, _, row in sample if isinstance(row, Mapping)]
    report = RowReport()
    reading = _Reading(policy, report, explicit_prompt=_is_usual(rows, "prompt"))
    read = _reader(format, rows, source)
    pairs: list[PreferencePair] = []
    seen: dict[bytes, tuple[str, int]] = {}
    for place, number, raw in itertools.chain(sample, raws):
        reading.notes.clear()
        reading.placeholders.clear()
        try:
            if isinstance(raw, RowProblem):
                raise raw
            pair = reading.pair(raw, read(raw, reading), place, number)
            check_pair(pair)
            if policy.on_swapped_duplicate != "keep":
                _check_swapped(pair, seen)
        except RowProblem as problem:
            dropped = DroppedRow.of(problem, place, number)
            policy.obey(dropped)
            report.drop(dropped)
            continue
        report.notes.update(reading.notes)
        report.keep()
        pairs.append(pair)
    report.check(policy.max_dropped)
    return pairs, report


# ---- one row -> prompt, chosen, rejected


class _Reading:
    """What reading one row needs besides the row: policy, report, and notes on the row in hand."""

    def __init__(self, policy: RowPolicy, report: RowReport, *, explicit_prompt: bool) -> None:
        self.policy = policy
        self.report = report
        self.explicit_prompt = explicit_prompt
        self.notes: set[str] = set()
        self.placeholders: list[str] = []

    def text(self, value: object, at: str) -> str:
        """`value` if it is text, with lone surrogates as the policy says."""
        if value is None:
            raise RowProblem("missing_field", at, "absent or null")
        if not isinstance(value, str):
            raise RowProblem("wrong_type", at, f"{type(value).__name__} instead of text")
        found = LONE_SURROGATE.search(value)
        if found is None:
            return value
        if self.policy.on_bad_unicode != "replace":
            raise RowProblem("bad_unicode", at, f"lone surrogate at character {found.start() + 1}")
        self.notes.add("unicode_replaced")
        return LONE_SURROGATE.sub("\ufffd", value)

    def text_or_messages(self, value: object, at: str) -> Text:
        if isinstance(value, list | Mapping):
            return self.messages(value, at)
        return self.text(value, at)

    def messages(self, value: object, at: str) -> tuple[Message, ...]:
        """A list of messages, or a single one, in either spelling."""
        if value is None:
            raise RowProblem("missing_field", at, "absent or null")
        if isinstance(value, Mapping):
            return (self._message(value, at),)
        if not isinstance(value, list):
            raise RowProblem("wrong_type", at, f"{type(value).__name__} instead of messages")
        return tuple(self._message(message, f"{at}[{i}]") for i, message in enumerate(value))

    def _message(self, message: object, at: str) -> Message:
        if not isinstance(message, Mapping):
            raise RowProblem("wrong_type", at, f"{type(message).__name__} instead of a message")
        role_key = "from" if "role" not in message and "from" in message else "role"
        content_key = "value" if "content" not in message and "value" in message else "content"
        spelled = self.text(message.get(role_key), f"{at}.{role_key}")
        if spelled == "function_call":
            raise RowProblem("unsupported_content", f"{at}.{role_key}", "a tool call")
        role = ROLES.get(spelled)
        if role is None:
            raise RowProblem("wrong_roles", f"{at}.{role_key}", f"unknown role {spelled[:40]!r}")
        others = [key for key in message if key not in (role_key, content_key)]
        for key in UNSUPPORTED_KEYS:
            if key in others and message[key]:
                raise RowProblem("unsupported_content", f"{at}.{key}", "more than text")
        used = [f"messages[].{key}" for key in others if message[key] is not None]
        self.report.ignore_columns(used)
        content = message.get(content_key)
        if isinstance(content, list):
            content = self._parts(content, f"{at}.{content_key}")
        return Message(role=role, content=self.text(content, f"{at}.{content_key}"))

    def _parts(self, parts: list[Any], at: str) -> str:
        """The text of OpenAI-style content parts."""
        texts: list[str] = []
        for i, part in enumerate(parts):
            if not isinstance(part, Mapping):
                raise RowProblem("wrong_type", f"{at}[{i}]", f"{type(part).__name__} as a part")
            if part.get("type") == "image":
                # The row's pictures stand in columns of their own and before these words.
                if texts:
                    raise RowProblem("unsupported_content", f"{at}[{i}]", "a picture behind words")
                self.placeholders.append(at)
                continue
            if part.get("type") != "text":
                raise RowProblem("unsupported_content", f"{at}[{i}]", "a part that is no text")
            texts.append(self.text(part.get("text"), f"{at}[{i}].text"))
        return "".join(texts)

    def pair(
        self, row: Mapping[str, Any], texts: tuple[Text, Text, Text], source: str, number: int
    ) -> PreferencePair:
        """The record: `texts` with the optional columns and the place."""
        kinds = ["text" if isinstance(text, str) else "messages" for text in texts]
        if len(set(kinds)) > 1:
            raise RowProblem(
                "wrong_type", "chosen", f"prompt, chosen, rejected mix {', '.join(kinds)}"
            )
        used = {"prompt", "chosen", "rejected", "group_id", "system"}
        used.update((*TOKEN_WEIGHTS, *ENDS, *TOKEN_IDS, *IMAGES, "pair_kind"))
        used.update(("conversations", "conversation"))
        scores: dict[str, float | None] = {}
        for name, spellings in SCORES.items():
            used.update(spellings)
            given = [(key, row[key]) for key in spellings if row.get(key) is not None]
            scores[name] = _number(given[0][1], given[0][0]) if given else None
        preference = scores["preference"]
        if preference is not None and not 0.0 <= preference <= 1.0:
            raise RowProblem("bad_score", "preference", f"{preference:g} is not in [0, 1]")
        for column in UNSUPPORTED_COLUMNS:
            if row.get(column):
                raise RowProblem("unsupported_content", column, "more than text")
        group = row.get("group_id")
        self.report.ignore_columns([key for key in row if key not in used])
        ids = {column: _ids(row, column) for column in TOKEN_IDS}
        absent = [column for column in TOKEN_IDS if ids[column] is None]
        if 0 < len(absent) < len(TOKEN_IDS):
            raise RowProblem("missing_field", absent[0], "absent beside the ids of the others")
        prompt, chosen, rejected = texts
        column = "image" if row.get("images") is None else "images"
        images = refs_of(row.get(column), column, source)
        self._check_placeholders(prompt, images)
        return PreferencePair(
            prompt=prompt,
            chosen=chosen,
            rejected=rejected,
            chosen_score=scores["chosen_score"],
            rejected_score=scores["rejected_score"],
            preference=preference,
            margin=scores["margin"],
            chosen_token_weight=_weights(row, "chosen_token_weight"),
            rejected_token_weight=_weights(row, "rejected_token_weight"),
            chosen_ends=_truth(row, "chosen_ends"),
            rejected_ends=_truth(row, "rejected_ends"),
            prompt_ids=ids["prompt_ids"],
            chosen_ids=ids["chosen_ids"],
            rejected_ids=ids["rejected_ids"],
            images=images,
            rejected_images=_rejected_images(row, images, source),
            pair_kind=self._optional_text(row, "pair_kind"),
            group_id=str(group) if isinstance(group, int) else self._group(group),
            source=source,
            row=number,
        )

    def _group(self, group: object) -> str | None:
        return None if group is None else self.text(group, "group_id")

    def _optional_text(self, row: Mapping[str, Any], column: str) -> str | None:
        return None if row.get(column) is None else self.text(row[column], column)

    def _check_placeholders(self, prompt: Text, images: tuple[ImageRef, ...] | None) -> None:
        if images is not None and isinstance(prompt, str):
            detail = "beside plain text, which has no place for a picture; give messages"
            raise RowProblem("unsupported_content", "images", detail)
        marked = self.placeholders
        if not marked:
            return
        if images is None:
            raise RowProblem("missing_field", "images", "absent, while a message has its place")
        first = next((i for i, m in enumerate(prompt) if m.role == "user"), None)  # type: ignore[union-attr]
        columns = ("prompt", "conversations", "conversation", "messages")
        places = {f"{column}[{first}].{key}" for column in columns for key in ("content", "value")}
        if len(set(marked)) > 1 or marked[0] not in places or len(marked) != len(images):
            detail = f"{len(marked)} places for {len(images)} pictures, which stand at the front of"
            raise RowProblem("unsupported_content", marked[0], f"{detail} the first user turn")


def _number(value: object, at: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RowProblem("bad_score", at, f"{type(value).__name__} instead of a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise RowProblem("bad_score", at, "not finite")
    return number


def _weights(row: Mapping[str, Any], column: str) -> tuple[float, ...] | None:
    values = row.get(column)
    if values is None:
        return None
    if not isinstance(values, list):
        raise RowProblem("bad_score", column, f"{type(values).__name__} instead of a list")
    return tuple(_number(value, f"{column}[{i}]") for i, value in enumerate(values))


def _rejected_images(
    row: Mapping[str, Any], images: tuple[ImageRef, ...] | None, source: str
) -> tuple[ImageRef, ...] | Degraded | None:
    value = row.get("rejected_images")
    if isinstance(value, Mapping) and "method" in value:
        try:
            found = Degraded.model_validate(dict(value))
        except ValidationError as error:
            raise RowProblem("wrong_type", "rejected_images", "no known degradation") from error
    else:
        found = refs_of(value, "rejected_images", source)
    if found is None or images is None:
        if found is not None:
            raise RowProblem("missing_field", "images", "absent beside rejected_images")
        return None
    if isinstance(found, tuple) and len(found) != len(images):
        detail = f"{len(found)} pictures, and images has {len(images)}: both share the prompt"
        raise RowProblem("wrong_type", "rejected_images", detail)
    return found


def _truth(row: Mapping[str, Any], column: str) -> bool | None:
    value = row.get(column)
    if value is not None and not isinstance(value, bool):
        raise RowProblem("wrong_type", column, f"{type(value).__name__} instead of true or false")
    return value


def _ids(row: Mapping[str, Any], column: str) -> tuple[int, ...] | None:
    values = row.get(column)
    if values is None:
        return None
    if not isinstance(values, list):
        raise RowProblem("wrong_type", column, f"{type(values).__name__} instead of a list")
    for i, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, int):
            kind = type(value).__name__
            raise RowProblem("wrong_type", f"{column}[{i}]", f"{kind} instead of a token id")
        if value < 0:
            raise RowProblem("wrong_type", f"{column}[{i}]", "a token id below 0")
    if not values:
        raise RowProblem("missing_field", column, "no id")
    return tuple(values)


Read = Callable[[Mapping[str, Any], _Reading], tuple[Text, Text, Text]]


def _read_trl(row: Mapping[str, Any], reading: _Reading) -> tuple[Text, Text, Text]:
    chosen = reading.text_or_messages(row.get("chosen"), "chosen")
    rejected = reading.text_or_messages(row.get("rejected"), "rejected")
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise RowProblem("wrong_type", "rejected", "one side is text, the other messages")
    prompt: Text | None = None
    if reading.explicit_prompt:
        prompt = reading.text_or_messages(row.get("prompt"), "prompt")
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is None:
            return _split_plain(chosen, rejected, reading)
        return prompt, chosen, rejected
    assert not isinstance(chosen, str)
    assert not isinstance(rejected, str)
    if prompt is None:
        return _split_messages(chosen, rejected)
    if isinstance(prompt, str):
        return _join_prompt(prompt, chosen, rejected)
    return prompt, _without(prompt, chosen), _without(prompt, rejected)


def _without(prompt: tuple[Message, ...], side: tuple[Message, ...]) -> tuple[Message, ...]:
    """`side` without the prompt, which some data sets repeat in front of the answer."""
    whole = len(side) > len(prompt) and side[: len(prompt)] == prompt
    return side[len(prompt) :] if whole and prompt else side


def _join_prompt(
    prompt: str, chosen: tuple[Message, ...], rejected: tuple[Message, ...]
) -> tuple[Text, Text, Text]:
    """A prompt as a string beside messages: UltraFeedback-binarized, whole conversations or not."""
    if len(chosen) < 2 and len(rejected) < 2:
        return (Message(role="user", content=prompt),), chosen, rejected
    turns, chosen_turn, rejected_turn = _split_messages(chosen, rejected)
    if not any(turn.role == "user" and turn.content.strip() == prompt.strip() for turn in turns):
        raise RowProblem("prompts_differ", "prompt", "no user turn of chosen holds this text")
    return turns, chosen_turn, rejected_turn


def _split_messages(
    chosen: tuple[Message, ...], rejected: tuple[Message, ...]
) -> tuple[tuple[Message, ...], tuple[Message, ...], tuple[Message, ...]]:
    """Two whole conversations -> their common turns and the two last ones."""
    for at, side in (("chosen", chosen), ("rejected", rejected)):
        if not side:
            raise RowProblem("empty_completion", at, "no message")
        if len(side) == 1:
            raise RowProblem("missing_field", "prompt", f"{at} is a single turn, with no prompt")
    _check_same_prompt(chosen[:-1], rejected[:-1])
    return chosen[:-1], chosen[-1:], rejected[-1:]


def _check_same_prompt(chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> None:
    if chosen == rejected:
        return
    if len(chosen) != len(rejected):
        detail = f"{len(chosen)} turns before the last of chosen, {len(rejected)} of rejected"
    else:
        pairs = zip(chosen, rejected, strict=True)
        turn = next(i for i, (a, b) in enumerate(pairs, start=1) if a != b)
        detail = f"turn {turn} of {len(chosen)} before the last differs"
    raise RowProblem("prompts_differ", "rejected", detail)


def _split_plain(chosen: str, rejected: str, reading: _Reading) -> tuple[Text, Text, Text]:
    """The implicit prompt of two plain texts; the module's docstring has the rule."""
    if not chosen.strip() or not rejected.strip():
        at = "rejected" if chosen.strip() else "chosen"
        raise RowProblem("empty_completion", at, "empty or white space")
    if chosen == rejected:
        raise RowProblem("equal", "rejected", "the same text as chosen")
    shortest = min(len(chosen), len(rejected))
    common = next((i for i in range(shortest) if chosen[i] != rejected[i]), shortest)
    marks = list(ASSISTANT_TURN.finditer(chosen, 0, common))
    if marks:
        cut = marks[-1].end()
    else:
        # A completion begins with the space before its first word, as tokenizers see words.
        if common == shortest or not chosen[common - 1 : common].isspace():
            words = re.match(r"(?s).*(?=\s)", chosen[:common])
            cut = words.end() if words else 0
        else:
            cut = common
        cut = len(chosen[:cut].rstrip()) if chosen[:cut].endswith((" ", "\t")) else cut
        reading.notes.add("prompt_guessed")
    if not chosen[:cut].strip():
        raise RowProblem(
            "empty_prompt", "prompt", "both sides begin differently: a prompt column is needed"
        )
    for at, side in (("chosen", chosen), ("rejected", rejected)):
        if not side[cut:].strip():
            raise RowProblem("empty_completion", at, "nothing behind the common prompt")
    return chosen[:cut], chosen[cut:], rejected[cut:]


def _read_hh(row: Mapping[str, Any], reading: _Reading) -> tuple[Text, Text, Text]:
    chosen = _transcript(reading.text(row.get("chosen"), "chosen"), "chosen")
    rejected = _transcript(reading.text(row.get("rejected"), "rejected"), "rejected")
    _check_same_prompt(chosen[:-1], rejected[:-1])
    return chosen[:-1], chosen[-1:], rejected[-1:]


def _transcript(text: str, at: str) -> tuple[Message, ...]:
    # Content that itself holds "\n\nHuman:" cannot be told from a turn; the format has no escape.
    before, *parts = HH_TURN.split(text.lstrip("\n") if text.startswith("\n\n\n") else text)
    if before.strip() or not parts or parts[0] != "Human":
        raise RowProblem("bad_transcript", at, "does not open with a Human turn")
    if parts[-2] != "Assistant":
        raise RowProblem("bad_transcript", at, "does not end with an Assistant turn")
    return tuple(
        Message(role="user" if who == "Human" else "assistant", content=said.strip())
        for who, said in zip(parts[::2], parts[1::2], strict=True)
    )


def _read_sharegpt(row: Mapping[str, Any], reading: _Reading) -> tuple[Text, Text, Text]:
    column = _dialogue_column(row) or "conversations"
    prompt = reading.messages(row.get(column), column)
    system = row.get("system")
    if system and not (prompt and prompt[0].role == "system"):
        prompt = (Message(role="system", content=reading.text(system, "system")), *prompt)
    sides: list[tuple[Message, ...]] = []
    for at in ("chosen", "rejected"):
        value = row.get(at)
        if isinstance(value, str):
            side = (Message(role="assistant", content=reading.text(value, at)),)
        else:
            side = _without(prompt, reading.messages(value, at))
        sides.append(side)
    return prompt, sides[0], sides[1]


def _dialogue_column(row: Mapping[str, Any]) -> str | None:
    names = ("conversations", "conversation", "messages")
    return next((name for name in names if row.get(name) is not None), None)


READERS: Mapping[str, Read] = {"trl": _read_trl, "hh": _read_hh, "sharegpt": _read_sharegpt}


def _check_swapped(pair: PreferencePair, seen: dict[bytes, tuple[str, int]]) -> None:
    def key(*texts: Text) -> bytes:
        plain: list[Any] = [
            t if isinstance(t, str) else [(m.role, m.content) for m in t] for t in texts
        ]
        if pair.images is not None:
            plain.append(list(pair.images))
        return hashlib.sha256(json.dumps(plain).encode("ascii")).digest()

    if pair.rejected_images is not None:
        # The sides differ in what is seen, which the texts do not say.
        return
    earlier = seen.get(key(pair.prompt, pair.rejected, pair.chosen))
    if earlier is not None:
        raise RowProblem("swapped_duplicate", "rejected", f"{earlier[0]}, row {earlier[1]}")
    seen.setdefault(key(pair.prompt, pair.chosen, pair.rejected), (pair.source, pair.row))


# ---- which format


def _reader(format: Format, rows: list[Mapping[str, Any]], source: str) -> Read:  # noqa: A002
    if format not in ("auto", *READERS):
        raise DataError(f"data.format is {format!r}; known are {', '.join(('auto', *READERS))}.")
    columns = list(dict.fromkeys(str(key) for row in rows for key in row))
    missing = [name for name in ("chosen", "rejected") if name not in columns]
    if rows and missing:
        raise DataError(
            f"{source} has no column {' and no column '.join(missing)}; found are "
            f"{', '.join(columns) or 'none'}; {ACCEPTED}. Rename the columns, or point data.pairs "
            "to another file."
        )
    if format != "auto":
        return READERS[format]
    explicit = _is_usual(rows, "prompt")
    if any(_is_usual(rows, name) for name in ("conversations", "conversation")):
        return _read_sharegpt
    if _is_usual(rows, "messages") and not explicit and not _are_conversations(rows):
        return _read_sharegpt
    if not explicit:
        sides = [row["chosen"] for row in rows if isinstance(row.get("chosen"), str)]
        if 2 * sum(_is_transcript(side) for side in sides) > len(sides):
            return _read_hh
    return _read_trl


def _is_usual(rows: list[Mapping[str, Any]], column: str) -> bool:
    """Whether at least half of the first answered rows fill `column`: a stray one cannot decide."""
    answered = [row for row in rows if row.get("chosen") is not None]
    return 0 < len(answered) <= 2 * sum(row.get(column) is not None for row in answered)


def _is_transcript(text: str) -> bool:
    return text.lstrip().startswith("Human:") and "\n\nAssistant:" in text


def _are_conversations(rows: list[Mapping[str, Any]]) -> bool:
    sides = [row["chosen"] for row in rows if row.get("chosen") is not None]
    return len(sides) < 2 * sum(isinstance(side, list) and len(side) > 1 for side in sides)
