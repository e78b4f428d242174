"""Two completions of one prompt, the better one first, and what their texts must be."""

from __future__ import annotations

from pydantic import Field, model_validator

from align.data.images import Degraded, ImageRef
from align.data.messages import Text
from align.data.problems import RowProblem
from align.data.records import Record, content_id
from align.data.row_policy import OnEmpty
from align.data.texts import check_texts


class PreferencePair(Record):
    """Two completions of one prompt, the better one first.

    Prompt and completions are all plain text or all messages. The optional columns keep the
    annotator's own units; token weights count completion tokens, the end token included.

    Attributes:
        prompt: what both completions continue.
        chosen: the preferred completion; in messages exactly one assistant turn.
        rejected: the other one.
        chosen_score: the annotator's number for `chosen`.
        rejected_score: the annotator's number for `rejected`.
        preference: P(chosen beats rejected), in [0, 1].
        margin: how much better `chosen` is.
        chosen_token_weight: one weight per token of `chosen`.
        rejected_token_weight: one weight per token of `rejected`.
        chosen_ends: False where `chosen` is the beginning of an answer, such as the steps of a
            search so far: no end token is trained behind it. None means True.
        rejected_ends: the same for the other side.
        prompt_ids: the tokens that the pair was drawn with; given all three, exactly these are
            trained on, and a tokenizer that does not read them as the texts is refused.
        chosen_ids: the end token included, where the side has one.
        rejected_ids: the same for the other side.
        images: what the prompt shows.
        image_places: where each of them stands: number of the prompt's message from 0, and
            characters of its content before the picture. None means before the words of the first
            user turn.
        rejected_images: what it shows on the rejected side, where that is something else; both
            completions may then be the same.
        pair_kind: which of the pairs of one question this is; OPA-DPO's loss depends on it.
        group_id: pairs of one question, tree or document share it.
        source: the file, or hub id@revision.
        row: 1-based number of the row in `source`.
    """

    prompt: Text
    chosen: Text
    rejected: Text
    chosen_score: float | None = None
    rejected_score: float | None = None
    preference: float | None = Field(default=None, ge=0.0, le=1.0)
    margin: float | None = None
    chosen_token_weight: tuple[float, ...] | None = None
    rejected_token_weight: tuple[float, ...] | None = None
    chosen_ends: bool | None = None
    rejected_ends: bool | None = None
    prompt_ids: tuple[int, ...] | None = None
    chosen_ids: tuple[int, ...] | None = None
    rejected_ids: tuple[int, ...] | None = None
    images: tuple[ImageRef, ...] | None = None
    image_places: tuple[tuple[int, int], ...] | None = None
    rejected_images: tuple[ImageRef, ...] | Degraded | None = None
    pair_kind: str | None = None
    group_id: str | None = None
    source: str
    row: int = Field(ge=1)

    @model_validator(mode="after")
    def _one_kind_of_text(self) -> PreferencePair:
        if len({isinstance(text, str) for text in (self.prompt, self.chosen, self.rejected)}) != 1:
            raise ValueError("prompt, chosen and rejected must be all text or all messages")
        ids = (self.prompt_ids, self.chosen_ids, self.rejected_ids)
        if len({side is None for side in ids}) != 1:
            raise ValueError("prompt_ids, chosen_ids and rejected_ids must be given all, or none")
        other = self.rejected_images
        if other is not None and self.images is None:
            raise ValueError("rejected_images without images")
        if self.images == () or other == ():
            raise ValueError("images and rejected_images are left out where there are none")
        if self.image_places is not None:
            self._check_places(self.image_places)
        if isinstance(other, tuple) and len(other) != len(self.images or ()):
            raise ValueError("rejected_images must be as many as images: both share the prompt")
        return self

    def _check_places(self, places: tuple[tuple[int, int], ...]) -> None:
        if len(places) != len(self.images or ()) or list(places) != sorted(places):
            raise ValueError("image_places must say of each of images where it stands, in order")
        prompt = () if isinstance(self.prompt, str) else self.prompt
        for message, offset in places:
            if not (0 <= message < len(prompt) and 0 <= offset <= len(prompt[message].content)):
                raise ValueError(f"image_places: ({message}, {offset}) is outside of the prompt")

    @property
    def is_conversational(self) -> bool:
        """True where the row holds messages, False where it holds plain text."""
        return not isinstance(self.prompt, str)

    @property
    def id(self) -> str:
        """16 hex characters of the content, whatever file it came from."""
        content = self.model_dump(include=set(PreferencePair.model_fields) - {"source", "row"})
        # A column that came later does not rename the rows that do not have it.
        return content_id({k: v for k, v in content.items() if v is not None or k not in _LATER})


_LATER = (
    "chosen_ends",
    "rejected_ends",
    "prompt_ids",
    "chosen_ids",
    "rejected_ids",
    "images",
    "image_places",
    "rejected_images",
    "pair_kind",
)


def _pictured(pair: PreferencePair) -> set[int]:
    """Numbers of the prompt's messages that show a picture."""
    if pair.images is None or isinstance(pair.prompt, str):
        return set()
    if pair.image_places is not None:
        return {message for message, _ in pair.image_places}
    return {next((i for i, turn in enumerate(pair.prompt) if turn.role == "user"), 0)}


def check_pair(pair: PreferencePair, on_empty: OnEmpty = "drop") -> None:
    """Raise the first thing that is wrong with the text of `pair`.

    Args:
        pair: the row.
        on_empty: as in `RowPolicy`.

    Raises:
        RowProblem: `bad_unicode`, `wrong_roles`, `empty_prompt`, `empty_completion`, `equal` or
            `bad_score`.
    """
    sides = {"chosen": pair.chosen, "rejected": pair.rejected}
    check_texts(pair.prompt, sides, _pictured(pair), on_empty)
    if pair.chosen == pair.rejected and pair.rejected_images is None:
        raise RowProblem("equal", "rejected", "the same text as chosen")
    if (pair.chosen_score is None) != (pair.rejected_score is None):
        missing = "chosen_score" if pair.chosen_score is None else "rejected_score"
        raise RowProblem("bad_score", missing, "absent, while the other side has a score")
