"""Started by test_sharded.py, on one process or on two: some short trainings, as JSON."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from align.trainers import GroupConfig, GroupTrainer, PreferenceConfig, PreferenceTrainer

ROLES = ("reference", "previous")


def take_cpus_for_gpus() -> None:
    """Makes accelerate shard over gloo processes, which it does over GPUs only."""
    begin = PartialState.__init__

    def begun(self: PartialState, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = begun


class Runs:
    """Trainings on the same rows."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.given = given
        self.rows = Dataset.from_list(given["rows"])
        self.out = Path(given["out"])
        self.tokenizer = AutoTokenizer.from_pretrained(given["policy"])
        self.batch = 4 // PartialState().num_processes

    def trainer(self, name: str, objective: Any, **more: Any) -> Any:
        settings = {
            "learning_rate": 5e-3,
            "max_steps": 4,
            "per_device_train_batch_size": self.batch,
            "per_device_eval_batch_size": self.batch,
            "gradient_accumulation_steps": 2,
            "token_budget": 60,
            "logging_steps": 1,
            "save_strategy": "no",
            "bf16": False,
            "use_cpu": True,
            "report_to": [],
            "disable_tqdm": True,
            "gradient_checkpointing": False,
            "dataloader_pin_memory": False,
        } | more.pop("settings", {})
        kinds = (GroupTrainer, GroupConfig) if "groups" in more else (PreferenceTrainer, PreferenceConfig)
        rows = more.pop("groups", self.rows)
        # float64, because Adam's first steps make much of a gradient's last bits.
        model = AutoModelForCausalLM.from_pretrained(self.given["policy"], dtype=torch.float64)
        return kinds[0](
            model,
            args=kinds[1](output_dir=str(self.out / name), **settings),
            train_dataset=rows,
            eval_dataset=rows.select(range(11)),
            processing_class=self.tokenizer,
            objective=objective,
            **more,
        )


def found(trainer: Any) -> dict[str, Any]:
    sums = {}
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            whole = parameter.detach()
            whole = whole.full_tensor() if hasattr(whole, "full_tensor") else whole
            sums[name] = [float(whole.sum()), float(whole.abs().sum())]
    table = trainer.train_dataset
    return {
        "sharded": [n for n, p in trainer.model.named_parameters() if hasattr(p, "full_tensor")],
        "history": trainer.state.log_history,
        "probe": trainer.probe,
        "backend": trainer.backend.backend.name,
        "weights": sums,
        "scores": {c: list(table[c]) for c in table.column_names if c.endswith("_logps")},
        "identities": {role: who.to_json() for role, who in trainer.identities.items()},
    }


def main(order: str) -> None:
    given = json.loads(Path(order).read_text())
    take_cpus_for_gpus()
    PartialState(cpu=True)
    runs = Runs(given)
    results: dict[str, Any] = {"processes": PartialState().num_processes}
    for name in given["runs"]:
        results[name] = globals()[name](runs)
    if PartialState().is_main_process:
        Path(given["out"], "found.json").write_text(json.dumps(results))


INPO = {"name": "inpo", "eta": 2.0, "tau": 0.5}
CHECKED = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}


def full(runs: Runs) -> dict[str, Any]:
    roles = {"reference": "start", "previous": runs.given["other"]}
    trainer = runs.trainer("full", INPO, roles=roles, settings=CHECKED)
    before = trainer.evaluate()
    trainer.train()
    trainer.save_model(str(runs.out / "full-model"))
    return found(trainer) | {"before": before}


def lora(runs: Runs) -> dict[str, Any]:
    roles = {"reference": "start", "previous": runs.given["adapter"]}
    config = LoraConfig(r=1, task_type="CAUSAL_LM", target_modules=["q_proj", "up_proj"])
    trainer = runs.trainer("lora", INPO, roles=roles, peft_config=config, settings=CHECKED)
    trainer.train()
    trainer.save_model(str(runs.out / "lora-model"))
    return found(trainer)


if __name__ == "__main__":
    main(sys.argv[1])
