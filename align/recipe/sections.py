"""The sections of a recipe, save `train`: their keys, defaults, and what cannot stand together."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, Field

from align.loops.retention import Retention
from align.objectives import AnyObjective
from align.recipe.base import Conflict, Section
from align.recipe.evaluations import AnyEvaluation
from align.recipe.stages import AnyStage
from align.recipe.train import Train
from align.records import RowPolicy

WORLD_MODELS = ("world:sums", "world:styles", "world:scenes", "world:bytes")
WORLD_PROMPTS = ("world:sums", "world:styles", "world:scenes")
WORLD_PAIRS = ("world:sums", "world:styles")
_COMMIT_HASH = re.compile(r"[0-9a-f]{40}")


class Model(Section):
    """The policy that is trained: where it comes from, its precision, its adapter."""

    model_name_or_path: str = Field(min_length=1)
    """Local folder, Hub id, or a model built in code: world:sums, world:styles, world:scenes,
    world:bytes."""
    model_revision: str = Field(default="main", min_length=1)
    """Branch, tag or commit hash of a Hub model."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    """Type the weights are loaded in; auto takes the one they were saved in."""
    attn_implementation: str = Field(default="auto", min_length=1)
    """Attention backend: auto, eager, sdpa, flash_attention_2, ..."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model; needs a commit hash or a local folder."""
    use_peft: bool = False
    """Train a LoRA adapter in place of all weights."""
    lora_r: int = Field(default=16, ge=1)
    """Rank of the adapter."""
    lora_alpha: int = Field(default=32, ge=1)
    """Scale of the adapter: lora_alpha / lora_r multiplies its output."""
    lora_dropout: float = Field(default=0.05, ge=0, lt=1)
    """Share of the adapter's inputs set to zero while training."""
    lora_target_modules: tuple[str, ...] | None = None
    """Names of the layers that get an adapter; null takes peft's choice for the architecture."""
    lora_target_parameters: tuple[str, ...] | None = None
    """Names of parameters that get an adapter (experts of a mixture)."""
    lora_modules_to_save: tuple[str, ...] | None = None
    """Layers trained in full beside the adapter."""
    use_rslora: bool = False
    """Scale the adapter by lora_alpha / sqrt(lora_r)."""
    use_dora: bool = False
    """Weight-decomposed LoRA: direction and magnitude apart."""
    load_in_8bit: bool = False
    """Load the frozen weights in 8 bits (bitsandbytes); needs use_peft."""
    load_in_4bit: bool = False
    """Load the frozen weights in 4 bits (QLoRA, bitsandbytes); needs use_peft."""
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    """The 4-bit number format."""
    use_bnb_nested_quant: bool = False
    """Quantise the quantisation constants too: 0.4 bit per weight less."""
    bnb_4bit_quant_storage: Literal["uint8", "float16", "bfloat16", "float32"] | None = None
    """Type in which 4-bit weights are stored; FSDP wants that of the other weights."""

    @property
    def is_world(self) -> bool:
        """Whether the model is built in code."""
        return self.model_name_or_path.startswith("world:")

    def conflicts(self) -> Iterator[Conflict]:  # noqa: D102
        if self.is_world and self.model_name_or_path not in WORLD_MODELS:
            yield (
                "model_name_or_path",
                f"no built-in model {self.model_name_or_path!r}; there are "
                f"{', '.join(WORLD_MODELS)}",
            )
        pinned = _COMMIT_HASH.fullmatch(self.model_revision) is not None
        if self.trust_remote_code and not pinned and not Path(self.model_name_or_path).is_dir():
            yield (
                "trust_remote_code",
                "code from the Hub runs only from one known commit; write its 40-character hash "
                "as model.model_revision, or use a local folder",
            )
        if self.load_in_4bit and self.load_in_8bit:
            yield "load_in_8bit", "load_in_4bit is on as well; keep one of the two"
        for key in ("load_in_4bit", "load_in_8bit"):
            if getattr(self, key) and not self.use_peft:
                yield key, "quantised weights cannot be trained; add `use_peft: true`"


class Roles(Section):
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


ROLES: tuple[str, ...] = tuple(Roles.model_fields)
# Policies that only a loop has.
ROUND_POLICIES = ("round_start", "previous_round")


def ema_decay(source: str) -> float | None:
    """The decay in `ema:0.9`; None where there is none between 0 and 1."""
    number = source.removeprefix("ema:")
    if number == source or re.fullmatch(r"0?\.\d+", number) is None or not float(number):
        return None
    return float(number)


class Sample(Section):
    """How pairs are sampled from a built-in world's start policy."""

    prompts: int = Field(default=1024, ge=1)
    """Problems that the policy answers."""
    completions: int = Field(default=4, ge=2)
    """Answers per problem."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature."""
    seed: int = Field(default=0, ge=0)
    """Seed of problems and answers."""


def _sample_of_a_world(data: Mapping[str, Any]) -> Sample | None:
    return Sample() if str(data.get("pairs")).startswith("world:") else None


def _held_out_without_own_rows(data: Mapping[str, Any]) -> float:
    return 0 if data.get("eval_pairs") is not None else 0.05


class Prompts(Section):
    """What a loop's policy is asked."""

    source: str = Field(min_length=1)
    """File, folder or Hub id with a column `prompt` (or whole pairs), or world:sums."""
    split: str = Field(default="train", min_length=1)
    """Split of a Hub data set."""
    revision: str | None = Field(default=None, min_length=1)
    """Branch, tag or commit hash of a Hub data set."""
    per_round: int | None = Field(default=None, ge=1)
    """Prompts of one round; null takes all of them every round, and 256 of a world."""
    seed: int = Field(default=0, ge=0)
    """Seed of a world's prompts and of their order."""

    def conflicts(self) -> Iterator[Conflict]:  # noqa: D102
        if self.source.startswith("world:") and self.source not in WORLD_PROMPTS:
            known = ", ".join(WORLD_PROMPTS)
            yield "source", f"no world {self.source!r} with prompts; write one of {known}"


class Data(Section, RowPolicy):
    """The preference pairs, and what to do with rows that cannot be used as they are."""

    pairs: str | None = Field(default=None, min_length=1)
    """File, folder, Hub id, world:sums or world:styles; a loop makes its own."""
    split: str = Field(default="train", min_length=1)
    """Split of a Hub data set."""
    revision: str | None = Field(default=None, min_length=1)
    """Branch, tag or commit hash of a Hub data set."""
    format: Literal["auto", "trl", "hh", "sharegpt"] = "auto"
    """How the rows are written; auto recognises it."""
    eval_pairs: str | None = Field(default=None, min_length=1)
    """File, folder or Hub id with the rows to evaluate on; replaces held_out."""
    held_out: int | float = Field(default_factory=_held_out_without_own_rows, ge=0)
    """Pairs kept for evaluation: a number, or a share below 1; 0.05 without eval_pairs. A loop
    makes its pairs anew each round and keeps none."""
    limit: int | None = Field(default=None, ge=1)
    """Read at most so many pairs."""
    seed: int = Field(default=0, ge=0)
    """Seed of the choice of held-out pairs."""
    sample: Sample | None = Field(default_factory=_sample_of_a_world)
    """How the pairs of a world are sampled; only for pairs: world:*."""

    def conflicts(self) -> Iterator[Conflict]:  # noqa: D102
        is_world = self.pairs is not None and self.pairs.startswith("world:")
        if is_world and self.pairs not in WORLD_PAIRS:
            yield "pairs", f"no world {self.pairs!r}; write one of {', '.join(WORLD_PAIRS)}"
        if is_world and self.sample is None:
            yield "sample", f"{self.pairs} samples its pairs; write `sample: {{}}` for the defaults"
        if not is_world and self.sample is not None:
            yield (
                "sample",
                "only a world samples its pairs; write `pairs: world:sums`, or take this out",
            )
        if isinstance(self.held_out, float) and self.held_out >= 1:
            yield (
                "held_out",
                f"found {self.held_out}; write a share below 1, or a whole number of pairs",
            )
        if self.held_out and self.eval_pairs is not None:
            yield (
                "held_out",
                "eval_pairs already gives the rows to evaluate on; keep one of the two",
            )


class Evaluate(Section):
    """What is measured before and after training."""

    suite: tuple[Literal["preference", "sums", "styles", "scenes"], ...] = ("preference",)
    """preference (accuracy and margins on the held-out pairs) and names of worlds."""
    n: int | None = Field(default=None, ge=1)
    """Held-out pairs at most, and problems of a world; null means 1024."""
    seed: int = Field(default=0, ge=0)
    """Seed of problems and answers."""

    def conflicts(self) -> Iterator[Conflict]:  # noqa: D102
        if len(set(self.suite)) < len(self.suite):
            yield "suite", "an entry stands twice; keep one"


class Hub(Section):
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


class Recipe(Section):
    """One training run, complete: what `align train` reads and writes back as recipe.yaml."""

    model: Model
    """The policy that is trained."""
    roles: Roles = Roles()
    """The frozen policies that the objective compares with."""
    data: Data = Data()
    """The preference pairs."""
    prompts: Prompts | None = None
    """What a loop's policy is asked."""
    objective: AnyObjective
    """The formula and its hyper-parameters."""
    train: Train = Train()
    """How it is trained."""
    evaluate: Evaluate = Evaluate()
    """What is measured before and after."""
    hub: Hub = Hub()
    """Where the model is pushed."""
    rounds: int | None = Field(default=None, ge=1)
    """How many times a loop goes through its stages; without it the recipe trains once."""
    each_round: tuple[AnyStage, ...] = ()
    """A loop's stages, in order: generate, judge, select, train, evaluate."""
    keep: Retention = Retention()
    """Which old policies a loop keeps."""
    evaluations: tuple[AnyEvaluation, ...] = ()
    """What a loop's evaluate stage measures besides: alpaca_eval, arena_hard, win_rate, tasks."""

    @property
    def is_loop(self) -> bool:
        """Whether the recipe goes through rounds of stages."""
        return self.rounds is not None

    def conflicts(self) -> Iterator[Conflict]:  # noqa: D102
        yield from self._loop_conflicts() if self.is_loop else self._single_conflicts()
        yield from self._shared_conflicts()

    def _single_conflicts(self) -> Iterator[Conflict]:
        if self.data.pairs is None:
            yield "data.pairs", "is missing; write a file, a folder, a Hub id or world:sums"
        for key in ("prompts", "each_round"):
            if getattr(self, key):
                yield key, "belongs to a loop; write `rounds: 3` too, or take it out"
        if self.evaluations:
            yield (
                "evaluations",
                "belongs to a loop, or to a recipe of its own for `align eval`; take it out here",
            )
        for role, source in self.roles.given.items():
            if source in ROUND_POLICIES or source.startswith("ema:"):
                yield (
                    f"roles.{role}",
                    f"`{source}` is a policy of a loop, and this recipe has no rounds; write "
                    "`start`, a path, or a Hub id with its @revision",
                )

    def _loop_conflicts(self) -> Iterator[Conflict]:
        if self.prompts is None:
            yield "prompts", "is missing; a loop asks its policy: `prompts: {source: <file>}`"
        if self.data.pairs is not None:
            yield "data.pairs", "a loop makes its own pairs; take it out, or take `rounds` out"
        if "preference" in self.evaluate.suite and self.data.eval_pairs is None:
            yield (
                "evaluate.suite",
                "preference needs rows to evaluate on, and a loop holds none out; write "
                "`eval_pairs` under data, or name a world",
            )
        for role, source in self.roles.given.items():
            if source.startswith("ema:") and self.model.use_peft:
                yield (
                    f"roles.{role}",
                    "the mean of two adapters is not the adapter of the mean; write `round_start`, "
                    "or train all weights",
                )
        ran = [stage.run for stage in self.each_round]
        if self.evaluations and "evaluate" not in ran:
            yield "evaluations", "no stage measures; write `- {run: evaluate}` behind train"
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
        if without_rows and not self.is_loop and self.train.eval_strategy != "no":
            yield (
                "train.eval_strategy",
                "there are no rows to evaluate on; write `held_out: 0.05` or eval_pairs under data",
            )
        if without_rows and not self.is_loop and "preference" in self.evaluate.suite:
            yield (
                "evaluate.suite",
                "preference needs rows to evaluate on; write `held_out: 0.05` or eval_pairs under "
                "data, or take preference out",
            )
        for name in ("sums", "styles", "scenes"):
            model = self.model.model_name_or_path
            if name in self.evaluate.suite and self.model.is_world and model != f"world:{name}":
                yield (
                    "evaluate.suite",
                    f"{name} needs a model that knows its alphabet; write `model_name_or_path: "
                    f"world:{name}`",
                )
        for key in ("data.pairs", "prompts.source"):
            section, _, name = key.partition(".")
            source = str(getattr(getattr(self, section), name, ""))
            model = self.model.model_name_or_path
            if source in WORLD_PROMPTS and self.model.is_world and model != source:
                yield (
                    key,
                    f"{source} is asked of its own model; write `model_name_or_path: {source}`",
                )


# Keys of a recipe that hold no mapping of keys.
PLAIN = ("rounds", "each_round", "evaluations")
SECTIONS: tuple[str, ...] = tuple(name for name in Recipe.model_fields if name not in PLAIN)
OBJECTIVES: dict[str, type[BaseModel]] = {
    member.model_fields["name"].default: member for member in get_args(get_args(AnyObjective)[0])
}
