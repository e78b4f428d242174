"""Token ids of a pair whose prompt shows pictures.

The chat template writes one placeholder per picture, where the row's messages have it or else
before the words of the first user turn (as TRL does it); each then becomes the run of tokens that
the processor makes of a picture of this size. So a row's ids do not depend on its batch, and
pictures are not decoded to get them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from PIL import Image

from align.data.images import ImageRef, open_image
from align.data.messages import Message
from align.data.pairs import PreferencePair
from align.data.problems import RowProblem
from align.data.row_policy import RowPolicy
from align.errors import RecipeError
from align.tokens.chat_template import ChatTemplate, Until
from align.tokens.encoder import Encoder
from align.tokens.sides import unused_character
from align.tokens.tokenized_pair import TokenizedPair

if TYPE_CHECKING:
    from transformers import ProcessorMixin


IMAGE = {"type": "image"}


class PictureTemplate(ChatTemplate):
    """A chat template that renders lists of parts, which may be pictures.

    Attributes:
        place: the character of a content that stands for a picture; "" while the pictures shown
            stand before the words of the first user turn.
        placeholder: what the template writes for a picture.
        around: what the processor writes before and behind each placeholder.
    """

    place: str = ""
    placeholder: str = ""
    around: str = ""

    def render(self, messages: Sequence[Message], until: Until) -> str:
        """As for text, with a place per picture."""
        contents = [self._parts(message.content) for message in messages]
        if not any(IMAGE in parts for parts in contents):
            first = next((i for i, message in enumerate(messages) if message.role == "user"), None)
            if first is not None:
                contents[first] = [IMAGE] * self.shown + contents[first]
        pairs = zip(messages, contents, strict=True)
        text = self.rendered([{"role": m.role, "content": parts} for m, parts in pairs], until)
        if not self.around:
            return text
        return text.replace(self.placeholder, f"{self.around}{self.placeholder}{self.around}")

    def _parts(self, content: str) -> list[dict[str, str]]:
        pieces = content.split(self.place) if self.place else [content]
        parts: list[dict[str, str]] = []
        for i, piece in enumerate(pieces):
            parts += [IMAGE] if i else []
            parts += [{"type": "text", "text": piece}] if piece or len(pieces) == 1 else []
        return parts


class VisionEncoder(Encoder):
    """The encoder of a vision-language model; rows without pictures are encoded as text.

    Args:
        processor: with a tokenizer, an image processor and a chat template.
        policy: what to do with rows that cannot be used.

    Raises:
        RecipeError: the processor says of no token that it stands for a picture.
    """

    reads_images = True

    def __init__(self, processor: ProcessorMixin, policy: RowPolicy) -> None:
        self.processor: Any = processor
        self._runs: dict[tuple[int, int], list[int]] = {}
        kind = type(processor).__name__
        if not isinstance(getattr(processor, "image_token", None), str):
            raise RecipeError(
                f"{kind} names no image_token, so where a picture stands in a prompt is not known. "
                "Known to work are processors of LLaVA, Qwen-VL and Gemma."
            )
        if getattr(processor.image_processor, "do_pan_and_scan", None):  # type: ignore[attr-defined]
            raise RecipeError(
                f"{kind} shows crops beside a picture (do_pan_and_scan), which depend on more than "
                "its size: set processor.image_processor.do_pan_and_scan = False."
            )
        # Beside a processor the chat template is the processor's, and renders lists of parts.
        tokenizer = copy.copy(self.processor.tokenizer)
        tokenizer.chat_template = self.processor.chat_template or tokenizer.chat_template
        self.image_id: int = tokenizer.convert_tokens_to_ids(self.processor.image_token)
        self._pictures = PictureTemplate(tokenizer)
        # Gemma 3 sets blank lines around a picture, which become one token with other white space.
        written: str = getattr(processor, "full_image_sequence", "")
        self._pictures.around = written[: len(written) - len(written.lstrip())]
        self._pictures.placeholder = self.processor.image_token
        super().__init__(tokenizer, policy, self._pictures)

    def _of_texts(self, pair: PreferencePair) -> TokenizedPair:
        images = pair.images or ()
        self._pictures.shown, self._pictures.place = len(images), ""
        placed = pair
        if pair.image_places is not None:
            self._pictures.place = unused_character((pair.prompt, pair.chosen, pair.rejected))
            placed = with_places(pair, self._pictures.place)
        made = super()._of_texts(placed)
        other = pair.rejected_images if isinstance(pair.rejected_images, tuple) else images
        ids = self._with_runs(made.prompt_ids, images)
        if other is not images and self._with_runs(made.prompt_ids, other) != ids:
            detail = "pictures of another size take other tokens, and the sides share the prompt"
            raise RowProblem("unsupported_content", "rejected_images", detail)
        return replace(made, prompt_ids=ids, pair=pair)

    def cut(self, tokenized: TokenizedPair) -> TokenizedPair:
        """As for text; but the prompt is never cut, because pictures stand in it."""
        policy = self.policy
        if tokenized.pair.images is not None and policy.on_too_long == "cut_prompt":
            longest = max(len(tokenized.chosen_ids), len(tokenized.rejected_ids))
            length = len(tokenized.prompt_ids) + longest
            if policy.max_length is not None and length > policy.max_length:
                detail = f"{length} tokens, and a prompt with pictures is not cut"
                raise RowProblem("too_long", "prompt", detail)
        return super().cut(tokenized)

    def _with_runs(self, ids: Sequence[int], images: Sequence[ImageRef]) -> list[int]:
        """`ids` with each placeholder replaced by its picture's tokens."""
        places = [i for i in ids if i == self.image_id]
        if len(places) != len(images):
            detail = f"the chat template writes {len(places)} places for {len(images)} pictures"
            raise RowProblem("template_mismatch", "images", detail)
        left = iter(images)
        found: list[int] = []
        for i in ids:
            found += self._run(next(left)) if i == self.image_id else [i]
        return found

    def _run(self, ref: ImageRef) -> list[int]:
        """The tokens of one picture, which depend on its size alone."""
        size = open_image(ref).size
        if size not in self._runs:
            # Padding would leave its mark in the tokenizer, and in its digest.
            processed = self.processor(
                text=self.processor.image_token,
                images=Image.new("RGB", size),
                add_special_tokens=False,
                padding=False,
            )
            ids = cast(list[int], list(processed["input_ids"][0]))
            if self._pictures.around:
                # What the template's text has around the placeholder already.
                own = [n for n, i in enumerate(ids) if i in self.control_ids]
                ids = ids[own[0] : own[-1] + 1]
            self._runs[size] = ids
        return self._runs[size]


def with_places(pair: PreferencePair, place: str) -> PreferencePair:
    """`pair` with the character `place` where its prompt's pictures stand."""
    assert not isinstance(pair.prompt, str)
    contents = [message.content for message in pair.prompt]
    # From the end on, so that the offsets before stay what they are.
    for message, offset in reversed(pair.image_places or ()):
        contents[message] = contents[message][:offset] + place + contents[message][offset:]
    prompt = tuple(
        message.model_copy(update={"content": content})
        for message, content in zip(pair.prompt, contents, strict=True)
    )
    return pair.model_copy(update={"prompt": prompt})
