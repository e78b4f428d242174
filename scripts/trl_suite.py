"""TRL's own tests of its trainers, on TRL's trainer and on ours: only the import differs.

    python scripts/trl_suite.py CLONE --work DIR --trainer trl
    python scripts/trl_suite.py CLONE --work DIR --suite kto --trainer align -- -k loss_types

CLONE is a clone of https://github.com/huggingface/trl. The tests load tiny models and data from the
Hub; so that they run without it, TRL's generators are run here once, with tokenizers that are
trained on TRL's own test data, and what they would have pushed is kept in DIR/hub. The tests run
inside that folder, where the names of the Hub are relative paths.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import transformers
from datasets import Dataset, DatasetDict
from trl_standins import (
    PICTURE_GRIDS,
    TILES,
    fit_pictures,
    processor_of,
    still_pictures,
    tokenizer_of,
)

DATA = {
    "generate_zen_dataset": "zen",
    "generate_harmony_dataset": "harmony",
    "generate_toolcall_dataset": "toolcall",
    "generate_zen_image_dataset": "zen-image",
    "generate_zen_multi_image_dataset": "zen-multi-image",
}
TEXT_MODELS = (
    "qwen2_for_causal_lm_2_5",
    "cohere2_for_causal_lm",
    "glm4_moe_for_causal_lm",
    "gpt_oss_for_causal_lm",
    "qwen3_moe_for_causal_lm",
    "nemotron_3_nano_for_causal_lm",
    "llama_for_causal_lm_3_2",
    "olmo3_for_causal_lm",
    "lfm2_for_causal_lm",
    "lfm2_for_causal_lm_2_5",
    "remote_for_causal_lm",
)
VISION_MODELS = (
    "gemma3_for_conditional_generation",
    "gemma4_for_conditional_generation",
    "llava_for_conditional_generation",
    "llava_next_for_conditional_generation",
    "qwen2_vl_for_conditional_generation",
    "qwen2_5_vl_for_conditional_generation",
    "qwen3_vl_for_conditional_generation",
    "qwen3_5_for_conditional_generation_nothink",
    "qwen3_6_for_conditional_generation",
)
CLASSIFIERS = ("qwen2_for_sequence_classification_2_5",)
TESTS = ("__init__.py", "conftest.py", "testing_utils.py", "testing_constants.py")
# A trainer's tests, and the line in them that says whose trainer it is.
SUITES = {
    "dpo": ("test_dpo_trainer.py", "from trl import DPOConfig, DPOTrainer"),
    "kto": ("test_kto_trainer.py", "from trl import KTOConfig, KTOTrainer"),
    "reward": ("test_reward_trainer.py", "from trl import RewardConfig, RewardTrainer"),
}
ORGANIZATION = "trl-internal-testing"


def main() -> int:
    """Builds what is missing, then runs pytest; its exit code."""
    given = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    given.add_argument("clone", type=Path, help="a clone of TRL's repository")
    given.add_argument("--work", type=Path, required=True, help="folder of stand-ins and tests")
    given.add_argument("--trainer", choices=("trl", "align"), default="align")
    given.add_argument("--suite", choices=SUITES, default="dpo")
    # What stands behind `--` is for pytest.
    words = sys.argv[1:]
    border = words.index("--") if "--" in words else len(words)
    args, for_pytest = given.parse_args(words[:border]), words[border + 1 :]
    clone, work = args.clone.resolve(), args.work.resolve()
    hub = work / "hub"
    build(clone, hub)
    tests = work / args.trainer / "tests"
    suite, line = SUITES[args.suite]
    copy_tests(clone, tests, suite, line, args.trainer)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "ALIGN_CACHE": str(work / "cache")}
    paths = [str(tests.parent), str(Path(__file__).parent), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    command = [sys.executable, "-m", "pytest", str(tests / suite), "-p", "no:cacheprovider"]
    command += ["-p", "trl_standins", "-n0", "-q", "-rA", "--rootdir", str(tests.parent)]
    command += ["--override-ini=addopts=", *for_pytest]
    return subprocess.run(command, cwd=hub, env=environment, check=False).returncode


def copy_tests(clone: Path, tests: Path, suite: str, line: str, trainer: str) -> None:
    """TRL's tests as they are, with the one import changed for our trainer."""
    shutil.rmtree(tests, ignore_errors=True)
    tests.mkdir(parents=True)
    for name in TESTS:
        shutil.copy(clone / "tests" / name, tests / name)
    text = (clone / "tests" / suite).read_text()
    if line not in text:
        raise SystemExit(f"{suite} does not say `{line}`: this clone is another TRL.")
    (tests / suite).write_text(text.replace(line, line.replace("trl", trainer)))


def build(clone: Path, hub: Path) -> None:
    """Data and models that are not there yet."""
    sys.path.insert(0, str(clone))
    home = hub / ORGANIZATION
    for script, name in DATA.items():
        if not (home / name).is_dir():
            build_data(script, home / name)
    texts = list(texts_of(home))
    packages = {
        "for_causal_lm": TEXT_MODELS,
        "for_conditional_generation": VISION_MODELS,
        "for_sequence_classification": CLASSIFIERS,
    }
    for package, names in packages.items():
        for name in names:
            mark = hub / "built" / name
            if mark.is_file():
                continue
            mark.parent.mkdir(exist_ok=True)
            try:
                build_model(f"scripts.generate_tiny_models.{package}.{name}", home, texts)
            except Exception as error:
                # Its tests then fail, for either trainer.
                print(f"No stand-in by {name}: {type(error).__name__}: {error}")
                continue
            mark.touch()


def build_data(script: str, folder: Path) -> None:
    """Runs a generator of data; what it would push goes to `folder`, one configuration each."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    configs: list[str] = []

    def push(self: DatasetDict, repo_id: str, config_name: str = "default", **_: Any) -> None:
        (partial / config_name).mkdir(parents=True)
        lines = [f"- config_name: {config_name}", "  data_files:"]
        for split, rows in self.items():
            rows.to_parquet(partial / config_name / f"{split}.parquet")
            lines += [f"  - split: {split}", f"    path: {config_name}/{split}.parquet"]
        configs.extend(lines)

    with mock.patch.object(DatasetDict, "push_to_hub", push):
        importlib.import_module(f"scripts.{script}").main(0.1, True, folder.name)
    (partial / "README.md").write_text("\n".join(["---", "configs:", *configs, "---", ""]))
    partial.rename(folder)


def texts_of(home: Path) -> Iterator[str]:
    """Every string of the data, for the tokenizers to learn from."""
    for file in sorted(home.glob("*/*/*.parquet")):
        if "image" not in str(file):
            yield from strings(Dataset.from_parquet(str(file), cache_dir=str(home / ".cache"))[:])


def strings(value: Any) -> Iterator[str]:
    """The strings inside of `value`."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)


def build_model(module: str, home: Path, texts: list[str]) -> None:
    """Runs a generator of a model, with everything it reads from the Hub made here."""
    common = importlib.import_module("scripts.generate_tiny_models._common")

    def push(model: Any, reader: Any, generation: Any, prefix: str, suffix: str = "") -> None:
        folder = home / "-".join(part for part in (prefix, type(model).__name__, suffix) if part)
        for made in (model, reader, generation):
            if made is not None:
                made.save_pretrained(folder)

    tokenizers: list[Any] = []

    def tokenizer(name: str) -> Any:
        tokenizers.append(tokenizer_of(name, texts))
        return tokenizers[-1]

    def processor(name: str) -> Any:
        return processor_of(name, tokenizer(name))

    def config_of(name: str, **changes: Any) -> Any:
        family = module.rpartition(".")[2].partition("_for_")[0].replace("qwen3_6", "qwen3_5_moe")
        if family in PICTURE_GRIDS:
            changes["vision_config"] |= PICTURE_GRIDS[family]
        if family == "llava_next":
            changes["image_grid_pinpoints"] = TILES
        if family == "gemma4":
            layers = {"layer_types": ["sliding_attention", "full_attention"]}
            text = {"num_hidden_layers": 2, "head_dim": 8, "global_head_dim": 8, **layers}
            changes |= {"text_config": text, "vision_config": {}, "audio_config": None}
        config = transformers.AutoConfig.for_model(family, **changes)
        fit_pictures(config, tokenizers[-1])
        return config

    def nothing(*_: Any, **__: Any) -> None:
        return None

    names = ("check_transformers_version", "check_dtype_pattern", "print_config_diff")
    torch.manual_seed(0)
    patches = [mock.patch.object(common, name, nothing) for name in (*names, "smoke_test")]
    patches += [
        mock.patch.object(common, "push_to_hub", push),
        mock.patch.object(transformers.AutoTokenizer, "from_pretrained", tokenizer),
        mock.patch.object(transformers.AutoProcessor, "from_pretrained", processor),
        mock.patch.object(transformers.AutoConfig, "from_pretrained", config_of),
        mock.patch.object(
            transformers.GenerationConfig,
            "from_pretrained",
            return_value=transformers.GenerationConfig(),
        ),
    ]
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        importlib.import_module(module)


if __name__ == "__main__":
    still_pictures()
    sys.exit(main())
