"""Eleven small tokenizers with the shapes of the well-known families, built without any file."""

import json
from collections.abc import Callable, Mapping
from functools import cache

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

TEXT = [
    "the quick brown fox jumps over the lazy dog",
    "What is seventeen plus thirty five? Seventeen plus thirty five is fifty two.",
    "Please write a short poem about the sea, and the wind on the water.",
    "I cannot help with that, but here is something else that may be useful:\n\n1. read\n2. write",
    "quick quicker quickest; yes, no, maybe. assistant user system human",
]
WORDS = sorted({word for line in TEXT for word in line.split()})

LLAMA3 = (
    "{{- bos_token }}{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{%- endif %}"
)
CHATML = (
    "{%- if messages[0]['role'] != 'system' %}"
    "{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{%- endif %}"
    "{%- for message in messages %}{{- '<|im_start|>' + message['role'] + '\n'"
    " + message['content'] + '<|im_end|>' + '\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "{% if message['role'] == 'assistant' %}{% set role = 'model' %}"
    "{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    "{% else %}{% set loop_messages = messages %}{% set system = '' %}{% endif %}"
    "{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] '"
    " + (system if loop.index0 == 0 else '') + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL = (
    "{{- bos_token }}{%- for message in messages %}{%- if message['role'] == 'user' %}"
    "{{- '[INST] ' + message['content'] + '[/INST]' }}{%- elif message['role'] == 'system' %}"
    "{{- '[SYSTEM_PROMPT] ' + message['content'] + '[/SYSTEM_PROMPT]' }}"
    "{%- else %}{{- ' ' + message['content'] + eos_token }}{%- endif %}{%- endfor %}"
)
ZEPHYR = (
    "{% for message in messages %}\n"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token }}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n"
    "{% endfor %}"
)
TURNS = (
    "{{- bos_token }}{%- for message in messages %}"
    "{{- '<' + message['role'] + '>' + message['content'] + eos_token }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<assistant>' }}{%- endif %}"
)
PLAIN_NAMES = (
    "{%- for message in messages %}{{- message['role'] | capitalize + ': '"
    " + message['content'] + eos_token + '\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- 'Assistant:' }}{%- endif %}"
)


def _byte_level(special: list[str], *, add_prefix_space: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(
            vocab_size=420,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return tokenizer


def _sentencepiece_bpe(special: list[str]) -> models.BPE:
    """A BPE over '▁' words with byte fallback, as SentencePiece models are converted."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=200, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]
    return models.BPE(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=[tuple(merge) for merge in model["merges"]],
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )


SENTENCEPIECE_DECODER = (
    decoders.Replace("▁", " "),
    decoders.ByteFallback(),
    decoders.Fuse(),
    decoders.Strip(" ", 1, 0),
)


def _fast(backend: Tokenizer, template: str, **tokens: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=template,
        clean_up_tokenization_spaces=False,
        **tokens,
    )


def _with_bos(backend: Tokenizer, bos: str, eos: str | None = None) -> None:
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}" if eos else f"{bos} $A",
        special_tokens=[(token, backend.token_to_id(token)) for token in (bos, eos) if token],
    )


def _llama3() -> PreTrainedTokenizerBase:
    backend = _byte_level(
        [
            "<|begin_of_text|>",
            "<|eot_id|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|end_of_text|>",
        ]
    )
    _with_bos(backend, "<|begin_of_text|>")
    return _fast(backend, LLAMA3, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>")


def _qwen() -> PreTrainedTokenizerBase:
    backend = _byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return _fast(backend, CHATML, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def _gemma() -> PreTrainedTokenizerBase:
    backend = Tokenizer(_sentencepiece_bpe(["<pad>", "<eos>", "<bos>", "<unk>"]))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence(list(SENTENCEPIECE_DECODER[:3]))
    # The first releases hold the turn markers as ordinary added tokens.
    backend.add_tokens([AddedToken("<start_of_turn>"), AddedToken("<end_of_turn>")])
    backend.add_tokens([AddedToken("\n\n", normalized=False)])
    _with_bos(backend, "<bos>")
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return _fast(backend, GEMMA, **names)


def _llama2() -> PreTrainedTokenizerBase:
    backend = Tokenizer(_sentencepiece_bpe(["<unk>", "<s>", "</s>"]))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(list(SENTENCEPIECE_DECODER))
    _with_bos(backend, "<s>")
    return _fast(backend, LLAMA2, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def _legacy_llama() -> PreTrainedTokenizerBase:
    backend = Tokenizer(_sentencepiece_bpe(["<unk>", "<s>", "</s>"]))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(list(SENTENCEPIECE_DECODER))
    backend.add_special_tokens([AddedToken("<|im_start|>"), AddedToken("<|im_end|>")])
    # A suffix after plain text, which a prompt must not end with.
    _with_bos(backend, "<s>", "</s>")
    return _fast(backend, CHATML, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def _mistral() -> PreTrainedTokenizerBase:
    backend = _byte_level(
        ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"]
    )
    _with_bos(backend, "<s>")
    return _fast(backend, MISTRAL, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def _zephyr() -> PreTrainedTokenizerBase:
    chars = sorted({c for line in TEXT for c in line if not c.isspace()} | set("<>|/_[]\n▁S"))
    vocab = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)]
    vocab += [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    vocab += [(char, -6.0) for char in chars]
    vocab += [("▁" + word, -8.0) for word in WORDS if len(word) > 2]
    backend = Tokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    backend.decoder = decoders.Sequence(list(SENTENCEPIECE_DECODER))
    backend.add_special_tokens([AddedToken("<unk>"), AddedToken("<s>"), AddedToken("</s>")])
    _with_bos(backend, "<s>")
    return _fast(backend, ZEPHYR, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def _chars() -> PreTrainedTokenizerBase:
    special = ["<pad>", "<bos>", "<end>", "<unk>", "<user>", "<assistant>", "<system>"]
    chars = [chr(c) for c in range(32, 127)] + ["\n"]
    backend = Tokenizer(
        models.WordLevel({t: i for i, t in enumerate([*special, *chars])}, unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(special)
    return _fast(
        backend,
        TURNS,
        bos_token="<bos>",
        eos_token="<end>",
        pad_token="<pad>",
        unk_token="<unk>",
    )


def _words() -> PreTrainedTokenizerBase:
    """Whole words: it knows few, and cannot spell a control token at all."""
    special = ["<pad>", "<bos>", "<end>", "<unk>", "<user>", "<assistant>", "<system>"]
    backend = Tokenizer(
        models.WordLevel({t: i for i, t in enumerate([*special, *WORDS])}, unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(special)
    return _fast(
        backend,
        TURNS,
        bos_token="<bos>",
        eos_token="<end>",
        pad_token="<pad>",
        unk_token="<unk>",
    )


def _gpt2() -> PreTrainedTokenizerBase:
    """One token is everything: bos, eos, unk and pad; plain text gets a space in front."""
    end = "<|endoftext|>"
    backend = _byte_level([end], add_prefix_space=True)
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), end)
    return _fast(backend, PLAIN_NAMES, **names)


def _byt5() -> PreTrainedTokenizerBase:
    """The only one that is Python and not the Rust library."""
    tokenizer = ByT5Tokenizer(extra_ids=4)
    tokenizer.chat_template = PLAIN_NAMES
    return tokenizer


BUILDERS: Mapping[str, Callable[[], PreTrainedTokenizerBase]] = {
    "llama3": _llama3,
    "qwen": _qwen,
    "gemma": _gemma,
    "llama2": _llama2,
    "legacy_llama": _legacy_llama,
    "mistral": _mistral,
    "zephyr": _zephyr,
    "chars": _chars,
    "words": _words,
    "gpt2": _gpt2,
    "byt5": _byt5,
}
# Decoding gives back every character, white space included.
LOSSLESS = frozenset({"llama3", "qwen", "mistral", "gemma", "byt5"})
# The template refuses a system turn.
WITHOUT_SYSTEM = frozenset({"gemma"})


@cache
def tokenizer_in_code(name: str) -> PreTrainedTokenizerBase:
    return BUILDERS[name]()
