"""A reward model: a transformers sequence classifier with one output."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch
from accelerate import PartialState
from pydantic import Field
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from align.data.problems import RowProblem
from align.errors import RecipeError
from align.forest.rows import TokenRow
from align.judges.base import Answer, Answers, Bench, JudgeFailed, JudgeNode, ScoreJudge
from align.policies.loaded import evaluating
from align.policies.prompting import Prompting
from align.reference import content_digest, digest, tokenizer_digest, weights_digest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class RewardModel(JudgeNode):
    """A sequence classifier with one output scores each completion."""

    by: Literal["reward_model"] = "reward_model"
    """Who judges: a reward model."""
    path: str = Field(min_length=1)
    """Folder or Hub id (`id@revision`) of the reward model."""
    gives: ClassVar[Answers | None] = "scores"

    def content(self) -> dict[str, str]:
        """Of its folder; a Hub id is its own name."""
        return {"content": content_digest(self.path)}

    @contextmanager
    def open(self, bench: Bench) -> Iterator[ScoreJudge]:
        """The judge, on this process's device.

        Raises:
            RecipeError: it cannot be loaded, or is no classifier with one output.
        """
        name, _, revision = self.path.partition("@")
        options: dict[str, Any] = {"revision": revision} if revision else {}
        try:
            model: Any = AutoModelForSequenceClassification.from_pretrained(name, **options)
            tokenizer: Any = AutoTokenizer.from_pretrained(name, **options)
        except (OSError, ValueError) as error:
            first = str(error).splitlines()[0]
            raise RecipeError(
                f"each_round: the judge's reward model {self.path!r} cannot be loaded ({first}). "
                "Write the folder or Hub id of a sequence classifier with one output."
            ) from error
        yield RewardModelJudge(model.to(PartialState().device).eval(), tokenizer)


class RewardModelJudge:
    """Scores answers in batches, by the reward model's own logit.

    Control tokens that an answer spells stay text. Nothing is cut: what does not fit has no score.

    Args:
        model: with one output, on its device.
        tokenizer: of the model.
        max_length: most tokens of prompt and completion; None takes the model's own number.
        batch_size: answers of one forward pass; it changes scores by rounding only.

    Raises:
        RecipeError: the model has more outputs than one, or no padding token.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int | None = None,
        batch_size: int = 32,
    ) -> None:
        config = model.config.get_text_config()
        if model.config.num_labels != 1:
            raise RecipeError(
                f"The reward model has {model.config.num_labels} outputs and a judge needs one "
                "score: choose a sequence classifier with num_labels 1."
            )
        if config.pad_token_id is None:
            # Without it transformers reads the score off the last slot, padding or not.
            raise RecipeError(
                "The reward model's config has no pad_token_id, so it cannot tell where a row "
                "ends: set model.config.pad_token_id to the tokenizer's."
            )
        self.model = model
        self.max_length = max_length or getattr(config, "max_position_embeddings", None)
        self.batch_size = batch_size
        self._pad = int(config.pad_token_id)
        self._prompting = Prompting(tokenizer)
        self._tail: list[int] | None = None
        parts = [weights_digest(model), tokenizer_digest(tokenizer), repr(self.max_length)]
        self.identity = f"reward-model:{digest(parts)[:16]}"

    def score(self, items: Sequence[Answer]) -> list[float | JudgeFailed]:
        """One finite number, or the reason why there is none, per item in their order."""
        results: list[float | JudgeFailed] = [
            JudgeFailed("not_asked", "the reward model did not read it") for _ in items
        ]
        rows: dict[int, list[int]] = {}
        for place, item in enumerate(items):
            found = self._encoded(item)
            if isinstance(found, JudgeFailed):
                results[place] = found
            else:
                rows[place] = found
        order = sorted(rows, key=lambda place: len(rows[place]))
        with evaluating(self.model):
            for start in range(0, len(order), self.batch_size):
                places = order[start : start + self.batch_size]
                for place, value in zip(
                    places, self._forward([rows[p] for p in places]), strict=True
                ):
                    results[place] = (
                        value
                        if math.isfinite(value)
                        else JudgeFailed("not_finite", f"the reward model's score is {value}")
                    )
        return results

    def _encoded(self, item: Answer) -> list[int] | JudgeFailed:
        try:
            row: TokenRow = self._prompting.row(item.prompt, item.completion)
        except RowProblem as problem:
            return JudgeFailed(problem.reason, f"{problem.field}: {problem.detail}")
        ids = [*row.prompt_ids, *row.completion_ids]
        if not isinstance(item.prompt, str):
            ids += self._behind_the_end(row.completion_ids[-1])
        if self.max_length is not None and len(ids) > self.max_length:
            return JudgeFailed("too_long", f"{len(ids)} tokens, {self.max_length} fit")
        return ids

    def _behind_the_end(self, end: int) -> list[int]:
        """Ids that the chat template writes after an answer's end token, such as Qwen's newline.

        Training rows stop before them, but the score is read off the very last token.
        """
        if self._tail is None:
            tokenizer, answer = self._prompting.tokenizer, "qXanswerXq"
            turns = [
                {"role": "user", "content": "x"},
                {"role": "assistant", "content": answer},
            ]
            text = cast(str, tokenizer.apply_chat_template(turns, tokenize=False))
            behind = text.rpartition(answer)[2]
            ids = cast(list[int], tokenizer(behind, add_special_tokens=False)["input_ids"])
            self._tail = ids[ids.index(end) + 1 :] if end in ids else []
        return self._tail

    def _forward(self, rows: list[list[int]]) -> list[float]:
        width = max(map(len, rows))
        ids = torch.tensor([row + [self._pad] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        device = self.model.device
        logits = self.model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
        return logits[:, 0].float().tolist()
