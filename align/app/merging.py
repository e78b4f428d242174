# pyright: basic
"""`align merge`: an adapter into its base, and a Llama as one GGUF file.

Weights are added up in float32 and rounded once, to the type they are saved in. What lies on disk
is loaded again and compared with base and adapter on a few sentences before it gets its name.
"""

from __future__ import annotations

import gc
import shutil
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from transformers import GenerationConfig

from align.app.exporting import export
from align.app.named_models import NamedModel, named_model
from align.app.probing import difference, probe_logps, probe_rows
from align.errors import NumericalError, RecipeError
from align.policies.loading import load_config
from align.policies.model import Model
from align.publishing.gguf_file import GGUFType, check_gguf
from align.publishing.origins import shown_name
from align.runs.manifest import damage, publish
from align.runs.versions import versions
from align.stages.policies import load_whole

MergedType: TypeAlias = Literal["bfloat16", "float16", "float32"]

# Nats per token: adding up in float32 leaves rounding, half precision what the type leaves.
SUM_TOLERANCE = 1e-3
MEAN_TOLERANCE = {"float32": 1e-4, "float16": 0.05, "bfloat16": 0.1}


def merge(
    word: str,
    output: Path | None,
    *,
    dtype: MergedType | None,
    base: str | None,
    dequantize: bool,
    gguf: Path | None,
    gguf_type: GGUFType,
) -> str:
    """Merges an adapter into its base and says how far the result is from the two.

    Args:
        word: a run's folder or an adapter's folder; for a GGUF file alone any whole model.
        output: the folder to make; None takes `merged` in the run's folder, or the adapter's
            folder with `-merged` behind its name.
        dtype: type that is saved; None takes the one that the base was saved in.
        base: where the base lies, in place of where it lay in training.
        dequantize: merge an adapter of a 4- or 8-bit base into the unquantised base.
        gguf: a GGUF file to write too.
        gguf_type: of its matrices.

    Raises:
        RecipeError: nothing to merge, a quantised base, or an output that is there already.
        NumericalError: the merged model answers otherwise than base and adapter.
        MachineError: gguf is not installed.
    """
    named = named_model(word, base=base)
    if gguf is not None and gguf.exists():
        raise RecipeError(f"{gguf} is there already: name another file, or delete it.")
    if named.base is None:
        if gguf is None and not Path(word).expanduser().is_dir():
            raise RecipeError(
                f"There is no folder {word!r}: give a run's folder, or an adapter's folder."
            )
        if gguf is None:
            raise RecipeError(
                f"{word} is no adapter's folder but a whole model, so there is nothing to merge. "
                "With --gguf FILE it is written as a GGUF file."
            )
        return export(named.folder, gguf, gguf_type)
    final = output or _default_output(named)
    _refuse(named, final, dequantize)
    if gguf is not None:
        # Better refused now than behind a merge that takes long.
        check_gguf(load_config(named.section, named.base), named.tokenizer())
    lines = [_merged(named, final, dtype)]
    if gguf is not None:
        lines.append(export(str(final), gguf, gguf_type))
    return "\n".join(lines)


def _default_output(named: NamedModel) -> Path:
    folder = Path(named.folder)
    if named.run is not None:
        return named.run / "merged"
    return folder.with_name(f"{folder.resolve().name}-merged")


def _refuse(named: NamedModel, final: Path, dequantize: bool) -> None:
    if final.exists():
        raise RecipeError(f"{final} is there already: name another folder with -o, or delete it.")
    if (Path(named.folder) / "manifest.json").is_file():
        wrong = damage(Path(named.folder))
        if wrong is not None:
            raise RecipeError(f"{named.folder} is not whole: {wrong}. Make or fetch it again.")
    assert named.base is not None
    if getattr(load_config(named.section, named.base), "quantization_config", None) is not None:
        raise RecipeError(
            f"The base {named.base} is stored quantised, and its weights have no room for a sum: "
            "name the base as it was before with --base."
        )
    bits = next((b for b in (4, 8) if getattr(named.section, f"load_in_{b}bit")), None)
    if bits is None and dequantize:
        raise RecipeError("--dequantize: the base is not quantised; take the option out.")
    if bits is not None and not dequantize:
        raise RecipeError(
            f"The adapter was trained on a {bits}-bit base, whose weights have no room for a sum. "
            "With --dequantize it is added to the base as it was before quantisation, which is "
            "another model than the one that was trained."
        )


def _merged(named: NamedModel, final: Path, dtype: MergedType | None) -> str:
    assert named.base is not None
    tokenizer = named.tokenizer()
    plain = named.section.model_copy(
        update={"dtype": "float32", "load_in_4bit": False, "load_in_8bit": False}
    )
    exact = NamedModel(named.word, plain, named.folder, named.base, named.run)
    rows = probe_rows(tokenizer)
    model = exact.model()
    with model.disable_adapter():
        before = probe_logps(model, rows)
    adapted = probe_logps(model, rows)
    moved = difference(before, adapted)
    try:
        model = model.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise NumericalError(
            f"The adapter of {named.word} cannot be merged ({error}): its weights are no numbers."
        ) from error
    except (NotImplementedError, AttributeError) as error:
        raise RecipeError(
            f"peft cannot merge this kind of adapter ({str(error).splitlines()[0]}): serve it "
            "beside its base."
        ) from error
    summed = difference(adapted, probe_logps(model, rows))
    if summed.largest > SUM_TOLERANCE:
        raise NumericalError(
            f"The sum of base and adapter answers otherwise than the two ({summed}): nothing was "
            "written. The adapter was probably trained on another base; name it with --base."
        )
    saved_as: MergedType = dtype or _saved_type(plain, named.base)
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _save(model.to(getattr(torch, saved_as)), tokenizer, partial)
        del model
        gc.collect()
        as_saved = Model(model_name_or_path=str(partial), trust_remote_code=plain.trust_remote_code)
        # In float32, so that what is measured is what was saved, and not how it is computed with.
        loaded = load_whole(as_saved, str(partial))
        rounded = difference(adapted, probe_logps(loaded, rows))
        if not rounded.mean <= MEAN_TOLERANCE[saved_as]:
            raise NumericalError(
                f"What was saved in {saved_as} answers otherwise than base and adapter "
                f"({rounded}), so it was deleted. Save it with --dtype float32."
            )
        said = {
            "adapter": shown_name(named.word),
            "base": shown_name(named.section.model_name_or_path),
            "dtype": saved_as,
            "moved": vars(moved),
            "difference": vars(rounded),
            "was_quantised": named.section.load_in_4bit or named.section.load_in_8bit,
        }
        (partial / "README.md").write_text(_card(said, str(moved), str(rounded)), encoding="utf-8")
        publish(partial, final, {"versions": versions(), "merged": said})
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    lines = [
        f"{final}: base and adapter in one, {saved_as}",
        f"the adapter moves the base by {moved}",
        f"the merged model is from both by {rounded}",
    ]
    if not moved.largest:
        lines.append("warning: the adapter changes nothing; is it the one you mean?")
    elif rounded.mean > moved.mean / 2:
        lines.append(
            f"warning: rounding to {saved_as} is more than half of what the adapter moves; "
            "--dtype float32 keeps it"
        )
    return "\n".join(lines)


def _saved_type(section: Model, base: str) -> MergedType:
    saved = str(getattr(load_config(section, base), "dtype", None)).removeprefix("torch.")
    if saved not in MEAN_TOLERANCE:
        return "float32"
    found: Any = saved
    return found


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # `transformers serve` heeds a request's temperature only where this is set.
    config = GenerationConfig.from_pretrained(folder)
    if not config.do_sample:
        config.do_sample = True
        config.save_pretrained(folder)


def _card(said: dict[str, Any], moved: str, rounded: str) -> str:
    quantised = (
        " The adapter was trained on the quantised base and is added to the unquantised one here."
        if said["was_quantised"]
        else ""
    )
    return (
        "\n\n".join(
            [
                "---\nlibrary_name: transformers\npipeline_tag: text-generation\n"
                "tags: [align-toolkit, merged]\n---",
                f"# {said['adapter']}, merged",
                f"The adapter `{said['adapter']}` added to its base `{said['base']}` in float32 "
                f"and saved in {said['dtype']}, by `align merge`.{quantised}",
                f"On four short answers the adapter moves the base's log-probs by {moved}; this "
                f"model is from base and adapter by {rounded}.",
                "The licences of the base and of the adapter's data apply.",
                "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
                'model = AutoModelForCausalLM.from_pretrained("namespace/name")\n'
                'tokenizer = AutoTokenizer.from_pretrained("namespace/name")\n```',
            ]
        )
        + "\n"
    )
