"""Any number of completions of one prompt, with what is known about each."""

from __future__ import annotations

from pydantic import Field, model_validator

from align.data.messages import Text
from align.data.problems import RowProblem
from align.data.records import Record
from align.data.row_policy import OnEmpty
from align.data.texts import check_texts


class CompletionGroup(Record):
    """K completions of one prompt, one included; a tuple beside them has one entry for each.

    Prompt and completions are all plain text or all messages.

    Attributes:
        prompt: what every completion continues.
        completions: in messages exactly one assistant turn each.
        scores: an annotator's numbers, in its own units.
        labels: whether a completion is desirable.
        advantages: how much better a completion is than what was to be expected.
        token_advantages: the same of each of its tokens, the end token included.
        token_weights: of each of its tokens.
        finished: False where a completion is the beginning of an answer: no end token is trained
            behind it.
        group_id: rows of one question share it.
        source: the file, or hub id@revision.
        row: 1-based number of the row in `source`.
    """

    prompt: Text
    completions: tuple[Text, ...]
    scores: tuple[float, ...] | None = None
    labels: tuple[bool, ...] | None = None
    advantages: tuple[float, ...] | None = None
    token_advantages: tuple[tuple[float, ...], ...] | None = None
    token_weights: tuple[tuple[float, ...], ...] | None = None
    finished: tuple[bool, ...] | None = None
    group_id: str | None = None
    source: str
    row: int = Field(ge=1)

    @model_validator(mode="after")
    def _one_kind_of_text(self) -> CompletionGroup:
        if len({isinstance(text, str) for text in (self.prompt, *self.completions)}) != 1:
            raise ValueError("prompt and completions must be all text or all messages")
        if not self.completions:
            raise ValueError("completions is empty")
        return self

    def named(self) -> dict[str, Text]:
        """The completions, each by what errors call it."""
        return {f"completions[{k}]": text for k, text in enumerate(self.completions)}

    def ends(self) -> tuple[bool, ...]:
        """Whether each completion is a whole answer."""
        return self.finished or (True,) * len(self.completions)


def check_group(group: CompletionGroup, on_empty: OnEmpty = "drop") -> None:
    """Raise the first thing that is wrong with the texts of `group`, or with what is beside them.

    Args:
        group: the row.
        on_empty: as in `RowPolicy`.

    Raises:
        RowProblem: as `check_texts`, or `bad_score`.
    """
    check_texts(group.prompt, group.named(), on_empty=on_empty)
    beside = ("scores", "labels", "advantages", "token_advantages", "token_weights", "finished")
    for name in beside:
        values = getattr(group, name)
        if values is not None and len(values) != len(group.completions):
            detail = f"{len(values)} for {len(group.completions)} completions"
            raise RowProblem("bad_score", name, detail)
