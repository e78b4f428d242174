"""`align init`: what it writes loads, passes `align check`, trains, and says why."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import LlamaConfig

from align.app.cli import main
from align.app.starter.choices import (
    Here,
    chosen_length,
    fit_weights,
    objective_lines,
    role_lines,
    train_lines,
)
from align.app.starter.text import Line, text_of
from align.app.starter.wish import objective_of
from align.data.pairs import PreferencePair
from align.errors import RecipeError
from align.objectives import Objective
from align.policies.model import Model
from align.recipe import load_recipe
from align.registry import names, node
from align.tokens.tokenized_pair import TokenizedPair
from align.worlds.bytes import bytes_tokenizer
from tests import tiny_loops, tiny_models
from tests.align.data.test_sources import GOLDENS


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build_llama(tmp_path_factory.mktemp("llama"))


def answer(words: list[Any], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    code = 0
    try:
        main([str(word) for word in words])
    except SystemExit as stop:
        code = int(stop.code or 0)
    said = capsys.readouterr()
    return code, said.out, said.err


def init(model: Any, data: Any, out: Path, *more: Any) -> list[Any]:
    return ["init", "--model", model, "--data", data, "--out", out, *more]


def rows(n: int = 40) -> list[dict[str, Any]]:
    return [
        {"prompt": f"What is {i}?", "chosen": f" It is {i}.", "rejected": f" No idea {i}."}
        for i in range(n)
    ]


@pytest.mark.parametrize("form", GOLDENS)
def test_every_format_gets_a_recipe_that_passes_check(
    form: str, llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "rows.jsonl", tmp_path / "recipe.yaml"
    tiny_loops.write_rows(source, [GOLDENS[form][0]])
    code, said, _ = answer(init(llama, source, out), capsys)
    assert code == 0, said
    # One pair cannot be held out.
    recipe = load_recipe(out)
    assert (recipe.data.held_out, recipe.evaluate.suite) == (0, ())
    assert "1 to train on, 0 held out" in said


def written(kind: str, folder: Path) -> Path:
    content = rows()
    path = folder / f"rows.{kind}"
    match kind:
        case "json":
            path.write_text(json.dumps(content))
        case "parquet":
            pq.write_table(pa.Table.from_pylist(content), path)
        case "csv":
            lines = [f'"{row["prompt"]}","{row["chosen"]}","{row["rejected"]}"' for row in content]
            path.write_text("\n".join(["prompt,chosen,rejected", *lines]) + "\n")
        case _:
            path = folder / "rows"
            path.mkdir()
            tiny_loops.write_rows(path / "train.jsonl", content)
    return path


@pytest.mark.parametrize("kind", ["json", "parquet", "csv", "folder"])
def test_every_kind_of_file_is_read(
    kind: str, llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "recipe.yaml"
    code, said, _ = answer(init(llama, written(kind, tmp_path), out), capsys)
    assert code == 0
    # A twentieth of 40 pairs.
    assert "pairs: 38 to train on, 2 held out" in said
    assert f"align train {out}" in said
    code, said, _ = answer(["check", out], capsys)
    assert code == 0
    assert "pairs: 38 to train on, 2 held out" in said


def test_the_recipe_trains_and_says_why(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "rows.jsonl", tmp_path / "recipe.yaml"
    tiny_loops.write_rows(source, rows())
    assert answer(init(llama, source, out, "--method", "rpo"), capsys)[0] == 0
    text = out.read_text()
    # Every value has its reason beside it.
    values = [line for line in text.splitlines() if line.startswith("  ")]
    assert len(values) > 15
    assert [line for line in values if "  # " not in line] == []
    assert "eta: 0.005" in text
    words = ["train", out, "train.max_steps=1", "train.warmup_steps=0", "--run", tmp_path / "run"]
    assert answer(words, capsys)[0] == 0
    assert (tmp_path / "run" / "model" / "config.json").is_file()


def test_nothing_is_written_over(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "rows.jsonl", tmp_path / "recipe.yaml"
    tiny_loops.write_rows(source, rows())
    out.write_text("mine")
    code, _, said = answer(init(llama, source, out), capsys)
    assert (code, out.read_text()) == (2, "mine")
    assert "--force" in said
    assert answer(init(llama, source, out, "--force"), capsys)[0] == 0
    assert out.read_text() != "mine"


def test_foreign_columns_are_mapped(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "rows.jsonl", tmp_path / "recipe.yaml"
    foreign = [
        {"q": row["prompt"], "answers": [row["chosen"], row["rejected"]], "x": 1} for row in rows()
    ]
    tiny_loops.write_rows(source, foreign)
    code, _, said = answer(init(llama, source, out), capsys)
    assert code == 3
    assert "found are q, answers, x" in said
    assert "--columns chosen=<theirs>" in said
    assert not out.exists()
    given = ("--columns", "prompt=q,chosen=answers.0", "--columns", "rejected=answers.1")
    code, said, _ = answer(init(llama, source, out, *given), capsys)
    assert code == 0
    assert load_recipe(out).data.columns == {
        "prompt": "q", "chosen": "answers.0", "rejected": "answers.1",
    }  # fmt: skip
    assert "40 kept" in said


def test_what_is_dropped_stands_in_the_recipe(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "rows.jsonl", tmp_path / "recipe.yaml"
    # 4 of 40 are longer than the model's 512 tokens, 2 have no answer.
    content = rows()
    for row in content[:4]:
        row["chosen"] = "x y z " * 300
    for row in content[4:6]:
        row["chosen"] = ""
    tiny_loops.write_rows(source, content)
    code, said, _ = answer(init(llama, source, out), capsys)
    assert code == 0
    recipe = load_recipe(out)
    assert recipe.data.max_length == 512
    # (4 + 2) / 40
    assert recipe.data.max_dropped == 0.15
    assert "keeps 89.5% of 38 pairs" in out.read_text()
    assert "4 too_long, 2 empty_completion" in out.read_text()
    assert "34 kept" in said


def test_a_run_of_an_adapter_is_gone_on_from(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "rows.jsonl", tmp_path / "recipe.yaml"
    tiny_loops.write_rows(source, rows())
    adapter = tiny_models.build_adapter(tmp_path / "adapter", llama)
    bytes_tokenizer(512).save_pretrained(adapter)
    run = tiny_models.build_run(tmp_path / "run", adapter, model_name_or_path=str(llama))
    code, said, _ = answer(init(run, source, out), capsys)
    assert code == 0
    assert load_recipe(out).model.model_name_or_path == str(run)
    assert "pairs: 38 to train on" in said


def test_a_loop_is_written_and_goes_through_a_round(
    policy: Path,
    place: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(place)
    Path("own.py").write_text(
        "def early(prompt, completion, **columns):\n    return -float(ord(completion[0]))\n"
    )
    words = init(policy, "prompts.jsonl", Path("loop.yaml"), "--loop", "--reward", "own.py:early")
    code, said, _ = answer([*words, "--method", "inpo"], capsys)
    assert code == 0
    recipe = load_recipe("loop.yaml")
    assert recipe.roles.given == {"reference": "start", "previous": "round_start"}
    assert recipe.prompts is not None
    assert recipe.prompts.per_round == tiny_loops.PROMPTS
    assert "the stages fit together" in said
    assert "align loop loop.yaml" in said
    words = ["loop", "loop.yaml", "rounds=1", "each_round.0.max_new_tokens=8", "--run", "run"]
    assert answer([*words, "train.max_steps=1", "train.warmup_steps=0"], capsys)[0] == 0
    assert Path("run/model/config.json").is_file()


def test_what_does_not_go_together_is_said(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "rows.jsonl", tmp_path / "recipe.yaml"
    tiny_loops.write_rows(source, rows())
    (tmp_path / "texts.jsonl").write_text('{"text": "a"}\n')
    loop = ("--loop", "--reward", "length")
    expected = {
        "--loop needs --reward": (2, init(llama, source, out, "--loop")),
        "add --loop": (2, init(llama, source, out, "--reward", "length")),
        "did you mean `dpo`": (2, init(llama, source, out, "--method", "dpoo")),
        "there is no folder": (2, init(tmp_path / "nowhere", source, out)),
        "There is no file": (3, init(llama, tmp_path / "nowhere.jsonl", out)),
        "write ours=theirs": (2, init(llama, source, out, "--columns", "chosen")),
        "has the columns text": (3, init(llama, tmp_path / "texts.jsonl", out, *loop)),
        "stand in recipes/": (2, init(llama, "world:sums", out, *loop)),
    }
    for words, (code, command) in expected.items():
        found, _, said = answer(command, capsys)
        assert (found, words in said.replace("\n", " ")) == (code, True), (words, said)
    assert not out.exists()


@pytest.mark.parametrize("in_loop", [False, True])
def test_every_formula_has_a_starter(tmp_path: Path, in_loop: bool) -> None:
    with pytest.raises(RecipeError, match=r"no default for of, .* written by hand"):
        objective_of("sum")
    with pytest.raises(RecipeError, match="kto: it learns from groups of completions"):
        objective_of("kto")
    of_pairs = (
        name for name in names("objective") if issubclass(node("objective", name), Objective)
    )
    for name in set(of_pairs) - {"sum"}:
        objective = objective_of(name)
        sections: dict[str, Any] = {
            "model": [Line("model_name_or_path", "a/b")],
            "roles": role_lines(objective, in_loop=in_loop),
            "data": [Line("pairs", "rows.jsonl")],
            "objective": objective_lines(objective),
        }
        if in_loop:
            sections |= {
                "data": [],
                "prompts": [Line("source", "rows.jsonl")],
                "evaluate": [Line("suite", [])],
                "rounds": Line("rounds", 2),
                "each_round": Line("each_round", [Line("", {"run": "train"})]),
            }
        path = tmp_path / f"{name}.yaml"
        path.write_text(text_of(["A test."], sections))
        assert load_recipe(path).objective == objective


def test_max_length_keeps_99_of_100() -> None:
    # 200 pairs: the 198 shortest have up to 130 tokens, which 192 holds.
    found, why = chosen_length([*range(1, 131), *[100] * 68, 700, 900], 2048)
    assert found == 192
    assert why == "keeps 99.0% of 200 pairs; the longest has 900"
    # With three long ones it takes one of them: 197 of 200 are only 98.5 %.
    assert chosen_length([*[100] * 197, 700, 800, 900], 2048)[0] == 768
    assert chosen_length([500] * 10, 400) == (
        400,
        "keeps 0.0% of 10 pairs; the longest has 500 (the model's context)",
    )
    assert chosen_length([9000], 10**6)[0] == 9000


GIB = 10**9


@pytest.mark.parametrize(
    ("gpu", "free", "has_4bit", "kind"),
    [
        ("A", 80 * GIB, True, "full"),
        ("A", 9 * GIB, True, "adapter"),
        ("A", 2 * GIB, True, "4-bit"),
        ("A", 2 * GIB, False, "adapter"),
        (None, 80 * GIB, True, "adapter"),
        (None, 2 * GIB, True, "4-bit"),
    ],
)
def test_weights_are_trained_as_they_fit(
    gpu: str | None, free: int, has_4bit: bool, kind: str
) -> None:
    # 4 layers of 2048 x (4 x 2048 + 3 x 24576) and twice 32000 x 2048: 803M parameters. In float32
    # with gradients and Adam 12.8 GB; in bfloat16 1.6 GB; the layers in 4 bits 0.4 + 0.3 GB.
    config = LlamaConfig(
        hidden_size=2048,
        intermediate_size=24576,
        num_hidden_layers=4,
        num_attention_heads=16,
        vocab_size=32000,
    )
    texts: Mapping[str, Any] = {"prompt": "p", "chosen": "c", "rejected": "r"}
    pair = PreferencePair(**texts, source="", row=1)
    pairs = [TokenizedPair([1] * 100, [1] * 100, [1] * 100, pair, ())] * 8
    here = Here(cores=8, gpu=gpu, free=free, has_bfloat16=True, has_4bit=has_4bit)
    wish = Model(model_name_or_path="a/b")
    fit = fit_weights(wish, config, objective_of("dpo"), pairs, here)
    keys = fit.model
    found = "4-bit" if keys.get("load_in_4bit") else "adapter" if "use_peft" in keys else "full"
    assert found == kind
    # Full weights in bfloat16 would lose steps of the size of 1e-6.
    assert keys["dtype"] == ("float32" if kind == "full" else "bfloat16")
    assert fit.rate == (2e-6 if kind == "full" else 2e-4)
    # Every key says why, and together they are a valid section.
    assert set(fit.why) == set(keys)
    wish.model_validate(wish.model_dump() | dict(keys))


def test_steps_and_batches_follow_the_pairs() -> None:
    config = LlamaConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        vocab_size=16,
    )
    here = Here(cores=2, gpu=None, free=10**12, has_bfloat16=True, has_4bit=False)
    fit = fit_weights(Model(model_name_or_path="a/b"), config, objective_of("dpo"), [], here)
    found = {
        n: {line.key: line.value for line in train_lines(fit, n, 300, here)}
        for n in (3, 160, 60_000)
    }
    batches = {n: lines["per_device_train_batch_size"] for n, lines in found.items()}
    assert batches == {3: 3, 160: 8, 60_000: 64}
    assert [lines["num_train_epochs"] for lines in found.values()] == [3, 3, 1]
    # 160 / 8 x 3 = 60 steps: a line every third, a checkpoint every fifteenth.
    assert (found[160]["logging_steps"], found[160]["save_steps"]) == (3, 15)
    # Four times the longest, as a power of two.
    assert found[160]["token_budget"] == 2048
