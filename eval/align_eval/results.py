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

# Above this share of failures a number is published with a flag only.
FLAGGED = 0.01
RESULTS = "results.json"
TABLE = "table.md"


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
    """

    name: str
    scores: Mapping[str, Any]
    table: Sequence[Mapping[str, Any]]
    n: int
    n_judged: int
    n_failed: int
    reasons: Mapping[str, int]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def failed_share(self) -> float:
        """Of all rows."""
        return self.n_failed / self.n if self.n else 1.0

    @property
    def flag(self) -> str | None:
        """What a reader must be told where more than 1 % failed."""
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
            f"{result.name}: {result.flag or f'{result.n_failed} of {result.n} failed'}; more than "
            f"max_failed ({max_failed:g}) allows, so there is no score. Run the same command "
            "again: what was answered is stored, and only what failed is asked."
        )
    write_atomically(folder / TABLE, table_text(result))
    return content


def table_text(result: Result) -> str:
    """The table in Markdown, with counts and flag below."""
    columns = list(result.table[0]) if result.table else []
    lines = [
        "| " + " | ".join(columns) + " |",
        "|" + " --- |" * len(columns),
        *("| " + " | ".join(_cell(row[c]) for c in columns) + " |" for row in result.table),
        "",
        f"{result.name}: {result.n} rows, {result.n_judged} judged, {result.n_failed} failed.",
    ]
    if result.flag is not None:
        lines += ["", f"**{result.flag}.**"]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value).replace("|", "/")


def versions() -> dict[str, str]:
    """Of Python and of every installed package that can move a number."""
    found = {"python": platform.python_version()}
    for name in ("align-toolkit", "alpaca-eval", "numpy", "openai", "torch", "transformers"):
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
