"""Started by test_sharded.py, on one process or on two: some short trainings, as JSON."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, fsdp_utils
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from align.app.cli import main as main_of_align
from align.trainers import GroupConfig, GroupTrainer, PreferenceConfig, PreferenceTrainer


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
        self.is_one = PartialState().num_processes == 1

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
        kinds = (
            (GroupTrainer, GroupConfig)
            if "groups" in more
            else (PreferenceTrainer, PreferenceConfig)
        )
        rows = more.pop("groups", self.rows)
        # float64, because Adam's first steps make much of a gradient's last bits.
        policy = self.given["policy"]
        model = more.pop("model", None) or AutoModelForCausalLM.from_pretrained(
            policy, dtype=torch.float64
        )
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
            sums[name.replace("_checkpoint_wrapped_module.", "")] = [
                float(whole.sum()),
                float(whole.abs().sum()),
            ]
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
DPO = {"name": "dpo", "beta": 0.3}
SAVED = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}


def resumed(trainer: Any, runs: Runs, name: str) -> dict[str, Any]:
    """From the middle of a run of two processes; other tests know of one."""
    trainer.train(resume_from_checkpoint=str(runs.out / name / "checkpoint-2"))
    return found(trainer)


def full(runs: Runs) -> dict[str, Any]:
    """All weights, a role that is another model, an evaluation before training."""

    def made() -> Any:
        roles = {"reference": "start", "previous": runs.given["other"]}
        return runs.trainer("full", INPO, roles=roles, settings=SAVED)

    trainer = made()
    before = trainer.evaluate()
    trainer.train()
    trainer.save_model(str(runs.out / "full-model"))
    result = found(trainer) | {"before": before}
    result["held_out"] = trainer.evaluate(runs.rows.select([11, 12, 0]), metric_key_prefix="new")
    return result if runs.is_one else result | {"resumed": resumed(made(), runs, "full")}


def lora(runs: Runs) -> dict[str, Any]:
    """An adapter of rank 1, half of whose shards are empty, and a role that is an adapter."""

    def made() -> Any:
        roles = {"reference": "start", "previous": runs.given["adapter"]}
        config = LoraConfig(r=1, task_type="CAUSAL_LM", target_modules=["q_proj", "up_proj"])
        torch.manual_seed(0)
        return runs.trainer("lora", INPO, roles=roles, peft_config=config, settings=SAVED)

    trainer = made()
    trainer.train()
    trainer.save_model(str(runs.out / "lora-model"))
    result = found(trainer)
    result["held_out"] = trainer.evaluate(runs.rows.select([11, 12, 0]), metric_key_prefix="new")
    return result if runs.is_one else result | {"resumed": resumed(made(), runs, "lora")}


def coupled(runs: Runs) -> dict[str, Any]:
    """An objective that looks at the whole step."""
    parts = [{"name": "bco", "beta": 0.3}, {"name": "beta_dpo", "beta": 0.3, "keep": 0.6}]
    objective = {"name": "sum", "of": [{"objective": part} for part in parts]}
    settings = {"max_steps": 2, "gradient_checkpointing": True}
    trainer = runs.trainer("coupled", objective, settings=settings)
    trainer.train()
    trainer.evaluate()
    return found(trainer)


def kto(runs: Runs) -> dict[str, Any]:
    """Single completions, whose KL term is measured in passes of its own."""
    sides = ("chosen_ids", "rejected_ids")
    rows = [
        {"prompt_ids": row["prompt_ids"], "completion_ids": row[sides[i % 2]], "label": i % 2 == 0}
        for i, row in enumerate(runs.given["rows"])
    ]
    settings = {
        "max_steps": 2,
        "train_sampling_strategy": "sequential",
        # A row's mismatched completion is that of another row of one device's batch.
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4 // PartialState().num_processes,
    }
    trainer = runs.trainer(
        "kto", {"name": "kto", "beta": 0.3}, groups=Dataset.from_list(rows), settings=settings
    )
    trainer.train()
    trainer.evaluate()
    return found(trainer)


def head_apart(runs: Runs) -> dict[str, Any]:
    """A model whose last norm accelerate does not find, so that its head is sharded alone.

    With FSDP's own checkpointing of activations.
    """
    find, fsdp_utils._find_final_norm = fsdp_utils._find_final_norm, lambda model: None
    os.environ["FSDP_ACTIVATION_CHECKPOINTING"] = "true"
    trainer = runs.trainer("head_apart", DPO, settings={"max_steps": 2})
    trainer.train()
    os.environ["FSDP_ACTIVATION_CHECKPOINTING"] = "false"
    fsdp_utils._find_final_norm = find
    return found(trainer)


def renewed(runs: Runs) -> dict[str, Any]:
    """A reference that follows the policy."""
    settings = {"sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 0.5}
    trainer = runs.trainer("renewed", DPO, settings=settings | {"max_steps": 3})
    trainer.train()
    return found(trainer)


def narrow(runs: Runs) -> dict[str, Any]:
    """Mixed precision; no number of it is that of one process."""
    trainer = runs.trainer("narrow", DPO, settings={"bf16": True, "max_steps": 1})
    trainer.train()
    return found(trainer)


def quantised(runs: Runs) -> dict[str, Any]:
    """4-bit weights, stored in the type of the others so that they are sharded too."""
    in_four_bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.float32,
        bnb_4bit_quant_storage=torch.float32,
    )
    model = AutoModelForCausalLM.from_pretrained(
        runs.given["policy"],
        dtype=torch.float32,
        quantization_config=in_four_bits,
        device_map={"": "cpu"},
    )
    config = LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj", "up_proj"])
    torch.manual_seed(0)
    trainer = runs.trainer(
        "quantised", DPO, model=model, peft_config=config, settings={"max_steps": 2}
    )
    trainer.train()
    return found(trainer)


def recipe(runs: Runs) -> dict[str, Any]:
    """`align train`, from the recipe to the finished model and what is measured on it."""
    for kind, path in runs.given["recipes"].items():
        main_of_align(["train", path, "--run", str(runs.out / kind)])
    return {}


if __name__ == "__main__":
    main(sys.argv[1])
