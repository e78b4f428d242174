"""A whole IFEval: answers, verdicts, scores, files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from align.data.records import content_id
from align.errors import DataError
from align.estimates import Estimate
from align.evaluation import Benchmark, Subject
from align.runs.manifest import file_digest
from align_eval.ifeval.files import Question, read_questions, read_responses
from align_eval.ifeval.scoring import Verdicts, by_kind, judged, scores
from align_eval.judged import GENERATED, NonEmpty
from align_eval.outputs import AnswerSampling, Outputs, in_words, kept_outputs
from align_eval.results import Result, inputs_of, write_result
from align_eval.row_files import write_json, write_jsonl

VERDICTS, KINDS = "verdicts.jsonl", "kinds.json"
# Missing answers that are the model's own fault: nothing is met. All others leave the prompt out.
OWN_FAILURES = ("empty", "unfinished")


class IFEvalSampling(AnswerSampling):
    """As `AnswerSampling`, with the room that published runs of IFEval give.

    Attributes:
        max_new_tokens: most tokens of an answer, its end token included.
    """

    max_new_tokens: int = Field(default=1280, ge=1)


class IFEval(Benchmark):
    """Share of instructions followed, of those that a program can check (IFEval)."""

    run: Literal["ifeval"] = "ifeval"
    """Which evaluation."""
    file: NonEmpty
    """The benchmark's input_data.jsonl, or any file of rows with prompt, instruction_id_list and
    kwargs."""
    responses: NonEmpty | None = None
    """Published responses in place of the model's: a file of rows with prompt and response."""
    limit: int | None = Field(default=None, ge=1)
    """Prompts at most, the first ones of the file; null takes all. The score of a part is
    comparable with no leaderboard."""
    sampling: IFEvalSampling = IFEvalSampling()
    """How the model answers: greedily where the recipe does not say, and an answer that is cut off
    is judged as it stands."""
    seed: int = Field(default=0, ge=0)
    """Seed of the answers, where they are drawn."""
    max_failed: float = Field(default=0.01, ge=0, le=1)
    """Share of prompts whose answer may be missing for another reason than the model's own before
    there is no score."""

    def reads_files(self) -> Sequence[str]:
        """The prompts, and the responses where they are read."""
        return [name for name in (self.file, self.responses) if name is not None]

    def asks_policy(self) -> bool:
        """Unless its responses are read."""
        return self.responses is None

    def settings(self) -> Any:
        """The node, with the content of its files."""
        digests = [file_digest(Path(name)) for name in self.reads_files()]
        return self.model_dump(mode="json") | {"content": digests}

    def planned(self) -> list[str]:
        """What would be asked; reads every file that the recipe names.

        Raises:
            DataError: a file is none of its kind, or a row names no instruction that there is.
        """
        there = read_questions(Path(self.file))
        questions = there[: self.limit]
        part = f"the first {len(questions)} of {len(there)}"
        lines = [
            f"prompts: {part if len(questions) < len(there) else len(questions)}",
            f"instructions: {sum(len(question.instructions) for question in questions)}",
        ]
        if self.asks_policy():
            return [*lines, f"answers: {in_words(self.sampling)}"]
        return [*lines, f"answers: {len(self._read(questions).texts)} are read"]

    def measure(self, subject: Subject, folder: Path) -> dict[str, Any]:
        """Asks every prompt once, and judges the answers by both readings."""
        there = read_questions(Path(self.file))
        questions = there[: self.limit]
        outputs = self._outputs(questions, subject, folder)
        verdicts = [
            judged(question, outputs.texts.get(question.prompt, ""))
            for question in questions
            if outputs.failed.get(question.prompt, OWN_FAILURES[0]) in OWN_FAILURES
        ]
        return write_scores(self, outputs, verdicts, (len(questions), len(there)), folder)

    def _outputs(self, questions: Sequence[Question], subject: Subject, folder: Path) -> Outputs:
        if self.responses is None:
            return kept_outputs(
                folder / GENERATED,
                subject.policy(),
                {question.prompt: question.prompt for question in questions},
                generator=subject.name,
                sampling=self.sampling,
                seed=self.seed,
                source=self.run,
            )
        return self._read(questions)

    def _read(self, questions: Sequence[Question]) -> Outputs:
        assert self.responses is not None
        path = Path(self.responses)
        known = read_responses(path)
        texts = {q.prompt: known[q.prompt] for q in questions if q.prompt in known}
        if not texts:
            raise DataError(
                f"{path} has no response to any of the {len(questions)} prompts of {self.file}. "
                "Give responses to the same prompts."
            )
        missing = {q.prompt: "not in the file" for q in questions if q.prompt not in known}
        reasons = {"no response (not in the file)": len(missing)} if missing else {}
        return Outputs(path.stem, texts, reasons, {"responses": path.name}, missing)


def write_scores(
    node: IFEval,
    outputs: Outputs,
    verdicts: Sequence[Verdicts],
    asked: tuple[int, int],
    folder: Path,
) -> dict[str, Any]:
    """Writes results.json, table.md, kinds.json and verdicts.jsonl.

    Args:
        node: whose settings are told with the numbers.
        outputs: the answers.
        verdicts: on those that can be judged.
        asked: number of prompts, and of all that there are.
        folder: where they go.

    Returns:
        What results.json holds.

    Raises:
        DataError: more than max_failed of the prompts could not be judged.
    """
    measured = scores(verdicts)
    kinds = by_kind(verdicts)
    lacking = Counter(outputs.failed.values())
    own = {name: lacking[name] for name in OWN_FAILURES if lacking[name]}
    own_reasons = {f"no output ({name})" for name in OWN_FAILURES}
    write_jsonl(folder / VERDICTS, (one.to_json() for one in verdicts))
    write_json(
        folder / KINDS,
        [
            {"kind": kind, **{name: one.to_json() for name, one in found.items()}}
            for kind, found in kinds.items()
        ],
    )
    result = Result(
        name="ifeval",
        scores={name: estimate.to_json() for name, estimate in measured.items()},
        table=[
            *(
                _row(f"{level}s", outputs, measured[f"{level}_strict"], measured[f"{level}_loose"])
                for level in ("prompt", "instruction")
            ),
            *(_row(kind, outputs, one["strict"], one["loose"]) for kind, one in kinds.items()),
        ],
        n=asked[0],
        n_judged=len(verdicts),
        n_failed=asked[0] - len(verdicts),
        reasons={name: count for name, count in outputs.reasons.items() if name not in own_reasons},
        provenance={
            "model": outputs.generator,
            **outputs.about,
            "own_failures": own,
            "prompts": content_id([one.question.prompt for one in verdicts]),
            "inputs": inputs_of(file=node.file, responses=node.responses),
        },
        n_cut=outputs.n_cut,
        limited=asked if asked[0] < asked[1] else None,
        notes=[
            *outputs.notes,
            *(f"{count} answers were {name}: they meet nothing." for name, count in own.items()),
        ],
    )
    return write_result(folder, result, max_failed=node.max_failed)


def _row(what: str, outputs: Outputs, strict: Estimate, loose: Estimate) -> dict[str, Any]:
    def percent(value: float | None) -> float | None:
        return None if value is None else 100 * value

    return {
        "what": what,
        "model": outputs.generator,
        "strict %": percent(strict.value),
        "low": percent(strict.low),
        "high": percent(strict.high),
        "loose %": percent(loose.value),
        "loose low": percent(loose.low),
        "loose high": percent(loose.high),
        "n": strict.n,
    }
