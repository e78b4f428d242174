"""The implicit reward of DPO against a reward model, on prompts as in training and on others.

    python scripts/implicit_table.py --seeds 0 1 2 --out table.json

Both are trained on the same 1,500 pairs of remarks of `world:styles`, made of its base model, and
then say which of two remarks the world prefers:

    as in training   topics that no training pair has, of the same nouns; remarks in the same words
    other nouns      topics of the six nouns that no training pair has
    other words      remarks with the three qualities that no training pair has

The base model knows all of these words. Rates were chosen by the accuracy on the first set with
seed 100 (`--rates 1e-4 3e-4 1e-3 --seeds 100`). After Lin et al. 2024, "On the Limited
Generalization Capability of the Implicit Reward Model Induced by Direct Preference Optimization"
(arXiv:2409.03650), whose models have 2 to 7 billion parameters.
"""

import argparse
import json
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from align.app.train import train_recipe
from align.data.messages import Message
from align.data.pairs import PreferencePair
from align.estimates import Estimate, proportion
from align.judges.base import Answer, Bench, JudgeNode
from align.judges.implicit import ImplicitReward
from align.judges.reward_model import RewardModel
from align.worlds.base import Split
from align.worlds.style_game import (
    ADJECTIVES,
    NOUNS,
    QUALITIES,
    STYLES,
    TEMPLATES,
    preference_of,
    prompt_of,
    split_of,
)
from align.worlds.styles import Styles

HALF_NOUNS, HALF_QUALITIES = len(NOUNS) // 2, len(QUALITIES) // 2
KNOWN = (NOUNS[:HALF_NOUNS], QUALITIES[:HALF_QUALITIES])
SETS: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "as in training": KNOWN,
    "other nouns": (NOUNS[HALF_NOUNS:], KNOWN[1]),
    "other words": (KNOWN[0], QUALITIES[HALF_QUALITIES:]),
}
PAIRS, TESTED = 1500, 400
BETA = 0.1
RATES = {"implicit": 1e-3, "explicit": 1e-3}
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
    nouns: Sequence[str], qualities: Sequence[str], split: Split, n: int, draw: random.Random
) -> list[PreferencePair]:
    """Two remarks of different styles on a topic of the split; chosen is what wins more often."""
    topics = [(a, b) for a in ADJECTIVES for b in nouns if split_of((a, b)) == split]
    pairs: list[PreferencePair] = []
    for row in range(1, n + 1):
        topic = draw.choice(topics)
        one, other = (
            TEMPLATES[style].format(topic=" ".join(topic), quality=draw.choice(qualities))
            for style in draw.sample(STYLES, 2)
        )
        if preference_of(prompt_of(topic), one, other) < 0.5:
            one, other = other, one
        pairs.append(
            PreferencePair(
                prompt=(Message(role="user", content=prompt_of(topic)),),
                chosen=(Message(role="assistant", content=one),),
                rejected=(Message(role="assistant", content=other),),
                source="implicit_table",
                row=row,
            )
        )
    return pairs


def trained(name: str, rate: float, start: Path, pairs: Path, run: Path, seed: int) -> JudgeNode:
    """The judge of a finished run."""
    recipe: dict[str, Any] = {
        "model": {"model_name_or_path": str(start)},
        "data": {"pairs": str(pairs), "held_out": 32},
        "train": TRAIN | {"learning_rate": rate, "seed": seed},
    }
    if name == "implicit":
        recipe["objective"] = {"name": "dpo", "beta": BETA}
        recipe["roles"] = {"reference": "start"}
        recipe["evaluate"] = {"suite": []}
    else:
        recipe["kind"] = "reward"
    path = run.with_name(f"{run.name}.yaml")
    path.write_text(yaml.safe_dump(recipe))
    train_recipe(path, [], run, [])
    if name == "implicit":
        return ImplicitReward(model=str(run), reference=str(start), beta=BETA)
    return RewardModel(path=str(run))


def told_right(node: JudgeNode, pairs: Sequence[PreferencePair]) -> list[float]:
    """1 where the preferred remark has the higher score, 1/2 for a tie, per pair."""
    items = [
        Answer(pair.prompt, side[-1].content, "")
        for pair in pairs
        for side in (pair.chosen, pair.rejected)
        if not isinstance(side, str)
    ]
    with node.open(Bench(Path(), "")) as opened:
        judge: Any = opened
        scores = judge.score(items)
    return [
        0.5 if better == worse else float(better > worse)
        for better, worse in zip(scores[::2], scores[1::2], strict=True)
    ]


def one_seed(seed: int, rates: dict[str, float], place: Path) -> dict[str, dict[str, list[float]]]:
    """Judge -> set -> per pair, whether it was told right."""
    start = Styles().base_model()
    train = pairs_of(*KNOWN, "train", PAIRS, random.Random(f"train/{seed}"))
    path = place / f"pairs-{seed}.jsonl"
    rows = (pair.model_dump(mode="json", exclude_none=True) for pair in train)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tested = {
        name: pairs_of(*words, "held_out", TESTED, random.Random(f"{name}/{seed}"))
        for name, words in SETS.items()
    }
    found: dict[str, dict[str, list[float]]] = {}
    for name, rate in rates.items():
        node = trained(name, rate, start, path, place / f"{name}-{seed}-{rate:g}", seed)
        found[name] = {key: told_right(node, pairs) for key, pairs in tested.items()}
        shares = ", ".join(f"{100 * sum(of) / len(of):.1f}" for of in found[name].values())
        print(f"seed {seed}, {name} at {rate:g}: {shares}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rates", type=float, nargs="+", help="tries each, and makes no table")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if asked.rates:
            for rate in asked.rates:
                one_seed(asked.seeds[0], dict.fromkeys(RATES, rate), Path(name))
            return
        every = {seed: one_seed(seed, RATES, Path(name)) for seed in asked.seeds}
    print("\n| told apart | implicit, % | explicit, % | difference, points | pairs |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for key in SETS:
        implicit, explicit = (
            [told for seed in asked.seeds for told in every[seed][judge][key]] for judge in RATES
        )
        n = len(implicit)
        both = (proportion(sum(implicit), n), proportion(sum(explicit), n))
        # Training varies more than the choice of pairs does, so the seeds are what counts here.
        gaps = [
            100 * (fmean(every[seed]["implicit"][key]) - fmean(every[seed]["explicit"][key]))
            for seed in asked.seeds
        ]
        gap = f"{fmean(gaps):.1f} ({min(gaps):.1f} to {max(gaps):.1f})"
        print(f"| {key} | {' | '.join(map(_cell, both))} | {gap} | {n} |")
    if asked.out:
        asked.out.write_text(json.dumps(every) + "\n")


def _cell(found: Estimate) -> str:
    assert found.value is not None
    assert found.low is not None
    assert found.high is not None
    return f"{100 * found.value:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


if __name__ == "__main__":
    main()
