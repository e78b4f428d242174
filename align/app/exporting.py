# pyright: basic
"""A whole model as one GGUF file, read back before it gets its name."""

from __future__ import annotations

import gc
import logging
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.quantization_config import GgufConfig

from align.app.named_models import named_model
from align.app.probing import PROBE, difference, probe_logps, probe_rows
from align.errors import NumericalError, RecipeError
from align.policies.loading import load_config, reads_images
from align.publishing.gguf_file import GGUFType, has_scaled_rotation, write_gguf

logger = logging.getLogger("align")

# Nats per token on average. The half-precision types keep what half-precision weights are.
TOLERANCE = {"bf16": 0.05, "f16": 0.05, "q8_0": 0.3}
INSTEAD = "Convert the folder with llama.cpp's convert_hf_to_gguf.py instead."


def export(folder: str, path: Path, kind: GGUFType) -> str:
    """Writes a whole model as a GGUF file, and says how far what transformers reads is from it.

    Args:
        folder: of the model, or its Hub id.
        path: of the file, which is not there yet.
        kind: type of the matrices.

    Raises:
        RecipeError: another family than Llama, or another tokenizer than a byte-level BPE.
        NumericalError: what is read back answers otherwise; nothing is left.
        MachineError: gguf is not installed.
    """
    named = named_model(folder)
    tokenizer = named.tokenizer()
    if reads_images(load_config(named.section, named.folder)):
        raise RecipeError("A model that reads pictures is not written into a GGUF file here.")
    model = named.model()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial.gguf")
    try:
        write_gguf(model, tokenizer, partial, kind)
        rows = probe_rows(tokenizer)
        before = probe_logps(model, rows)
        dtype, device = model.dtype, model.device
        # transformers does not read the scaling of rotary embeddings out of a file.
        config = model.config if has_scaled_rotation(model.config) else None
        del model
        gc.collect()
        logger.info("Reading %s back with transformers.", path)
        apart = difference(before, probe_logps(read_back(partial, dtype, config).to(device), rows))
        _check_tokens(partial, tokenizer)
        if not apart.mean <= TOLERANCE[kind]:
            raise NumericalError(
                f"The GGUF file answers otherwise than the model ({apart}), so it was deleted. "
                f"{INSTEAD}"
            )
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    size = path.stat().st_size / 1e6
    return f"{path}: {kind}, {size:,.1f} MB; read back it is from the model by {apart}"


def read_back(path: Path, dtype: Any, config: Any | None) -> Any:
    """The model that transformers makes of a GGUF file.

    Args:
        path: of the file.
        dtype: of the weights in memory.
        config: in place of what the file says.
    """
    options: dict[str, Any] = {"gguf_file": path.name, "dtype": dtype}
    if config is not None:
        options["config"] = config
    plain = GgufConfig(gguf_file=path.name, dequantize=True)
    found: Any = AutoModelForCausalLM
    return found.from_pretrained(path.parent, quantization_config=plain, **options)


def _check_tokens(path: Path, tokenizer: Any) -> None:
    named: Any = {"gguf_file": path.name}
    read = AutoTokenizer.from_pretrained(path.parent, **named)
    texts = [text for pair in PROBE for text in pair]
    for text in (*texts, "na\u00efve caf\u00e9, \u65e5\u672c\n\n\tx = 1234567"):
        if read(text)["input_ids"] != tokenizer(text)["input_ids"]:
            raise NumericalError(
                "The tokenizer in the GGUF file makes other tokens than the model's, so the file "
                f"was deleted. {INSTEAD}"
            )
