"""The stages of a loop together: what is made, made again, and refused."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from align.data.completions import JudgedPrompt
from align.errors import DataError, RecipeError
from align.judges.matrix import from_scores
from align.loops.artefacts import read_lines, write_lines
from align.loops.stage import check_chain
from align.reference import content_digest
from align.stages.reliability import r_squared
from align.stages.select import Select, SelectStage
from tests import tiny_loops

ORDER = ["01-generate", "02-judge", "03-select", "04-train"]


def stages(**changes: dict) -> list[dict]:
    """The tiny loop's, with changes by `run`."""
    return [dict(stage) | changes.get(stage["run"], {}) for stage in tiny_loops.STAGES]


@pytest.fixture
def gone(recipe_of, go, tmp_path: Path):
    """One round of the tiny loop."""
    return go(recipe_of(rounds=1), tmp_path / "run")


def test_a_round_leaves_its_rows_and_says_what_it_did(gone) -> None:
    lines = list(read_lines(gone.artefact(1, "completions")))
    judged = list(read_lines(gone.artefact(1, "judged")))
    pairs = list(read_lines(gone.artefact(1, "pairs")))
    assert len(lines) == len(judged) == 4
    said = {stage: gone.said[1, stage] for stage in ("generate", "judge", "select", "train")}
    written = sum(len(line["completions"]) for line in lines)
    lost = sum(len(line["failures"]) for line in lines)
    assert written + lost == 16
    assert said["generate"]["completions"] == written
    assert sum(said["generate"]["failed"].values()) == lost
    assert said["generate"]["rows"] == {"read": 12, "kept": 12, "dropped": {}}
    assert said["judge"]["calls"] == written
    assert said["select"]["kept"] == len(pairs) == said["train"]["pairs"]
    right = [line["completions"][0][0] in "abcd" for line in lines]
    assert [row["scores"][0] for row in judged] == [float(r) for r in right]
    for pair in pairs:
        assert pair["chosen"][0]["content"][0] in "abcd"
        assert pair["rejected"][0]["content"][0] not in "abcd"
        assert pair["preference"] == 1.0
    # Where the rows came from goes with them to the end.
    assert {p["row"] for p in pairs} <= {line["row"] for line in lines}


def test_completions_that_were_cut_off_can_be_kept(recipe_of, go, tmp_path: Path) -> None:
    short = {"max_new_tokens": 3}
    cut = go(recipe_of(rounds=1, each_round=stages(generate=short)), tmp_path / "cut")
    keep = short | {"keep_unfinished": True}
    kept = go(recipe_of(rounds=1, each_round=stages(generate=keep)), tmp_path / "kept")
    lost = cut.said[1, "generate"]["failed"]["unfinished"]
    assert kept.said[1, "generate"]["unfinished"] == lost > 0
    assert "unfinished" not in kept.said[1, "generate"]["failed"]
    lines = list(read_lines(kept.artefact(1, "completions")))
    # Two letters and the end are three tokens, three letters are cut off.
    for line in lines:
        assert line["unfinished"] == [i for i, t in enumerate(line["completions"]) if len(t) == 3]
    unfinished = {t for line in lines for t in line["completions"] if len(t) == 3}
    for pair in read_lines(kept.artefact(1, "pairs")):
        for side in ("chosen", "rejected"):
            assert (pair.get(f"{side}_ends") is False) == (pair[side][0]["content"] in unfinished)


def test_samples_behind_a_hint_are_kept_as_answers_to_the_prompt(
    recipe_of, go, place: Path, tmp_path: Path
) -> None:
    plain = go(recipe_of(rounds=1), tmp_path / "plain")
    hinted = recipe_of(rounds=1, each_round=stages(generate={"hinted": 2}))
    with pytest.raises(DataError, match=r"prompts\.jsonl, row \d+: no column hint"):
        go(hinted, tmp_path / "run")
    rows = [json.loads(line) for line in (place / "prompts.jsonl").read_text().splitlines()]
    turns = [{"role": "user", "content": "aaa"}, {"role": "assistant", "content": "aaaa"}]
    tiny_loops.write_rows(place / "prompts.jsonl", [row | {"hint": turns} for row in rows])
    gone = go(hinted, tmp_path / "run")
    lines = list(read_lines(gone.artefact(1, "completions")))
    assert [line["prompt"] for line in lines] == [
        line["prompt"] for line in read_lines(plain.artefact(1, "completions"))
    ]
    assert gone.said[1, "generate"]["completions"] > 8
    for line in read_lines(gone.artefact(1, "pairs")):
        assert len(line["prompt"]) == 1
    # The first two samples are those that a loop without hints draws first.
    few = stages(generate={"samples": 2})
    two = go(recipe_of(rounds=1, each_round=few), tmp_path / "two")
    for line, other in zip(lines, read_lines(two.artefact(1, "completions")), strict=True):
        assert line["completions"][: len(other["completions"])] == other["completions"]
    changed = [row | {"hint": [*turns, *turns]} for row in rows]
    tiny_loops.write_rows(place / "prompts.jsonl", changed)
    assert go(hinted, tmp_path / "run").aside[0].startswith("1/01-generate")


@pytest.mark.parametrize(
    ("changes", "first"),
    [
        ({"each_round": stages(generate={"temperature": 0.9})}, 0),
        ({"each_round": stages(judge={"pattern": "^(?=[a-c])()"})}, 1),
        ({"each_round": stages(select={"min_margin": 0.1})}, 2),
        ({"objective": {"name": "inpo", "eta": 0.9, "tau": 0.3}}, 3),
        ({"train": {"learning_rate": 1e-3}}, 3),
        ({"roles": {"reference": "round_start", "previous": "round_start"}}, 3),
        ({"data": {"max_length": 60}}, 3),
    ],
)
def test_changed_settings_make_the_stage_and_what_follows_again(
    gone, recipe_of, go, changes: dict, first: int
) -> None:
    again = go(recipe_of(rounds=1, **changes), gone.run)
    made = [f"{ORDER.index(o) + 1:02}" for o in ORDER[first:]]
    assert [place.partition("/")[2][:2] for place in again.aside] == made
    assert [stage for _, stage in again.said] == [o[3:] for o in ORDER[first:]]


@pytest.mark.parametrize(
    "changes",
    [
        {"each_round": stages(generate={"batch_rows": 2})},
        {"each_round": stages(judge={"max_failed": 0.5})},
        {"each_round": stages(select={"max_dropped": 0.9})},
    ],
)
def test_settings_without_influence_make_nothing_again(gone, recipe_of, go, changes: dict) -> None:
    again = go(recipe_of(rounds=1, **changes), gone.run)
    assert (again.aside, again.said) == ([], {})


def test_other_content_of_a_file_that_a_stage_reads_makes_it_again(
    gone, recipe_of, go, place: Path
) -> None:
    answers = place / "answers.jsonl"
    answers.write_text(answers.read_text().replace('"answer": ""', '"answer": "no"', 1))
    again = go(recipe_of(rounds=1), gone.run)
    assert again.aside[0] == "1/02-judge"
    assert (1, "generate") not in again.said


@pytest.mark.parametrize("name", ["01-generate", "04-train"])
def test_a_damaged_artefact_is_named_and_made_again(
    gone, recipe_of, go, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = gone.files()
    kind = {"01-generate": "completions/rows.jsonl", "04-train": "policy/model.safetensors"}[name]
    victim = gone.run / "rounds/0001" / name / kind
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    again = go(recipe_of(rounds=1), gone.run)
    # What follows carries the same keys and digests, and stays.
    assert again.aside == [f"1/{name}"]
    assert again.files() == before
    assert f"the content of {kind} has changed" in caplog.text


@pytest.mark.parametrize("missing", ["generate", "judge", "select"])
def test_a_chain_with_a_gap_is_refused_before_anything_runs(
    recipe_of, go, tmp_path: Path, missing: str
) -> None:
    left = [stage for stage in tiny_loops.STAGES if stage["run"] != missing]
    written = {"generate": "completions", "judge": "judged", "select": "pairs"}[missing]
    with pytest.raises(RecipeError, match=f"reads {written}, which no stage writes"):
        go(recipe_of(each_round=left), tmp_path / "run")
    assert not (tmp_path / "run" / "rounds").exists()


def test_an_average_is_only_read_where_it_is_given(recipe_of, shop_of) -> None:
    recipe = recipe_of(
        objective={"name": "nash_mp"}, roles={"reference": "start", "anchor": "ema:0.9"}
    )
    train = shop_of(recipe).stages()[3]
    assert set(train.reads) == {"pairs", "policy", "policy@start", "anchor"}
    assert set(train.writes) == {"policy", "anchor"}
    with pytest.raises(RecipeError, match="reads policy@start, but the loop is given no policy"):
        check_chain(shop_of(recipe).stages(), {"anchor": None})


def test_a_judge_that_cannot_do_what_it_is_asked_is_refused_before_anything_runs(
    recipe_of, go, tmp_path: Path
) -> None:
    nodes = stages()
    nodes[1] = {"run": "judge", "by": "llm", "ask": "tournament"}
    nodes[1]["server"] = {"base_url": "http://localhost:1/v1", "model": "m", "revision": "1"}
    with pytest.raises(RecipeError, match="write `rule: tournament`"):
        go(recipe_of(each_round=nodes), tmp_path / "run")


def test_a_round_without_a_pair_is_refused_with_the_reasons(
    recipe_of, go, place: Path, tmp_path: Path
) -> None:
    """Every answer is wrong, so all tie."""
    answers = place / "answers.jsonl"
    answers.write_text(answers.read_text().replace('"answer": ""', '"answer": "none"'))
    with pytest.raises(DataError, match=r"best_vs_worst makes no pair of 4 prompts \(tie 4\)"):
        go(recipe_of(), tmp_path / "run")


def test_a_round_without_a_completion_is_refused_with_the_reasons(
    recipe_of, go, tmp_path: Path
) -> None:
    nodes = stages(generate={"max_new_tokens": 1, "temperature": 0.0})
    with pytest.raises(DataError, match=r"Round 1: none of 16 completions .*unfinished 16"):
        go(recipe_of(each_round=nodes), tmp_path / "run")


def test_the_digest_of_a_folder_is_that_of_its_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "in").mkdir(parents=True)
        (tmp_path / name / "in" / "a").write_text("x")
    assert content_digest(str(tmp_path / "one")) == content_digest(str(tmp_path / "two"))
    (tmp_path / "two" / "in" / "a").rename(tmp_path / "two" / "b")
    assert content_digest(str(tmp_path / "one")) != content_digest(str(tmp_path / "two"))
    assert content_digest("owner/name@v1") == "owner/name@v1"


def test_what_a_stage_says_is_json_without_folders_of_this_machine(gone) -> None:
    text = json.dumps([{str(key): said} for key, said in gone.said.items()], allow_nan=False)
    assert str(gone.run) not in text


def test_a_filter_s_report_says_how_far_the_reward_goes(recipe_of, shop_of, tmp_path) -> None:
    """Reward x in 0, ..., 4 of five answers, of which those above 2 are right."""
    scores = (0.0, 1.0, 2.0, 3.0, 4.0)
    texts = [f"17+35=52\n52+28=80\n{n}" for n in (1, 2, 3, 80, 80)]
    row = JudgedPrompt(
        prompt=({"role": "user", "content": "17+35+28?"},),
        source="s",
        row=1,
        round=1,
        sampler="p",
        completions=tuple(texts),
        scores=scores,
        preferences=from_scores(scores),
        judge="j",
        calls=5,
    )
    (tmp_path / "judged").mkdir()
    (tmp_path / "pairs").mkdir()
    write_lines(tmp_path / "judged", [row.model_dump(mode="json")])
    context: Any = SimpleNamespace(round=1, input=tmp_path.joinpath, output=tmp_path.joinpath)

    node = Select.of(rule="filtered", filter="best_worst")
    said = SelectStage(node, "world:sums").run(context)
    right = [0.0, 0.0, 0.0, 1.0, 1.0]
    assert said["r2_all"] == r_squared([(s, c, 1.0) for s, c in zip(scores, right, strict=True)])
    # x 0 to 4, y 0, 0, 0, 1, 1: xy = 3, xx = 10, yy = 1.2, so R^2 = 9 / 12.
    assert said["r2_all"] == pytest.approx(0.75)
    # Two points are always on a line.
    assert {name for name in said if name.startswith("r2")} == {"r2_all", "r2_best_random"}
    (pair,) = read_lines(tmp_path / "pairs")
    assert pair["chosen"][0]["content"].endswith("80")
    assert "r2_all" not in SelectStage(node, "prompts.jsonl").run(context)
    other = Select.of(rule="best_vs_worst")
    assert "r2_all" not in SelectStage(other, "world:sums").run(context)
