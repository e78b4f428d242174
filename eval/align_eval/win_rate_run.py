"""A whole comparison of two models: outputs, verdicts, scores, files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from align.data.messages import prompt_id
from align.errors import RecipeError
from align.judges.base import Comparison, probability
from align.judges.pairwise_llm import PARSER, TEMPLATE, PairwiseLLM, PairwiseSettings
from align.nearest import did_you_mean
from align.node import Conflict
from align.servers.caller import CachedCaller
from align_eval.judged import JudgedBenchmark, NonEmpty
from align_eval.outputs import Outputs, read_outputs
from align_eval.results import Result, inputs_of, judge_of, write_result
from align_eval.row_files import by_key, read_rows, write_jsonl
from align_eval.win_rate import win_rate

VERDICTS = "verdicts.jsonl"


class WinRate(JudgedBenchmark):
    """Our own comparison of two models on the same prompts, both orders asked."""

    run: Literal["win_rate"] = "win_rate"
    """Which evaluation."""
    against: NonEmpty
    """The opponent's outputs: rows with instruction and output."""
    outputs: NonEmpty | None = None
    """The model's outputs; null lets the recipe's model answer the opponent's instructions."""
    columns: Mapping[str, NonEmpty] = {}
    """Columns of both files under our names, as {instruction: turns.0, output: reference.0}. Dots
    lead into lists and maps."""
    name: str | None = Field(default=None, min_length=1)
    """The model's name in tables; null takes what `outputs` says, or the recipe's model."""
    how: PairwiseSettings = PairwiseSettings()
    """How it is asked."""
    resamples: int = Field(default=1000, ge=10)
    """Of the bootstrap."""

    def conflicts(self) -> Iterator[Conflict]:
        known = ("instruction", "output", "generator")
        for name in self.columns:
            if name not in known:
                near = did_you_mean(name, known) or f"; write {', '.join(known)}"
                yield f"columns.{name}", f"no column that is read{near}"

    def called(self) -> str | None:
        """The model's name in tables, where the recipe gives one."""
        return self.name

    def reads_files(self) -> Sequence[str]:
        """Files that it reads."""
        return [self.against, *([self.outputs] if self.outputs else [])]

    def asks_policy(self) -> bool:
        """Whether the model must answer."""
        return self.outputs is None

    def there(self) -> int:
        """Number of the opponent's instructions."""
        return len(opponent_of(self).texts)

    def prompts(self) -> dict[str, str]:
        """What the model is asked: the opponent's instructions, each its own key."""
        return prompts_of(self)

    def read(self) -> Outputs:
        """The model's outputs that the recipe names."""
        return outputs_of(self)

    def judge(self, outputs: Outputs, caller: CachedCaller, folder: Path) -> dict[str, Any]:
        """Judges every instruction in both orders and writes everything to `folder`."""
        return run_win_rate(self, outputs, caller, folder)


def opponent_of(node: WinRate) -> Outputs:
    """The opponent's outputs, by instruction; all of them, whatever `limit` says.

    Raises:
        DataError: the file cannot be read, or names several generators.
    """
    path = Path(node.against)
    found = read_rows(path, needs=("instruction", "output"), columns=node.columns)
    rows = by_key(found, "instruction", str(path))
    named = any(row.get("generator") for row in rows.values())
    return read_outputs(
        path, list(rows), generator=None if named else path.stem, columns=node.columns
    )


def prompts_of(node: WinRate) -> dict[str, str]:
    """What the model is asked: the opponent's instructions, each its own key."""
    return {text: text for text in _asked(node, opponent_of(node))}


def _asked(node: WinRate, opponent: Outputs) -> list[str]:
    """The instructions that are judged."""
    return list(opponent.texts)[: node.limit]


def outputs_of(node: WinRate) -> Outputs:
    """The model's outputs that the recipe names.

    Raises:
        RecipeError: it names none; they must be generated.
        DataError: the file does not belong to the instructions.
    """
    if node.outputs is None:
        raise RecipeError("outputs: is null; let the model write them, or name a file.")
    known = list(opponent_of(node).texts)
    return read_outputs(
        Path(node.outputs), known, generator=node.name, limit=node.limit, columns=node.columns
    )


def run_win_rate(
    node: WinRate, outputs: Outputs, caller: CachedCaller, folder: Path
) -> dict[str, Any]:
    """Judges every instruction in both orders, and writes everything to `folder`.

    verdicts.jsonl holds P(model wins) per prompt, or the reason why there is none, for
    `align_eval.win_rate.paired_difference`; results.json and table.md hold scores, counts and
    provenance. Running it again asks only what failed.

    Returns:
        What results.json holds.

    Raises:
        DataError: more than max_failed failed, or an input does not fit.
        AlignError: what no other try can mend; what was answered by then is stored.
    """
    opponent = opponent_of(node)
    items = [
        Comparison(text, outputs.texts.get(text, ""), opponent.texts[text], id=prompt_id(text))
        for text in _asked(node, opponent)
    ]
    verdicts = PairwiseLLM(caller, node.how).compare(items)
    score = win_rate(items, verdicts, seed=node.seed, resamples=node.resamples)
    write_jsonl(
        folder / VERDICTS,
        (
            {
                "id": item.id,
                "score": probability(verdict),
                "verdict": type(verdict).__name__,
                "reason": getattr(verdict, "reason", None),
            }
            for item, verdict in zip(items, verdicts, strict=True)
        ),
    )
    row = {
        "model": outputs.generator,
        "against": opponent.generator,
        "win rate": score.win_rate,
        "low": score.low,
        "high": score.high,
        "wins": score.wins,
        "ties": score.ties,
        "losses": score.losses,
        "longer wins": score.length.longer_wins,
    }
    result = Result(
        name="win_rate",
        scores=score.to_json(),
        table=[row],
        n=score.n,
        n_judged=score.judged,
        n_failed=score.failed,
        reasons=score.reasons,
        provenance={
            "model": outputs.generator,
            "against": opponent.generator,
            "outputs": dict(outputs.about),
            "judge": judge_of(
                caller, template=TEMPLATE, parser=PARSER, how=node.how.model_dump(mode="json")
            ),
            "bootstrap": {"resamples": node.resamples, "seed": node.seed},
            "inputs": inputs_of(against=node.against, outputs=node.outputs),
        },
        n_cut=outputs.n_cut,
        limited=node.limited(),
        notes=outputs.notes,
    )
    return write_result(folder, result, max_failed=node.max_failed)
