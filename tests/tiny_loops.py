"""A loop small enough for tests: a policy of 8 letters, a file of prompts, a file of answers."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from align.recipe import Recipe, load_recipe
from align.worlds import chat

LETTERS = "abcdefgh"
PROMPTS = 12
STAGES: tuple[Mapping[str, Any], ...] = (
    {"run": "generate", "samples": 4, "max_new_tokens": 16},
    # Right is whatever begins with one of the first four letters: the pattern finds "" there.
    {"run": "judge", "by": "answers", "path": "answers.jsonl", "pattern": "^(?=[a-d])()"},
    {"run": "select", "rule": "best_vs_worst"},
    {"run": "train"},
)
TRAIN = {
    "learning_rate": 3e-3,
    "lr_scheduler_type": "constant",
    "num_train_epochs": 1,
    "per_device_train_batch_size": 2,
    "save_steps": 1,
    "logging_steps": 1,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
}


def letters_tokenizer() -> Any:
    vocabulary = {t: i for i, t in enumerate([*chat.SPECIAL_TOKENS, *LETTERS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=chat.UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    backend.decoder = decoders.Fuse()
    return chat.chat_tokenizer(backend, max_length=64)


def build_policy(folder: Path, seed: int = 0) -> Path:
    """A Llama of 5,000 parameters that answers with one to about eight letters."""
    tokenizer = letters_tokenizer()
    model = chat.tiny_llama(tokenizer, layers=1, width=16, heads=2, seed=seed)
    end = tokenizer.eos_token_id
    known = tokenizer.get_vocab()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    start = [known[chat.BOS], known[chat.TURNS["user"]]]
    for _ in range(60):
        rows, labels = [], []
        for _ in range(16):
            letters = torch.randint(8, 16, (11,), generator=generator).tolist()
            prompt = [*start, *letters[:3], end, known[chat.TURNS["assistant"]]]
            length = 1 + int(torch.randint(4, (), generator=generator))
            answer = [*letters[3 : 3 + length], end]
            pad = [0] * (8 - len(answer))
            rows.append(prompt + answer + pad)
            labels.append([-100] * len(prompt) + answer + [-100] * len(pad))
        loss = model(input_ids=torch.tensor(rows), labels=torch.tensor(labels)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.generation_config.eos_token_id = end
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def build_rows(folder: Path) -> None:
    """`prompts.jsonl` and `answers.jsonl`: of three letters each, the answer always ""."""
    generator = torch.Generator().manual_seed(5)
    texts = set()
    while len(texts) < PROMPTS:
        drawn = torch.randint(len(LETTERS), (3,), generator=generator).tolist()
        texts.add("".join(LETTERS[i] for i in drawn))
    rows = sorted(texts)
    write_rows(
        folder / "prompts.jsonl",
        [{"prompt": [{"role": "user", "content": t}], "answer": ""} for t in rows],
    )
    write_rows(folder / "answers.jsonl", [{"prompt": t, "answer": ""} for t in rows])
    write_rows(
        folder / "eval.jsonl",
        [
            {
                "prompt": [{"role": "user", "content": t}],
                "chosen": [{"role": "assistant", "content": t[-1] + "ab"}],
                "rejected": [{"role": "assistant", "content": "h" if t[-1] != "h" else "a"}],
            }
            for t in rows[:4]
        ],
    )


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_recipe(folder: Path, start: Path, **changes: Any) -> Path:
    """`recipe.yaml` of a three-round loop in `folder`, which `build_rows` has filled.

    Args:
        folder: holds the rows.
        start: the start policy.
        changes: keys of the recipe; a mapping is merged into the section that stands there.
    """
    nodes: dict[str, Any] = {
        "model": {"model_name_or_path": str(start)},
        "prompts": {"source": str(folder / "prompts.jsonl"), "per_round": 4},
        "objective": {"name": "inpo", "eta": 1.0, "tau": 0.3},
        "roles": {"reference": "start", "previous": "round_start"},
        "train": TRAIN,
        # Now and then the policy draws <unk>, which no text spells.
        "data": {"eval_pairs": str(folder / "eval.jsonl"), "max_dropped": 0.5},
        "evaluate": {"suite": ["preference"]},
        "rounds": 3,
        "each_round": STAGES,
    }
    for key, value in changes.items():
        is_whole = not isinstance(value, Mapping) or key in ("objective", "roles")
        nodes[key] = value if is_whole else nodes.get(key, {}) | dict(value)
    nodes["each_round"] = [dict(stage) for stage in nodes["each_round"]]
    for stage in nodes["each_round"]:
        if stage.get("path") == "answers.jsonl":
            stage["path"] = str(folder / "answers.jsonl")
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(nodes))
    return path


def write_data_recipe(folder: Path, start: Path, build: Sequence[Any], **changes: Any) -> Path:
    """`data.yaml` of a data set of all prompts in `folder`, which `build_rows` has filled."""
    nodes: dict[str, Any] = {
        "model": {"model_name_or_path": str(start)},
        "prompts": {"source": str(folder / "prompts.jsonl")},
        "data": {"max_dropped": 0.5},
        "build": [dict(stage) for stage in build],
        **changes,
    }
    for stage in nodes["build"]:
        if stage.get("path") == "answers.jsonl":
            stage["path"] = str(folder / "answers.jsonl")
    path = folder / "data.yaml"
    path.write_text(yaml.safe_dump(nodes))
    return path


def tiny_recipe(folder: Path, start: Path, **changes: Any) -> Recipe:
    return load_recipe(write_recipe(folder, start, **changes))


def environment(root: Path, cache: Path) -> dict[str, str]:
    """Of a process that runs a tiny loop."""
    return os.environ | {
        "ALIGN_CACHE": str(cache),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(root),
    }
