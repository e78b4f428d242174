"""What a user can do wrong, and what the command line answers: the table below is the list.

Each mistake runs through `align.app.cli.main` and must leave with the documented exit code and one
paragraph per problem that says what was found, where it stands, and how to go on.
"""

import gzip
import json
import logging
import re
import shlex
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from align.app.cli import main

USAGE, DATA, MACHINE, NUMBERS = 2, 3, 4, 5

RECIPE = """\
model: {model_name_or_path: world:bytes}
roles: {reference: start}
data:
  pairs: pairs.jsonl
  held_out: 4
objective:
  name: dpo
  beta: 0.1
train:
  max_steps: 1
  learning_rate: 1.0e-6
  use_cpu: true
  seed: 0
"""


def recipe(old: str = "", new: str = "", *more: tuple[str, str]) -> str:
    """RECIPE with some texts replaced."""
    text = RECIPE
    for before, after in ((old, new), *more):
        assert before in text
        text = text.replace(before, after, 1)
    return text


def data(lines: str) -> str:
    """RECIPE with further lines in its data section."""
    return recipe("  held_out: 4\n", f"  held_out: 4\n{lines}")


def pairs(n: int = 40, **changes: Any) -> list[dict[str, Any]]:
    """Good rows, each with the same changes; None takes a column out."""
    rows: list[dict[str, Any]] = []
    for i in range(n):
        row = {"prompt": f"What is {i}?", "chosen": f" It is {i}.", "rejected": f" No idea {i}."}
        row |= changes
        rows.append({key: value for key, value in row.items() if value is not None})
    return rows


def jsonl(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def some_bad(bad: str, count: int = 8) -> str:
    """40 good lines, the first `count` of them replaced."""
    return "".join([f"{bad}\n"] * count) + jsonl(pairs()[count:])


def talk(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


CONVERSATIONS = jsonl(
    [
        {
            "prompt": talk(("user", f"What is {i}?")),
            "chosen": talk(("assistant", f"It is {i}.")),
            "rejected": talk(("assistant", "No idea.")),
        }
        for i in range(40)
    ]
)
LONE_SURROGATE = '{"prompt": "What?", "chosen": "\\ud800", "rejected": "No."}'

Prepare = Callable[[Path], None]


def base_model(folder: Path) -> None:
    """A copy of the built-in model as a folder of the user's own."""
    from align.worlds import world

    shutil.copytree(world("world:bytes").base_model(), folder)


def without_chat_template(here: Path) -> None:
    base_model(here / "mine")
    (here / "mine" / "chat_template.jinja").unlink()


def without_end_token(here: Path) -> None:
    base_model(here / "mine")
    path = here / "mine" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["eos_token"]
    path.write_text(json.dumps(config))


def with_broken_weights(here: Path) -> None:
    from safetensors.torch import load_file, save_file

    base_model(here / "mine")
    path = here / "mine" / "model.safetensors"
    weights = load_file(path)
    weights["model.norm.weight"] = weights["model.norm.weight"] * float("nan")
    save_file(weights, path, metadata={"format": "pt"})


def with_torn_weights(here: Path) -> None:
    base_model(here / "mine")
    path = here / "mine" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def with_broken_tokenizer(here: Path) -> None:
    base_model(here / "mine")
    (here / "mine" / "tokenizer.json").write_text('{"version": ')


def with_broken_config(here: Path) -> None:
    base_model(here / "mine")
    (here / "mine" / "config.json").write_text('{"model_type": "no-such-model"}')


def without_weights(here: Path) -> None:
    base_model(here / "mine")
    (here / "mine" / "model.safetensors").unlink()


def empty_folder(here: Path) -> None:
    (here / "mine").mkdir()


def run_of_another_recipe(here: Path) -> None:
    from align.recipe import load_recipe, resolved_yaml

    (here / "run").mkdir()
    was = load_recipe(here / "r.yaml", ["train.seed=1"])
    (here / "run" / "recipe.yaml").write_text(resolved_yaml(was))
    (here / "run" / "before.json").write_text("{}")


def unfinished_run(here: Path) -> None:
    (here / "run" / "checkpoints").mkdir(parents=True)
    (here / "run" / "recipe.yaml").write_text(RECIPE)


@dataclass(frozen=True)
class Mistake:
    """One thing a user does wrong.

    Attributes:
        name: of the case.
        code: the exit code.
        what: a pattern of what was found.
        where: a pattern of the place: file and line or row, key, override or option.
        how: a pattern of how to go on.
        command: words of the command line.
        recipe: r.yaml, if it is written at all.
        files: others, by name; pairs.jsonl holds good rows unless given here.
        prepare: what else must lie in the folder.
        problems: paragraphs of the answer.
    """

    name: str
    code: int
    what: str
    where: str
    how: str
    command: str = "check r.yaml"
    recipe: str | bytes | None = RECIPE
    files: Mapping[str, str | bytes] = field(default_factory=dict[str, str | bytes])
    prepare: Prepare | None = None
    problems: int = 1


SPPO = recipe("dpo", "sppo", ("reference: start", "previous: start"))
MINE = recipe("world:bytes", "./mine")

MISTAKES = [
    # ---- the command line
    Mistake("no such command", USAGE, r"No such command 'trian'", r"trian", r"align --help",
            command="trian r.yaml"),
    Mistake("no such option", USAGE, r"No such option", r"--sed", r"align --help",
            command="check r.yaml --sed 1"),
    Mistake("no recipe given", USAGE, r"Missing argument", r"RECIPE", r"align --help",
            command="check"),
    Mistake("override of an unknown key", USAGE, r"no such key",
            r"override 'train\.lerning_rate=1'",
            r"did you mean `train\.learning_rate`\?", command="check r.yaml train.lerning_rate=1"),
    Mistake("override without a value", USAGE, r"no key with a value", r"override 'train\.seed'",
            r"write `key\.path=value`", command="check r.yaml train.seed"),
    Mistake("override of a mistyped value", USAGE, r"found ten, expected an integer",
            r"override 'train\.max_steps=ten'", r"write for example `max_steps: -1`",
            command="check r.yaml train.max_steps=ten"),
    Mistake("explain an unknown key", USAGE, r"no such key", r"train\.lerning_rate",
            r"did you mean `train\.learning_rate`\?", command="recipe explain train.lerning_rate"),
    # ---- the recipe as a file
    Mistake("no such recipe", USAGE, r"cannot be read", r"absent\.yaml", r"name a recipe",
            command="check absent.yaml"),
    Mistake("a folder for a recipe", USAGE, r"cannot be read", r"^folder:", r"name a recipe",
            command="check folder", files={"folder/r.yaml": RECIPE}),
    Mistake("an empty recipe", USAGE, r"is empty", r"r\.yaml:1", r"needs model, data and objective",
            recipe=""),
    Mistake("a tab", USAGE, r"a tab stands where", r"r\.yaml:5", r"indent with spaces",
            recipe=recipe("  held_out", "\theld_out")),
    Mistake("a bracket left open", USAGE, r"flow", r"r\.yaml:3", r"mend the YAML here",
            recipe=recipe("start}", "start")),
    Mistake("not UTF-8", USAGE, r"not UTF-8", r"r\.yaml:1", r"save the file as UTF-8",
            recipe=RECIPE.encode("utf-16")),
    Mistake("an alias", USAGE, r"aliases are not read", r"r\.yaml:4", r"mend",
            recipe=recipe("pairs.jsonl", "*rows")),
    # ---- the recipe's keys
    Mistake("an unknown key", USAGE, r"lerning_rate: no such key", r"r\.yaml:11",
            r"did you mean `train\.learning_rate`\?", recipe=recipe("learning", "lerning")),
    Mistake("an unknown section", USAGE, r"trian: no such key", r"r\.yaml:9",
            r"did you mean `train`\?", recipe=recipe("train:", "trian:")),
    Mistake("a key given twice", USAGE, r"given twice \(first at r\.yaml:8\)", r"r\.yaml:9",
            r"keep one", recipe=recipe("  beta: 0.1\n", "  beta: 0.1\n  beta: 0.2\n")),
    Mistake("a mistyped value", USAGE, r"found '7', expected an integer",
            r"r\.yaml:13: train\.seed",
            r"write 7 without quotes", recipe=recipe("seed: 0", "seed: '7'")),
    Mistake("beta out of range", USAGE, r"found -0\.1, expected a number > 0",
            r"r\.yaml:8: objective\.beta", r"write for example `beta: 0\.1`",
            recipe=recipe("beta: 0.1", "beta: -0.1")),
    Mistake("an infinite rate", USAGE, r"\.inf", r"r\.yaml:11: train\.learning_rate",
            r"write for example", recipe=recipe("1.0e-6", ".inf")),
    Mistake("an unknown objective", USAGE, r"no objective dpoo", r"r\.yaml:7: objective\.name",
            r"did you mean `dpo`\?", recipe=recipe("name: dpo", "name: dpoo")),
    Mistake("a field of another objective", USAGE, r"eta: no such key for dpo", r"r\.yaml:9",
            r"rpo, spo would read it", recipe=recipe("  beta: 0.1\n", "  beta: 0.1\n  eta: 0.1\n")),
    Mistake("a role left out", USAGE, r"dpo needs it", r"roles\.reference",
            r"write `reference: start`", recipe=recipe("roles: {reference: start}\n")),
    Mistake("a switch of TRL's losses", USAGE, r"TRL's losses are off",
            r"r\.yaml:14: train\.loss_type",
            r"write `objective: \{name: dpo, beta: 0\.1\}`", recipe=RECIPE + "  loss_type: ipo\n"),
    Mistake("a key without effect", USAGE, r"rows are padded to the longest",
            r"r\.yaml:14: train\.pad_to_multiple_of", r"take it out",
            recipe=RECIPE + "  pad_to_multiple_of: 8\n"),
    Mistake("two settings that exclude each other", USAGE, r"bf16 is on as well", r"train\.fp16",
            r"keep one of the two", recipe=RECIPE + "  fp16: true\n  bf16: true\n"),
    Mistake("three problems at once", USAGE, r"found -1, expected a number > 0",
            r"r\.yaml:8: objective\.beta",
            r"did you mean `train\.learning_rate`", problems=3,
            recipe=recipe("beta: 0.1", "beta: -1", ("learning", "lerning"),
                          ("seed: 0", "seed: x"))),
    Mistake("push to nowhere", USAGE, r"is missing, and push is on", r"hub\.repo",
            r"write `repo: owner/name`", recipe=RECIPE + "hub: {push: true}\n"),
    Mistake("dry run to nowhere", USAGE, r"is missing, and dry_run is on", r"hub\.repo",
            r"write `repo: owner/name`", recipe=RECIPE + "hub: {dry_run: true}\n"),
    Mistake("pairs of another world", USAGE, r"asked of its own model", r"data\.pairs",
            r"write `model_name_or_path: world:sums`",
            recipe=recipe("pairs.jsonl", "world:sums")),
    # ---- models and folders that the recipe names
    Mistake("no such model folder", USAGE, r"there is no folder '\./mine'",
            r"model\.model_name_or_path", r"Write a folder that `save_pretrained` made",
            recipe=MINE),
    Mistake("an empty model folder", USAGE, r"'\./mine' holds no tokenizer",
            r"model\.model_name_or_path",
            r"Write a folder that `save_pretrained` made", recipe=MINE, prepare=empty_folder),
    Mistake("a Hub model without network", MACHINE,
            r"the Hub cannot be reached for 'nobody/nothing'",
            r"model\.model_name_or_path", r"Check the network",
            recipe=recipe("world:bytes", "nobody/nothing")),
    Mistake("torn weights", MACHINE, r"weights cannot be read", r"model\.model_name_or_path",
            r"Save, or fetch", recipe=MINE, prepare=with_torn_weights,
            command="train r.yaml --run run"),
    Mistake("a damaged tokenizer", USAGE, r"'\./mine' holds no tokenizer that can be read",
            r"model\.model_name_or_path", r"Write a folder that `save_pretrained` made",
            recipe=MINE, prepare=with_broken_tokenizer),
    Mistake("an unknown architecture", USAGE, r"'\./mine' holds no configuration .*no-such-model",
            r"model\.model_name_or_path", r"Write a folder that `save_pretrained` made",
            recipe=MINE, prepare=with_broken_config),
    Mistake("no weights", MACHINE, r"no file named model\.safetensors", r"mine",
            r"Mend that and run the same command again", recipe=MINE, prepare=without_weights,
            command="train r.yaml --run run"),
    Mistake("a role on the Hub without network", MACHINE, r"Hub cannot be reached",
            r"roles", r"Check the network", recipe=recipe("start", "nobody/nothing@main"),
            command="train r.yaml --run run"),
    Mistake("no such role folder", USAGE, r"\./absent", r"roles\.reference", r"start",
            recipe=recipe("start", "./absent")),
    Mistake("no such role folder, in training", USAGE, r"\./absent", r"roles\.reference", r"start",
            recipe=recipe("start", "./absent"), command="train r.yaml --run run"),
    Mistake("a run folder of another recipe", USAGE, r"-  seed: 1; \+  seed: 0", r"run holds a run",
            r"its own --run folder", command="train r.yaml --run run",
            prepare=run_of_another_recipe),
    Mistake("a file for a run folder", USAGE, r"is a file", r"pairs\.jsonl",
            r"another --run folder",
            command="train r.yaml --run pairs.jsonl"),
    Mistake("push of an unfinished run", USAGE, r"metrics\.json", r"^run is not the folder",
            r"goes on where it stopped", command="push run --repo ana/sums",
            prepare=unfinished_run),
    Mistake("push of no run", USAGE, r"is not a folder", r"^absent",
            r"Give the folder of a finished",
            command="push absent --repo ana/sums"),
    Mistake("push to a bad name", USAGE, r"'sums' is not the name of a repository", r"hub\.repo",
            r"namespace/name", command="push run --repo sums", prepare=unfinished_run),
    Mistake("report of an unfinished run", DATA, r"does not exist", r"run/metrics\.json",
            r"finish this one", command="report run", prepare=unfinished_run),
    Mistake("report of no run", DATA, r"does not exist", r"absent/metrics\.json",
            r"give the folder of a run that has finished", command="report absent"),
    Mistake("report of broken metrics", DATA, r"NaN is not JSON", r"run/metrics\.json",
            r"Run the command that made it again", command="report run",
            files={"run/metrics.json": '{"before": NaN}'}),
    # ---- where the rows are
    Mistake("no such data file", DATA, r"no file or folder absent\.jsonl", r"looked from /",
            r"Check data\.pairs", recipe=recipe("pairs.jsonl", "absent.jsonl")),
    Mistake("Hub data without network", MACHINE, r"Hub cannot be reached for nobody/nothing",
            r"data\.pairs", r"Check the network, or point data\.pairs to a file",
            recipe=recipe("pairs.jsonl", "nobody/nothing")),
    Mistake("an empty file", DATA, r"No row was read", r"data\.pairs", r"Check data\.pairs",
            files={"pairs.jsonl": ""}),
    Mistake("an unknown kind of file", DATA, r"no kind of file that can be read", r"pairs\.txt",
            r"known are \.jsonl", recipe=recipe(".jsonl", ".txt"), files={"pairs.txt": "x"}),
    Mistake("a folder without rows", DATA, r"holds no saved dataset", r"^rows ",
            r"Check data\.pairs",
            recipe=recipe("pairs.jsonl", "rows"), files={"rows/notes.md": "x"}),
    Mistake("a split that is not there", DATA, r"No file in rows is named for data\.split 'dev'",
            r"train\.jsonl", r"Choose one of these splits",
            files={"rows/train.jsonl": jsonl(pairs())},
            recipe=recipe("pairs: pairs.jsonl", "pairs: rows\n  split: dev")),
    Mistake("a torn gzip file", DATA, r"damaged", r"pairs\.jsonl\.gz", r"fetch or write it again",
            recipe=recipe(".jsonl", ".jsonl.gz"),
            files={"pairs.jsonl.gz": gzip.compress(jsonl(pairs()).encode())[:-40]}),
    Mistake("text under the name .parquet", DATA, r"cannot be read", r"pairs\.parquet",
            r"fetch or write it again", recipe=recipe(".jsonl", ".parquet"),
            files={"pairs.parquet": jsonl(pairs())}),
    Mistake("no such file to evaluate on", DATA, r"no file or folder absent\.jsonl",
            r"data\.eval_pairs", r"Check data\.eval_pairs",
            recipe=recipe("held_out: 4", "eval_pairs: absent.jsonl")),
    # ---- what the rows hold
    Mistake("wrong columns", DATA, r"no column chosen and no column rejected", r"question, answer",
            r"Rename the columns",
            files={"pairs.jsonl": jsonl([{"question": "x", "answer": "y"}] * 4)}),
    Mistake("a table without the columns", DATA, r"no column rejected", r"pairs\.csv has",
            r"Rename the columns", recipe=recipe(".jsonl", ".csv"),
            files={"pairs.csv": "prompt,chosen\nWhat?,It.\n"}),
    Mistake("a table with a column twice", DATA, r"a column twice", r"pairs\.csv", r"rename one",
            recipe=recipe(".jsonl", ".csv"), files={"pairs.csv": "chosen,chosen\nx,y\n"}),
    Mistake("broken JSON", DATA, r"8 of 40 rows \(20\.0%\) cannot be used, over the limit of 5\.0%",
            r"pairs\.jsonl, row 1, line: unreadable \(.* at character",
            r"data\.max_dropped to 0\.2", files={"pairs.jsonl": some_bad('{"prompt": "What')}),
    Mistake("a broken JSON list", DATA, r"broken at row 2", r"pairs\.json is .*line 2",
            r"mend that place", recipe=recipe(".jsonl", ".json"),
            files={"pairs.json": "[" + json.dumps(pairs()[0]) + ",\n{broken]"}),
    Mistake("one JSON object", DATA, r"one JSON object with the keys rows", r"pairs\.json ",
            r"write a list of objects", recipe=recipe(".jsonl", ".json"),
            files={"pairs.json": json.dumps({"rows": pairs()}, indent=1)}),
    Mistake("all rows equal", DATA, r"None of the 40 rows can be used: 40 equal",
            r"pairs\.jsonl, row 1, rejected", r"Mend these rows",
            files={"pairs.jsonl": jsonl(pairs(chosen=" Yes.", rejected=" Yes."))}),
    Mistake("one equal row is an error", DATA, r"equal \(the same text", r"pairs\.jsonl, row 40",
            r"another policy for data\.on_equal", recipe=data("  on_equal: error\n"),
            files={"pairs.jsonl": jsonl([*pairs()[:39], *pairs(1, rejected=" It is 0.")])}),
    Mistake("fields left out", DATA, r"8 missing_field", r"pairs\.jsonl, row 1, rejected",
            r"Mend these rows", files={"pairs.jsonl": some_bad('{"prompt": "a", "chosen": "b"}')}),
    Mistake("numbers for text", DATA, r"8 wrong_type", r"pairs\.jsonl, row 1, chosen",
            r"Mend these rows",
            files={"pairs.jsonl": some_bad('{"prompt": "a", "chosen": 1, "rejected": 2}')}),
    Mistake("lone surrogates", DATA, r"8 bad_unicode", r"pairs\.jsonl, row 1, chosen",
            r"data\.on_bad_unicode", files={"pairs.jsonl": some_bad(LONE_SURROGATE)}),
    Mistake("rows too long", DATA, r"40 too_long", r"pairs\.jsonl, row 1",
            r"data\.on_too_long", recipe=data("  max_length: 16\n"),
            files={"pairs.jsonl": jsonl(pairs(chosen=" It is what it is." * 20))}),
    Mistake("the same pair both ways round", DATA, r"swapped_duplicate", r"pairs\.jsonl, row 41",
            r"data\.on_swapped_duplicate",
            files={"pairs.jsonl": jsonl(
                [*pairs(), *({**row, "chosen": row["rejected"], "rejected": row["chosen"]}
                             for row in pairs())])}),
    Mistake("a score that is no number", DATA, r"40 bad_score",
            r"pairs\.jsonl, row 1, chosen_score",
            r"Mend these rows",
            files={"pairs.jsonl": jsonl(pairs(chosen_score="good", rejected_score="bad"))}),
    Mistake("token weights of the wrong length", DATA, r"2 weights for \d+ completion tokens",
            r"pairs\.jsonl, row 1, chosen_token_weight", r"Mend these rows",
            files={"pairs.jsonl": jsonl(
                pairs(chosen_token_weight=[1, 1], rejected_token_weight=[1, 1]))}),
    Mistake("control tokens are an error", DATA, r"spells '<", r"pairs\.jsonl, row 1, chosen",
            r"data\.on_control_tokens", recipe=data("  on_control_tokens: error\n"),
            files={"pairs.jsonl": jsonl(pairs(chosen=" It is <end> it."))}),
    Mistake("conversations that the user ends", DATA, r"40 wrong_roles",
            r"pairs\.jsonl, row 1, chosen",
            r"data\.on_wrong_roles",
            files={"pairs.jsonl": CONVERSATIONS.replace('"assistant"', '"user"')}),
    Mistake("conversations without a chat template", DATA, r"chat template", r"tokenizer",
            r"set |choose ", recipe=MINE, prepare=without_chat_template,
            files={"pairs.jsonl": CONVERSATIONS}),
    Mistake("plain text without an end token", DATA, r"no eos_token", r"tokenizer",
            r"set tokenizer\.eos_token", recipe=MINE, prepare=without_end_token),
    Mistake("transcripts that are none", DATA, r"40 ", r"pairs\.jsonl, row 1",
            r"data\.format|Mend these rows",
            recipe=data("  format: hh\n")),
    Mistake("no scores for sppo", DATA, r"`sppo` needs scores, and 36 of 36",
            r"first: pairs\.jsonl:1",
            r"give every row chosen_score", recipe=SPPO),
    Mistake("no scores for sppo, in training", DATA, r"`sppo` needs scores",
            r"first: pairs\.jsonl:1", r"give every row chosen_score", recipe=SPPO,
            command="train r.yaml --run run"),
    Mistake("everything held out", DATA, r"asks for 400 of 40 pairs", r"data\.held_out",
            r"lower it",
            recipe=recipe("held_out: 4", "held_out: 400")),
    Mistake("too few rows to hold any out", DATA, r"0\.05 of 3 pairs, which is none",
            r"data\.held_out",
            r"held_out: 1", recipe=recipe("  held_out: 4\n"),
            files={"pairs.jsonl": jsonl(pairs(3))}),
    # ---- the machine, and numbers
    Mistake("a file for the cache", MACHINE, r"cannot be used", r"cache at",
            r"ALIGN_CACHE", command="check r.yaml", files={"cache": "x"}),
    Mistake("weights that are not numbers", NUMBERS, r"4 of 4 rows are NaN or infinite", r"row 1",
            r"Look at .* the model's weights", recipe=MINE, prepare=with_broken_weights,
            command="train r.yaml --run run"),
]  # fmt: skip


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that keeps the built-in model for all cases."""
    # Its log handler takes the stderr of the first import, which a case's own is gone after it.
    import transformers  # noqa: F401

    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def here(tmp_path: Path, built: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder, without network, and the process as it was afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALIGN_CACHE", str(built))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("HF_HUB_DISABLE_TELEMETRY", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, "false")
    logger = logging.getLogger("align")
    kept = logger.handlers, logger.level, logger.propagate
    with warnings.catch_warnings():
        yield tmp_path
    logger.handlers, logger.level, logger.propagate = kept


def answer(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        main(words)
    out, err = capsys.readouterr()
    assert isinstance(left.value.code, int)
    return left.value.code, out, err


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name.replace(" ", "-"))
def test_a_mistake_is_answered_with_what_where_and_how_to_go_on(
    mistake: Mistake,
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written: dict[str, str | bytes] = {"pairs.jsonl": jsonl(pairs()), **mistake.files}
    if mistake.recipe is not None:
        written["r.yaml"] = mistake.recipe
    for name, content in written.items():
        path = here / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    if "cache" in mistake.files:
        monkeypatch.setenv("ALIGN_CACHE", str(here / "cache"))
    if mistake.prepare is not None:
        mistake.prepare(here)

    code, out, err = answer(shlex.split(mistake.command), capsys)

    # In front of the answer stand the progress and the log of what went well before.
    paragraphs = err.strip().split("\n")
    if mistake.command.startswith("train"):
        paragraphs = paragraphs[-mistake.problems :]
    if mistake.problems > 1:
        assert paragraphs.pop(0).endswith(f"{mistake.problems} problems")
    said = f"{out}\n{err}"
    assert code == mistake.code, said
    assert "Traceback" not in said
    for asked in (mistake.what, mistake.where, mistake.how):
        assert re.search(asked, "\n".join(paragraphs), re.MULTILINE), f"no {asked!r} in: {said}"
    assert len(paragraphs) == mistake.problems, said


def test_without_a_mistake_the_same_recipe_passes(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "pairs.jsonl").write_text(jsonl(pairs()))
    (here / "r.yaml").write_text(RECIPE)
    base_model(here / "mine")
    for words in (["r.yaml"], ["r.yaml", "model.model_name_or_path=./mine", "data.limit=20"]):
        main(["check", *words])
    said = capsys.readouterr().out
    assert "36 to train on, 4 held out" in said
    assert "16 to train on, 4 held out" in said


def test_debug_shows_the_stack_trace_in_front_of_the_answer(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = answer(["check", "absent.yaml", "--debug"], capsys)
    assert code == USAGE
    assert err.startswith("Traceback (most recent call last)")
    assert err.splitlines()[-1].startswith("absent.yaml: cannot be read")


def test_every_documented_code_is_provoked_and_both_rooms_by_ten_mistakes() -> None:
    codes = [mistake.code for mistake in MISTAKES]
    assert set(codes) == {USAGE, DATA, MACHINE, NUMBERS}
    assert min(codes.count(USAGE), codes.count(DATA)) >= 10
    assert len({mistake.name for mistake in MISTAKES}) == len(MISTAKES)
