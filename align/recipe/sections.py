"""The sections of a recipe, save `train`: their keys, defaults, and what cannot stand together."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from align import registry
from align.built_in import BUILT_IN
from align.data.curriculum import Curriculum
from align.data.group_scores import Baseline, Label
from align.data.row_policy import RowPolicy
from align.errors import RecipeError
from align.evaluation import Benchmark, EvaluationNode, Measurement
from align.loops.retention import Retention
from align.loops.stage import StageNode
from align.nearest import nearest
from align.node import Conflict, Node
from align.objectives import GroupObjective, Objective
from align.policies.model import Model
from align.recipe.train import Train
from align.registry import WORLD, is_path, names, no_such_world, unknown
from align.types import ROLES
from align.unions import Named, value_of


class Roles(Node):
    """Which frozen policy stands behind each role of the objective."""

    reference: str | None = Field(default=None, min_length=1)
    """The fixed anchor of the KL term: start (before training), a path, or id@revision; in a loop
    also round_start or previous_round."""
    previous: str | None = Field(default=None, min_length=1)
    """The policy that sampled the pairs: start, a path, or id@revision; in a loop round_start."""
    earlier: str | None = Field(default=None, min_length=1)
    """The policy one round before `previous`: the same; in a loop previous_round."""
    guide: str | None = Field(default=None, min_length=1)
    """The model whose token log-ratios weigh TGDPO: start, a path, or id@revision."""
    anchor: str | None = Field(default=None, min_length=1)
    """The proximal anchor of Nash-MP: start, a path, or id@revision; in a loop also round_start or
    ema:0.9, the average of the rounds' policies with that decay."""

    @property
    def given(self) -> Mapping[str, str]:
        """The roles that the recipe names."""
        named = {role: getattr(self, role) for role in ROLES}
        return {role: source for role, source in named.items() if source is not None}

    def conflicts(self) -> Iterator[Conflict]:  # noqa: D102
        for role, source in self.given.items():
            if source.startswith("ema:"):
                if role != "anchor":
                    yield role, "only the anchor may be an average; write `round_start` or a path"
                elif ema_decay(source) is None:
                    yield role, f"found {source!r}; write a decay between 0 and 1, such as ema:0.9"
            elif source.count("@") > 1 or source.startswith("@") or source.endswith("@"):
                yield (
                    role,
                    f"found {source!r}; write `start`, a path, or a Hub id with its @revision",
                )


# Policies that only a loop has.
ROUND_POLICIES = ("round_start", "previous_round")


def ema_decay(source: str) -> float | None:
    """The decay in `ema:0.9`; None where there is none between 0 and 1."""
    number = source.removeprefix("ema:")
    if number == source or re.fullmatch(r"0?\.\d+", number) is None or not float(number):
        return None
    return float(number)


class Sample(Node):
    """How pairs, or groups, are sampled from a built-in world's start policy."""

    prompts: int = Field(default=1024, ge=1)
    """Problems that the policy answers."""
    completions: int = Field(default=4, ge=2)
    """Answers per problem."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature."""
    seed: int = Field(default=0, ge=0)
    """Seed of problems and answers."""


def _is_sampled(data: Mapping[str, Any], *keys: str) -> bool:
    return any(str(data.get(key)).startswith(WORLD) for key in keys)


def _sample_of_a_world(data: Mapping[str, Any]) -> Sample | None:
    return Sample() if _is_sampled(data, "pairs", "groups") else None


# A world's scores are 1 for a right answer and 0 for a wrong one, or win rates.
def _label_of_a_world(data: Mapping[str, Any]) -> Label | None:
    return Label(above=0.5) if _is_sampled(data, "groups") else None


def _advantage_of_a_world(data: Mapping[str, Any]) -> Baseline | None:
    return "mean" if _is_sampled(data, "groups") else None


def _held_out_without_own_rows(data: Mapping[str, Any]) -> float:
    # Pairs say nothing about a loss over groups.
    return 0 if data.get("eval_pairs") is not None and data.get("groups") is None else 0.05


class Prompts(Node):
    """What a loop's policy is asked."""

    source: str = Field(min_length=1)
    """File, folder or Hub id with a column `prompt` (or whole pairs), or world:sums."""
    split: str = Field(default="train", min_length=1)
    """Split of a Hub data set."""
    revision: str | None = Field(default=None, min_length=1)
    """Branch, tag or commit hash of a Hub data set."""
    columns: Mapping[str, str] = Field(default={})
    """Columns of a foreign file under our names, as {prompt: turns.0} or {question: text}: a
    `question` is asked as a user's turn, a `prompt` as it stands. Dots lead into lists and maps."""
    per_round: int | None = Field(default=None, ge=1)
    """Prompts of one round; null takes all of them every round, and 256 of a world."""
    seed: int = Field(default=0, ge=0)
    """Seed of a world's prompts and of their order."""
    curriculum: Curriculum | None = None
    """How many of a round's prompts each source of the rows gets; null pays sources no heed."""

    def conflicts(self) -> Iterator[Conflict]:  # noqa: D102
        if (problem := no_such_world(self.source)) is not None:
            yield "source", problem
        if self.curriculum is None:
            return
        if self.source.startswith(WORLD):
            yield "curriculum", "a world is one source; write the prompts as a file or a folder"
        if self.per_round is None:
            yield "per_round", "is missing, and a curriculum shares so many prompts out; write one"


class Data(Node, RowPolicy):
    """The pairs or groups, and what to do with rows that cannot be used as they are."""

    # A trainer of a script takes any length, as TRL's does; in a recipe fewer is a slip.
    max_length: int | None = Field(default=1024, ge=16)
    """tokens of prompt and completion together; None means no limit."""
    pairs: str | None = Field(default=None, min_length=1)
    """File, folder, Hub id, world:sums or world:styles; a loop makes its own."""
    groups: str | None = Field(default=None, min_length=1)
    """The same of completions in groups, in place of pairs, for objectives over groups: rows with
    `prompt` and `completion` (TRL's unpaired format) or all `completions` of a prompt."""
    label: Label | None = Field(default_factory=_label_of_a_world)
    """Makes labels of the groups' scores, as {above: 0.5} or {best: 1}; null leaves the rows' own.
    Of a world, whose scores are exact, {above: 0.5}."""
    advantage: Baseline | None = Field(default_factory=_advantage_of_a_world)
    """Makes advantages of the groups' scores: mean (above the mean of the prompt's completions) or
    others (of the other ones); null leaves the rows' own. Of a world, mean."""
    split: str = Field(default="train", min_length=1)
    """Split of a Hub data set."""
    revision: str | None = Field(default=None, min_length=1)
    """Branch, tag or commit hash of a Hub data set."""
    format: str = Field(default="auto", min_length=1)
    """How the rows are written: auto (recognises it), trl, hh, sharegpt, or a function of one's own
    as file.py:function, which makes a row of TRL's columns out of a row."""
    columns: Mapping[str, str] = Field(default={})
    """Columns of a foreign file under our names, as {chosen: response_a, rejected: response_b,
    chosen_score: scores.0}. Dots lead into lists and maps."""
    eval_pairs: str | None = Field(default=None, min_length=1)
    """File, folder or Hub id with the pairs to evaluate on; replaces held_out of pairs."""
    held_out: int | float = Field(default_factory=_held_out_without_own_rows, ge=0)
    """Pairs or groups kept for evaluation: a number, or a share below 1; 0.05 without eval_pairs. A
    loop makes its pairs anew each round and keeps none."""
    limit: int | None = Field(default=None, ge=1)
    """Read at most so many pairs, or rows of groups."""
    seed: int = Field(default=0, ge=0)
    """Seed of the choice of held-out pairs or groups."""
    sample: Sample | None = Field(default_factory=_sample_of_a_world)
    """How the pairs or groups of a world are sampled; only for pairs or groups: world:*."""

    @property
    def reader(self) -> Any:
        """What reads a row: the name of a built-in format, or a function of the user's own.

        Raises:
            RecipeError: its code cannot be imported.
        """
        is_built_in = self.format in BUILT_IN["reader"]
        return self.format if is_built_in else registry.find("reader", self.format).value

    def conflicts(self) -> Iterator[Conflict]:  # noqa: D102
        if self.on_empty == "keep_prompt":
            told = "is for trainers in scripts; evaluations and loops ask the prompts of a recipe"
            yield "on_empty", f"keep_prompt {told}: write drop or error"
        for key in ("pairs", "groups"):
            if (problem := no_such_world(getattr(self, key) or "")) is not None:
                yield key, problem
        yield from self._group_conflicts()
        source = self.groups or self.pairs or ""
        is_world = source.startswith(WORLD)
        if is_world and self.sample is None:
            yield "sample", f"{source} samples its rows; write `sample: {{}}` for the defaults"
        if not is_world and self.sample is not None:
            yield (
                "sample",
                "only a world samples its pairs; write `pairs: world:sums`, or take this out",
            )
        if not is_path(self.format) and self.format not in names("reader"):
            yield "format", unknown("reader", self.format)
        if isinstance(self.held_out, float) and self.held_out >= 1:
            yield (
                "held_out",
                f"found {self.held_out}; write a share below 1, or a whole number of pairs",
            )
        if self.held_out and self.eval_pairs is not None and self.groups is None:
            yield (
                "held_out",
                "eval_pairs already gives the rows to evaluate on; keep one of the two",
            )

    def _group_conflicts(self) -> Iterator[Conflict]:
        if self.groups is None:
            for key in ("label", "advantage"):
                if getattr(self, key) is not None:
                    yield key, "is made of the scores of groups; write `groups`, or take it out"
            return
        if self.pairs is not None:
            yield "groups", "pairs stands beside it; keep the one that the objective learns from"
        if self.format != "auto":
            yield "format", "it reads pairs; groups are recognised by their columns"


class Evaluate(Node):
    """What is measured, and on how much."""

    suite: tuple[str | Annotated[EvaluationNode, Named("evaluation")], ...] = ("preference",)
    """preference (accuracy and margins on the held-out pairs), names of worlds, and evaluations
    with keys of their own, as `{run: alpaca_eval, ...}`."""
    n: int | None = Field(default=None, ge=1)
    """Held-out pairs at most, and problems of a world; null means 1024."""
    seed: int = Field(default=0, ge=0)
    """Seed of problems and answers."""

    def conflicts(self) -> Iterator[Conflict]:  # noqa: D102
        words = [entry for entry in self.suite if isinstance(entry, str)]
        if len(set(words)) < len(words):
            yield "suite", "an entry stands twice; keep one"
        known = [*names("evaluation"), *names("world")]
        for word in words:
            problem = no_such_world(word)
            if problem is None and not (is_path(word) or word in known):
                near = nearest(word, known)
                hint = f"; did you mean `{near}`?" if near else f"; there are {', '.join(known)}"
                problem = f"no evaluation {word!r}{hint}"
            if problem is not None:
                yield "suite", problem

    def nodes(self) -> list[EvaluationNode]:
        """The entries, those written as words too.

        Raises:
            RecipeError: a word names nothing, or an evaluation with keys of its own.
        """
        return [_evaluation(entry) if isinstance(entry, str) else entry for entry in self.suite]

    @property
    def pair_readers(self) -> list[str]:
        """The entries that read held-out pairs, by name."""
        words = [entry for entry in self.suite if isinstance(entry, str) and entry in _READ_PAIRS]
        nodes = [entry for entry in self.suite if isinstance(entry, Measurement)]
        return [*words, *(entry.label for entry in nodes if entry.needs_pairs)]

    @property
    def needs_pairs(self) -> bool:
        """Whether held-out pairs are read."""
        return bool(self.pair_readers)

    @property
    def worlds(self) -> list[str]:
        """Names of the worlds among the words, without prefix."""
        words = [entry for entry in self.suite if isinstance(entry, str)]
        return [word.removeprefix(WORLD) for word in words if _is_world(word)]


# Known by name, since their modules import torch, and loading a recipe does not.
_READ_PAIRS = ("preference", "answers")


def _is_world(word: str) -> bool:
    return word.startswith(WORLD) or (
        not is_path(word) and word in names("world") and word not in names("evaluation")
    )


def _evaluation(word: str) -> EvaluationNode:
    node: dict[str, Any] = {"run": word}
    if _is_world(word):
        node = {"run": "world", "world": word.removeprefix(WORLD)}
    try:
        found: Any = value_of(registry.node("evaluation", node["run"]), node)
    except ValidationError as error:
        missing = ", ".join(".".join(map(str, fault["loc"])) for fault in error.errors())
        raise RecipeError(
            f"evaluate.suite: {word} needs keys of its own ({missing}); write "
            f"`{{run: {word}, ...}}`."
        ) from error
    return found


class Hub(Node):
    """Whether and where the finished model is pushed; a separate step from saved files."""

    push: bool = False
    """Push the model with its card, resolved recipe and metrics."""
    repo: str | None = Field(default=None, pattern=r"^[\w.-]+/[\w.-]+$")
    """The repository, as owner/name."""
    private: bool = True
    """Whether the repository is private."""
    dry_run: bool = False
    """Only list what would be pushed."""

    def conflicts(self) -> Iterator[Conflict]:  # noqa: D102
        for key in ("push", "dry_run"):
            if getattr(self, key) and self.repo is None:
                yield "repo", f"is missing, and {key} is on; write `repo: owner/name`"


class Recipe(Node):
    """One training run, complete: what `align train` reads and writes back as recipe.yaml."""

    model: Model
    """The policy that is trained."""
    roles: Roles = Roles()
    """The frozen policies that the objective compares with."""
    data: Data = Data()
    """What is trained on: preference pairs, or groups of completions."""
    prompts: Prompts | None = None
    """What a loop's policy is asked."""
    objective: Annotated[Objective | GroupObjective, Named("objective")]
    """The formula and its hyper-parameters."""
    train: Train = Train()
    """How it is trained."""
    evaluate: Evaluate = Evaluate()
    """What is measured before and after."""
    hub: Hub = Hub()
    """Where the model is pushed."""
    rounds: int | None = Field(default=None, ge=1)
    """How many times a loop goes through its stages; without it the recipe trains once."""
    each_round: tuple[Annotated[StageNode, Named("stage")], ...] = ()
    """A loop's stages, in order: generate, judge, select, train, evaluate."""
    keep: Retention = Retention()
    """Which old policies a loop keeps."""

    @property
    def is_loop(self) -> bool:
        """Whether the recipe goes through rounds of stages."""
        return self.rounds is not None

    @property
    def learns_from(self) -> Literal["pairs", "groups"]:
        """What the objective is over."""
        return "groups" if isinstance(self.objective, GroupObjective) else "pairs"

    def conflicts(self) -> Iterator[Conflict]:  # noqa: D102
        yield from self._loop_conflicts() if self.is_loop else self._single_conflicts()
        yield from self._shared_conflicts()

    def _single_conflicts(self) -> Iterator[Conflict]:
        yield from self._row_conflicts()
        for key in ("prompts", "each_round"):
            if getattr(self, key):
                yield key, "belongs to a loop; write `rounds: 3` too, or take it out"
        for role, source in self.roles.given.items():
            if source in ROUND_POLICIES or source.startswith("ema:"):
                yield (
                    f"roles.{role}",
                    f"`{source}` is a policy of a loop, and this recipe has no rounds; write "
                    "`start`, a path, or a Hub id with its @revision",
                )

    def _row_conflicts(self) -> Iterator[Conflict]:
        """The objective's own kind of rows, and no other."""
        name, wanted = self.objective.name, self.learns_from
        other = "pairs" if wanted == "groups" else "groups"
        given = getattr(self.data, other) is not None
        if given:
            yield f"data.{other}", f"objective {name} learns from {wanted}: write data.{wanted}"
        elif getattr(self.data, wanted) is None:
            yield f"data.{wanted}", "is missing; write a file, a folder, a Hub id or world:sums"

    def _loop_conflicts(self) -> Iterator[Conflict]:
        if self.prompts is None:
            yield "prompts", "is missing; a loop asks its policy: `prompts: {source: <file>}`"
        for key in ("pairs", "groups"):
            if getattr(self.data, key) is not None:
                yield (
                    f"data.{key}",
                    f"a loop makes its own {key}; take it out, or take `rounds` out",
                )
        if self.evaluate.needs_pairs and self.data.eval_pairs is None:
            yield (
                "evaluate.suite",
                f"{self.evaluate.pair_readers[0]} needs rows to evaluate on, and a loop holds none "
                "out; write `eval_pairs` under data, or name a world",
            )
        for role, source in self.roles.given.items():
            if source.startswith("ema:") and self.model.use_peft:
                yield (
                    f"roles.{role}",
                    "the mean of two adapters is not the adapter of the mean; write `round_start`, "
                    "or train all weights",
                )
        ran = [stage.run for stage in self.each_round]
        has_benchmark = any(isinstance(entry, Benchmark) for entry in self.evaluate.suite)
        if has_benchmark and "evaluate" not in ran:
            yield (
                "evaluate.suite",
                "no stage measures a benchmark; write `- {run: evaluate}` behind train",
            )
        by_curriculum = self.prompts is not None and self.prompts.curriculum is not None
        if by_curriculum and not {"generate", "judge"} <= {*ran}:
            yield (
                "prompts.curriculum",
                "it follows what a judge stage says of the generate stage's completions; write "
                "both under each_round, or take it out",
            )
        if "train" not in ran:
            yield "each_round", "no stage trains; write `- {run: train}` behind the select stage"
        for name in ("generate", "judge", "select", "train", "evaluate"):
            if ran.count(name) > 1:
                yield "each_round", f"{name} stands {ran.count(name)} times; keep one"

    def _shared_conflicts(self) -> Iterator[Conflict]:
        for role in ROLES:
            if role in self.objective.needs and role not in self.roles.given:
                hint = "for the policy's own start" if role != "guide" else "or a path to the guide"
                yield (
                    f"roles.{role}",
                    f"{self.objective.name} needs it; write `{role}: start` {hint}",
                )
        without_rows = not self.data.held_out and self.data.eval_pairs is None
        over_groups = self.learns_from == "groups"
        if over_groups:
            yield from self._group_conflicts()
        elif without_rows and not self.is_loop and self.train.eval_strategy != "no":
            yield (
                "train.eval_strategy",
                "there are no rows to evaluate on; write `held_out: 0.05` or eval_pairs under data",
            )
        if without_rows and not (self.is_loop or over_groups) and self.evaluate.needs_pairs:
            yield (
                "evaluate.suite",
                f"{(reader := self.evaluate.pair_readers[0])} needs rows to evaluate on; write "
                f"`held_out: 0.05` or eval_pairs under data, or take {reader} out",
            )
        for name in self.evaluate.worlds:
            model = self.model.model_name_or_path
            if self.model.is_world and model != f"{WORLD}{name}":
                yield (
                    "evaluate.suite",
                    f"{name} needs a model that knows its alphabet; write `model_name_or_path: "
                    f"world:{name}`",
                )
        for key in ("data.pairs", "data.groups", "prompts.source"):
            section, _, name = key.partition(".")
            source = str(getattr(getattr(self, section), name, ""))
            model = self.model.model_name_or_path
            if source.startswith(WORLD) and self.model.is_world and model != source:
                yield (
                    key,
                    f"{source} is asked of its own model; write `model_name_or_path: {source}`",
                )

    def _group_conflicts(self) -> Iterator[Conflict]:
        """What training on groups cannot do as training on pairs does."""
        data, train, name = self.data, self.train, self.objective.name
        if self.evaluate.needs_pairs and data.eval_pairs is None and not self.is_loop:
            yield (
                "evaluate.suite",
                f"{(reader := self.evaluate.pair_readers[0])} compares the two sides of pairs, and "
                f"{name} learns from groups; write `eval_pairs` under data, or take {reader} out",
            )
        if not data.held_out and not self.is_loop and train.eval_strategy != "no":
            yield (
                "train.eval_strategy",
                "there are no groups to evaluate on; write `held_out: 0.05` under data",
            )
        if "mismatched" not in self.objective.needs | self.objective.accepts:
            return
        if train.train_sampling_strategy != "sequential":
            yield (
                "train.train_sampling_strategy",
                f"{name} takes the completions of the row before each row, so rows come in their "
                "order; write `train_sampling_strategy: sequential`",
            )
        if train.per_device_train_batch_size < 2:
            yield (
                "train.per_device_train_batch_size",
                f"{name} needs another row in the same batch; write 2 or more",
            )


# Keys of a recipe that hold no mapping of keys.
PLAIN = ("rounds", "each_round")
SECTIONS: tuple[str, ...] = tuple(name for name in Recipe.model_fields if name not in PLAIN)
