"""Groups of completions: ours against TRL's KTO trainer, and the forest against padded rows.

python scripts/bench_groups.py [--what kto groups] [--data hh uf step] [--model M] [--steps N]
                               [--seed S] [--quick] [--json FILE]

Two training loops run in one process and take turns step by step, as in bench_throughput.py: the
same examples, the same weights, CPU time of one thread, medians over steps behind one warm-up step,
ratios above 1 where ours is better. Either side is as it comes.

kto     TRL's KTOTrainer (reference in each step) against ours, which scores it before training:
        `all` adds that scoring to our steps, as a run of one epoch has it. Steps of 8 rows.
groups  GroupTrainer on padded rows against GroupTrainer, reference scored before training by both.
        Steps of 2 prompts with 8 answers each.

Exits with 1 where the two sides' losses differ: they did not do the same work then.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch loads
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from bench_lengths import COMPLETION, MAX_LENGTH, PROMPT, SPECIAL, plain_tokenizer  # noqa: E402
from bench_models import MODELS  # noqa: E402
from bench_turns import CpuMeter, Side, Step, Turns  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import PrinterCallback  # noqa: E402
from trl.trainer.kto_config import KTOConfig as TRLKTOConfig  # noqa: E402
from trl.trainer.kto_trainer import KTOTrainer as TRLKTOTrainer  # noqa: E402

from align.forest import PADDED, Choice  # noqa: E402
from align.trainers import GroupConfig, GroupTrainer, KTOConfig, KTOTrainer  # noqa: E402
from align.trainers.mismatched import mismatched_ids  # noqa: E402

ROWS, PROMPTS, ANSWERS = 8, 2, 8
WARM_UP = 1
LEARNING_RATE = 1e-4
LOSS_TOLERANCE = 1e-3
DATA = ("hh", "uf", "step")


@dataclass(frozen=True)
class Setting:
    """What both sides have in common.

    Attributes:
        folder: of the model.
        model: its name in MODELS.
        steps: that count.
        seed: of the rows.
        work: folder for what trainers write.
    """

    folder: str
    model: str
    steps: int
    seed: int
    work: Path


def measured(kind: type) -> type:
    """A trainer whose loop is a `Side`."""

    class Measured(kind):
        side: Side

        def take_turns(self, side: Side) -> None:
            self.side = side
            self.add_callback(side)
            self.remove_callback(PrinterCallback)

        def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
            self.side.begin(self.model)
            return super().get_batch_samples(*args, **kwargs)

        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(model, inputs, *args, **kwargs)
            self.side.loss, self.side.tokens = loss, _computed(inputs)
            return loss

    return Measured


def _computed(inputs: Any) -> int:
    if "parts" in inputs:
        passes = [*inputs["parts"], *inputs.get("measured", [])]
        return sum(part["pack"].computed_tokens for part in passes)
    return sum(inputs[name].numel() for name in ("input_ids", "KL_input_ids"))


class TrlOnTokens(TRLKTOTrainer):
    """TRL's trainer on rows that are tokenised already."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        completions = [[ids] for ids in dataset["completion_ids"]]
        leaves = mismatched_ids(dataset["prompt_ids"], completions, ROWS, MAX_LENGTH)
        return dataset.add_column("KL_completion_ids", [row[0] for row in leaves])


class PaddedGroups(GroupTrainer):
    """Ours, on padded rows."""

    def _choose_backend(self) -> Choice:
        return replace(super()._choose_backend(), backend=PADDED)


def groups_of(name: str, prompts: int, answers: int, seed: int, vocabulary: int) -> Dataset:
    """Prompts with answers of the lengths that bench_lengths.py draws, and random scores."""
    rng = np.random.default_rng([seed, answers, sum(name.encode())])

    def text(length: int) -> list[int]:
        return rng.integers(len(SPECIAL), vocabulary, length).tolist()

    rows: list[dict[str, Any]] = []
    for _ in range(prompts):
        completions = [text(int(n)) for n in COMPLETION[name].draw(rng, answers)]
        room = MAX_LENGTH - max(len(completion) for completion in completions)
        prompt = text(min(int(PROMPT[name].draw(rng, 1)[0]), room))
        scores = rng.normal(size=answers).tolist()
        rows.append({"prompt_ids": prompt, "completions_ids": completions, "scores": scores})
    return Dataset.from_list(rows)


def kto(name: str, setting: Setting) -> dict[str, Any]:
    """TRL's KTO trainer and ours over rows of one completion each."""
    steps = setting.steps + WARM_UP
    drawn = groups_of(name, steps * ROWS, 1, setting.seed, MODELS[setting.model].vocabulary)
    rows = Dataset.from_dict(
        {
            "prompt_ids": drawn["prompt_ids"],
            "completion_ids": [one[0] for one in drawn["completions_ids"]],
            "label": [one[0] > 0 for one in drawn["scores"]],
        }
    )
    theirs = measured(TrlOnTokens)(
        setting.folder, args=_config(TRLKTOConfig, ROWS, setting), **_data(rows, setting)
    )
    began = time.process_time()
    ours = measured(KTOTrainer)(
        setting.folder, args=_config(KTOConfig, ROWS, setting), **_data(rows, setting)
    )
    # Loading and the check of the backend are in it too: no less than the scoring.
    before = (time.process_time() - began) / steps
    return _compared("kto", name, theirs, ours, steps, before)


def groups(name: str, setting: Setting) -> dict[str, Any]:
    """Padded rows and the forest over groups of answers."""
    steps = setting.steps + WARM_UP
    vocabulary = MODELS[setting.model].vocabulary
    rows = groups_of(name, steps * PROMPTS, ANSWERS, setting.seed, vocabulary)
    padded, forest = (
        measured(kind)(
            setting.folder,
            args=_config(GroupConfig, PROMPTS, setting),
            objective={"name": "plackett_luce"},
            **_data(rows, setting),
        )
        for kind in (PaddedGroups, GroupTrainer)
    )
    return _compared("groups", name, padded, forest, steps, 0.0)


def _data(rows: Dataset, setting: Setting) -> dict[str, Any]:
    tokenizer = plain_tokenizer(MODELS[setting.model].vocabulary)
    return {"train_dataset": rows, "processing_class": tokenizer}


def _config(kind: Any, rows: int, setting: Setting) -> Any:
    return kind(
        output_dir=str(setting.work / kind.__module__),
        learning_rate=LEARNING_RATE,
        max_steps=10_000,  # the side stops it
        per_device_train_batch_size=rows,
        train_sampling_strategy="sequential",
        bf16=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        model_init_kwargs={"dtype": MODELS[setting.model].dtype},
        **MODELS[setting.model].training,
    )


def _compared(
    what: str, data: str, theirs: Any, ours: Any, steps: int, before: float
) -> dict[str, Any]:
    turns, meter = Turns(steps), CpuMeter()
    for number, trainer in enumerate((theirs, ours)):
        trainer.take_turns(Side(number, turns, meter, steps))

    def run(trainer: Any) -> None:
        try:
            trainer.train()
        except BaseException:
            turns.fail()
            raise

    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(run, trainer) for trainer in (theirs, ours)]
        for one in wait(running, return_when=FIRST_EXCEPTION).done:
            one.result()
    baseline, found = (_counted(trainer.side.steps) for trainer in (theirs, ours))
    ratios = [a.seconds / b.seconds for a, b in zip(baseline, found, strict=True)]
    whole = [a.seconds / (b.seconds + before) for a, b in zip(baseline, found, strict=True)]
    gap = max(abs(a.loss - b.loss) for a, b in zip(baseline, found, strict=True))
    return {
        "what": what,
        "data": data,
        "speed_ratio": median(ratios),
        "speed_ratio_min": min(ratios),
        "speed_ratio_max": max(ratios),
        "speed_ratio_all": median(whole),
        "token_ratio": sum(a.tokens for a in baseline) / sum(b.tokens for b in found),
        "n": len(ratios),
        "loss_gap": gap,
        "same_losses": gap <= LOSS_TOLERANCE,
        "backend": ours.backend.backend.name,
    }


def _counted(steps: Sequence[Step]) -> Sequence[Step]:
    return steps[WARM_UP:]


def main() -> int:
    about, _, more = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=about, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = {"kto": kto, "groups": groups}
    parser.add_argument("--what", nargs="+", choices=kinds, default=list(kinds))
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--model", choices=("5m", "26m"), default="5m")
    parser.add_argument("--steps", type=int, default=6, help="counted ones; default 6")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="2 counted steps")
    parser.add_argument("--json", type=Path, metavar="FILE")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as work:
        os.environ["ALIGN_CACHE"] = f"{work}/cache"
        folder = Path(work, asked.model)
        MODELS[asked.model].build("cpu", asked.seed).save_pretrained(folder)
        steps = 2 if asked.quick else asked.steps
        setting = Setting(str(folder), asked.model, steps, asked.seed, Path(work))
        for what in asked.what:
            for data in asked.data:
                row = kinds[what](data, setting)
                found.append(row)
                print(
                    "{what} {data}: {speed_ratio:.2f}x ({speed_ratio_min:.2f} to "
                    "{speed_ratio_max:.2f}), all {speed_ratio_all:.2f}x, tokens "
                    "{token_ratio:.2f}x, n={n}, losses within {loss_gap:.1e}, {backend}".format(
                        **row
                    ),
                    flush=True,
                )
                if asked.json is not None:
                    asked.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    apart = [f"{row['what']}/{row['data']}" for row in found if not row["same_losses"]]
    if apart:
        print(f"The two sides' losses differ: {', '.join(apart)}.")
    return 1 if apart else 0


if __name__ == "__main__":
    sys.exit(main())
