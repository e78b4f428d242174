"""Token invariants on eleven tokenizers built in code, and what never becomes a control token."""

import importlib.util
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from align.data.messages import Message, Text
from align.data.pairs import PreferencePair
from align.data.problems import RowProblem
from align.data.row_policy import RowPolicy
from align.data.row_report import RowReport
from align.errors import DataError
from align.tokens.dataset import to_dataset
from align.tokens.encoding import encode_pair, encode_pairs
from align.tokens.tokenized_pair import TokenizedPair


def _load_tokenizers() -> Any:
    path = Path(__file__).resolve().parents[2] / "tokenizers_in_code.py"
    spec = importlib.util.spec_from_file_location("tokenizers_in_code", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tokenizers_in_code"] = module
    spec.loader.exec_module(module)
    return module


IN_CODE = _load_tokenizers()
NAMES = list(IN_CODE.BUILDERS)
UNCUT = RowPolicy(max_length=None)
LENIENT = RowPolicy(max_length=None, max_dropped=1.0)
# What a template's answer ends with, besides the tokenizer's own eos.
END = {"llama3": "<|eot_id|>", "gemma": "<end_of_turn>", "legacy_llama": "<|im_end|>"}


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def tokenizer(name: str) -> PreTrainedTokenizerBase:
    return IN_CODE.tokenizer_in_code(name)


def row(prompt: Any, chosen: Any, rejected: Any, **more: Any) -> PreferencePair:
    return PreferencePair(
        prompt=prompt, chosen=chosen, rejected=rejected, **{"source": "f", "row": 1, **more}
    )


def turns(*contents: str, first: str = "user") -> tuple[Message, ...]:
    roles = ["user", "assistant"] * len(contents)
    if first == "system":
        roles = ["system", *roles]
    if first == "assistant":
        roles = roles[1:]
    return tuple(Message(role=r, content=c) for r, c in zip(roles, contents, strict=False))


def answer(content: str) -> tuple[Message, ...]:
    return turns(content, first="assistant")


def chat_ids(tokenizer: PreTrainedTokenizerBase, messages: Text, *, generation: bool) -> list[int]:
    assert not isinstance(messages, str)
    return tokenizer.apply_chat_template(
        [message.model_dump() for message in messages],
        tokenize=True,
        add_generation_prompt=generation,
        return_dict=True,
    )["input_ids"]


def control_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Special tokens and turn markers, written down apart from the code under test."""
    found = set(tokenizer.all_special_ids)
    found |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    for marker in ("<start_of_turn>", "<end_of_turn>"):
        if marker in tokenizer.get_vocab():
            found.add(tokenizer.convert_tokens_to_ids(marker))
    if tokenizer.unk_token_id != tokenizer.eos_token_id:
        found.discard(tokenizer.unk_token_id)
    return found


def controls(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> int:
    barred = control_ids(tokenizer)
    return sum(i in barred for i in ids)


def end_id(name: str, tokenizer: PreTrainedTokenizerBase) -> int:
    return tokenizer.convert_tokens_to_ids(END.get(name, tokenizer.eos_token))


PIECES = [
    "quick", " quick", "qui", "ck", "the", " ", "  ", "\n", "\n\n", ".", ",", "?", "1", "42", "a",
    "Ω", "é", "日本", "😀", "\t", "assistant", "user", "|", "<", ">", "[", "]", "\u202e", "\u2028",
    "x" * 30, "\x00", "</", "▁", "e\u0301", "\ue000", "You are",
]  # fmt: skip


def some_text(rng: random.Random, longest: int = 8) -> str:
    text = ""
    while not text.strip():
        text = "".join(rng.choice(PIECES) for _ in range(rng.randint(1, longest)))
    return text


def random_chat(rng: random.Random, *, system: bool) -> PreferencePair:
    count = rng.choice([1, 1, 3, 5])
    contents = [some_text(rng) for _ in range(count)]
    prompt = turns(*contents)
    if system and rng.random() < 0.3:
        prompt = turns(some_text(rng), *contents, first="system")
    return row(prompt, answer("yes " + some_text(rng)), answer("no " + some_text(rng)))


def check_invariants(
    name: str, tokenizer: PreTrainedTokenizerBase, pair: PreferencePair, made: TokenizedPair
) -> None:
    end = end_id(name, tokenizer) if pair.is_conversational else tokenizer.eos_token_id
    bos = tokenizer.bos_token_id
    if bos is not None and bos != tokenizer.eos_token_id:
        assert bos not in made.prompt_ids[1:] or name == "llama2"  # Llama-2 writes one per question
    for ids in (made.chosen_ids, made.rejected_ids):
        assert ids[-1] == end
        assert controls(tokenizer, ids) == 1
        assert len(ids) > 1
    assert made.chosen_ids != made.rejected_ids


def test_random_conversations_train_on_the_context_of_generation(
    name: str, tokenizer: PreTrainedTokenizerBase
):
    rng = random.Random(f"chat {name}")
    exact = merged = 0
    rows = [random_chat(rng, system=name not in IN_CODE.WITHOUT_SYSTEM) for _ in range(200)]
    report = RowReport()
    tokenized = encode_pairs(rows, tokenizer, LENIENT, report)
    # Tokenizers of few words or letters map different rows to the same tokens.
    assert set(report.dropped) <= ({"equal_after_cut"} if name in ("words", "chars") else set())
    for made in tokenized:
        pair = made.pair
        check_invariants(name, tokenizer, pair, made)
        assert made.prompt_ids == chat_ids(tokenizer, pair.prompt, generation=True)
        for side, ids in ((pair.chosen, made.chosen_ids), (pair.rejected, made.rejected_ids)):
            full = chat_ids(tokenizer, (*pair.prompt, *side), generation=False)
            ours = made.prompt_ids + ids
            if full[: len(made.prompt_ids)] == made.prompt_ids:
                assert full[: len(ours)] == ours
                # Behind the end token the template writes white space at most.
                assert not tokenizer.decode(full[len(ours) :]).strip()
                exact += 1
            else:
                assert "boundary_merge" in made.notes
                merged += 1
    assert exact > 240
    assert merged == 0 or name in ("words", "zephyr", "gpt2")


def test_random_plain_rows_share_the_tokenizers_own_prompt(
    name: str, tokenizer: PreTrainedTokenizerBase
):
    rng = random.Random(f"plain {name}")
    merged = 0
    rows = [row(some_text(rng), some_text(rng), some_text(rng)) for _ in range(200)]
    rows.append(row("the qui", "ck", "te"))
    report = RowReport()
    tokenized = encode_pairs(rows, tokenizer, LENIENT, report)
    assert set(report.dropped) <= {"equal", "equal_after_cut", "empty_completion"}
    assert report.kept == len(tokenized) > (50 if name == "words" else 180)
    for made in tokenized:
        pair = made.pair
        check_invariants(name, tokenizer, pair, made)
        alone = tokenizer(pair.prompt)["input_ids"]
        assert alone[: len(made.prompt_ids)] == made.prompt_ids
        suffix = alone[len(made.prompt_ids) :]
        assert suffix == ([tokenizer.eos_token_id] if name in ("legacy_llama", "byt5") else [])
        merged += "boundary_merge" in made.notes
        if name in IN_CODE.LOSSLESS:
            bare = made.prompt_ids[name in ("llama3", "mistral", "gemma") :]
            for side, ids in ((pair.chosen, made.chosen_ids), (pair.rejected, made.rejected_ids)):
                text = pair.prompt + side
                # SentencePiece spells a space as U+2581 and cannot tell the two apart.
                text = text.replace("▁", " ") if name == "gemma" else text
                assert tokenizer.decode(bare + ids[:-1]) == text
    assert merged > 0 or name in ("chars", "byt5")


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        # "quick" is one token of the whole text; the border keeps "qui" and "ck" apart.
        ("llama3", ["the", "Ġ", "qu", "i", "ck", "<|eot_id|>"]),
        # Encoded alone, "ck" would begin with the space that starts a text: "▁ck".
        ("llama2", ["▁the", "▁qu", "i", "ck", "</s>"]),
        ("gpt2", ["Ġthe", "Ġqu", "i", "ck", "<|endoftext|>"]),
    ],
)
def test_a_merge_across_the_border_is_resolved_and_counted(name: str, tokens: list[str]):
    tokenizer = IN_CODE.tokenizer_in_code(name)
    report = RowReport()
    pair = row("the qui", "ck", " no")
    (made,) = encode_pairs([pair], tokenizer, UNCUT, report)
    ids = made.prompt_ids + made.chosen_ids
    assert tokenizer.convert_ids_to_tokens(ids)[-len(tokens) :] == tokens
    assert report.notes == {"boundary_merge": 1}
    assert (report.read, report.kept) == (1, 1)


def test_qwens_newline_behind_the_end_token_is_not_trained_on():
    tokenizer = IN_CODE.tokenizer_in_code("qwen")
    pair = row(turns("a"), answer("b"), answer("c"))
    made = encode_pair(pair, tokenizer, UNCUT)
    full = chat_ids(tokenizer, (*pair.prompt, *pair.chosen), generation=False)
    assert tokenizer.decode(full[len(made.prompt_ids) :]) == "b<|im_end|>\n"
    assert tokenizer.decode(made.chosen_ids) == "b<|im_end|>"


def test_templates_that_trim_give_equal_tokens_for_answers_that_differ_in_space():
    pair = row(turns("a"), answer("b"), answer(" b\n"))
    with pytest.raises(RowProblem) as problem:
        encode_pair(pair, IN_CODE.tokenizer_in_code("llama3"), UNCUT)
    assert problem.value.reason == "equal_after_cut"
    encode_pair(pair, IN_CODE.tokenizer_in_code("mistral"), UNCUT)


def control_strings(rng: random.Random, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """200 strings: every control token bare, dressed, doubled, nested and broken."""
    bare = sorted({str(tokenizer.decode([i])).strip() for i in control_ids(tokenizer)})
    strings = [*bare, *(token * 2 for token in bare)]
    while len(strings) < 200:
        token, other = rng.choice(bare), rng.choice(bare)
        cut = rng.randint(1, len(token) - 1)
        strings.append(
            rng.choice(
                [
                    f"{token}system\n{other}",
                    f" {token} ",
                    f"x{token}y",
                    token[:cut] + other + token[cut:],
                    token[:1] + token,
                    token + token[-1:],
                    f"\n{token}\n{other}\n",
                    token[:cut] + token,
                    f"😀{token}é",
                ]
            )
        )
    return strings[:200]


def squeezed(text: str) -> str:
    return "".join(text.split())


def test_control_strings_in_content_stay_text(name: str, tokenizer: PreTrainedTokenizerBase):
    """200 strings, each in every turn of a conversation and in every field of a plain row."""
    rng = random.Random(f"control {name}")
    system = name not in IN_CODE.WITHOUT_SYSTEM
    lead = ["s"] if system else []
    first = "system" if system else "user"
    ordinary = chat_ids(tokenizer, turns(*lead, "a", "b", "c", first=first), generation=True)
    rows: list[PreferencePair] = []
    for number, spelled in enumerate(control_strings(rng, tokenizer)):
        contents = [*lead, "a", "b", "c", "yes", "no"]
        at = number % len(contents)
        contents[at] = rng.choice(["{}", "x {}", "{} x", "x {} x"]).format(spelled)
        chosen, rejected = contents[-2:]
        rows.append(row(turns(*contents[:-2], first=first), answer(chosen), answer(rejected)))
        plain = ["p", "c", "r"]
        plain[number % 3] = contents[at]
        rows.append(row(*plain))
    report = RowReport()
    if name == "words":
        with pytest.raises(DataError, match="None of the 400 rows"):
            encode_pairs(rows, tokenizer, LENIENT, report)
        assert set(report.dropped) <= {"control_tokens", "equal_after_cut"}
        return
    tokenized = encode_pairs(rows, tokenizer, LENIENT, report)
    assert report.kept == len(tokenized) == 400
    assert report.notes["control_tokens_split"] > 350
    for made in tokenized:
        pair = made.pair
        check_invariants(name, tokenizer, pair, made)
        if pair.is_conversational:
            written = controls(tokenizer, ordinary)
            messages = [m.model_dump() for m in (*pair.prompt, *pair.chosen)]
            text = tokenizer.apply_chat_template(messages, tokenize=False).rstrip("\n")
        else:
            has_bos = tokenizer.bos_token_id in made.prompt_ids[:1]
            written = int(has_bos)
            text = pair.prompt + pair.chosen + tokenizer.eos_token
            text = tokenizer.bos_token + text if has_bos else text
        assert controls(tokenizer, made.prompt_ids) == written
        back = tokenizer.decode(made.prompt_ids + made.chosen_ids)
        if name in ("llama3", "qwen", "mistral", "gemma"):
            assert back == text
        else:
            # The others lose or add spaces at the border of special tokens in any text, and the
            # character tokenizer does not know letters outside ASCII.
            known = squeezed(text)
            if name == "chars":
                known = known.replace("😀", "<unk>").replace("é", "<unk>")
            assert squeezed(back) == known


def test_control_strings_can_be_refused():
    tokenizer = IN_CODE.tokenizer_in_code("qwen")
    pair = row(turns("a"), answer("b"), answer("x<|im_end|>"))
    with pytest.raises(RowProblem) as problem:
        encode_pair(pair, tokenizer, RowPolicy(on_control_tokens="drop"))
    assert (problem.value.reason, problem.value.field) == ("control_tokens", "rejected[0].content")
    assert "character 2" in problem.value.detail
    with pytest.raises(DataError, match=r"f, row 1, .*data\.on_control_tokens is 'error'"):
        encode_pairs([pair], tokenizer, RowPolicy(on_control_tokens="error"), RowReport())


def test_a_literal_bos_in_front_of_plain_text_is_text_and_bos_stands_once():
    tokenizer = IN_CODE.tokenizer_in_code("llama3")
    bos = tokenizer.bos_token
    made = encode_pair(row(bos + "the", " a", " b"), tokenizer, UNCUT)
    assert made.prompt_ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(made.prompt_ids) == bos + bos + "the"


def test_an_end_token_spelled_across_the_border_stays_text():
    tokenizer = IN_CODE.tokenizer_in_code("mistral")
    made = encode_pair(row("a </", "s> b", "c"), tokenizer, UNCUT)
    assert tokenizer.decode(made.prompt_ids + made.chosen_ids) == "<s>a </s> b</s>"
    assert controls(tokenizer, made.prompt_ids + made.chosen_ids) == 2  # bos and the one end


def test_text_that_normalises_to_a_control_token_is_refused():
    # NFKC turns the full-width brackets into "<s>", and this special token is matched after it.
    from tokenizers import AddedToken, normalizers

    tokenizer = IN_CODE.BUILDERS["mistral"]()
    backend = tokenizer.backend_tokenizer
    backend.normalizer = normalizers.NFKC()
    backend.add_special_tokens([AddedToken("<sep>", normalized=True)])
    made = encode_pair(row(turns("a"), answer("b"), answer("c")), tokenizer, UNCUT)
    assert controls(tokenizer, made.chosen_ids) == 1
    with pytest.raises(RowProblem) as problem:
        encode_pair(row(turns("a"), answer("b\uff1csep\uff1e"), answer("c")), tokenizer, UNCUT)
    assert (problem.value.reason, problem.value.field) == ("control_tokens", "chosen")


def chars_row(prompt: int, chosen: int, rejected: int) -> PreferencePair:
    """Plain text for the character tokenizer: that many tokens, before the end token."""
    return row("p" * prompt, "c" * chosen, "r" * rejected)


def cut(pair: PreferencePair, how: str, length: int = 16, **more: Any) -> TokenizedPair:
    policy = RowPolicy.model_validate({"max_length": length, "on_too_long": how, **more})
    return encode_pair(pair, IN_CODE.tokenizer_in_code("chars"), policy)


@pytest.mark.parametrize("how", ["drop", "cut_prompt", "cut_completion", "error"])
def test_rows_of_just_max_length_are_left_alone(how: str):
    made = cut(chars_row(10, 5, 2), how)  # 10 + 5 + end = 16
    assert (len(made.prompt_ids), len(made.chosen_ids), len(made.rejected_ids)) == (10, 6, 3)
    assert made.notes == ()


@pytest.mark.parametrize("how", ["drop", "error"])
def test_one_token_more_is_too_long(how: str):
    with pytest.raises(RowProblem) as problem:
        cut(chars_row(10, 2, 6), how)
    assert (problem.value.reason, problem.value.field) == ("too_long", "rejected")


def test_cut_prompt_takes_from_the_left_for_both_sides():
    made = cut(row("0123456789", "cccccccc", "r"), "cut_prompt")  # 16 - (8 + end) leaves 7
    tokenizer = IN_CODE.tokenizer_in_code("chars")
    assert tokenizer.decode(made.prompt_ids) == "3456789"
    assert (len(made.chosen_ids), len(made.rejected_ids)) == (9, 2)
    assert made.notes == ("cut_prompt",)


def test_cut_prompt_keeps_bos():
    tokenizer = IN_CODE.tokenizer_in_code("chars")
    pair = row(turns("0123456789"), answer("ccc"), answer("r"))
    policy = RowPolicy(max_length=16, on_too_long="cut_prompt")
    # bos, user, ten digits, end, assistant = 14; 16 - (3 + end) leaves 12: bos and the last eleven.
    made = encode_pair(pair, tokenizer, policy)
    assert tokenizer.decode(made.prompt_ids) == "<bos>123456789<end><assistant>"


def test_cut_prompt_cannot_make_room_where_the_completion_alone_fills_it():
    assert len(cut(chars_row(3, 14, 1), "cut_prompt").prompt_ids) == 1
    with pytest.raises(RowProblem) as problem:
        cut(chars_row(3, 15, 1), "cut_prompt")
    assert (problem.value.reason, problem.value.field) == ("too_long", "prompt")


def test_cut_completion_takes_from_the_right_and_leaves_no_end_token():
    made = cut(chars_row(10, 9, 2), "cut_completion")
    tokenizer = IN_CODE.tokenizer_in_code("chars")
    assert tokenizer.decode(made.chosen_ids) == "cccccc"
    assert tokenizer.decode(made.rejected_ids) == "rr<end>"
    assert made.notes == ("cut_completion",)


def test_cut_completion_keeps_the_minimum():
    assert len(cut(chars_row(12, 9, 2), "cut_completion", min_completion_tokens=4).chosen_ids) == 4
    with pytest.raises(RowProblem) as problem:
        cut(chars_row(13, 9, 2), "cut_completion", min_completion_tokens=4)
    assert (problem.value.reason, problem.value.field) == ("too_long", "prompt")
    with pytest.raises(RowProblem):
        cut(chars_row(20, 9, 2), "cut_completion")


def test_sides_that_differ_only_behind_the_cut_are_equal():
    pair = row("p" * 10, "same text A", "same text B")
    with pytest.raises(RowProblem) as problem:
        cut(pair, "cut_completion")
    assert problem.value.reason == "equal_after_cut"
    cut(pair, "cut_completion", length=64)


def test_token_weights_must_fit_the_tokens_and_are_cut_with_them():
    tokenizer = IN_CODE.tokenizer_in_code("chars")
    weights = {"chosen_token_weight": (1.0, 2.0, 3.0), "rejected_token_weight": (4.0, 5.0)}
    good = row("p", "cc", "r", **weights)  # one weight per character, one for the end token
    rows = encode_pairs([good], tokenizer, UNCUT, RowReport())
    assert to_dataset(rows)["chosen_token_weight"][0] == [1.0, 2.0, 3.0]
    with pytest.raises(RowProblem) as problem:
        encode_pair(row("p", "ccc", "r", **weights), tokenizer, UNCUT)
    assert (problem.value.reason, problem.value.field) == ("bad_score", "chosen_token_weight")

    long = row("p" * 14, "cc", "r", **weights)
    policy = RowPolicy(max_length=16, on_too_long="cut_completion")
    rows = encode_pairs([long], tokenizer, policy, RowReport())
    assert to_dataset(rows)["chosen_token_weight"][0] == [1.0, 2.0]


def test_a_beginning_has_no_end_token(name: str, tokenizer: PreTrainedTokenizerBase):
    whole = row(turns("1 + 2?"), answer("3 is it"), answer("no idea"))
    made = encode_pair(whole, tokenizer, UNCUT)
    for ends in ((True, False), (False, True), (False, False), (None, False)):
        flags = dict(zip(("chosen_ends", "rejected_ends"), ends, strict=True))
        begun = encode_pair(whole.model_copy(update=flags), tokenizer, UNCUT)
        assert begun.prompt_ids == made.prompt_ids
        for found, full, end in (
            (begun.chosen_ids, made.chosen_ids, ends[0]),
            (begun.rejected_ids, made.rejected_ids, ends[1]),
        ):
            # Llama-2's template writes a space between an answer and its end token.
            behind = 2 if name == "llama2" else 1
            assert found == (full[:-behind] if end is False else full)
            assert controls(tokenizer, found) == (0 if end is False else 1)


def test_a_plain_beginning_has_no_end_token():
    tokenizer = IN_CODE.tokenizer_in_code("chars")
    pair = row("p", "cc", "r", chosen_ends=False, chosen_token_weight=(1.0, 2.0))
    made = encode_pair(pair, tokenizer, UNCUT)
    assert tokenizer.decode(made.chosen_ids) == "cc"
    assert tokenizer.decode(made.rejected_ids) == "r<end>"
    assert made.notes == ()
    # One character is a beginning already; with an end token the weights no longer fit.
    assert len(encode_pair(row("p", "c", "r", chosen_ends=False), tokenizer, UNCUT).chosen_ids) == 1
    with pytest.raises(RowProblem) as problem:
        encode_pair(pair.model_copy(update={"chosen_ends": True}), tokenizer, UNCUT)
    assert problem.value.detail == "2 weights for 3 completion tokens, end token included"
    with pytest.raises(RowProblem) as problem:
        encode_pair(pair.model_copy(update={"chosen": "ccc"}), tokenizer, UNCUT)
    assert problem.value.detail == "2 weights for 3 completion tokens, with no end token"


def test_a_beginning_stops_before_what_the_template_writes_behind_it():
    tokenizer = IN_CODE.BUILDERS["qwen"]()
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }} over<|im_end|>"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    pair = row(turns("1 + 2?"), answer("3"), answer("4"), rejected_ends=False)
    made = encode_pair(pair, tokenizer, UNCUT)
    assert tokenizer.decode(made.chosen_ids) == "3 over<|im_end|>"
    assert tokenizer.decode(made.rejected_ids) == "4"
    tokenizer.chat_template = tokenizer.chat_template.replace(
        " over", "{% if m.content != '4' %} out{% endif %}"
    )
    with pytest.raises(RowProblem) as problem:
        encode_pair(pair, tokenizer, UNCUT)
    assert (problem.value.reason, problem.value.field) == ("template_mismatch", "rejected")


def given(
    pair: PreferencePair, tokenizer: PreTrainedTokenizerBase, **changes: Any
) -> PreferencePair:
    """`pair` with the ids that its texts have, and `changes`."""
    made = encode_pair(pair, tokenizer, UNCUT)
    ids = {key: tuple(getattr(made, key)) for key in ("prompt_ids", "chosen_ids", "rejected_ids")}
    return pair.model_copy(update=ids | changes)


@pytest.mark.parametrize("seed", range(6))
def test_given_ids_are_used_exactly(name: str, tokenizer: PreTrainedTokenizerBase, seed: int):
    rng = random.Random(seed)
    pair = random_chat(rng, system=False)
    try:
        made = encode_pair(pair, tokenizer, UNCUT)
    except RowProblem:
        return
    flags = {"chosen_ends": rng.random() < 0.5, "rejected_ends": rng.random() < 0.5}
    pair = pair.model_copy(update=flags)
    made = encode_pair(pair, tokenizer, UNCUT)
    again = encode_pair(given(pair, tokenizer), tokenizer, UNCUT)
    assert (again.prompt_ids, again.chosen_ids, again.rejected_ids) == (
        made.prompt_ids,
        made.chosen_ids,
        made.rejected_ids,
    )
    assert "given_ids" in again.notes


def test_another_segmentation_of_the_same_text_is_kept():
    tokenizer = IN_CODE.tokenizer_in_code("qwen")
    pair = row(turns("the quick?"), answer("quick"), answer("no"))
    made = encode_pair(pair, tokenizer, UNCUT)
    letters = tuple(tokenizer.convert_tokens_to_ids(list("quick")))
    assert list(letters) != made.chosen_ids[:-1]
    drawn = (*letters, made.chosen_ids[-1])
    found = encode_pair(given(pair, tokenizer, chosen_ids=drawn), tokenizer, UNCUT)
    assert found.chosen_ids == list(drawn)
    report = RowReport()
    (kept,) = encode_pairs([given(pair, tokenizer, chosen_ids=drawn)], tokenizer, UNCUT, report)
    assert (kept.chosen_ids, report.notes["given_ids"]) == (list(drawn), 1)


def chars_given(**changes: Any) -> PreferencePair:
    pair = row(turns("12"), answer("34"), answer("5"))
    return given(pair, IN_CODE.tokenizer_in_code("chars"), **changes)


def chars(text: str) -> tuple[int, ...]:
    return tuple(IN_CODE.tokenizer_in_code("chars").convert_tokens_to_ids(list(text)))


def test_given_ids_that_are_not_the_texts_are_refused():
    tokenizer = IN_CODE.tokenizer_in_code("chars")
    end = tokenizer.eos_token_id
    good = chars_given()
    assert good.prompt_ids is not None
    bad: dict[str, tuple[dict[str, Any], str, str]] = {
        "prompt of another template": (
            {"prompt_ids": good.prompt_ids[1:]},
            "prompt_ids",
            "make 6 others of the prompt",
        ),
        "prompt of another question": (
            {"prompt": turns("13")},
            "prompt_ids",
            "others of the prompt",
        ),
        "outside": ({"chosen_ids": (99999, end)}, "chosen_ids", "id 99999 is not in"),
        "outside, as 0": ({"chosen_ids": (-1, end)}, "chosen_ids", "id -1 is not in"),
        "no end": ({"chosen_ids": chars("34")}, "chosen_ids", "the last one is no end token"),
        "begins, with an end": (
            {"rejected_ends": False},
            "rejected_ids",
            "id 2 of 2 is a control token, and rejected_ends is false",
        ),
        "two ends": (
            {"rejected_ids": (*chars("5"), end, end)},
            "rejected_ids",
            "id 2 of 3 is a control token",
        ),
        "other text": (
            {"rejected_ids": (*chars("6"), end)},
            "rejected_ids",
            "2 ids that this tokenizer does not read as the text",
        ),
        "more text": (
            {"rejected_ids": (*chars("55"), end)},
            "rejected_ids",
            "3 ids that this tokenizer does not read as the text",
        ),
        "bos as the end": (
            {"chosen_ids": (*chars("34"), tokenizer.bos_token_id)},
            "chosen_ids",
            "no end token",
        ),
    }
    encode_pair(good, tokenizer, UNCUT)
    for case, (changes, field, said) in bad.items():
        with pytest.raises(RowProblem) as problem:
            encode_pair(good.model_copy(update=changes), tokenizer, UNCUT)
        assert (problem.value.reason, problem.value.field) == ("template_mismatch", field), case
        assert said in problem.value.detail, case


def test_given_ids_are_cut_and_weighed_like_others():
    tokenizer = IN_CODE.tokenizer_in_code("chars")
    pair = chars_given(chosen_token_weight=(1.0, 2.0, 3.0))
    assert encode_pair(pair, tokenizer, UNCUT).chosen_ids[-1] == tokenizer.eos_token_id
    with pytest.raises(RowProblem) as problem:
        encode_pair(
            pair.model_copy(update={"chosen_ids": chars("34"), "chosen_ends": False}),
            tokenizer,
            UNCUT,
        )
    assert problem.value.detail == "3 weights for 2 completion tokens, with no end token"
    same = chars_given(rejected=answer(" 34"), rejected_ids=pair.chosen_ids)
    with pytest.raises(RowProblem) as problem:
        encode_pair(same, tokenizer, UNCUT)
    assert problem.value.reason == "equal_after_cut"


def test_given_ids_of_characters_that_cannot_be_read_back():
    tokenizer = IN_CODE.tokenizer_in_code("chars")
    pair = row(turns("12"), answer("3\u65e5"), answer("5"))
    assert tokenizer.unk_token_id in encode_pair(pair, tokenizer, UNCUT).chosen_ids
    assert encode_pair(given(pair, tokenizer), tokenizer, UNCUT).pair.chosen == pair.chosen


def test_conversations_need_a_chat_template():
    tokenizer = IN_CODE.BUILDERS["qwen"]()
    tokenizer.chat_template = None
    with pytest.raises(DataError, match="no chat template"):
        encode_pairs([row(turns("a"), answer("b"), answer("c"))], tokenizer, UNCUT, RowReport())
    encode_pair(row("a", "b", "c"), tokenizer, UNCUT)


def test_plain_rows_need_an_end_token():
    tokenizer = IN_CODE.BUILDERS["qwen"]()
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="no eos_token"):
        encode_pairs([row("a", "b", "c")], tokenizer, UNCUT, RowReport())


LOOP = "{% for m in messages %}"


@pytest.mark.parametrize(
    ("template", "trouble"),
    [
        (LOOP + "{{ m['role'] + ': ' + m['content'] }}\n{% endfor %}", "no end token"),
        (
            LOOP + "<|im_start|>{{ m['role'] + m['content'] }}<|im_end|>{% endfor %}",
            "ignores add_generation_prompt",
        ),
        (
            "{{ messages | length }}" + LOOP + "{{ m['content'] }}<|im_end|>{% endfor %}",
            "in another way once it is answered",
        ),
        (LOOP + "{{ m['content'] | upper }}<|im_end|>{% endfor %}", "does not write the answer"),
        (LOOP + "{{ m['content'] + 1 }}{% endfor %}", "cannot render"),
        (LOOP + "{{ m.unknown.deep }}{% endfor %}", "cannot render"),
    ],
)
def test_templates_that_cannot_hold_the_invariants_are_refused_once(template: str, trouble: str):
    tokenizer = IN_CODE.BUILDERS["qwen"]()
    tokenizer.chat_template = template
    with pytest.raises(DataError, match=trouble) as error:
        encode_pairs([row(turns("a"), answer("b"), answer("c"))], tokenizer, UNCUT, RowReport())
    assert not isinstance(error.value, RowProblem)


def test_a_template_with_two_bos_is_refused():
    tokenizer = IN_CODE.BUILDERS["llama3"]()
    tokenizer.chat_template = "{{- bos_token }}" + tokenizer.chat_template
    with pytest.raises(DataError, match="beginning-of-sequence token twice"):
        encode_pair(row(turns("a"), answer("b"), answer("c")), tokenizer, UNCUT)


def test_roles_that_the_template_refuses_cost_only_their_row():
    tokenizer = IN_CODE.tokenizer_in_code("gemma")
    report = RowReport()
    twice = (*turns("a"), *turns("b"))
    rows = [
        row(turns("s", "a", first="system"), answer("b"), answer("c"), row=1),
        row(twice, answer("b"), answer("c"), row=2),
        row(turns("a"), answer("b"), answer("c"), row=3),
    ]
    made = encode_pairs(rows, tokenizer, RowPolicy(max_dropped=1.0), report)
    assert [one.pair.row for one in made] == [3]
    assert [(one.row, one.reason) for one in report.rows] == [
        (1, "wrong_roles"),
        (2, "wrong_roles"),
    ]
    assert "System role not supported" in report.rows[0].detail


def test_a_template_that_rewrites_content_cannot_hide_a_control_token():
    tokenizer = IN_CODE.BUILDERS["qwen"]()
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "message['content'] +", "(message['content'] | replace('<|', '<!')) +"
    )
    encode_pair(row(turns("a"), answer("b"), answer("c")), tokenizer, UNCUT)
    with pytest.raises(RowProblem) as problem:
        encode_pair(row(turns("a <|im_end|>"), answer("b"), answer("c")), tokenizer, UNCUT)
    assert problem.value.reason == "template_mismatch"


def test_report_goes_on_counting_the_rows_that_came_with_it():
    tokenizer = IN_CODE.tokenizer_in_code("chars")
    report = RowReport(read=3, kept=3)
    pairs = [chars_row(2, 2, 1), chars_row(20, 2, 1), chars_row(3, 2, 1)]
    made = encode_pairs(pairs, tokenizer, RowPolicy(max_length=16, max_dropped=0.4), report)
    assert len(made) == report.kept == 2
    assert (report.read, report.dropped) == (3, {"too_long": 1})
    with pytest.raises(DataError, match="1 too_long"):
        encode_pairs(pairs, tokenizer, RowPolicy(max_length=16), RowReport())
    with pytest.raises(ValueError, match="counts 2 kept rows"):
        encode_pairs(pairs, tokenizer, UNCUT, report)


def test_dataset_has_optional_columns_only_where_every_row_has_them():
    tokenizer = IN_CODE.tokenizer_in_code("chars")
    scores = {"chosen_score": 2.0, "rejected_score": 1.0}
    rows = [
        row("p", "cc", "r", preference=0.75, group_id="g", **scores),
        row("q", "cc", "r", preference=1.0, row=7),
    ]
    report = RowReport()
    data = to_dataset(encode_pairs(rows, tokenizer, UNCUT, report))
    assert data.column_names == [
        "prompt_ids", "chosen_ids", "rejected_ids", "row_id", "source", "row", "preference",
    ]  # fmt: skip
    assert data["preference"][:] == [0.75, 1.0]
    assert data["row_id"][:] == [pair.id for pair in rows]
    assert data["row"][:] == [1, 7]
    end = tokenizer.eos_token_id
    c = tokenizer.convert_tokens_to_ids("c")
    assert data["chosen_ids"][0] == [c, c, end]
    assert report.ignored_columns == [
        "chosen_score (on 1 of 2 rows)",
        "rejected_score (on 1 of 2 rows)",
        "group_id (on 1 of 2 rows)",
    ]


def test_dataset_of_no_rows_still_has_its_columns():
    data = to_dataset([])
    assert data.num_rows == 0
    assert data.features["prompt_ids"].feature.dtype == "int64"
