"""Tiny vision-language models with their processors, and rows about squares of one colour."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
from datasets import Dataset
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "grey": (90,) * 3}
QWEN = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "<user>", "<assistant>", *QWEN]
WORDS = ["what", "colour", "is", "it", "?", *COLOURS, "and", "very", "0", "1", "x"]


def template(image: str) -> str:
    return (
        "{{- '<s>' }}{%- for m in messages %}{{- ' <' + m['role'] + '> ' }}"
        "{%- for p in m['content'] %}{%- if p['type'] == 'image' %}{{- '"
        + image
        + "' }}{%- else %}{{- p['text'] }}{%- endif %}{%- endfor %}"
        "{%- if m['role'] == 'assistant' %}{{- ' </s>' }}{%- endif %}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- ' <assistant> ' }}{%- endif %}"
    )


def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=SPECIAL[4:],
    )


class StillQwen(Qwen2_5_VLProcessor):
    """Without videos, whose processor needs torchvision."""

    def check_argument_for_proper_class(self, argument_name, argument):
        if argument_name != "video_processor":
            super().check_argument_for_proper_class(argument_name, argument)


def llava(folder: Path) -> str:
    """A LLaVA-class model of 0.1 million weights, and its processor."""
    words = tokenizer()
    side = {"height": 28, "width": 28}
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=side),
        tokenizer=words,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template("<image> "),
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=28,
            patch_size=14,
        ),
        text_config=LlamaConfig(
            vocab_size=len(words),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        ),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )
    return saved(LlavaForConditionalGeneration, config, processor, folder)


def qwen_processor() -> StillQwen:
    return StillQwen(
        image_processor=Qwen2VLImageProcessorPil(
            patch_size=14,
            merge_size=2,
            temporal_patch_size=2,
            size={"shortest_edge": 28 * 28, "longest_edge": 56 * 56},
        ),
        tokenizer=tokenizer(),
        chat_template=template("<|vision_start|> <|image_pad|> <|vision_end|> "),
    )


def qwen(folder: Path) -> str:
    """A Qwen2.5-VL-class model of 0.1 million weights; its processor is `qwen_processor`."""
    words = tokenizer()
    start, end, image, video = (words.convert_tokens_to_ids(token) for token in QWEN)
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(words),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [2, 3, 3],
            },
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": 64,
            "patch_size": 14,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        },
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    return saved(Qwen2_5_VLForConditionalGeneration, config, words, folder)


def saved(kind, config, processor, folder: Path) -> str:
    torch.manual_seed(0)
    model = kind(config)
    with torch.no_grad():
        # Far from uniform, so that the picture matters.
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def square(colour: str, size: tuple[int, int] = (28, 28)) -> Image.Image:
    return Image.new("RGB", size, COLOURS[colour])


def rows(n: int = 12) -> list[dict]:
    """What colour is it: the right one is chosen, some other one, said at length, rejected."""
    pairs = list(itertools.permutations(COLOURS, 2))
    return [
        {
            "images": [square(right, (28, 28) if i % 2 else (40, 28))],
            "prompt": [{"role": "user", "content": "what colour is it ?"}],
            "chosen": [{"role": "assistant", "content": right}],
            "rejected": [{"role": "assistant", "content": "very " * (i % 3) + wrong}],
        }
        for i, (right, wrong) in enumerate(itertools.islice(itertools.cycle(pairs), n))
    ]


def dataset(n: int = 12) -> Dataset:
    return Dataset.from_list(rows(n))
