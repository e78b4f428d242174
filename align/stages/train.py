# pyright: basic
"""The policy learns from the round's pairs or groups: these, policy -> policy (and anchor)."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from accelerate.utils.memory import clear_device_cache
from pydantic import Field

from align import registry
from align.data.row_report import RowReport
from align.errors import Interrupted
from align.loops.artefacts import read_lines
from align.loops.stage import StageContext, StageNode
from align.recipe import Recipe, resolved_yaml
from align.recipe.sections import ema_decay
from align.reference import START, content_digest
from align.stages.launching import free_port, launch_config, run_launch
from align.stages.policies import (
    load_round_policy,
    save_policy,
    unpatched,
    update_average,
)
from align.stages.trained_rows import TrainedRows, rows_for
from align.stages.training import adapter_of, quieten, training_arguments
from align.stages.workshop import Workshop

# Role's source in a recipe -> what a stage reads for it. `round_start` is the policy itself before
# it is trained, which needs no second copy.
READ_FOR = {"start": "policy@start", "previous_round": "policy@previous_round"}
ANCHOR = "anchor"
# What of the trainer's log goes into the ledger: nothing that a clock moves.
SAID = (
    *("loss", "grad_norm", "rewards/margins", "rewards/accuracies", "rewards/mean"),
    *("logps/chosen", "logps/mean", "num_tokens"),
)


class TrainRound(StageNode):
    """The policy learns from the round's pairs or groups, as the `train` section says."""

    run: Literal["train"] = "train"
    """Which stage."""
    launch: str | None = Field(default=None, min_length=1)
    """A config of `accelerate launch`, such as recipes/accelerate/ddp.yaml; null: in process."""
    trains: ClassVar[bool] = True
    needs_prompts: ClassVar[bool] = False

    @property
    def shards(self) -> bool:
        """Whether the launch shards the weights, of which it then keeps copies in float32."""
        kind = None if self.launch is None else launch_config(self.launch).get("distributed_type")
        return kind in ("FSDP", "DEEPSPEED")

    def stage(self, workshop: Workshop) -> TrainStage:
        """The stage.

        Raises:
            RecipeError: `launch` names no config of `accelerate launch`.
        """
        return TrainStage(workshop, RoundTraining(workshop.loop_recipe), self)


@dataclass
class TrainStage:
    """The policy learns from the round's pairs, or groups."""

    workshop: Workshop
    training: RoundTraining
    node: TrainRound
    name: str = field(default="train", init=False)
    version: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        if self.node.launch is not None:
            launch_config(self.node.launch)

    @property
    def reads(self) -> tuple[str, ...]:
        """Pairs or groups, the policy, and the policies behind the objective's roles."""
        return (self.training.rows.name, "policy", *self.training.reads)

    @property
    def writes(self) -> tuple[str, ...]:
        """The next policy; the average where the anchor is one."""
        return ("policy", "anchor") if self.training.decay is not None else ("policy",)

    def settings(self) -> Mapping[str, Any]:
        """Objective, roles, training, and how rows become tokens."""
        launch = self.node.launch
        return self.training.settings() | {"launch": launch and content_digest(launch)}

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Trains on from the newest policy."""
        kind = self.training.rows
        rows = [kind.read(row) for row in read_lines(context.input(kind.name))]
        if self.node.launch is not None:
            return self.training.launched(context, self.workshop, self.node.launch)
        return self.training.in_process(context, self.workshop, rows)


@dataclass(frozen=True)
class RoundTraining:
    """How a loop's recipe trains in each round."""

    recipe: Recipe

    @property
    def rows(self) -> TrainedRows:
        """What the objective is over."""
        return rows_for(self.recipe.objective)

    @property
    def roles(self) -> dict[str, str]:
        """The roles that the objective reads, with their sources."""
        needs = self.recipe.objective.needs
        return {role: s for role, s in self.recipe.roles.given.items() if role in needs}

    @property
    def decay(self) -> float | None:
        """Of the average behind `anchor`, where it is one."""
        return ema_decay(self.roles.get(ANCHOR, ""))

    @property
    def reads(self) -> tuple[str, ...]:
        """Artefacts behind the roles."""
        found = [READ_FOR[s] for s in self.roles.values() if s in READ_FOR]
        return (*dict.fromkeys(found), *((ANCHOR,) if self.decay is not None else ()))

    def settings(self) -> dict[str, Any]:
        """What moves the result, besides the artefacts."""
        recipe = self.recipe
        outside = [
            s
            for s in self.roles.values()
            if s not in (*READ_FOR, "round_start") and ema_decay(s) is None
        ]
        of_rows = ("max_length", "on_too_long", "min_completion_tokens", "on_control_tokens")
        objective = recipe.objective.model_dump(mode="json")
        if (code := registry.code_of(recipe.objective)) is not None:
            objective["code"] = code
        return {
            "objective": objective,
            "roles": self.roles,
            "policies": {source: content_digest(source) for source in outside},
            "model": recipe.model.model_dump(mode="json"),
            "train": recipe.train.model_dump(mode="json"),
            "rows": {name: getattr(recipe.data, name) for name in of_rows},
        }

    def in_process(
        self, context: StageContext, workshop: Workshop, rows: Sequence[Any]
    ) -> Mapping[str, Any]:
        """Trains the newest policy and leaves it in memory for the stages that follow."""
        model = context.take("policy")
        if model is None:
            model = load_round_policy(
                self.recipe, context.input("policy"), workshop.start, trainable=True
            )
        roles = self._sources(context, workshop)
        trainer, about = train_on(
            self.recipe, workshop, model, rows, roles, context.seed, context.scratch
        )
        model = unpatched(trainer.model)
        save_policy(model, workshop.tokenizer, context.output("policy"))
        # The optimizer's states would lie beside the average.
        del trainer
        if self.decay is not None:
            self._move_anchor(context, workshop, model, self.decay)
        context.keep("policy", model)
        return about

    def launched(self, context: StageContext, workshop: Workshop, config: str) -> Mapping[str, Any]:
        """Trains in processes of its own, as `accelerate launch` starts them.

        Raises:
            Interrupted: a signal ended training; the same command goes on from its checkpoint.
            AlignError: training failed; its own message is above.
        """
        # The other processes need the memory that the policy takes here.
        context.take("policy")
        clear_device_cache(garbage_collection=True)
        order = context.scratch / "order.json"
        recipe = context.scratch / "recipe.yaml"
        recipe.write_text(resolved_yaml(self.recipe), encoding="utf-8")
        order.write_text(
            json.dumps(
                {
                    "recipe": str(recipe),
                    "start": workshop.start,
                    "policy": str(context.input("policy")),
                    "rows": str(context.input(self.rows.name)),
                    "roles": self._sources(context, workshop),
                    "seed": context.seed,
                    "scratch": str(context.scratch),
                    "out": str(context.output("policy")),
                }
            )
        )
        command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config]
        command += [*free_port(config), "-m", "align.stages.launched", str(order)]
        run_launch(command, context.scratch, context.stop)
        if self.decay is not None:
            newest = load_round_policy(
                self.recipe, context.output("policy"), workshop.start, trainable=False
            )
            self._move_anchor(context, workshop, newest, self.decay)
        return json.loads((context.scratch / "about.json").read_text())

    def _sources(self, context: StageContext, workshop: Workshop) -> dict[str, str]:
        """Role -> what the trainer is given for it."""
        found: dict[str, str] = {}
        now = context.inputs["policy"]
        for role, source in self.roles.items():
            if source == "round_start":
                found[role] = START
            elif (read := READ_FOR.get(source)) is not None:
                artefact = context.inputs[read]
                is_start = artefact.round == 0
                at = start_source(self.recipe, workshop.start) if is_start else str(artefact.path)
                found[role] = START if artefact.key == now.key else at
            elif self.decay is not None and role == ANCHOR:
                anchor = context.inputs[ANCHOR]
                given = anchor.round == 0
                found[role] = START if given and now.round == 0 else str(anchor.path)
            else:
                found[role] = source
        return found

    def _move_anchor(
        self, context: StageContext, workshop: Workshop, newest: Any, decay: float
    ) -> None:
        average = load_round_policy(
            self.recipe, context.input(ANCHOR), workshop.start, trainable=False
        )
        update_average(average, newest, decay)
        save_policy(average, workshop.tokenizer, context.output(ANCHOR))


def start_source(recipe: Recipe, start: str) -> str:
    """The loop's start as a role's source: a folder, or `id@revision`.

    A loop of adapters has it in memory, as the base of the policy's adapter; the trainer knows it
    by the name that it was loaded under.
    """
    is_in_memory = recipe.model.use_peft or Path(start).is_dir()
    return start if is_in_memory else f"{start}@{recipe.model.model_revision}"


def train_on(
    recipe: Recipe,
    workshop: Workshop,
    model: Any,
    records: Sequence[Any],
    roles: Mapping[str, str],
    seed: int,
    scratch: Path,
) -> tuple[Any, dict[str, Any]]:
    """Trains `model` on the rows of a round; a killed call goes on from its checkpoint.

    Returns:
        The finished trainer, and what the ledger is to say.

    Raises:
        Interrupted: a signal ended training.
    """
    report = RowReport()
    for _ in records:
        report.keep()
    kind = rows_for(recipe.objective)
    rows = kind.encode(records, workshop.tokenizer, recipe.data, report)
    is_adapter = hasattr(model, "peft_config")
    trainer = kind.trainer(
        model,
        args=training_arguments(recipe, scratch / "checkpoints", (), seed=seed),
        train_dataset=kind.table(rows),
        processing_class=workshop.tokenizer,
        peft_config=None if is_adapter else adapter_of(recipe.model),
        objective=recipe.objective,
        roles=roles,
    )
    quieten(trainer)
    trainer.train(resume_from_checkpoint=True)
    if trainer.stopped_by is not None:
        raise Interrupted(
            f"Stopped by {trainer.stopped_by} at step {trainer.state.global_step} of "
            f"{trainer.state.max_steps} of this round; a checkpoint is kept. Run the same command "
            "again to go on."
        )
    last = next((row for row in reversed(trainer.state.log_history) if "loss" in row), {})
    named = recipe.roles.given
    about = {
        kind.name: len(rows),
        "dropped": dict(sorted(report.dropped.items())),
        "steps": trainer.state.global_step,
        "roles": {
            # By the recipe's word: the same loop in another folder says the same.
            role: who.to_json() | {"source": named[role]}
            for role, who in trainer.identities.items()
        },
        "probe": trainer.probe,
        "forward": trainer.backend.backend.name,
        **{name: last[name] for name in SAID if name in last},
    }
    return trainer, about
