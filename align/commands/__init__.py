"""What the commands do: here rows, policies, training, measuring and publishing meet.

The only module of the library that may import the rooms below it.
"""

from __future__ import annotations

import inspect
import logging
import random
import shutil
import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.errors import AlignError, DataError, MachineError, RecipeError
from align.manifest import damage
from align.recipe import (
    Data,
    DataRecipe,
    EvalRecipe,
    Model,
    Recipe,
    kind_of,
    load_data_recipe,
    load_eval_recipe,
    load_recipe,
    recipe_key,
    resolved_yaml,
)
from align.runs import RunFolder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from datasets import Dataset
    from rich.table import Table
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from align.records import PreferencePair, RowReport
    from align.tokens import TokenizedPair

logger = logging.getLogger("align")

DEFAULT_MEASURED = 1024


@dataclass(frozen=True)
class Pairs:
    """Tokenised pairs of a recipe, and the count of every row that was read."""

    train: list[TokenizedPair]
    held_out: list[TokenizedPair]
    report: RowReport

    def counts(self) -> dict[str, Any]:
        """Rows read, kept, dropped by reason, trained on and held out."""
        stored = self.report.to_json()
        return {
            "read": stored["read"],
            "kept": stored["kept"],
            "dropped": stored["dropped"],
            "notes": stored["notes"],
            "train": len(self.train),
            "held_out": len(self.held_out),
        }


def train_recipe(
    path: Path, overrides: Sequence[str], run_path: Path | None, allow_change: Sequence[str]
) -> Table | None:
    """Everything between a recipe and a finished run's folder.

    Returns:
        The before/after table, on the main process; None on the others.
    """
    if kind_of(path, overrides) == "diffusion":
        return _train_diffusion(path, overrides, run_path)
    recipe = load_recipe(path, overrides)
    if recipe.is_loop:
        raise RecipeError(f"{path} has rounds: run `align loop {path}`.")
    run = RunFolder(run_path or default_run(path, recipe))

    import torch
    from accelerate import PartialState

    # Several CPU processes find each other only when the CPU is asked for.
    state = PartialState(cpu=recipe.train.use_cpu or not torch.accelerator.is_available())
    if state.is_main_process:
        run.claim(resolved_yaml(recipe))
    state.wait_for_everyone()
    try:
        if run.read_json("metrics.json") is None or damage(run.model) is not None:
            _train(recipe, run, state, allow_change)
        elif state.is_main_process:
            logger.info("%s is finished; nothing to do.", run.path)
        if not state.is_main_process:
            return None
        if recipe.hub.push or recipe.hub.dry_run:
            _push(recipe, run)
        from align.report.table import compare

        return compare([run.path])
    finally:
        run.release()


def _train_diffusion(path: Path, overrides: Sequence[str], run_path: Path | None) -> Table | None:
    from align.commands.diffusion import train_diffusion
    from align.recipe.diffusion import default_diffusion_run
    from align.recipe.diffusion_loading import load_diffusion_recipe
    from align.report.table import compare

    recipe = load_diffusion_recipe(path, overrides)
    run = RunFolder(run_path or default_diffusion_run(path, recipe))
    return None if train_diffusion(recipe, run) is None else compare([run.path])


def default_run(path: Path, recipe: Recipe | DataRecipe | EvalRecipe) -> Path:
    """outputs/<method>-<recipe>-<key>."""
    return Path("outputs") / f"{path.resolve().parent.name}-{path.stem}-{recipe_key(recipe)}"


def check_recipe(path: Path, overrides: Sequence[str], show_example: bool) -> str:
    """The dry run: recipe, rows, tokens, memory and disk, without training."""
    from align.check import check

    kind = kind_of(path, overrides)
    if kind == "data":
        from align.commands.data import check_data

        return check_data(load_data_recipe(path, overrides), show_example)
    if kind == "eval":
        from align.commands.evaluation import check_evaluations

        return check_evaluations(load_eval_recipe(path, overrides))
    recipe = load_recipe(path, overrides)
    if recipe.is_loop:
        from align.commands.check_loop import check_loop

        return check_loop(recipe, show_example)
    folder = policy_folder(recipe.model)
    tokenizer = load_tokenizer(recipe.model, folder)
    pairs = read_recipe_pairs(recipe, folder, tokenizer)
    config = load_config(recipe.model, folder)
    return str(
        check(
            recipe,
            train=pairs.train,
            held_out=pairs.held_out,
            report=pairs.report,
            tokenizer=tokenizer,
            model_config=config,
            run_dir=default_run(path, recipe),
            show_example=show_example,
        )
    )


def _train(recipe: Recipe, run: RunFolder, state: Any, allow_change: Sequence[str]) -> None:
    from datasets import Dataset

    from align.check import check_columns, check_roles
    from align.tokens import to_dataset
    from align.trainers.run import train_policy

    rows = run.path / "pairs"
    pairs: Pairs | None = None
    if state.is_main_process:
        with _recorded(run, "base"):
            folder = policy_folder(recipe.model)
    state.wait_for_everyone()
    folder = policy_folder(recipe.model)
    tokenizer = load_tokenizer(recipe.model, folder)
    load_config(recipe.model, folder)
    check_roles(recipe)
    if state.is_main_process:
        with _recorded(run, "pairs") as about:
            pairs = read_recipe_pairs(recipe, folder, tokenizer)
            check_columns(recipe, pairs.train)
            about |= pairs.counts()
            logger.info("%s", pairs.report.summary())
            run.write_json("data_report.json", pairs.report.to_json())
            shutil.rmtree(rows, ignore_errors=True)
            to_dataset(pairs.train).save_to_disk(str(rows / "train"))
            if pairs.held_out:
                to_dataset(pairs.held_out).save_to_disk(str(rows / "held_out"))
    state.wait_for_everyone()
    train: Dataset = Dataset.load_from_disk(str(rows / "train"))
    held_out = (
        Dataset.load_from_disk(str(rows / "held_out")) if (rows / "held_out").is_dir() else None
    )

    def evaluation(policy: PreTrainedModel, start: PreTrainedModel | None) -> dict[str, Any]:
        assert pairs is not None
        return measure(recipe, policy, start or policy, tokenizer, pairs.held_out)

    with _recorded(run, "train") if state.is_main_process else _nothing() as about:
        trained = train_policy(
            recipe, run, folder, tokenizer, train, held_out, evaluation, allow_change=allow_change
        )
        about |= {"roles": trained.roles, "versions": trained.versions}
    if not state.is_main_process:
        return
    assert pairs is not None
    run.write_json("log_history.json", trained.log_history)
    run.write_json(
        "metrics.json",
        {
            "before": trained.before,
            "after": trained.after,
            "n": recipe.evaluate.n or len(pairs.held_out),
            "seed": recipe.train.seed,
            "versions": trained.versions,
            "data": pairs.counts(),
            "roles": trained.roles,
            "probe": trained.probe,
            "forward": trained.forward,
        },
    )
    from align.cards import write_model_card

    write_model_card(run.path)
    _draw(run)


def _draw(run: RunFolder) -> None:
    from align.report.curves import plot_run_curves

    try:
        plot_run_curves(run.path)
    except AlignError as error:
        # The run is whole without its picture: matplotlib is missing, or too few steps were logged.
        logger.warning("No picture of the training curves: %s", error)


def _push(recipe: Recipe, run: RunFolder) -> None:
    from align.hub import push

    hub = recipe.hub
    assert hub.repo is not None
    pushed = push(run.path, hub.repo, private=hub.private, dry_run=hub.dry_run)
    logger.info("%s", pushed.listing())


def measure(
    recipe: Recipe,
    policy: PreTrainedModel,
    start: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    held_out: Sequence[TokenizedPair],
) -> dict[str, Any]:
    """The recipe's suite on one policy: `<measurement>/<metric>` -> value, low, high, n."""
    from eval.suite import run_suite

    report = run_suite(
        recipe.evaluate.suite,
        policy,
        tokenizer,
        reference=start,
        held_out_pairs=held_out,
        n=recipe.evaluate.n or DEFAULT_MEASURED,
        seed=recipe.evaluate.seed,
    )
    return {
        f"{name}/{key}": value for name, found in report.items() for key, value in found.items()
    }


def policy_folder(model: Model) -> str:
    """Folder or hub id of the start policy; a built-in one is built on the first call."""
    if not model.is_world:
        return model.model_name_or_path
    from align.worlds import world

    return str(world(model.model_name_or_path).base_model())


def _revision(model: Model, folder: str) -> dict[str, Any]:
    options: dict[str, Any] = {"trust_remote_code": model.trust_remote_code}
    if not Path(folder).is_dir():
        options["revision"] = model.model_revision
    return options


def load_tokenizer(model: Model, folder: str) -> Any:
    """The start policy's tokenizer, or its processor where it reads pictures; it can pad.

    Raises:
        RecipeError: there is no such folder or hub id, or it holds no tokenizer or processor.
        MachineError: the Hub cannot be reached.
    """
    from transformers import AutoProcessor, AutoTokenizer

    from align.trainers.loading import reads_images

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **_revision(model, folder))
    except Exception as error:  # tokenizers raises plain Exception for a damaged file
        raise _no_part_of_a_model("tokenizer", folder, error) from error
    if reads_images(load_config(model, folder)):
        try:
            processor = AutoProcessor.from_pretrained(folder, **_revision(model, folder))
        except Exception as error:  # torchvision is missing, or the folder has none
            raise _no_part_of_a_model("processor", folder, error) from error
        if processor.tokenizer.pad_token is None:
            processor.tokenizer.pad_token = processor.tokenizer.eos_token
        return processor
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_config(model: Model, folder: str) -> PreTrainedConfig:
    """The start policy's configuration.

    Raises:
        RecipeError: there is none, or none that this version of transformers knows.
        MachineError: the Hub cannot be reached.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, **_revision(model, folder))
    except (OSError, ValueError) as error:
        raise _no_part_of_a_model("configuration", folder, error) from error


def _no_part_of_a_model(part: str, folder: str, error: Exception) -> AlignError:
    from align.hub import is_out_of_reach

    how = "Write a folder that `save_pretrained` made, a Hub id, or world:sums."
    looks_local = folder.startswith((".", "/", "~")) or folder.count("/") > 1
    if Path(folder).is_dir():
        first = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(" .:")
        found = f"the folder {folder!r} holds no {part} that can be read ({first})"
    elif looks_local:
        found = f"there is no folder {folder!r}"
    elif is_out_of_reach(error):
        return MachineError(
            f"model.model_name_or_path: the Hub cannot be reached for {folder!r}, and it is not in "
            "the local cache. Check the network and HF_HUB_OFFLINE, or write a local folder."
        )
    else:
        first = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        found = f"no {part} could be loaded from {folder!r} ({first})"
    return RecipeError(f"model.model_name_or_path: {found}. {how}")


def read_recipe_pairs(recipe: Recipe, folder: str, tokenizer: PreTrainedTokenizerBase) -> Pairs:
    """Reads, or samples, the recipe's pairs, tokenises them and holds some out.

    Args:
        recipe: its `data` section.
        folder: of the start policy, from which a world samples.
        tokenizer: the start policy's.

    Raises:
        DataError: rows that cannot be read, or too many that cannot be used.
    """
    from align.tokens import encode_pairs
    from data_pipelines.sources import read_pairs

    data = recipe.data
    assert data.pairs is not None
    is_world = data.pairs.startswith("world:")
    source = _sampled(recipe, folder, tokenizer) if is_world else data.pairs
    pairs, report = read_pairs(
        str(source), split=data.split, revision=data.revision, format=data.format, policy=data
    )
    if data.limit is not None and len(pairs) > data.limit:
        beyond = len(pairs) - data.limit
        report.read -= beyond
        report.kept -= beyond
        report.notes["beyond_limit"] = beyond
        pairs = pairs[: data.limit]
    tokenized = encode_pairs(pairs, tokenizer, data, report)
    if data.eval_pairs is not None:
        return Pairs(tokenized, held_out_rows(recipe, tokenizer), report)
    train, held_out = hold_out(tokenized, data)
    return Pairs(train, held_out, report)


def held_out_rows(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> list[TokenizedPair]:
    """The rows of `data.eval_pairs`, tokenised; none where there are none.

    Raises:
        DataError: rows that cannot be read, or too many that cannot be used.
    """
    from align.tokens import encode_pairs
    from data_pipelines.sources import read_pairs

    data = recipe.data
    if data.eval_pairs is None:
        return []
    try:
        rows, report = read_pairs(
            data.eval_pairs, split=data.split, format=data.format, policy=data
        )
        return encode_pairs(rows, tokenizer, data, report)
    except (DataError, MachineError) as error:
        raise type(error)(str(error).replace("data.pairs", "data.eval_pairs")) from error


def hold_out(
    tokenized: Sequence[TokenizedPair], data: Data
) -> tuple[list[TokenizedPair], list[TokenizedPair]]:
    """Splits off `data.held_out` pairs, all pairs of one prompt on the same side, in their order.

    Raises:
        DataError: nothing would be left to train on, or a share of so few pairs is none.
    """
    wanted = round(data.held_out * len(tokenized)) if data.held_out < 1 else int(data.held_out)
    if data.held_out and not wanted:
        raise DataError(
            f"data.held_out is {data.held_out:g} of {len(tokenized)} pairs, which is none. Write a "
            "number of pairs, such as `held_out: 1`, or `held_out: 0` without preference in "
            "evaluate.suite."
        )
    if wanted == 0:
        return list(tokenized), []
    of_prompt: dict[tuple[Any, ...], list[int]] = {}
    for i, row in enumerate(tokenized):
        of_prompt.setdefault((*row.prompt_ids, row.pair.images), []).append(i)
    groups = list(of_prompt.values())
    random.Random(f"held_out/{data.seed}").shuffle(groups)
    held: set[int] = set()
    for group in groups:
        if len(held) >= wanted:
            break
        held.update(group)
    if len(held) == len(tokenized):
        raise DataError(
            f"data.held_out asks for {wanted} of {len(tokenized)} pairs, which leaves none to "
            "train on; lower it."
        )
    return (
        [row for i, row in enumerate(tokenized) if i not in held],
        [row for i, row in enumerate(tokenized) if i in held],
    )


def _sampled(recipe: Recipe, folder: str, tokenizer: PreTrainedTokenizerBase) -> Path:
    """A file of pairs that the start policy itself made, sampled once for the same settings."""
    from align.reference import tokenizer_digest, weights_digest
    from align.trainers.run import load_policy
    from align.worlds import game_or_task, generation
    from align.worlds.cache import cached_folder, made_by

    sample = recipe.data.sample
    assert sample is not None
    assert recipe.data.pairs is not None
    world = game_or_task(recipe.data.pairs)
    model = load_policy(recipe.model, folder)

    def build(target: Path) -> None:
        made = world.sample_pairs(
            model,
            tokenizer,
            problems=sample.prompts,
            samples_per_problem=sample.completions,
            temperature=sample.temperature,
            seed=sample.seed,
        )
        logger.info("Sampled from the start policy: %s", made)
        lines = [_line(pair) for pair in made.pairs]
        (target / "pairs.jsonl").write_text("".join(lines), encoding="utf-8")

    parts = {
        "policy": weights_digest(model),
        "tokenizer": tokenizer_digest(tokenizer),
        "sample": sample.model_dump(mode="json"),
        **made_by(str(inspect.getfile(type(world))), str(generation.__file__)),
    }
    return cached_folder(f"{world.name}-pairs", parts, build) / "pairs.jsonl"


def _line(pair: PreferencePair) -> str:
    # Provenance is the file's own: its rows are counted where they are read.
    return pair.model_dump_json(exclude={"source", "row"}, exclude_none=True) + "\n"


@contextmanager
def _recorded(run: RunFolder, step: str) -> Iterator[dict[str, Any]]:
    about: dict[str, Any] = {}
    started = time.monotonic()
    yield about
    run.record(step, time.monotonic() - started, about)


@contextmanager
def _nothing() -> Iterator[dict[str, Any]]:
    yield {}
