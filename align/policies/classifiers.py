# pyright: basic
"""Sequence classifiers with one output: reward models and preference models.

The head is kept in float32 whatever the other weights' type: a score in bfloat16 has 8 bits, so
scores around 4 would come in steps of 1/32 and pairs would tie for no reason.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from peft import PeftConfig, PeftModel
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from align.errors import RecipeError
from align.policies.fetched import folder_of
from align.policies.loaded import evaluating
from align.policies.loading import loading_options
from align.policies.model import Model
from align.policies.quantization import keep_gradients_on_cpu
from align.policies.start import LOADING
from align.progress import progress
from align.reference import ConfigOnly

ClassifierKind = Literal["reward", "preference_model"]

ABOUT = "classifier.json"
"""Beside a classifier's weights: what it was trained for, on which rows, loaded how."""
HEAD = "score.weight"


class Float32Head(nn.Linear):
    """A head that computes in float32, whatever reaches it and under autocast too."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Scores, [..., 1] float32."""
        with torch.autocast(hidden.device.type, enabled=False):
            return super().forward(hidden.float())


def new_classifier(model: Model, folder: str) -> Any:
    """The start policy of a recipe's `model` section with a head of one output in place of words.

    The head is random, by torch's seed, unless the folder holds a classifier of one output.

    Args:
        model: how weights are loaded.
        folder: folder or hub id of the start policy.

    Raises:
        RecipeError: transformers knows no classifier of this architecture.
    """
    with _without_report_of_the_new_head():
        try:
            found: Any = AutoModelForSequenceClassification.from_pretrained(
                folder, num_labels=1, **loading_options(model, folder)
            )
        except ValueError as error:
            first = str(error).splitlines()[0]
            raise RecipeError(
                f"model.model_name_or_path: transformers makes no sequence classifier of {folder} "
                f"({first[:200]}). Choose a decoder of text, such as Llama, Qwen or Mistral."
            ) from error
    keep_gradients_on_cpu(found)
    head = getattr(found, "score", None)
    if isinstance(head, nn.Linear):
        found.score = _in_float32(head, _saved_head(Path(folder)))
    return found


def _in_float32(head: nn.Linear, saved: torch.Tensor | None) -> Float32Head:
    weight = head.weight if saved is None else saved.to(head.weight.device)
    found = Float32Head(
        head.in_features, head.out_features, bias=False, device="meta", dtype=torch.float32
    )
    found.weight = nn.Parameter(weight.detach().float())
    return found


def _saved_head(folder: Path) -> torch.Tensor | None:
    """The head of a classifier's folder as it was saved: loading rounds it to the model's type."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            if HEAD in tensors.keys():  # noqa: SIM118 - a file of tensors is no mapping
                return tensors.get_tensor(HEAD)
    return None


def one_output(model: Any, of: str) -> tuple[int, int | None]:
    """The padding token and the context length of a classifier that is to judge.

    Args:
        model: a sequence classifier.
        of: what errors call it.

    Raises:
        RecipeError: it has more outputs than one, or no padding token.
    """
    config = model.config.get_text_config()
    if model.config.num_labels != 1:
        raise RecipeError(
            f"The {of} has {model.config.num_labels} outputs and a judge needs one "
            "score: choose a sequence classifier with num_labels 1."
        )
    if config.pad_token_id is None:
        # Without it transformers reads the score off the last slot, padding or not.
        raise RecipeError(
            f"The {of}'s config has no pad_token_id, so it cannot tell where a row "
            "ends: set model.config.pad_token_id to the tokenizer's."
        )
    return int(config.pad_token_id), getattr(config, "max_position_embeddings", None)


def scores_of(
    model: Any, rows: Sequence[Sequence[int]], *, pad: int, batch_size: int, title: str
) -> list[float]:
    """The model's own logit of every row, in their order.

    Rows are batched by length, which moves scores by rounding only.

    Args:
        model: with one output, on its device; left as it was found.
        rows: token ids.
        pad: the id that the model's configuration calls padding.
        batch_size: rows of one forward pass.
        title: what is said to be going on, where it takes long.
    """
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    found = [0.0] * len(rows)
    with evaluating(model), progress(title, len(order)) as advance:
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            width = len(rows[places[-1]])
            ids = [[*rows[p], *[pad] * (width - len(rows[p]))] for p in places]
            mask = [[1] * len(rows[p]) + [0] * (width - len(rows[p])) for p in places]
            logits = model(
                input_ids=torch.tensor(ids).to(model.device),
                attention_mask=torch.tensor(mask).to(model.device),
                use_cache=False,
            ).logits
            for place, value in zip(places, logits[:, 0].float().tolist(), strict=True):
                found[place] = value
            advance(len(places), tokens=sum(len(rows[p]) for p in places))
    return found


def describe(folder: Path, kind: ClassifierKind, rows: str, model: Model) -> None:
    """Writes `ABOUT` beside a classifier's weights.

    Args:
        folder: where they lie.
        kind: what it was trained for.
        rows: the layout of its rows, of `align.tokens.whole_rows`.
        model: the recipe's section, which says how weights are loaded.
    """
    loading = model.model_dump(mode="json", include=set(LOADING))
    about = {"kind": kind, "rows": rows, "model": loading}
    (folder / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def about_classifier(path: str) -> Mapping[str, Any] | None:
    """What `describe` wrote in a folder, or in a run's model; None of one from elsewhere."""
    file = Path(folder_of(path)) / ABOUT
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def load_classifier(path: str, key: str) -> tuple[Any, Any]:
    """A classifier of one output and its tokenizer, as they were trained.

    Args:
        path: folder, run's folder, or hub id (`id@revision`); an adapter's folder too.
        key: the recipe's key that names it, for errors.

    Raises:
        RecipeError: it cannot be loaded.
    """
    name, _, revision = folder_of(path).partition("@")
    options: dict[str, Any] = {"revision": revision} if revision else {}
    about = about_classifier(name)
    try:
        if (Path(name) / "adapter_config.json").is_file():
            base = str(PeftConfig.from_pretrained(name).base_model_name_or_path)
            section = Model(
                model_name_or_path=base, use_peft=True, **(about or {}).get("model", {})
            )
            model: Any = PeftModel.from_pretrained(new_classifier(section, base), name)
        elif about is not None:
            section = Model(model_name_or_path=name, **about["model"])
            model = new_classifier(section, name)
        else:
            model = AutoModelForSequenceClassification.from_pretrained(name, **options)
        tokenizer: Any = AutoTokenizer.from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        raise _unloadable(path, key, error) from error
    if about is not None:
        # An adapter's base keeps its own configuration, in which a trainer's change is not saved.
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def look_for_classifier(path: str, key: str, of: str) -> None:
    """Whether `load_classifier` would find a judge's model; its weights are not read.

    Args:
        path: as `load_classifier` takes it.
        key: likewise.
        of: what errors call it.

    Raises:
        RecipeError: there is none, or it has more outputs than one, or no padding token.
    """
    name, _, revision = folder_of(path).partition("@")
    options: dict[str, Any] = {"revision": revision} if revision else {}
    if (Path(name) / "adapter_config.json").is_file():
        return
    try:
        config: Any = AutoConfig.from_pretrained(name, **options)
        AutoTokenizer.from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        raise _unloadable(path, key, error) from error
    if about_classifier(name) is None:
        one_output(ConfigOnly(config), of)


def _unloadable(path: str, key: str, error: Exception) -> RecipeError:
    first = str(error).splitlines()[0]
    return RecipeError(
        f"{key}: {path!r} cannot be loaded as a judge's model ({first[:200]}). Write the "
        "folder or Hub id of a sequence classifier with one output, or the folder of a run "
        "that trained one."
    )


@contextmanager
def _without_report_of_the_new_head() -> Iterator[None]:
    """Quiets the warning that the head is new and the LM head is left over, both on purpose."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
