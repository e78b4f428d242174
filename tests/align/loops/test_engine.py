"""The stage engine: what is made, what is kept, what is made again, and what is refused."""

import json
import logging
import math
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import ValidationError

from align.errors import NumericalError, RecipeError
from align.loops.engine import Loop
from align.loops.retention import Retention
from align.loops.stage import StageContext, check_chain, given
from align.runs.ledger import Ledger, read_records
from align.runs.manifest import damage, read_about


@pytest.fixture
def fake(fake_loop: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The fake stages, on a disk that answers at once; `test_crash` looks at the flushing."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    return fake_loop


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "loop"


@dataclass
class Plain:
    """A stage that is a function and what it declares."""

    name: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    function: Callable[[StageContext], Mapping[str, Any] | None] | None = None
    version: int = 1

    def settings(self) -> Mapping[str, Any]:
        return {}

    def run(self, context: StageContext) -> Mapping[str, Any]:
        said = self.function(context) if self.function else None
        for kind in self.writes:
            if not any(context.output(kind).iterdir()):
                (context.output(kind) / "content").write_text(kind)
        return said or {}


def lines(folder: Path, step: str) -> list[dict[str, Any]]:
    return [line for line in read_records(folder / "ledger.jsonl") if line["step"] == step]


def test_each_stage_is_published_with_its_key_and_one_line(fake, folder: Path) -> None:
    newest = fake.run(folder, rounds=2)
    made = sorted(path.relative_to(folder).as_posix() for path in folder.glob("rounds/*/*"))
    assert made == [
        f"rounds/000{number}/{stage}"
        for number in (1, 2)
        for stage in ("01-generate", "02-judge", "03-select", "04-train")
    ]
    ledger = list(read_records(folder / "ledger.jsonl"))
    assert [(line["round"], line["step"]) for line in ledger] == [
        (number, step) for number in (1, 2) for step in ("generate", "judge", "select", "train")
    ]
    for line, path in zip(ledger, made, strict=True):
        assert damage(folder / path) is None
        about = read_about(folder / path)
        assert about["key"] == line["key"]
        assert about["about"] == line["about"]
        assert {read: of["key"] for read, of in about["inputs"].items()} == line["inputs"]
        assert line["versions"] == fake.VERSIONS
        assert line["seconds"] >= 0
    assert len({line["key"] for line in ledger}) == 8
    assert ledger[0]["inputs"] == {"policy": "policy 1", "prompts": "prompts 1"}
    assert ledger[1]["inputs"] == {"completions": ledger[0]["key"]}
    assert ledger[4]["inputs"] == {"policy": ledger[3]["key"], "prompts": "prompts 1"}
    assert newest["policy"].path == folder / "rounds/0002/04-train/policy"
    assert newest["policy"].key == ledger[7]["key"]
    assert newest["policy"].sha256 == ledger[7]["outputs"]["policy"]
    assert newest["prompts"].round == 0


def test_a_finished_loop_is_left_as_it_is(fake, folder: Path) -> None:
    first = fake.run(folder)
    before = fake.files(folder), (folder / "ledger.jsonl").read_bytes()
    assert fake.run(folder) == first
    assert (fake.files(folder), (folder / "ledger.jsonl").read_bytes()) == before


def test_more_rounds_go_on_where_fewer_ended(fake, folder: Path, tmp_path: Path) -> None:
    fake.run(folder, rounds=1)
    fake.run(folder, rounds=3)
    fake.run(tmp_path / "straight", rounds=3)
    assert fake.files(folder) == fake.files(tmp_path / "straight")
    assert fake.history(folder) == fake.history(tmp_path / "straight")


def test_another_seed_or_start_is_another_loop(fake, folder: Path, tmp_path: Path) -> None:
    first = fake.run(folder, rounds=1)
    other = fake.run(tmp_path / "other", rounds=1, seed=7)
    assert first["completions"].sha256 != other["completions"].sha256
    seeds = []
    stage = Plain("see", ("prompts",), ("x",), lambda context: seeds.append(context.seed))
    fake.run(tmp_path / "seeds", rounds=3, each_round=[stage, stage])
    assert len(set(seeds)) == 6


def test_what_is_read_is_what_the_moment_says(fake, folder: Path) -> None:
    seen = []

    def look(context: StageContext) -> None:
        seen.append([context.inputs[read].round for read in reads])

    reads = ("policy", "policy@round_start", "policy@previous_round", "policy@start")
    half, whole = Plain("half", ("policy",), ("policy",)), Plain("whole", reads, ("policy",), look)
    fake.run(folder, rounds=4, each_round=[half, whole])
    # The half step of this round, round t-1, round t-2, what was given.
    assert seen == [[1, 0, 0, 0], [2, 1, 0, 0], [3, 2, 1, 0], [4, 3, 2, 0]]


def test_a_changed_setting_makes_its_stage_and_what_follows_again(fake, folder: Path) -> None:
    fake.run(folder, rounds=2, keep=9)
    first = fake.files(folder)
    changed = fake.stages(folder)
    changed[2] = fake.Select(rule="all_pairs")
    fake.run(folder, rounds=2, keep=9, each_round=changed)
    aside = [(line["round"], line["folder"], line["why"]) for line in lines(folder, "set-aside")]
    assert aside[0] == (
        1, "03-select", 'its settings changed (rule "best_vs_worst" -> "all_pairs")'
    )  # fmt: skip
    assert aside[1] == (1, "04-train", "it was made from another pairs")
    assert [where for _, where, _ in aside[2:]] == [
        "01-generate", "02-judge", "03-select", "04-train"
    ]  # fmt: skip
    again = fake.files(folder)
    for name, content in first.items():
        if name.startswith(("0001/01", "0001/02")):
            assert again[name] == content
        elif name.endswith(".txt") and "config" not in name:
            assert again[name] != content, name
            where, _, inside = name.partition("/")
            assert again[f"{where}/set-aside-{inside}"] == content


def test_a_raised_version_makes_its_stage_again(fake, folder: Path) -> None:
    counted = []
    stage = Plain("count", ("prompts",), ("x",), lambda context: counted.append(context.round))
    fake.run(folder, rounds=1, each_round=[stage])
    stage.version = 2
    fake.run(folder, rounds=1, each_round=[stage])
    assert counted == [1, 1]
    assert lines(folder, "set-aside")[0]["why"] == "its version changed (1 -> 2)"


def test_a_setting_without_influence_changes_nothing(fake, folder: Path) -> None:
    fake.run(folder, rounds=1)
    stages = [fake.Generate(workers=8), *fake.stages(folder)[1:]]
    before = (folder / "ledger.jsonl").read_bytes()
    fake.run(folder, rounds=1, each_round=stages)
    assert (folder / "ledger.jsonl").read_bytes() == before
    fake.run(folder, rounds=1, each_round=[fake.Generate(temperature=0.5), *stages[1:]])
    assert (folder / "ledger.jsonl").read_bytes() != before


def test_each_kind_of_damage_is_named_set_aside_and_made_again(
    fake, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fake.run(folder, rounds=3, keep=1)
    expected = fake.files(folder)
    names = [name for name, content in expected.items() if content != b"folder"]
    assert len(names) == 12 + 3 * 4 + 2 * 2
    for number, name in enumerate(names):
        path = folder / "rounds" / name
        content = path.read_bytes()
        if number % 3 == 0:
            path.unlink()
        elif number % 3 == 1:
            path.write_bytes(content[:-1])
        else:
            path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            fake.run(folder, rounds=3, keep=1)
        found = {key: of for key, of in fake.files(folder).items() if "set-aside" not in key}
        assert found == expected, name
        stage, inside = name[: name.index("/", 5)], name[name.index("/", 5) + 1 :]
        problem = f"Round {int(stage[:4])}, {stage[8:]} is made again, since "
        assert problem in caplog.text, name
        told = caplog.text.partition(problem)[2].partition("\n")[0]
        assert inside in told
        assert told.endswith(f"is kept as rounds/{stage[:5]}set-aside-{stage[5:]}.")
    assert fake.served(folder).read_text().count("\n") == 9


def test_what_retention_removed_is_made_again_when_it_is_needed(fake, folder: Path) -> None:
    """Round 5's policy is damaged, and with it every older one is gone or was made from it."""
    fake.run(folder, rounds=5, keep=1)
    expected = fake.files(folder)
    assert not (folder / "rounds/0003/04-train/policy").exists()
    for number in (4, 5):
        (folder / f"rounds/000{number}/04-train/policy/weights.txt").unlink()
    fake.run(folder, rounds=5, keep=1)
    assert {k: v for k, v in fake.files(folder).items() if "set-aside" not in k} == expected
    whys = [line["why"] for line in lines(folder, "set-aside")]
    assert whys.count("its policy was removed by retention and is needed again") == 3
    assert whys.count("policy/weights.txt is missing") == 2
    # Completions, judgements and pairs are what they were: nothing is generated again.
    assert len(lines(folder, "generate")) == 5


def test_what_was_made_from_something_else_is_made_again(fake, folder: Path) -> None:
    """A remade input with the same key and other bytes, as a GPU gives them."""
    draws = iter(["first", "second", "third"])

    def draw(context: StageContext) -> None:
        (context.output("x") / "content").write_text(next(draws))

    read = []

    def copy(context: StageContext) -> None:
        read.append((context.input("x") / "content").read_text())

    chain = [Plain("draw", ("prompts",), ("x",), draw), Plain("copy", ("x",), ("y",), copy)]
    fake.run(folder, rounds=1, each_round=chain)
    (folder / "rounds/0001/01-draw/x/content").unlink()
    fake.run(folder, rounds=1, each_round=chain)
    assert read == ["first", "second"]
    assert [line["why"] for line in lines(folder, "set-aside")] == [
        "x/content is missing",
        "it was made from another x",
    ]


def test_a_result_without_its_ledger_line_gets_one_without_seconds(fake, folder: Path) -> None:
    fake.run(folder, rounds=1)
    path, expected = folder / "ledger.jsonl", fake.history(folder)
    whole = path.read_text().splitlines(keepends=True)
    path.write_text("".join(whole[:-1]))
    fake.run(folder, rounds=1)
    assert fake.history(folder) == expected
    assert list(read_records(path))[-1]["seconds"] is None
    fake.run(folder, rounds=1)
    assert len(path.read_text().splitlines()) == 4


def test_old_bulky_artefacts_go_and_their_digests_stay(fake, folder: Path) -> None:
    fake.run(folder, rounds=5, keep=3)
    kept = [path.parts[-3] for path in sorted(folder.glob("rounds/*/04-train/policy"))]
    assert kept == ["0003", "0004", "0005"]
    assert len(list(folder.glob("rounds/*/02-judge/judged/scores.txt"))) == 5
    for line in lines(folder, "train"):
        slim = folder / f"rounds/{line['round']:04}/04-train"
        assert damage(slim) is None
        removed = line["outputs"] if line["round"] < 3 else {}
        assert read_about(slim)["removed"] == removed


def test_retention_never_takes_what_the_next_round_reads(fake, folder: Path) -> None:
    assert Retention(rounds=1).kept_rounds(["policy", "policy@round_start"]) == 1
    assert Retention(rounds=1).kept_rounds(["policy@previous_round"]) == 2
    assert Retention(rounds=3).kept_rounds(["policy@previous_round"]) == 3
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        Retention(rounds=0)
    train = Plain("train", ("policy",), ("policy",))
    fake.run(folder, rounds=3, keep=1, each_round=[train])
    kept = [path.parts[-3] for path in sorted(folder.glob("rounds/*/01-train/policy"))]
    assert kept == ["0003"]


def test_versions_that_changed_are_refused_unless_they_are_allowed(fake, folder: Path) -> None:
    fake.run(folder, rounds=1)
    now = {"torch": "2.14.0", "trl": "1.16"}
    with pytest.raises(RecipeError) as refused:
        fake.run(folder, rounds=2, versions=now)
    said = str(refused.value)
    assert "0001/01-generate was made with other versions" in said
    assert "torch 2.13.0 -> 2.14.0; trl None -> 1.16" in said
    assert "--allow-change" in said
    with pytest.raises(RecipeError, match=r"now: trl None -> 1\.16\."):
        fake.run(folder, rounds=2, versions=now, allow_change=["torch"])
    fake.run(folder, rounds=2, versions=now, allow_change=["torch", "trl"])
    assert [line["versions"] for line in lines(folder, "train")] == [fake.VERSIONS, now]


def test_a_second_loop_in_the_folder_is_refused(fake, folder: Path) -> None:
    folder.mkdir()
    with Ledger(folder / "ledger.jsonl"), pytest.raises(RecipeError, match="is being written by"):
        fake.run(folder, rounds=1)


A, B = Plain("a", ("prompts",), ("x",)), Plain("b", ("x",), ("y",))


@pytest.mark.parametrize(
    ("chain", "said"),
    [
        ([], r"each_round lists no stage"),
        ([B], r"each_round\[0\] \(run: b\) reads x, which no stage writes"),
        ([B, A], r"reads x, which only a writes, and not before it"),
        ([Plain("c", ("x",), ("x",))], r"reads x, which only c writes, and not before it"),
        ([A, Plain("c", ("x@round_start",), ("y",))], r"given no x to start from"),
        ([Plain("c", ("prompts@now",), ("y",))], r"only start, round_start, previous_round"),
        ([Plain("c", (), ())], r"each_round\[0\] \(run: c\) writes nothing"),
        ([Plain("c", (), ("../x",))], r"'\.\./x', which is no name of a kind"),
        ([Plain("c", ("p",), ("x",)), Plain("d", ("q",), ("y",))], r"reads p, .*; .* reads q, "),
    ],
)
def test_a_chain_that_does_not_fit_is_refused_before_anything_runs(
    fake, folder: Path, chain: list[Plain], said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        fake.run(folder, each_round=chain)
    assert not (folder / "rounds").exists()


def test_a_chain_that_fits_is_taken(fake) -> None:
    check_chain([A, B, A], {"prompts": None})
    check_chain(fake.stages(Path("loop")), {"prompts": None, "policy": None})


@pytest.mark.parametrize(
    ("left", "said"),
    [(("x",), "x, y, and left files of x"), (("x", "y", "z"), "left files of x, y, z")],
)
def test_a_stage_that_leaves_other_kinds_than_it_declares_is_refused(
    fake, folder: Path, left: tuple[str, ...], said: str
) -> None:
    class Wrong(Plain):
        def run(self, context: StageContext) -> Mapping[str, Any]:
            context.output("y")  # An empty folder is no artefact.
            for kind in left:
                (context.output(kind) / "content").write_text(kind)
            return {}

    with pytest.raises(RecipeError, match=said):
        fake.run(folder, each_round=[Wrong("wrong", (), ("x", "y"))])
    assert not list(folder.glob("rounds/*/0*"))


def test_a_number_that_is_not_finite_is_refused(fake, folder: Path) -> None:
    stage = Plain("train", (), ("policy",), lambda context: {"loss": math.nan})
    with pytest.raises(NumericalError, match="Stage train of round 1 reports a number"):
        fake.run(folder, each_round=[stage])
    assert not list(folder.glob("rounds/*/0*"))
    assert (folder / "ledger.jsonl").read_bytes() == b""


def test_scratch_is_found_again_by_the_same_stage_only(fake, folder: Path) -> None:
    found = []

    def work(context: StageContext) -> None:
        checkpoint = context.scratch / "checkpoint"
        found.append(checkpoint.exists())
        checkpoint.write_text("step 8")
        if len(found) in (1, 2, 4):
            raise RuntimeError("broken")

    def gone(context: StageContext) -> None:
        assert not list(context.folder.parent.glob(".01-train.*"))

    stage = Plain("train", (), ("policy",), work)
    chain = [stage, Plain("evaluate", ("policy",), ("metrics",), gone)]
    for _ in range(2):
        with pytest.raises(RuntimeError, match="broken"):
            fake.run(folder, rounds=1, each_round=chain)
    fake.run(folder, rounds=1, each_round=chain)
    assert found == [False, True, True]
    with pytest.raises(RuntimeError, match="broken"):
        fake.run(folder, rounds=2, each_round=chain)
    stage.version = 2
    fake.run(folder, rounds=2, each_round=chain)
    assert found[3:] == [False, False, False]


def test_what_a_stage_wrote_before_it_failed_is_not_mixed_in(fake, folder: Path) -> None:
    calls = []

    def work(context: StageContext) -> None:
        calls.append(context.round)
        (context.output("x") / f"attempt-{len(calls)}").write_text("")
        if len(calls) == 1:
            raise RuntimeError("broken")

    stage = Plain("work", (), ("x",), work)
    with pytest.raises(RuntimeError, match="broken"):
        fake.run(folder, rounds=1, each_round=[stage])
    fake.run(folder, rounds=1, each_round=[stage])
    assert [path.name for path in folder.glob("rounds/0001/01-work/x/*")] == ["attempt-2"]


def test_an_object_in_memory_is_handed_from_stage_to_stage(fake, folder: Path) -> None:
    seen = []

    def use(context: StageContext) -> None:
        policy = context.take("policy")
        seen.append(("use", policy))
        assert context.take("policy") is None  # It has one owner.
        if policy is not None:
            context.put_back("policy", policy)

    def train(context: StageContext) -> None:
        policy = context.take("policy@round_start")
        seen.append(("train", policy))
        context.keep("policy", (policy or 0) + 1)

    chain = [
        Plain("use", ("policy",), ("x",), use),
        Plain("train", ("policy@round_start", "x"), ("policy",), train),
    ]
    fake.run(folder, rounds=3, each_round=chain)
    assert seen == [
        ("use", None), ("train", None), ("use", 1), ("train", 1), ("use", 2), ("train", 2)
    ]  # fmt: skip


def test_objects_of_old_artefacts_are_forgotten(fake, folder: Path) -> None:
    class Model:
        pass

    made: list[weakref.ref[Model]] = []

    def train(context: StageContext) -> None:
        model = Model()
        made.append(weakref.ref(model))
        context.keep("policy", model)
        assert sum(ref() is not None for ref in made) <= 2

    chain = [Plain("train", ("policy",), ("policy",), train)]
    fake.run(folder, rounds=5, each_round=chain)
    assert len(made) == 5


def test_an_object_is_never_taken_for_an_artefact_it_does_not_equal(fake, folder: Path) -> None:
    """A stage that failed leaves none, and an old round's is forgotten."""
    seen = []
    fail = [True]

    def train(context: StageContext) -> None:
        seen.append(context.take("policy"))
        context.keep("policy", f"object of round {context.round}")
        if context.round == 2 and fail.pop():
            raise RuntimeError("broken")

    chain = [Plain("train", ("policy",), ("policy",), train)]
    folder.mkdir()
    first = [given("policy", folder, "policy 1")]
    with Ledger(folder / "ledger.jsonl") as ledger:
        loop = Loop(folder, chain, given=first, rounds=3, seed=1, ledger=ledger, versions={})
        with pytest.raises(RuntimeError, match="broken"):
            loop.run()
        fail.append(False)
        loop.run()
    assert seen == [None, "object of round 1", None, "object of round 2"]


def test_the_manifest_holds_no_clock(fake, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or two equal runs would differ."""
    monkeypatch.setattr("align.runs.ledger.time.time", lambda: 1234567890.0)
    fake.run(folder, rounds=1)
    for path in folder.glob("rounds/*/*/manifest.json"):
        assert "1234567890" not in path.read_text()
        assert json.loads(path.read_text())["about"].keys() == {
            "stage", "key", "inputs", "versions", "about", "removed"
        }  # fmt: skip
