"""The `model` section of a recipe: which policy, in what precision, with what adapter."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from align.node import Conflict, Node
from align.registry import no_such_world

_COMMIT_HASH = re.compile(r"[0-9a-f]{40}")


class Model(Node):
    """The policy that is trained: where it comes from, its precision, its adapter."""

    model_name_or_path: str = Field(min_length=1)
    """Local folder, Hub id, a small model that `align models fetch` knows (smollm2-135m-instruct),
    or one built in code: world:sums, world:styles, world:scenes, world:bytes."""
    model_revision: str = Field(default="main", min_length=1)
    """Branch, tag or commit hash of a Hub model."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    """Type the weights are loaded in; auto takes the one they were saved in. With load_in_4bit or
    load_in_8bit, what is left out is bfloat16: the type they are computed in."""
    attn_implementation: str = Field(default="auto", min_length=1)
    """Attention backend: auto, eager, sdpa, flash_attention_2, ..."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model; needs a commit hash or a local folder."""
    use_peft: bool = False
    """Train a LoRA adapter in place of all weights."""
    lora_r: int = Field(default=16, ge=1)
    """Rank of the adapter."""
    lora_alpha: int = Field(default=32, ge=1)
    """Scale of the adapter: lora_alpha / lora_r multiplies its output."""
    lora_dropout: float = Field(default=0.05, ge=0, lt=1)
    """Share of the adapter's inputs set to zero while training."""
    lora_target_modules: tuple[str, ...] | None = None
    """Names of the layers that get an adapter; null takes peft's choice for the architecture."""
    lora_target_parameters: tuple[str, ...] | None = None
    """Names of parameters that get an adapter (experts of a mixture)."""
    lora_layers_to_transform: tuple[int, ...] | None = None
    """Numbers of the layers that get an adapter, from 0; null takes all. With the last third alone
    a step is about twice as fast, since no gradient goes further down."""
    lora_modules_to_save: tuple[str, ...] | None = None
    """Layers trained in full beside the adapter."""
    use_rslora: bool = False
    """Scale the adapter by lora_alpha / sqrt(lora_r)."""
    use_dora: bool = False
    """Weight-decomposed LoRA: direction and magnitude apart."""
    load_in_8bit: bool = False
    """Load the frozen weights in 8 bits (bitsandbytes); needs use_peft."""
    load_in_4bit: bool = False
    """Load the frozen weights in 4 bits (QLoRA, bitsandbytes); needs use_peft."""
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    """The 4-bit number format."""
    use_bnb_nested_quant: bool = False
    """Quantise the quantisation constants too: 0.4 bit per weight less."""
    bnb_4bit_quant_storage: Literal["uint8", "float16", "bfloat16", "float32"] | None = None
    """Type in which 4-bit weights are stored; FSDP wants that of the other weights."""

    @model_validator(mode="after")
    def _quantised_are_computed_in_16_bits(self) -> Self:
        if "dtype" not in self.model_fields_set and (self.load_in_4bit or self.load_in_8bit):
            # A default that hangs on another field; no value was read from it yet.
            object.__setattr__(self, "dtype", "bfloat16")
        return self

    @property
    def is_world(self) -> bool:
        """Whether the model is built in code."""
        return self.model_name_or_path.startswith("world:")

    def conflicts(self) -> Iterator[Conflict]:  # noqa: D102
        if (problem := no_such_world(self.model_name_or_path)) is not None:
            yield "model_name_or_path", problem
        pinned = _COMMIT_HASH.fullmatch(self.model_revision) is not None
        if self.trust_remote_code and not pinned and not Path(self.model_name_or_path).is_dir():
            yield (
                "trust_remote_code",
                "code from the Hub runs only from one known commit; write its 40-character hash "
                "as model.model_revision, or use a local folder",
            )
        if self.load_in_4bit and self.load_in_8bit:
            yield "load_in_8bit", "load_in_4bit is on as well; keep one of the two"
        is_word = self.lora_target_modules == ("all-linear",)
        if is_word and self.lora_layers_to_transform is not None:
            yield (
                "lora_layers_to_transform",
                "peft takes it with names of layers alone; write lora_target_modules as "
                "[q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj], or as this "
                "architecture calls them",
            )
        for key in ("load_in_4bit", "load_in_8bit"):
            if getattr(self, key) and not self.use_peft:
                yield key, "quantised weights cannot be trained; add `use_peft: true`"
