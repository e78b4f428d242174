"""What a classifier reads, for every family of chat templates."""

import pytest

from align.data.messages import Message
from align.data.pairs import PreferencePair
from align.data.row_policy import RowPolicy
from align.errors import DataError
from align.tokens.encoding import encode_pair
from align.tokens.whole_rows import WholeRows
from tests.tokenizers_in_code import BUILDERS, WORDS, tokenizer_in_code

PROMPT = (Message(role="user", content="the wind"),)
A, B = "the quick fox", "the lazy dog"


def encoded(tokenizer, **changes):
    def answer(text):
        return (Message(role="assistant", content=text),)

    pair = PreferencePair(
        prompt=PROMPT, chosen=answer(A), rejected=answer(B), source="rows", row=1, **changes
    )
    return encode_pair(pair, tokenizer, RowPolicy(max_length=None))


def rendered(tokenizer, *turns, generation=False):
    messages = [{"role": role, "content": content} for role, content in turns]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", BUILDERS)
def test_one_answer_is_all_that_the_template_writes(name: str) -> None:
    """To the very end, behind the end token: there the score is read."""
    tokenizer = tokenizer_in_code(name)
    row = encoded(tokenizer)
    ids = WholeRows(tokenizer).one(row.prompt_ids, row.chosen_ids, chat=True)
    assert ids == rendered(tokenizer, ("user", PROMPT[0].content), ("assistant", A))


@pytest.mark.parametrize("name", BUILDERS)
def test_two_answers_are_the_conversation_with_one_more_turn(name: str) -> None:
    tokenizer = tokenizer_in_code(name)
    row = encoded(tokenizer)
    ids = WholeRows(tokenizer).two(row.prompt_ids, row.chosen_ids, row.rejected_ids, chat=True)
    # As generation would see it behind the first answer; then the second one, to the end.
    before = rendered(tokenizer, ("user", PROMPT[0].content), ("assistant", A), generation=True)
    assert ids[: len(before)] == before
    alone = WholeRows(tokenizer).one([], row.rejected_ids, chat=True)
    assert ids[len(before) :] == alone
    swapped = WholeRows(tokenizer).two(row.prompt_ids, row.rejected_ids, row.chosen_ids, chat=True)
    assert len(swapped) == len(ids)
    assert swapped != ids


def test_an_answer_that_was_cut_ends_where_it_was_cut_and_is_still_told_from_the_next() -> None:
    tokenizer = tokenizer_in_code("qwen")
    whole, cut = encoded(tokenizer), encoded(tokenizer, chosen_ends=False)
    rows = WholeRows(tokenizer)
    assert cut.chosen_ids == whole.chosen_ids[:-1]
    assert rows.one(cut.prompt_ids, cut.chosen_ids, chat=True) == [*cut.prompt_ids, *cut.chosen_ids]
    assert rows.two(cut.prompt_ids, cut.chosen_ids, cut.rejected_ids, chat=True) == rows.two(
        whole.prompt_ids, whole.chosen_ids, whole.rejected_ids, chat=True
    )


def test_plain_answers_follow_each_other_with_an_end_token_each() -> None:
    tokenizer = tokenizer_in_code("words")
    fox, dog, end = (*tokenizer.convert_tokens_to_ids(["fox", "dog"]), tokenizer.eos_token_id)
    rows = WholeRows(tokenizer)
    assert rows.one([9], [fox, end], chat=False) == [9, fox, end]
    assert rows.two([9], [fox, end], [dog, end], chat=False) == [9, fox, end, dog, end]
    assert rows.two([9], [fox], [dog], chat=False) == [9, fox, end, dog]


def test_a_template_without_an_end_token_is_refused() -> None:
    tokenizer = BUILDERS["words"]()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] + ' ' }}{% endfor %}"
    with pytest.raises(DataError, match="writes no end token behind an answer"):
        WholeRows(tokenizer).one([9], [WORDS.index("fox")], chat=True)
