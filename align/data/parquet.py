"""A data set as it is published: one Parquet file per shard, and what its rows are like.

The columns are the same for every pipeline, in the same types, whether or not a row has a value in
them; files of several pipelines can be read together. Equal rows give equal bytes.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from align.data.built import BuiltPair
from align.data.messages import Text
from align.data.pairs import PreferencePair

ROWS_PER_SHARD = 50_000
BINS = 10


def write_rows(folder: Path, pairs: Sequence[PreferencePair]) -> list[str]:
    """Writes `data/train-*.parquet` below `folder`; returns the files' names there.

    Plain-text and conversational rows have other column types, so `pairs` must be of one kind.
    """
    if len({pair.is_conversational for pair in pairs}) > 1:
        raise ValueError("rows of plain text and of messages cannot stand in one file")
    features = _features(pairs[0].is_conversational)
    (folder / "data").mkdir(exist_ok=True)
    starts = range(0, len(pairs), ROWS_PER_SHARD)
    names: list[str] = []
    for number, start in enumerate(starts):
        rows = [_row(pair) for pair in pairs[start : start + ROWS_PER_SHARD]]
        name = f"data/train-{number:05}-of-{len(starts):05}.parquet"
        shard = datasets.Dataset.from_list(rows, features=features)
        shard.to_parquet(folder / name)
        names.append(name)
    return names


def _features(is_conversational: bool) -> Any:
    text, number = datasets.Value("string"), datasets.Value("float64")
    whole, yes_or_no = datasets.Value("int64"), datasets.Value("bool")
    words: Any = text
    if is_conversational:
        words = datasets.List({"role": text, "content": text})
    span = datasets.List({"start": whole, "end": whole, "weight": number})
    kinds = {
        "prompt": words,
        "chosen": words,
        "rejected": words,
        "row": whole,
        "round": whole,
        "depth": whole,
        "seed": whole,
        "visit_counts": datasets.List(whole),
        "priors": datasets.List(number),
    }
    for side in ("chosen", "rejected"):
        kinds |= {
            f"{side}_score": number,
            f"{side}_token_weight": datasets.List(number),
            f"{side}_span_weights": span,
            f"{side}_ends": yes_or_no,
            f"{side}_ids": datasets.List(whole),
        }
    kinds["prompt_ids"] = datasets.List(whole)
    kinds |= dict.fromkeys(("preference", "margin", "uncertainty", "prob_chosen", "weight"), number)
    return datasets.Features({name: kinds.get(name, text) for name in BuiltPair.model_fields})


def _row(pair: PreferencePair) -> dict[str, Any]:
    row = dict.fromkeys(BuiltPair.model_fields) | pair.model_dump(mode="json")
    detail: Any = row["detail"]
    row["detail"] = None if detail is None else json.dumps(detail, sort_keys=True)
    return row


def quality(pairs: Sequence[PreferencePair], counts: Mapping[str, int]) -> dict[str, Any]:
    """What the rows are like, JSON-ready: how long, how sure, how far apart.

    Args:
        pairs: kept.
        counts: of the pipeline: tokens drawn, calls made.
    """
    longer = [_length(pair.chosen) - _length(pair.rejected) for pair in pairs]
    found: dict[str, Any] = {
        "pairs": len(pairs),
        "groups": len({pair.group_id for pair in pairs}),
        "chosen_is_longer": _share(sum(n > 0 for n in longer), len(pairs)),
        "chosen_is_shorter": _share(sum(n < 0 for n in longer), len(pairs)),
        "median_characters_more": statistics.median(longer) if longer else None,
    }
    for name in ("margin", "preference", "uncertainty", "prob_chosen"):
        values = [v for pair in pairs if (v := getattr(pair, name, None)) is not None]
        if values:
            found[name] = _histogram(values)
    kinds = Counter(kind for pair in pairs if (kind := getattr(pair, "pair_kind", None)))
    if kinds:
        found["kinds"] = dict(sorted(kinds.items()))
    found["per_pair"] = {
        name: round(n / len(pairs), 3) for name, n in sorted(counts.items()) if pairs
    }
    return found


def _length(text: Text) -> int:
    return len(text) if isinstance(text, str) else sum(len(turn.content) for turn in text)


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def _histogram(values: Sequence[float]) -> dict[str, Any]:
    low, high = min(values), max(values)
    width = (high - low) / BINS
    counts = [0] * BINS
    for value in values:
        counts[min(int((value - low) / width), BINS - 1) if width else 0] += 1
    return {
        "rows": len(values),
        "mean": round(statistics.fmean(values), 6),
        "from": low,
        "to": high,
        "counts": counts,
    }
