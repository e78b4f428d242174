import gzip
import json

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from align.errors import RecipeError
from align.worlds import world
from align.worlds.bytes import Bytes, bytes_tokenizer
from align.worlds.sums import Sums

TEXTS = [
    "",
    "The quick brown fox doesn't jump.",
    "  two  spaces\n\ttab\r\n",
    "Grüße, 日本語, 🙂, \x00 and \x7f",
    "<user> is text here</user>",
]


@pytest.fixture(scope="module")
def tokenizer():
    return bytes_tokenizer(2048)


@pytest.mark.parametrize("text", TEXTS)
def test_every_text_gives_itself_back(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    assert tokenizer.decode(ids) == text
    assert not set(ids) & set(tokenizer.all_special_ids)


def test_english_takes_about_half_its_bytes(tokenizer, shared_data):
    path = shared_data / "hh_rlhf" / "hh_rlhf_harmless-base_test.jsonl.gz"
    with gzip.open(path, "rt") as file:
        texts = [json.loads(line)["chosen"] for line, _ in zip(file, range(200), strict=False)]
    tokens = sum(len(ids) for ids in tokenizer(texts, verbose=False)["input_ids"])
    assert 2.0 < sum(len(text.encode()) for text in texts) / tokens < 2.4


def test_the_saved_folder_is_an_ordinary_one(align_cache, tokenizer):
    folder = Bytes().base_model()
    assert Bytes().base_model() == folder
    loaded = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    text = loaded.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<bos><system>Be kind.<end><user>Hi<end><assistant>"
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.pad_token_id != loaded.eos_token_id
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.vocab_size == len(loaded)
    assert not list(folder.glob("*.bin"))


def test_the_merges_do_not_change_between_builds(tokenizer):
    again = bytes_tokenizer(2048)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_worlds_by_name():
    assert isinstance(world("world:sums"), Sums)
    assert isinstance(world("bytes"), Bytes)
    assert world("sums").judged_by == "scores"
    assert world("world:bytes").judged_by is None
    with pytest.raises(RecipeError, match=r"did you mean `?world:sums"):
        world("world:sum")
    with pytest.raises(RecipeError, match="world:bytes has no judge"):
        world("world:bytes").judge()
