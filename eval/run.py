"""One evaluation of a recipe, from its node to its files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from align.loops.caller import CachedCaller
from align.loops.calls import CallStore
from align.loops.gate import Limits
from align.policies.base import Policy
from align.policies.endpoint import OpenAICaller
from align.recipe.evaluations import AlpacaEval, AnyEvaluation, ArenaHard, Tasks, WinRate
from eval import win_rate_run
from eval.alpaca_eval import run as alpaca_eval
from eval.arena_hard import run as arena_hard
from eval.outputs import Outputs, kept_outputs
from eval.task_run import run_tasks

CALLS = "calls.sqlite"
GENERATED = "generated.jsonl"


def needs_policy(node: AnyEvaluation) -> bool:
    """Whether the recipe's model must answer; else its outputs are read from a file."""
    match node:
        case AlpacaEval() | WinRate():
            return node.outputs is None
        case ArenaHard():
            return node.answers is None
        case Tasks():
            return True


def run_evaluation(
    node: AnyEvaluation,
    folder: Path,
    *,
    policy: Callable[[], Policy],
    model: str,
    count_tokens: Callable[[str], int] | None = None,
) -> dict[str, Any]:
    """Runs one evaluation; running it again asks only what failed.

    Args:
        node: of the recipe.
        folder: its own; made when absent. Answers of the judge are kept in it.
        policy: gives the recipe's model; called only where `needs_policy`.
        model: its name in tables, where the node gives none.
        count_tokens: length of a text, for style control of answers without metadata.

    Returns:
        What results.json holds.

    Raises:
        AlignError: an input does not fit, too much failed, or a server cannot be used.
    """
    folder.mkdir(parents=True, exist_ok=True)
    match node:
        case AlpacaEval():
            outputs = _outputs(node, alpaca_eval, folder, policy, node.generator or model)
            with _caller(alpaca_eval.judge_caller(node), node.limits, folder) as caller:
                return alpaca_eval.run_alpaca_eval(node, outputs, caller, folder)
        case ArenaHard():
            outputs = _outputs(node, arena_hard, folder, policy, node.model or model)
            with _caller(OpenAICaller(node.annotator), node.limits, folder) as caller:
                return arena_hard.run_arena_hard(node, outputs, caller, folder, count_tokens)
        case WinRate():
            outputs = _outputs(node, win_rate_run, folder, policy, node.name or model)
            with _caller(OpenAICaller(node.annotator), node.limits, folder) as caller:
                return win_rate_run.run_win_rate(node, outputs, caller, folder)
        case Tasks():
            return run_tasks(node, policy(), folder, model=model)


def _outputs(
    node: AlpacaEval | ArenaHard | WinRate,
    of: Any,
    folder: Path,
    policy: Callable[[], Policy],
    generator: str,
) -> Outputs:
    """Read where the node names a file, else generated; `of` is the module of the evaluation."""
    if not needs_policy(node):
        return of.answers_of(node) if isinstance(node, ArenaHard) else of.outputs_of(node)
    return kept_outputs(
        folder / GENERATED,
        policy(),
        of.prompts_of(node),
        generator=generator,
        sampling=node.sampling,
        seed=node.seed,
        source=node.run,
    )


@contextmanager
def _caller(server: OpenAICaller, limits: Limits, folder: Path) -> Iterator[CachedCaller]:
    with CallStore(folder / CALLS) as store:
        yield CachedCaller(server, store, limits)
