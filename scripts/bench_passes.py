"""Passes over forests, forward and backward: how their time grows, how large they can be."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from bench_lengths import Row, data_set, token_rows
from bench_models import MODELS, Model
from bench_turns import Meter, meter_of
from rich.console import Console
from rich.table import Table

from align.forest import TREE, Pack, TokenRow, choose_backend
from align.forest.attention import attending
from align.forest.head import edge_logps
from align.forest.model import add_edge_head, read_pack
from align.forest.packing import unique_tokens
from align.report.pictures import BLUE, SOFT, VERMILION, dress, headline, new_figure, save
from align.trainers.head import trl_edge_logps

BUDGETS = (4096, 8192, 16384, 32768)
WARM_UP, REPEATS = {"cpu": 1, "cuda": 3}, {"cpu": 5, "cuda": 10}
# Tokens of a pass from which the growth is measured.
FULL = 2048


def _build(model: Model, device: str, seed: int) -> Any:
    built = model.build(device, seed)
    add_edge_head(built, trl_edge_logps if device == "cuda" else edge_logps)
    return built.train()


def _pass(model: Any, pack: Pack) -> None:
    """Forward and backward, gradients left in place."""
    with attending(model, pack.implementation):
        logps: Any = read_pack(model, pack).logps
        logps.sum().backward()


def _seconds(model: Any, pack: Pack, meter: Meter) -> float:
    meter.begin()
    _pass(model, pack)
    return meter.end()[0]


def _timed(model: Any, pack: Pack, meter: Meter, device: str) -> tuple[float, int | None]:
    """Median seconds of a pass, and its peak of bytes."""
    found = []
    for _ in range(WARM_UP[device] + REPEATS[device]):
        meter.begin()
        _pass(model, pack)
        found.append(meter.end())
    counted = found[WARM_UP[device] :]
    peaks = [peak for _, _, peak in counted if peak is not None]
    return median(seconds for seconds, _, _ in counted), max(peaks, default=None)


@dataclass(frozen=True)
class Axis:
    """One panel of the figure.

    Attributes:
        name: what grows.
        about: what stays as it is.
        values: where it is measured.
        group: value, tokens -> chosen and rejected rows of one prompt or tree.
    """

    name: str
    about: str
    values: Sequence[int]
    group: Callable[[int, Callable[[int], list[int]]], list[Row]]


def _pairs(
    prompt: int, completion: int, completions: int, text: Callable[[int], list[int]]
) -> list[Row]:
    shared, best = text(prompt), text(completion)
    return [
        {"prompt_ids": shared, "chosen_ids": best, "rejected_ids": text(completion)}
        for _ in range(completions - 1)
    ]


def _tree(levels: int, text: Callable[[int], list[int]]) -> list[Row]:
    rows, path = [], text(120)
    for _ in range(levels):
        rows.append({"prompt_ids": path, "chosen_ids": text(40), "rejected_ids": text(40)})
        path = path + rows[-1]["chosen_ids"]
    return rows


AXES = (
    Axis(
        "completion length",
        "prompt 256",
        (16, 64, 128, 256, 384),
        lambda n, text: _pairs(256, n, 2, text),
    ),
    Axis(
        "prompt length",
        "completions 64",
        (32, 128, 256, 512, 896),
        lambda n, text: _pairs(n, 64, 2, text),
    ),
    Axis(
        "K completions",
        "prompt 256, completions 64",
        (2, 3, 4, 6, 8, 12, 16),
        lambda n, text: _pairs(256, 64, n, text),
    ),
    Axis("tree depth", "problem 120, steps 40", (1, 2, 4, 6, 9, 12), _tree),
)


def growth(path: Path, seed: int) -> list[dict[str, Any]]:
    """Measures time per pair along `AXES`, draws it, and returns the points."""
    specification = MODELS["5m"]
    model, meter = _build(specification, "cpu", seed), meter_of("cpu")
    rng = np.random.default_rng(seed)

    def text(n: int) -> list[int]:
        return rng.integers(4, specification.vocabulary, n).tolist()

    points: list[dict[str, Any]] = []
    packs: list[Pack] = []
    for axis in AXES:
        for value in axis.values:
            rows = axis.group(value, text)
            while (pack := TREE.lay_out(_both(rows))).computed_tokens < FULL:
                rows += axis.group(value, text)
            packs.append(pack)
            points.append(
                {
                    "axis": axis.name,
                    "value": value,
                    "pairs": len(rows),
                    "unique_tokens_per_pair": pack.computed_tokens / len(rows),
                    "row_tokens_per_pair": pack.row_tokens / len(rows),
                    "model": "5m",
                }
            )
    # Round after round, so that what else the machine does disturbs all points alike.
    rounds = [[_seconds(model, pack, meter) for pack in packs] for _ in range(1 + REPEATS["cpu"])]
    for point, seconds in zip(points, zip(*rounds[1:], strict=True), strict=True):
        point["ms_per_pair"] = 1000 * min(seconds) / point["pairs"]
    _draw(points, path)
    return points


def _both(rows: Sequence[Row]) -> list[TokenRow]:
    chosen, rejected = token_rows(rows)
    return [*chosen, *rejected]


def _draw(points: Sequence[dict[str, Any]], path: Path) -> None:
    # One constant for all four panels.
    cost = median(point["ms_per_pair"] / point["unique_tokens_per_pair"] for point in points)
    off = max(
        abs(point["ms_per_pair"] / point["unique_tokens_per_pair"] / cost - 1) for point in points
    )
    figure = new_figure(12.0, 3.8)
    headline(figure, "Time per pair follows the number of unique tokens")
    for at, axis in enumerate(AXES, start=1):
        axes = figure.add_subplot(1, len(AXES), at)
        dress(axes, axis.name, "ms per pair")
        axes.locator_params(axis="x", integer=True)
        here = [point for point in points if point["axis"] == axis.name]
        x = [point["value"] for point in here]
        axes.plot(
            x,
            [cost * point["unique_tokens_per_pair"] for point in here],
            color=VERMILION,
            linewidth=1.5,
            label=f"unique tokens x {1000 * cost:.0f} µs",
        )
        axes.plot(
            x,
            [point["ms_per_pair"] for point in here],
            color=BLUE,
            marker="o",
            markersize=5,
            linestyle="none",
            label="measured",
        )
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(axis.about, fontsize=8.5, color=SOFT)
        if at == 1:
            axes.legend(loc="upper left", fontsize=8.5, frameon=False)
    figure.supxlabel(
        f"Forward and backward pass over {FULL} unique tokens or little more, 5M-parameter Llama, "
        f"one CPU thread, quickest of {REPEATS['cpu']}. The line has the same constant in all "
        f"panels; points are at most {off:.0%} off it.\n"
        "Completion tokens cost more than prompt tokens, because only they pass the LM head.",
        x=0.012,
        ha="left",
        fontsize=8.5,
        color=SOFT,
    )
    save(figure, path)


def budgets(names: Sequence[str], device: str, seed: int, console: Console) -> list[dict[str, Any]]:
    """Passes of growing token budgets over HH-like pairs, with and without recomputing."""
    meter = meter_of(device)
    found: list[dict[str, Any]] = []
    for name in names:
        specification = MODELS[name]
        model = _build(specification, device, seed)
        rows = data_set("hh", large=True, seed=seed, vocabulary=1 << 12)
        chosen, rejected = token_rows(rows)
        unique = np.cumsum([unique_tokens([a, b]) for a, b in zip(chosen, rejected, strict=True)])
        backend = choose_backend(model, [*chosen[:3], *rejected[:3]]).backend
        for budget in BUDGETS if device == "cuda" else BUDGETS[:2]:
            fitting = int(np.searchsorted(unique, budget, side="right"))
            some = [*chosen[:fitting], *rejected[:fitting]]
            began = time.process_time()
            pack = backend.lay_out(some)
            host = time.process_time() - began
            pack = pack.to(device)
            for is_checkpointing in (False, True):
                model.gradient_checkpointing_disable()
                if is_checkpointing:
                    model.gradient_checkpointing_enable({"use_reentrant": False})
                row = {
                    "model": name,
                    "backend": backend.name,
                    "token_budget": budget,
                    "unique_tokens": pack.computed_tokens,
                    "pairs": fitting,
                    "gradient_checkpointing": is_checkpointing,
                    "layout_ms_per_1k_tokens": 1e6 * host / pack.row_tokens,
                }
                try:
                    seconds, peak = _timed(model, pack, meter, device)
                except torch.OutOfMemoryError:
                    row |= {"fits": False}
                else:
                    row |= {"fits": True, "seconds": seconds, "peak_bytes": peak}
                    row |= {"pairs_per_second": fitting / seconds}
                found.append(row)
        del model
        torch.cuda.empty_cache()
    console.print(_table(found))
    return found


def _table(found: Sequence[dict[str, Any]]) -> Table:
    shown = Table(caption="Forward and backward pass over HH-like pairs.", caption_justify="left")
    for column in (
        "model",
        "budget",
        "unique tokens",
        "pairs",
        "checkpointing",
        "pairs/s",
        "tokens/s",
        "peak GiB",
        "layout ms/1k tokens",
    ):
        shown.add_column(column, justify="right")
    for row in found:
        measured = ["does not fit"] * 3
        if row["fits"]:
            speed, peak = row["pairs_per_second"], row["peak_bytes"]
            measured = [
                f"{speed:.1f}",
                f"{row['unique_tokens'] / row['seconds']:,.0f}",
                "not measured" if peak is None else f"{peak / 2**30:.2f}",
            ]
        shown.add_row(
            row["model"],
            f"{row['token_budget']:,}",
            f"{row['unique_tokens']:,}",
            str(row["pairs"]),
            "on" if row["gradient_checkpointing"] else "off",
            *measured,
            f"{row['layout_ms_per_1k_tokens']:.2f}",
        )
    return shown
