"""The rounds of a loop side by side: what each stage counted and measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from align.loops.history import history
from align.loops.telling import numbers, shown

# Columns of a terminal; of more rounds as many are shown, the first and the last among them.
MOST_ROUNDS = 8
# What a reader would otherwise have to guess.
MEANING = {
    "mean score": "judge's units",
    "greedy score": "of the likeliest answers",
    "desirable": "share of the completions",
    "equal scores": "groups with nothing to compare",
    "chosen longer": "share of pairs, in characters",
    "ties": "dropped, or kept as the rule says",
    "r2 all": "of judge's number and right answers",
    "r2 best of n": "of what this filter keeps",
    "r2 best random": "of what this filter keeps",
    "r2 best worst": "of what this filter keeps",
    "rewards margins": "last log of the round",
    "rewards accuracies": "last log of the round",
    "rewards mean": "last log of the round",
    "logps chosen": "nats, last log of the round",
    "logps mean": "nats, last log of the round",
    "loss": "last log of the round",
}


def rounds_table(run: Path) -> Table | None:
    """One row per number of a stage, one column per round; None where no stage has ended.

    Args:
        run: a loop's folder; the loop may be under way.
    """
    rows = history(Path(run))
    if not rows:
        return None
    by_round: dict[int, dict[tuple[str, str], float]] = {}
    for number in sorted({row["round"] for row in rows}):
        of_round = [row for row in rows if row["round"] == number]
        by_round[number] = _numbers(of_round)
    chosen = _chosen([*by_round])
    caption = f"Rounds {chosen[0]} to {chosen[-1]}"
    if len(chosen) < len(by_round):
        caption += f": {len(chosen)} of {len(by_round)}; the others stand in the run's ledger"
    table = Table(
        title=Text(f"Rounds of {Path(run).resolve().name}"),
        caption=Text(caption),
        caption_justify="left",
    )
    table.add_column("stage", no_wrap=True)
    table.add_column("what it says", no_wrap=True)
    for number in chosen:
        table.add_column(f"round {number}", justify="right", no_wrap=True)
    names = list(dict.fromkeys(name for found in by_round.values() for name in found))
    # Stages in their order, the numbers of one together: a later round may say more than the first.
    order = list(dict.fromkeys(stage for stage, _ in names))
    names.sort(key=lambda name: order.index(name[0]))
    last = ""
    for stage, label in names:
        values = [by_round[number].get((stage, label)) for number in chosen]
        cells = [Text("-" if value is None else shown(value)) for value in values]
        told = Text.assemble(label, (f"  {MEANING[label]}" if label in MEANING else "", "dim"))
        if last and stage != last:
            table.add_section()
        table.add_row(Text(stage if stage != last else ""), told, *cells)
        last = stage
    return table


def _numbers(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], float]:
    """(stage, label) -> number; a stage that stands twice in a round is numbered."""
    seen: Counter[str] = Counter()
    found: dict[tuple[str, str], float] = {}
    for row in rows:
        seen[row["stage"]] += 1
        times = seen[row["stage"]]
        stage = row["stage"] if times == 1 else f"{row['stage']} ({times})"
        said = {name: value for name, value in row.items() if name not in ("round", "stage")}
        found |= {(stage, label): value for label, value in numbers(said).items()}
    return found


def _chosen(rounds: Sequence[int]) -> list[int]:
    """At most `MOST_ROUNDS` of them, evenly, with the first and the last."""
    if len(rounds) <= MOST_ROUNDS:
        return list(rounds)
    last = MOST_ROUNDS - 1
    return [rounds[round(k * (len(rounds) - 1) / last)] for k in range(MOST_ROUNDS)]
