"""The implicit reward of DPO against a reward model, where prompts are as in training and others.

    python scripts/implicit_table.py --seeds 0 1 2 --out table.json

Both are trained on the same pairs of the base model of `world:sums`: its own answers, one right and
one wrong, to sums of three numbers from 10 to 24. Both then tell right from wrong answers, drawn
from the same base model in the same way, to

    as in training   other sums of numbers from 10 to 24
    larger numbers   25 to 39, which the base model has learned and neither training has seen
    unseen numbers   40 to 54, which the base model has not learned either

Rates, batch and epochs are those of recipes/dpo/tiny.yaml and recipes/reward/tiny.yaml; nothing was
searched for. After Lin et al. 2024, "On the Limited Generalization Capability of the Implicit
Reward Model Induced by Direct Preference Optimization" (arXiv:2409.03650), whose models are 2B to
7B.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from align.app.train import train_recipe
from align.data.pairs import PreferencePair
from align.estimates import Estimate, mean, proportion
from align.judges.base import Answer, Bench, JudgeNode
from align.judges.implicit import ImplicitReward
from align.judges.reward_model import RewardModel
from align.worlds.sums import Sums, SumsSettings

SETS = {"as in training": (10, 24), "larger numbers": (25, 39), "unseen numbers": (40, 54)}
BETA = 0.1
RATES = {"implicit": 1e-4, "explicit": 1e-3}
TRAIN = {
    "lr_scheduler_type": "linear",
    "num_train_epochs": 2,
    "per_device_train_batch_size": 32,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "disable_tqdm": True,
    "use_cpu": True,
}


def pairs_of(
    base: Any, tokenizer: Any, span: tuple[int, int], n: int, seed: int, split: Any
) -> Any:
    """One right and one wrong answer of the base model to each problem that has both."""
    world = Sums(SumsSettings(lowest=span[0], highest=span[1]))
    made = world.sample_pairs(
        base, tokenizer, problems=n, samples_per_problem=4, seed=seed, split=split
    )
    return made.pairs


def trained(name: str, start: Path, pairs: Path, run: Path, seed: int) -> JudgeNode:
    """The judge of a finished run."""
    recipe: dict[str, Any] = {
        "model": {"model_name_or_path": str(start)},
        "data": {"pairs": str(pairs), "held_out": 64},
        "train": TRAIN | {"learning_rate": RATES[name], "seed": seed},
    }
    if name == "implicit":
        recipe["objective"] = {"name": "dpo", "beta": BETA}
        recipe["roles"] = {"reference": "start"}
        recipe["evaluate"] = {"suite": []}
    else:
        recipe["kind"] = "reward"
        recipe["train"]["center_rewards_coefficient"] = 0.01
    path = run.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(recipe))
    train_recipe(path, [], run, [])
    if name == "implicit":
        return ImplicitReward(model=str(run), reference=str(start), beta=BETA)
    return RewardModel(path=str(run))


def told_right(node: JudgeNode, pairs: Sequence[PreferencePair]) -> list[float]:
    """1 where the right answer has the higher score, 1/2 for a tie, per pair."""
    items = [
        Answer(pair.prompt, side[-1].content, "")
        for pair in pairs
        for side in (pair.chosen, pair.rejected)
        if not isinstance(side, str)
    ]
    with node.open(Bench(Path(), "")) as judge:
        scores: Any = judge.score(items)  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    return [
        0.5 if right == wrong else float(right > wrong)
        for right, wrong in zip(scores[::2], scores[1::2], strict=True)
    ]


def one_seed(seed: int, place: Path) -> dict[str, dict[str, list[float]]]:
    """Judge -> set -> per pair, whether it was told right."""
    folder = Sums().base_model()
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    train = pairs_of(base, tokenizer, SETS["as in training"], 2000, seed, "train")
    path = place / f"pairs-{seed}.jsonl"
    rows = (pair.model_dump(mode="json", exclude_none=True) for pair in train)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    # Held-out problems, of which there are about 300 in each set.
    tested = {
        name: pairs_of(base, tokenizer, span, 280, seed + 1000, "held_out")
        for name, span in SETS.items()
    }
    found: dict[str, dict[str, list[float]]] = {}
    for name in RATES:
        node = trained(name, folder, path, place / f"{name}-{seed}", seed)
        found[name] = {key: told_right(node, pairs) for key, pairs in tested.items()}
    print(f"seed {seed}, {len(train)} pairs: {shares(found)}", flush=True)
    return found


def shares(found: dict[str, dict[str, list[float]]]) -> str:
    return "; ".join(
        f"{name} " + ", ".join(f"{100 * sum(of) / len(of):.1f}" for of in sets.values())
        for name, sets in found.items()
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        every = {seed: one_seed(seed, Path(name)) for seed in asked.seeds}
    print("\n| prompts | implicit, % | explicit, % | difference, points | pairs |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for key in SETS:
        told = {
            judge: [x for seed in asked.seeds for x in every[seed][judge][key]] for judge in RATES
        }
        n = len(told["implicit"])
        both = [proportion(sum(of), n) for of in told.values()]
        gap = mean([a - b for a, b in zip(*told.values(), strict=True)], what="difference")
        cells = " | ".join(_cell(estimate) for estimate in (*both, gap))
        print(f"| {key} | {cells} | {n} |")
    if asked.out:
        asked.out.write_text(json.dumps(every) + "\n")


def _cell(found: Estimate) -> str:
    assert found.value is not None
    assert found.low is not None
    assert found.high is not None
    return f"{100 * found.value:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


if __name__ == "__main__":
    main()
