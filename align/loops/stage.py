"""What a stage is: it reads kinds of artefacts, writes others, and is keyed by its settings.

An artefact is a folder that a stage filled, of a kind such as "policy" or "pairs". A stage reads
"policy", the newest there is, or one of

    policy@start            given to the loop from outside
    policy@round_start      the newest when this round began
    policy@previous_round   the newest when the round before began; in round 1 the given one

What rounds are to remember is an artefact too, so that a replay remembers the same: a stage that
reads and writes a kind, and names it among its `states`, is given an empty one in round 1.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from align.errors import RecipeError
from align.loops.signals import StopSignal
from align.node import Node

MOMENTS = ("start", "round_start", "previous_round")
# Of a kind that rounds remember.
STATE = "state.json"


@dataclass(frozen=True)
class Artefact:
    """A folder of one kind, whole and verified.

    Attributes:
        kind: what it is to those who read it.
        path: the folder, or for what is given from outside whatever the reader expects.
        key: of the stage that made it; for what is given, who it is.
        sha256: over names and contents of its files; for what is given, its key.
        round: in which it was made; 0 for what is given.
        is_removed: retention has taken its files away.
    """

    kind: str
    path: Path
    key: str
    sha256: str
    round: int
    is_removed: bool = False


def given(kind: str, path: Path, identity: str) -> Artefact:
    """What a loop starts from: a model's folder, a file of prompts.

    Args:
        kind: as stages read it.
        path: where it lies; it must stay there until the loop has ended.
        identity: a hash of its content; another identity makes every stage that reads it again.
    """
    return Artefact(kind, path, identity, identity, 0)


def first_states(stages: Sequence[Stage]) -> list[Artefact]:
    """What the stages remember from round to round, before the first: nothing."""
    kinds = dict.fromkeys(kind for stage in stages for kind in getattr(stage, "states", ()))
    return [given(kind, Path(), "nothing") for kind in kinds]


class LiveObjects:
    """Objects in memory that equal an artefact on disk, so that the next stage need not load it."""

    def __init__(self) -> None:
        self._of: dict[tuple[str, str], Any] = {}

    def put(self, artefact: Artefact, value: Any) -> None:
        """Holds `value` for whoever reads `artefact` next."""
        self._of[artefact.kind, artefact.key] = value

    def take(self, artefact: Artefact) -> Any | None:
        """Hands the object over and forgets it, because its new owner may change it."""
        return self._of.pop((artefact.kind, artefact.key), None)

    def keep_only(self, artefacts: Sequence[Artefact]) -> None:
        """Forgets the objects of all other artefacts."""
        wanted = {(artefact.kind, artefact.key) for artefact in artefacts}
        self._of = {name: value for name, value in self._of.items() if name in wanted}


@dataclass(frozen=True)
class StageContext:
    """What a stage is given when it runs.

    Attributes:
        loop: the loop's folder; what outlives rounds, such as the call store, lies there.
        round: 1-based.
        seed: 32 bits, of its own for each round and place in the round.
        folder: what the stage writes; published, whole, after `run` returns.
        scratch: a folder that a killed or stopped run of the same stage finds again: checkpoints.
        inputs: by what `reads` says.
        stop: whether a signal asks to end.
    """

    loop: Path
    round: int
    seed: int
    folder: Path
    scratch: Path
    inputs: Mapping[str, Artefact]
    stop: StopSignal
    live: LiveObjects
    kept: dict[str, Any]

    def input(self, read: str) -> Path:
        """Where the artefact of an entry of `reads` lies."""
        return self.inputs[read].path

    def state(self, kind: str) -> dict[str, Any]:
        """What `remember` left last, in this round or the one before; empty at the beginning."""
        artefact = self.inputs[kind]
        if artefact.round == 0:
            return {}
        return json.loads((artefact.path / STATE).read_text(encoding="utf-8"))

    def remember(self, kind: str, state: Mapping[str, Any]) -> None:
        """Leaves what the next reader of `kind` finds; JSON-ready."""
        text = json.dumps(state, sort_keys=True, ensure_ascii=False, allow_nan=False)
        (self.output(kind) / STATE).write_text(f"{text}\n", encoding="utf-8")

    def output(self, kind: str) -> Path:
        """The folder to fill with an artefact of `kind`."""
        folder = self.folder / kind
        folder.mkdir(exist_ok=True)
        return folder

    def take(self, read: str) -> Any | None:
        """The object that equals the artefact of `read`, if one is in memory.

        It is handed over: nobody else holds it, and who leaves it as it was gives it back with
        `put_back`, so that the next stage finds it too.
        """
        return self.live.take(self.inputs[read])

    def put_back(self, read: str, value: Any) -> None:
        """Leaves an object, equal to the artefact of `read`, to the stages that follow."""
        self.live.put(self.inputs[read], value)

    def keep(self, kind: str, value: Any) -> None:
        """Leaves an object, equal to what was written as `kind`, to the stages that follow."""
        self.kept[kind] = value


class Stage(Protocol):
    """A step of a round."""

    @property
    def name(self) -> str:
        """What it is called in recipes, folders and the ledger."""
        ...

    @property
    def version(self) -> int:
        """Raised whenever a change of the code changes what the same settings give."""
        ...

    @property
    def reads(self) -> tuple[str, ...]:
        """Artefacts it needs, as kinds or `kind@moment`."""
        ...

    @property
    def writes(self) -> tuple[str, ...]:
        """Kinds it leaves, all of them, each time."""
        ...

    def settings(self) -> Mapping[str, Any]:
        """Everything besides inputs and seed that the result depends on, JSON-ready.

        What the result does not depend on, such as how many calls are made at a time, is left out:
        whoever changes it would have to wait for the same result again.
        """
        ...

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Fills `context.output(kind)` for each kind in `writes`.

        Returns:
            What the ledger is to say: counts, tokens, identities; JSON-ready and without clocks,
            which would make two equal runs differ.
        """
        ...


class StageNode(Node):
    """An entry of a recipe's `each_round`, or `build`: the settings of a stage.

    Children state `run`, the word that recipes write, and make the stage.
    """

    run: Any  # a Literal in every child
    """Which stage."""
    trains: ClassVar[bool] = False
    """Whether it leaves another policy, or measures one: no work for a recipe of a data set."""
    needs_prompts: ClassVar[bool] = True
    """Whether it asks the recipe's prompts."""

    @property
    def folder_name(self) -> str:
        """`run` as folders and the ledger can hold it: of file.py:object the object alone."""
        return re.sub(r"[^a-z0-9_]+", "_", str(self.run).rpartition(":")[2].lower())

    def stage(self, workshop: Any) -> Stage:
        """The stage of these settings.

        Args:
            workshop: the recipe, its start policy and tokenizer (`align.stages.workshop`).

        Raises:
            RecipeError: it does not fit the rest of the recipe.
        """
        raise NotImplementedError

    def look_ahead(self, workshop: Any) -> None:
        """Looks for what the settings name outside of the recipe, before anything is made.

        Else a file or model that is not there would end a run in its middle. Nothing heavy is
        loaded for it.

        Args:
            workshop: as `stage` takes it.

        Raises:
            AlignError: it is not there, or is something else.
        """


KIND = re.compile(r"[a-z][a-z0-9_]*")


def check_chain(stages: Sequence[Stage], available: Mapping[str, Any]) -> None:
    """Follows the artefacts through a round, before anything is run.

    Args:
        stages: of a round, in order.
        available: kinds that are given from outside.

    Raises:
        RecipeError: a stage reads what nobody has written by then, or declares nothing sensible;
            the text lists every such place.
    """
    if not stages:
        raise RecipeError("each_round lists no stage. Write at least one, such as {run: generate}.")
    known = set(available)
    problems: list[str] = []
    for i, stage in enumerate(stages):
        where = f"each_round[{i}] (run: {stage.name})"
        for read in stage.reads:
            kind, _, moment = read.partition("@")
            if moment and moment not in MOMENTS:
                problems.append(f"{where} reads {read}, but there is only {', '.join(MOMENTS)}")
            elif kind not in (available if moment else known):
                problems.append(f"{where} reads {read}, {_whence(kind, moment, stages[i:])}")
        if not stage.writes:
            problems.append(f"{where} writes nothing")
        problems += [
            f"{where} writes {kind!r}, which is no name of a kind (small letters, digits and _)"
            for kind in stage.writes
            if not KIND.fullmatch(kind)
        ]
        known.update(stage.writes)
    if problems:
        raise RecipeError(
            f"The stages do not fit together: {'; '.join(problems)}. Put a stage that writes what "
            "is missing before the one that reads it, or take the reader out."
        )


def _whence(kind: str, moment: str, later: Sequence[Stage]) -> str:
    if moment:
        return f"but the loop is given no {kind} to start from"
    writers = [stage.name for stage in later if kind in stage.writes]
    if writers:
        return f"which only {writers[0]} writes, and not before it"
    return "which no stage writes"


def json_ready(value: Mapping[str, Any]) -> dict[str, Any]:
    """`value` as JSON gives it back, so that a tuple and a list are no difference."""
    return json.loads(json.dumps(value, sort_keys=True, allow_nan=False))
