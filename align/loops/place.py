"""A stage's place in a loop: its folder, its key, and whether what lies there is still right."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any

from align.errors import NumericalError, RecipeError
from align.loops.stage import Artefact, Stage, json_ready
from align.loops.telling import changes
from align.runs.manifest import MANIFEST


class Place:
    """A stage in a round."""

    def __init__(
        self, stage: Stage, number: int, position: int, seed: int, round_folder: Path
    ) -> None:
        self.stage = stage
        self.round = number
        self.position = position
        self.folder = round_folder / f"{position:02}-{stage.name}"
        self._seed = seed
        # Everything but the inputs that the result depends on.
        self.identity = json_ready(
            {
                "name": stage.name,
                "version": stage.version,
                "settings": stage.settings(),
                "seed": seed,
                "round": number,
                "position": position,
            }
        )

    def key(self, inputs: Mapping[str, Artefact]) -> str:
        """Sha256 of the identity and of the inputs' keys, in hex."""
        keys = {read: artefact.key for read, artefact in inputs.items()}
        text = json.dumps([self.identity, keys], sort_keys=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def random_seed(self) -> int:
        """32 bits that no other place in the loop has."""
        text = f"{self._seed}/{self.round}/{self.position}/{self.stage.name}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def difference(
    about: Mapping[str, Any], place: Place, inputs: Mapping[str, Artefact]
) -> str | None:
    """Why a whole folder is not what this stage would make now, in words; None when it is.

    Args:
        about: what the folder's manifest carries.
        place: of the stage.
        inputs: that it would read now.
    """
    then, now = about["stage"], place.identity
    for field in now:
        if then.get(field) != now[field]:
            return f"its {field} changed ({changes(then.get(field), now[field])})"
    for read in sorted({*inputs, *about["inputs"]}):
        if read not in inputs or read not in about["inputs"]:
            return f"it reads other artefacts than before ({read})"
        if about["inputs"][read] != {"key": inputs[read].key, "sha256": inputs[read].sha256}:
            return f"it was made from another {read}"
    return None


def read_manifest(folder: Path) -> dict[str, Any]:
    """What `publish` wrote: "about" and "files"."""
    return json.loads((folder / MANIFEST).read_text())


def artefacts_of(place: Place, content: Mapping[str, Any]) -> dict[str, Artefact]:
    """The artefacts of a published stage, with digests out of its manifest's `content`."""
    key, removed = content["about"]["key"], content["about"]["removed"]
    outputs: dict[str, Artefact] = {}
    for kind in place.stage.writes:
        digest = removed.get(kind)
        if digest is None:
            files = sorted(
                (name, of["sha256"])
                for name, of in content["files"].items()
                if name.startswith(f"{kind}/")
            )
            digest = hashlib.sha256(json.dumps(files).encode()).hexdigest()
        outputs[kind] = Artefact(
            kind, place.folder / kind, key, digest, place.round, is_removed=kind in removed
        )
    return outputs


def refuse_other_versions(
    place: Place, then: Mapping[str, str], now: Mapping[str, str], allow_change: Set[str]
) -> None:
    """Compares the versions that an earlier run made a stage with to the present ones.

    Raises:
        RecipeError: one outside `allow_change` differs; the text lists every one.
    """
    changed = [
        f"{name} {then.get(name)} -> {now.get(name)}"
        for name in sorted({*then, *now} - allow_change)
        if then.get(name) != now.get(name)
    ]
    if changed:
        raise RecipeError(
            f"{place.folder} was made with other versions than the ones installed now: "
            f"{'; '.join(changed)}. Going on would mix two runs. Install the former versions, "
            "start a new --run folder, or name these libraries in --allow-change if you mean it."
        )


def strict_report(place: Place, said: Mapping[str, Any]) -> dict[str, Any]:
    """What a stage returned, as JSON.

    Raises:
        NumericalError: a number in it is not finite.
    """
    try:
        return json_ready(said)
    except ValueError as error:
        raise NumericalError(
            f"Stage {place.stage.name} of round {place.round} reports a number that is not finite "
            f"({error}), so what it made was not kept. Look at its settings; a lower learning rate "
            "is the usual cure where it trains."
        ) from error


def check_written(place: Place, partial: Path) -> None:
    """Compares the kinds that a stage left in `partial` with what it declares.

    Raises:
        RecipeError: one is missing or empty, or there is more.
    """
    written = {path.name for path in partial.iterdir() if any(_files(path))}
    wrong = {*place.stage.writes} ^ written
    if wrong:
        raise RecipeError(
            f"Stage {place.stage.name} declares that it writes {', '.join(place.stage.writes)}, "
            f"and left files of {', '.join(sorted(written)) or 'nothing'}. This is a mistake in "
            "the stage's class; nothing of this stage was kept."
        )


def _files(path: Path) -> Iterator[Path]:
    return (inside for inside in (path, *path.rglob("*")) if inside.is_file())


def durable_folder(path: Path) -> None:
    """Makes a folder whose entry in the one above survives a power cut."""
    if path.is_dir():
        return
    durable_folder(path.parent)
    path.mkdir()
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def undo_half_replacements(round_folder: Path) -> None:
    """Puts back folders that `publish` had put aside when a crash came before its second rename."""
    for name in os.listdir(round_folder):
        if name.startswith(".") and name.endswith(".replaced"):
            final = round_folder / name.removeprefix(".").removesuffix(".replaced")
            if not final.exists():
                os.replace(round_folder / name, final)


def remove_leftovers(round_folder: Path) -> None:
    """Removes what was being made or replaced when an earlier run was cut off."""
    for name in os.listdir(round_folder):
        if name.startswith(".") and name[1:3].isdigit():
            shutil.rmtree(round_folder / name)
