"""The pipelines' nodes: what their draws are keyed by, and what they refuse at once."""

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from align import registry
from align.errors import RecipeError
from align.node import built
from align_data.expert_correction.on_policy import OnPolicyAlignment
from align_data.mcts.stage import MCTS
from align_data.site import Site
from align_data.stage import PipelineNode

SERVER = {"base_url": "http://localhost:1/v1", "model": "m", "revision": "1"}
LIKELIHOOD = {"kind": "likelihood", "batch_rows": 256}
# As in recipes/*/tiny.yaml, and what versions with one class for both searches computed for them.
TINY = {
    "mcts": (
        {
            "verify": "world",
            "confidence": "none",
            "step": "line",
            "first_breadth": 4,
            "breadth": 4,
            "depth": 3,
            "root_simulations": 16,
            "simulations": 8,
            "step_tokens": 16,
            "finish_tokens": 32,
            "chunk": 32,
        },
        "2db535b3cf4727c6",
    ),
    "self_reference": ({"annotator": "world", "decide": "soft"}, "1bedaa59cf009b37"),
    "uncertainty": (
        {
            "rewards": {"by": "world", "flips": 0.2},
            "labelled": "world:sums",
            "labelled_problems": 256,
            "estimator": LIKELIHOOD,
        },
        "f6564692af922fb2",
    ),
    "expert_correction": (
        {
            "expert_by": "world",
            "add_missing": True,
            "responses": {"max_new_tokens": 64, "top_k": 0, "top_p": 1.0},
            "pairs": ["gt_vs_gen", "rev_vs_gen", "gt_img", "rev_img"],
        },
        "c82dcd615f0526c5",
    ),
}
# Other settings, hashed by those versions too.
MORE = [
    ("mcts", {"verify": "world"}, "0ceda3aadbb4a3c6"),
    ("mcts", {"verify": "answers", "labels": "hard"}, "363cc1f3fbcbbba5"),
    ("mcts", {"verify": "world", "beyond_depth": "stop", "max_steps": 5}, "c20a86f5180b96ac"),
    ("uncertainty", {"labelled": "rows.jsonl"}, "dd83b6a808a340d8"),
    (
        "uncertainty",
        {"labelled": "rows.jsonl", "rewards": {"by": "answers", "path": "a.jsonl"}},
        "19db459c9b7d712e",
    ),
    (
        "uncertainty",
        {"labelled": "rows.jsonl", "rewards": {"by": "reward_model", "path": "some/m"}},
        "cd035b7a305e87b3",
    ),
]


def node(run: str, written: dict) -> PipelineNode:
    found = built(registry.node("stage", run), {"run": run, **written})
    assert isinstance(found, PipelineNode)
    return found


def recipe(source: str = "world:sums", **model: Any) -> Any:
    prompts = None if source == "" else SimpleNamespace(source=source)
    return SimpleNamespace(
        prompts=prompts, data=None, model=SimpleNamespace(**({"use_peft": False} | model))
    )


def workshop(source: str = "world:sums", **model: Any) -> Any:
    return SimpleNamespace(recipe=recipe(source, **model), model_settings={})


@pytest.mark.parametrize(
    ("run", "written", "digits"), [(run, *found) for run, found in TINY.items()] + MORE
)
def test_draws_stay_those_of_earlier_versions(run, written, digits):
    assert node(run, written).config_hash == digits


@pytest.mark.parametrize("run", TINY)
def test_what_moves_no_row_is_not_hashed(run):
    written, digits = TINY[run]
    other = {"labelled_problems": 300} if run == "uncertainty" else {"batch_rows": 7}
    assert node(run, written | other).config_hash == digits


def test_the_searches_draw_each_for_itself():
    agent_q = node("agent_q", {"verify": "world"})
    assert agent_q.config_hash != node("mcts", {"verify": "world"}).config_hash
    assert agent_q.config_hash != node("agent_q", {"verify": "world", "mix": 0.6}).config_hash


@pytest.mark.parametrize(
    ("run", "written"),
    [
        ("mcts", {"verify": "world", "threshold": 0.3}),
        ("mcts", {"verify": "world", "variant": "agent_q"}),
        ("agent_q", {"verify": "world", "confidence": "none"}),
    ],
)
def test_keys_of_the_other_search_are_refused(run, written):
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        node(run, written)


def test_the_stage_is_called_as_the_recipe_calls_it():
    for run in ("mcts", "agent_q"):
        stage = node(run, {"verify": "world"}).stage(workshop())
        assert (stage.name, stage.reads, stage.writes) == (run, ("policy",), ("pairs", "records"))


@pytest.mark.parametrize(
    ("run", "written", "reads"),
    [
        ("mcts", {"verify": "world", "server": SERVER}, ()),
        ("self_reference", {}, ("completions", "policy")),
        ("self_reference", {"annotator": "world"}, ("completions",)),
        ("uncertainty", {"labelled": "x"}, ("judged",)),
        ("uncertainty", {"labelled": "x", "rewards": {"by": "world"}}, ("completions",)),
        (
            "uncertainty",
            {"labelled": "x", "estimator": LIKELIHOOD | {"backbone": "round_start"}},
            ("judged", "policy"),
        ),
        ("expert_correction", {"expert_by": "world"}, ("policy",)),
    ],
)
def test_what_is_read(run, written, reads):
    assert node(run, written).reads == reads


@pytest.mark.parametrize(
    ("run", "written", "source", "says"),
    [
        ("mcts", {"verify": "world"}, "rows.jsonl", "world:sums, and prompts.source is 'rows.js"),
        ("agent_q", {"verify": "world"}, "world:styles", "`verify: answers`"),
        ("self_reference", {"annotator": "world"}, "world:scenes", "`annotator: policy`"),
        ("expert_correction", {"expert_by": "world"}, "world:styles", "world:sums or world:scenes"),
        ("expert_correction", {"expert_by": "world"}, "", "`expert_by: server`"),
        (
            "uncertainty",
            {"labelled": "x", "rewards": {"by": "world"}},
            "world:styles",
            "compares two responses to the prompts of world:styles",
        ),
        ("uncertainty", {"labelled": "x", "rewards": {"by": "world"}}, "rows.jsonl", "by: world"),
    ],
)
def test_a_world_without_such_rules_is_refused_at_once(run, written, source, says):
    with pytest.raises(RecipeError, match=says):
        node(run, written).stage(workshop(source))


def test_every_world_with_rules_makes_a_stage():
    for source in ("world:sums", "world:scenes"):
        node("expert_correction", {"expert_by": "world"}).stage(workshop(source))


def test_the_key_holds_what_moves_a_row_and_nothing_else():
    written = {"verify": "world", "batch_rows": 3, "server": SERVER}
    keyed = node("mcts", written).keyed()
    assert {"run", "batch_rows"}.isdisjoint(keyed)
    assert keyed["server"] == ["m", "1", {}]
    assert keyed == node("mcts", written | {"batch_rows": 9}).keyed()
    elsewhere = written | {"server": SERVER | {"base_url": "http://localhost:2/v1"}}
    assert keyed == node("mcts", elsewhere).keyed()
    assert "batch_rows" not in node("uncertainty", TINY["uncertainty"][0]).keyed()["estimator"]


def test_code_of_a_users_own_joins_the_key(tmp_path: Path):
    own = tmp_path / "rewards.py"
    own.write_text("def short(prompt, completion):\n    return -float(len(completion))\n")
    rewards = {"by": f"{own}:short"}
    labelled = tmp_path / "rows.jsonl"
    labelled.write_text("{}\n")
    given = {"labelled": str(labelled), "estimator": LIKELIHOOD}
    stage = node("uncertainty", given | {"rewards": rewards}).stage(workshop())
    assert list(stage.settings()["code"].values()) == [registry.find("judge", rewards["by"]).code]
    assert "code" not in node("uncertainty", given).stage(workshop()).settings()


@pytest.mark.parametrize(
    ("rewards", "says"),
    [
        ({"by": "llm", "server": SERVER}, "name a judge that scores one"),
        ({"by": "answers", "path": "a.jsonl", "flips": 0.1}, "turned over"),
        ({"by": "nobody"}, "no judge .?nobody"),
    ],
)
def test_rewards_come_from_judges_that_score(rewards, says):
    with pytest.raises(ValidationError, match=says):
        node("uncertainty", {"labelled": "x", "rewards": rewards})


def test_alignment_trains_and_wants_whole_weights():
    node_ = OnPolicyAlignment()
    assert OnPolicyAlignment.trains
    assert not MCTS.trains
    assert node_.stage(workshop()).reads == ("records", "policy")
    for wrong, made in ((OnPolicyAlignment(save="adapter"), {}), (node_, {"use_peft": True})):
        with pytest.raises(RecipeError, match="save: merged"):
            wrong.stage(workshop(**made))


def test_a_site_and_its_node_can_be_sent_to_another_process():
    site = Site(recipe(), "start", Path("policy"), Path("loop"), 1, 2)
    sent = pickle.loads(pickle.dumps((node("mcts", TINY["mcts"][0]), site)))
    assert sent[0] == node("mcts", TINY["mcts"][0])
    assert (sent[1].start, sent[1].prompts, sent[1].round) == ("start", "world:sums", 2)
