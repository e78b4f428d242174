"""The reward that a model trained by DPO carries within itself.

    r(x, y) = beta (log pi(y | x) - log pi_ref(y | x))     [nats times beta]

The log-partition of the prompt, the same for all of its completions, is left out. Source: Rafailov
et al. 2023 (arXiv:2305.18290), equation 5. How far it can be trusted on other prompts than it was
trained on: Lin et al. 2024 (arXiv:2409.03650), and `scripts/implicit_table.py`.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from accelerate import PartialState
from pydantic import Field
from torch import Tensor

from align.data.problems import RowProblem
from align.errors import RecipeError
from align.forest import TokenRow, forest_logps
from align.judges.base import Answer, Answers, Bench, JudgeFailed, JudgeNode, ScoreJudge
from align.policies.fetched import folder_of
from align.policies.loaded import LoadedModel, evaluating
from align.policies.loading import load_config, load_policy, load_tokenizer, reads_images
from align.policies.merged import whole_folder
from align.policies.model import Model
from align.policies.prompting import Prompting
from align.progress import progress
from align.reference import START, content_digest, digest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class ImplicitReward(JudgeNode):
    """A model trained by DPO scores a completion by its log-ratio to the model it began with."""

    by: Literal["implicit"] = "implicit"
    """Who judges: the implicit reward of a model trained by DPO."""
    model: str = Field(min_length=1)
    """Folder of a run that trained by DPO, of its model, or a Hub id (`id@revision`)."""
    reference: str = Field(min_length=1)
    """What it was trained against: a folder, a run's folder or a Hub id; start is the policy that
    this run begins with."""
    beta: float = Field(default=0.1, gt=0)
    """Of its training; the score is so many times the log-ratio in nats."""
    gives: ClassVar[Answers | None] = "scores"

    @property
    def reads_start(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether its reference is the policy that the run begins with."""
        return self.reference == START

    def content(self) -> dict[str, str]:
        """Of both folders; a Hub id is its own name."""
        found = {"content": content_digest(folder_of(self.model))}
        if not self.reads_start:
            found["reference"] = content_digest(folder_of(self.reference))
        return found

    def look(self) -> None:
        """Looks for both configurations and tokenizers.

        Raises:
            RecipeError: one is not there, or the two spell texts otherwise.
        """
        _folder_of(self.model, "model")
        if not self.reads_start:
            _folder_of(self.reference, "reference")

    @contextmanager
    def open(self, bench: Bench) -> Iterator[ScoreJudge]:
        """The judge, with both models on this process's device.

        Raises:
            RecipeError: a model cannot be loaded, or the two spell texts otherwise.
        """
        reference = bench.start if self.reads_start else self.reference
        if not reference:
            raise RecipeError(
                "reference: `start` is the policy that a loop begins with, and there is none here; "
                "write the folder or Hub id of the model that the judge's model was trained from."
            )
        model, tokenizer = _loaded(self.model, "model")
        anchor, of_anchor = _loaded(reference, "reference")
        if tokenizer.get_vocab() != of_anchor.get_vocab():
            raise RecipeError(
                f"reference: {reference!r} spells texts in other tokens than {self.model!r}, so "
                "there is no log-ratio of the two. Name the model that it was trained from."
            )
        yield ImplicitRewardJudge(model, anchor, tokenizer, beta=self.beta)
        del model, anchor
        gc.collect()


class ImplicitRewardJudge:
    """Scores answers by beta times a log-ratio, each prefix that answers share computed once.

    The end of the answer is scored too, as it was trained. Nothing is cut: what does not fit has no
    score.

    Args:
        model: trained by DPO, on its device.
        reference: what it was trained against.
        tokenizer: of both.
        beta: of the training.
        token_budget: tokens of one forward pass at most; it changes scores by rounding only.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        reference: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        beta: float,
        token_budget: int = 16_384,
    ) -> None:
        self.model = model
        self.reference = reference
        self.beta = beta
        self.token_budget = token_budget
        self._prompting = Prompting(tokenizer)
        both = [LoadedModel(model, tokenizer), LoadedModel(reference, tokenizer)]
        self._longest = min(loaded.longest for loaded in both)
        parts = [*(loaded.identity for loaded in both), repr(beta)]
        self.identity = f"implicit:{digest(parts)[:16]}"

    def score(self, items: Sequence[Answer]) -> list[float | JudgeFailed]:
        """One finite number, or the reason why there is none, per item in their order."""
        found = [self._encoded(item) for item in items]
        rows = [row for row in found if not isinstance(row, JudgeFailed)]
        scores = iter(self._scored(rows) if rows else ())
        return [row if isinstance(row, JudgeFailed) else _finite(next(scores)) for row in found]

    def _scored(self, rows: Sequence[TokenRow]) -> list[float]:
        totals: list[Tensor] = []
        with progress("implicit reward", 2, "models") as advance:
            for model in (self.model, self.reference):
                with evaluating(model):
                    logps = forest_logps(model, rows, token_budget=self.token_budget)
                totals.append(logps.total().double().cpu())
                advance()
        return (self.beta * (totals[0] - totals[1])).tolist()

    def _encoded(self, item: Answer) -> TokenRow | JudgeFailed:
        try:
            row = self._prompting.row(item.prompt, item.completion)
        except RowProblem as problem:
            return JudgeFailed(problem.reason, f"{problem.field}: {problem.detail}")
        if len(row) > self._longest:
            return JudgeFailed("too_long", f"{len(row)} tokens, {self._longest} fit")
        return row


def _finite(value: float) -> float | JudgeFailed:
    if math.isfinite(value):
        return value
    return JudgeFailed("not_finite", f"the log-ratio is {value}")


def _folder_of(path: str, key: str) -> tuple[Model, str]:
    """How a model is loaded, and from where.

    Raises:
        RecipeError: it is not there, or no language model of text.
    """
    name, _, revision = folder_of(path).partition("@")
    section = Model(model_name_or_path=name, model_revision=revision or "main", dtype="auto")
    try:
        folder = whole_folder(section, name)
        config = load_config(section, folder)
        load_tokenizer(section, folder)
    except RecipeError as error:
        about = str(error).removeprefix("model.model_name_or_path: ")
        raise RecipeError(f"each_round, by: implicit, {key}: {about}") from error
    if reads_images(config) or "ForSequenceClassification" in str(config.architectures):
        raise RecipeError(
            f"each_round, by: implicit, {key}: {path!r} is no language model of text alone, so it "
            "has no log-ratio. A reward model is `by: reward_model`."
        )
    return section, folder


def _loaded(path: str, key: str) -> tuple[Any, Any]:
    section, folder = _folder_of(path, key)
    model: Any = load_policy(section, folder)
    return model.to(PartialState().device).eval(), load_tokenizer(section, folder)
