"""A folder to work in, a cache of the Hub and a judge's server, where recipes find what they name.

Nothing of a recipe is renamed: models lie in the cache under their Hub ids, data sets answer to
theirs, files lie where the recipe looks for them. What the table lacks is not there, as on a
machine without a network.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from align.policies.base import Failed, completion_of
from align.policies.in_process import InProcessPolicy
from align.worlds import scenes, shapes, styles, sums
from tests.align.judges.scripted import read as asked_pairwise
from tests.e2e.stand_in_models import BUILDERS
from tests.eval.judge_servers import OUTPUTS, LogprobServer, arena_judge

MODELS = {
    "RLHFlow/LLaMA3-SFT": "llama3",
    "meta-llama/Meta-Llama-3-8B-Instruct": "llama3",
    "sfairXC/FsfairX-LLaMA3-RM-v0.1": "reward_model",
    "HuggingFaceH4/mistral-7b-sft-beta": "zephyr",
    "alignment-handbook/zephyr-7b-sft-full": "zephyr",
    "mistralai/Mistral-7B-Instruct-v0.2": "mistral",
    "meta-llama/Llama-2-13b-chat-hf": "llama2",
    "llava-hf/llava-1.5-7b-hf": "llava",
    "Qwen/Qwen2.5-7B-Instruct": "qwen",
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "sd15",
    "stabilityai/stable-diffusion-xl-base-1.0": "sdxl",
}
# What the recipes' comments let the user make, train or fetch beforehand.
LOCAL_MODELS = {
    "outputs/reward-model": "reward_model",
    "outputs/inpo/model": "llama3",
    "outputs/whole-sft": "sums",
    "outputs/whole-reward": "sums_reward",
    "outputs/dpo-tiny": "sums_dpo",
    # Fetched from the package index, unless a folder of this name stands here.
    "smollm2-135m-instruct": "smollm2",
}
# Version -> categories, baselines.
ARENA_HARD = {
    "v0.1": (("arena-hard-v0.1",), ("gpt-4-0314",)),
    "v2.0": (
        ("hard_prompt", "creative_writing"),
        ("o3-mini-2025-01-31", "gemini-2.0-flash-001"),
    ),
}
COMMIT = "0123456789abcdef0123456789abcdef01234567"
ROWS = 14
Row = dict[str, Any]


def user(text: str) -> Row:
    return {"role": "user", "content": text}


def assistant(text: str) -> Row:
    return {"role": "assistant", "content": text}


def question(number: int) -> str:
    return f"What is the quick brown fox number {number}?"


def _trl_ultrafeedback(number: int) -> Row:
    asked = user(question(number))
    return {
        "chosen": [asked, assistant(f"It is {number}. The dog is lazy.")],
        "rejected": [asked, assistant("I cannot help with that.")],
        "score_chosen": 8.0,
        "score_rejected": 3.5,
    }


def _h4_ultrafeedback(number: int) -> Row:
    row = _trl_ultrafeedback(number)
    return {
        "prompt": question(number),
        "prompt_id": f"{number:064x}",
        **row,
        "messages": row["chosen"],
    }


def _ultrachat(number: int) -> Row:
    turns = [user(question(number)), assistant("A fox."), user("And?"), assistant("A dog.")]
    return {"prompt": question(number), "prompt_id": f"{number:064x}", "messages": turns}


def png(number: int) -> bytes:
    content = BytesIO()
    Image.new("RGB", (40, 36), (20 * number % 256, 90, 30)).save(content, "PNG")
    return content.getvalue()


def _transcript(number: int) -> Row:
    asked = f"\n\nHuman: {question(number)}\n\nAssistant:"
    return {"chosen": f"{asked} It is {number}.", "rejected": f"{asked} Who knows?"}


def _pickapic(number: int) -> Row:
    return {
        "jpg_0": png(number),
        "jpg_1": png(number + 7),
        "label_0": (1.0, 0.0, 1.0, 0.5)[number % 4],
        "label_1": (0.0, 1.0, 0.0, 0.5)[number % 4],
        "caption": "a quick fox",
        "has_label": True,
    }


DATA: Mapping[tuple[str, str], Callable[[int], Row]] = {
    ("trl-lib/ultrafeedback_binarized", "train"): _trl_ultrafeedback,
    ("HuggingFaceH4/ultrafeedback_binarized", "train_prefs"): _h4_ultrafeedback,
    ("HuggingFaceH4/ultrachat_200k", "train_sft"): _ultrachat,
    ("Anthropic/hh-rlhf", "train"): _transcript,
    ("Anthropic/hh-rlhf", "train[:2400]"): _transcript,
    ("yuvalkirstain/pickapic_v2", "train"): _pickapic,
}


def load_dataset(name: str, *, split: str, revision: str | None = None, streaming: bool = False):
    """In place of the function of the same name: the rows of `DATA`."""
    # Of `train[:2400]` there are fewer anyway.
    make = DATA.get((name, split.partition("[")[0]))
    if make is None:
        raise ConnectionError(f"no stand-in for {name}, split {split}")
    rows = datasets.Dataset.from_list([make(number) for number in range(ROWS)])
    return rows.to_iterable_dataset() if streaming else rows


def _lines(path: Path, rows: Sequence[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _gsm8k(number: int) -> Row:
    answer = 1 + number % 2
    return {
        "question": question(number),
        "answer": f"It is <<{answer}*1={answer}>>.\n#### {answer}",
    }


def _labelled(number: int) -> Row:
    return {
        "prompt": [user(question(number))],
        "chosen": [assistant("The quick fox.")],
        "rejected": [assistant("No.")],
    }


def _instructed(number: int) -> Row:
    return {
        "key": 1000 + number,
        "prompt": f"{question(number)} Use no commas.",
        "instruction_id_list": ["punctuation:no_comma"],
        "kwargs": [{}],
    }


def _verifiable(number: int) -> Row:
    return {
        "key": 1000 + number,
        "prompt": f"{question(number)} Use no comma.",
        "instruction_id_list": ["punctuation:no_comma"],
        "kwargs": [{}],
    }


def _arena_answer(model: str, number: int) -> Row:
    return {
        "uid": f"u{number}",
        "ans_id": "x",
        "model": model,
        "messages": [user(question(number)), {**assistant(""), "content": {"answer": "A fox."}}],
        "tstamp": 0.0,
        "metadata": {},
    }


def lay_files(folder: Path) -> None:
    """What recipes name by paths, beside the recipes themselves."""
    numbers = range(ROWS)
    # The shipped questions have answers that no random model finds.
    for questions in ("gsm8k_train.jsonl", "recipes/mcts_dpo/questions.jsonl"):
        _lines(folder / questions, [_gsm8k(n) for n in numbers])
    hh = folder.parent / "shared/data/hh_rlhf/hh_rlhf_harmless-base_test.jsonl.gz"
    hh.parent.mkdir(parents=True)
    rows = "".join(json.dumps(_transcript(n)) + "\n" for n in numbers)
    hh.write_bytes(gzip.compress(rows.encode(), mtime=0))
    for labelled in (
        "outputs/labelled.jsonl",
        # Of the quick start's first round.
        "outputs/quickstart/instructions/rounds/0001/03-select/pairs/rows.jsonl",
    ):
        _lines(folder / labelled, [_labelled(n) for n in numbers])
    for n in numbers:
        for place in (folder / f"{n}.png", folder / f"data/{n}.png"):
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(png(n))
    _lines(
        folder / "rlaif-v-questions.jsonl",
        [
            {
                "prompt": [user("what colour is it ?")],
                "images": [f"{n}.png"],
                "solution": "it is red",
            }
            for n in numbers
        ],
    )
    _lines(
        folder / "data/chosen.jsonl", [{"image": f"{n}.png", "caption": "a fox"} for n in numbers]
    )
    alpaca = folder / "alpaca_eval"
    (alpaca / "gpt4_1106_preview").mkdir(parents=True)
    (alpaca / "gpt4_1106_preview/model_outputs.json").write_text(
        json.dumps(
            [
                {"dataset": "koala", "instruction": question(n), "output": "fox " * (n + 1),
                 "generator": "gpt4_1106_preview"}
                for n in numbers
            ]
        )
    )  # fmt: skip
    (alpaca / "df_gamed.csv").write_text(
        "index,std_delta_len,instruction_difficulty,preference\n"
        + "".join(f"{n},{0.1 * n - 0.5},{0.3 * (n % 4)},{(n % 5) / 5}\n" for n in numbers)
    )
    _lines(folder / "ifeval/input_data.jsonl", [_verifiable(n) for n in numbers])
    for version, (categories, baselines) in ARENA_HARD.items():
        arena = folder / f"arena-hard-{version}"
        _lines(
            arena / "question.jsonl",
            [
                {"uid": f"u{n}", "category": categories[n % len(categories)], "subcategory": "",
                 "cluster": "", "prompt": question(n)}
                for n in numbers
            ],
        )  # fmt: skip
        for model in baselines:
            answers = [_arena_answer(model, n) for n in numbers]
            _lines(arena / f"model_answer/{model}.jsonl", answers)


def lay_models(folder: Path, cache: Path) -> None:
    """The cache of the Hub as huggingface_hub 2.4 keeps it, and the local models."""
    made: dict[str, Path] = {}
    for name, kind in MODELS.items():
        repo = cache / f"models--{name.replace('/', '--')}"
        (repo / "refs").mkdir(parents=True)
        (repo / "refs/main").write_text(COMMIT)
        snapshot = repo / "snapshots" / COMMIT
        _lay_model(kind, snapshot, made)
    for name, kind in LOCAL_MODELS.items():
        _lay_model(kind, folder / name, made)


def _lay_model(kind: str, folder: Path, made: dict[str, Path]) -> None:
    if kind in made:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.symlink_to(made[kind])
        return
    folder.mkdir(parents=True)
    BUILDERS[kind](folder)
    made[kind] = folder


_FENCED = re.compile(r"<(request|response) ([0-9a-f]{8})>\n(.*?)\n</\1 \2>", re.DOTALL)


def answer(body: Mapping[str, Any]) -> str:
    """What the one served model says to each of the recipes' questions."""
    content = body["messages"][-1]["content"]
    text = content if isinstance(content, str) else content[-1]["text"]
    if "VERDICT" in text:
        code, _, first, second = asked_pairwise(body)
        verdict = "A" if len(first) > len(second) else "B" if len(second) > len(first) else "TIE"
        return f"VERDICT {code}: {verdict}"
    if OUTPUTS.search(text):
        return "m"
    if "Assistant A" in text:
        return arena_judge(body)
    parts = {name: found for name, _, found in _FENCED.findall(text)}
    return _report(parts["response"])


def _report(response: str) -> str:
    """An expert's report: the first sentence is wrong."""
    return json.dumps(
        {
            "image_description": "one colour",
            "0": {
                "sentence": response,
                "score": 2,
                "error_type": "image recognition",
                "objects": [],
                "rewritten": "it is very red",
                "reason": "another colour",
            },
        }
    )


class ServedModel(LogprobServer):
    """Judges and corrects; shows log-probs to AlpacaEval's question alone."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = answer

    def _completion(self, path: str, body: Any, text: str | None = None) -> str:
        content = body["messages"][-1]["content"]
        if isinstance(content, str) and OUTPUTS.search(content):
            return super()._completion(path, body, text)
        return super(LogprobServer, self)._completion(path, body, text)


class WritesVerdicts(InProcessPolicy):
    """Copies the code that a verdict must carry, which no random model can."""

    def generate(self, prompts: Any, n: int, sampling: Any, seed: int) -> Any:
        drawn = super().generate(prompts, n, sampling, seed)
        return [
            [self._ended(prompt, one) for one in of]
            for prompt, of in zip(prompts, drawn, strict=True)
        ]

    def _ended(self, prompt: Any, one: Any) -> Any:
        asked = _ANSWERS.search(prompt.prompt[-1].content)
        if asked is None or isinstance(one, Failed):
            return one
        code, first, second = asked.groups()
        text = f"{one.completion[-1].content}\nVERDICT {code}: {'A' if first > second else 'B'}"
        return completion_of(prompt, text, policy=one.policy, sample=one.sample)


_ANSWERS = re.compile(
    r"<answer A ([0-9a-f]{8})>\n(.*)\n</answer A.*\n<answer B .{8}>\n(.*)\n</answer B", re.DOTALL
)


def hasten_worlds(patch: pytest.MonkeyPatch) -> None:
    """The worlds' models from a few steps: three seconds in place of minutes for all of them."""
    small = {
        "sums": sums.SumsSettings(
            highest=15, layers=2, width=48, heads=2, steps=150, batch=16, learning_rate=1e-2
        ),
        "styles": styles.StylesSettings(heads=2, steps=160, batch=16, learning_rate=1e-2),
        "scenes": scenes.ScenesSettings(layers=1, width=48, steps=60, batch=16),
        "shapes": shapes.ShapesSettings(channels=(8, 8), images=32, steps=3, batch=8, times=20),
    }
    for module in (sums, styles, scenes, shapes):
        name = module.__name__.rpartition(".")[2]
        patch.setattr(module, f"{name.capitalize()}Settings", lambda settings=small[name]: settings)
