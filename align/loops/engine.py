"""Runs the stages of all rounds; running it again after anything at all is resuming.

    rounds/0002/03-select/            what a stage made: manifest.json and a folder per kind
    rounds/0002/.03-select.partial/   being made; nobody reads it
    rounds/0002/.03-select.*.scratch/ checkpoints of the stage that is being made
    rounds/0002/set-aside-03-select/  was damaged, or made from other settings or inputs
    ledger.jsonl                      one line for each stage that was made or set aside

A stage's key is the sha256 of its name, version, settings, place, round and seed and of the keys of
what it reads. Its folder appears by one rename, with the key in its manifest. A later run walks the
same stages, verifies each folder that is there, and makes those that are not there, are damaged, or
carry another key. The folders are the truth, the ledger their history: a crash between rename and
ledger line is made good by a line without seconds.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from align.loops.place import (
    Place,
    artefacts_of,
    check_written,
    difference,
    durable_folder,
    read_manifest,
    refuse_other_versions,
    remove_leftovers,
    strict_report,
    undo_half_replacements,
)
from align.loops.retention import Retention, remove_bulky
from align.loops.signals import StopSignal
from align.loops.stage import (
    Artefact,
    LiveObjects,
    Stage,
    StageContext,
    check_chain,
)
from align.loops.telling import in_words
from align.runs.ledger import Ledger
from align.runs.manifest import damage, publish

logger = logging.getLogger(__name__)

SET_ASIDE = "set-aside"


class _GoneButNeeded(Exception):
    """A stage has to be made whose input retention has removed."""

    def __init__(self, artefact: Artefact) -> None:
        super().__init__(artefact.path)
        self.artefact = artefact


class Loop:
    """Rounds of stages in one folder.

    Args:
        folder: the run's folder.
        stages: of each round, in order.
        given: artefacts the first round starts from (`align.loops.stage.given`).
        rounds: how many; a finished loop goes on when this is raised.
        seed: of everything random.
        ledger: of the folder; held by this process, so that no second one writes.
        versions: of the libraries that results depend on.
        retention: which bulky artefacts are removed.
        allow_change: libraries whose version may differ from the one earlier stages were made with.

    Raises:
        RecipeError: a stage reads what nobody writes.
    """

    def __init__(
        self,
        folder: Path,
        stages: Sequence[Stage],
        *,
        given: Sequence[Artefact],
        rounds: int,
        seed: int,
        ledger: Ledger,
        versions: Mapping[str, str],
        retention: Retention | None = None,
        allow_change: Collection[str] = (),
    ) -> None:
        self.folder = folder
        self.stages = tuple(stages)
        self.given = {artefact.kind: artefact for artefact in given}
        self.rounds = rounds
        self.seed = seed
        self.ledger = ledger
        self.versions = dict(versions)
        self.retention = retention or Retention()
        self.allow_change = frozenset(allow_change)
        check_chain(self.stages, self.given)
        reads = [read for stage in self.stages for read in stage.reads]
        self._kept_rounds = self.retention.kept_rounds(reads)
        self._moments = {read.partition("@")[2] for read in reads}
        self._live = LiveObjects()
        self._recorded: set[str] = set()

    def run(self, stop: StopSignal | None = None) -> dict[str, Artefact]:
        """Makes what is missing.

        Args:
            stop: the one that holds the signals already. A second one inside of it would not see
                what arrived before it was entered.

        Returns:
            The newest artefact of each kind.

        Raises:
            Interrupted: a signal asked to stop; the same call goes on.
            RecipeError: a library's version changed, or a stage left other kinds than it declares.
        """
        self._recorded = set()
        for record in self.ledger.records():
            if record["step"] == SET_ASIDE:
                self._recorded.discard(record["key"])
            elif "key" in record:
                self._recorded.add(record["key"])
        with StopSignal() if stop is None else nullcontext(stop) as stop:
            while True:
                try:
                    return self._walk(stop)
                except _GoneButNeeded as gone:
                    path = gone.artefact.path
                    why = f"its {gone.artefact.kind} was removed by retention and is needed again"
                    self._set_aside(path.parent, gone.artefact.key, why)

    def _walk(self, stop: StopSignal) -> dict[str, Artefact]:
        newest = dict(self.given)
        before = dict(newest)  # the newest ones when the round before began
        for number in range(1, self.rounds + 1):
            round_folder = self.folder / "rounds" / f"{number:04}"
            durable_folder(round_folder)
            undo_half_replacements(round_folder)
            begin = dict(newest)
            moments = {
                "": newest,
                "start": self.given,
                "round_start": begin,
                "previous_round": before,
            }
            for position, stage in enumerate(self.stages, 1):
                place = Place(stage, number, position, self.seed, round_folder)
                inputs = {
                    read: moments[moment][kind]
                    for read in stage.reads
                    for kind, _, moment in [read.partition("@")]
                }
                stop.check(f"stage {stage.name} of round {number}")
                outputs = self._found(place, inputs) or self._make(place, inputs, stop)
                newest.update(outputs)
                self._live.keep_only([a for m in self._moments for a in moments[m].values()])
            before = begin
            remove_leftovers(round_folder)
            self._remove_old(number - self._kept_rounds)
        return newest

    def _found(self, place: Place, inputs: Mapping[str, Artefact]) -> dict[str, Artefact] | None:
        """What an earlier run made of this stage, if it is whole and still right."""
        if not place.folder.is_dir():
            return None
        key = place.key(inputs)
        if wrong := damage(place.folder):
            self._set_aside(place.folder, key, wrong)
            return None
        content = read_manifest(place.folder)
        about = content["about"]
        if changed := difference(about, place, inputs):
            self._set_aside(place.folder, about["key"], changed)
            return None
        refuse_other_versions(place, about["versions"], self.versions, self.allow_change)
        outputs = artefacts_of(place, content)
        if key not in self._recorded:
            self._record(place, inputs, outputs, None, about["about"])
        return outputs

    def _make(
        self, place: Place, inputs: Mapping[str, Artefact], stop: StopSignal
    ) -> dict[str, Artefact]:
        for artefact in inputs.values():
            if artefact.is_removed:
                raise _GoneButNeeded(artefact)
        started = time.monotonic()
        key = place.key(inputs)
        partial = place.folder.with_name(f".{place.folder.name}.partial")
        scratch = place.folder.with_name(f".{place.folder.name}.{key[:16]}.scratch")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        scratch.mkdir(exist_ok=True)
        context = StageContext(
            loop=self.folder,
            round=place.round,
            seed=place.random_seed(),
            folder=partial,
            scratch=scratch,
            inputs=inputs,
            stop=stop,
            live=self._live,
            kept={},
        )
        with stop.abandonable():
            report = strict_report(place, place.stage.run(context))
        about = {
            "stage": place.identity,
            "key": key,
            "inputs": {
                read: {"key": artefact.key, "sha256": artefact.sha256}
                for read, artefact in inputs.items()
            },
            "versions": self.versions,
            "about": report,
            "removed": {},
        }
        check_written(place, partial)
        publish(partial, place.folder, about)
        outputs = artefacts_of(place, read_manifest(place.folder))
        for kind, value in context.kept.items():
            self._live.put(outputs[kind], value)
        seconds = time.monotonic() - started
        self._record(place, inputs, outputs, seconds, report)
        # Also those that an earlier run left under another key.
        for old in place.folder.parent.glob(f".{place.folder.name}.*.scratch"):
            shutil.rmtree(old)
        said = in_words(report)
        logger.info(
            "Round %d/%d, %s (%d/%d): %.1f s%s",
            *(place.round, self.rounds, place.stage.name, place.position, len(self.stages)),
            *(seconds, f"; {said}" if said else ""),
        )
        return outputs

    def _record(
        self,
        place: Place,
        inputs: Mapping[str, Artefact],
        outputs: Mapping[str, Artefact],
        seconds: float | None,
        about: Mapping[str, Any],
    ) -> None:
        key = place.key(inputs)
        line = {
            "round": place.round,
            "position": place.position,
            "key": key,
            "inputs": {read: artefact.key for read, artefact in inputs.items()},
            "outputs": {kind: artefact.sha256 for kind, artefact in outputs.items()},
            "versions": self.versions,
            "about": about,
        }
        self.ledger.append(place.stage.name, seconds, line)
        self._recorded.add(key)

    def _set_aside(self, folder: Path, key: str, why: str) -> None:
        aside = folder.with_name(f"{SET_ASIDE}-{folder.name}")
        number, name = int(folder.parent.name), folder.name.partition("-")[2]
        logger.warning(
            "Round %d, %s is made again, since %s; what was there is kept as %s.",
            *(number, name, why, aside.relative_to(self.folder)),
        )
        about = {"round": number, "key": key, "folder": folder.name, "why": why}
        self.ledger.append(SET_ASIDE, None, about)
        self._recorded.discard(key)
        self._live.keep_only([])
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(folder, aside)

    def _remove_old(self, number: int) -> None:
        """Takes the bulky artefacts, and what was set aside, out of a round that is old enough."""
        if number < 1:
            return
        round_folder = self.folder / "rounds" / f"{number:04}"
        for name in os.listdir(round_folder):
            if name.startswith(SET_ASIDE):
                shutil.rmtree(round_folder / name)
        for position, stage in enumerate(self.stages, 1):
            if not {*self.retention.bulky} & {*stage.writes}:
                continue
            place = Place(stage, number, position, self.seed, round_folder)
            content = read_manifest(place.folder)
            about = content["about"]
            bulky = {*self.retention.bulky} & {*stage.writes} - {*about["removed"]}
            if bulky:
                outputs = artefacts_of(place, content)
                about["removed"] |= {kind: outputs[kind].sha256 for kind in sorted(bulky)}
                remove_bulky(place.folder, bulky, about)
