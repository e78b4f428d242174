"""Estimators made, written to folders, and read back.

`make_estimator` is one stage of a loop or of a data build (labelled pairs in, a folder out), and
`open_estimator` what the workers of the pipeline call.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from align.data.pairs import PreferencePair
from align.errors import DataError, RecipeError
from align_data.uncertainty.estimator import PairClassifier, PairEstimator, padding_id
from align_data.uncertainty.fitting import Fit, fit
from align_data.uncertainty.likelihood import LikelihoodEstimator, fit_likelihood
from align_data.uncertainty.settings import AnyEstimator, Classifier, Likelihood

ADAPTER = "adapter_config.json"
SCALE = "likelihood.json"
FIT = "fit.json"


def make_estimator(
    settings: AnyEstimator,
    backbone: str | Path,
    labelled: Sequence[PreferencePair],
    folder: Path,
    *,
    dtype: Any = torch.float32,
    device: str = "cpu",
    check: Callable[[], None] = lambda: None,
) -> Fit:
    """Trains the estimator and fills `folder`, which exists; the same files each time.

    Args:
        settings: of the recipe.
        backbone: folder of a causal language model.
        labelled: pairs whose labels are trusted.
        folder: to be filled.
        dtype: of the backbone's weights.
        device: where it is trained.
        check: called before every step; raises where the process is to end.

    Raises:
        DataError: no labelled pair can be read.
        NumericalError: the loss is no number.
        RecipeError: the backbone cannot carry this estimator.
    """
    if isinstance(settings, Likelihood):
        model, tokenizer = _language_model(backbone, dtype, device)
        scale, found = fit_likelihood(model, tokenizer, labelled, settings)
        _write(folder / SCALE, {"scale": scale})
    else:
        model, tokenizer = new_classifier(backbone, settings, dtype=dtype, device=device)
        found = fit(model, tokenizer, labelled, settings, check=check)
        _save_classifier(model, tokenizer, settings, folder)
    _write(folder / FIT, found.to_json())
    return found


def open_estimator(
    settings: AnyEstimator,
    backbone: str | Path,
    folder: str | Path,
    *,
    seed: int,
    dtype: Any = torch.float32,
    device: str = "cpu",
) -> PairEstimator:
    """What `make_estimator` wrote, ready to read pairs.

    Args:
        settings: of the recipe.
        backbone: the one that it was made from.
        folder: that was filled.
        seed: of the networks with units left out.
        dtype: of the weights.
        device: where it is put.

    Raises:
        DataError: the folder holds no such estimator.
    """
    folder = Path(folder)
    if isinstance(settings, Likelihood):
        try:
            scale = float(json.loads((folder / SCALE).read_text("utf-8"))["scale"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{folder} holds no fitted estimator of the kind `likelihood` ({SCALE} is missing "
                "or broken): take estimator.path out, so that one is fitted."
            ) from error
        model, tokenizer = _language_model(backbone, dtype, device)
        return LikelihoodEstimator(model, tokenizer, settings, scale=scale, seed=seed)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if (folder / ADAPTER).is_file():
        whole = _headed(backbone, tokenizer, dtype, settings.seed)
        model = _placed(PeftModel.from_pretrained(whole, str(folder)), device)
    else:
        model = _placed(_headed(folder, tokenizer, dtype, settings.seed), device)
    return PairClassifier(model, tokenizer, settings, seed=seed)


def new_classifier(
    backbone: str | Path, settings: Classifier, *, dtype: Any = torch.float32, device: str = "cpu"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A backbone with a fresh head, and the adapter of the recipe; not trained yet.

    Raises:
        RecipeError: transformers has no classifying head for this architecture.
    """
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    model = _headed(backbone, tokenizer, dtype, settings.seed)
    if settings.lora is not None:
        model = _adapted(model, settings)
    return _placed(model, device), tokenizer


def _headed(
    folder: str | Path, tokenizer: PreTrainedTokenizerBase, dtype: Any, seed: int
) -> PreTrainedModel:
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return AutoModelForSequenceClassification.from_pretrained(
                folder, num_labels=2, pad_token_id=padding_id(tokenizer), dtype=dtype
            )
    except ValueError as error:
        raise RecipeError(
            f"transformers has no classifying head for the architecture of {folder}: choose "
            "another estimator.backbone, or `kind: likelihood`."
        ) from error


def _adapted(model: PreTrainedModel, settings: Classifier) -> PreTrainedModel:
    assert settings.lora is not None
    # Units are left out by `dropout.Thinning`, so that estimation can draw the same ones again.
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=settings.lora.r,
        lora_alpha=settings.lora.alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
    )
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        return cast("PreTrainedModel", get_peft_model(model, config))


def _save_classifier(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: Classifier,
    folder: Path,
) -> None:
    adapters: Any = getattr(model, "peft_config", {})
    for config in adapters.values():
        # As the recipe names it: the folder that it lay in says nothing to others.
        named = Path(settings.backbone)
        config.base_model_name_or_path = named.name if named.is_absolute() else settings.backbone
    # Left to itself peft asks the Hub whether the backbone's embeddings were changed; they are not.
    extra: dict[str, Any] = {"save_embedding_layers": False} if adapters else {}
    model.save_pretrained(folder, **extra)
    # peft's own card names the backbone's folder.
    (folder / "README.md").unlink(missing_ok=True)
    tokenizer.save_pretrained(folder)


def _language_model(
    backbone: str | Path, dtype: Any, device: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    model = AutoModelForCausalLM.from_pretrained(backbone, dtype=dtype)
    return _placed(model, device), AutoTokenizer.from_pretrained(backbone)


def _placed(model: Any, device: str) -> PreTrainedModel:
    return model.to(device).eval()


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n", "utf-8")
