"""Reward models, preference models and imitation through `align train`, and as judges of a loop."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from align.app.check_recipe import Wanted, check_recipe
from align.app.train import train_recipe
from align.data.messages import Message
from align.errors import DataError, RecipeError
from align.judges.base import Answer, Bench, Comparison, probability
from align.judges.preference_model import PreferenceModel
from align.judges.reward_model import RewardModel
from align.publishing.hub import push
from align.report.measures import read_metrics
from align.runs.manifest import damage
from align.trainers.guarded import GuardedTrainer
from tests import tiny_loops

TRAIN = {
    "learning_rate": 3e-3,
    "max_steps": 6,
    "per_device_train_batch_size": 8,
    "save_steps": 2,
    "logging_steps": 4,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
    "seed": 3,
}
LORA = {"use_peft": True, "lora_r": 4, "lora_target_modules": ["q_proj", "v_proj"]}
BENCH = Bench(Path(), "")
PAIRS = 48


def turns(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    """Pairs of answers of three letters: the one with the earlier letters is chosen."""
    generator = torch.Generator().manual_seed(0)
    rows: list[dict[str, Any]] = []
    while len(rows) < PAIRS:
        drawn = torch.randint(8, (3, 3), generator=generator).tolist()
        prompt, one, other = ("".join(tiny_loops.LETTERS[i] for i in letters) for letters in drawn)
        if sum(drawn[1]) == sum(drawn[2]):
            continue
        better, worse = (one, other) if sum(drawn[1]) < sum(drawn[2]) else (other, one)
        rows.append(
            {
                "prompt": turns("user", prompt),
                "chosen": turns("assistant", better),
                "rejected": turns("assistant", worse),
            }
        )
    path = tmp_path_factory.mktemp("rows") / "pairs.jsonl"
    tiny_loops.write_rows(path, rows)
    return path


Run = Callable[..., Path]


def write(folder: Path, policy: Path, pairs: Path, kind: str, **changes: Any) -> Path:
    """The recipe of a kind; a mapping is merged into the section that stands there."""
    nodes: dict[str, Any] = {
        "kind": kind,
        "model": {"model_name_or_path": str(policy)},
        # Measured on what it was trained on: these tests ask whether numbers agree.
        "data": {"pairs": str(pairs), "eval_pairs": str(pairs)},
        "train": TRAIN,
    }
    for key, value in changes.items():
        nodes[key] = nodes.get(key, {}) | value
    path = folder / f"{kind}.yaml"
    path.write_text(yaml.safe_dump(nodes, sort_keys=False))
    return path


@pytest.fixture
def written(tmp_path: Path, policy: Path, pairs: Path) -> Run:
    """Function: kind and changes of sections -> the recipe's file."""
    return lambda kind, **changes: write(tmp_path, policy, pairs, kind, **changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, policy: Path, pairs: Path) -> Run:
    """Function: kind and changes of sections -> the folder of the finished run, made once."""
    made: dict[str, Path] = {}

    def run(kind: str, **changes: Any) -> Path:
        key = repr((kind, changes))
        if key not in made:
            folder = tmp_path_factory.mktemp(kind)
            train_recipe(write(folder, policy, pairs, kind, **changes), [], folder / "run", [])
            made[key] = folder / "run"
        return made[key]

    return run


@pytest.fixture(scope="module", autouse=True)
def _no_pictures() -> Iterator[None]:
    # Drawn by every run, and looked at in tests of their own.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("align.app.train.plot_run_curves", lambda folder: None)
        yield


def weights(run: Path) -> dict[str, torch.Tensor]:
    (file,) = (run / "model").glob("*.safetensors")
    return load_file(file)


@pytest.mark.parametrize("kind", ["reward", "preference_model", "sft"])
def test_a_run_leaves_what_every_run_leaves(kind: str, finished: Run) -> None:
    run = finished(kind, model=LORA)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["kind"] == kind
    assert metrics["n"] == PAIRS
    shown = "nll_per_token" if kind == "sft" else "accuracy"
    for when in ("before", "after"):
        measure = metrics[when][f"{kind}/{shown}"]
        assert measure["n"] == PAIRS
        assert measure["low"] < measure["value"] < measure["high"]
    lower = "nll_per_token" if kind == "sft" else "log_loss"
    before, after = (metrics[when][f"{kind}/{lower}"]["value"] for when in ("before", "after"))
    assert after < before
    if kind == "sft":
        assert metrics["after"]["sft/perplexity"]["value"] == pytest.approx(math.exp(after))
    else:
        for when in ("before", "after"):
            assert sum(row["n"] for row in metrics["reliability"][when]) == PAIRS
    assert damage(run / "model") is None
    assert read_metrics(run).after.keys() == metrics["after"].keys()
    assert yaml.safe_load((run / "recipe.yaml").read_text())["kind"] == kind
    steps = [json.loads(line)["step"] for line in (run / "ledger.jsonl").read_text().splitlines()]
    assert steps == ["base", "pairs", "train"]
    card = (run / "model" / "README.md").read_text()
    assert f"-{kind.replace('_', '-')}\n" in card
    assert "| learning rate | 0.003, linear schedule |" in card
    assert "6 optimizer steps in all" in card
    assert ("labels agree" in card) == (kind != "sft")
    sent = {file.name for file in push(run, "me/x", dry_run=True).files}
    assert {"README.md", "recipe.yaml", "metrics.json"} <= sent
    assert ("classifier.json" in sent) == (kind != "sft")
    # Again: nothing is left to do, and another recipe has no place in the folder.
    ledger = (run / "ledger.jsonl").read_bytes()
    recipe = run.parent / f"{kind}.yaml"
    train_recipe(recipe, [], run, [])
    assert (run / "ledger.jsonl").read_bytes() == ledger
    with pytest.raises(RecipeError, match="holds a run of another recipe"):
        train_recipe(recipe, ["train.seed=4"], run, [])


def test_a_run_that_was_killed_ends_with_the_same_bytes(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = finished("reward", model=LORA)
    calls: list[int] = []
    step = GuardedTrainer.training_step

    def cut(self, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(GuardedTrainer, "training_step", cut)
    run, recipe = tmp_path / "cut", straight.parent / "reward.yaml"
    with pytest.raises(KeyboardInterrupt):
        train_recipe(recipe, [], run, [])
    train_recipe(recipe, [], run, [])
    # Six steps, of which two were saved before the fourth was cut off.
    assert len(calls) == 4 + 4
    found = weights(run)
    for name, value in weights(straight).items():
        assert torch.equal(value, found[name]), name
    metrics = [json.loads((one / "metrics.json").read_text()) for one in (straight, run)]
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize(
    "model", [LORA, {"dtype": "bfloat16"}, LORA | {"dtype": "bfloat16"}], ids=str
)
def test_a_reward_judge_scores_as_the_run_measured(model, finished: Run, pairs: Path) -> None:
    """The rows, the padding, the types and the head are those of training."""
    run = finished("reward", model=model)
    items = [
        Answer(tuple(Message(**turn) for turn in row["prompt"]), row[side][0]["content"], side)
        for side in ("chosen", "rejected")
        for row in map(json.loads, pairs.read_text().splitlines())
    ]
    with RewardModel(path=str(run)).open(BENCH) as judge:
        scores: Any = judge.score(items)  # type: ignore[union-attr]
    margins = [a - b for a, b in zip(scores[:PAIRS], scores[PAIRS:], strict=True)]
    measured = json.loads((run / "metrics.json").read_text())["after"]
    assert sum(margins) / PAIRS == pytest.approx(measured["reward/margin"]["value"], abs=1e-5)
    assert sum(m > 0 for m in margins) / PAIRS == measured["reward/accuracy"]["value"]
    assert len(set(scores)) > 0.9 * len(set(map(repr, items))), "scores are not rounded into ties"


def test_a_preference_model_judges_as_the_run_measured(finished: Run, pairs: Path) -> None:
    run = finished("preference_model", model=LORA)
    items = [
        Comparison(
            tuple(Message(**turn) for turn in row["prompt"]),
            row["chosen"][0]["content"],
            row["rejected"][0]["content"],
            id="",
        )
        for row in map(json.loads, pairs.read_text().splitlines())
    ]
    with PreferenceModel(model=str(run)).open(BENCH) as judge:
        found: Any = [probability(v) for v in judge.compare(items)]  # type: ignore[union-attr]
    measured = json.loads((run / "metrics.json").read_text())["after"]
    loss = sum(-math.log(p) for p in found) / PAIRS
    assert loss == pytest.approx(measured["preference_model/log_loss"]["value"], abs=1e-5)
    share = sum(p > 0.5 for p in found) / PAIRS
    assert share == measured["preference_model/accuracy"]["value"]


def test_one_kind_of_judge_is_not_taken_for_the_other(finished: Run, policy: Path) -> None:
    reward, preference = (finished(kind, model=LORA) for kind in ("reward", "preference_model"))
    refused: list[tuple[Any, str]] = [
        (RewardModel(path=str(preference)), "holds a preference model, which compares"),
        (PreferenceModel(model=str(reward)), "is a model of kind reward"),
        (PreferenceModel(model=str(policy)), "is no preference model"),
    ]
    for judge, says in refused:
        with pytest.raises(RecipeError, match=says), judge.open(BENCH):
            pass


def test_sft_reward_and_a_loop_are_one_folder_of_recipes(
    finished: Run, recipe_of, go, tmp_path: Path
) -> None:
    """Each names the run before it: an adapter, then a reward model on top, then judged rounds."""
    sft = finished("sft", model=LORA)
    reward = finished("reward", model=LORA | {"model_name_or_path": str(sft)})
    about = json.loads((reward / "model" / "adapter_config.json").read_text())
    assert Path(about["base_model_name_or_path"]).parent.name == "merged"
    preference = finished("preference_model", model=LORA)
    stages = [dict(stage) for stage in tiny_loops.STAGES]
    scored = {"run": "judge", "by": "reward_model", "path": str(reward)}
    compared = {"run": "judge", "by": "preference_model", "model": str(preference)}
    for name, judge in (("scored", scored), ("compared", compared)):
        loop = recipe_of(each_round=[stages[0], judge, *stages[2:]], rounds=1)
        gone = go(loop, tmp_path / name)
        said = gone.said[1, "judge"]
        assert said["failed"] == 0
        assert said["judge"].startswith(f"{judge['by'].replace('_', '-')}:")
        lines = (gone.artefact(1, "judged") / "rows.jsonl").read_text().splitlines()
        for line in map(json.loads, lines):
            assert (line["scores"] is None) == (name == "compared")
            for i, row in enumerate(line["preferences"]):
                for j, p in enumerate(row):
                    assert p is not None
                    assert p + line["preferences"][j][i] == 1.0
    with pytest.raises(RecipeError, match="no such key here"):
        recipe_of(each_round=[stages[0], scored | {"model": "x"}, *stages[2:]], rounds=1)


def test_completions_of_a_file_are_imitated_once_each(written: Run, tmp_path: Path) -> None:
    rows = [
        {"messages": [*turns("user", "abc"), *turns("assistant", text)]}
        for text in ("ab", "cd", "ab", "ef", "gh", "ha")
    ]
    path = tmp_path / "told.jsonl"
    tiny_loops.write_rows(path, rows)
    data = {"pairs": None, "eval_pairs": None, "completions": str(path), "held_out": 0}
    recipe = written("sft", data=data, train={**TRAIN, "max_steps": 1})
    run = tmp_path / "run"
    train_recipe(recipe, [], run, [])
    counted = json.loads((run / "metrics.json").read_text())["data"]
    assert (counted["read"], counted["train"], counted["notes"]["same_completion"]) == (6, 5, 1)
    said = check_recipe(recipe, [], Wanted(example=True))
    assert "completions: 5 to train on, 0 held out" in said
    assert said.endswith("<user>abc<end><assistant>ab<end>")


def test_check_says_what_a_run_would_take(written: Run) -> None:
    said = check_recipe(written("preference_model", model=LORA), [], Wanted(example=True))
    assert f"pairs: {PAIRS} to train on, {PAIRS} held out, 6 steps" in said
    # Prompt 7, answers 4 each, the opening of another turn 1.
    assert "whole row tokens: min 16, median 16, p95 16, max 16" in said
    assert said.count("<assistant>") == 2, "the example shows both answers"
    assert "disk: about" in said


def test_both_answers_count_towards_the_length(written: Run, tmp_path: Path) -> None:
    # Prompt 7 and answers of 5: 12 with one of them, 18 with both and an opening.
    rows = [
        {
            "prompt": turns("user", f"ab{letter}"),
            "chosen": turns("assistant", "abcd"),
            "rejected": turns("assistant", "hgfe"),
        }
        for letter in "abcd"
    ]
    path = tmp_path / "long.jsonl"
    tiny_loops.write_rows(path, rows)
    data = {"pairs": str(path), "eval_pairs": None, "held_out": 1, "max_length": 16}
    assert "pairs: 3 to train" in check_recipe(written("reward", data=data), [])
    recipe = written("preference_model", data=data)
    with pytest.raises(DataError, match="2 tokens more of prompt and both answers"):
        check_recipe(recipe, [])
    said = check_recipe(recipe, ["data.on_too_long=cut_prompt"])
    assert "whole row tokens: min 16, median 16, p95 16, max 16" in said


def test_soft_labels_are_for_preference_models(written: Run, pairs: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) | {"preference": 0.8} for line in pairs.read_text().splitlines()]
    path = tmp_path / "soft.jsonl"
    tiny_loops.write_rows(path, rows)
    soft = {"pairs": str(path), "eval_pairs": str(path)}
    with pytest.raises(DataError, match="knows no soft labels"):
        check_recipe(written("reward", data=soft), [])
    run = tmp_path / "run"
    steps = {**TRAIN, "max_steps": 1}
    train_recipe(written("preference_model", data=soft, train=steps), [], run, [])
    measured = json.loads((run / "metrics.json").read_text())["after"]
    # Labels of 0.8 cost at least their own entropy, 0.5004 nats.
    assert measured["preference_model/log_loss"]["value"] > 0.5004
