"""Many trees searched together, so that every call of a model is a full batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from align.data.problems import RowProblem
from align.policies.writer import Draw, NoAnswer, Writer
from align.progress import progress
from align_data.mcts.expansion import Ask, Asking, Rate, SearchFailed
from align_data.mcts.search import TreeSearch


@dataclass
class _Waiting:
    """A search, and what it waits for: draws only, or ratings only."""

    place: int
    search: Asking
    asks: list[Ask]


def search_together(
    searches: Sequence[TreeSearch], writer: Writer, critic: Writer, seed: int
) -> list[SearchFailed | RowProblem | None]:
    """Runs every search to its end; all that they wait for of one kind is asked for at once.

    Args:
        searches: fresh ones.
        writer: draws steps.
        critic: evaluates them; it may be the writer.
        seed: of the draws.

    Returns:
        Per search why it failed, or None where it did not.
    """
    failures: list[SearchFailed | RowProblem | None] = [None] * len(searches)
    waiting: list[_Waiting] = []
    for place, one in enumerate(searches):
        moved = _Waiting(place, one.run(), [])
        if _goes_on(moved, None, failures):
            waiting.append(moved)
    with progress("search", len(searches), "trees") as advance:
        while waiting:
            # The kind that most wait for: the others' batch fills up meanwhile.
            drawing = [one for one in waiting if isinstance(one.asks[0], Draw)]
            rating = [one for one in waiting if isinstance(one.asks[0], Rate)]
            served = drawing if len(drawing) >= len(rating) else rating
            answers = _answered([one.asks for one in served], writer, critic, seed)
            found = {one.place: answer for one, answer in zip(served, answers, strict=True)}
            waiting = [
                one
                for one in waiting
                if one.place not in found or _goes_on(one, found[one.place], failures)
            ]
            ended = len(searches) - len(waiting) - advance.done
            simulations = sum(one.counts["simulations"] for one in searches)
            advance(ended, note=f"{simulations} simulations")
    return failures


def _goes_on(
    one: _Waiting, found: list[Any] | None, failures: list[SearchFailed | RowProblem | None]
) -> bool:
    try:
        # A generator that has not begun can only be sent None.
        one.asks = one.search.send(found) if found is not None else next(one.search)
    except StopIteration:
        return False
    except (SearchFailed, RowProblem) as failure:
        failures[one.place] = failure
        return False
    return True


def _answered(
    asked: Sequence[Sequence[Ask]], writer: Writer, critic: Writer, seed: int
) -> list[list[Any]]:
    answers: list[list[Any]] = [[None] * len(asks) for asks in asked]
    places = [(i, j, ask) for i, asks in enumerate(asked) for j, ask in enumerate(asks)]
    draws = [(i, j, ask) for i, j, ask in places if isinstance(ask, Draw)]
    if draws:
        found = writer.draw([draw for _, _, draw in draws], seed)
        for (i, j, _), answer in zip(draws, found, strict=True):
            answers[i][j] = answer
    rates: dict[tuple[str, ...], list[tuple[int, int, Rate]]] = {}
    for i, j, ask in places:
        if not isinstance(ask, Rate):
            continue
        if critic.room(ask.stem) < 1:
            detail = f"{len(ask.stem.prompt_ids)} tokens leave no room for the critic's answer"
            answers[i][j] = NoAnswer("too_long", detail)
        else:
            rates.setdefault(tuple(ask.options), []).append((i, j, ask))
    for group in rates.values():
        masses = critic.option_mass([rate.stem for _, _, rate in group], group[0][2].options)
        for (i, j, _), answer in zip(group, masses, strict=True):
            answers[i][j] = answer
    return answers
