# pyright: basic
"""A Llama with a byte-level BPE as one GGUF file, as llama.cpp and its kin read it.

The format is that of ggml's `docs/gguf.md`; the package `gguf` knows the names of keys and tensors
and packs the blocks. What is ours to get right:

- q and k are written with the two halves of a head's rotary dimensions interleaved: transformers
  turns (i, i + d/2) together, ggml (2i, 2i + 1).
- Tied embeddings are written once, without `output.weight`.
- `tokenizer.ggml.pre` names how text is split before the merges. It is derived from the tokenizer's
  own pre-tokenizer, and one that has no name here is refused: a wrong name would give other tokens.
- Llama 3.1's rotary scaling stands in the tensor `rope_freqs`: by what each frequency is divided.

Other families have other tensors, norms or vocabularies and are refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from align.errors import NumericalError, RecipeError

GGUFType: TypeAlias = Literal["f16", "bf16", "q8_0"]
TYPES: tuple[GGUFType, ...] = get_args(GGUFType)

_CASELESS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# How text is split before the byte alphabet -> llama.cpp's name of that split. None: by the
# byte-level pre-tokenizer's own pattern, which is GPT-2's.
SPLITS: dict[str | None, str] = {
    None: "gpt-2",
    "digits": "smollm",
    rf"{_CASELESS}\p{{N}}{{1,3}}{_REST}": "llama-bpe",
    rf"{_CASELESS}\p{{N}}{_REST}": "qwen2",
}


def write_gguf(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path, kind: GGUFType
) -> None:
    """Writes model and tokenizer; matrices as `kind`, vectors in float32.

    Args:
        model: a Llama, whole, in any float type.
        tokenizer: of it, a byte-level BPE of the library tokenizers.
        path: of the file; what stands there is overwritten.
        kind: bf16 keeps bfloat16 weights exactly; q8_0 has 8.5 bits a weight.

    Raises:
        RecipeError: another family, rotary embedding or tokenizer.
        NumericalError: a weight is beyond what float16 holds.
    """
    import gguf

    config: Any = model.config
    vocabulary = check_gguf(config, tokenizer)
    types = gguf.GGMLQuantizationType
    matrix = {"f16": types.F16, "bf16": types.BF16, "q8_0": types.Q8_0}[kind]
    writer = gguf.GGUFWriter(path, "llama")
    try:
        _write_shape(writer, gguf, config, kind)
        vocabulary.write(writer)
        packed: list[tuple[Tensor, bool, Any]] = []
        for name, tensor, is_rotary in _tensors(model, gguf):
            as_type = types.F32 if tensor.dim() == 1 else _fitting(matrix, tensor, gguf)
            shape = tuple(tensor.shape)
            size = int(np.prod(gguf.quant_shape_to_byte_shape(shape, as_type)))
            if as_type in (types.F32, types.F16):
                writer.add_tensor_info(name, shape, _numpy_type(as_type, gguf), size)
            else:
                # Packed blocks are told by their bytes, whose shape the writer takes back.
                blocks = gguf.quant_shape_to_byte_shape(shape, as_type)
                writer.add_tensor_info(name, blocks, np.dtype(np.uint8), size, raw_dtype=as_type)
            packed.append((tensor, is_rotary, as_type))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        # One tensor at a time: a second copy of the weights would not fit beside a large model.
        for tensor, is_rotary, as_type in packed:
            writer.write_tensor_data(_blocks(tensor, is_rotary, config, as_type, gguf))
    finally:
        writer.close()


def check_gguf(config: Any, tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
    """What of a tokenizer is written, where both it and the model can be.

    Raises:
        RecipeError: another family, rotary embedding or tokenizer.
    """
    _refuse_other_models(config)
    return Vocabulary(tokenizer, config.vocab_size)


def _refuse_other_models(config: Any) -> None:
    if config.model_type != "llama":
        raise RecipeError(
            f"A GGUF file is written of the Llama family only, and this model is a "
            f"{config.model_type}: merge without --gguf, and convert the folder with llama.cpp's "
            "convert_hf_to_gguf.py."
        )
    odd = [key for key in ("attention_bias", "mlp_bias") if getattr(config, key, False)]
    if _rope_type(config) not in ("default", "llama3"):
        odd.append(f"rotary embeddings of type {_rope_type(config)}")
    if config.hidden_act != "silu":
        odd.append(f"the activation {config.hidden_act}")
    if odd:
        raise RecipeError(
            f"This Llama has {', '.join(odd)}, which is not written into a GGUF file here: merge "
            "without --gguf, and convert the folder with llama.cpp's convert_hf_to_gguf.py."
        )


def has_scaled_rotation(config: Any) -> bool:
    """Whether a Llama's rotary frequencies are scaled, as those of Llama 3.1."""
    return _rope_type(config) != "default"


def _rope_type(config: Any) -> str:
    return (config.rope_parameters or {}).get("rope_type", "default")


def _head_size(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _write_shape(writer: Any, gguf: Any, config: Any, kind: GGUFType) -> None:
    files = gguf.LlamaFileType
    head = _head_size(config)
    writer.add_file_type(
        {"f16": files.MOSTLY_F16, "bf16": files.MOSTLY_BF16, "q8_0": files.MOSTLY_Q8_0}[kind]
    )
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _tensors(model: Any, gguf: Any) -> Iterator[tuple[str, Tensor, bool]]:
    """GGUF name, weight, and whether its rows are rotary dimensions of heads."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.config.num_hidden_layers)
    is_tied = model.config.tie_word_embeddings
    if _rope_type(model.config) == "llama3":
        yield "rope_freqs.weight", _rope_divisors(model.config), False
    for name, tensor in model.state_dict().items():
        if is_tied and name == "lm_head.weight":
            continue
        found = names.get_name(name, try_suffixes=(".weight",))
        if found is None:
            raise RecipeError(
                f"The weight {name} has no name in a GGUF file, so it would be lost: merge without "
                "--gguf."
            )
        yield found, tensor, name.endswith(("q_proj.weight", "k_proj.weight"))


def _rope_divisors(config: Any) -> Tensor:
    """[d/2] by what Llama 3.1 divides each rotary frequency."""
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    head = _head_size(config)
    powers = torch.arange(0, head, 2, dtype=torch.float32) / head
    plain = 1.0 / config.rope_parameters["rope_theta"] ** powers
    return plain / scaled.float()


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """[heads x d, ...] with the rows i and i + d/2 of every head side by side."""
    halves = weight.unflatten(0, (heads, 2, weight.shape[0] // heads // 2))
    return halves.transpose(1, 2).flatten(0, 2)


def _fitting(matrix: Any, tensor: Tensor, gguf: Any) -> Any:
    """The type of a matrix; float16 where its rows are no whole blocks."""
    block, _ = gguf.GGML_QUANT_SIZES[matrix]
    return matrix if tensor.shape[-1] % block == 0 else gguf.GGMLQuantizationType.F16


def _numpy_type(as_type: Any, gguf: Any) -> np.dtype[Any]:
    is_full = as_type == gguf.GGMLQuantizationType.F32
    return np.dtype(np.float32 if is_full else np.float16)


def _blocks(tensor: Tensor, is_rotary: bool, config: Any, as_type: Any, gguf: Any) -> Any:
    weight = tensor.detach().cpu().float()
    if is_rotary:
        weight = interleaved(weight, weight.shape[0] // _head_size(config))
    largest = float(weight.abs().max())
    if as_type == gguf.GGMLQuantizationType.F16 and not largest <= np.finfo(np.float16).max:
        raise NumericalError(
            f"A weight of {largest:g} is beyond what float16 holds: write the file with "
            "--gguf-type bf16."
        )
    return gguf.quantize(np.ascontiguousarray(weight.numpy()), as_type)


class Vocabulary:
    """A byte-level BPE's tokens, merges and split, as GGUF keys.

    Raises:
        RecipeError: the tokenizer is another one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        stored: dict[str, Any] = {} if backend is None else json.loads(backend.to_str())
        model = stored.get("model", {})
        if model.get("type") != "BPE" or model.get("byte_fallback") or stored.get("normalizer"):
            raise RecipeError(
                "A GGUF file is written with byte-level BPE tokenizers only (Llama 3, SmolLM, "
                "Qwen2), and this tokenizer is another one: merge without --gguf, and convert the "
                "folder with llama.cpp's convert_hf_to_gguf.py."
            )
        if len(tokenizer) > rows:
            raise RecipeError(
                f"The tokenizer has {len(tokenizer)} tokens and the embedding {rows} rows, so the "
                "last tokens have no weights: save the tokenizer that the model was trained with."
            )
        self.tokenizer = tokenizer
        self.pre = _split_name(stored["pre_tokenizer"])
        self.merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
        self.rows = rows

    def write(self, writer: Any) -> None:
        """Puts the keys into a `gguf.GGUFWriter`."""
        from gguf import TokenType

        tokenizer: Any = self.tokenizer
        by_id = {i: token for token, i in tokenizer.get_vocab().items()}
        added = tokenizer.added_tokens_decoder
        # The embedding may have more rows than there are tokens.
        tokens = [by_id.get(i, f"[PAD{i}]") for i in range(self.rows)]

        def kind(i: int) -> int:
            if i in added:
                return TokenType.CONTROL if added[i].special else TokenType.USER_DEFINED
            return TokenType.NORMAL if i in by_id else TokenType.UNUSED

        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(tokens)
        writer.add_token_types([int(kind(i)) for i in range(self.rows)])
        writer.add_token_merges(self.merges)
        for name in ("bos", "eos", "unk", "pad"):
            i = getattr(tokenizer, f"{name}_token_id")
            if i is not None:
                getattr(writer, f"add_{name}_token_id")(i)
        bos = tokenizer.bos_token_id
        starts = tokenizer("a")["input_ids"][:1]
        writer.add_add_bos_token(bos is not None and starts == [bos])
        writer.add_add_eos_token(False)
        writer.add_add_space_prefix(False)
        if isinstance(tokenizer.chat_template, str):
            writer.add_chat_template(tokenizer.chat_template)


def _split_name(pre: dict[str, Any] | None) -> str:
    """llama.cpp's name for how a tokenizer splits text before its merges."""
    parts = list((pre or {}).get("pretokenizers", [pre] if pre else []))
    last = parts.pop() if parts and parts[-1]["type"] == "ByteLevel" else {}
    split: str | None = None
    is_known = bool(last) and not last["add_prefix_space"] and len(parts) <= 1
    if is_known and parts:
        first = parts[0]
        if first["type"] == "Digits" and first["individual_digits"]:
            split = "digits"
        elif first["type"] == "Split" and first["behavior"] == "Isolated" and not first["invert"]:
            split = first["pattern"].get("Regex")
        # A pattern of its own stands in place of the byte level's; digits stand before it.
        is_known = split in SPLITS and split is not None
        is_known = is_known and last["use_regex"] == (split == "digits")
    elif is_known:
        is_known = last["use_regex"]
    if not is_known:
        raise RecipeError(
            "The tokenizer splits text in a way that has no name in GGUF files here (known are "
            f"those of {', '.join(SPLITS.values())}): merge without --gguf, and convert the folder "
            "with llama.cpp's convert_hf_to_gguf.py."
        )
    return SPLITS[split]
