"""The trainers' configuration: TRL's, less the switches of its own losses."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, TypeVar

from datasets import IterableDataset
from transformers import TrainingArguments
from trl.trainer.dpo_config import DPOConfig

from align.errors import RecipeError

# TRL's choice of its own losses. Only a trainer that turns them into an objective takes them.
LOSS_SWITCHES = {
    "loss_type": "the objective is the loss: pass `objective=...` or use a named trainer",
    "loss_weights": "a weighted mix is the objective `sum`: `SumConfig(of=[{'weight': ..., ...}])`",
    "ld_alpha": "it is `alpha` of the objective `ld_dpo`",
    "f_divergence_type": "it is `f_divergence` of the objective `dpo`",
    "f_alpha_divergence_coef": "it is `alpha` of the objective `dpo`",
    "discopop_tau": "it is `tau` of the objective `discopop`",
    "use_weighting": "it is `alignment` of the objective `wpo`, or `pair_weight` in a `sum`",
    "label_smoothing": "use objective `cdpo`, `exo` or `rdpo` (flip_probability)",
}
# These would be read by nobody; each with what to write instead.
REFUSED = LOSS_SWITCHES | {
    "beta": "beta is a field of the objective: `objective={'name': 'dpo', 'beta': 0.1}`",
    "use_liger_kernel": "the log-probs do not go through Liger's head",
    "include_for_metrics": "compute_metrics is given rewards, neither inputs nor losses",
    "batch_eval_metrics": "compute_metrics is called once, with the rewards of all pairs",
}

Config = TypeVar("Config", bound="PreferenceConfig")


@dataclass
class PreferenceConfig(DPOConfig):
    """`trl.DPOConfig` for any objective of this library.

    Args:
        token_budget: tokens of one forward pass at most, shared ones counted once and padding where
            there is any included; None means the whole batch at once, "auto" the largest that fits
            into memory when training begins. It moves the borders of forward passes only: the
            gradient is the same to rounding.
        train_sampling_strategy: order of the pairs. "group_by_prompt" keeps the pairs of one
            `group_id` (or, without that column, of one prompt) in one step, so that all of them
            share what they have in common; it makes the pairs of a step less independent, which is
            why it is off by default.
        on_too_long: what happens to a raw row longer than `max_length` tokens; `cut_completion` is
            what TRL does.
        max_dropped: fraction of raw rows that may be left out as unusable; over-long ones, which
            TRL leaves out too, are told and not counted.
        on_control_tokens: a control token's spelling in a raw row is split into ordinary tokens,
            or kept as the token: for texts that were rendered with a chat template beforehand.
        allow_change: names of settings that may differ from the checkpoint that a run resumes from.

    Raises:
        RecipeError: one of TRL's own loss switches is set.
    """

    token_budget: int | str | None = field(
        default=None,
        metadata={"help": "Tokens of one forward pass at most; None: the whole batch; or `auto`."},
    )
    train_sampling_strategy: str = field(
        default="random",
        metadata={
            "help": "Order of the pairs.",
            "choices": ["random", "sequential", "group_by_length", "group_by_prompt"],
        },
    )
    on_too_long: str = field(
        default="cut_completion",
        metadata={"help": "For rows over max_length: drop, cut_prompt, cut_completion or error."},
    )
    max_dropped: float = field(
        default=0.05,
        metadata={"help": "Fraction of raw rows that may be left out as unusable."},
    )
    on_control_tokens: str = field(
        default="split",
        metadata={
            "help": "For control tokens spelled in raw rows.",
            "choices": ["split", "keep", "drop", "error"],
        },
    )
    allow_change: list[str] = field(
        default_factory=list,
        metadata={"help": "Settings that may differ from the checkpoint that is resumed from."},
    )

    # Names of REFUSED that a named trainer's objective has a field for.
    own_fields = frozenset[str]()
    # Whether the trainer turns TRL's loss switches into its objective.
    takes_loss_switches = False

    def __post_init__(self) -> None:
        self.check_settings()
        super().__post_init__()

    def check_settings(self) -> None:
        """Refuses what would be silently dead, and reads what came as text.

        Raises:
            RecipeError: naming the setting.
        """
        defaults = {f.name: _default(f) for f in fields(DPOConfig)}
        taken = {*self.own_fields, *(LOSS_SWITCHES if self.takes_loss_switches else ())}
        for name, instead in REFUSED.items():
            value = getattr(self, name)
            default = defaults[name]
            unset = value == default or [value] == default
            if name not in taken and not unset:
                raise RecipeError(
                    f"{type(self).__name__}.{name} = {value!r} is one of TRL's own switches "
                    f"and would be silently dead here: {instead}."
                )
        if self.max_length is not None and self.max_length < 2:
            raise RecipeError(
                f"max_length is {self.max_length}; a prompt and a completion take two tokens at "
                "least. None means no limit."
            )
        if isinstance(self.token_budget, str) and self.token_budget != "auto":
            # From a command line everything is text.
            if not self.token_budget.isdigit():
                raise RecipeError(
                    f"token_budget is {self.token_budget!r}; it is a number of tokens, `auto`, or "
                    "None for the whole batch at once."
                )
            self.token_budget = int(self.token_budget)


def converted(args: TrainingArguments, kind: type[Config]) -> Config:
    """A plain `trl.DPOConfig` or `trl.KTOConfig` as `kind`, with every setting as it stands.

    A `kind`'s own settings keep their defaults. The object is not built anew: that would resolve
    once more what `TrainingArguments` has resolved already (precision, devices, lists).

    Raises:
        RecipeError: a setting that `kind` has no use for is set.
    """
    made: Any = copy.copy(args)
    made.__class__ = kind
    known = {f.name for f in fields(type(args))}
    for own in fields(kind):
        if own.name not in known:
            setattr(made, own.name, _default(own))
    made.check_settings()
    return made


def refuse_cut_beginnings(args: PreferenceConfig) -> None:
    """Refuses TRL's deprecated way to cut, which leaves the sides of a pair different prompts.

    Raises:
        RecipeError: naming what to write instead.
    """
    if args.truncation_mode == "keep_end" and args.max_length is not None:
        raise RecipeError(
            "truncation_mode='keep_end' is not supported for vision-language models, nor for "
            "others here: it cuts the beginning of each side by its own length, and the sides of "
            "a pair share their prompt. on_too_long='cut_prompt' cuts the prompt for both; the "
            "default 'keep_start' cuts the ends of completions."
        )


def refuse_precomputed_streams(args: PreferenceConfig, data: Any) -> None:
    """Refuses `precompute_ref_log_probs` for a stream, or a mapping that holds one.

    Raises:
        RecipeError: as TRL says it.
    """
    given = data.values() if isinstance(data, Mapping) else (data,)
    if args.precompute_ref_log_probs and any(isinstance(one, IterableDataset) for one in given):
        raise RecipeError(
            "precompute_ref_log_probs=True is not supported with IterableDataset: its rows are not "
            "known before training. Leave it out, and a stream is scored as it comes."
        )


@contextmanager
def scored_by_us(args: PreferenceConfig) -> Iterator[None]:
    """Inside, TRL does not score the reference itself: every role is scored by `scoring`."""
    wanted, args.precompute_ref_log_probs = args.precompute_ref_log_probs, False
    try:
        yield
    finally:
        args.precompute_ref_log_probs = wanted


def changed_switches(args: DPOConfig) -> list[str]:
    """Names of TRL's loss switches that are not at their defaults."""
    defaults = {f.name: _default(f) for f in fields(DPOConfig)}
    return [
        name
        for name in LOSS_SWITCHES
        if getattr(args, name) not in (defaults[name], [defaults[name]])
        and [getattr(args, name)] != defaults[name]
    ]


def _default(f: Any) -> Any:
    factory = getattr(f, "default_factory", MISSING)
    return factory() if factory is not MISSING else getattr(f, "default", None)
