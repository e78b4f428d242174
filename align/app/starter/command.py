"""Writing a starter recipe, and checking it at once."""

from __future__ import annotations

from pathlib import Path

from align.app.check_recipe import check_recipe
from align.app.starter.loop import loop_text
from align.app.starter.pairs import pairs_text
from align.app.starter.wish import Wish, found_model, objective_of
from align.errors import RecipeError
from align.runs.folder import write_atomically


def init_recipe(wish: Wish, out: Path, *, may_replace: bool) -> str:
    """Writes the recipe, checks it as `align check` does, and says how to go on.

    Args:
        wish: what was asked for.
        out: the file.
        may_replace: whether a file that stands there is replaced.

    Raises:
        RecipeError: `out` is there, the model or the method is not, or options that do not fit.
        DataError: rows that cannot be read or used; the recipe that was written stays.
    """
    if out.exists() and not may_replace:
        raise RecipeError(f"{out} is there already: name another file with --out, or add --force.")
    if wish.loop and wish.reward is None:
        raise RecipeError("--loop needs --reward file.py:function, which scores what is generated.")
    if wish.reward is not None and not wish.loop:
        raise RecipeError(f"--reward {wish.reward}: only a loop generates; add --loop.")
    objective = objective_of(wish.method)
    found = found_model(wish.model)
    text = (loop_text if wish.loop else pairs_text)(wish, found, objective)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, text)
    # Its code, if any, was named by who gives this very command.
    report = check_recipe(out, [], run_code=True)
    run = "loop" if wish.loop else "train"
    return "\n".join(
        [
            f"{out}: written, and checked:",
            *(f"  {line}" for line in report.splitlines()),
            "Next:",
            f"  align check {out} --show-example",
            f"  align {run} {out}",
        ]
    )
