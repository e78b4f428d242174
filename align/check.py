"""The dry run behind `align check`: rows, token invariants, one example, memory and disk.

`check` computes from what it is given and loads no weights: parameters are counted on a model built
on torch's meta device. The estimates, in bytes:

    weights      parameters x width of their type; 8-bit 1; 4-bit 0.5 + 4/64 (a float32 scale per 64
                 weights), nested 0.5 + 1/64 + 4/(64 x 256) (Dettmers et al., arXiv:2305.14314)
    gradients    trained parameters x width of their type
    optimizer    trained parameters x states of the optimizer x width of a state
    activations  tokens x layers x 34 x hidden, twice that in float32 (Korthikanti et al.,
                 arXiv:2205.05198, eq. 2, without attention scores); with gradient checkpointing
                 tokens x hidden x width per layer, and the full figure for one layer
    logits       scored tokens x vocabulary x 2 float32, logits and gradient, of one chunk of the
                 LM head at most
    tokens       of the longest pairs that make a device's batch, the prompt of a pair once; at most
                 the token budget, unless one pair is longer. A model that cannot share prompts
                 computes each one twice, and padding

Frozen roles are scored before training and cached, so they take no memory beside the policy.
"""

from __future__ import annotations

import math
import re
import shutil
import statistics
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import nn

from align.errors import DataError, MachineError, RecipeError
from align.recipe import Recipe, Train, notices
from align.records import RowPolicy, RowReport
from align.tokens import TokenizedPair

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

_WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2}
_FLOAT32 = 4

# States per parameter and bytes of one; None is the parameter's own type. Factored and low-rank
# optimizers keep next to nothing; who is not named counts as Adam.
_OPTIMIZER_STATES: dict[str, tuple[int, float | None]] = {
    "sgd": (0, None),
    "adafactor": (0, None),
    "lomo": (0, None),
    "adalomo": (0, None),
    "adagrad": (1, None),
    "rmsprop": (1, None),
    "schedule_free_sgd": (1, None),
    "rmsprop_bnb": (1, 4),
    "rmsprop_bnb_32bit": (1, 4),
    "rmsprop_bnb_8bit": (1, 1),
    "lion_32bit": (1, 4),
    "paged_lion_32bit": (1, 4),
    "lion_8bit": (1, 1),
    "paged_lion_8bit": (1, 1),
    "adamw_torch_4bit": (2, 0.5),
    "adamw_torch_8bit": (2, 1),
    "adamw_8bit": (2, 1),
    "adamw_bnb_8bit": (2, 1),
    "paged_adamw_8bit": (2, 1),
    "paged_adamw_32bit": (2, 4),
    "ademamix": (3, 4),
    "paged_ademamix_32bit": (3, 4),
    "ademamix_8bit": (3, 1),
    "paged_ademamix_8bit": (3, 1),
}
_ADAM = (2, None)


@dataclass(frozen=True)
class Machine:
    """What is free here, in bytes."""

    free_disk: int
    free_memory: int
    memory_of: str

    @classmethod
    def here(cls, run: Path, *, use_cpu: bool = False) -> Machine:
        """This machine, with the disk that `run` will lie on."""
        existing = next(
            folder for folder in (run.absolute(), *run.absolute().parents) if folder.exists()
        )
        if torch.cuda.is_available() and not use_cpu:
            free, memory_of = torch.cuda.mem_get_info()[0], "the GPU"
        else:
            free, memory_of = psutil.virtual_memory().available, "this machine"
        return cls(shutil.disk_usage(existing).free, free, memory_of)


@dataclass(frozen=True)
class Lengths:
    """Lengths of one part of all rows, in tokens; `p95` is the nearest rank."""

    minimum: int
    median: float
    p95: int
    maximum: int

    @classmethod
    def of(cls, lengths: Sequence[int]) -> Lengths:
        """The statistics of at least one length."""
        ranked = sorted(lengths)
        p95 = ranked[math.ceil(0.95 * len(ranked)) - 1]
        return cls(ranked[0], statistics.median(ranked), p95, ranked[-1])

    def __str__(self) -> str:
        return f"min {self.minimum}, median {self.median:g}, p95 {self.p95}, max {self.maximum}"


@dataclass(frozen=True)
class Parameters:
    """How many parameters the policy has: all, trained ones, its adapter's, quantised ones."""

    total: int
    trained: int
    adapter: int
    quantised: int


@dataclass(frozen=True)
class Memory:
    """Bytes on one device while training."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(getattr(self, part.name) for part in fields(self))


@dataclass(frozen=True)
class Disk:
    """Bytes in the run's folder and the caches, at their most."""

    checkpoint: int
    checkpoints: int
    model: int
    caches: int

    @property
    def total(self) -> int:
        """All of it; `checkpoints` counts those kept at once."""
        return self.checkpoint * self.checkpoints + self.model + self.caches


@dataclass(frozen=True)
class CheckReport:
    """What a recipe would train on and what it would take."""

    rows: str
    pairs: int
    held_out: int
    lengths: dict[str, Lengths]
    steps: int
    parameters: Parameters
    memory: Memory
    disk: Disk
    machine: Machine
    warnings: tuple[str, ...]
    example: str | None

    def __str__(self) -> str:
        """The report for people."""
        memory = ", ".join(
            f"{f.name} {_size(getattr(self.memory, f.name))}" for f in fields(Memory)
        )
        lines = [
            f"rows: {self.rows}",
            f"pairs: {self.pairs} to train on, {self.held_out} held out, {self.steps} steps",
            *(f"{part} tokens: {lengths}" for part, lengths in self.lengths.items()),
            "token invariants: hold on every pair",
            f"parameters: {self.parameters.total:,}, trained {self.parameters.trained:,}",
            f"memory: about {_size(self.memory.total)} per process ({memory}); "
            f"{_size(self.machine.free_memory)} free on {self.machine.memory_of}",
            f"disk: about {_size(self.disk.total)} ({self.disk.checkpoints} checkpoints of "
            f"{_size(self.disk.checkpoint)}, model {_size(self.disk.model)}, caches "
            f"{_size(self.disk.caches)}); {_size(self.machine.free_disk)} free",
            *(f"warning: {warning}" for warning in self.warnings),
        ]
        if self.example is not None:
            lines += ["", self.example]
        return "\n".join(lines)


def check(
    recipe: Recipe,
    *,
    train: Sequence[TokenizedPair],
    held_out: Sequence[TokenizedPair],
    report: RowReport,
    tokenizer: PreTrainedTokenizerBase,
    model_config: PreTrainedConfig,
    run_dir: Path,
    machine: Machine | None = None,
    processes: int = 1,
    show_example: bool = False,
) -> CheckReport:
    """Everything about a run that can be known before it.

    Args:
        recipe: what would be trained.
        train: the rows to train on.
        held_out: the rows to evaluate on.
        report: the count of all rows read.
        tokenizer: the one that encoded the rows.
        model_config: of the policy.
        run_dir: where the run would lie.
        machine: what is free; None asks this machine.
        processes: that share the work, one device each.
        show_example: render the first pair; preference data holds offensive text.

    Raises:
        DataError: no row, a broken token invariant, or columns that do not suit the objective.
        RecipeError: a role's folder does not exist.
        MachineError: the disk does not suffice.
    """
    machine = machine or Machine.here(run_dir, use_cpu=recipe.train.use_cpu)
    # A model that reads pictures has a processor around its tokenizer.
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    if not train:
        raise DataError(
            f"No pair is left to train on: {report.summary()} Mend the rows or data.pairs."
        )
    _check_invariants([*train, *held_out], tokenizer, recipe.data, model_config)
    check_columns(recipe, train)
    check_roles(recipe)
    steps = optimizer_steps(recipe.train, len(train), processes)
    parameters = count_parameters(recipe, model_config)
    memory = estimate_memory(recipe, train, parameters, model_config)
    disk = estimate_disk(recipe, [*train, *held_out], parameters, model_config, steps)
    if disk.total > machine.free_disk:
        raise MachineError(
            f"The run needs about {_size(disk.total)} of disk ({disk.checkpoints} checkpoints of "
            f"{_size(disk.checkpoint)}, model {_size(disk.model)}, caches {_size(disk.caches)}) "
            f"and {_size(machine.free_disk)} are free: set train.save_total_limit: 1, raise "
            "train.save_steps, or name a --run folder on another disk."
        )
    return CheckReport(
        rows=report.summary().rstrip("."),
        pairs=len(train),
        held_out=len(held_out),
        lengths={
            "prompt": Lengths.of([len(row.prompt_ids) for row in train]),
            "chosen": Lengths.of([len(row.chosen_ids) for row in train]),
            "rejected": Lengths.of([len(row.rejected_ids) for row in train]),
        },
        steps=steps,
        parameters=parameters,
        memory=memory,
        disk=disk,
        machine=machine,
        warnings=tuple(
            _warnings(recipe, train, held_out, tokenizer, steps, memory, machine, processes)
        ),
        example=_render(train[0], tokenizer) if show_example else None,
    )


def broken_invariant(
    row: TokenizedPair, tokenizer: PreTrainedTokenizerBase, policy: RowPolicy, vocabulary: int
) -> str | None:
    """The first promise of `align.tokens` that a row does not keep; None when it keeps all.

    Args:
        row: token ids of a pair.
        tokenizer: the one that encoded it.
        policy: that it was encoded under.
        vocabulary: rows of the model's embedding.
    """
    sides = {"chosen": row.chosen_ids, "rejected": row.rejected_ids}
    if not row.prompt_ids:
        return "the prompt has no token"
    # Where a picture stands in the prompt only its processor knows.
    if not {"cut_prompt", "control_tokens_split"} & set(row.notes) and not row.pair.images:
        seen = _generation_ids(row, tokenizer)
        if seen[: len(row.prompt_ids)] != row.prompt_ids:
            return "the prompt's tokens are not those that generation would see"
    bos = tokenizer.bos_token_id
    if bos is not None and row.prompt_ids[:2] == [bos, bos]:
        return "the prompt begins with two BOS tokens"
    for side, ids in sides.items():
        if len(ids) < policy.min_completion_tokens:
            return f"{side} has {len(ids)} tokens, fewer than data.min_completion_tokens"
        if policy.max_length is not None and len(row.prompt_ids) + len(ids) > policy.max_length:
            return f"prompt and {side} have more tokens than data.max_length"
        if bos is not None and bos in ids[:-1]:
            return f"{side} holds a BOS token"
        if getattr(row.pair, f"{side}_ends") is False:
            if _control_ids(tokenizer) & set(ids):
                return f"{side} is the beginning of an answer and holds a control token"
        elif "cut_completion" not in row.notes:
            if ids[-1] not in _end_ids(row, tokenizer):
                return f"{side} does not end with an end token"
            if ids.count(ids[-1]) > 1:
                return f"{side} holds its end token more than once"
        weight = getattr(row.pair, f"{side}_token_weight")
        if weight is not None and len(weight) < len(ids):
            return f"{side} has fewer token weights than tokens"
        beyond = max(*row.prompt_ids, *ids)
        if beyond >= vocabulary:
            return f"token id {beyond} has no row in the model's embedding of {vocabulary}"
    if row.chosen_ids == row.rejected_ids:
        return "chosen and rejected are the same tokens"
    return None


def _generation_ids(row: TokenizedPair, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    prompt = row.pair.prompt
    if isinstance(prompt, str):
        return list(tokenizer(prompt, verbose=False)["input_ids"])
    messages = [{"role": message.role, "content": message.content} for message in prompt]
    ids: Any = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    return list(ids)


def _end_ids(row: TokenizedPair, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    if isinstance(row.pair.prompt, str) and "given_ids" not in row.notes:
        return {tokenizer.eos_token_id} if isinstance(tokenizer.eos_token_id, int) else set()
    # Templates end a turn with a token of their own (`<|im_end|>`), not always a special one; a
    # model's generation config may name more of them.
    return {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}


def _control_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Special tokens; an unknown character is none."""
    return {i for i in tokenizer.all_special_ids if i != tokenizer.unk_token_id}


def _check_invariants(
    rows: Sequence[TokenizedPair],
    tokenizer: PreTrainedTokenizerBase,
    policy: RowPolicy,
    model_config: PreTrainedConfig,
) -> None:
    vocabulary = model_config.get_text_config().vocab_size
    broken = [
        f"{row.pair.source}:{row.pair.row}: {problem}"
        for row in rows
        if (problem := broken_invariant(row, tokenizer, policy, vocabulary)) is not None
    ]
    if broken:
        raise DataError(
            f"{len(broken)} of {len(rows)} pairs break a token invariant: {'; '.join(broken[:3])}. "
            "Take these rows out, or mend the tokenizer's chat template so that a prompt is a "
            "prefix of its answer and an answer has one end token."
        )


def check_columns(recipe: Recipe, pairs: Sequence[TokenizedPair]) -> None:
    """Whether the rows carry what the objective needs, and nothing that it would ignore.

    Raises:
        DataError: naming the column.
    """
    objective = recipe.objective
    if "score" in objective.needs:
        without = [p for p in pairs if p.pair.chosen_score is None or p.pair.rejected_score is None]
        if without:
            first = without[0].pair
            raise DataError(
                f"Objective `{objective.name}` needs scores, and {len(without)} of {len(pairs)} "
                f"pairs have none (first: {first.source}:{first.row}): give every row chosen_score "
                "and rejected_score, or choose an objective without `score`."
            )
    for column, field in (("preference", "preference"), ("chosen_token_weight", "token_weight")):
        carried = all(getattr(pair.pair, column) is not None for pair in pairs)
        if carried and field not in objective.needs | objective.accepts:
            raise DataError(
                f"The pairs carry `{column}`, and objective `{objective.name}` has no form that "
                "honours it: leave that column out, or choose an objective that accepts it."
            )


def check_roles(recipe: Recipe) -> None:
    """Whether the folders of the roles that the objective needs are there.

    Raises:
        RecipeError: naming the role.
    """
    for role, source in recipe.roles.given.items():
        is_folder = source != "start" and "@" not in source
        hub_id = source if re.fullmatch(r"\w[\w.-]*/[\w.-]+", source) else "owner/name"
        if role in recipe.objective.needs and is_folder and not Path(source).exists():
            raise RecipeError(
                f"roles.{role}: there is no folder {source!r}; write one that `save_pretrained` "
                "made, `start` for the policy before training, or a Hub id with its revision, "
                f"`{hub_id}@main`, better with a commit hash."
            )


def optimizer_steps(train: Train, pairs: int, processes: int) -> int:
    """Optimizer steps of a whole run, as transformers counts them."""
    if train.max_steps > 0:
        return train.max_steps
    per_batch = train.per_device_train_batch_size * processes
    batches = pairs // per_batch if train.dataloader_drop_last else math.ceil(pairs / per_batch)
    per_epoch = max(1, math.ceil(batches / train.gradient_accumulation_steps))
    return math.ceil(train.num_train_epochs * per_epoch)


def count_parameters(recipe: Recipe, model_config: PreTrainedConfig) -> Parameters:
    """Parameters of the policy with its adapter, counted on the meta device."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"), warnings.catch_warnings():
        # peft 0.21 reads names whose end transformers 5.23 announces.
        warnings.simplefilter("ignore", FutureWarning)
        model = AutoModelForCausalLM.from_config(
            model_config,
            attn_implementation="eager",
            trust_remote_code=recipe.model.trust_remote_code,
        )
        total = sum(p.numel() for p in model.parameters())
        quantised = 0
        if recipe.model.load_in_4bit or recipe.model.load_in_8bit:
            head = model.get_output_embeddings()
            linear = (m for m in model.modules() if isinstance(m, nn.Linear) and m is not head)
            quantised = sum(layer.weight.numel() for layer in linear)
        if not recipe.model.use_peft:
            return Parameters(total=total, trained=total, adapter=0, quantised=0)
        from peft import get_peft_model

        from align.trainers.run import adapter_of

        adapted = get_peft_model(model, adapter_of(recipe.model))
        adapter = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    return Parameters(total=total + adapter, trained=adapter, adapter=adapter, quantised=quantised)


def _loaded_width(recipe: Recipe, model_config: PreTrainedConfig) -> int:
    """Bytes of a weight as it is loaded."""
    if recipe.model.dtype != "auto":
        return _WIDTH[recipe.model.dtype]
    saved = str(getattr(model_config, "dtype", None)).removeprefix("torch.")
    return _WIDTH.get(saved, _FLOAT32)


def _trained_bytes(recipe: Recipe, parameters: Parameters, model_config: PreTrainedConfig) -> int:
    # peft keeps an adapter in float32 under half-precision weights.
    width = _FLOAT32 if recipe.model.use_peft else _loaded_width(recipe, model_config)
    return parameters.trained * width


def _optimizer_bytes(recipe: Recipe, parameters: Parameters, trained: int) -> int:
    states, width = _OPTIMIZER_STATES.get(recipe.train.optim, _ADAM)
    return states * (trained if width is None else math.ceil(parameters.trained * width))


def estimate_memory(
    recipe: Recipe,
    pairs: Sequence[TokenizedPair],
    parameters: Parameters,
    model_config: PreTrainedConfig,
) -> Memory:
    """Bytes that training takes on one device; the module's docstring holds the formulas."""
    from align.forest.head import CHUNK

    config = model_config.get_text_config()
    width = _loaded_width(recipe, model_config)
    frozen_in_bits = 0.0
    if recipe.model.load_in_4bit:
        scales = 1 / 64 + 4 / (64 * 256) if recipe.model.use_bnb_nested_quant else 4 / 64
        frozen_in_bits = parameters.quantised * (0.5 + scales)
    elif recipe.model.load_in_8bit:
        frozen_in_bits = float(parameters.quantised)
    plain = parameters.total - parameters.quantised - parameters.adapter
    trained = _trained_bytes(recipe, parameters, model_config)
    sizes = sorted(
        (len(p.prompt_ids) + len(p.chosen_ids) + len(p.rejected_ids) for p in pairs), reverse=True
    )
    tokens = sum(sizes[: recipe.train.per_device_train_batch_size])
    if isinstance(recipe.train.token_budget, int):
        tokens = min(tokens, max(recipe.train.token_budget, sizes[0]))
    half = width == 2 or recipe.train.bf16 or recipe.train.fp16
    value = 2 if half else _FLOAT32
    layer = 34 * config.hidden_size * value // 2
    per_token = config.num_hidden_layers * layer
    if recipe.train.gradient_checkpointing:
        per_token = config.num_hidden_layers * config.hidden_size * value + layer
    return Memory(
        weights=math.ceil(frozen_in_bits) + plain * width + parameters.adapter * _FLOAT32,
        gradients=trained,
        optimizer=_optimizer_bytes(recipe, parameters, trained),
        activations=tokens * per_token,
        logits=min(tokens * config.vocab_size, CHUNK) * 2 * _FLOAT32,
    )


def estimate_disk(
    recipe: Recipe,
    rows: Sequence[TokenizedPair],
    parameters: Parameters,
    model_config: PreTrainedConfig,
    steps: int,
) -> Disk:
    """Bytes of checkpoints kept at once, the finished model, tokenised pairs and role scores."""
    train = recipe.train
    model = _trained_bytes(recipe, parameters, model_config)
    optimizer = 0 if train.save_only_model else _optimizer_bytes(recipe, parameters, model)
    match train.save_strategy:
        case "no":
            saves = 0
        case "epoch":
            saves = math.ceil(train.num_train_epochs)
        case _:
            every = (
                train.save_steps if train.save_steps >= 1 else math.ceil(train.save_steps * steps)
            )
            saves = math.ceil(steps / every)  # the last step is always saved
    # The new checkpoint is whole before the oldest goes.
    kept = saves if train.save_total_limit is None else min(saves, train.save_total_limit + 1)
    completions = sum(len(row.chosen_ids) + len(row.rejected_ids) for row in rows)
    prompts = sum(len(row.prompt_ids) for row in rows)
    sources = {s for r, s in recipe.roles.given.items() if r in recipe.objective.needs}
    ids = 8 * (prompts + completions)
    return Disk(
        checkpoint=model + optimizer,
        checkpoints=kept,
        model=model,
        caches=ids + _FLOAT32 * completions * len(sources),
    )


def _warnings(
    recipe: Recipe,
    pairs: Sequence[TokenizedPair],
    held_out: Sequence[TokenizedPair],
    tokenizer: PreTrainedTokenizerBase,
    steps: int,
    memory: Memory,
    machine: Machine,
    processes: int,
) -> Iterator[str]:
    yield from notices(recipe)
    train = recipe.train
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id == tokenizer.eos_token_id:
        yield (
            "the pad token is the end token; masks come from lengths here, but tools that mask by "
            "token id would hide the end of every completion from this model"
        )
    if train.per_device_train_batch_size * processes > len(pairs):
        yield (
            f"train.per_device_train_batch_size: {train.per_device_train_batch_size} on "
            f"{processes} processes is more than all {len(pairs)} pairs; every step sees them all"
        )
    if not held_out and "preference" in recipe.evaluate.suite:
        yield "evaluate.suite: no pair is held out, so preference has nothing to measure"
    if train.warmup_steps >= 1 and train.warmup_steps >= steps and train.max_steps < 1:
        yield f"train.warmup_steps: warm-up lasts as long as the whole run of {steps} steps"
    if memory.total > machine.free_memory:
        yield (
            f"memory: about {_size(memory.total)} is more than the {_size(machine.free_memory)} "
            f"free on {machine.memory_of}; lower train.per_device_train_batch_size, or train an "
            "adapter"
        )
    scored = all(pair.pair.chosen_score is not None for pair in pairs)
    if scored and "score" not in recipe.objective.needs | recipe.objective.accepts:
        yield f"chosen_score, rejected_score: {recipe.objective.name} does not read them"


def _render(row: TokenizedPair, tokenizer: PreTrainedTokenizerBase) -> str:
    """The first pair as text, every control token spelled out, and where a side goes on."""
    parts = {"prompt": row.prompt_ids, "chosen": row.chosen_ids, "rejected": row.rejected_ids}
    text = {
        name: tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        for name, ids in parts.items()
    }
    open_sides = {
        "chosen": row.pair.chosen_ends is False,
        "rejected": row.pair.rejected_ends is False,
    }
    counts = {
        name: f"{len(ids)} tokens, a beginning without end token"
        if open_sides.get(name)
        else f"{len(ids)} tokens"
        for name, ids in parts.items()
    }
    return "\n".join(f"--- {name} ({counts[name]}) ---\n{text[name]}" for name in parts)


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
