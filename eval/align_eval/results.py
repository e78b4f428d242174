"""What an evaluation leaves: one JSON with everything a reader must know, and one table."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align.errors import DataError
from align.runs.folder import write_atomically
from align.runs.manifest import file_digest
from align.servers.caller import CachedCaller
from align_eval.order import OrderEffect

# Above this share of failures a number is published with a flag only.
FLAGGED = 0.01
RESULTS = "results.json"
TABLE = "table.md"
VERSIONED = (
    "align-toolkit",
    "alpaca-eval",
    "langdetect",
    "numpy",
    "openai",
    "torch",
    "transformers",
)


@dataclass(frozen=True)
class Result:
    """One evaluation.

    Attributes:
        name: of the evaluation.
        scores: what was measured.
        table: rows for people, all with the same keys.
        n: rows asked; n_judged + n_failed.
        n_judged: with a verdict.
        n_failed: without one.
        reasons: failures by reason.
        provenance: inputs, judge, decoding, hashes of templates and parsers, seeds.
        n_cut: outputs that were cut off at their token limit and judged as they stand; None where
            nobody knows.
        limited: number of questions asked, and of all that there are; None where these are all.
        order: what the order in which a judge saw two outputs did.
        notes: sentences for people, below the table.
    """

    name: str
    scores: Mapping[str, Any]
    table: Sequence[Mapping[str, Any]]
    n: int
    n_judged: int
    n_failed: int
    reasons: Mapping[str, int]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    n_cut: int | None = None
    limited: tuple[int, int] | None = None
    order: OrderEffect | None = None
    notes: Sequence[str] = ()

    @property
    def failed_share(self) -> float:
        """Of all rows."""
        return self.n_failed / self.n if self.n else 1.0

    @property
    def flag(self) -> str | None:
        """What a reader must be told: not every question was asked, or more than 1 % failed."""
        said = [text for text in (self.part, self.failures) if text is not None]
        return "; ".join(said) or None

    @property
    def part(self) -> str | None:
        """That not every question was asked."""
        if self.limited is None:
            return None
        asked, there = self.limited
        return f"the first {asked} of {there} questions only: comparable with no leaderboard"

    @property
    def failures(self) -> str | None:
        """What failed, where that is more than 1 %."""
        if self.failed_share <= FLAGGED:
            return None
        why = ", ".join(f"{count} {reason}" for reason, count in self.reasons.items())
        return (
            f"{self.n_failed} of {self.n} failed ({100 * self.failed_share:.1f} %; {why}): not "
            "comparable with published numbers"
        )

    def to_json(self) -> dict[str, Any]:
        """Strict JSON."""
        return {
            "evaluation": self.name,
            "scores": dict(self.scores),
            "n": self.n,
            "n_judged": self.n_judged,
            "n_failed": self.n_failed,
            "reasons": dict(self.reasons),
            "flag": self.flag,
            "n_cut": self.n_cut,
            "limited": dict(zip(("asked", "of"), self.limited, strict=True))
            if self.limited is not None
            else None,
            "order": self.order.to_json() if self.order is not None else None,
            "provenance": dict(self.provenance),
            "versions": versions(),
        }


def write_result(folder: Path, result: Result, *, max_failed: float) -> dict[str, Any]:
    """Writes results.json and table.md; where too much failed, without any score.

    Returns:
        What results.json holds.

    Raises:
        DataError: more than `max_failed` of the rows failed; results.json counts them.
    """
    assert result.n == result.n_judged + result.n_failed
    content = result.to_json()
    refused = result.failed_share > max_failed
    if refused:
        content["scores"] = None
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / RESULTS, json.dumps(content, indent=2, allow_nan=False) + "\n")
    if refused:
        (folder / TABLE).unlink(missing_ok=True)
        raise DataError(
            f"{result.name}: {result.failures or _failed(result)}; more than "
            f"max_failed ({max_failed:g}) allows, so there is no score. Run the same command "
            "again: what was answered is stored, and only what failed is asked."
        )
    write_atomically(folder / TABLE, table_text(result))
    return content


def table_text(result: Result) -> str:
    """The table in Markdown, with counts, notes and flag below."""
    columns = list(result.table[0]) if result.table else []
    lines = [
        "| " + " | ".join(columns) + " |",
        "|" + " --- |" * len(columns),
        *("| " + " | ".join(_cell(row[c]) for c in columns) + " |" for row in result.table),
    ]
    cut = "" if result.n_cut is None else f", {result.n_cut} cut off at the token limit"
    counts = f"{result.n_judged} judged, {result.n_failed} failed"
    lines = [*(lines if columns else ["There is no score: too little was judged."]), ""]
    lines.append(f"{result.name}: {result.n} rows, {counts}{cut}.")
    notes = list(result.notes)
    if result.order is not None and result.order.untied:
        notes.append(result.order.in_words())
    for note in notes:
        lines += ["", note]
    if result.flag is not None:
        lines += ["", f"**{result.flag}.**"]
    return "\n".join(lines) + "\n"


def _failed(result: Result) -> str:
    return f"{result.n_failed} of {result.n} failed"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value).replace("|", "/")


def versions() -> dict[str, str]:
    """Of Python and of every installed package that can move a number."""
    found = {"python": platform.python_version()}
    for name in VERSIONED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def judge_of(caller: CachedCaller, **about: Any) -> dict[str, Any]:
    """Which model judged, where, and how it was asked; holds no secret."""
    server = caller.caller
    return {
        "model": server.model,
        "revision": server.revision,
        "base_url": server.address,
        "extra": dict(server.extra),
        **about,
    }


def inputs_of(**paths: str | None) -> dict[str, dict[str, str]]:
    """Name and sha256 of every file that was read."""
    return {
        name: {"file": Path(path).name, "sha256": file_digest(Path(path))}
        for name, path in paths.items()
        if path is not None
    }
