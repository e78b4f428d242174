"""The run with the alpaca-eval package itself, where it is installed.

The package joins, draws the order of the outputs, parses the replies, scores and writes its files;
the judge is asked by us, so that every answer is stored, a failed one is asked again by the next
run, and neither the package's client nor its reference data, which datasets >= 4 cannot load, is
ever used. Tried with alpaca-eval 0.6.6, openai 3.52 and datasets 5.2.
"""

# pyright: basic
from __future__ import annotations

import importlib.util
import secrets
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from align.errors import MachineError
from align.servers.caller import CachedCaller
from align.servers.server import Reply
from align_eval.alpaca_eval.annotator import Found, Pairing, Reading, annotate, reasons_of
from align_eval.row_files import Row

INSTALL = "pip install 'alpaca-eval>=0.6.6' 'setuptools<81'"
# What the package needs to read a reply, by how it is read.
PARSERS: dict[Reading, dict[str, Any]] = {
    "logprobs": {
        "fn_completion_parser": "logprob_parser",
        "completion_parser_kwargs": {
            "numerator_token": "m",
            "denominator_tokens": ["m", "M"],
            "is_binarize": False,
        },
        "completion_key": "completions_all",
    },
    "text": {
        "fn_completion_parser": "regex_parser",
        "completion_parser_kwargs": {"outputs_to_match": {1: r"^\W*m\W*$", 2: r"^\W*M\W*$"}},
        "completion_key": "completions",
    },
}


def is_installed() -> bool:
    """Whether the package is there; that it can be imported is another matter."""
    return importlib.util.find_spec("alpaca_eval") is not None


def load_package() -> Any:
    """The package's module.

    Raises:
        MachineError: it is absent, or it fails on import; says what mends it.
    """
    try:
        import alpaca_eval  # pyright: ignore[reportMissingImports] - optional
    except ModuleNotFoundError as error:
        if error.name == "pkg_resources":
            raise MachineError(
                "alpaca-eval needs pkg_resources, which setuptools 81 and later no longer ship: "
                f"{INSTALL}, or write `runner: own`, which writes the same files."
            ) from error
        raise MachineError(
            f"alpaca-eval cannot be imported ({error}): {INSTALL}, or write `runner: own`, which "
            "writes the same files."
        ) from error
    except Exception as error:
        raise MachineError(
            f"alpaca-eval fails on import ({type(error).__name__}: {error}). Write `runner: own`, "
            "which writes the same files, or mend the package's installation."
        ) from error
    return alpaca_eval


def run_package(
    caller: CachedCaller,
    pairings: Sequence[Pairing],
    *,
    reading: Reading,
    generators: tuple[str, str],
    annotator: str,
    folder: Path,
) -> tuple[list[Row], dict[str, int]]:
    """Annotates and scores by the package; leaderboard.csv and annotations.json lie in `folder`.

    Returns:
        The package's annotations, with a row whose preference is null for each that it filters
        out, in the order of the pairings; and the failures by reason.

    Raises:
        MachineError: the package cannot be run.
        AlignError: what no other try can mend; what was answered by then is stored.
    """
    package = load_package()
    found = annotate(caller, pairings, reading=reading)
    by_instruction = dict(zip((p.instruction for p in pairings), found, strict=True))
    outputs = [
        [
            {"instruction": p.instruction, "output": text, "generator": name, "dataset": p.dataset}
            for p, text in zip(pairings, texts, strict=True)
        ]
        for name, texts in zip(
            generators,
            ([p.baseline for p in pairings], [p.model for p in pairings]),
            strict=True,
        )
    ]
    mark = f"|{secrets.token_hex(8)}|"

    def replies(prompts: Sequence[str], **_: Any) -> dict[str, list[Any]]:
        # The prompt is only the instruction behind a mark: the conversation is built by us.
        stored = [by_instruction[prompt.split(mark, 1)[1]] for prompt in prompts]
        return {
            "completions": [_text(one) for one in stored],
            "completions_all": [_completion(one) for one in stored],
            "price_per_example": [0.0] * len(stored),
            "time_per_example": [0.0] * len(stored),
        }

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        config = Path(place) / annotator.replace("/", "_")
        config.mkdir()
        (config / "prompt.txt").write_text(f"{{is_switched_outputs}}{mark}{{instruction}}")
        settings = {**PARSERS[reading], "prompt_template": str(config / "prompt.txt")}
        (config / "configs.yaml").write_text(yaml.safe_dump({annotator: settings}))
        try:
            _, annotations = package.evaluate(
                model_outputs=outputs[1],
                reference_outputs=outputs[0],
                annotators_config=str(config / "configs.yaml"),
                name=generators[1],
                output_path=str(folder),
                precomputed_leaderboard=None,
                is_return_instead_of_print=True,
                fn_metric="get_winrate",
                sort_by="win_rate",
                is_cache_leaderboard=False,
                annotation_kwargs={"chunksize": None},
                fn_completions=replies,
                caching_path=None,
            )
        except Exception as error:
            raise MachineError(
                f"alpaca-eval stopped ({type(error).__name__}: {str(error)[:200]}). The judge's "
                "answers are stored: write `runner: own`, and nothing is asked twice."
            ) from error
    rows = {row["instruction"]: dict(row) for row in annotations}
    missing = {"annotator": annotator, "preference": None}
    return [
        rows.get(p.instruction)
        or {
            "instruction": p.instruction,
            "output_1": p.baseline,
            "generator_1": generators[0],
            "output_2": p.model,
            "generator_2": generators[1],
            "dataset": p.dataset,
            **missing,
        }
        for p in pairings
    ], reasons_of(found)


def _text(one: Found) -> str:
    return one.reply.text if isinstance(one.reply, Reply) else ""


def _completion(one: Found) -> Any:
    """What the package's own client would hand to its parser of log-probs."""
    if not isinstance(one.reply, Reply):
        return ""
    logprobs = (one.reply.logprobs or {}).get("top_logprobs", [{}])
    likely = [{"token": token, "logprob": value} for token, value in logprobs[0].items()]
    return {
        "text": one.reply.text,
        "logprobs": {"content": [{"top_logprobs": likely}]},
    }
