import dataclasses
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from align.errors import RecipeError
from align.objectives import DPO, AnyObjective
from align.recipe import (
    REFUSED,
    Data,
    DataRecipe,
    EvalRecipe,
    Evaluate,
    Hub,
    KindRecipe,
    Model,
    Optimizer,
    Recipe,
    Roles,
    Sample,
    Scheduler,
    Train,
    explain,
    load_eval_recipe,
    load_recipe,
    notices,
    recipe_key,
    resolved_yaml,
)
from align.recipe.writing import OF_GROUPS

BASE: dict[str, Any] = {
    "model": {"model_name_or_path": "world:sums"},
    "roles": {"reference": "start"},
    "data": {"pairs": "pairs.jsonl"},
    "objective": {"name": "dpo", "beta": 0.1},
}
MEMBERS: dict[str, type[BaseModel]] = {
    member.model_fields["name"].default: member for member in get_args(get_args(AnyObjective)[0])
}
SECTIONS: dict[str, type[BaseModel]] = {
    "model": Model,
    "roles": Roles,
    "data": Data,
    "data.sample": Sample,
    "train": Train,
    "evaluate": Evaluate,
    "hub": Hub,
    **{f"objective {name}": model for name, model in MEMBERS.items()},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, so that messages name the recipe by its bare name."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Quoting(yaml.SafeDumper):
    """Quotes all text: PyYAML alone would write the text 1e-6 bare, as YAML 1.1 allows."""


Quoting.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="'")
)


def write(folder: Path, nodes: dict[str, Any] | str) -> Path:
    text = nodes if isinstance(nodes, str) else yaml.dump(nodes, Dumper=Quoting, sort_keys=False)
    (folder / "r.yaml").write_text(text)
    return Path("r.yaml")


def load(folder: Path, nodes: dict[str, Any] | str, *overrides: str) -> Recipe:
    return load_recipe(write(folder, nodes), overrides)


def problems(folder: Path, nodes: dict[str, Any] | str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load(folder, nodes, *overrides)
    assert caught.value.exit_code == 2
    lines = str(caught.value).splitlines()
    return lines[1:] if lines[0].endswith("problems") else lines


def base(section: str = "model", **keys: Any) -> dict[str, Any]:
    """BASE with `keys` added to one section."""
    nodes = {name: dict(node) for name, node in BASE.items()}
    nodes.setdefault(section, {}).update(keys)
    return nodes


def placed(section: str, keys: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """A recipe with `keys` in a section of SECTIONS, and the dotted prefix of that section."""
    if section.startswith("objective"):
        return base("objective") | {"objective": {"name": section.split()[1], **keys}}, "objective."
    if section == "data.sample":
        return base("data", pairs="world:sums", sample=keys), "data.sample."
    return base(section, **keys), f"{section}."


def typos(word: str) -> Iterator[str]:
    """One-letter typos at every third position: left out, doubled, replaced, swapped."""
    for i in range(0, len(word), 3):
        yield word[:i] + word[i + 1 :]
        yield word[:i] + word[i] + word[i:]
        yield word[:i] + "q" + word[i + 1 :]
        yield word[:i] + word[i : i + 2][::-1] + word[i + 2 :]


def test_one_letter_typos_are_all_caught_and_19_of_20_get_the_right_name(folder: Path) -> None:
    wrong: list[str] = []
    tried = 0
    for section, model in SECTIONS.items():
        known = set(model.model_fields)
        meant = {
            typo: name
            for name in model.model_fields
            for typo in typos(name)
            if len(typo) > 1 and typo not in known and typo not in REFUSED.get(section, {})
        }
        meant = {typo: name for typo, name in meant.items() if name != "name"}
        nodes, prefix = placed(section, dict.fromkeys(meant, 1))
        found = {line.split(": ")[1]: line for line in problems(folder, nodes)}
        for typo, name in meant.items():
            tried += 1
            line = found[prefix + typo]
            assert "no such key" in line
            if f"did you mean `{prefix}{name}`?" not in line:
                wrong.append(f"{prefix}{typo} -> {line}")
    assert tried > 1500
    assert len(wrong) <= 0.05 * tried, "\n".join(wrong)


def options(schema: dict[str, Any]) -> list[dict[str, Any]]:
    return schema.get("anyOf", [schema])


def wrongly_typed(schema: dict[str, Any]) -> Iterator[Any]:
    kinds = {option.get("type", "object") for option in options(schema)}
    if "object" not in kinds:
        yield {"x": 1}
    if "string" not in kinds:
        yield "wrong"
    if not kinds & {"integer", "number"}:
        yield 3
    if not kinds & {"boolean", "object"}:
        yield True
    if "integer" in kinds and "number" not in kinds:
        yield 1.5
    if any("enum" in option or "const" in option for option in options(schema)):
        yield "wrong"
    if any("$ref" in option.get("items", {}) for option in options(schema)):
        yield [3]  # of mappings with keys of their own, each of which would be told
    elif "array" in kinds:
        yield [{"x": 1}]
    else:
        yield [1]


def out_of_range(schema: dict[str, Any]) -> Iterator[Any]:
    for option in options(schema):
        if "minimum" in option:
            yield option["minimum"] - 1
        if "exclusiveMinimum" in option:
            yield option["exclusiveMinimum"]
        if "maximum" in option:
            yield option["maximum"] + 1
        if "exclusiveMaximum" in option:
            yield option["exclusiveMaximum"]
        if option.get("type") == "number":
            yield float("nan")
            yield float("inf")
        if option.get("minLength"):
            yield ""
        if "pattern" in option:
            yield "no slash"


@pytest.mark.parametrize("values", [wrongly_typed, out_of_range])
def test_every_field_refuses_wrong_types_and_values_out_of_range(folder: Path, values: Any) -> None:
    tried = 0
    for section, model in SECTIONS.items():
        properties = model.model_json_schema()["properties"]
        cases = {
            name: list(values(schema)) for name, schema in properties.items() if name != "name"
        }
        for round_ in range(max(len(found) for found in cases.values())):
            keys = {name: v[round_] for name, v in cases.items() if len(v) > round_}
            nodes, prefix = placed(section, keys)
            lines = problems(folder, nodes)
            text = (folder / "r.yaml").read_text().splitlines()
            for name in keys:
                at = {prefix + name, f"{prefix}{name}.0"}
                found = [line for line in lines if line.split(": ")[1] in at]
                assert len(found) == 1, (prefix, name, keys[name], found)
                [line] = found
                number = int(line.split(":")[1])
                # An entry of the suite is named by what it is no name of.
                assert "found " in line or "is no evaluation" in line
                assert "expected " in line or "write " in line
                assert name in text[number - 1] or f"{prefix}{name}.0" in line
                tried += 1
            assert len(lines) == len(keys), lines
    assert tried > 80


def test_out_of_range_reaches_the_fields_that_users_get_wrong() -> None:
    for model, name in ((Train, "learning_rate"), (Data, "max_length"), (MEMBERS["dpo"], "beta")):
        assert list(out_of_range(model.model_json_schema()["properties"][name]))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7e-7", 7e-7),
        ("7.0e-7", 7e-7),
        ("1E-3", 1e-3),
        (".5", 0.5),
        ("1_0e-5", 1e-4),
        ("1e-06", 1e-6),
    ],
)
def test_numbers_that_yaml_1_1_reads_as_text(folder: Path, text: str, value: float) -> None:
    recipe = load(folder, f"{yaml.safe_dump(BASE)}\ntrain: {{learning_rate: {text}}}")
    assert recipe.train.learning_rate == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("1_000", 1000), ("0x10", 16), ("+5", 5), ("'7e-7'", None), ("1:30", None), ("017", None)],
)
def test_integers(folder: Path, text: str, value: int | None) -> None:
    nodes = f"{yaml.safe_dump(BASE)}\ntrain: {{max_steps: {text}}}"
    if value is None:
        [line] = problems(folder, nodes)
        assert "train.max_steps: found" in line
    else:
        assert load(folder, nodes).train.max_steps == value


@pytest.mark.parametrize("word", ["no", "off", "on", "yes", "y", "n", "2020-01-01", "1:30", "017"])
def test_words_that_yaml_1_1_turns_into_something_else_stay_text(folder: Path, word: str) -> None:
    nodes = f"{yaml.safe_dump(BASE)}\ntrain: {{run_name: {word}, eval_strategy: no}}"
    recipe = load(folder, nodes)
    assert (recipe.train.run_name, recipe.train.eval_strategy) == (word, "no")


@pytest.mark.parametrize(("word", "boolean"), [("yes", "true"), ("on", "true"), ("off", "false")])
def test_a_switch_is_true_or_false(folder: Path, word: str, boolean: str) -> None:
    [line] = problems(folder, f"{yaml.safe_dump(BASE)}\ntrain: {{bf16: {word}}}")
    assert line.endswith(f"write `bf16: {boolean}`")


def test_everything_is_reported_at_once_in_the_order_of_the_file(folder: Path) -> None:
    text = """\
model:
  model_name_or_path: world:sums
  lora_rr: 3
  load_in_4bit: yes
roles: {referense: start}
data:
  pairs: x.jsonl
  pairs: y.jsonl
  max_length: 8
objective: {name: dpo, beta: -0.1}
train:
  learning_rate: "1e-6"
  weight_decay: !!python/object/apply:os.system ["echo"]
trian: {}
"""
    lines = problems(folder, text, "train.lr=3", "train.seed=-1")
    assert [line.split(": ")[:2] for line in lines] == [
        ["r.yaml:3", "model.lora_rr"],
        ["r.yaml:4", "model.load_in_4bit"],
        ["r.yaml:5", "roles.referense"],
        ["r.yaml:8", "data.pairs"],
        ["r.yaml:9", "data.max_length"],
        ["r.yaml:10", "objective.beta"],
        ["r.yaml:12", "train.learning_rate"],
        ["r.yaml:13", "train.weight_decay"],
        ["r.yaml:14", "trian"],
        ["override 'train.seed=-1'", "train.seed"],
        ["override 'train.lr=3'", "train.lr"],
    ]


HEAD = yaml.safe_dump(BASE, sort_keys=False)
PROVOKED: dict[str, tuple[str | dict[str, Any], str, list[str]]] = {
    "empty": ("", "", ["r.yaml:1: the recipe is empty", "model, data and objective"]),
    "a list": ("- 1\n", "", ["r.yaml:1: a recipe is a mapping of sections"]),
    "tab": ("model:\n\tx: 1\n", "", ["r.yaml:2: a tab stands", "indent with spaces"]),
    "open bracket": ("a: [1\nb: 2\n", "", ["r.yaml:2: while parsing a flow sequence", "mend"]),
    "two colons": ("a: b: c\n", "", ["r.yaml:1: mapping values are not allowed here"]),
    "two documents": ("a: 1\n---\nb: 2\n", "", ["r.yaml:2: a second document begins here"]),
    "alias": (f"{HEAD}train: &x {{seed: 1}}\nhub: *x\n", "", ["r.yaml:11: aliases are not read"]),
    "merge key": (HEAD + "train: {<<: {seed: 1}}\n", "", ["train.<<: merge keys are not read"]),
    "control character": ("a: \x07\n", "", ["r.yaml:1: the control character U+0007", "delete"]),
    "python tag": (
        HEAD + "hub: {repo: !!python/name:os.system }\n",
        "",
        ["r.yaml:10: hub.repo: the tag !!python/name:os.system is not read"],
    ),
    "bad tag": (HEAD + "hub: {repo: !!int abc}\n", "", ["hub.repo: 'abc' is no int"]),
    "deep": ("[" * 600, "", ["r.yaml:1: nested too deep"]),
    "key is a list": (HEAD + "? [a]\n: 3\n", "", ["r.yaml:10: a key is not a plain word"]),
    "given twice": (
        HEAD + "train: {seed: 1,\n  seed: 2}\n",
        "",
        ["r.yaml:11: train.seed: given twice (first at r.yaml:10)", "keep one"],
    ),
    "section twice": (HEAD + "data: {pairs: x}\n", "", ["r.yaml:10: data: given twice"]),
    "section is a value": (HEAD + "train: 3\n", "", ["r.yaml:10: train: found 3, expected a map"]),
    "section missing": ({**BASE, "data": None}, "", ["data: is missing; write `data: {pairs: <"]),
    "required key missing": (
        {**BASE, "data": {"split": "x"}},
        "",
        ["r.yaml:5: data.pairs: is missing; write a file, a folder, a Hub id or world:sums"],
    ),
    "section mistyped": ({**BASE, "modle": {}}, "", ["modle: no such key; did you mean `model`?"]),
    "key at the root": (
        {**BASE, "learning_rate": 1},
        "",
        ["learning_rate: no such key; did you mean `train.learning_rate`?"],
    ),
    "key of another section": (
        base("model", split="train"),
        "",
        ["model.split: no such key; did you mean `data.split`?"],
    ),
    "another project's name": (
        base("train", epochs=3),
        "",
        ["train.epochs: no such key; did you mean `train.num_train_epochs`?"],
    ),
    "TRL's loss switch": (
        base("train", loss_type="ipo"),
        "",
        ["train.loss_type: not a key of this section", "write `objective: {name: dpo, beta: 0.1}`"],
    ),
    "beta in train": (base("train", beta=0.1), "", ["train.beta:", "write `beta` under objective"]),
    "warmup_ratio": (base("train", warmup_ratio=0.1), "", ["write `warmup_steps: 0.1`"]),
    "a secret": (base("train", hub_token="x"), "", ["secrets do not stand in recipes"]),
    "a round's policy outside a loop": (
        {**BASE, "roles": {"reference": "start", "anchor": "ema:0.9"}},
        "",
        ["roles.anchor: `ema:0.9` is a policy of a loop, and this recipe has no rounds"],
    ),
    "choice mistyped": (
        base("train", lr_scheduler_type="cosin"),
        "",
        ["found cosin, expected one of linear,", "did you mean `cosine`?"],
    ),
    "integer as float": (base("train", max_steps=1000.0), "", ["found 1000.0", "write 1000"]),
    "quoted number": (base("train", learning_rate="1e-6"), "", ["write 1e-6 without quotes"]),
    "leading zero": (HEAD + "train: {seed: 017}\n", "", ["train.seed: found '017'", "write 17"]),
    "no objective name": ({**BASE, "objective": {"beta": 1}}, "", ["objective: `name` is missing"]),
    "objective mistyped": (
        {**BASE, "objective": {"name": "dppo"}},
        "",
        ["objective.name: no objective dppo; did you mean `dpo`?; there are alphapo, anch"],
    ),
    "field of another objective": (
        base("objective", tau=0.1),
        "",
        ["objective.tau: no such key for dpo (it has beta, f_div", "inpo, ipo, spo would read it"],
    ),
    "role missing": (
        {**BASE, "roles": {}},
        "",
        ["roles.reference: dpo needs it; write `reference: start` for the policy's own start"],
    ),
    "role missing by override": (
        BASE,
        "objective.name=sppo",
        ["roles.previous: sppo needs it; write `previous: start`"],
    ),
    "role of a loop": (
        {**BASE, "roles": {"reference": "round_start"}},
        "",
        ["roles.reference: `round_start` is a policy of a loop", "write `start`"],
    ),
    "role of nobody": (base("roles", refference="start"), "", ["did you mean `roles.reference`?"]),
    "revision missing": (base("roles", reference="a/b@"), "", ["roles.reference: found 'a/b@'"]),
    "quantised full run": (
        base("model", load_in_4bit=True),
        "",
        ["model.load_in_4bit: quantised weights cannot be trained; add `use_peft: true`"],
    ),
    "remote code unpinned": (
        base("model", model_name_or_path="a/b", trust_remote_code=True),
        "",
        ["model.trust_remote_code:", "write its 40-character hash as model.model_revision"],
    ),
    "unknown world": (
        base("model", model_name_or_path="world:sum"),
        "",
        ["model.model_name_or_path: no world 'world:sum'; there are world:sums"],
    ),
    "sample without world": (base("data", sample={}), "", ["data.sample: only a world samples"]),
    "held out twice": (
        base("data", held_out=5, eval_pairs="x"),
        "",
        ["data.held_out: eval_pairs already gives the rows"],
    ),
    "rows without a prompt": (
        base("data", on_empty="keep_prompt"),
        "",
        ["data.on_empty: keep_prompt is for trainers in scripts"],
    ),
    "a share of more than all": (base("data", held_out=1.5), "", ["data.held_out: found 1.5"]),
    "evaluation without rows": (
        base("data", held_out=0) | {"train": {"eval_strategy": "steps"}},
        "evaluate.suite=[]",
        ["train.eval_strategy: there are no rows to evaluate on; write `held_out: 0.05`"],
    ),
    "suite without rows": (base("data", held_out=0), "", ["evaluate.suite: preference needs rows"]),
    "suite twice": (base("evaluate", suite=["sums", "sums"]), "", ["an entry stands twice"]),
    "no steps": (base("train", max_steps=0), "", ["train.max_steps: 0 steps train nothing"]),
    "part of a step": (base("train", save_steps=2.5), "", ["train.save_steps: found 2.5; write a"]),
    "two precisions": (base("train", fp16=True, bf16=True), "", ["train.fp16: bf16 is on as well"]),
    "best without evaluation": (
        base("train", load_best_model_at_end=True),
        "",
        ["train.load_best_model_at_end: checkpoints (save_strategy: steps)"],
    ),
    "push without repo": (base("hub", push=True), "", ["hub.repo: is missing, and push is on"]),
    "override without =": (
        BASE,
        "train.seed",
        ["override 'train.seed': no key with a value; write `key.path=value`"],
    ),
    "override of no key": (BASE, "train.sed=1", ["override 'train.sed=1': train.sed: no such key"]),
    "override in bad YAML": (BASE, "data={pairs: [}", ["override 'data={pairs: [}':1:", "mend"]),
    "override below a value": (
        BASE,
        "data.pairs.x=1",
        ["data.pairs.x: data.pairs is one value, without keys; write `data.pairs=...`"],
    ),
    "override of nothing": (BASE, "train..seed=1", ["no key with a value; write `key.path=value`"]),
}


@pytest.mark.parametrize("case", PROVOKED)
def test_provoked_error(folder: Path, case: str) -> None:
    nodes, override, parts = PROVOKED[case]
    lines = problems(folder, nodes, *([override] if override else []))
    for part in parts:
        assert part in "\n".join(lines)
    alone = case not in ("key is a list", "merge key", "given twice")
    if alone:
        assert len(lines) == 1, lines


def test_a_file_that_cannot_be_read(folder: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.yaml: cannot be read \(No such file"):
        load_recipe("none.yaml")
    (folder / "latin.yaml").write_bytes(b"a: 1\nb: \xe9\n")
    with pytest.raises(RecipeError, match=r"latin\.yaml:2: not UTF-8; save the file as UTF-8"):
        load_recipe("latin.yaml")


def test_tags_run_nothing(folder: Path) -> None:
    mark = folder / "ran"
    text = f'{HEAD}hub: {{repo: !!python/object/apply:os.system ["touch {mark}"]}}\n'
    problems(folder, text)
    assert not mark.exists()


def test_a_secret_is_not_repeated(folder: Path) -> None:
    for secret in ("train.hub_token=hf_canary", "hub.token=hf_canary", "model.api_key=hf_canary"):
        assert "canary" not in "\n".join(problems(folder, BASE, secret))


def test_overrides_win_and_the_later_wins(folder: Path) -> None:
    recipe = load(
        folder,
        base("train", learning_rate=1e-6, seed=1),
        "train.learning_rate=7e-7",
        "train.seed=2",
        "train.seed=3",
        "data.sample=null",
        "evaluate={suite: [preference, sums], n: 64}",
        "objective.beta=.5",
    )
    assert recipe.train.learning_rate == 7e-7
    assert recipe.train.seed == 3
    assert recipe.evaluate == Evaluate(suite=("preference", "sums"), n=64)
    assert recipe.objective == DPO(beta=0.5)


def test_an_override_mends_what_is_wrong_in_the_file(folder: Path) -> None:
    assert load(folder, base("train", seed=-1), "train.seed=1").train.seed == 1


def test_another_objective_by_override_keeps_shared_fields(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nodes = base("objective", name="rpo", eta=0.01, beta=0.3)
    with caplog.at_level(logging.WARNING, logger="align.recipe"):
        recipe = load(folder, nodes, "objective.name=dpo")
    assert recipe.objective == DPO(beta=0.3)
    [said] = [record.getMessage() for record in caplog.records]
    assert "objective.eta: left out; dpo, which an override names, has no such field" in said
    [line] = problems(folder, nodes, "objective.name=dpo", "objective.eta=0.2")
    assert line.startswith("override 'objective.eta=0.2': objective.eta: no such key for dpo")


@pytest.mark.parametrize(
    "name",
    ["7e-7", "no", "1_000", "null", "017", "~", "=", "<<", "1:30", "on", ".5", "a: b", "é", "'"],
)
def test_resolved_recipe_loads_as_the_same_recipe(folder: Path, name: str) -> None:
    nodes = base("train", run_name=name, report_to=["wandb", name], lr_scheduler_kwargs={"a": [1]})
    recipe = load(folder, nodes, "data.pairs=world:sums", "train.learning_rate=7e-7")
    assert recipe.train.run_name == name
    text = resolved_yaml(recipe)
    assert load(folder, text) == recipe
    assert resolved_yaml(load(folder, text)) == text


def test_resolved_recipe_names_every_key(folder: Path) -> None:
    nodes = yaml.safe_load(resolved_yaml(load(folder, BASE)))
    for section in ("model", "data", "train", "evaluate", "hub"):
        # Those of groups stand in recipes of groups, as those of loops in loops.
        fields = set(SECTIONS[section].model_fields) - set(OF_GROUPS if section == "data" else ())
        assert set(nodes[section]) == fields
    # YAML 1.1 readers see the same values.
    assert nodes["train"]["eval_strategy"] == "no"
    assert nodes["train"]["learning_rate"] == 1e-6


def test_key_names_what_is_trained_and_not_where_it_is_pushed(folder: Path) -> None:
    recipe = load(folder, BASE)
    key = recipe_key(recipe)
    assert len(key) == 10
    assert key == recipe_key(load(folder, resolved_yaml(recipe)))
    assert key == recipe_key(load(folder, BASE, "hub={push: true, repo: a/b}"))
    changed = ["train.seed=1", "objective.beta=0.2", "data.limit=5", "roles.reference=other"]
    assert len({key, *(recipe_key(load(folder, BASE, change)) for change in changed)}) == 5


def test_a_loop_that_goes_on_keeps_its_key(root: Path) -> None:
    path = root / "recipes" / "inpo" / "tiny.yaml"
    key = recipe_key(load_recipe(path))
    assert key == recipe_key(load_recipe(path, ["rounds=9", "keep.rounds=5"]))
    assert key != recipe_key(load_recipe(path, ["prompts.per_round=7"]))


def test_defaults_that_depend_on_other_keys() -> None:
    assert Data(pairs="world:sums").sample == Sample()
    assert Data(pairs="x.jsonl").sample is None
    assert Data(pairs="x.jsonl").held_out == 0.05
    assert Data(pairs="x.jsonl", eval_pairs="y.jsonl").held_out == 0


def test_a_pinned_commit_or_a_local_folder_allows_remote_code(folder: Path) -> None:
    Model(model_name_or_path="a/b", model_revision="0123456789" * 4, trust_remote_code=True)
    Model(model_name_or_path=str(folder), trust_remote_code=True)
    with pytest.raises(ValidationError, match="40-character hash"):
        Model(model_name_or_path="a/b", model_revision="v1", trust_remote_code=True)


def test_a_recipe_built_in_python_is_checked_too() -> None:
    with pytest.raises(ValidationError, match=r"roles\.reference: dpo needs it"):
        Recipe(model=Model(model_name_or_path="x"), data=Data(pairs="x"), objective=DPO())


def test_notices(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert notices(load(folder, BASE, "train.learning_rate=6e-5")) == []  # world:sums is tiny
    assert notices(load(folder, BASE, "train.token_budget=64")) == []
    real = "model.model_name_or_path=a/b"
    with caplog.at_level(logging.WARNING, logger="align.recipe"):
        load(folder, BASE, real, "train.learning_rate=5e-5", "roles.guide=start", "model.lora_r=8")
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert "train.learning_rate: 5e-05 is beyond what preference training of all weights" in said
    assert "roles.guide: dpo does not read it" in said
    assert "model.lora_r: has no effect without `use_peft: true`" in said
    adapter = load(folder, BASE, real, "train.learning_rate=5e-5", "model.use_peft=true")
    assert notices(adapter) == []


def test_loading_imports_no_transformers_trl_or_datasets(folder: Path) -> None:
    write(folder, base("train", lerning_rate=1))
    code = (
        "import sys, json\n"
        "from align.recipe import load_recipe\n"
        "from align.errors import RecipeError\n"
        "try:\n    load_recipe('r.yaml')\n"
        "except RecipeError as error:\n    said = str(error)\n"
        "heavy = {'transformers', 'trl', 'datasets', 'peft', 'accelerate'} & set(sys.modules)\n"
        "sys.stdout.write(json.dumps([said, sorted(heavy)]))\n"
    )
    root = Path(__file__).resolve().parents[3]
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "PATH": ""},
    )  # fmt: skip
    said, heavy = json.loads(found.stdout)
    assert "did you mean `train.learning_rate`?" in said
    assert heavy == []


# Where our default is not TRL's: attn_implementation "auto" is TRL's None; a model must be named.
OWN_DEFAULTS = {"attn_implementation", "model_name_or_path"}


def test_keys_of_model_and_train_are_those_of_the_installed_trl() -> None:
    from peft import LoraConfig
    from trl import DPOConfig, ModelConfig

    peft_keys = {field.name for field in dataclasses.fields(LoraConfig)}
    theirs = {field.name: field for field in dataclasses.fields(DPOConfig)}
    model_keys = {field.name: field for field in dataclasses.fields(ModelConfig)}
    model_keys["trust_remote_code"] = theirs["trust_remote_code"]
    for ours, known in ((Train, theirs), (Model, model_keys)):
        for name, field in ours.model_fields.items():
            if name == "lora_layers_to_transform":
                # TRL does not offer it; peft does.
                assert name.removeprefix("lora_") in peft_keys
            elif name != "token_budget":
                assert name in known, name
                if name not in OWN_DEFAULTS:
                    assert field.default == known[name].default, name
    for name in REFUSED["train"]:
        assert name not in Train.model_fields


def test_choices_of_train_are_those_of_the_installed_transformers() -> None:
    from transformers.trainer_utils import SchedulerType
    from transformers.training_args import OptimizerNames

    assert set(get_args(Optimizer)) == {name.value for name in OptimizerNames}
    assert set(get_args(Scheduler)) == {name.value for name in SchedulerType}


def test_trl_takes_the_arguments(folder: Path) -> None:
    from trl import DPOConfig

    train = Train(use_cpu=True, bf16=False, report_to=("none",), learning_rate=3e-7)
    arguments = train.arguments()
    assert "token_budget" not in arguments
    config = DPOConfig(output_dir=str(folder), **arguments)
    assert config.learning_rate == 3e-7
    assert config.report_to == []


def test_roles_are_the_frozen_policies_of_pair_inputs() -> None:
    from align.types import ROLES, PairInputs

    fields = [field.name for field in dataclasses.fields(PairInputs)]
    others = ("policy", "score", "preference", "token_weight", "pair_kind", "coupling")
    assert list(ROLES) == [name for name in fields if name not in others]


def test_explain_says_meaning_values_and_default() -> None:
    assert explain("train.learning_rate").splitlines() == [
        "train.learning_rate: Peak learning rate.",
        "  a number > 0 and <= 1",
        "  default: 1.0e-06",
    ]
    assert "an integer >= 16 or null" in explain("data.max_length")
    assert "tokens of prompt and completion together" in explain("data.max_length")
    assert "must be given" in explain("model.model_name_or_path")
    assert "objective.beta of rpo" in explain("objective.beta")
    assert "objective.eta" in explain("objective.rpo")
    assert "the formula is the objective section's" in explain("train.loss_type")
    listed = {line.split(":")[0].partition(" (")[0] for line in explain().splitlines()}
    roots = (Recipe, DataRecipe, EvalRecipe, KindRecipe)
    assert listed == {key for root in roots for key in root.model_fields}
    assert "build (of a recipe for `align data build`): " in explain()
    assert "tables; null takes" in explain("name")
    with pytest.raises(RecipeError, match=r"did you mean `train\.learning_rate`\?"):
        explain("train.lerning_rate")
    with pytest.raises(RecipeError, match=r"did you mean `objective\.beta`\?"):
        explain("objective.bta")


def test_every_key_is_explained() -> None:
    for section, model in SECTIONS.items():
        for name in model.model_fields:
            if name != "name":
                key = f"{section.split()[0]}.{name}"
                first = explain(key).splitlines()[0]
                assert len(first.partition(": ")[2]) > 8, key
                assert ": see `" not in first, key


LOOP = {
    "model": {"model_name_or_path": "world:sums"},
    "prompts": {"source": "world:sums", "per_round": 64},
    "objective": {"name": "inpo", "eta": 10.0, "tau": 0.5},
    "roles": {"reference": "start", "previous": "round_start"},
    "evaluate": {"suite": ["sums"]},
    "rounds": 3,
    "each_round": [
        {"run": "generate", "samples": 4},
        {"run": "judge", "by": "world"},
        {"run": "select", "rule": "random_pair"},
        {"run": "train"},
    ],
}


def loop(**changes: object) -> dict:
    return {key: value for key, value in {**LOOP, **changes}.items() if value is not None}


def test_a_loop_is_read_and_written_back(folder: Path) -> None:
    recipe = load(folder, LOOP, "each_round.0.samples=8", "each_round.2.pairs=2")
    assert recipe.is_loop
    assert [stage.run for stage in recipe.each_round] == ["generate", "judge", "select", "train"]
    assert recipe.each_round[0].samples == 8
    assert recipe.each_round[2].rule_settings() == {"rule": "random_pair", "pairs": 2}
    written = folder / "written.yaml"
    written.write_text(resolved_yaml(recipe))
    assert load_recipe(written) == recipe


LOOP_FAULTS = {
    "no prompts": (loop(prompts=None), "prompts: is missing; a loop asks its policy"),
    "no training": (loop(each_round=LOOP["each_round"][:3]), "each_round: no stage trains"),
    "twice": (
        loop(each_round=[*LOOP["each_round"], {"run": "train"}]),
        "each_round: train stands 2 times",
    ),
    "pairs of its own": (
        loop(data={"pairs": "rows.jsonl"}),
        "data.pairs: a loop makes its own pairs",
    ),
    "no rounds": (loop(rounds=0), "rounds: found 0; write an integer >= 1"),
    "rounds as text": (loop(rounds="three"), "rounds: found three; write an integer >= 1"),
    "no such stage": (
        loop(each_round=[{"run": "trian"}]),
        "each_round.0.run: no stage trian; did you mean `train`?",
    ),
    "no stage at all": (loop(each_round=["train"]), "each_round.0: is no stage"),
    "not a list": (loop(each_round={"run": "train"}), "each_round: found"),
    "a stage's key mistyped": (
        loop(each_round=[{"run": "generate", "sample": 4}, {"run": "train"}]),
        "each_round.0.sample: no such key; did you mean",
    ),
    "a stage's value out of range": (
        loop(each_round=[{"run": "generate", "samples": 0}, {"run": "train"}]),
        "each_round.0.samples: found 0, expected an integer >= 1",
    ),
    "a judge without its model": (
        loop(each_round=[{"run": "judge", "by": "reward_model"}, {"run": "train"}]),
        "each_round.0.path: is missing; write text",
    ),
    "a rule without the key": (
        loop(each_round=[{"run": "select", "rule": "tournament", "pairs": 2}, {"run": "train"}]),
        "each_round.0.pairs: no such key here; only random_pair would read it",
    ),
    "another world": (
        loop(prompts={"source": "world:styles"}),
        "prompts.source: world:styles is asked of its own model",
    ),
    "an average that is none": (
        loop(
            objective={"name": "nash_mp", "beta": 0.1, "eta": 1.0},
            roles={"reference": "start", "anchor": "ema:1.5"},
        ),
        "roles.anchor: found 'ema:1.5'; write a decay between 0 and 1",
    ),
    "an average of adapters": (
        loop(
            model={"model_name_or_path": "world:sums", "use_peft": True},
            objective={"name": "nash_mp", "beta": 0.1, "eta": 1.0},
            roles={"reference": "start", "anchor": "ema:0.9"},
        ),
        "roles.anchor: the mean of two adapters is not the adapter of the mean",
    ),
    "an average as reference": (
        loop(roles={"reference": "ema:0.9", "previous": "round_start"}),
        "roles.reference: only the anchor may be an average",
    ),
}


@pytest.mark.parametrize("fault", LOOP_FAULTS)
def test_what_is_wrong_with_a_loop_is_said_where_it_stands(folder: Path, fault: str) -> None:
    node, expected = LOOP_FAULTS[fault]
    with pytest.raises(RecipeError) as raised:
        load(folder, node)
    assert expected in str(raised.value)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("each_round.generate", ["  samples: Completions per prompt."]),
        ("each_round.generate.samples", ["an integer >= 1", "default: 4"]),
        ("each_round.judge", ["and the keys of by, one of world, answers"]),
        ("each_round.judge.llm.server", ["Where it is served", "must be given"]),
        ("build.mcts.simulations", ["default: "]),
        ("evaluate.suite.tasks", ["  tasks: Built-in tasks"]),
    ],
)
def test_entries_of_lists_are_explained(key: str, words: list[str]) -> None:
    said = explain(key)
    for word in words:
        assert word in said


def test_no_such_entry_or_key_of_one_is_said_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match="did you mean `generate`"):
        explain("each_round.generat")
    with pytest.raises(RecipeError, match="did you mean `samples`"):
        explain("each_round.generate.sample")


def test_a_key_mistyped_in_an_entry_is_looked_for_there_first(folder: Path) -> None:
    nodes = loop(each_round=[{"run": "generate", "sample": 4}, {"run": "train"}])
    write(folder, nodes)
    with pytest.raises(RecipeError, match=r"did you mean `each_round\.0\.samples`"):
        load_recipe("r.yaml")


def test_an_old_recipe_of_evaluations_is_told_where_they_stand_now(folder: Path) -> None:
    write(folder, {"model": BASE["model"], "evaluations": [{"run": "tasks", "tasks": ["sums"]}]})
    with pytest.raises(RecipeError, match=r"there is one list; write `evaluate: \{suite") as error:
        load_eval_recipe("r.yaml")
    assert "objective" not in str(error.value)
