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
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    Gemma4AudioFeatureExtractor,
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    Gemma4Processor,
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
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "grey": (90,) * 3}
QWEN = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
GEMMA = {"boi_token": "<boi>", "image_token": "<soft>", "eoi_token": "<eoi>"}
SOUND = {"audio_token": "<sound>", "boa_token": "<boa>", "eoa_token": "<eoa>"}
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "<user>", "<assistant>", *QWEN]
SPECIAL += [*GEMMA.values(), *SOUND.values(), "<|video|>"]
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


def tokenizer(**named: str) -> PreTrainedTokenizerFast:
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=[one for one in SPECIAL[4:] if one not in named.values()],
        **named,
    )


class Still:
    """Without videos, whose processor needs torchvision."""

    def check_argument_for_proper_class(self, argument_name, argument):
        if argument_name != "video_processor":
            super().check_argument_for_proper_class(argument_name, argument)


class StillQwen(Still, Qwen2_5_VLProcessor):
    """A processor of still pictures."""


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


class StillGemma(Still, Gemma4Processor):
    """A processor of still pictures."""


def gemma_3_processor() -> Gemma3Processor:
    return Gemma3Processor(
        image_processor=Gemma3ImageProcessorPil(size={"height": 28, "width": 28}),
        tokenizer=tokenizer(**GEMMA),
        chat_template=template("<boi> "),
        image_seq_length=4,
    )


def gemma_4_processor() -> StillGemma:
    return StillGemma(
        feature_extractor=Gemma4AudioFeatureExtractor(),
        image_processor=Gemma4ImageProcessorPil(max_soft_tokens=70),
        tokenizer=tokenizer(**GEMMA, **SOUND),
        video_processor=None,
        chat_template=template("<soft> "),
        image_seq_length=70,
    )


TEXT_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "layer_types": ["sliding_attention", "full_attention"],
}


def gemma_3(folder: Path) -> str:
    """A Gemma-3-class model, four tokens to a picture; its processor is `gemma_3_processor`."""
    words = tokenizer(**GEMMA)
    config = Gemma3Config(
        text_config={"vocab_size": len(words), **TEXT_SIZES},
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
            "vision_use_head": False,
        },
        mm_tokens_per_image=4,
        boi_token_index=words.boi_token_id,
        eoi_token_index=words.eoi_token_id,
        image_token_index=words.image_token_id,
    )
    return saved(Gemma3ForConditionalGeneration, config, words, folder)


def gemma_4(folder: Path) -> str:
    """A Gemma-4-class model; its processor is `gemma_4_processor`."""
    words = tokenizer(**GEMMA, **SOUND)
    config = Gemma4Config(
        text_config={
            "vocab_size": len(words),
            "vocab_size_per_layer_input": len(words),
            "hidden_size_per_layer_input": 8,
            "num_kv_shared_layers": 0,
            "global_head_dim": 16,
            "use_bidirectional_attention": "vision",
            **TEXT_SIZES,
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "position_embedding_size": 630,
            "default_output_length": 70,
        },
        audio_config=None,
        boi_token_id=words.boi_token_id,
        eoi_token_id=words.eoi_token_id,
        image_token_id=words.image_token_id,
        video_token_id=words.convert_tokens_to_ids("<|video|>"),
    )
    return saved(Gemma4ForConditionalGeneration, config, words, folder)


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
