"""Recipes that train without an objective: `kind: reward`, `preference_model` and `sft`.

They are trained by TRL's own losses on the sections that every recipe has, so what would choose a
formula or a frozen policy has no place in them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import Field

from align.evaluation import EvaluationNode
from align.node import Conflict, Node
from align.policies.model import Model
from align.recipe.sections import Data, Evaluate, Hub
from align.recipe.train import Train
from align.registry import WORLD
from align.unions import Named

KindName: TypeAlias = Literal["reward", "preference_model", "sft"]

_ROWS_ONE_BY_ONE = "rows are padded to the longest of their batch here; take it out"


class KindTrain(Train):
    """The keys of `train` that TRL's trainer of this kind does not read are refused."""

    unread: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"token_budget": _ROWS_ONE_BY_ONE, "forest_backend": _ROWS_ONE_BY_ONE}
    )
    """Key -> what to do about it."""

    def arguments(self) -> dict[str, Any]:
        """The keywords for TRL's configuration of this kind."""
        found = super().arguments()
        return {key: value for key, value in found.items() if key not in self.unread}

    def conflicts(self) -> Iterator[Conflict]:  # noqa: D102
        yield from super().conflicts()
        for key, how_on in self.unread.items():
            if getattr(self, key) != type(self).model_fields[key].default:
                yield key, how_on
        if self.train_sampling_strategy == "group_by_prompt":
            yield (
                "train_sampling_strategy",
                "only preference training keeps the pairs of a prompt together; write random",
            )


class ClassifierTrain(KindTrain):
    """How a classifier is trained; names and defaults of trl.RewardConfig."""

    unread: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            **KindTrain.unread,
            "router_aux_loss_coef": "a classifier is trained without it; take it out",
        }
    )
    learning_rate: float = Field(default=1e-4, gt=0, le=1)
    """Peak learning rate."""


class RewardTrain(ClassifierTrain):
    """How a reward model is trained; names and defaults of trl.RewardConfig."""

    center_rewards_coefficient: float | None = Field(default=None, gt=0)
    """Weight of (r_chosen + r_rejected)^2, which keeps rewards around 0 (arXiv:2312.09244, eq. 2);
    0.01 is usual, null leaves it out."""


class SFTTrain(KindTrain):
    """How a policy imitates; names and defaults of trl.SFTConfig."""

    unread: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            **KindTrain.unread,
            "disable_dropout": "TRL's SFTTrainer leaves the model's own dropout on; take it out",
        }
    )
    learning_rate: float = Field(default=2e-5, gt=0, le=1)
    """Peak learning rate."""


class Demonstrations(Data):
    """The completions that are imitated, and what to do with rows that cannot be used."""

    completions: str | None = Field(default=None, min_length=1)
    """File, folder or Hub id with columns `prompt` and `completion`, or `messages`, whose last
    assistant turn is imitated; in place of `pairs`, whose chosen completions are."""

    def conflicts(self) -> Iterator[Conflict]:  # noqa: D102
        yield from super().conflicts()
        if self.completions is None:
            return
        if self.pairs is not None:
            yield "completions", "pairs already give completions; keep one of the two"
        if self.format != "auto":
            yield "format", "it reads pairs; `completions` are recognised by their columns"


class Imitation(Evaluate):
    """What is measured besides the held-out completions, and on how much."""

    suite: tuple[str | Annotated[EvaluationNode, Named("evaluation")], ...] = ()
    """As in every recipe; the log-probs of the held-out completions are measured anyway."""


class KindRecipe(Node):
    """What the three kinds have in common."""

    kind: Any  # a Literal in every child
    """What is trained without an objective: reward (a Bradley-Terry reward model), preference_model
    (compares two answers in one input), or sft (a policy that imitates)."""
    model: Model
    """The model that is trained, or made a classifier."""
    data: Any  # a Data, or a child of it
    """The rows."""
    train: Any  # a KindTrain
    """How it is trained."""
    hub: Hub = Hub()
    """Where the model is pushed."""

    refused: ClassVar[Mapping[str, str]]
    """Key of other recipes -> why it has no place in this one."""

    @property
    def rows(self) -> str | None:
        """What the rows are read from."""
        return self.data.pairs

    def conflicts(self) -> Iterator[Conflict]:  # noqa: D102
        if self.data.groups is not None:
            yield "data.groups", f"`kind: {self.kind}` is trained on pairs; write `pairs`"
        if self.rows is None:
            yield "data.pairs", "is missing; write a file, a folder, a Hub id or world:sums"
        without_rows = not self.data.held_out and self.data.eval_pairs is None
        if without_rows and self.train.eval_strategy != "no":
            yield (
                "train.eval_strategy",
                "there are no rows to evaluate on; write `held_out: 0.05` or eval_pairs under data",
            )
        source, model = str(self.rows), self.model.model_name_or_path
        if source.startswith(WORLD) and self.model.is_world and model != source:
            yield (
                "data.pairs",
                f"{source} is asked of its own model; write `model_name_or_path: {source}`",
            )


_NO_OBJECTIVE = "the kind says what the loss is; take it out, or take `kind` out to train by it"
_NO_LOOP = "the kind is trained once; take it out, or name what came out in a loop's judge stage"
_OF_POLICIES: Mapping[str, str] = {
    "objective": _NO_OBJECTIVE,
    "roles": "the kind compares with no frozen policy; take it out",
    "prompts": _NO_LOOP,
    "rounds": _NO_LOOP,
    "each_round": _NO_LOOP,
    "keep": _NO_LOOP,
    "build": "a recipe that builds data trains nothing; take `build` or `kind` out",
}
_NO_SUITE = (
    "it is measured on the held-out pairs: accuracy, margin, calibration; say how many by "
    "`held_out` under data, and take this out"
)


class RewardRecipe(KindRecipe):
    """A reward model, complete: what `align train` reads and writes back as recipe.yaml."""

    kind: Literal["reward"] = "reward"
    """A Bradley-Terry reward model."""
    data: Data = Data()
    """The preference pairs; a column `margin` is subtracted from their difference of scores."""
    train: RewardTrain = RewardTrain()
    """How it is trained."""
    refused: ClassVar[Mapping[str, str]] = MappingProxyType({**_OF_POLICIES, "evaluate": _NO_SUITE})


class PreferenceModelRecipe(KindRecipe):
    """A preference model, complete: what `align train` reads and writes back as recipe.yaml."""

    kind: Literal["preference_model"] = "preference_model"
    """A model that reads two answers at once and says which one is better."""
    data: Data = Data()
    """The preference pairs; a column `preference`, P(chosen beats rejected), is their label.
    `max_length` counts the prompt and both answers."""
    train: ClassifierTrain = ClassifierTrain()
    """How it is trained."""
    refused: ClassVar[Mapping[str, str]] = MappingProxyType({**_OF_POLICIES, "evaluate": _NO_SUITE})

    def conflicts(self) -> Iterator[Conflict]:  # noqa: D102
        yield from super().conflicts()
        if self.data.on_too_long == "cut_completion":
            yield (
                "data.on_too_long",
                "whole answers are compared; write drop or cut_prompt",
            )


class SFTRecipe(KindRecipe):
    """Supervised fine-tuning, complete: what `align train` reads and writes back as recipe.yaml."""

    kind: Literal["sft"] = "sft"
    """A policy that imitates completions."""
    data: Demonstrations = Demonstrations()
    """The completions that are imitated."""
    train: SFTTrain = SFTTrain()
    """How it is trained."""
    evaluate: Imitation = Imitation()
    """What is measured before and after, besides the held-out completions."""
    refused: ClassVar[Mapping[str, str]] = MappingProxyType(_OF_POLICIES)

    @property
    def rows(self) -> str | None:
        """What the rows are read from."""
        return self.data.completions or self.data.pairs

    def conflicts(self) -> Iterator[Conflict]:  # noqa: D102
        yield from super().conflicts()
        if self.data.completions is not None and self.evaluate.needs_pairs:
            yield (
                "evaluate.suite",
                f"{(reader := self.evaluate.pair_readers[0])} needs pairs, and data.completions "
                f"has none; take {reader} out",
            )


KINDS: Mapping[str, type[KindRecipe]] = MappingProxyType(
    {
        "reward": RewardRecipe,
        "preference_model": PreferenceModelRecipe,
        "sft": SFTRecipe,
    }
)
