# pyright: basic
"""A round's training in a process that `accelerate launch` started; `order.json` says what."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from pathlib import Path

from align.errors import AlignError, Interrupted
from align.loops.artefacts import read_lines
from align.policies.loading import load_tokenizer
from align.recipe import load_recipe
from align.stages.launching import write_failure
from align.stages.policies import load_round_policy, save_policy, unpatched
from align.stages.processes import this_process
from align.stages.train import train_on
from align.stages.trained_rows import rows_for
from align.stages.workshop import Workshop
from align.trainers.sharding import state_to_save


def main(path: str) -> int:
    """Trains; the main process writes the policy and what the ledger is to say."""
    order = json.loads(Path(path).read_text())
    recipe = load_recipe(order["recipe"])
    state = this_process(recipe.train.use_cpu, recipe.train.ddp_timeout)
    workshop = Workshop(recipe, order["start"], load_tokenizer(recipe.model, order["start"]))
    model = load_round_policy(recipe, Path(order["policy"]), order["start"], trainable=True)
    rows = [rows_for(recipe.objective).read(row) for row in read_lines(Path(order["rows"]))]
    scratch = Path(order["scratch"])
    trainer, about = train_on(recipe, workshop, model, rows, order["roles"], order["seed"], scratch)
    weights = state_to_save(trainer)
    if state.is_main_process:
        save_policy(
            unpatched(trainer.accelerator.unwrap_model(trainer.model)),
            workshop.tokenizer,
            Path(order["out"]),
            weights,
        )
        (scratch / "about.json").write_text(json.dumps(about, allow_nan=False))
    state.wait_for_everyone()
    return 0


def end_with_parent() -> None:
    """Ends this process at once when the loop that launched it is gone, however that ended.

    Launchers hand the loop's pipe down to their processes, and killing the loop closes it. Two
    trainings in one scratch folder would mix their checkpoints.
    """

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        os._exit(Interrupted.exit_code)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    end_with_parent()
    try:
        sys.exit(main(sys.argv[1]))
    except AlignError as error:
        write_failure(Path(sys.argv[1]).parent, error)
        sys.exit(error.exit_code)
