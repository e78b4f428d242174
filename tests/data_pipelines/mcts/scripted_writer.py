"""A writer whose every draw is looked up, over a vocabulary of code points."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from align.data.messages import Text
from align.policies.writer import Draw, Drawn, NoAnswer, OptionMass, Stem

END = 0
# (question, answer so far, samples) -> texts; a "$" stands for the end token.
Script = Callable[[str, str, int], Sequence[str]]


class ScriptedWriter:
    """Continues answers by `script`; log-probs are `logp` per token.

    Attributes:
        calls: number of requests of each call of `draw`.
        rated: number of stems of each call of `option_mass`.
        fails: keys of stems that get no answer.
    """

    identity = "scripted"
    end_ids = frozenset({END})

    def __init__(
        self,
        script: Script,
        *,
        mass: Callable[[str], Mapping[str, float]] | None = None,
        logp: float = -0.5,
        longest: int = 10_000,
    ) -> None:
        self.script = script
        self.mass = mass
        self.logp = logp
        self.longest = longest
        self.calls: list[int] = []
        self.rated: list[int] = []
        self.fails: Callable[[str], bool] = lambda key: False

    def prompt_ids(self, prompt: Text) -> tuple[int, ...]:
        text = prompt if isinstance(prompt, str) else prompt[-1].content
        return tuple(map(ord, text + ">"))

    def answer_ids(self, prompt: Text, answer: str) -> tuple[int, ...]:
        return (*map(ord, answer), END)

    def text(self, ids: Sequence[int], behind: int) -> str:
        return "".join(chr(i) for i in ids if i != END)

    def room(self, stem: Stem) -> int:
        return self.longest - len(stem.prompt_ids) - len(stem.prefix_ids)

    def draw(self, requests: Sequence[Draw], seed: int) -> list[list[Drawn] | NoAnswer]:
        self.calls.append(len(requests))
        found: list[list[Drawn] | NoAnswer] = []
        for request in requests:
            if self.fails(request.stem.key):
                found.append(NoAnswer("unanswered", "no answer in 3 tries"))
                continue
            so_far = self.text(request.stem.prefix_ids, 0)
            texts = self.script(self.text(request.stem.prompt_ids, 0), so_far, request.n)
            found.append([self._drawn(text, request) for text in texts])
        return found

    def _drawn(self, text: str, request: Draw) -> Drawn:
        sampling = request.sampling
        ids = [END if c == "$" else ord(c) for c in text]
        finish = "end" if END in ids else "length"
        ids = ids[: ids.index(END) + 1] if END in ids else ids
        stops = [text.find(stop) + len(stop) for stop in sampling.stop if stop in text]
        if stops and min(stops) < len(ids):
            ids, finish = ids[: min(stops)], "stop"
        elif stops:
            finish = "stop" if finish == "length" else finish
        if len(ids) > sampling.max_new_tokens:
            ids, finish = ids[: sampling.max_new_tokens], "length"
        return Drawn(tuple(ids), (self.logp,) * len(ids), self.text(ids, 0), finish)

    def score(self, requests: Sequence[tuple[Stem, tuple[int, ...]]]):
        return [(self.logp,) * len(ids) for _, ids in requests]

    def option_mass(
        self, stems: Sequence[Stem], options: Mapping[str, Sequence[str]]
    ) -> list[OptionMass | NoAnswer]:
        self.rated.append(len(stems))
        found: list[OptionMass | NoAnswer] = []
        for stem in stems:
            if self.fails(stem.key):
                found.append(NoAnswer("unanswered", "no answer in 3 tries"))
                continue
            assert self.mass is not None
            said = self.mass(self.text(stem.prompt_ids, 0))
            found.append(OptionMass({name: said.get(name, 0.0) for name in options}))
        return found


class Says:
    """A verifier that looks answers up; what is not there is wrong."""

    identity = "says"

    def __init__(self, right: Callable[[str], bool | None]) -> None:
        self._right = right

    def right(self, question: object, answer_text: str) -> bool | None:
        return self._right(answer_text)


def every_step(options: Mapping[str, Sequence[str]]) -> Script:
    """Offers the listed steps of each beginning, in order, again from the start where they end."""

    def script(question: str, so_far: str, n: int) -> list[str]:
        steps = options[so_far]
        return [steps[i % len(steps)] for i in range(n)]

    return script


def at_random(seed: int) -> Script:
    """Steps of one of three letters; after three steps the answer may end."""

    def script(question: str, so_far: str, n: int) -> list[str]:
        draw = random.Random(f"{seed}/{question}/{so_far}")
        texts: list[str] = []
        for _ in range(n):
            step = draw.choice("abc") * 4
            ends = so_far.count("\n") >= 2 and draw.random() < 0.7
            texts.append(step + ("$" if ends else "\n"))
        return texts

    return script
