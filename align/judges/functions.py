"""A function of a user's own as a judge: a reward of one completion, or a comparison of two.

    def concise(prompt, completion, **columns) -> float | None
    def better(prompt, first, second, **columns) -> float | None       P(first beats second)

`prompt` is a text, or a list of {"role", "content"} where the data are conversational; completions
are texts. With `prompts` and `completions` (or `firsts` and `seconds`) in the plural the function
takes lists and returns one, as TRL's reward functions do. Either may be `async`. `columns` are
those of the prompt's row. What raises, or returns no finite number, is a failed verdict that says
where.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from align.data.messages import Text, prompt_id
from align.errors import RecipeError
from align.judges.base import (
    Answer,
    Answers,
    Asked,
    Bench,
    Comparison,
    JudgeFailed,
    JudgeNode,
    PairJudge,
    Prefers,
    ScoreJudge,
    Tie,
    Verdict,
)
from align.progress import Phase, progress

ONE, TWO = ("prompt", "completion"), ("prompt", "first", "second")
MANY, MANY_TWO = ("prompts", "completions"), ("prompts", "firsts", "seconds")
# Awaited at a time.
TOGETHER = 64


def length(prompt: Any, completion: str) -> float:
    """Characters of a completion; with a negative weight, a price on words."""
    return float(len(completion))


def judge_of(function: Callable[..., Any], name: str) -> type[JudgeNode]:
    """The node of a function, by the names of its parameters.

    Raises:
        RecipeError: its parameters are none of the four lists above.
    """
    parameters = inspect.signature(function).parameters
    given = tuple(parameters)
    shapes = (TWO, MANY_TWO, ONE, MANY)
    shape = next((shape for shape in shapes if given[: len(shape)] == shape), None)
    if shape is None:
        raise RecipeError(
            f"{name}: the function's parameters are {', '.join(given) or 'none'}. Write (prompt, "
            "completion, **columns) for a reward or (prompt, first, second, **columns) for a "
            "comparison, or both in the plural for lists."
        )
    about = {
        "__module__": __name__,
        "__doc__": inspect.getdoc(function) or FunctionJudge.__doc__,
        "gives": "scores" if len(shape) == 2 else "comparisons",
        "reads_columns": len(given) > len(shape),
        "function": staticmethod(function),
        "shape": shape,
    }
    metaclass: Any = type(FunctionJudge)
    return metaclass(FunctionJudge.__name__, (FunctionJudge,), about)


class FunctionJudge(JudgeNode):
    """A function of one's own judges."""

    by: str
    """Who judges: file.py:function."""
    function: ClassVar[Callable[..., Any]]
    shape: ClassVar[tuple[str, ...]]
    gives: ClassVar[Answers | None] = None

    @contextmanager
    def open(self, bench: Bench) -> Iterator[ScoreJudge | PairJudge]:
        """The judge."""
        asking = Asking(self.function, self.shape, bench.row_of)
        identity = f"function:{self.by}@{(self.code or 'built-in')[:16]}"
        is_reward = self.gives == "scores"
        yield (
            ScoringFunction(identity, asking) if is_reward else ComparingFunction(identity, asking)
        )


class Asking:
    """Calls of a user's function.

    Args:
        function: sync or async.
        shape: the names of its first parameters.
        row_of: id of a prompt's text -> its row.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        shape: tuple[str, ...],
        row_of: Callable[[str], Asked | None],
    ) -> None:
        self._function = function
        self._title = getattr(function, "__name__", "judge")
        self._shape = shape
        self._row_of = row_of
        parameters = inspect.signature(function).parameters.values()
        self._takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        self._takes = [p.name for p in parameters][len(shape) :]

    def __call__(self, asked: Sequence[tuple[Any, ...]]) -> list[float | JudgeFailed]:
        """One number, or why there is none, per (prompt, text, ...)."""
        rows = [self._row_of(prompt_id(prompt)) for prompt, *_ in asked]
        asked = [(_plain(prompt), *texts) for prompt, *texts in asked]
        columns = [self._columns(row) for row in rows]
        if self._shape in (MANY, MANY_TWO):
            found = self._together(asked, columns)
        else:
            found = self._one_by_one(asked, columns)
        return [self._number(value, row) for value, row in zip(found, rows, strict=True)]

    def _columns(self, row: Asked | None) -> Mapping[str, Any]:
        known = {} if row is None else row.columns
        if self._takes_all:
            return {name: value for name, value in known.items() if name not in self._shape}
        return {name: known[name] for name in self._takes if name in known}

    def _one_by_one(
        self, asked: Sequence[tuple[Any, ...]], columns: Sequence[Mapping[str, Any]]
    ) -> list[Any]:
        calls = [
            (dict(zip(self._shape, texts, strict=True)) | dict(more))
            for texts, more in zip(asked, columns, strict=True)
        ]
        with progress(self._title, len(calls), "calls") as advance:
            if inspect.iscoroutinefunction(self._function):
                return asyncio.run(_awaited([self._function] * len(calls), calls, advance))
            return [_tried(self._function, call, advance) for call in calls]

    def _together(
        self, asked: Sequence[tuple[Any, ...]], columns: Sequence[Mapping[str, Any]]
    ) -> list[Any]:
        if not asked:
            return []
        lists = dict(zip(self._shape, map(list, zip(*asked, strict=True)), strict=True))
        names = dict.fromkeys(name for row in columns for name in row)
        lists |= {name: [row.get(name) for row in columns] for name in names}
        with progress(self._title, 1, "calls") as advance:
            if inspect.iscoroutinefunction(self._function):
                (found,) = asyncio.run(_awaited([self._function], [lists], advance))
            else:
                found = _tried(self._function, lists, advance)
        if isinstance(found, Exception):
            return [found] * len(asked)
        values = list(found)
        if len(values) != len(asked):
            what = f"it returned {len(values)} values for {len(asked)} completions"
            return [ValueError(what)] * len(asked)
        return values

    def _number(self, value: Any, row: Asked | None) -> float | JudgeFailed:
        where = self._where() + (f"; {row.source}:{row.row}" if row is not None else "")
        if isinstance(value, Exception):
            last = traceback.extract_tb(value.__traceback__)[-1:]
            at = f"{last[0].filename}:{last[0].lineno}" if last else self._where()
            where = at + (f"; {row.source}:{row.row}" if row is not None else "")
            return JudgeFailed("raised", f"{type(value).__name__}: {value} ({where})")
        if value is None:
            return JudgeFailed("no_verdict", f"the function returned None ({where})")
        try:
            number = float(value)
        except (TypeError, ValueError):
            kind = type(value).__name__
            return JudgeFailed("no_number", f"the function returned a {kind} ({where})")
        if not math.isfinite(number):
            return JudgeFailed("not_finite", f"the function returned {number} ({where})")
        return number

    def _where(self) -> str:
        code = inspect.unwrap(self._function).__code__
        return f"{code.co_filename}:{code.co_firstlineno}"


def _plain(prompt: Text) -> Any:
    if isinstance(prompt, str):
        return prompt
    return [{"role": turn.role, "content": turn.content} for turn in prompt]


def _tried(function: Callable[..., Any], call: Mapping[str, Any], advance: Phase) -> Any:
    try:
        return function(**call)
    except Exception as error:  # whatever a user's function raises is a failed verdict
        return error
    finally:
        advance()


async def _awaited(
    functions: Sequence[Callable[..., Awaitable[Any]]],
    calls: Sequence[Mapping[str, Any]],
    advance: Phase,
) -> list[Any]:
    gate = asyncio.Semaphore(TOGETHER)

    async def one(function: Callable[..., Awaitable[Any]], call: Mapping[str, Any]) -> Any:
        async with gate:
            try:
                return await function(**call)
            except Exception as error:  # as in `_tried`
                return error
            finally:
                advance()

    return await asyncio.gather(*map(one, functions, calls))


class ScoringFunction:
    """A user's reward as a judge."""

    def __init__(self, identity: str, asking: Asking) -> None:
        self.identity = identity
        self._asking = asking

    def score(self, items: Sequence[Answer]) -> list[float | JudgeFailed]:
        """One finite number, or the reason why there is none, per item in their order."""
        return self._asking([(item.prompt, item.completion) for item in items])


class ComparingFunction:
    """A user's comparison as a judge."""

    def __init__(self, identity: str, asking: Asking) -> None:
        self.identity = identity
        self._asking = asking

    def compare(self, items: Sequence[Comparison]) -> list[Verdict]:
        """One verdict per item, in their order; 1/2 is a tie."""
        asked = [(item.prompt, item.first, item.second) for item in items]
        return [_verdict(p) for p in self._asking(asked)]


def _verdict(p: float | JudgeFailed) -> Verdict:
    if isinstance(p, JudgeFailed):
        return p
    if not 0.0 <= p <= 1.0:
        return JudgeFailed("no_probability", f"the function returned {p:g}, outside of [0, 1]")
    if p == 0.5:
        return Tie()
    return Prefers("first" if p > 0.5 else "second", p)
