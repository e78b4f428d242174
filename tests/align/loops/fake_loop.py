"""A loop whose stages only write files, each a function of what it reads; also runnable by itself.

python fake_loop.py FOLDER ROUNDS SECONDS   SECONDS: of pretended work in every call and step
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from align.loops.engine import Loop
from align.loops.retention import Retention
from align.loops.signals import StopSignal
from align.loops.stage import Artefact, StageContext, given
from align.runs.ledger import Ledger
from align.servers.calls import CallStore, key_of

VERSIONS = {"torch": "2.13.0"}
CALLS = 3  # per round
STEPS = 2  # per training


def digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def text_of(folder: Path) -> str:
    return "".join(path.read_text() for path in sorted(folder.iterdir()))


def write_durably(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.new")
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


class Node(BaseModel):
    """A stage that is a recipe's node: its fields are its settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    without_influence: ClassVar[frozenset[str]] = frozenset()

    @property
    def version(self) -> int:
        return 1

    def settings(self) -> Mapping[str, Any]:
        return self.model_dump(mode="json", exclude={"name", *self.without_influence})


class Generate(Node):
    name: str = "generate"
    temperature: float = 1.0
    workers: int = 1
    without_influence = frozenset({"workers"})

    @property
    def reads(self) -> tuple[str, ...]:
        return ("policy", "prompts")

    @property
    def writes(self) -> tuple[str, ...]:
        return ("completions",)

    def run(self, context: StageContext) -> Mapping[str, Any]:
        policy = text_of(context.input("policy"))
        rows = [digest(policy, context.seed, self.temperature, i)[:12] for i in range(CALLS)]
        (context.output("completions") / "rows.txt").write_text("\n".join(rows))
        return {"tokens": 12 * len(rows)}


class Judge(Node):
    """Asks a pretended server; `served` is the server's own log, which no crash takes back."""

    name: str = "judge"
    served: str
    seconds: float = 0.0
    without_influence = frozenset({"served", "seconds"})

    @property
    def reads(self) -> tuple[str, ...]:
        return ("completions",)

    @property
    def writes(self) -> tuple[str, ...]:
        return ("judged",)

    def run(self, context: StageContext) -> Mapping[str, Any]:
        scores = []
        with CallStore(context.loop / "calls.sqlite") as store:
            for row in text_of(context.input("completions")).split("\n"):
                key = key_of(
                    prompt_bytes=row.encode(), model="judge", revision="1", parameters={},
                    template="1", parser="1", sample=context.round,
                )  # fmt: skip
                answer = store.get(key)
                if answer is None:
                    answer = store.put(key, {}, self.ask(key))
                scores.append(f"{row} {answer}")
        (context.output("judged") / "scores.txt").write_text("\n".join(scores))
        return {"calls": len(scores)}

    def ask(self, key: str) -> str:
        log = os.open(self.served, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(log, f"{key}\n".encode())
        os.close(log)
        time.sleep(self.seconds)
        return digest(key)[:4]


class Select(Node):
    name: str = "select"
    rule: str = "best_vs_worst"

    @property
    def reads(self) -> tuple[str, ...]:
        return ("judged",)

    @property
    def writes(self) -> tuple[str, ...]:
        return ("pairs", "metrics")

    def run(self, context: StageContext) -> Mapping[str, Any]:
        rows = sorted(text_of(context.input("judged")).split("\n"), key=lambda row: row[-4:])
        (context.output("pairs") / "pairs.txt").write_text(f"{self.rule} {rows[-1]} {rows[0]}")
        deep = context.output("metrics") / "deep"
        deep.mkdir()
        (deep / "metrics.json").write_text(json.dumps({"read": len(rows), "kept": 1}))
        return {"read": len(rows), "kept": 1}


class Train(Node):
    """Goes on from its checkpoint in the scratch folder."""

    name: str = "train"
    beta: float = 0.1
    seconds: float = 0.0
    without_influence = frozenset({"seconds"})

    @property
    def reads(self) -> tuple[str, ...]:
        return ("policy@round_start", "pairs", "policy@previous_round", "policy@start")

    @property
    def writes(self) -> tuple[str, ...]:
        return ("policy",)

    def run(self, context: StageContext) -> Mapping[str, Any]:
        state = digest(*(text_of(context.input(read)) for read in self.reads))
        done, checkpoint = 0, context.scratch / "checkpoint.json"
        if checkpoint.is_file():
            done, state = json.loads(checkpoint.read_text())
        for step in range(done + 1, STEPS + 1):
            time.sleep(self.seconds)
            state = digest(state, self.beta, step)
            write_durably(checkpoint, json.dumps([step, state]))
        (context.output("policy") / "weights.txt").write_text(state * 32)
        (context.output("policy") / "config.txt").write_text("config")
        return {"steps": STEPS}


def stages(folder: Path, seconds: float = 0.0) -> list[Any]:
    judge = Judge(served=str(served(folder)), seconds=seconds)
    return [Generate(), judge, Select(), Train(seconds=seconds)]


def served(folder: Path) -> Path:
    """The pretended server's log, outside of the loop's folder."""
    return folder.with_name(f"{folder.name}.served")


def start(folder: Path) -> list[Artefact]:
    """What the loop starts from, beside its folder."""
    for kind in ("policy", "prompts"):
        source = folder.with_name(kind)
        source.mkdir(exist_ok=True)
        (source / "content.txt").write_text(f"first {kind}")
    return [given(kind, folder.with_name(kind), f"{kind} 1") for kind in ("policy", "prompts")]


def run(
    folder: Path,
    *,
    rounds: int = 3,
    each_round: Sequence[Any] | None = None,
    seed: int = 42,
    keep: int = 1,
    stop: StopSignal | None = None,
    **options: Any,
) -> dict[str, Artefact]:
    first = start(folder)
    folder.mkdir(exist_ok=True)
    with Ledger(folder / "ledger.jsonl") as ledger:
        loop = Loop(
            folder,
            stages(folder) if each_round is None else each_round,
            given=first,
            rounds=rounds,
            seed=seed,
            ledger=ledger,
            retention=Retention(rounds=keep),
            **{"versions": VERSIONS, **options},
        )
        return loop.run(stop)


def files(folder: Path) -> dict[str, bytes]:
    """Every file of the rounds, hidden ones and manifests included."""
    rounds = folder / "rounds"
    return {
        path.relative_to(rounds).as_posix(): path.read_bytes() if path.is_file() else b"folder"
        for path in sorted(rounds.rglob("*"))
    }


def history(folder: Path) -> list[dict[str, Any]]:
    """The ledger without clocks."""
    lines = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if key not in ("sha256", "at", "seconds")}
        for line in lines
    ]


if __name__ == "__main__":
    target = Path(sys.argv[1])
    pause = float(sys.argv[3])
    start(target)
    print("started", flush=True)  # noqa: T201
    run(target, rounds=int(sys.argv[2]), each_round=stages(target, pause))
