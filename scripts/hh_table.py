"""Offline methods on real dialogues (HH-RLHF) with a real 135M instruct model: one table.

python scripts/hh_table.py --pairs FILE.jsonl.gz [--seed S] [--out DIR] [KEY=VALUE ...]
python scripts/hh_table.py --pairs FILE.jsonl.gz --pilot 5e-5 1e-4 2e-4

Trains recipes/{dpo,rpo,ipo}/smollm2-hh.yaml and the likelihood of the chosen answers on the same
pairs, then DPO and rDPO on these pairs with a share of the labels flipped. Measures each on pairs
of other dialogues, with paired differences, and takes some steps of TRL's DPOTrainer in turns with
ours. KEY=VALUE changes every recipe alike (`data.max_length=384`, `train.learning_rate=2e-4`).
Writes table.md, and in runs/ everything behind it: what is there is not made again, a run that was
killed goes on, and the same command ends the table.

--pilot tries learning rates of DPO on 200 of the training pairs, measured on 100 others of them.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import math
import os
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch loads
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import torch  # noqa: E402
import transformers  # noqa: E402
import yaml  # noqa: E402
from hh_measure import Measured, measured  # noqa: E402
from hh_pairs import FLIPPED, HELD_OUT, TRAIN, written_pairs  # noqa: E402
from hh_text import head, shown, table  # noqa: E402
from hh_trl import compared, said  # noqa: E402

from align.app.train import train_recipe  # noqa: E402
from align.errors import AlignError  # noqa: E402
from align.estimates import mean  # noqa: E402
from align.recipe import Recipe, load_recipe  # noqa: E402
from align.runs.folder import write_atomically  # noqa: E402
from align_eval.answers import Answers  # noqa: E402

FLIPS = 0.3
PILOT = (200, 100)
# Padded rows with a whole vocabulary for every token: as many as the step has would take gigabytes.
LIKELIHOOD_BATCH = 4


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        method: folder of its recipe; likelihood is made of DPO's.
        pairs: file that it is trained on.
        against: the run that it is compared with.
    """

    method: str
    pairs: str
    against: str | None


RUNS = {
    "dpo": Run("dpo", TRAIN, None),
    "rpo": Run("rpo", TRAIN, "dpo"),
    "ipo": Run("ipo", TRAIN, "dpo"),
    "likelihood": Run("likelihood", TRAIN, "dpo"),
    "dpo-flipped": Run("dpo", FLIPPED, "dpo"),
    "rdpo-flipped": Run("rdpo", FLIPPED, "dpo-flipped"),
}
START = "start"


class Table:
    """The runs of one folder.

    Args:
        asked: the command's arguments.
    """

    def __init__(self, asked: argparse.Namespace) -> None:
        self.asked = asked
        self.out: Path = asked.out
        self.answers = Answers(n=asked.answers, max_new_tokens=96)
        self.pairs = written_pairs(
            self.out,
            load_recipe(recipe_of("dpo"), self.changes(str(asked.pairs), is_source=True)),
            train=asked.train,
            held_out=asked.held_out,
            flips=FLIPS,
            seed=asked.seed,
        )
        (self.out / "runs").mkdir(exist_ok=True)

    def changes(self, pairs: str, *, is_source: bool = False) -> list[str]:
        """Overrides that every recipe gets; a file has no splits."""
        own = [] if is_source else ["data.format=trl", "data.max_dropped=0"]
        split = ["data.split=train"] if Path(pairs).exists() else []
        return [
            f"data.pairs={json.dumps(pairs)}",
            "data.held_out=0",
            "evaluate.suite=[]",
            f"train.seed={self.asked.seed}",
            f"evaluate.seed={self.asked.seed}",
            *own,
            *split,
            *self.asked.changes,
        ]

    def recipe(self, pairs: str, *changes: str) -> Recipe:
        """DPO's, whose `model`, `data` and `train` sections all have, on a file of pairs."""
        return load_recipe(recipe_of("dpo"), [*self.changes(str(self.out / pairs)), *changes])

    def run(self, name: str) -> None:
        """Trains and measures one run, as far as that is not done."""
        run, folder = RUNS[name], self.out / "runs" / name
        file = folder.with_suffix(".json")
        if file.is_file():
            return
        path, changes = recipe_of(run.method), self.changes(str(self.out / run.pairs))
        if run.method == "likelihood":
            path = self.out / "runs" / "likelihood.yaml"
            write_atomically(path, likelihood_recipe())
            changes = [change for change in changes if not change.startswith("train.token_budget")]
            changes += in_parts(self.recipe(run.pairs).train.per_device_train_batch_size)
        calls = folder.with_suffix(".calls.jsonl")
        _note(calls, {"began": time.time()})
        wall, cpu = time.monotonic(), time.process_time()
        train_recipe(path, changes, folder, ())
        _note(calls, {"wall": time.monotonic() - wall, "cpu": time.process_time() - cpu})
        self._measure(file, folder / "model")

    def start(self) -> None:
        """Measures the start policy, as far as that is not done."""
        file = self.out / "runs" / f"{START}.json"
        if not file.is_file():
            self._measure(file, None)

    def _measure(self, file: Path, adapter: Path | None) -> None:
        cpu = time.process_time()
        found = measured(self.recipe(HELD_OUT), adapter, self.answers)
        found["measuring_cpu"] = time.process_time() - cpu
        write_atomically(file, json.dumps(found) + "\n")
        gc.collect()

    def beside_trl(self) -> None:
        """TRL's trainer in turns with ours, as far as that is not done."""
        file, steps = self.out / "trl.json", self.asked.trl_steps
        if not steps or file.is_file():
            return
        found = compared(self.recipe(TRAIN), steps, self.asked.trl_batch, self.out / "runs" / "trl")
        write_atomically(file, json.dumps(found, indent=1) + "\n")

    def text(self) -> str:
        """The table of what is there, in Markdown."""
        there = {
            name: (self._about(name), Measured(**self._fields(file)))
            for name in (START, *RUNS)
            if (file := self.out / "runs" / f"{name}.json").is_file()
        }
        answers = (
            f"one answer to each of {self.answers.n} held-out prompts, temperature 1, at most "
            f"{self.answers.max_new_tokens} tokens"
        )
        lines = head(self.recipe(TRAIN), self.pairs, answers)
        lines += ["", *table(there, {n: run.against for n, run in RUNS.items() if run.against})]
        comparison = self.out / "trl.json"
        if comparison.is_file():
            lines += ["", *said(json.loads(comparison.read_text()))]
        return "\n".join(lines) + "\n"

    def _fields(self, file: Path) -> dict[str, Any]:
        return {k: v for k, v in json.loads(file.read_text()).items() if k != "measuring_cpu"}

    def _about(self, name: str) -> dict[str, Any]:
        """Pairs and seconds of a run; those of a call that was killed are not known."""
        if name == START:
            return {"pairs": 0, "training": "", "cpu": ""}
        folder = self.out / "runs" / name
        calls = [
            json.loads(line) for line in folder.with_suffix(".calls.jsonl").read_text().splitlines()
        ]
        log = json.loads((folder / "log_history.json").read_text())
        training = next(row["train_runtime"] for row in reversed(log) if "train_runtime" in row)
        ended = [call for call in calls if "cpu" in call]
        more = "> " if sum("began" in call for call in calls) > len(ended) else ""
        return {
            "pairs": self.pairs["train"],
            "training": f"{more}{training:.0f}",
            "cpu": f"{more}{sum(call['cpu'] for call in ended):.0f}",
        }


def recipe_of(method: str) -> Path:
    return ROOT / "recipes" / method / "smollm2-hh.yaml"


def likelihood_recipe() -> str:
    """DPO's recipe with the likelihood of the chosen answers in place of the formula."""
    recipe = yaml.safe_load(recipe_of("dpo").read_text())
    del recipe["objective"], recipe["roles"], recipe["train"]["token_budget"]
    return yaml.safe_dump({"kind": "sft"} | recipe, sort_keys=False)


def in_parts(size: int) -> list[str]:
    """Overrides with which a step of so many rows is made of smaller batches."""
    part = math.gcd(size, LIKELIHOOD_BATCH)
    return [
        f"train.per_device_train_batch_size={part}",
        f"train.gradient_accumulation_steps={size // part}",
    ]


def _note(file: Path, what: dict[str, Any]) -> None:
    with file.open("a") as lines:
        lines.write(json.dumps(what) + "\n")


def pilot(table: Table, rates: Sequence[float]) -> str:
    """DPO at each rate on a few training pairs, measured on others of them; held-out ones stay."""
    folder = table.out / "pilot"
    folder.mkdir(exist_ok=True)
    lines = (table.out / TRAIN).read_text().splitlines(keepends=True)
    drawn = random.Random(f"hh/pilot/{table.asked.seed + 1}").sample(lines, sum(PILOT))
    write_atomically(folder / TRAIN, "".join(drawn[: PILOT[0]]))
    write_atomically(folder / HELD_OUT, "".join(drawn[PILOT[0] :]))
    seed = f"train.seed={table.asked.seed + 1}"
    shown_lines = [
        "| learning rate | loss | accuracy, % | margin, nats | KL, nats |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for rate in rates:
        run, file = folder / f"dpo-{rate:g}", folder / f"dpo-{rate:g}.json"
        changes = [f"train.learning_rate={rate!r}", seed]
        if not file.is_file():
            source = table.changes(str(folder / TRAIN))
            train_recipe(recipe_of("dpo"), [*source, *changes], run, ())
            found = measured(
                table.recipe(f"pilot/{HELD_OUT}"), run / "model", Answers(n=16, max_new_tokens=96)
            )
            write_atomically(file, json.dumps(found) + "\n")
        found = Measured(**json.loads(file.read_text()))
        beta = table.recipe(TRAIN).objective.model_dump()["beta"]
        loss = mean(torch.nn.functional.softplus(-beta * found.margin), what="loss")
        own = found.estimates()
        cells = [shown(loss, 1, 4), shown(own["accuracy"], 100, 1), shown(own["margin"], 1, 2)]
        shown_lines.append(f"| {rate:g} | {' | '.join([*cells, shown(own['kl'], 1, 2)])} |")
    return "\n".join(shown_lines) + "\n"


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    about, _, more = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=about, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", required=True, help="file of HH-RLHF, or a Hub id")
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "hh-table")
    parser.add_argument("--seed", type=int, default=0, help="of split, flips, training, answers")
    parser.add_argument("--train", type=int, default=2000, help="training pairs at most")
    parser.add_argument("--held-out", type=int, default=300, help="held-out pairs")
    parser.add_argument("--answers", type=int, default=64, help="held-out prompts that are asked")
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS), metavar="RUN")
    parser.add_argument(
        "--trl-steps", type=int, default=20, help="steps beside TRL's; 0 leaves out"
    )
    parser.add_argument("--trl-batch", type=int, default=4, help="pairs of TRL's forward pass")
    parser.add_argument("--pilot", type=float, nargs="+", metavar="RATE")
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    asked = arguments(given)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    logging.getLogger("align").setLevel(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    try:
        found = Table(asked)
        if asked.pilot:
            text, file = pilot(found, asked.pilot), asked.out / "pilot.md"
        else:
            found.start()
            for name in asked.only:
                found.run(name)
                print(found.text(), flush=True)
            found.beside_trl()
            text, file = found.text(), asked.out / "table.md"
    except AlignError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    write_atomically(file, text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
