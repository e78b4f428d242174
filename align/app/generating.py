# pyright: basic
"""`align generate`: a model's answers to a file of prompts, as JSON Lines that can be gone on with.

A row's `key` is a hash of the model, the sampling settings, the prompt and the sample's number. A
file that is there already is read first: rows whose key is asked for are kept and not drawn again.
"""

from __future__ import annotations

import json
import logging
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from align.app.named_models import DType, named_model
from align.data.json_files import read_json_lines
from align.data.messages import Message
from align.data.problems import RowProblem
from align.data.prompt_files import read_prompts
from align.data.prompts import Prompt
from align.data.row_policy import RowPolicy
from align.errors import DataError, RecipeError
from align.loops.signals import StopSignal
from align.policies.base import Sampling
from align.policies.token_writer import InProcessWriter
from align.policies.writer import Draw, Drawn, Stem
from align.progress import progress
from align.reference import digest

logger = logging.getLogger("align")

STDIN = "-"


@dataclass(frozen=True)
class Wanted:
    """One prompt that is asked, and which of its samples are still missing.

    Attributes:
        prompt: of the file.
        stem: its ids.
        keys: of all its samples, in order.
    """

    prompt: Prompt
    stem: Stem
    keys: tuple[str, ...]


def generate(
    model: str,
    prompts: str,
    output: Path | None,
    *,
    sampling: Sampling,
    samples: int,
    seed: int,
    batch_rows: int,
    split: str,
    dtype: DType | None,
    base: str | None,
) -> str:
    """Writes the samples that are missing and says what was done.

    Args:
        model: as `named_model` takes it.
        prompts: a file, folder or Hub id; lines of a `.txt` file, or of stdin for `-`.
        output: JSON Lines; None writes to stdout.
        sampling: how completions are drawn.
        samples: completions per prompt.
        seed: of the draws.
        batch_rows: completions of one forward pass.
        split: of a Hub data set or a folder of splits.
        dtype: as `named_model` takes it.
        base: likewise.

    Raises:
        RecipeError: no such model, or `output` holds rows of something else.
        DataError: no prompt can be read or continued, or `output` is no JSON Lines.
        Interrupted: a signal ended it; rows that were written stay.
    """
    if samples > 1 and sampling.temperature == 0:
        raise RecipeError(
            f"--samples {samples} with --temperature 0 would be the same completion {samples} "
            "times: raise the temperature, or ask for one sample."
        )
    named = named_model(model, base=base, dtype=dtype)
    tokenizer = named.tokenizer()
    if hasattr(tokenizer, "image_processor"):
        raise RecipeError(
            f"{model} reads pictures, and `align generate` asks text models only: sample from it "
            "by a recipe with a generate stage."
        )
    has_chat = tokenizer.chat_template is not None
    asked = _prompts_of(prompts, split, has_chat)
    writer = InProcessWriter(named.model(), tokenizer, rows=batch_rows)
    who = [writer.identity, sampling.model_dump_json(), str(seed)]

    def keys(prompt: Prompt) -> tuple[str, ...]:
        return tuple(digest([*who, prompt.id, str(k)])[:16] for k in range(samples))

    wanted, refused = _stems(asked, writer, sampling, keys)
    done = set() if output is None else _done(output, wanted)
    with StopSignal() as stop, stop.abandonable(), _Rows(output) as rows:
        written = _write(wanted, done, writer, sampling, samples, seed, rows, stop)
    where = "" if output is None else f" in {output}"
    kept = f"{len(done)} were there, " if done else ""
    lines = [f"{len(wanted)} prompts x {samples}{where}: {kept}{written} drawn"]
    lines += [f"left out: {count} prompts, {reason}" for reason, count in refused.items()]
    return "\n".join(lines)


def sampling_of(**given: Any) -> Sampling:
    """Sampling settings from a command line.

    Raises:
        RecipeError: naming the option.
    """
    try:
        return Sampling(**given)
    except ValidationError as error:
        faults = [
            f"--{str(fault['loc'][0]).replace('_', '-')}: {fault['msg']}"
            for fault in error.errors()
        ]
        raise RecipeError("; ".join(faults) + ".") from error


def _prompts_of(source: str, split: str, has_chat: bool) -> list[Prompt]:
    """The prompts of a source: lines of text, or rows as recipes read them."""
    if source == STDIN:
        return _of_lines(sys.stdin.read(), "stdin", has_chat)
    path = Path(source).expanduser()
    if path.suffix == ".txt" and path.is_file():
        try:
            return _of_lines(path.read_text(encoding="utf-8"), source, has_chat)
        except UnicodeDecodeError as error:
            raise DataError(f"{source}: byte {error.start + 1} is no UTF-8.") from error
    try:
        # What is left out is said below; nobody could raise a limit here.
        found, report = read_prompts(source, split=split, policy=RowPolicy(max_dropped=1.0))
    except DataError as error:
        text = str(error).replace("data.pairs", "PROMPTS").replace("data.split", "--split")
        raise DataError(text) from error
    logger.info("%s", report.summary())
    if any(prompt.images for prompt in found):
        raise DataError(
            f"{source} has prompts with pictures, and `align generate` asks text models only."
        )
    if has_chat and all(isinstance(prompt.prompt, str) for prompt in found):
        logger.info(
            "The prompts are plain texts and are continued as they stand, without the chat "
            "template. To ask them as a user's turn, call their column `question`, write "
            "messages, or give a .txt file."
        )
    return found


def _of_lines(text: str, source: str, has_chat: bool) -> list[Prompt]:
    """Each different line once; a user's turn where the model has a chat template."""
    lines: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            lines.setdefault(line.strip(), number)
    if not lines:
        raise DataError(f"{source} holds no line to ask: write one prompt per line.")
    return [
        Prompt(
            prompt=(Message(role="user", content=line),) if has_chat else line,
            source=source,
            row=number,
        )
        for line, number in lines.items()
    ]


def _stems(
    prompts: Sequence[Prompt],
    writer: InProcessWriter,
    sampling: Sampling,
    keys: Callable[[Prompt], tuple[str, ...]],
) -> tuple[list[Wanted], Counter[str]]:
    """What can be continued, and how many prompts cannot, by reason.

    Raises:
        DataError: none can.
    """
    wanted: list[Wanted] = []
    refused: Counter[str] = Counter()
    first = ""
    for prompt in prompts:
        try:
            stem = Stem(writer.prompt_ids(prompt.prompt), (), prompt.id)
            if writer.room(stem) < sampling.max_new_tokens:
                raise RowProblem(
                    "too_long",
                    "prompt",
                    f"{len(stem.prompt_ids)} tokens, and {max(writer.room(stem), 0)} are left of "
                    f"the model's context for {sampling.max_new_tokens} new ones",
                )
        except RowProblem as problem:
            refused[problem.reason] += 1
            first = first or f"{prompt.source}, row {prompt.row}: {problem}"
            continue
        wanted.append(Wanted(prompt, stem, keys(prompt)))
    if not wanted:
        raise DataError(
            f"None of {len(prompts)} prompts can be continued. First: {first}. Mend the prompts, "
            "or lower --max-new-tokens."
        )
    if refused:
        logger.warning("%d prompts cannot be continued. First: %s.", sum(refused.values()), first)
    return wanted, refused


def _done(output: Path, wanted: Sequence[Wanted]) -> set[str]:
    """Keys of the rows that stand in the file; a torn last line is cut off.

    Raises:
        RecipeError: rows of another model, prompts or settings.
        DataError: a line that is no row.
    """
    if not output.is_file():
        return set()
    content = output.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        logger.warning("%s: cut off an unfinished last line.", output)
        with output.open("r+b") as file:
            file.truncate(len(whole))
    known = {key for one in wanted for key in one.keys}
    found: set[str] = set()
    for _, number, row in read_json_lines(output):
        key: Any = None if isinstance(row, RowProblem) else row.get("key")
        if not isinstance(key, str):
            raise DataError(
                f"{output}:{number}: this is no row that `align generate` wrote. Write into "
                "another file, or take that line out."
            )
        if key not in known:
            raise RecipeError(
                f"{output}:{number}: this row is of another model, prompt file or other settings. "
                "Give -o another file, or the command that this file was begun with."
            )
        found.add(key)
    return found


def _write(
    wanted: Sequence[Wanted],
    done: set[str],
    writer: InProcessWriter,
    sampling: Sampling,
    samples: int,
    seed: int,
    rows: _Rows,
    stop: StopSignal,
) -> int:
    """Draws what is missing, batch by batch; each is on disk before the next is begun."""
    per_batch = max(writer.rows // samples, 1)
    written = 0
    total = len(wanted) * samples
    with progress("generate", total, "completions", done=len(done)) as advance:
        # The same batches whatever is done already: a sample in bfloat16 may depend on them.
        for start in range(0, len(wanted), per_batch):
            batch = [w for w in wanted[start : start + per_batch] if not done.issuperset(w.keys)]
            if not batch:
                continue
            stop.check(f"prompt {start + 1} of {len(wanted)}")
            drawn = writer.draw([Draw(w.stem, samples, sampling) for w in batch], seed)
            fresh: list[dict[str, Any]] = []
            for one, answers in zip(batch, drawn, strict=True):
                assert isinstance(answers, list), "a writer in this process always answers"
                fresh += [
                    _row(one, sample, answer, sampling)
                    for sample, answer in enumerate(answers)
                    if one.keys[sample] not in done
                ]
            rows.append(fresh)
            written += len(fresh)
            advance(len(fresh), tokens=sum(row["tokens"] for row in fresh))
    return written


def _row(one: Wanted, sample: int, answer: Drawn, sampling: Sampling) -> dict[str, Any]:
    places = [answer.text.find(stop) for stop in sampling.stop if stop in answer.text]
    prompt = one.prompt.model_dump(mode="json")
    return {
        "prompt": prompt["prompt"],
        "completion": answer.text[: min(places, default=len(answer.text))],
        "finished": answer.finish != "length",
        "tokens": len(answer.ids),
        "sample": sample,
        "row": one.prompt.row,
        "key": one.keys[sample],
    }


class _Rows:
    """Where rows go: the end of a file, or stdout."""

    def __init__(self, output: Path | None) -> None:
        if output is not None:
            output.parent.mkdir(parents=True, exist_ok=True)
        self._file = sys.stdout if output is None else output.open("a", encoding="utf-8")

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """Writes one line each; they are out of this process when it returns."""
        self._file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        self._file.flush()

    def __enter__(self) -> _Rows:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not sys.stdout:
            self._file.close()
