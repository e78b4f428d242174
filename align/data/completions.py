"""What was sampled for a prompt, and what a judge said about it."""

from __future__ import annotations

from pydantic import Field, model_validator

from align.data.messages import Text
from align.data.records import Record


class Completion(Record):
    """One sampled continuation of a prompt; `sample` numbers the continuations of one prompt.

    Attributes:
        finished: False where it was cut off at the allowed number of tokens, and kept.
    """

    prompt: Text
    completion: Text
    policy: str
    sample: int = Field(ge=0)
    finished: bool = True
    group_id: str | None = None
    source: str
    row: int


class Judged(Completion):
    """A continuation with the score that `judge` gave it, in the judge's own units."""

    judge: str
    score: float


class JudgedPrompt(Record):
    """All that was sampled for one prompt in one round, and what a judge said about it.

    Attributes:
        prompt: what the completions continue.
        group_id: rows of one question share it.
        source: the file, or hub id@revision, that the prompt is from.
        row: 1-based number of the prompt in `source`.
        round: of the loop, from 1; 0 outside of one.
        sampler: identity of the policy that wrote the completions.
        completions: K texts.
        unfinished: places of those among them that were cut off and kept.
        greedy: place of the likeliest answer, a yardstick that is never trained on; None where it
            was not asked for, or did not end.
        scores: one per completion, in the judge's own units; None where there is none.
        preferences: P[i][j] is P(completion i beats completion j); P[i][j] + P[j][i] = 1, 1/2 on
            the diagonal, None where the comparison was not asked or failed.
        failures: what could not be sampled or judged, each with its reason.
        judge: its identity.
        calls: questions that the judge was asked.
    """

    prompt: Text
    group_id: str | None = None
    source: str
    row: int = Field(ge=1)
    round: int = Field(default=0, ge=0)
    sampler: str
    completions: tuple[str, ...]
    unfinished: tuple[int, ...] = ()
    greedy: int | None = Field(default=None, ge=0)
    scores: tuple[float | None, ...] | None = None
    preferences: tuple[tuple[float | None, ...], ...] | None = None
    failures: tuple[str, ...] = ()
    judge: str
    calls: int = Field(ge=0)

    @model_validator(mode="after")
    def _one_number_per_completion(self) -> JudgedPrompt:
        k = len(self.completions)
        if self.scores is not None and len(self.scores) != k:
            raise ValueError(f"{len(self.scores)} scores for {k} completions")
        p = self.preferences
        if p is None:
            return self
        if len(p) != k or any(len(row) != k for row in p):
            raise ValueError(f"preferences for {k} completions must be {k} x {k}")
        for i in range(k):
            for j in range(i, k):
                there, back = p[i][j], p[j][i]
                if (there is None) != (back is None):
                    raise ValueError(f"P[{i}][{j}] and P[{j}][{i}] must both be known, or neither")
                if there is None or back is None:
                    if i == j:
                        raise ValueError(f"P[{i}][{i}] is 1/2 and needs no judge")
                elif not (0.0 <= there <= 1.0 and abs(there + back - 1.0) < 1e-9):
                    raise ValueError(
                        f"P[{i}][{j}] = {there:g} and P[{j}][{i}] = {back:g} must be in [0, 1] and "
                        "add up to 1"
                    )
        return self
