"""Every recipe that is shipped loads, passes `align check`, and runs from start to end, small.

A recipe keeps its stages, objective, roles, judge, rules and all names; only what stands in `SIZES`
becomes smaller, training stays in this process, and the judge's server is one of ours. See
`stand_in_place.py` for what lies behind the names. Recipes are found on disk, so a new one is run
too.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer

from align.app.check_recipe import check_recipe
from align.app.cli import main
from align.app.recipes import load_any
from align.data.pair_files import read_pairs
from align.data.row_policy import RowPolicy
from align.recipe import kind_of, resolved_yaml
from align.runs.ledger import read_records
from align.runs.manifest import damage
from tests.e2e.stand_in_place import ServedModel

ROOT = Path(__file__).resolve().parents[2]
FOUND = sorted((ROOT / "recipes").rglob("*.yaml"))
RECIPES = [path.relative_to(ROOT) for path in FOUND if path.parent.name != "accelerate"]
ON_POLICY = {
    *("iterative_dpo", "iterative_rpo", "inpo", "nash_mp", "apo", "spo", "p3o", "copg"),
}
COMMANDS = {"diffusion": "train", "data": "data build", "eval": "eval"}
# Key -> the most that it is here, wherever in a recipe it stands.
SIZES = {
    "prompts": 48,
    "per_round": 10,
    "rounds": 2,
    "held_out": 4,
    "n": 8,
    "labelled_problems": 24,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "updates_per_round": 2,
    "steps": 2,
    "pool_size": 4,
    "resolution": 32,
    "pictures": 4,
}
# The worlds' answers have a length of their own.
OF_TOKENS = {"max_new_tokens": 16, "step_tokens": 4, "finish_tokens": 16}
# Whatever was written.
TRAINED = {"train.max_steps": 2, "train.logging_steps": 1, "train.disable_tqdm": True}
MEASURED = {"evaluate.n": 8}

Metrics = dict[str, Any]


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def leaves(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """(key.path, value) of everything that is no mapping and no list of mappings."""
    if isinstance(node, dict):
        inner = node.items()
    elif isinstance(node, list) and any(isinstance(item, dict) for item in node):
        inner = enumerate(node)
    else:
        yield ".".join(path), node
        return
    for key, value in inner:
        yield from leaves(value, (*path, str(key)))


def resolved(path: Path, changes: list[str]) -> dict[str, Any]:
    """key.path -> value, with every default."""
    return dict(leaves(yaml.safe_load(resolved_yaml(load_any(ROOT / path, changes)))))


def substituted(path: Path, url: str) -> list[str]:
    """The overrides with which a recipe is small enough."""
    whole = resolved(path, [])
    # A run of a world's model asks what the world asks.
    asked = (whole["model.model_name_or_path"], whole.get("prompts.source"))
    is_world = any(str(name).startswith("world:") for name in asked)
    sizes = SIZES if is_world else SIZES | OF_TOKENS
    if "groups" in whole.values():
        # Most groups of so small a model have equal scores, so every one is trained on.
        sizes = sizes | {"per_device_train_batch_size": 5}
    found: dict[str, Any] = {}
    for key, value in whole.items():
        most = sizes.get(key.rpartition(".")[2])
        if most is not None and type(value) in (int, float) and value > most:
            found[key] = most
        elif key.endswith(".base_url"):
            found[key] = url
        elif key.endswith(".launch") and value is not None:
            # tests/e2e/test_loop.py trains in processes of their own.
            found[key] = "null"
    if kind_of(ROOT / path) not in COMMANDS:
        found |= TRAINED
        found |= MEASURED if whole.get("evaluate.suite", []) else {}
    return [f"{key}={str(value).lower()}" for key, value in found.items()]


def strict(text: str) -> Any:
    def refuse(word: str) -> NoReturn:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_every_method_has_a_tiny_recipe() -> None:
    """And a glob that finds too little does not pass silently."""
    nodes = {path: yaml.safe_load((ROOT / path).read_text()) for path in RECIPES}
    methods = {p.parent.name for p in RECIPES if nodes[p].keys() & {"objective", "build", "kind"}}
    assert methods == {path.parent.name for path in RECIPES if path.stem.endswith("tiny")} - {
        "evaluation"
    }
    assert {path.parent.name for path in RECIPES if "rounds" in nodes[path]} >= ON_POLICY


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_it_loads_and_is_written_back_equal(path: Path, tmp_path: Path) -> None:
    recipe = load_any(ROOT / path)
    written = tmp_path / "resolved.yaml"
    written.write_text(resolved_yaml(recipe))
    assert load_any(written) == recipe
    first = (ROOT / path).read_text()[:2]
    assert first == "# ", "a recipe opens with a sentence that says what it shows"


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_what_is_run_here_differs_in_sizes_alone(path: Path) -> None:
    url = "http://127.0.0.1:9/v1"
    whole = resolved(path, [])
    small = resolved(path, substituted(path, url))
    assert list(small) == list(whole)
    for key, value in small.items():
        if value == whole[key]:
            continue
        last = key.rpartition(".")[2]
        if key in TRAINED | MEASURED:
            assert value == (TRAINED | MEASURED)[key]
        elif last in SIZES | OF_TOKENS:
            assert 0 < value < whole[key], key
        else:
            assert (last, value) in [("base_url", url), ("launch", None)], key


@pytest.mark.e2e
# Whether a vocabulary is larger than its base model's, peft asks the Hub, cached or not.
@pytest.mark.filterwarnings("ignore:Could not find a config file in:UserWarning")
# diffusers 0.42 hands huggingface_hub 2.4 an argument that it no longer reads.
@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument:UserWarning")
@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_it_passes_the_check_and_runs(
    path: Path, place: Path, served: ServedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = substituted(path, served.url)
    said = check_recipe(path, [c for c in changes if not c.endswith(".launch=null")])
    assert said
    nodes = yaml.safe_load(path.read_text())
    kind = "loop" if "rounds" in nodes else kind_of(path)
    command = COMMANDS.get(kind, "loop" if kind == "loop" else "train")
    run = tmp_path / "run"
    words = [*command.split(), str(path), *changes, "--run", str(run)]
    main(words)
    shown = capsys.readouterr().out
    metrics = strict((run / "metrics.json").read_text())
    resolved_nodes = yaml.safe_load((run / "recipe.yaml").read_text())
    {"loop": a_loop, "train": an_offline_run, "data": a_data_set, "eval": evaluations,
     "diffusion": a_diffusion_run}.get(kind, a_classifier)(
        run, metrics, resolved_nodes, shown
    )  # fmt: skip
    # Running the same command again is resuming, and a finished run has nothing to do.
    before = (run / "ledger.jsonl").read_bytes()
    main(words)
    if kind != "eval":
        assert (run / "ledger.jsonl").read_bytes() == before


def a_model(run: Path, nodes: dict[str, Any]) -> None:
    model = run / "model"
    assert damage(model) is None
    weights = "adapter_model" if nodes["model"]["use_peft"] else "model"
    assert load_file(model / f"{weights}.safetensors")
    if weights == "model":
        assert AutoConfig.from_pretrained(model)
    assert AutoTokenizer.from_pretrained(model).chat_template
    card = (model / "README.md").read_text()
    assert nodes["objective"]["name"] in card.lower()


def before_and_after(metrics: Metrics, nodes: dict[str, Any]) -> None:
    assert metrics["before"].keys() <= metrics["after"].keys()
    suite = nodes["evaluate"]["suite"]
    names = {entry if isinstance(entry, str) else entry["run"] for entry in suite}
    found = [*metrics["after"], *metrics.get("scores", ())]
    assert {key.partition("/")[0] for key in found} == names


def an_offline_run(run: Path, metrics: Metrics, nodes: dict[str, Any], shown: str) -> None:
    a_model(run, nodes)
    before_and_after(metrics, nodes)
    data = metrics["data"]
    assert data["read"] == data["kept"] + sum(data["dropped"].values())
    assert data["kept"] == data["train"] + data["held_out"]
    if "preference/margin" in metrics["after"]:
        before, after = (
            metrics["before"]["preference/margin"],
            metrics["after"]["preference/margin"],
        )
        assert before["n"] == after["n"] == nodes["data"]["held_out"] == 4
        assert before["value"] == 0
        assert after["value"] != 0
    if "sums" in nodes["evaluate"]["suite"]:
        assert "sampled accuracy" in shown
        assert metrics["after"]["sums/sampled_accuracy"]["n"] == 8
        assert "| sampled accuracy, % |" in (run / "model/README.md").read_text()
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    rows = "groups" if nodes["data"].get("groups") else "pairs"
    assert [record["step"] for record in read_records(run / "ledger.jsonl")] == [
        *("base", rows, "train"),
    ]


def a_loop(run: Path, metrics: Metrics, nodes: dict[str, Any], shown: str) -> None:
    a_model(run, nodes)
    before_and_after(metrics, nodes)
    rounds = nodes["rounds"]
    assert metrics["loop"]["rounds"] == rounds
    history = json.loads((run / "history.json").read_text())
    stages = [stage["run"] for stage in nodes["each_round"]]
    assert [(row["round"], row["stage"]) for row in history] == [
        (number, stage) for number in range(1, rounds + 1) for stage in stages
    ]
    judged = [row for row in history if row["stage"] == "judge"]
    assert metrics["loop"]["judge_calls"] == sum(row["calls"] for row in judged)
    assert all(row["calls"] > 0 for row in judged)
    assert all(row["kept"] > 0 for row in history if "kept" in row)
    trained = [row for row in history if row["stage"] == "train"]
    assert all(row["steps"] > 0 for row in trained)
    assert any(row["grad_norm"] > 0 for row in trained)
    # Every round samples from the policy that the one before made.
    sampled = [row["policy"] for row in history if row["stage"] == "generate"]
    assert len(set(sampled)) == len(sampled)
    for key in metrics["after"]:
        if key.endswith("/kl_to_reference"):
            assert metrics["before"][key]["value"] == 0
            assert metrics["after"][key]["value"] != 0
    as_a_chat(run)


def as_a_chat(run: Path) -> None:
    """Instruct models are asked in their own template, so prompts are turns and no plain text."""
    for lines in run.glob("rounds/0001/*/completions/*.jsonl"):
        rows = [json.loads(line) for line in lines.read_text().splitlines()]
        assert rows
        assert all(row["prompt"][-1]["role"] == "user" for row in rows)


def a_data_set(run: Path, metrics: Metrics, nodes: dict[str, Any], shown: str) -> None:
    rows = metrics["rows"]
    assert rows["read"] == rows["kept"] + sum(rows["dropped"].values())
    assert f"{rows['kept']} pairs of {rows['read']} candidates" in shown
    pairs, report = read_pairs(str(run / "dataset"), policy=RowPolicy())
    assert len(pairs) == report.read == rows["kept"] > 0
    assert damage(run / "dataset") is None
    card = (run / "dataset" / "README.md").read_text()
    assert f"Policy: `{nodes['model']['model_name_or_path']}`" in card
    as_a_chat(run)


def evaluations(run: Path, metrics: Metrics, nodes: dict[str, Any], shown: str) -> None:
    names = [evaluation["run"] for evaluation in nodes["evaluate"]["suite"]]
    results = [
        strict((run / f"evaluation-{number}-{name}" / "results.json").read_text())
        for number, name in enumerate(names, start=1)
    ]
    assert metrics["n"] == sum(result["n"] for result in results) > 0
    assert all(result["n_failed"] == 0 for result in results)
    assert {key.split("/")[0].split()[0] for key in metrics["scores"]} == set(names)
    assert shown.count("|") > 8


def a_diffusion_run(run: Path, metrics: Metrics, nodes: dict[str, Any], shown: str) -> None:
    assert metrics["before"].keys() == metrics["after"].keys()
    assert {key.partition("/")[0] for key in metrics["after"]} == set(nodes["evaluate"]["suite"])
    assert metrics["training"]["updates"] == nodes["train"]["rounds"] * 2
    assert metrics["data"]["train"] > 0
    assert damage(run / "model") is None
    (weights,) = (run / "model").rglob("*.safetensors")
    assert load_file(weights)
    assert nodes["objective"]["name"] in (run / "model" / "README.md").read_text()
    before, after = ((run / f"{when}.png").read_bytes() for when in ("before", "after"))
    assert before != after
    steps = [record["step"] for record in read_records(run / "ledger.jsonl")]
    assert steps == ["base", "latents", "before", "train", "after"]


def a_classifier(run: Path, metrics: Metrics, nodes: dict[str, Any], shown: str) -> None:
    """Of the kinds that have no objective: a reward model, a preference model, SFT."""
    assert metrics["before"].keys() == metrics["after"].keys()
    assert damage(run / "model") is None
    assert list((run / "model").glob("*.safetensors"))
    assert nodes["kind"]
