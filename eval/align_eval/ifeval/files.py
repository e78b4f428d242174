"""The benchmark's files: prompts with their instructions, and published responses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from align.errors import DataError
from align.instructions import Instruction, row_instructions
from align_eval.row_files import by_key, read_rows

INSTRUCTIONS = ("instruction_id_list", "kwargs")


@dataclass(frozen=True)
class Question:
    """A prompt and what its answer must do.

    Attributes:
        key: the row's own, or its number where it has none.
        prompt: the user's message.
        instructions: one or more.
    """

    key: str
    prompt: str
    instructions: tuple[Instruction, ...]


def read_questions(path: Path) -> list[Question]:
    """The rows of `input_data.jsonl`, or of any file with the same columns.

    Args:
        path: JSON Lines or a JSON list, with or without .gz, of rows with prompt,
            instruction_id_list, kwargs and, if there is one, key.

    Raises:
        DataError: a row lacks a column, names no kind there is, gives it settings that do not fit,
            or has the prompt of an earlier row.
    """
    rows = read_rows(path, needs=("prompt", *INSTRUCTIONS))
    questions: list[Question] = []
    for number, row in enumerate(by_key(rows, "prompt", str(path)).values(), start=1):
        try:
            instructions = row_instructions(row)
        except DataError as error:
            raise DataError(f"{path}: row {number}: {error}") from error
        questions.append(Question(str(row.get("key", number)), str(row["prompt"]), instructions))
    if not questions:
        raise DataError(f"{path} has no row. Give the benchmark's input_data.jsonl.")
    return questions


def read_responses(path: Path) -> Mapping[str, str]:
    """Prompt -> response, out of a file of published responses.

    Args:
        path: rows with prompt and response, as `input_response_data_*.jsonl`.

    Raises:
        DataError: a row lacks one of the two, or two have the same prompt.
    """
    rows = by_key(read_rows(path, needs=("prompt", "response")), "prompt", str(path))
    return {prompt: str(row["response"]) for prompt, row in rows.items()}
