"""What the filter of reliable pairs keeps on `sums` when some questions are misread.

    python scripts/uncertainty_table.py --seeds 0 1 2 --out table.json

The base model answers 256 training problems six times; the exact judge misreads a share of the
problems and turns their scores over. Of the candidate pairs, each row of the table says which are
kept and how many of those have the truly better answer as chosen.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from align.data.built import Built
from align.data.messages import Message
from align.data.questions import Candidates
from align.worlds.additions import prompt_of
from align.worlds.sums import Sums, sums_judge
from align_data.uncertainty.files import make_estimator, open_estimator
from align_data.uncertainty.finish import finish
from align_data.uncertainty.settings import Legacy, Likelihood, Mu, Top, UncertaintySettings
from align_data.uncertainty.work import UncertaintyWork
from align_data.uncertainty.world import FlippedJudge, truth

RULES = {
    "agreement only": Top(keep=1.0),
    "agreement, half with the lowest B": Top(keep=0.5),
    "agreement, quarter with the lowest B": Top(keep=0.25),
    "agreement, half drawn with mu 1": Mu(mu=1),
    "agreement, half drawn with mu 10": Mu(mu=10),
    "half drawn with mu 10 (the paper's)": Mu(mu=10, agreement="ignored"),
    "the published mixture": Legacy(),
}


def candidates(seed: int, folder: Path) -> tuple[list[Candidates], Any]:
    """Six answers to each of 256 problems, and labelled pairs of other draws."""
    world = Sums()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    labelled = world.sample_pairs(
        model, tokenizer, problems=256, samples_per_problem=4, seed=seed + 100
    ).pairs
    problems = world.problems("train", 256, seed=seed + 200)
    asked = [operands for operands in problems for _ in range(6)]
    attempts = world.attempts(model, tokenizer, asked, temperature=1.0, seed=seed + 300)
    units: list[Candidates] = []
    for row, operands in enumerate(problems):
        drawn = attempts[6 * row : 6 * row + 6]
        texts = tuple(dict.fromkeys(a.text for a in drawn if a.finished and a.text))
        if len(texts) > 1:
            prompt = (Message(role="user", content=prompt_of(operands)),)
            units.append(
                Candidates(
                    prompt=prompt, responses=texts, policy="base", source="world:sums", row=row + 1
                )
            )
    return units, labelled


def measured(seed: int, flips: float) -> dict[str, dict[str, Any]]:
    """Each rule's kept pairs against the exact judge."""
    folder = Sums().base_model()
    units, labelled = candidates(seed, folder)
    settings = UncertaintySettings(estimator=Likelihood(batch_rows=256))
    config_hash = settings.config_hash
    with tempfile.TemporaryDirectory() as made:
        fit = make_estimator(settings.estimator, folder, labelled, Path(made))
        estimator = open_estimator(settings.estimator, folder, made, seed=seed)
    judge = FlippedJudge(sums_judge(), flips=flips, seed=seed)
    work = UncertaintyWork(settings, estimator, judge, seed=seed, config_hash=config_hash)
    built = [one for at in range(0, len(units), 32) for one in work(units[at : at + 32])]

    def kept(of: list[Built]) -> dict[str, Any]:
        return truth([pair for one in of for pair in one.pairs], sums_judge()).to_json()

    found = {"all candidates": kept(built)}
    for name, rule in RULES.items():
        chosen = settings.model_copy(update={"select": rule})
        found[name] = kept(finish(built, chosen, seed=seed, config_hash=config_hash))
    return found | {"estimator": fit.to_json()}


def main() -> None:
    """Prints a markdown table of precisions, mean over the seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--flips", type=float, default=0.2)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    found = {seed: measured(seed, given.flips) for seed in given.seeds}
    if given.out is not None:
        given.out.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    print("| kept | pairs | precision, mean | of each seed |\n| --- | ---: | ---: | --- |")
    for name in ["all candidates", *RULES]:
        each = [found[seed][name] for seed in given.seeds]
        precisions = [one["precision"] for one in each]
        pairs = statistics.mean(one["right"] + one["equal"] + one["wrong"] for one in each)
        of_each = ", ".join(f"{p:.3f}" for p in precisions)
        print(f"| {name} | {pairs:.0f} | {statistics.mean(precisions):.3f} | {of_each} |")


if __name__ == "__main__":
    main()
