"""How a model was trained, as the rows of a card's table; nothing is told that is not known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def training(
    recipe: Mapping[str, Any], metrics: Mapping[str, Any], adapter: Mapping[str, Any] | None
) -> str:
    """The table of a card: learning rate, length, batch, weights, precision, tokens.

    Args:
        recipe: the resolved recipe.
        metrics: what `metrics.json` holds: steps, processes, and the dtype roles were scored in.
        adapter: what `adapter_config.json` holds; None where all weights were trained.
    """
    lines = [f"| {name} | {value} |" for name, value in _rows(recipe, metrics, adapter)]
    if not lines:
        return "Not recorded."
    return "\n".join(["| setting | value |", "| --- | --- |", *lines])


def _rows(
    recipe: Mapping[str, Any], metrics: Mapping[str, Any], adapter: Mapping[str, Any] | None
) -> Iterator[tuple[str, str]]:
    train: Mapping[str, Any] = recipe.get("train") or {}
    model: Mapping[str, Any] = recipe.get("model") or {}
    if "learning_rate" in train:
        yield "learning rate", _rate(train)
    if "num_train_epochs" in train:
        yield "length", _length(recipe, train, metrics)
    if "per_device_train_batch_size" in train:
        yield "batch", _batch(recipe, train, metrics)
    if "optim" in train:
        decay = train.get("weight_decay")
        yield "optimizer", f"{train['optim']}" + (f", weight decay {decay:g}" if decay else "")
    if model or adapter is not None:
        yield "trained weights", _weights(model, adapter)
    if "dtype" in model:
        yield "precision", _precision(model, train, metrics)
    data: Mapping[str, Any] = recipe.get("data") or {}
    if data.get("max_length"):
        yield "length of a row", f"at most {data['max_length']:,} tokens"


def _rate(train: Mapping[str, Any]) -> str:
    parts = [f"{train['learning_rate']:g}"]
    if "lr_scheduler_type" in train:
        parts.append(f"{train['lr_scheduler_type']} schedule")
    warmup = train.get("warmup_steps")
    if warmup:
        share = f"{warmup:.0%} of the steps" if warmup < 1 else f"{warmup:g} steps"
        parts.append(f"warm-up over {share}")
    return ", ".join(parts)


def _length(recipe: Mapping[str, Any], train: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    most = train.get("max_steps") or -1
    epochs = train["num_train_epochs"]
    planned = f"{most:,} steps" if most > 0 else f"{epochs:g} epoch{'s' if epochs != 1 else ''}"
    rounds = recipe.get("rounds")
    if rounds:
        planned += f" in each of {rounds} round{'s' if rounds != 1 else ''}"
    steps = _known(metrics, "steps")
    return planned + (f", {steps:,} optimizer steps in all" if steps is not None else "")


def _batch(recipe: Mapping[str, Any], train: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    size = train["per_device_train_batch_size"]
    accumulated = train.get("gradient_accumulation_steps") or 1
    processes = _known(metrics, "processes")
    whole = size * accumulated * (processes or 1)
    factors = [f"{size} per device", *([f"{accumulated} accumulated"] if accumulated > 1 else [])]
    if processes is not None and processes > 1:
        factors.append(f"{processes} processes")
    data: Mapping[str, Any] = recipe.get("data") or {}
    loop: Mapping[str, Any] = metrics.get("loop") or {}
    rows = "groups" if data.get("groups") or loop.get("groups") else "pairs"
    text = f"{whole:,} {rows} a step" + ("" if processes is not None else " and device")
    return text + (f" ({' x '.join(factors)})" if len(factors) > 1 else "")


def _known(metrics: Mapping[str, Any], name: str) -> int | None:
    """A number that the run recorded of its training, or its loop."""
    for section in ("training", "loop"):
        found: Any = (metrics.get(section) or {}).get(name)
        if found is not None:
            return int(found)
    return None


def _weights(model: Mapping[str, Any], adapter: Mapping[str, Any] | None) -> str:
    if adapter is None and not model.get("use_peft"):
        return "all"
    known = adapter or {}
    rank, alpha = (
        known.get("r", model.get("lora_r")),
        known.get("lora_alpha", model.get("lora_alpha")),
    )
    parts = [f"LoRA of rank {rank}, alpha {alpha}"]
    targets = known.get("target_modules") or model.get("lora_target_modules")
    if isinstance(targets, str):
        parts.append(f"on {targets}")
    elif isinstance(targets, Sequence):
        names: Sequence[Any] = targets
        parts.append(f"on {', '.join(sorted(map(str, names)))}")
    layers = known.get("layers_to_transform") or model.get("lora_layers_to_transform")
    if isinstance(layers, Sequence):
        parts.append(f"of layers {_spans(sorted(map(int, layers)))}")
    return " ".join([parts[0], *parts[1:]])


def _spans(numbers: Sequence[int]) -> str:
    """`0, 20-29`."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][-1] + 1:
            spans[-1].append(number)
        else:
            spans.append([number])
    return ", ".join(f"{s[0]}-{s[-1]}" if len(s) > 1 else f"{s[0]}" for s in spans)


def _precision(
    model: Mapping[str, Any], train: Mapping[str, Any], metrics: Mapping[str, Any]
) -> str:
    # Roles are scored in the dtypes that the policy is trained in: "torch.bfloat16/no".
    roles: Mapping[str, Any] = metrics.get("roles") or {}
    scored = str(next((role["dtype"] for role in roles.values()), ""))
    weights, _, autocast = scored.removeprefix("torch.").partition("/")
    parts = [f"weights in {weights or model['dtype']}"]
    if model.get("load_in_4bit"):
        parts.append(f"the frozen ones in 4 bits ({model.get('bnb_4bit_quant_type', 'nf4')})")
    if model.get("load_in_8bit"):
        parts.append("the frozen ones in 8 bits")
    if not autocast:
        given = {"bf16": train.get("bf16"), "fp16": train.get("fp16")}
        autocast = next((name for name, is_on in given.items() if is_on), "")
    if autocast and autocast != "no":
        parts.append(f"{autocast} autocast")
    return ", ".join(parts)
