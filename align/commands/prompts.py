"""The prompts of each round: of a built-in world, or of rows that are read once."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from align.errors import RecipeError
from align.recipe import Prompts
from align.records import Message, Prompt, RowPolicy, RowReport

if TYPE_CHECKING:
    from data_pipelines.rows import Question

SUMS = "world:sums"
SCENES = "world:scenes"
# Of a world, which has as many as one likes.
WORLD_ROUND = 256


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
    def identity(self) -> dict[str, Any]:
        """Everything that the prompts depend on: settings, and the content of the rows."""
        settings = self.section.model_dump(mode="json")
        if self.section.source.startswith("world:"):
            return settings
        from align.reference import digest

        return settings | {"rows": digest(prompt.id for prompt in self._all())}

    def of_round(self, number: int) -> list[Prompt]:
        """The prompts of a round, from 1 on."""
        if self.section.source.startswith("world:"):
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

    def questions_of_round(self, number: int) -> list[Question]:
        """The same prompts with their answers, where the source gives them.

        Raises:
            RecipeError: the world has no answers.
        """
        if self.section.source == SUMS:
            return [_sums_question(prompt) for prompt in self.of_round(number)]
        if self.section.source == SCENES:
            return [_scenes_question(prompt) for prompt in self.of_round(number)]
        known = self._answers()
        return [known[prompt.id] for prompt in self.of_round(number)]

    def counts(self) -> dict[str, Any]:
        """Rows read, kept, and dropped by reason, where there are any rows."""
        if self._report is None:
            return {}
        stored = self._report.to_json()
        return {"rows": {name: stored[name] for name in ("read", "kept", "dropped")}}

    def _all(self) -> list[Prompt]:
        if self._rows is None:
            from data_pipelines.prompts import read_prompts

            section = self.section
            self._rows, self._report = read_prompts(
                section.source,
                split=section.split,
                revision=section.revision,
                policy=self.policy,
            )
        return self._rows

    def _answers(self) -> dict[str, Question]:
        """By the prompt's id."""
        if self.section.source.startswith("world:"):
            raise RecipeError(
                f"prompts.source: {self.section.source} has no right answers to search for; write "
                f"{SUMS}, {SCENES}, or a file of questions."
            )
        if self._known is None:
            from data_pipelines.questions import read_questions

            section = self.section
            found, _ = read_questions(
                section.source,
                split=section.split,
                revision=section.revision,
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


def _sums_question(prompt: Prompt) -> Question:
    from align.worlds import sums
    from data_pipelines.rows import Question

    assert not isinstance(prompt.prompt, str)
    operands: Any = tuple(map(int, prompt.prompt[-1].content.removesuffix("?").split("+")))
    return Question(
        prompt=prompt.prompt,
        answer=str(sum(operands)),
        solution=sums.solution_of(operands),
        group_id=prompt.group_id,
        source=prompt.source,
        row=prompt.row,
    )


def _scenes_question(prompt: Prompt) -> Question:
    from align.worlds.scenes import truth_of
    from data_pipelines.rows import Question

    return Question(
        prompt=prompt.prompt,
        images=prompt.images,
        solution=truth_of(prompt),
        group_id=prompt.group_id,
        source=prompt.source,
        row=prompt.row,
    )


def _of_world(section: Prompts, number: int) -> list[Prompt]:
    from align.worlds import game_or_task, sums
    from align.worlds.scenes import Scenes
    from align.worlds.styles import Styles

    world = game_or_task(section.source)
    wanted = section.per_round or WORLD_ROUND
    seed = section.seed * 10_000 + number
    if isinstance(world, Scenes):
        return world.prompts("train", wanted, seed=seed)
    if isinstance(world, Styles):
        return world.prompts("train", min(wanted, len(world.topics("train", seed=0))), seed=seed)
    try:
        problems = world.problems("train", wanted, seed=seed)
    except ValueError as error:
        raise RecipeError(f"prompts.per_round is {wanted}: {error} Write a smaller one.") from error
    return [
        Prompt(
            prompt=(Message(role="user", content=sums.prompt_of(operands)),),
            group_id=sums.prompt_of(operands),
            source=f"world:sums/train/seed-{seed}",
            row=row,
        )
        for row, operands in enumerate(problems, start=1)
    ]
