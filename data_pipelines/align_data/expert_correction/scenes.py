"""A rule-based expert for the world `scenes`: it sees the pictures exactly.

A sentence that tells an object in a wrong colour or shape is put right in its own words; one about
an empty cell, about a cell that was told before, or about no cell at all is deleted. What is
missing is offered as a further sentence.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from align.data.completions import Completion
from align.data.prompts import Prompt
from align.data.records import content_id
from align.errors import RecipeError
from align.forest.rows import TokenRow
from align.policies.base import Capabilities, Failed, Sampling, completion_of
from align.types import Logps
from align.worlds.scene_words import (
    Scene,
    place_and_object,
    sentence,
    sentences_of,
    style_of,
)
from align.worlds.scenes import scene_in

_FENCED = re.compile(r"<response ([0-9a-f]{8})>\n(.*?)\n</response \1>", flags=re.DOTALL)


@dataclass(frozen=True)
class ScenesExpert:
    """Implements `Policy`.

    Attributes:
        nonsense: probability that an answer is no JSON; the next try is drawn anew.
    """

    nonsense: float = 0.0

    @property
    def capabilities(self) -> Capabilities:
        """It writes."""
        return Capabilities(logps=False, reproducible=True)

    @property
    def identity(self) -> str:
        """A hash of the attributes."""
        return f"rule:scenes-expert-{content_id(asdict(self))}"

    def generate(
        self, prompts: Sequence[Prompt], n: int, sampling: Sampling, seed: int
    ) -> list[list[Completion | Failed]]:
        """A report per prompt."""
        return [[self._written(prompt, sample, seed) for sample in range(n)] for prompt in prompts]

    def logps(self, rows: Sequence[TokenRow]) -> Logps:
        """Not offered.

        Raises:
            RecipeError: always.
        """
        raise RecipeError("The rule-based expert of scenes scores no token rows.")

    def _written(self, prompt: Prompt, sample: int, seed: int) -> Completion:
        assert not isinstance(prompt.prompt, str)
        found = _FENCED.search(prompt.prompt[0].content)
        if prompt.images is None or len(prompt.images) != 1 or found is None:
            raise RecipeError("The rule-based expert of scenes needs one picture of that world.")
        try:
            scene = scene_in(prompt.images[0])
        except ValueError as error:
            raise RecipeError(
                f"The rule-based expert of scenes cannot see this: {error}."
            ) from error
        text = json.dumps(report_on(scene, found[2]), indent=1)
        draw = random.Random(
            hashlib.sha256(f"{seed}/{prompt.id}/{sample}/expert".encode()).digest()
        )
        if draw.random() < self.nonsense:
            text = text[: len(text) // 2]
        return completion_of(prompt, text, policy=self.identity, sample=sample)


def report_on(scene: Scene, response: str) -> dict[str, Any]:
    """What the expert says about one response, as JSON."""
    report: dict[str, Any] = {}
    told: set[int] = set()
    sentences = sentences_of(response)
    for number, said in enumerate(sentences):
        found = place_and_object(said)
        if found is None:
            report[str(number)] = _sentence(said, 1, "language comprehension", None)
            continue
        place, claimed = found
        real = scene[place]
        if place in told:
            report[str(number)] = _sentence(said, 1, "language comprehension", None)
        elif real is None:
            report[str(number)] = _sentence(said, 1, "image recognition", None)
        elif real == claimed:
            report[str(number)] = _sentence(said, 4, "correct", said)
        else:
            right = sentence(real, place, style_of(said))
            objects = [{"wrong": str(claimed), "right": str(real)}]
            report[str(number)] = _sentence(said, 2, "image recognition", right, objects)
        told.add(place)
    missing = [i for i, one in enumerate(scene) if one is not None and i not in told]
    if missing:
        style = style_of(sentences[0]) if sentences else "crowd"
        left = [sentence(one, i, style) for i in missing if (one := scene[i]) is not None]
        report["added"] = " ".join(left)
    report["image_description"] = ", ".join(str(one or "nothing") for one in scene)
    return report


def _sentence(
    said: str, score: int, kind: str, rewritten: str | None, objects: Sequence[Any] = ()
) -> dict[str, Any]:
    return {
        "sentence": said,
        "score": score,
        "error_type": kind,
        "objects": list(objects),
        "rewritten": rewritten,
        "reason": {4: "it is there", 2: "it looks otherwise"}.get(score, "it is not there"),
    }
