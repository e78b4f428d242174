"""Hallucinations before and after OPA-DPO on the world of scenes, several seeds: one table.

    python scripts/opa_table.py [--seeds 0 1 2] [--out outputs/opa-table]

Per seed: the base model; `dpo`, plain DPO from the base on as many off-policy pairs as there are
pictures (an annotator's caption over his careless colleague's, so that the policy wrote neither
side); `aligned`, what on-policy alignment alone leaves; and `opa_dpo`, the whole of
recipes/opa_dpo/tiny.yaml. Both trainings take the recipe's `train` section and as many optimizer
steps. Writes results.json and table.md; what results.json already holds is not run again.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch loads
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import transformers  # noqa: E402
from transformers import AutoModelForImageTextToText, AutoProcessor  # noqa: E402

from align.data.pairs import PreferencePair  # noqa: E402
from align.data.questions import Question  # noqa: E402
from align.data.row_report import RowReport  # noqa: E402
from align.policies.in_process import InProcessPolicy  # noqa: E402
from align.policies.local_tokens import LocalTokens  # noqa: E402
from align.recipe import load_recipe  # noqa: E402
from align.stages.training import quieten, training_arguments  # noqa: E402
from align.tokens.dataset import to_dataset  # noqa: E402
from align.tokens.encoding import encode_pairs  # noqa: E402
from align.trainers.preference import PreferenceTrainer  # noqa: E402
from align.worlds.scenes import Scenes, Telling, truth_of  # noqa: E402
from align_data.expert_correction.alignment import align_on_policy, responses_in  # noqa: E402
from align_data.expert_correction.on_policy import OnPolicyAlignment  # noqa: E402
from align_data.expert_correction.scenes import ScenesExpert  # noqa: E402
from align_data.expert_correction.stage import ExpertCorrection  # noqa: E402
from align_data.expert_correction.work import ExpertCorrectionWork  # noqa: E402

RECIPE = ROOT / "recipes" / "opa_dpo" / "tiny.yaml"
MEASURED = 1024
METHODS = ("base", "dpo", "aligned", "opa_dpo")


def run_seed(seed: int, out: Path, world: Scenes) -> dict[str, Any]:
    recipe = load_recipe(RECIPE, [f"train.seed={seed}"])
    assert recipe.prompts is not None
    assert recipe.prompts.per_round is not None
    pictures = recipe.prompts.per_round
    correction, alignment = recipe.each_round[0], recipe.each_round[1]
    assert isinstance(correction, ExpertCorrection)
    assert isinstance(alignment, OnPolicyAlignment)
    start = world.base_model()
    processor = AutoProcessor.from_pretrained(start)
    found: dict[str, Any] = {}
    base = AutoModelForImageTextToText.from_pretrained(start)
    measured(found, "base", world, base, processor, seed)

    began = time.process_time()
    questions = [
        Question(
            prompt=prompt.prompt,
            images=prompt.images,
            solution=truth_of(prompt),
            group_id=prompt.group_id,
            source=prompt.source,
            row=prompt.row,
        )
        for prompt in world.prompts("train", pictures, seed=1000 + seed)
    ]
    work = ExpertCorrectionWork(
        correction,
        ScenesExpert(),
        LocalTokens(processor, None),
        InProcessPolicy(base, processor),
        seed=seed,
        config_hash="opa-table",
    )
    built = work(questions)
    pairs = [trained_columns(pair) for one in built for pair in one.pairs]
    folder = out / f"aligned-{seed}"
    aligned = align_on_policy(
        AutoModelForImageTextToText.from_pretrained(start),
        processor,
        responses_in(built),
        alignment,
        seed=seed,
        folder=folder,
    )
    spent = time.process_time() - began
    model = AutoModelForImageTextToText.from_pretrained(folder)
    measured(found, "aligned", world, model, processor, seed)
    found["aligned"] |= {"before": aligned.before, "after": aligned.after, "cpu_s": spent}

    trainer = trained(recipe, folder, processor, pairs, recipe.objective, out, {})
    steps = trainer.state.global_step
    measured(found, "opa_dpo", world, trainer.model, processor, seed)
    found["opa_dpo"] |= {"pairs": len(pairs), "steps": steps, "pictures": pictures}

    off_policy = world.sample_pairs(
        base,
        processor,
        problems=pictures,
        samples_per_problem=1,
        temperature=1.0,
        seed=1000 + seed,
    ).pairs
    dpo = {"name": "dpo", "beta": getattr(recipe.objective, "beta", 0.1)}
    trainer = trained(recipe, start, processor, off_policy, dpo, out, {"max_steps": steps})
    measured(found, "dpo", world, trainer.model, processor, seed)
    found["dpo"] |= {"pairs": len(off_policy), "steps": trainer.state.global_step}
    return found


def trained_columns(pair: Any) -> PreferencePair:
    known = PreferencePair.model_fields
    return PreferencePair.model_validate({k: v for k, v in pair.model_dump().items() if k in known})


def trained(
    recipe: Any,
    start: Path,
    processor: Any,
    pairs: list[PreferencePair],
    objective: Any,
    out: Path,
    changes: dict[str, Any],
) -> PreferenceTrainer:
    arguments = training_arguments(recipe, out / "checkpoints", ())
    for name, value in changes.items():
        setattr(arguments, name, value)
    rows = encode_pairs(pairs, processor, recipe.data, RowReport())
    trainer = PreferenceTrainer(
        AutoModelForImageTextToText.from_pretrained(start),
        args=arguments,
        train_dataset=to_dataset(rows),
        processing_class=processor,
        objective=objective,
    )
    quieten(trainer)
    trainer.train()
    return trainer


def measured(
    found: dict[str, Any], method: str, world: Scenes, model: Any, processor: Any, seed: int
) -> None:
    told: Telling = world.tell(model.eval(), processor, MEASURED, seed=seed)
    found[method] = {
        "hallucination_rate": told.false / told.sentences,
        "coverage": told.told / told.objects,
        "sentences": told.sentences / told.pictures,
        "unfinished": told.unfinished,
    }
    print(f"seed {seed}: {method} {json.dumps(found[method])}", flush=True)


def table(results: dict[str, Any]) -> str:
    seeds = sorted(results, key=int)
    columns = " | ".join(f"seed {seed}" for seed in seeds)
    lines = [
        f"| method | {columns} | mean | coverage | sentences |",
        "| --- |" + " --- |" * (len(seeds) + 3),
    ]
    for method in METHODS:
        rows = [results[seed][method] for seed in seeds]
        rates = [row["hallucination_rate"] for row in rows]
        told, said = (
            statistics.mean(row[name] for row in rows) for name in ("coverage", "sentences")
        )
        each = " | ".join(f"{rate:.3f}" for rate in rates)
        mean = statistics.mean(rates)
        lines.append(f"| {method} | {each} | {mean:.3f} | {told:.3f} | {said:.2f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "opa-table")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for seed in arguments.seeds:
        if str(seed) not in results:
            results[str(seed)] = run_seed(seed, arguments.out, Scenes())
            path.write_text(json.dumps(results, indent=1))
    text = table(results)
    (arguments.out / "table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
