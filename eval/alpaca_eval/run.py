"""A whole AlpacaEval run: outputs, annotations, scores, files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.errors import RecipeError
from align.loops.caller import CachedCaller
from align.policies.endpoint import OpenAICaller
from align.recipe.evaluations import AlpacaEval
from eval.alpaca_eval import package
from eval.alpaca_eval.annotations import AlpacaScore, leaderboard_row, write_leaderboard
from eval.alpaca_eval.annotator import (
    PARSERS,
    TEMPLATE,
    JudgeCaller,
    Pairing,
    annotate,
    annotation_rows,
    parameters_of,
    reasons_of,
)
from eval.alpaca_eval.length_controlled import (
    LengthControlled,
    read_difficulty,
    read_gamed,
    with_length_control,
)
from eval.outputs import Outputs, read_outputs
from eval.results import Result, inputs_of, judge_of, write_result
from eval.row_files import Row, by_key, read_rows, write_json

ANNOTATIONS = "annotations.json"
OUTPUTS = "model_outputs.json"
LEADERBOARD = "leaderboard.csv"


@dataclass(frozen=True)
class Reference:
    """The baseline's outputs.

    Attributes:
        generator: its name.
        rows: instruction -> row, in the order of the file.
    """

    generator: str
    rows: Mapping[str, Row]


def read_reference(path: Path) -> Reference:
    """A model_outputs.json with one generator.

    Raises:
        DataError: a row lacks a field, two have one instruction, or there are several generators.
    """
    rows = by_key(read_rows(path, needs=("instruction", "output")), "instruction", str(path))
    named = read_outputs(path, list(rows), generator=None)
    return Reference(named.generator, rows)


def prompts_of(node: AlpacaEval) -> dict[str, str]:
    """What the model is asked: the baseline's instructions, each its own key."""
    return {text: text for text in read_reference(Path(node.reference_outputs)).rows}


def outputs_of(node: AlpacaEval) -> Outputs:
    """The outputs that the recipe names.

    Raises:
        RecipeError: it names none; they must be generated.
        DataError: the file does not belong to the instructions.
    """
    if node.outputs is None:
        raise RecipeError("outputs: is null; let the model write them, or name a file.")
    reference = read_reference(Path(node.reference_outputs))
    return read_outputs(Path(node.outputs), list(reference.rows), generator=node.generator)


def judge_caller(node: AlpacaEval) -> OpenAICaller:
    """What asks the annotator; keeps the log-probs of its first token where these are read."""
    return (
        JudgeCaller(node.annotator) if node.reading == "logprobs" else OpenAICaller(node.annotator)
    )


def run_alpaca_eval(
    node: AlpacaEval, outputs: Outputs, caller: CachedCaller, folder: Path
) -> dict[str, Any]:
    """Judges the outputs, and writes everything to `folder`.

    model_outputs.json, annotations.json and leaderboard.csv have the official formats; results.json
    and table.md hold scores, counts and provenance. Running it again asks only what failed.

    Args:
        node: settings.
        outputs: of the model, by instruction.
        caller: of `judge_caller(node)`, with store and limits.
        folder: made when absent.

    Returns:
        What results.json holds.

    Raises:
        DataError: more than max_failed failed, or an input does not fit.
        MachineError: the package is asked for and cannot be run.
        AlignError: what no other try can mend; what was answered by then is stored.
    """
    if node.reading == "logprobs" and type(caller.caller) is OpenAICaller:
        raise RecipeError("reading: logprobs needs a caller made of `judge_caller(node)`.")
    reference = read_reference(Path(node.reference_outputs))
    runner = node.runner
    if runner == "auto":
        runner = "package" if package.is_installed() else "own"
    if runner == "package":
        # Its faults are to be seen before the judge is paid.
        package.load_package()
    pairings = [
        Pairing(text, str(row["output"]), outputs.texts[text], row.get("dataset"))
        for text, row in reference.rows.items()
        if text in outputs.texts
    ]
    _write_outputs(folder, outputs, reference)
    generators = (reference.generator, outputs.generator)
    name = node.annotator_name or node.annotator.model
    if runner == "package":
        rows, reasons = package.run_package(
            caller,
            pairings,
            reading=node.reading,
            generators=generators,
            annotator=name,
            folder=folder,
        )
    else:
        found = annotate(caller, pairings, reading=node.reading)
        rows = annotation_rows(pairings, found, generators=generators, annotator=name)
        write_json(folder / ANNOTATIONS, rows)
        reasons = reasons_of(found)
    return _score(node, outputs, reference, rows, reasons, runner, caller, folder)


def _write_outputs(folder: Path, outputs: Outputs, reference: Reference) -> None:
    rows = [
        {
            "dataset": row.get("dataset"),
            "instruction": text,
            "output": outputs.texts[text],
            "generator": outputs.generator,
        }
        for text, row in reference.rows.items()
        if text in outputs.texts
    ]
    write_json(folder / OUTPUTS, rows)


def _score(
    node: AlpacaEval,
    outputs: Outputs,
    reference: Reference,
    rows: list[Row],
    reasons: Mapping[str, int],
    runner: str,
    caller: CachedCaller,
    folder: Path,
) -> dict[str, Any]:
    judged = sum(row["preference"] is not None for row in rows)
    n = len(reference.rows)
    counts = Counter(reasons) + Counter(outputs.reasons)
    score: AlpacaScore | None = None
    controlled: LengthControlled | None = None
    scores: dict[str, Any] = {}
    table: list[dict[str, Any]] = []
    if judged > 1:
        score, controlled = _fitted(node, reference, rows)
        row = leaderboard_row(score)
        write_leaderboard(folder / LEADERBOARD, {outputs.generator: row})
        scores = {**score.to_json(), "length_controlled_weights": dict(controlled.weights)}
        table = [
            {
                "model": outputs.generator,
                "LC win rate": score.length_controlled_win_rate,
                "LC is": score.length_controlled_kind,
                "win rate": score.win_rate,
                "standard error": score.standard_error,
                "n": score.n_total,
                "avg length": score.avg_length,
            }
        ]
    result = Result(
        name="alpaca_eval",
        scores=scores,
        table=table,
        n=n,
        n_judged=judged,
        n_failed=n - judged,
        reasons=dict(sorted(counts.items())),
        provenance={
            "model": outputs.generator,
            "baseline": reference.generator,
            "outputs": dict(outputs.about),
            "judge": judge_of(
                caller,
                template=TEMPLATE,
                parser=PARSERS[node.reading],
                reading=node.reading,
                parameters=parameters_of(caller, node.reading),
            ),
            "runner": runner,
            "inputs": inputs_of(
                reference_outputs=node.reference_outputs,
                outputs=node.outputs,
                gamed=node.gamed,
                difficulty=node.difficulty,
            ),
        },
    )
    return write_result(folder, result, max_failed=node.max_failed)


def _fitted(
    node: AlpacaEval, reference: Reference, rows: list[Row]
) -> tuple[AlpacaScore, LengthControlled]:
    instructions = list(reference.rows)
    gamed = None if node.gamed is None else read_gamed(Path(node.gamed), instructions)
    difficulty = (
        None if node.difficulty is None else read_difficulty(Path(node.difficulty), instructions)
    )
    return with_length_control(rows, gamed=gamed, difficulty=difficulty)
