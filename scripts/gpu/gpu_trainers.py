"""The trainer on a model with random weights, made in a folder, for parts that need a whole one."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from bench_lengths import plain_tokenizer
from gpu_stand import Setting, needs


def made(setting: Setting, name: str, layers: int) -> Path:
    """A folder with a model of so many layers, and with its tokenizer."""
    needs("trl", "peft", "datasets", "accelerate")
    quiet()
    (specification,) = setting.models(name).values()
    shape = dict(specification.shape) | {"num_hidden_layers": layers}
    folder = setting.work / f"{name}-{layers}"
    if not folder.exists():
        model = type(specification)(specification.kind, shape, setting.dtype).build(
            setting.device, setting.seed
        )
        model.save_pretrained(folder)
        plain_tokenizer(specification.vocabulary).save_pretrained(folder)
    return folder


def quiet() -> None:
    """Results are read by people: no bars, and no news of the next versions."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning)


def trainer_of(setting: Setting, folder: Path, pairs: int, output: Path, **changes: Any) -> Any:
    """A `PreferenceTrainer` for DPO on HH-like pairs."""
    from datasets import Dataset

    from align.trainers import PreferenceConfig, PreferenceTrainer

    (specification,) = setting.models("qwen2.5-0.5b").values()
    rows = setting.pairs("hh", pairs, specification.vocabulary)
    columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    data = Dataset.from_dict({name: [row[name] for row in rows] for name in columns})
    arguments: dict[str, Any] = {
        "output_dir": str(output),
        "learning_rate": 1e-5,
        "per_device_train_batch_size": 4,
        "max_steps": 20,
        "bf16": False,
        "use_cpu": setting.device == "cpu",
        "dataloader_pin_memory": setting.device == "cuda",
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_steps": 5,
        "model_init_kwargs": {"dtype": str(setting.dtype).removeprefix("torch.")},
    }
    return PreferenceTrainer(
        str(folder),
        args=PreferenceConfig(**(arguments | changes)),
        train_dataset=data,
        objective={"name": "dpo", "beta": 0.1},
    )
