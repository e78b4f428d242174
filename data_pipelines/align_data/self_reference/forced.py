"""Log-probs that the annotator gives to either verdict behind a critique, and to whole critiques.

The critique is taken without its own verdict line, the two verdict lines are put behind it, and
what the two have in common counts as read: what is scored is the label alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from align.data.problems import RowProblem
from align.data.prompts import Prompt
from align.policies.writer import NoAnswer, Stem, Writer
from align_data.self_reference.annotate import LABELS, verdict_line


@dataclass(frozen=True)
class Asked:
    """What is scored for one round: label A, label B, or a whole critique.

    Attributes:
        prompt: what the critique answers.
        text: the critique, without its verdict lines where a verdict is to come.
        code: of its annotation; None scores the text itself.
    """

    prompt: Prompt
    text: str
    code: str | None = None


@dataclass(frozen=True)
class Labels:
    """Log-probs of the two verdicts.

    Attributes:
        totals: [nats] of A and of B.
        lengths: tokens of A and of B.
    """

    totals: tuple[float, float]
    lengths: tuple[int, int]

    @property
    def ppl(self) -> tuple[float, float]:
        """Perplexity of A and of B, per token of the label."""
        a, b = (math.exp(-total / n) for total, n in zip(self.totals, self.lengths, strict=True))
        return a, b

    @property
    def mass(self) -> float:
        """Probability of both together."""
        return math.exp(self.totals[0]) + math.exp(self.totals[1])


def score_labels(writer: Writer, asked: Sequence[Asked]) -> list[Labels | NoAnswer]:
    """Both verdicts behind each critique."""
    requests: list[tuple[Stem, tuple[int, ...]]] = []
    places: list[int | NoAnswer] = []
    for number, one in enumerate(asked):
        found = _label_requests(writer, one, number)
        if isinstance(found, NoAnswer):
            places.append(found)
        else:
            places.append(len(requests))
            requests.extend(found)
    logps = writer.score(requests)
    results: list[Labels | NoAnswer] = []
    for place in places:
        if isinstance(place, NoAnswer):
            results.append(place)
            continue
        a, b = logps[place], logps[place + 1]
        if isinstance(a, NoAnswer) or isinstance(b, NoAnswer):
            results.append(a if isinstance(a, NoAnswer) else b)  # pyright: ignore[reportArgumentType]
            continue
        totals = (math.fsum(a), math.fsum(b))
        if not all(map(math.isfinite, totals)):
            results.append(NoAnswer("unanswered", "a log-prob that is no finite number"))
        else:
            results.append(Labels(totals, (len(a), len(b))))
    return results


def score_texts(writer: Writer, asked: Sequence[Asked]) -> list[float | NoAnswer]:
    """Mean log-prob [nats per token, the end token included] of each critique."""
    requests: list[tuple[Stem, tuple[int, ...]]] = []
    places: list[int | NoAnswer] = []
    for number, one in enumerate(asked):
        try:
            prompt_ids = writer.prompt_ids(one.prompt.prompt)
            ids = writer.answer_ids(one.prompt.prompt, one.text)
        except RowProblem as problem:
            places.append(NoAnswer("rejected", str(problem)))
            continue
        stem = Stem(prompt_ids, (), f"critique/{number}")
        lacking = _too_long(writer, stem, len(ids))
        places.append(lacking or len(requests))
        if lacking is None:
            requests.append((stem, ids))
    logps = writer.score(requests)
    results: list[float | NoAnswer] = []
    for place in places:
        answer = place if isinstance(place, NoAnswer) else logps[place]
        if isinstance(answer, NoAnswer):
            results.append(answer)
            continue
        mean = math.fsum(answer) / len(answer)
        finite = math.isfinite(mean)
        lost = NoAnswer("unanswered", "a log-prob that is no finite number")
        results.append(mean if finite else lost)
    return results


def _label_requests(
    writer: Writer, one: Asked, number: int
) -> list[tuple[Stem, tuple[int, ...]]] | NoAnswer:
    assert one.code is not None
    opening = f"{one.text}\n\n" if one.text else ""
    try:
        prompt_ids = writer.prompt_ids(one.prompt.prompt)
        a, b = (
            # The last id is the end token, which no label has.
            writer.answer_ids(one.prompt.prompt, opening + verdict_line(one.code, label))[:-1]
            for label in LABELS
        )
    except RowProblem as problem:
        return NoAnswer("rejected", str(problem))
    shared = 0
    while shared < min(len(a), len(b)) and a[shared] == b[shared]:
        shared += 1
    if shared == len(a) or shared == len(b):
        return NoAnswer("rejected", "the tokenizer does not tell the two verdicts apart")
    stem = Stem(prompt_ids, a[:shared], f"verdict/{number}")
    lacking = _too_long(writer, stem, max(len(a), len(b)) - shared)
    return lacking or [(stem, a[shared:]), (stem, b[shared:])]


def _too_long(writer: Writer, stem: Stem, tokens: int) -> NoAnswer | None:
    room = writer.room(stem)
    if tokens <= room:
        return None
    return NoAnswer("too_long", f"{tokens} tokens to score, and room for {max(room, 0)}")
