"""The LLaVA of the world `scenes`: processor, model with random weights, batches to learn from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from align.worlds.chat import BOS, END, PAD, SPECIAL_TOKENS, UNKNOWN, chat_tokenizer
from align.worlds.scene_words import COLOURS, SHAPES

IMAGE = "<image>"
SIDE, PATCH = 28, 14
MAX_LENGTH = 128
WORDS = tuple(
    word
    for line in ("what is there a in the", *COLOURS, *SHAPES, "top bottom left right")
    for word in line.split(" ")
)
# Lists of parts, because pictures are parts; otherwise as in the other worlds.
CHAT_TEMPLATE = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{{- '<' + message['role'] + '>' }}"
    "{%- for part in message['content'] %}"
    "{%- if part['type'] == 'image' %}{{- '<image>' }}{%- else %}{{- part['text'] }}{%- endif %}"
    "{%- endfor %}"
    "{{- eos_token }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<assistant>' }}{%- endif %}"
)
IGNORED = -100


def processor() -> LlavaProcessor:
    """Words with the space before them are tokens; a picture is four."""
    tokens = [*SPECIAL_TOKENS, IMAGE, ".", "?", *WORDS, *(f" {word}" for word in WORDS)]
    backend = Tokenizer(
        models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=UNKNOWN)
    )
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[a-z]+|."), "isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = chat_tokenizer(backend, MAX_LENGTH)
    turns = [token for token in SPECIAL_TOKENS if token not in (PAD, BOS, END, UNKNOWN)]
    tokenizer.add_special_tokens({"additional_special_tokens": [*turns, IMAGE]})
    tokenizer.chat_template = CHAT_TEMPLATE
    side = {"height": SIDE, "width": SIDE}
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=side),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        # The class token, which "default" leaves out.
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def model(
    made: LlavaProcessor, *, layers: int, width: int, seed: int
) -> LlavaForConditionalGeneration:
    """Random weights; the caller's random state is left alone."""
    tokenizer: Any = made.tokenizer  # type: ignore[attr-defined]
    vocabulary = tokenizer.get_vocab()
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=SIDE,
            patch_size=PATCH,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=MAX_LENGTH,
            tie_word_embeddings=False,
            bos_token_id=vocabulary[BOS],
            eos_token_id=vocabulary[END],
            pad_token_id=vocabulary[PAD],
        ),
        image_token_index=vocabulary[IMAGE],
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlavaForConditionalGeneration(config)


def batch(
    made: LlavaProcessor, question: str, answers: Sequence[str], pictures: Sequence[np.ndarray]
) -> dict[str, Tensor]:
    """Token ids, labels on the answers, and pixels as the processor makes them, but all at once."""
    tokenizer: Any = made.tokenizer  # type: ignore[attr-defined]
    count = (SIDE // PATCH) ** 2
    prompt = f"{BOS}<user>{IMAGE * count}{question}{END}<assistant>"
    before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    rows = [
        [*before, *tokenizer(f"{answer}{END}", add_special_tokens=False)["input_ids"]]
        for answer in answers
    ]
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    labels = torch.full((len(rows), width), IGNORED)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for n, row in enumerate(rows):
        ids[n, : len(row)] = torch.tensor(row)
        labels[n, len(before) : len(row)] = torch.tensor(row[len(before) :])
        mask[n, : len(row)] = 1
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": labels,
        "pixel_values": pixels(made, pictures),
    }


def pixels(made: LlavaProcessor, pictures: Sequence[np.ndarray]) -> Tensor:
    """[N, 3, 28, 28], what the processor makes of pictures that need no resizing."""
    own: Any = made.image_processor  # type: ignore[attr-defined]
    mean, std = (torch.tensor(one)[None, :, None, None] for one in (own.image_mean, own.image_std))
    stacked = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float()
    return (stacked * own.rescale_factor - mean) / std
