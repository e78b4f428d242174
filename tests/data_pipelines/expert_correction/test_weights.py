"""Weights of sentences land on the tokens of these sentences."""

import json
from itertools import pairwise

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from align.data.built import SpanWeight
from align.data.messages import Message
from align.data.problems import RowProblem
from align.policies.local_tokens import LocalTokens
from align.worlds.additions import sums_tokenizer
from align.worlds.chat import SPECIAL_TOKENS, chat_tokenizer
from align_data.expert_correction.report import read_report
from align_data.expert_correction.settings import ExpertCorrectionSettings
from align_data.expert_correction.weights import (
    image_weight,
    severity_weight,
    spans,
    token_spans,
    token_weights,
)
from tests.data_pipelines.expert_correction.test_report import GOOD, TEXT, report_of, sentence

SETTINGS = ExpertCorrectionSettings()
PROMPT = (Message(role="user", content="What is there?"),)


def one_per_character():
    letters = sorted(set(TEXT + "What is there? blue one tail."))
    vocabulary = {token: i for i, token in enumerate((*SPECIAL_TOKENS, *letters))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    return chat_tokenizer(backend, max_length=512)


def byte_level_bpe():
    """Merges learned on the very text, so that tokens reach over sentences' ends."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([TEXT, "The café. It is 😀😀 there."], trainer)
    return chat_tokenizer(backend, max_length=512)


def metaspace():
    """Puts a space before the first word of a text, and takes it off when decoding."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=120, special_tokens=list(SPECIAL_TOKENS), show_progress=False
    )
    backend.train_from_iterator([TEXT, "What is there? A blue one."], trainer)
    return chat_tokenizer(backend, max_length=512)


def weights_of(tokenizer, prompt=PROMPT, report=GOOD, text=TEXT, **given):
    encoder = LocalTokens(tokenizer, None)
    read = read_report(json.dumps(report), text)
    of_gen, of_rev = spans(read, ExpertCorrectionSettings.model_validate(given))
    return (
        token_weights(encoder, prompt, text, of_gen, at_end=0.0),
        token_weights(encoder, prompt, read.revised, of_rev, at_end=None),
    )


@pytest.mark.parametrize("prompt", [PROMPT, "What is there?"])
def test_one_token_per_character_golden(prompt):
    gen, rev = weights_of(one_per_character(), prompt)
    # "The cat is red." 15 at 2.0; " It sits." and "\n\n": the space before belongs to the sentence
    # before it, so 1 more at 2.0, 8 at 1.0 and 2 at 1.0; "It has  two tails." 18 at 2.5; end 0.
    assert gen == (2.0,) * 16 + (1.0,) * 10 + (2.5,) * 18 + (0.0,)
    # "The cat is blue." 16 and a space at 2.0; 10 at 1.0; "It has one tail." 16 at 2.5; end 2.5.
    assert rev == (2.0,) * 17 + (1.0,) * 10 + (2.5,) * 16 + (2.5,)


@pytest.mark.parametrize("make", [byte_level_bpe, metaspace])
@pytest.mark.parametrize("prompt", [PROMPT, "What is there?"])
def test_tokens_of_faulty_sentences_and_no_others_are_heavy(make, prompt):
    tokenizer = make()
    encoder = LocalTokens(tokenizer, None)
    text = TEXT.replace("\n\n", " ").replace("  ", " ")
    ids = encoder.answer_ids(prompt, text)
    gen, _ = weights_of(tokenizer, prompt, text=text)
    assert len(gen) == len(ids)
    found = token_spans(encoder, ids[:-1], encoder.prompt_ids(prompt)[-1], text)
    # The spans follow one another and cover the text.
    assert found[0][0] == 0
    assert found[-1][1] == len(text)
    assert all(a[1] == b[0] for a, b in pairwise(found))
    second = (text.index("It sits."), text.index("It sits.") + 8)
    for (start, end), weight in zip(found, gen[:-1], strict=True):
        piece = text[start:end]
        if start >= second[0] and end <= second[1]:
            assert weight == 1.0, piece
        elif end <= second[0]:
            assert weight == 2.0
        elif start >= second[1] and piece.strip():
            assert weight == 2.5


def test_a_token_over_two_sentences_takes_the_larger_weight():
    class Whole:
        """One token per two characters."""

        def prompt_ids(self, prompt):
            return (0,)

        def answer_ids(self, prompt, answer):
            return (*range(1, len(answer) // 2 + 1), 0)

        def text(self, ids, behind):
            return "".join("abcdefgh"[2 * i - 2 : 2 * i] for i in ids)

    at = [SpanWeight(start=0, end=3, weight=1.0), SpanWeight(start=3, end=8, weight=2.0)]
    assert token_weights(Whole(), "p", "abcdefgh", at, at_end=0.0) == (1.0, 2.0, 2.0, 2.0, 0.0)
    turned = [SpanWeight(start=0, end=3, weight=2.0), SpanWeight(start=3, end=8, weight=1.0)]
    assert token_weights(Whole(), "p", "abcdefgh", turned, at_end=None)[1:] == (2.0, 1.0, 1.0, 1.0)


def test_tokens_that_are_parts_of_one_character():
    tokenizer = byte_level_bpe()
    encoder = LocalTokens(tokenizer, None)
    text = "é😀é. ß."
    ids = encoder.answer_ids(PROMPT, text)[:-1]
    found = token_spans(encoder, ids, encoder.prompt_ids(PROMPT)[-1], text)
    assert len(found) == len(ids) > len(text)
    assert found[0][0] == 0
    assert found[-1] == (len(text) - 1, len(text))
    both = report_of(sentence("é😀é.", "e.", 3), sentence("ß."))
    gen, _ = weights_of(tokenizer, text=text, report=both)
    sharp_s = len(encoder.answer_ids(PROMPT, "ß.")) - 1
    assert gen[-1 - sharp_s : -1] == (1.0,) * sharp_s
    assert set(gen[: -1 - sharp_s]) <= {1.5, 1.0}
    assert gen[0] == 1.5


def test_a_template_that_trims_answers():
    tokenizer = byte_level_bpe()
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "message['content']", "message['content'] | trim"
    )
    encoder = LocalTokens(tokenizer, None)
    ids = encoder.answer_ids(PROMPT, "  ab. ")[:-1]
    found = token_spans(encoder, ids, encoder.prompt_ids(PROMPT)[-1], "  ab. ")
    assert found[0][0] == 2
    assert found[-1][1] == 5


def test_tokens_that_do_not_spell_the_text():
    encoder = LocalTokens(sums_tokenizer(), None)
    ids = encoder.answer_ids(PROMPT, "1+1=3")[:-1]
    with pytest.raises(RowProblem, match="do not spell"):
        token_spans(encoder, ids, encoder.prompt_ids(PROMPT)[-1], "1+1=2")


def test_scores_as_texts_and_capital_types_weigh_what_they_mean():
    one = read_report(
        json.dumps(report_of(sentence("A.", "B.", "3", "Image Recognition"))), "A."
    ).sentences[0]
    assert severity_weight(one, SETTINGS) == 1.5
    assert image_weight(one, SETTINGS) == 3.0
    assert [
        severity_weight(
            read_report(json.dumps(report_of(sentence("A.", score=n))), "A.").sentences[0], SETTINGS
        )
        for n in (4, 3, 2, 1)
    ] == [1.0, 1.5, 2.0, 2.5]


def test_what_is_added_weighs_one():
    report = read_report(
        json.dumps(report_of(sentence("A.", "B.", 1), added="C.")), "A.", add_missing=True
    )
    _, of_rev = spans(report, SETTINGS)
    assert [(one.start, one.end, one.weight) for one in of_rev] == [(0, 2, 2.5), (3, 5, 1.0)]
