"""Readers of public formats: goldens, every kind of file, and rows that are broken in every way."""

import csv
import gzip
import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from align.data.images import Degraded
from align.data.messages import Message, Text
from align.data.pair_files import read_pairs
from align.data.pairs import PreferencePair
from align.data.row_policy import RowPolicy
from align.data.row_report import RowReport
from align.errors import DataError, MachineError

LENIENT = RowPolicy(max_dropped=1.0)
U, A, S = "user", "assistant", "system"


def shape(text: Text) -> Any:
    return text if isinstance(text, str) else [(m.role, m.content) for m in text]


def shapes(pair: PreferencePair) -> tuple[Any, Any, Any]:
    return shape(pair.prompt), shape(pair.chosen), shape(pair.rejected)


def write_lines(path: Path, rows: list[Any]) -> Path:
    """JSON Lines; bytes are written as they are."""
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def read(
    tmp_path: Path, rows: list[Any], policy: RowPolicy = LENIENT, **more: Any
) -> tuple[list[PreferencePair], RowReport]:
    return read_pairs(str(write_lines(tmp_path / "rows.jsonl", rows)), policy=policy, **more)


def turn(role: str, content: Any, spelled: str = "role") -> dict[str, Any]:
    return (
        {"role": role, "content": content}
        if spelled == "role"
        else {"from": role, "value": content}
    )


USER, ASSISTANT = turn(U, "2 + 2?"), turn(A, "4")
CHAT = {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [turn(A, "5")]}
CHAT_SHAPE = ([(U, "2 + 2?")], [(A, "4")], [(A, "5")])

GOLDENS: Mapping[str, tuple[dict[str, Any], tuple[Any, Any, Any]]] = {
    "plain": ({"prompt": "p", "chosen": "c", "rejected": "r"}, ("p", "c", "r")),
    "messages": (CHAT, CHAT_SHAPE),
    "single messages": ({**CHAT, "chosen": CHAT["chosen"][0]}, CHAT_SHAPE),
    "prompt repeated in front": (
        {**CHAT, "chosen": [USER, *CHAT["chosen"]], "rejected": [USER, *CHAT["rejected"]]},
        CHAT_SHAPE,
    ),
    "implicit messages": (
        {"chosen": [turn(S, "s"), USER, ASSISTANT], "rejected": [turn(S, "s"), USER, turn(A, "5")]},
        ([(S, "s"), (U, "2 + 2?")], [(A, "4")], [(A, "5")]),
    ),
    "UltraFeedback-binarized": (
        {
            "prompt": "2 + 2?",
            "prompt_id": "x",
            "chosen": [USER, ASSISTANT],
            "rejected": [USER, turn(A, "5")],
            "messages": [USER, ASSISTANT],
        },
        CHAT_SHAPE,
    ),
    "prompt text beside answers": ({**CHAT, "prompt": "2 + 2?"}, CHAT_SHAPE),
    "content parts": (
        {**CHAT, "chosen": [turn(A, [{"type": "text", "text": "4"}])]},
        CHAT_SHAPE,
    ),
    "HH-RLHF": (
        {
            "chosen": "\n\nHuman: Hi \n\nAssistant: Hey\n\nHuman: 2 + 2?\n\nAssistant: 4",
            "rejected": "\n\nHuman: Hi \n\nAssistant: Hey\n\nHuman: 2 + 2?\n\nAssistant: 4\n\n5 ",
        },
        ([(U, "Hi"), (A, "Hey"), (U, "2 + 2?")], [(A, "4")], [(A, "4\n\n5")]),
    ),
    "LLaMA-Factory": (
        {
            "conversations": [turn("system", "s", "from"), turn("human", "2 + 2?", "from")],
            "chosen": turn("gpt", "4", "from"),
            "rejected": turn("gpt", "5", "from"),
        },
        ([(S, "s"), (U, "2 + 2?")], [(A, "4")], [(A, "5")]),
    ),
    "LLaMA-Factory, system column": (
        {
            "conversations": [turn("human", "2 + 2?", "from")],
            "chosen": [turn("gpt", "4", "from")],
            "rejected": [turn("gpt", "5", "from")],
            "system": "s",
        },
        ([(S, "s"), (U, "2 + 2?")], [(A, "4")], [(A, "5")]),
    ),
    "axolotl": (
        {"messages": [USER], "chosen": ASSISTANT, "rejected": turn(A, "5")},
        CHAT_SHAPE,
    ),
    "axolotl, lists": (
        {"messages": [USER], "chosen": [ASSISTANT], "rejected": [turn(A, "5")]},
        CHAT_SHAPE,
    ),
    "dialogue with answers as text": (
        {"conversations": [USER], "chosen": "4", "rejected": "5"},
        CHAT_SHAPE,
    ),
}


@pytest.mark.parametrize("name", GOLDENS)
def test_golden(name: str, tmp_path: Path):
    row, expected = GOLDENS[name]
    pairs, report = read(tmp_path, [row], RowPolicy())
    assert [shapes(pair) for pair in pairs] == [expected]
    assert (pairs[0].source, pairs[0].row) == (str(tmp_path / "rows.jsonl"), 1)
    assert (report.read, report.kept) == (1, 1)


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        # The sign of an assistant's turn ends the prompt: "yes" belongs to both answers.
        (
            "User: ok?\nAssistant: yes, it is",
            "User: ok?\nAssistant: yes, it was",
            ("User: ok?\nAssistant:", " yes, it is", " yes, it was"),
        ),
        (
            "[INST] ok? [/INST]yes a",
            "[INST] ok? [/INST]yes b",
            ("[INST] ok? [/INST]", "yes a", "yes b"),
        ),
        (
            "### Q\n### Response:\nyes a",
            "### Q\n### Response:\nyes",
            ("### Q\n### Response:\n", "yes a", "yes"),
        ),
        # The last sign that both share, not the first.
        ("\nA: x\nQ: y\nA: z", "\nA: x\nQ: y\nA: zz", ("\nA: x\nQ: y\nA:", " z", " zz")),
    ],
)
def test_implicit_plain_prompt_ends_at_the_assistants_turn(
    chosen: str, rejected: str, expected: tuple[str, str, str], tmp_path: Path
):
    pairs, report = read(tmp_path, [{"chosen": chosen, "rejected": rejected}])
    assert [shapes(pair) for pair in pairs] == [expected]
    assert not report.notes


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        # Cut back to the word: "the" and "that" begin alike, but the prompt ends before them.
        ("The sky is the blue", "The sky is that blue", ("The sky is", " the blue", " that blue")),
        # One side is the beginning of the other: it keeps its last word.
        ("2 + 2 = four", "2 + 2 = four or five", ("2 + 2 =", " four", " four or five")),
        ("Question?\nyes", "Question?\nno", ("Question?\n", "yes", "no")),
    ],
)
def test_implicit_plain_prompt_without_a_sign_is_cut_to_a_word_and_counted(
    chosen: str, rejected: str, expected: tuple[str, str, str], tmp_path: Path
):
    pairs, report = read(tmp_path, [{"chosen": chosen, "rejected": rejected}])
    assert [shapes(pair) for pair in pairs] == [expected]
    assert report.notes == {"prompt_guessed": 1}


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_implicit_plain_sides_are_put_together_again_and_never_empty(
    tmp_path: Path, data: st.DataObject
):
    word = st.sampled_from(["yes", "no", " ", "\n", "A:", "\nA:", "[/INST]", "the", "é"])
    text = st.lists(word, min_size=0, max_size=6).map("".join)
    begin = data.draw(text)
    row = {"chosen": begin + data.draw(text), "rejected": begin + data.draw(text)}
    path = write_lines(tmp_path / "rows.jsonl", [row, {"chosen": "a b", "rejected": "a c"}])
    pairs, report = read_pairs(str(path), format="trl", policy=LENIENT)
    assert report.read == report.kept + len(report.rows) == 2
    for pair in pairs[:-1]:
        prompt, chosen, rejected = shapes(pair)
        assert {"chosen": prompt + chosen, "rejected": prompt + rejected} == row
        assert prompt.strip()
        assert chosen.strip()
        assert rejected.strip()


HH = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: "


def chat_row(**changes: Any) -> dict[str, Any]:
    return CHAT | changes


IMAGE = {"type": "image"}
QUESTION = {"type": "text", "text": "q"}

# Every listed kind of bad row beside good conversational ones: row, reason, field.
BAD_CHAT: Mapping[str, tuple[Any, str, str]] = {
    "broken JSON": (b'{"prompt": [', "unreadable", "line"),
    "no UTF-8": (b'{"prompt": "\xff"}', "unreadable", "line"),
    "key twice": (b'{"prompt": [], "chosen": 1, "chosen": 2}', "unreadable", "line"),
    "deep nesting": (b"[" * 100_000, "unreadable", "line"),
    "huge number": (b'{"margin": ' + b"9" * 5000 + b"}", "unreadable", "line"),
    "no object": (b"[1, 2]", "wrong_type", "row"),
    "a string": (b'"x"', "wrong_type", "row"),
    "null": (b"null", "wrong_type", "row"),
    "empty object": ({}, "missing_field", "chosen"),
    "no prompt": (
        {"chosen": CHAT["chosen"], "rejected": CHAT["rejected"]},
        "missing_field",
        "prompt",
    ),
    "null prompt": (chat_row(prompt=None), "missing_field", "prompt"),
    "null chosen": (chat_row(chosen=None), "missing_field", "chosen"),
    "rejected missing": ({"prompt": [USER], "chosen": [ASSISTANT]}, "missing_field", "rejected"),
    "NaN": (chat_row(chosen=float("nan")), "wrong_type", "chosen"),
    "number": (chat_row(rejected=3), "wrong_type", "rejected"),
    "list beside text": (chat_row(rejected="5"), "wrong_type", "rejected"),
    "text instead of messages": (chat_row(prompt=["hi"]), "wrong_type", "prompt[0]"),
    "all text but the prompt": (chat_row(chosen="4", rejected="5"), "wrong_type", "chosen"),
    "null content": (chat_row(chosen=[turn(A, None)]), "missing_field", "chosen[0].content"),
    "number as content": (chat_row(prompt=[turn(U, 4)]), "wrong_type", "prompt[0].content"),
    "no role": (chat_row(prompt=[{"content": "x"}]), "missing_field", "prompt[0].role"),
    "unknown role": (chat_row(prompt=[turn("judge", "x")]), "wrong_roles", "prompt[0].role"),
    "chosen by the user": (chat_row(chosen=[turn(U, "4")]), "wrong_roles", "chosen"),
    "two answers": (chat_row(chosen=[ASSISTANT, ASSISTANT]), "wrong_roles", "chosen"),
    "nothing asked": (chat_row(prompt=[USER, ASSISTANT]), "wrong_roles", "prompt[1].role"),
    "late system": (chat_row(prompt=[USER, turn(S, "s")]), "wrong_roles", "prompt[1].role"),
    "empty prompt list": (chat_row(prompt=[]), "empty_prompt", "prompt"),
    "empty user turn": (chat_row(prompt=[turn(U, " ")]), "empty_prompt", "prompt[0].content"),
    "empty chosen": (chat_row(chosen=[turn(A, "")]), "empty_completion", "chosen[0].content"),
    "empty chosen list": (chat_row(chosen=[]), "empty_completion", "chosen"),
    "white rejected": (
        chat_row(rejected=[turn(A, "\n")]),
        "empty_completion",
        "rejected[0].content",
    ),
    "equal": (chat_row(rejected=CHAT["chosen"]), "equal", "rejected"),
    "lone surrogate": (
        b'{"prompt": [{"role": "user", "content": "a\\ud800"}], "chosen": [{"role": "assistant", '
        b'"content": "b"}], "rejected": [{"role": "assistant", "content": "c"}]}',
        "bad_unicode",
        "prompt[0].content",
    ),
    "lone surrogate in chosen": (
        chat_row(chosen=[turn(A, "4\udcff")]),
        "bad_unicode",
        "chosen[0].content",
    ),
    "surrogate in the group": (chat_row(group_id="\ud800"), "bad_unicode", "group_id"),
    "no image": (chat_row(images=[3]), "wrong_type", "images[0]"),
    "image at an address": (
        chat_row(images=["https://a.org/b.png"]),
        "unsupported_content",
        "images[0]",
    ),
    "image part without an image": (
        chat_row(prompt=[turn(U, [IMAGE, QUESTION])]),
        "missing_field",
        "images",
    ),
    "image place outside of the prompt": (
        chat_row(images=["a.png"], image_places=[[3, 0]]),
        "unsupported_content",
        "image_places",
    ),
    "two places for one image": (
        chat_row(images=["a.png"], prompt=[turn(U, [IMAGE, IMAGE, QUESTION])]),
        "unsupported_content",
        "prompt[0].content",
    ),
    "place in an answer": (
        chat_row(images=["a.png"], chosen=[turn(A, [IMAGE, QUESTION])]),
        "unsupported_content",
        "chosen[0].content",
    ),
    "fewer rejected images": (
        chat_row(images=["a.png", "b.png"], rejected_images=["c.png"]),
        "wrong_type",
        "rejected_images",
    ),
    "unknown degradation": (
        chat_row(images=["a.png"], rejected_images={"method": "blur"}),
        "wrong_type",
        "rejected_images",
    ),
    "rejected images alone": (chat_row(rejected_images=["a.png"]), "missing_field", "images"),
    "tool call": (
        chat_row(chosen=[{**ASSISTANT, "tool_calls": [{"name": "f"}]}]),
        "unsupported_content",
        "chosen[0].tool_calls",
    ),
    "score as text": (chat_row(margin="big"), "bad_score", "margin"),
    "score as truth": (chat_row(margin=True), "bad_score", "margin"),
    "NaN score": (
        chat_row(chosen_score=float("nan"), rejected_score=1),
        "bad_score",
        "chosen_score",
    ),
    "endless score": (chat_row(margin=10**400), "bad_score", "margin"),
    "one score": (chat_row(score_rejected=1), "bad_score", "chosen_score"),
    "preference of 2": (chat_row(preference=2), "bad_score", "preference"),
    "weight as number": (chat_row(chosen_token_weight=1), "bad_score", "chosen_token_weight"),
    "null weight": (chat_row(chosen_token_weight=[1, None]), "bad_score", "chosen_token_weight[1]"),
}
BAD_HH: Mapping[str, tuple[Any, str, str]] = {
    "no turn": ({"chosen": "hello", "rejected": HH + "e"}, "bad_transcript", "chosen"),
    "assistant first": (
        {"chosen": "\n\nAssistant: a", "rejected": "\n\nAssistant: b"},
        "bad_transcript",
        "chosen",
    ),
    "human last": (
        {"chosen": HH + "d", "rejected": HH + "d\n\nHuman: e"},
        "bad_transcript",
        "rejected",
    ),
    "other question": (
        {"chosen": HH + "d", "rejected": HH.replace("c", "x") + "e"},
        "prompts_differ",
        "rejected",
    ),
    "more turns": (
        {"chosen": HH + "d", "rejected": HH + "d\n\nHuman: e\n\nAssistant: f"},
        "prompts_differ",
        "rejected",
    ),
    "empty answer": ({"chosen": HH, "rejected": HH + "e"}, "empty_completion", "chosen[0].content"),
    "equal": ({"chosen": HH + "d", "rejected": HH + " d\n"}, "equal", "rejected"),
    "messages": (CHAT, "wrong_type", "chosen"),
}
GOOD_HH = {"chosen": HH + "d", "rejected": HH + "e"}


@pytest.mark.parametrize("name", BAD_CHAT)
def test_bad_conversational_row_is_one_row_with_place_and_reason(name: str, tmp_path: Path):
    bad, reason, at = BAD_CHAT[name]
    pairs, report = read(tmp_path, [CHAT, bad, chat_row(chosen=[turn(A, "four")])])
    assert [pair.row for pair in pairs] == [1, 3]
    (dropped,) = report.rows
    assert (dropped.row, dropped.reason, dropped.field) == (2, reason, at)
    assert dropped.source.endswith("rows.jsonl")


@pytest.mark.parametrize("name", BAD_HH)
def test_bad_transcript_is_one_row_with_place_and_reason(name: str, tmp_path: Path):
    bad, reason, at = BAD_HH[name]
    pairs, report = read(tmp_path, [GOOD_HH, bad, {"chosen": HH + "f", "rejected": HH + "e"}])
    assert [pair.row for pair in pairs] == [1, 3]
    assert [(r.row, r.reason, r.field) for r in report.rows] == [(2, reason, at)]


def test_details_never_hold_the_text_of_a_row(tmp_path: Path):
    secret = "zyxwv"
    rows: list[Any] = [CHAT]
    for bad, _, _ in BAD_CHAT.values():
        text = bad if isinstance(bad, bytes) else json.dumps(bad).encode()
        rows.append(text.replace(b"2 + 2?", secret.encode()).replace(b'"4', b'"' + secret.encode()))
    _, report = read(tmp_path, rows)
    assert len(report.rows) > 40
    assert secret not in json.dumps(report.to_json())


def test_fuzz_two_thousand_bad_rows_among_two_thousand_good_ones(tmp_path: Path):
    rng = random.Random(7)
    rows: list[Any] = [CHAT]
    good = [1]
    expected: dict[int, str] = {}
    kinds = list(BAD_CHAT)
    order = ["good"] * 1999 + [kinds[i % len(kinds)] for i in range(2000)]
    rng.shuffle(order)
    for kind in order:
        number = len(rows) + 1
        if kind == "good":
            good.append(number)
            rows.append(chat_row(prompt=[turn(U, f"question {number}")]))
        else:
            bad, expected[number], _ = BAD_CHAT[kind]
            rows.append(bad)
    pairs, report = read(tmp_path, rows)
    assert [pair.row for pair in pairs] == good
    assert shapes(pairs[-1])[0] == [(U, f"question {good[-1]}")]
    assert {r.row: r.reason for r in report.rows} == expected
    assert (report.read, report.kept, sum(report.dropped.values())) == (4000, 2000, 2000)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["user", "assistant", "role", "content", "\n\nHuman: a\n\nAssistant: b"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "from", "value", "text", "type"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)
columns = st.sampled_from(
    ["prompt", "chosen", "rejected", "conversations", "messages", "system", "margin", "preference",
     "score_chosen", "chosen_token_weight", "group_id", "images", "other"]
)  # fmt: skip


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.dictionaries(columns, json_values) | json_values, max_size=6),
    st.sampled_from(["trl", "hh", "sharegpt"]),
)
def test_whatever_the_rows_hold_read_is_kept_plus_dropped(tmp_path: Path, rows: Any, form: Any):
    good = {"trl": CHAT, "hh": GOOD_HH, "sharegpt": GOLDENS["LLaMA-Factory"][0]}[form]
    goods = [good] * (len(rows) + 1)
    pairs, report = read(tmp_path, [*goods, *rows], format=form)
    assert report.read == len(rows) + len(goods) == report.kept + sum(report.dropped.values())
    assert [pair.row for pair in pairs] == sorted(
        set(range(1, report.read + 1)) - {r.row for r in report.rows}
    )
    assert [pair.row for pair in pairs][: len(goods)] == list(range(1, len(goods) + 1))


def test_bad_unicode_can_be_replaced(tmp_path: Path):
    row = chat_row(chosen=[turn(A, "4\ud800!")])
    pairs, report = read(tmp_path, [row], RowPolicy(on_bad_unicode="replace"))
    assert shapes(pairs[0])[1] == [(A, "4\ufffd!")]
    assert report.notes == {"unicode_replaced": 1}
    # Two halves of one character are a character.
    pairs, report = read(tmp_path, [chat_row(chosen=[turn(A, "😀")])], RowPolicy())
    assert shapes(pairs[0])[1] == [(A, "😀")]


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("on_equal", "equal"),
        ("on_empty", "empty chosen"),
        ("on_wrong_roles", "unknown role"),
        ("on_bad_unicode", "lone surrogate in chosen"),
    ],
)
def test_policy_error_stops_at_the_first_such_row(key: str, kind: str, tmp_path: Path):
    policy = RowPolicy.model_validate({key: "error", "max_dropped": 1.0})
    with pytest.raises(DataError, match=rf"rows\.jsonl, row 2, .*data\.{key} is 'error'"):
        read(tmp_path, [CHAT, BAD_CHAT[kind][0]], policy)


def test_swapped_duplicates(tmp_path: Path):
    swapped = chat_row(chosen=CHAT["rejected"], rejected=CHAT["chosen"])
    other = chat_row(prompt=[turn(U, "else")], chosen=CHAT["rejected"], rejected=CHAT["chosen"])
    pairs, report = read(tmp_path, [CHAT, CHAT, swapped, other])
    assert [pair.row for pair in pairs] == [1, 2, 4]
    (dropped,) = report.rows
    assert (dropped.reason, dropped.row) == ("swapped_duplicate", 3)
    assert dropped.detail.endswith("rows.jsonl, row 1")
    pairs, _ = read(tmp_path, [CHAT, swapped], RowPolicy(on_swapped_duplicate="keep"))
    assert len(pairs) == 2
    with pytest.raises(DataError, match="on_swapped_duplicate"):
        read(tmp_path, [CHAT, swapped], RowPolicy(on_swapped_duplicate="error"))


def test_limit_names_counts_and_places(tmp_path: Path):
    rows = [CHAT] * 17 + [BAD_CHAT["equal"][0]] * 3
    with pytest.raises(DataError, match=r"3 of 20 rows \(15\.0%\).*3 equal.*rows\.jsonl, row 18"):
        read(tmp_path, rows, RowPolicy())
    with pytest.raises(DataError, match="None of the 1 rows"):
        read(tmp_path, [BAD_CHAT["equal"][0]])
    with pytest.raises(DataError, match="source is empty"):
        read(tmp_path, [])


def test_optional_columns_are_carried_and_others_named_once(tmp_path: Path):
    row = CHAT | {
        "score_chosen": 8,
        "score_rejected": 2.5,
        "preference": 0.75,
        "margin": 1,
        "chosen_token_weight": [1, 0.5],
        "rejected_token_weight": [1, 1],
        "group_id": 12,
        "prompt_id": "x",
        "messages": [],
    }
    pairs, report = read(tmp_path, [row, row], RowPolicy())
    pair = pairs[0]
    assert (pair.chosen_score, pair.rejected_score) == (8.0, 2.5)
    assert (pair.preference, pair.margin, pair.group_id) == (0.75, 1.0, "12")
    assert pair.chosen_token_weight == (1.0, 0.5)
    assert pair.rejected_token_weight == (1.0, 1.0)
    assert report.ignored_columns == ["prompt_id", "messages"]


def test_a_stray_row_does_not_decide_the_format(tmp_path: Path):
    pairs, report = read(tmp_path, [CHAT, GOOD_HH, {"chosen": HH + "f", "rejected": HH + "e"}])
    assert [pair.row for pair in pairs] == [2, 3]
    assert [(r.row, r.reason) for r in report.rows] == [(1, "wrong_type")]


def test_unknown_columns_are_listed_with_what_is_accepted(tmp_path: Path):
    with pytest.raises(DataError) as error:
        read(tmp_path, [{"question": "a", "chosen": "b", "answer_b": "c"}])
    for part in ("rows.jsonl", "rejected", "question, chosen, answer_b", "conversations", "Human:"):
        assert part in str(error.value)
    with pytest.raises(DataError, match="known are auto, trl, hh, sharegpt"):
        read(tmp_path, [CHAT], format="alpaca")


ROWS = [
    CHAT,
    chat_row(prompt=[turn(U, "3 + 1?")]),
    chat_row(prompt=[turn(U, "line\u2028break\x85")]),
]
EXPECTED = [[(U, "2 + 2?")], [(U, "3 + 1?")], [(U, "line\u2028break\x85")]]


def save_json(path: Path) -> None:
    path.write_text(json.dumps(ROWS, ensure_ascii=False, indent=1), encoding="utf-8")


def save_lines(path: Path) -> None:
    lines = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)
    path.write_bytes(b"\xef\xbb\xbf" + lines.encode())


def save_parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), path)


def save_csv(path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(CHAT))
        writer.writeheader()
        writer.writerows({key: json.dumps(value) for key, value in row.items()} for row in ROWS)


SAVERS: Mapping[str, Callable[[Path], None]] = {
    "rows.json": save_json,
    "lines.json": save_lines,
    "rows.jsonl": save_lines,
    "rows.parquet": save_parquet,
    "rows.csv": save_csv,
}


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize("name", SAVERS)
def test_every_kind_of_file(name: str, gz: bool, tmp_path: Path):
    path = tmp_path / name
    SAVERS[name](path)
    if gz:
        packed = tmp_path / (name + ".gz")
        packed.write_bytes(gzip.compress(path.read_bytes()))
        path = packed
    pairs, report = read_pairs(str(path), policy=RowPolicy())
    assert [shape(pair.prompt) for pair in pairs] == EXPECTED
    assert report.read == 3
    # The row number of JSON Lines is the line's number, blank lines included.
    assert [pair.row for pair in pairs] == ([1, 3, 5] if save_lines is SAVERS[name] else [1, 2, 3])


def test_saved_dataset(tmp_path: Path):
    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(str(tmp_path / "one"))
    pairs, _ = read_pairs(str(tmp_path / "one"), policy=RowPolicy())
    assert [shape(pair.prompt) for pair in pairs] == EXPECTED
    assert [pair.row for pair in pairs] == [1, 2, 3]
    with pytest.raises(DataError, match="without splits"):
        read_pairs(str(tmp_path / "one"), split="test", policy=RowPolicy())

    datasets.DatasetDict({"train_prefs": data}).save_to_disk(str(tmp_path / "dict"))
    pairs, _ = read_pairs(str(tmp_path / "dict"), split="train_prefs", policy=RowPolicy())
    assert len(pairs) == 3
    with pytest.raises(DataError, match="no split 'train'; found are train_prefs"):
        read_pairs(str(tmp_path / "dict"), policy=RowPolicy())

    (tmp_path / "one" / "dataset_info.json").write_text("{")
    with pytest.raises(DataError, match="no complete saved dataset"):
        read_pairs(str(tmp_path / "one"), policy=RowPolicy())


def test_folder_of_files(tmp_path: Path):
    for number in (2, 1):
        write_lines(tmp_path / f"part-{number}.jsonl", [chat_row(prompt=[turn(U, f"q{number}")])])
    (tmp_path / "README.md").write_text("not data")
    (tmp_path / ".cache").mkdir()
    write_lines(tmp_path / ".cache" / "part-0.jsonl", [CHAT])
    pairs, report = read_pairs(str(tmp_path), policy=RowPolicy())
    assert [shape(pair.prompt) for pair in pairs] == [[(U, "q1")], [(U, "q2")]]
    assert [Path(pair.source).name for pair in pairs] == ["part-1.jsonl", "part-2.jsonl"]
    assert report.read == 2
    with pytest.raises(DataError, match="no file name"):
        read_pairs(str(tmp_path), split="test", policy=RowPolicy())


def test_folder_whose_names_tell_the_split(tmp_path: Path):
    for split in ("train", "test"):
        path = tmp_path / f"{split}-00000-of-00001.jsonl"
        write_lines(path, [chat_row(prompt=[turn(U, split)])])
    pairs, _ = read_pairs(str(tmp_path), split="test", policy=RowPolicy())
    assert [shape(pair.prompt) for pair in pairs] == [[(U, "test")]]
    with pytest.raises(DataError, match=r"'validation'; found are test-00000"):
        read_pairs(str(tmp_path), split="validation", policy=RowPolicy())


def test_bad_bytes_and_values_cost_their_row_in_every_kind_of_file(tmp_path: Path):
    good = {"prompt": "p", "chosen": "c", "rejected": "r"}
    listed = json.dumps([good, {**good, "chosen": "@"}, 5, {**good, "prompt": "q"}]).encode()
    (tmp_path / "rows.json").write_bytes(listed.replace(b"@", b"\xff"))
    pairs, report = read_pairs(str(tmp_path / "rows.json"), policy=LENIENT)
    assert [pair.row for pair in pairs] == [1, 4]
    assert [(r.row, r.reason) for r in report.rows] == [(2, "bad_unicode"), (3, "wrong_type")]

    text = b"prompt,chosen,rejected,margin\np,c,r,1\np,\xff,r,\np,c\nq,c,r,x\nq,c,r,\n"
    (tmp_path / "rows.csv").write_bytes(text)
    pairs, report = read_pairs(str(tmp_path / "rows.csv"), policy=LENIENT)
    assert [(pair.row, pair.margin) for pair in pairs] == [(1, 1.0), (5, None)]
    assert [(r.row, r.reason) for r in report.rows] == [
        (2, "bad_unicode"),
        (3, "unreadable"),
        (4, "bad_score"),
    ]

    raw = pa.array([b"c", b"\xff", b"d"], pa.binary()).view(pa.string())
    table = pa.table({"prompt": ["p"] * 3, "chosen": raw, "rejected": ["r"] * 3})
    pq.write_table(table, tmp_path / "rows.parquet")
    pairs, report = read_pairs(str(tmp_path / "rows.parquet"), policy=LENIENT)
    assert [pair.row for pair in pairs] == [1, 3]
    assert [(r.row, r.reason, r.field) for r in report.rows] == [(2, "unreadable", "chosen")]


@pytest.mark.parametrize(
    ("name", "content", "trouble"),
    [
        ("rows.parquet", b"PAR1 no", "cannot be read behind row 0"),
        ("rows.jsonl.gz", b"no gzip", "cannot be read behind row 0"),
        (
            "rows.jsonl.gz",
            gzip.compress(json.dumps(CHAT).encode(), mtime=0)[:-9],
            "cannot be read behind row 0",
        ),
        ("rows.json", b'[{"a": 1},\n{"a": }]', r"broken at row 2 \(line 2\)"),
        ("rows.json", b'[{"a": 1} {"a": 2}]', "broken at row 2"),
        ("rows.json", b'{\n"train": [],\n"test": []}', "one JSON object with the keys train, test"),
        ("rows.csv", b"prompt,chosen,chosen\n", "names a column twice"),
        ("rows.txt", b"hello", "no kind of file that can be read"),
    ],
    ids=range(8),
)
def test_damaged_files_are_told_in_one_sentence(
    name: str, content: bytes, trouble: str, tmp_path: Path
):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=trouble) as error:
        read_pairs(str(path), policy=LENIENT)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_wrong_names_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a local name asked the Hub")

    monkeypatch.setattr(datasets, "load_dataset", never)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", never)
    for name in ("no/such/file.jsonl", "./folder", str(tmp_path / "x"), "rows.jsonl.gz"):
        with pytest.raises(DataError, match="no file or folder"):
            read_pairs(name, policy=LENIENT)
    path = write_lines(tmp_path / "rows.jsonl", [CHAT])
    read_pairs(str(path), policy=LENIENT)
    with pytest.raises(DataError, match="single file, which has no splits"):
        read_pairs(str(path), split="test", policy=LENIENT)
    with pytest.raises(DataError, match="which has no revisions"):
        read_pairs(str(path), revision="main", policy=LENIENT)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no saved dataset"):
        read_pairs(str(tmp_path / "empty"), policy=LENIENT)


class _Info:
    sha = "0123abcd"


def test_hub_dataset_is_read_at_one_commit(monkeypatch: pytest.MonkeyPatch):
    asked: list[Any] = []

    def info(_: object, name: str, *, revision: str | None) -> _Info:
        asked.append((name, revision))
        return _Info()

    def load(name: str, *, split: str, revision: str | None) -> datasets.Dataset:
        asked.append((name, split, revision))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", info)
    monkeypatch.setattr(datasets, "load_dataset", load)
    pairs, _ = read_pairs("ana/pairs@v1", split="train_prefs", policy=RowPolicy())
    assert asked == [("ana/pairs", "v1"), ("ana/pairs", "train_prefs", "0123abcd")]
    assert [shape(pair.prompt) for pair in pairs] == EXPECTED
    assert pairs[0].source == "ana/pairs@0123abcd"
    with pytest.raises(DataError, match="keep one of them"):
        read_pairs("ana/pairs@v1", revision="v2", policy=RowPolicy())


@pytest.mark.parametrize(
    ("raised", "error", "trouble"),
    [
        (ConnectionError("no route"), MachineError, "cannot be reached"),
        (ValueError('Unknown split "x"'), DataError, "Unknown split"),
        (FileNotFoundError("doesn't exist"), DataError, "doesn't exist"),
    ],
)
def test_hub_troubles_are_told(
    raised: Exception, error: type[Exception], trouble: str, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", fail)
    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(error, match=trouble):
        read_pairs("ana/pairs", policy=RowPolicy())


def test_a_row_with_pictures_is_read_from_every_usual_spelling(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(b"a picture")
    as_parts = chat_row(images=["a.png"], prompt=[turn(U, [IMAGE, QUESTION])])
    rows = [
        chat_row(images=["a.png"]),
        as_parts,
        chat_row(image="data:image;base64,YQ=="),
        chat_row(images=["a.png"], rejected_images=["b.png"]),
        chat_row(images=["a.png"], rejected_images={"method": "pixels", "share": 0.5, "seed": 3}),
    ]
    pairs, report = read(tmp_path, rows)
    assert report.kept == len(rows)
    here = str(tmp_path / "a.png")
    assert [pair.images for pair in pairs] == [
        (here,),
        (here,),
        ("data:image;base64,YQ==",),
        (here,),
        (here,),
    ]
    assert pairs[1].prompt == (Message(role="user", content="q"),)
    assert pairs[3].rejected_images == (str(tmp_path / "b.png"),)
    assert pairs[4].rejected_images == Degraded(share=0.5, seed=3)
    assert len({pair.id for pair in pairs}) == len(rows)


def test_the_same_answer_may_stand_on_both_sides_of_another_picture(tmp_path: Path):
    same = chat_row(chosen=[turn(A, "c")], rejected=[turn(A, "c")], images=["a.png"])
    _, report = read(tmp_path, [CHAT, same])
    assert report.dropped == {"equal": 1}
    degraded = same | {"rejected_images": {"method": "pixels"}}
    pairs, _ = read(tmp_path, [CHAT, degraded])
    assert pairs[1].chosen == pairs[1].rejected


def test_the_same_labels_swapped_about_another_picture_are_no_contradiction(tmp_path: Path):
    chosen, rejected = CHAT["rejected"], CHAT["chosen"]
    rows = [
        chat_row(images=["a.png"]),
        chat_row(images=["b.png"], chosen=chosen, rejected=rejected),
        chat_row(images=["a.png"], chosen=chosen, rejected=rejected),
    ]
    _, report = read(tmp_path, rows)
    assert [row.row for row in report.rows] == [3]
    assert report.dropped == {"swapped_duplicate": 1}
