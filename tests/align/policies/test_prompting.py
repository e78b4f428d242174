import importlib.util
import sys
from pathlib import Path

import pytest

from align.data.messages import Message
from align.data.pairs import PreferencePair
from align.data.prompts import Prompt
from align.data.row_policy import RowPolicy
from align.errors import DataError
from align.policies.base import Failed, Sampling
from align.policies.prompting import Prompting
from align.tokens.encoding import encode_pair
from align.worlds.additions import sums_tokenizer


def _tokenizers():
    """The module beside the tests' root, which importlib mode does not put on the path."""
    path = Path(__file__).resolve().parents[2] / "tokenizers_in_code.py"
    spec = importlib.util.spec_from_file_location("tokenizers_in_code", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault("tokenizers_in_code", module)
    spec.loader.exec_module(module)
    return module


IN_CODE = _tokenizers()
NAMES = sorted(IN_CODE.BUILDERS)
ANSWERS = ["four", "a short poem", "0", "the quick fox\n\n1. read"]
SAMPLING = Sampling(max_new_tokens=4)


def user(text):
    return (Message(role="user", content=text),)


def row_of(prompt, row=1):
    return Prompt(prompt=prompt, source="test", row=row)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("chat", [True, False])
def test_ids_are_those_of_training_rows(name, answer, chat):
    tokenizer = IN_CODE.tokenizer_in_code(name)
    prompt = user("What is two plus two?") if chat else "What is two plus two? "
    sides = [(Message(role="assistant", content=x),) if chat else x for x in (answer, "five")]
    pair = PreferencePair(prompt=prompt, chosen=sides[0], rejected=sides[1], source="test", row=1)
    encoded = encode_pair(pair, tokenizer, RowPolicy())
    prompting = Prompting(tokenizer)
    row = prompting.row(prompt, answer)
    assert (row.prompt_ids, row.completion_ids) == (encoded.prompt_ids, encoded.chosen_ids)
    begun = prompting.begin([row_of(prompt)], 1, SAMPLING, 999)
    assert begun.ids == {0: encoded.prompt_ids}
    assert begun.ends == {encoded.chosen_ids[-1]}


@pytest.mark.parametrize("name", sorted(IN_CODE.LOSSLESS))
@pytest.mark.parametrize("answer", ANSWERS)
def test_what_is_written_is_what_was_encoded(name, answer):
    prompting = Prompting(IN_CODE.tokenizer_in_code(name))
    row = prompting.row(user("What is two plus two?"), answer)
    written = prompting.written(
        row_of(user("What is two plus two?")),
        3,
        row.completion_ids[:-1],
        "end",
        behind=row.prompt_ids[-1],
        sampling=SAMPLING,
        identity="x",
    )
    (message,) = written.completion
    assert message.content.strip() == answer
    assert (message.role, written.policy, written.sample) == ("assistant", "x", 3)


def test_a_leading_space_is_not_lost():
    # SentencePiece-like tokenizers decode a text's first word without the space that it holds.
    tokenizer = IN_CODE.tokenizer_in_code("llama2")
    prompting = Prompting(tokenizer)
    ids = tokenizer.encode("the fox", add_special_tokens=False)
    assert tokenizer.decode(ids) == "the fox"
    (behind,) = tokenizer.encode("?", add_special_tokens=False)[-1:]
    assert prompting.text(ids, behind) == " the fox"


def test_a_prompt_without_a_question_fails_alone():
    prompting = Prompting(IN_CODE.tokenizer_in_code("qwen"))
    bad = (Message(role="assistant", content="hello"),)
    begun = prompting.begin([row_of(user("hi")), row_of(bad, 2)], 2, SAMPLING, 999)
    assert list(begun.ids) == [0]
    assert begun.results[0] == []
    assert [(x.sample, x.reason) for x in begun.results[1]] == [(0, "rejected"), (1, "rejected")]
    assert all(isinstance(x, Failed) for x in begun.results[1])


def test_a_tokenizer_without_a_template_is_an_error_not_a_failure():
    tokenizer = sums_tokenizer()
    tokenizer.chat_template = None
    prompting = Prompting(tokenizer)
    with pytest.raises(DataError, match="no chat template"):
        prompting.begin([row_of(user("hi"))], 1, SAMPLING, 999)


def test_ends_are_those_of_template_tokenizer_and_model():
    tokenizer = IN_CODE.tokenizer_in_code("qwen")
    prompting = Prompting(tokenizer)
    begun = prompting.begin([row_of(user("hi"))], 1, SAMPLING, 999)
    turn, text = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    ends = prompting.ends(begun, [7], Sampling(max_new_tokens=1, stop=("###",)))
    assert ends.whole == {turn, tokenizer.eos_token_id, 7}
    assert start in ends.control
    assert not ends.whole & ends.control
    assert prompting.ends(begun, text, SAMPLING).whole == {turn, tokenizer.eos_token_id, text}
    assert ends.stop == ("###",)


@pytest.mark.parametrize(
    ("end", "ids", "reason", "detail"),
    [
        (None, [5, 6], "unfinished", "no end within 4 tokens"),
        ("control", [5, 6], "unfinished", "drawn as token 3"),
        ("end", [], "empty", "0 tokens"),
    ],
)
def test_a_sample_without_a_text_is_a_failure(end, ids, reason, detail):
    prompting = Prompting(IN_CODE.tokenizer_in_code("qwen"))
    found = prompting.written(
        row_of(user("hi")), 1, ids, end, behind=5, sampling=SAMPLING, identity="x"
    )
    assert (found.reason, found.sample) == (reason, 1)
    assert detail in found.detail


def test_the_earliest_stop_text_cuts():
    tokenizer = IN_CODE.tokenizer_in_code("qwen")
    prompting = Prompting(tokenizer)
    ids = tokenizer.encode("red. green; blue", add_special_tokens=False)
    sampling = Sampling(max_new_tokens=9, stop=(";", "."))
    found = prompting.written(
        row_of(user("hi")), 0, ids, "stop", behind=5, sampling=sampling, identity="x"
    )
    assert found.completion[0].content == "red"
