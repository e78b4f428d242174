# pyright: basic
"""Checkpoints that can be trusted: sealed, published by one rename, verified when read.

A run goes on only from a checkpoint that is whole and that belongs to the same run.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import rotate_checkpoints

from align.errors import MachineError, RecipeError
from align.runs.manifest import MANIFEST, damage, publish, read_about
from align.trainers.base import TrainerBase
from align.trainers.guards import StopOnSignal
from align.trainers.ranks import of_main, seen
from align.trainers.settings import run_settings
from align.trainers.sharding import gathered_state

logger = logging.getLogger(__name__)

STAGING = "staging"
# More of these is the same run, gone on for longer.
MAY_GROW = ("max_steps", "num_train_epochs")
STATE = "align_state_{rank}.json"


def checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoint folders of a run, newest first, whole or not."""
    found = [
        (int(match[1]), path)
        for path in output_dir.glob("checkpoint-*")
        if path.is_dir() and (match := re.fullmatch(r"checkpoint-(\d+)", path.name))
    ]
    return [path for _, path in sorted(found, reverse=True)]


def newest_whole_checkpoint(output_dir: Path) -> Path | None:
    """The newest checkpoint whose every file is as it was written; the log names damaged ones.

    Raises:
        RecipeError: all of them are another trainer's.
    """
    found = checkpoints(output_dir)
    if found and not any((path / MANIFEST).exists() for path in found):
        refuse_of_another_trainer(found[0])
    for path in found:
        problem = damage(path)
        if problem is None:
            return path
        logger.warning("Skipping %s: %s. Trying the one before it.", path.name, problem)
    return None


def refuse_of_another_trainer(checkpoint: Path) -> None:
    """A folder under its last name without a seal was not written here: here the seal comes first.

    Raises:
        RecipeError: with the way to go on from its weights.
    """
    if (checkpoint / TRAINER_STATE_NAME).exists() and not (checkpoint / MANIFEST).exists():
        raise RecipeError(
            f"{checkpoint} was written by another trainer, such as TRL's: it has no seal, and not "
            "what is needed to go on exactly. Start a new run from its weights, in another folder: "
            "give this one as the model."
        )


def set_newer_aside(output_dir: Path, resumed: Path | None) -> None:
    """Renames checkpoints newer than the resumed one: damaged ones, or ones gone back behind.

    `save_total_limit` counts folders by their number: such a one would be kept, and whole ones of
    this run deleted.
    """
    for path in checkpoints(output_dir):
        if resumed is not None and path.name == resumed.name:
            return
        aside = path.with_name(f"set-aside-{path.name}")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        logger.warning("%s is kept as %s and not used.", path.name, aside.name)


def refuse_other_run(
    checkpoint: Path, now: Mapping[str, Any], allow_change: Collection[str] = ()
) -> None:
    """Compares the settings of the run that wrote `checkpoint` with the present ones.

    Raises:
        RecipeError: a setting outside `allow_change` differs; the text lists every one.
    """
    then = read_about(checkpoint)["run"]
    # Through JSON, so that a tuple and a list, or 1 and 1.0, are not a difference.
    now = json.loads(json.dumps(now))
    changed = [
        f"{key}: {_short(then.get(key))} -> {_short(now.get(key))}"
        for key in sorted({*then, *now})
        if then.get(key) != now.get(key)
        and key not in allow_change
        and not (key in MAY_GROW and key in then and now[key] > then[key] > 0)
    ]
    if changed:
        raise RecipeError(
            f"{checkpoint} belongs to another run than this one, so going on from it would mix two "
            f"runs. Changed since it was written: {'; '.join(changed)}. Put these back, start a "
            "new run in another folder, or name the fields in `--allow-change` if you mean it."
        )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


class SealedCheckpoints(Trainer):
    """The part of any trainer that saves and resumes; children say what else a checkpoint holds."""

    args: Any
    _settings: dict[str, Any]
    _signal: StopOnSignal
    _staging = False

    def settings(self) -> dict[str, Any]:
        """Everything a resumed run must have in common with the one that wrote the checkpoint."""
        raise NotImplementedError

    @property
    def changeable(self) -> Collection[str]:
        """Names of settings that may differ from the checkpoint that a run resumes from."""
        raise NotImplementedError

    def _kept(self) -> dict[str, Any]:
        """What this rank must find again besides what transformers keeps, ready for JSON."""
        raise NotImplementedError

    def _find_again(self, kept: Mapping[str, Any]) -> None:
        """Takes up what `_kept` gave."""
        raise NotImplementedError

    @property
    def stopped_by(self) -> str | None:
        """The signal that ended training early, if one did."""
        return self._signal.stopped

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """As in `Trainer`; `True` means the newest whole checkpoint, or afresh where none is.

        Raises:
            RecipeError: the checkpoint belongs to a run with other settings or to another trainer,
                or is named and damaged.
        """
        # Once, because the rows are hashed for it.
        self._settings = self.settings()
        checkpoint = of_main(self.accelerator, lambda: self._to_go_on_from(resume_from_checkpoint))
        if checkpoint is not None:
            rank = self.accelerator.process_index
            self._find_again(json.loads((checkpoint / STATE.format(rank=rank)).read_text()))
        try:
            return super().train(str(checkpoint) if checkpoint else None, *args, **kwargs)
        finally:
            self._signal.release()

    def _to_go_on_from(self, asked: str | bool | None) -> Path | None:
        """The checkpoint, verified; what is in the way of the run's new ones is put aside."""
        output_dir = Path(self.args.output_dir)
        checkpoint: Path | None = None
        if asked is True:
            checkpoint = newest_whole_checkpoint(output_dir)
        elif asked:
            checkpoint = Path(asked)
            refuse_of_another_trainer(checkpoint)
            if problem := damage(checkpoint):
                raise RecipeError(
                    f"{checkpoint} is not a whole checkpoint: {problem}. Name another one, or pass "
                    "resume_from_checkpoint=True for the newest whole one of this run."
                )
        if checkpoint is not None:
            refuse_other_run(checkpoint, self._settings, self.changeable)
        if asked:
            set_newer_aside(output_dir, checkpoint)
        shutil.rmtree(output_dir / STAGING, ignore_errors=True)
        return checkpoint

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As in `Trainer`; weights that FSDP shards are gathered, and of an adapter only its own.

        A checkpoint holds the shards beside; it takes whole weights only where FSDP's
        `state_dict_type` is FULL_STATE_DICT.
        """
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        if plugin is None or (_internal_call and "FULL" not in str(plugin.state_dict_type)):
            super().save_model(output_dir, _internal_call)
            return
        folder: Any = self.args.output_dir if output_dir is None else output_dir
        self._save(folder, state_dict=gathered_state(self.model))
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _get_output_dir(self, trial: Any) -> str:
        base = super()._get_output_dir(trial)
        return str(Path(base) / STAGING) if self._staging else base

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Writes into a staging folder, seals it with a manifest, publishes it by one rename."""
        output_dir = Path(super()._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        staged = output_dir / STAGING / name
        if self.accelerator.is_main_process:
            shutil.rmtree(staged, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._staging = True
        try:
            # Past TRL's trainers, whose version writes a model card for its own loss.
            Trainer._save_checkpoint(self, model, trial)
        finally:
            self._staging = False
        if self.state.best_global_step:
            # Trainer looked for it in the staging folder.
            best = output_dir / f"checkpoint-{self.state.best_global_step}"
            self.state.best_model_checkpoint = str(best)
            if self.args.should_save:
                self.state.save_to_json(str(staged / TRAINER_STATE_NAME))
        rank = self.accelerator.process_index
        (staged / STATE.format(rank=rank)).write_text(json.dumps(self._kept()))
        # Nobody looks before all have written: half-written files go by other names.
        self.accelerator.wait_for_everyone()
        written = [str(path) for path in staged.rglob("*")]
        if self.accelerator.num_processes > 1:
            # What another machine wrote may not be seen here yet, and would not be sealed.
            written = gather_object(written)
        if self.args.should_save:
            if missing := next((name for name in written if not seen(Path(name))), None):
                raise MachineError(
                    f"{missing} was written by another process and is not seen on the main one. "
                    "On several machines output_dir must be a folder that all of them share."
                )
            about = {"run": self._settings, "step": self.state.global_step}
            publish(staged, output_dir / name, about)
            rotate_checkpoints(
                output_dir=str(output_dir),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=False,
            )
            with contextlib.suppress(OSError):
                # Another rank may still have something there.
                (output_dir / STAGING).rmdir()
        self.accelerator.wait_for_everyone()


class Checkpointing(SealedCheckpoints, TrainerBase):
    """The part of the preference trainer that saves and resumes."""

    def settings(self) -> dict[str, Any]:
        """Everything a resumed run must have in common with the one that wrote the checkpoint."""
        return run_settings(self)

    @property
    def changeable(self) -> Collection[str]:
        """Names of settings that may differ from the checkpoint that a run resumes from."""
        return self.args.allow_change

    def _kept(self) -> dict[str, Any]:
        return {
            "tokens": int(self._tokens_here),
            "computed_tokens": self._computed_here,
            "sums": self._train_sums.to_json(),
            "token_budget": getattr(self.data_collator, "token_budget", None),
        }

    def _find_again(self, kept: Mapping[str, Any]) -> None:
        self._tokens_here, self._computed_here = kept["tokens"], kept["computed_tokens"]
        self._train_sums.restore(kept["sums"])
        if self.args.token_budget == "auto":
            # Other borders of forward passes round otherwise.
            self.data_collator = replace(self.data_collator, token_budget=kept["token_budget"])
