"""Two processes that share out their weights (FSDP2 over gloo) are one process with whole ones."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from align.runs.manifest import MANIFEST, damage

pytestmark = pytest.mark.e2e

ROWS = 13  # a step of 8 rows and one of 5 in each epoch
WORDS = "abcdefghijklmnopqrstuvwxyz"
RUNS = ("full", "lora", "coupled", "kto", "renewed", "head_apart", "narrow", "quantised", "recipe")
EQUAL = ("full", "lora", "coupled", "kto", "renewed", "head_apart")
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
}
# Of a run's speed, and of how passes were cut.
OF_THE_MACHINE = ("runtime", "per_second", "num_computed_tokens", "epoch")
# Without bitsandbytes there is nothing to quantise with.
NEEDS = {"quantised": "bitsandbytes"}


def changed(folder: str, to: Path) -> str:
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(to)
    return str(to)


def adapter(folder: str, to: Path) -> str:
    config = LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj", "up_proj"])
    model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config)
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(to)
    return str(to)


def written_recipes(base: Path, folder: str, rows: list[dict], processes: int) -> dict[str, str]:
    """One of preference training, and one of supervised training, which goes through TRL's loss."""

    def words(ids: list[int]) -> str:
        return " ".join(WORDS[i - 4] for i in ids if i >= 4)

    pairs = base / "pairs.jsonl"
    pairs.write_text(
        "".join(
            json.dumps(
                {name: words(row[f"{name}_ids"]) for name in ("prompt", "chosen", "rejected")}
            )
            + "\n"
            for row in rows
        )
    )
    common = {
        "model": {"model_name_or_path": folder, "dtype": "float32"},
        "data": {"pairs": str(pairs), "held_out": 0.3, "min_completion_tokens": 1},
    }
    train = {
        "learning_rate": 1e-3,
        "max_steps": 2,
        "per_device_train_batch_size": 4 // processes,
        "eval_strategy": "no",
        "report_to": [],
    }
    of_kind = {
        "dpo": {
            "objective": {"name": "dpo", "beta": 0.3},
            "roles": {"reference": "start"},
            "train": train | {"token_budget": 60},
        },
        "sft": {"kind": "sft", "train": train, "evaluate": {"suite": []}},
    }
    written = {}
    for kind, own in of_kind.items():
        path = base / f"{kind}-{processes}.yaml"
        path.write_text(yaml.safe_dump(common | own))
        written[kind] = str(path)
    return written


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("sharded")


@pytest.fixture(scope="module")
def results(base, tiny_folder, make_rows, root) -> dict[int, dict]:
    """What one process with batch 4 found, and two that share out weights with batch 2 each."""
    rows = make_rows(ROWS)
    given = {
        "policy": tiny_folder,
        "other": changed(tiny_folder, base / "other"),
        "adapter": adapter(tiny_folder, base / "adapter"),
        "rows": rows,
        "runs": [run for run in RUNS if run not in NEEDS or is_there(NEEDS[run])],
    }
    found = {}
    for processes in (1, 2):
        out = base / f"out-{processes}"
        out.mkdir()
        own = {"out": str(out), "recipes": written_recipes(base, tiny_folder, rows, processes)}
        order = out / "order.json"
        order.write_text(json.dumps(given | own))
        launch = [sys.executable]
        if processes > 1:
            launch += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        done = subprocess.run(
            [*launch, str(Path(__file__).with_name("sharded_runs.py")), str(order)],
            env=os.environ
            | (FSDP if processes > 1 else {})
            | {
                "ALIGN_CACHE": str(base / f"cache-{processes}"),
                "HF_HUB_OFFLINE": "1",
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(root),
            },
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        found[processes] = json.loads((out / "found.json").read_text())
        assert found[processes]["processes"] == processes
    return found


def is_there(package: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(package) is not None


def numbers(record: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in record.items():
        if not any(part in name for part in OF_THE_MACHINE):
            yield name, value


def assert_same(two: dict[str, Any], one: dict[str, Any], tolerance: float = 1e-6) -> None:
    assert two.keys() == one.keys()
    for name, value in numbers(one):
        assert two[name] == pytest.approx(value, rel=tolerance, abs=tolerance), name


def test_every_weight_is_sharded(results) -> None:
    assert not results[1]["full"]["sharded"]
    assert len(results[2]["full"]["sharded"]) == 21, "9 of each layer, embeddings, norm and head"
    assert len(results[2]["lora"]["sharded"]) == 21 + 2 * 2 * 2


@pytest.mark.parametrize("run", EQUAL)
def test_a_trajectory_is_that_of_one_process(results, run) -> None:
    one, two = (results[n][run] for n in (1, 2))
    assert len(one["history"]) == len(two["history"])
    for expected, found in zip(one["history"], two["history"], strict=True):
        assert_same(found, expected)
    steps = [row for row in one["history"] if "grad_norm" in row]
    assert abs(steps[-1]["rewards/margins"] - steps[0]["rewards/margins"]) > 1e-2, "nothing moved"
    assert one["weights"].keys() == two["weights"].keys()
    for name, sums in one["weights"].items():
        assert two["weights"][name] == pytest.approx(sums, rel=1e-6, abs=1e-6), name


@pytest.mark.parametrize("run", EQUAL)
def test_roles_score_as_on_one_process(results, run) -> None:
    one, two = (results[n][run] for n in (1, 2))
    assert two["identities"] == one["identities"]
    assert one["scores"].keys() == two["scores"].keys()
    for column, cells in one["scores"].items():
        assert flat(two["scores"][column]) == pytest.approx(flat(cells), abs=1e-6), column
    expected = {"full": 4, "lora": 4, "renewed": 0}.get(run, 2)
    assert len(one["scores"]) == expected, "columns of the roles that are scored beforehand"


def flat(cells: list[Any]) -> list[float]:
    return [x for cell in cells for x in (flat(cell) if isinstance(cell, list) else [cell])]


@pytest.mark.parametrize("run", ["full", "lora", "coupled", "head_apart", "narrow"])
def test_the_margin_of_step_0_is_exactly_0(results, run) -> None:
    """In 16 bits too, where whole weights under autocast would answer otherwise than shards."""
    probe = results[2][run]["probe"]
    assert probe["margin"] == 0.0
    first = results[2][run]["history"][0]
    assert run != "narrow" or first["rewards/margins"] == first["logratios/chosen"] == 0.0


def test_evaluations_before_and_after_training_are_the_same(results) -> None:
    """Rows that were not there at the start are scored by the policy as it was."""
    one, two = (results[n] for n in (1, 2))
    assert_same(two["full"]["before"], one["full"]["before"])
    for run in ("full", "lora"):
        assert_same(two[run]["held_out"], one[run]["held_out"])
        assert abs(one[run]["held_out"]["new_logratios/chosen"]) > 1e-3, "the start was not asked"


@pytest.mark.parametrize("run", ["full", "lora"])
def test_a_resumed_run_goes_on_digit_for_digit(results, run) -> None:
    whole = results[2][run]
    again = whole["resumed"]
    assert again["weights"] == whole["weights"]
    for step in (3, 4):
        expected, found = (
            [
                dict(numbers(row))
                for row in history
                if row["step"] == step and not {"train_loss", "new_loss"} & row.keys()
            ]
            for history in (whole["history"], again["history"])
        )
        assert expected
        assert found == expected


def test_a_sharded_checkpoint_is_sealed(results, base) -> None:
    checkpoint = base / "out-2/full/checkpoint-2"
    sealed = json.loads((checkpoint / MANIFEST).read_text())["files"]
    for part in ("pytorch_model_fsdp_0", "optimizer_0"):
        for file in (".metadata", "__0_0.distcp", "__1_0.distcp"):
            assert f"{part}/{file}" in sealed
    assert not list(checkpoint.glob("*.safetensors")), "shards are enough"
    assert damage(checkpoint) is None
    shard = checkpoint / "optimizer_0/__1_0.distcp"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert damage(checkpoint) == "the content of optimizer_0/__1_0.distcp has changed"
    shard.write_bytes(content)


def test_what_is_saved_is_whole(results, base) -> None:
    one, two = (AutoModelForCausalLM.from_pretrained(base / f"out-{n}/full-model") for n in (1, 2))
    assert two.config.architectures == ["LlamaForCausalLM"]
    for name, weight in one.state_dict().items():
        assert torch.allclose(two.state_dict()[name], weight, atol=1e-9), name
    one, two = (
        AutoPeftModelForCausalLM.from_pretrained(base / f"out-{n}/lora-model") for n in (1, 2)
    )
    for name, weight in one.state_dict().items():
        assert torch.allclose(two.state_dict()[name], weight, atol=1e-9), name
    saved = list((base / "out-2/lora-model").glob("*.safetensors"))
    assert [file.name for file in saved] == ["adapter_model.safetensors"]


def test_four_bit_weights_are_sharded_and_trained_on(results) -> None:
    """The adapter is float32 here, where TRL casts it to bfloat16."""
    pytest.importorskip("bitsandbytes", reason="needs the extra `qlora`")
    one, two = (results[n]["quantised"] for n in (1, 2))
    assert sum("base_layer.weight" in name for name in two["sharded"]) == 2 * 2
    assert two["probe"]["margin"] == 0.0
    for column, cells in one["scores"].items():
        assert flat(two["scores"][column]) == pytest.approx(flat(cells), abs=1e-6), column
    for expected, found in zip(one["history"], two["history"], strict=True):
        assert_same(found, expected, tolerance=2e-6)


@pytest.mark.parametrize(
    ("kind", "moved"), [("dpo", "preference/margin"), ("sft", "sft/nll_per_token")]
)
def test_a_recipe_leaves_a_whole_model_and_measures_it(results, base, kind, moved) -> None:
    one, two = (json.loads((base / f"out-{n}/{kind}/metrics.json").read_text()) for n in results)
    assert two["training"]["processes"] == 2
    for when in ("before", "after"):
        for name, expected in one[when].items():
            for part, value in expected.items():
                close = None if value is None else pytest.approx(value, rel=1e-4, abs=1e-4)
                assert two[when][name][part] == close, (when, name, part)
    assert abs(one["after"][moved]["value"] - one["before"][moved]["value"]) > 1e-3
