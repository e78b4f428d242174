"""The training loops that are compared: TRL's trainer and ours, as they are and with parts off."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bench_lengths import Row
from bench_models import Model
from bench_turns import Side, Step, Turns, meter_of
from datasets import Dataset
from transformers import PrinterCallback
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from align.forest import PADDED, Backend, Choice
from align.forest.model import add_edge_head
from align.trainers import PreferenceConfig, PreferenceTrainer
from align.trainers.loading import load_frozen
from align.types import Logps, Pair

BETA = 0.1
# Larger than anybody would choose, so that the losses of the two sides leave log 2 and can differ.
LEARNING_RATE = 1e-4
WARM_UP = 1
NEVER = 1 << 30


class Measured(DPOTrainer):
    """A trainer whose loop is a `Side`."""

    side: Side

    def take_turns(self, side: Side) -> None:
        self.side = side
        self.add_callback(side)
        self.remove_callback(PrinterCallback)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        self.side.begin(self.model)
        return super().get_batch_samples(*args, **kwargs)

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        loss = super().training_step(model, inputs, *args, **kwargs)
        self.side.loss, self.side.tokens = loss, _computed(inputs)
        return loss


def _computed(inputs: Mapping[str, Any]) -> int:
    if "parts" in inputs:
        return sum(part["pack"].computed_tokens for part in inputs["parts"])
    return inputs["input_ids"].numel()


class Trl(Measured):
    """TRL's trainer on rows that are tokenised already."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset


class OnlineReference(PreferenceTrainer):
    """Ours, with the reference computed anew in every step as TRL does by default."""

    frozen: Any

    def _with_roles(self, dataset: Dataset) -> Dataset:
        return dataset

    def _probe(self) -> None:
        return None

    def freeze(self, folder: str) -> None:
        """The reference is the model in `folder`."""
        self.frozen = load_frozen(folder, self.model.dtype).to(self.args.device)
        add_edge_head(self.frozen, self._edge_logps)

    def _frozen_logps(self, part: Mapping[str, Any], kind: Any) -> dict[str, Pair[Logps]]:
        del kind
        with torch.no_grad():
            return {"reference": self._logps(self.frozen, part)[0]}


class PaddedRows(PreferenceTrainer):
    """Ours, on padded rows."""

    def _choose_backend(self) -> Choice:
        return replace(super()._choose_backend(), backend=PADDED)


class WithoutSharing(PreferenceTrainer):
    """Ours, with every row computed on its own."""

    def _choose_backend(self) -> Choice:
        choice = super()._choose_backend()
        forest: Any = choice.backend
        if forest is PADDED:
            raise RuntimeError(f"`packed` is a forest without sharing, and here: {choice.reason}")
        alone = Backend(
            "packed",
            partial(forest.lay_out, shortest_shared=NEVER),
            partial(forest.cut, shortest_shared=NEVER),
        )
        return replace(choice, backend=alone)


BASELINES: dict[str, tuple[type, ...]] = {
    "trl": (Trl,),
    "trl_grouped": (Trl,),
    "compact": (Measured, PaddedRows),
    "packed": (Measured, WithoutSharing),
}
REFERENCES = ("online", "cached")


@dataclass(frozen=True)
class Setting:
    """What both sides have in common.

    Attributes:
        folder: of the model.
        model: what it is.
        tokenizer: for the names of special tokens.
        reference: `online`, computed in each step, or `cached`, computed before training.
        attention: of TRL's side.
        device: `cpu` or `cuda`.
        token_budget: of our side.
        pairs: of one step.
        work: folder for what trainers write.
    """

    folder: str
    model: Model
    tokenizer: Any
    reference: str
    attention: str
    device: str
    token_budget: int
    pairs: int
    work: Path


def compare(
    baseline: str, rows: Sequence[Row], setting: Setting
) -> tuple[list[Step], list[Step], Any]:
    """The steps of the baseline and ours over `rows`, and our trainer."""
    # What the comparison before left behind must not stand beside these models.
    gc.collect()
    torch.cuda.empty_cache()
    columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    dataset = Dataset.from_dict({name: [row[name] for row in rows] for name in columns})
    steps = len(rows) // setting.pairs
    theirs = _trainer(BASELINES[baseline], dataset, setting)
    ours = _trainer((Measured,), dataset, setting)
    trainers = (theirs, ours)
    turns, meter = Turns(steps), meter_of(setting.device)
    for number, trainer in enumerate(trainers):
        trainer.take_turns(Side(number, turns, meter, steps))

    def run(trainer: Any) -> None:
        try:
            trainer.train()
        except BaseException:
            turns.fail()
            raise

    with ThreadPoolExecutor(2) as threads:
        running = [threads.submit(run, trainer) for trainer in trainers]
        try:
            done, _ = wait(running, return_when=FIRST_EXCEPTION)
        except BaseException:
            turns.fail()
            raise
        for one in done:
            one.result()
    return theirs.side.steps[WARM_UP:], ours.side.steps[WARM_UP:], ours


def _trainer(kinds: tuple[type, ...], dataset: Dataset, setting: Setting) -> Any:
    is_ours = Trl not in kinds
    name = "-".join(kind.__name__ for kind in kinds)
    common: dict[str, Any] = {
        "output_dir": str(setting.work / name),
        "learning_rate": LEARNING_RATE,
        "max_steps": 10_000,  # the side stops it
        "per_device_train_batch_size": setting.pairs,
        "train_sampling_strategy": "sequential",
        "bf16": False,  # nothing beyond the weights' own dtype
        "use_cpu": setting.device == "cpu",
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "model_init_kwargs": {"dtype": setting.model.dtype},
        **setting.model.training,
    }
    if not is_ours:
        common["model_init_kwargs"]["attn_implementation"] = setting.attention
        args = DPOConfig(
            **common, beta=BETA, precompute_ref_log_probs=setting.reference == "cached"
        )
        return kinds[0](
            setting.folder, args=args, train_dataset=dataset, processing_class=setting.tokenizer
        )
    whole_batch = PaddedRows in kinds
    args = PreferenceConfig(**common, token_budget=None if whole_batch else setting.token_budget)
    is_online = setting.reference == "online"
    bases = (*kinds, *((OnlineReference,) if is_online else ()), PreferenceTrainer)
    # `Measured` must come first to see whole steps, so the class is put together here.
    trainer: Any = type(name, bases, {})(
        setting.folder,
        args=args,
        train_dataset=dataset,
        processing_class=setting.tokenizer,
        objective={"name": "dpo", "beta": BETA},
    )
    if is_online:
        trainer.freeze(setting.folder)
    return trainer
