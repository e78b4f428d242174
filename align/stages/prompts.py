"""The prompts of each round: of a built-in world, or of rows that are read once."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align import registry
from align.data.column_map import with_columns
from align.data.curriculum import UNSEEN, allotted, shares
from align.data.hints import hint_of_row, with_hint
from align.data.prompt_files import read_prompts
from align.data.prompts import Prompt
from align.data.question_files import read_questions
from align.data.questions import Question
from align.data.row_policy import RowPolicy
from align.data.row_report import RowReport
from align.data.sources import open_rows
from align.errors import DataError, RecipeError
from align.recipe import Prompts
from align.reference import digest
from align.registry import WORLD
from align.worlds import world

# Of a world, which has as many as one likes.
WORLD_ROUND = 256
# What rounds remember of the sources of prompts.
CURRICULUM = "curriculum"


@dataclass
class PromptSource:
    """Which prompts a round asks; the same for the same recipe, whatever the number of rounds.

    Attributes:
        section: of the recipe.
        policy: what to do with rows that cannot be used.
    """

    section: Prompts
    policy: RowPolicy
    _rows: list[Prompt] | None = field(default=None, init=False)
    _report: RowReport | None = field(default=None, init=False)
    _known: dict[str, Question] | None = field(default=None, init=False)

    @property
    def code(self) -> str | None:
        """Sha256 of the source of a world of the user's own, which also judges; else None."""
        name = self.section.source.removeprefix(WORLD)
        return None if name == self.section.source else registry.find("world", name).code

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that the prompts depend on: settings, and the content of the rows."""
        settings = self.section.model_dump(mode="json")
        if (curriculum := self.section.curriculum) is None:
            # Loops that were begun before there was this key keep their stages.
            del settings["curriculum"]
        elif curriculum.column is not None:
            settings["arms"] = digest(
                f"{arm}/{prompt.id}" for arm, of in self._arms().items() for prompt in of
            )
        if self.section.source.startswith(WORLD):
            return settings if self.code is None else settings | {"code": self.code}
        return settings | {"rows": digest(prompt.id for prompt in self._all())}

    def of_round(self, number: int) -> list[Prompt]:
        """The prompts of a round, from 1 on; by a curriculum those that nothing was learned of."""
        if self.section.curriculum is not None:
            return self.by_curriculum({})[0]
        if self.section.source.startswith(WORLD):
            return _of_world(self.section, number)
        rows = self._all()
        wanted = self.section.per_round
        if wanted is None or wanted >= len(rows):
            return rows
        # Epochs over the rows, each in an order of its own, cut into rounds. What is left of an
        # epoch is not asked in it: a round across two epochs could hold a prompt twice.
        epoch, place = divmod(number - 1, len(rows) // wanted)
        order = list(rows)
        random.Random(f"prompts/{self.section.seed}/{epoch}").shuffle(order)
        return order[place * wanted : (place + 1) * wanted]

    def by_curriculum(self, state: Mapping[str, Any]) -> tuple[list[Prompt], dict[str, Any]]:
        """The prompts of a round by the shares of their sources.

        Args:
            state: behind the round before; empty before the first.

        Returns:
            The prompts, those of a source together, and the state that the judge stage goes on
            with: `arms`, the `share` of each, and which one was `asked` at each place.

        Raises:
            DataError: a row names no source, or all name the same.
        """
        section, of_arm = self.section, self._arms()
        assert section.curriculum is not None
        assert section.per_round is not None, "conflicts() refuses it"
        arms: dict[str, Any] = {**(state.get("arms") or dict.fromkeys(of_arm, UNSEEN))}
        share = shares(arms, section.curriculum.temperature)
        sizes = {name: len(rows) for name, rows in of_arm.items()}
        prompts: list[Prompt] = []
        asked: list[str] = []
        for name, wanted in allotted(share, sizes, section.per_round).items():
            order = f"prompts/{section.seed}/{name}"
            taken, place = _next_in_turn(of_arm[name], arms[name]["place"], wanted, order)
            arms[name] = {**arms[name], "place": place}
            prompts += taken
            asked += [name] * len(taken)
        return prompts, {"arms": arms, "share": share, "asked": asked}

    def _arms(self) -> dict[str, list[Prompt]]:
        """The prompts by their source, sources in the order of their first rows."""
        curriculum = self.section.curriculum
        assert curriculum is not None
        found: dict[str, list[Prompt]] = {}
        if curriculum.column is None:
            files = {prompt.source: Path(prompt.source).stem for prompt in self._all()}
            is_short = len({*files.values()}) == len(files)
            for prompt in self._all():
                name = files[prompt.source] if is_short else prompt.source
                found.setdefault(name, []).append(prompt)
        else:
            columns = self.columns()
            for prompt in self._all():
                value = columns[prompt.source, prompt.row].get(curriculum.column)
                if value is None:
                    raise DataError(
                        f"{prompt.source}:{prompt.row}: the row has no {curriculum.column!r}, "
                        "which prompts.curriculum.column names as its source. Mend the row, or "
                        "name another column."
                    )
                found.setdefault(str(value), []).append(prompt)
        if len(found) < 2:
            where = curriculum.column or "the rows' file"
            raise DataError(
                f"prompts.curriculum shares a round out between sources, and all prompts of "
                f"{self.section.source} have one ({where}: {', '.join(found)}). Name the column "
                "that tells them apart, or a folder of files; or take the curriculum out."
            )
        return found

    def questions_of_round(self, number: int) -> list[Question]:
        """The same prompts with their answers, where the source gives them.

        Raises:
            RecipeError: the world has no answers.
        """
        if self.section.source.startswith(WORLD):
            asked_of = world(self.section.source)
            return [asked_of.question(prompt) for prompt in self.of_round(number)]
        known = self._answers()
        return [known[prompt.id] for prompt in self.of_round(number)]

    def hinted(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """The same prompts, each behind the demonstration that its source gives.

        Raises:
            RecipeError: the world has none.
            DataError: a row has none in its column `hint`, or none in the prompt's own form.
        """
        if self.section.source.startswith(WORLD):
            of_world = world(self.section.source)
            return [with_hint(prompt, of_world.hint(prompt)) for prompt in prompts]
        columns = self.columns()
        return [
            with_hint(prompt, hint_of_row(prompt, columns[(prompt.source, prompt.row)]))
            for prompt in prompts
        ]

    def counts(self) -> dict[str, Any]:
        """Rows read, kept, and dropped by reason, where there are any rows."""
        if self._report is None:
            return {}
        stored = self._report.to_json()
        return {"rows": {name: stored[name] for name in ("read", "kept", "dropped")}}

    def columns(self) -> dict[tuple[str, int], dict[str, Any]]:
        """(source, row) -> the row's columns besides the prompt; none of a world."""
        if self.section.source.startswith(WORLD):
            return {}
        section = self.section
        return {
            (source, number): {name: value for name, value in row.items() if name != "prompt"}
            for source, number, row in with_columns(
                open_rows(section.source, section.split, section.revision), section.columns
            )
            if isinstance(row, Mapping)
        }

    def columns_digest(self) -> str:
        """Of all columns, for the key of a stage that reads them."""
        rows = sorted(self.columns().items(), key=lambda item: item[0])
        return digest(json.dumps(row, sort_keys=True, default=str) for row in rows)

    def _all(self) -> list[Prompt]:
        if self._rows is None:
            section = self.section
            self._rows, self._report = read_prompts(
                section.source,
                split=section.split,
                revision=section.revision,
                columns=section.columns,
                policy=self.policy,
            )
        return self._rows

    def _answers(self) -> dict[str, Question]:
        """By the prompt's id."""
        if self._known is None:
            section = self.section
            found, _ = read_questions(
                section.source,
                split=section.split,
                revision=section.revision,
                columns=section.columns,
                policy=self.policy,
            )
            of_id: dict[str, Question] = {}
            for question in found:
                prompt = Prompt(
                    prompt=question.prompt,
                    images=question.images,
                    group_id=question.group_id,
                    source=question.source,
                    row=question.row,
                )
                of_id[prompt.id] = question
            self._known = of_id
        return self._known


def _next_in_turn(
    rows: Sequence[Prompt], place: int, wanted: int, order: str
) -> tuple[list[Prompt], int]:
    """The next prompts of a source, each once, and the place behind them.

    Epoch follows epoch, each in an order of its own; what a new epoch would ask again in the same
    round is passed over in it.
    """
    taken: dict[int, Prompt] = {}
    while len(taken) < wanted:
        epoch, at = divmod(place, len(rows))
        turn = random.Random(f"{order}/{epoch}").sample(range(len(rows)), len(rows))
        taken.setdefault(turn[at], rows[turn[at]])
        place += 1
    return list(taken.values()), place


def _of_world(section: Prompts, number: int) -> list[Prompt]:
    wanted = section.per_round or WORLD_ROUND
    seed = section.seed * 10_000 + number
    try:
        return world(section.source).prompts("train", wanted, seed=seed)
    except ValueError as error:
        raise RecipeError(f"prompts.per_round is {wanted}: {error} Write a smaller one.") from error
