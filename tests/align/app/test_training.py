"""Which policy stands behind which role in each round, and that memory and disk say the same."""

import gc
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from align.errors import Interrupted
from align.reference import weights_digest
from align.stages import train
from align.stages.policies import load_round_policy
from align.stages.train import RoundTraining
from tests import tiny_loops

ROLES = {
    "start": (
        {"name": "inpo", "eta": 1.0, "tau": 0.3},
        {"reference": "start", "previous": "round_start"},
        {"reference": (0, 0, 0), "previous": (0, 1, 2)},
    ),
    "round_start": (
        {"name": "dpo"},
        {"reference": "round_start"},
        {"reference": (0, 1, 2)},
    ),
    "previous_round": (
        {"name": "nash_mp"},
        {"reference": "previous_round", "anchor": "round_start"},
        {"reference": (0, 0, 1), "anchor": (0, 1, 2)},
    ),
    "earlier": (
        {"name": "apo"},
        {"previous": "round_start", "earlier": "previous_round"},
        {"previous": (0, 1, 2), "earlier": (0, 0, 1)},
    ),
}


@pytest.fixture
def weights_of(shop_of, policy: Path):
    """Function: a loop that was gone through -> digests of its policies, the start's first."""

    def digests(recipe: Any, gone: Any) -> list[str]:
        folders = [policy, *(gone.artefact(n, "policy") for n in range(1, recipe.rounds + 1))]
        return [
            weights_digest(load_round_policy(recipe, folder, str(policy), trainable=False))
            for folder in folders
        ]

    return digests


@pytest.mark.parametrize("case", ROLES)
def test_roles_are_the_policies_of_the_right_rounds(
    case: str, recipe_of, go, weights_of, tmp_path: Path
) -> None:
    objective, roles, expected = ROLES[case]
    recipe = recipe_of(objective=objective, roles=roles)
    gone = go(recipe, tmp_path / "run")
    digests = weights_of(recipe, gone)
    assert len(set(digests)) == 4, "a round that changes nothing tells nothing"
    for number in (1, 2, 3):
        said = gone.said[number, "train"]
        assert {role: who["weights"] for role, who in said["roles"].items()} == {
            role: digests[rounds[number - 1]] for role, rounds in expected.items()
        }
        if "reference" in expected:
            # The policy itself stands behind the role: at step 0 the two agree to the last bit.
            is_itself = expected["reference"][number - 1] == number - 1
            assert (said["probe"] is not None) == is_itself
            assert not is_itself or said["probe"]["margin"] == 0.0


def test_a_guide_is_the_model_at_its_path(recipe_of, go, shop_of, policy: Path, tmp_path) -> None:
    guide = tiny_loops.build_policy(tmp_path / "guide", seed=7)
    recipe = recipe_of(
        objective={"name": "tgdpo"}, roles={"reference": "round_start", "guide": str(guide)}
    )
    gone = go(recipe, tmp_path / "run")
    expected = weights_digest(load_round_policy(recipe, guide, str(policy), trainable=False))
    for number in (1, 2, 3):
        assert gone.said[number, "train"]["roles"]["guide"]["weights"] == expected

    # Another model at the same path: training is made again, what was sampled is not.
    shutil.rmtree(guide)
    tiny_loops.build_policy(guide, seed=8)
    again = go(recipe, tmp_path / "run")
    assert again.aside[0] == "1/04-train"
    assert (1, "generate") not in again.said
    assert again.said[1, "train"]["roles"]["guide"]["weights"] != expected


def test_the_anchor_is_the_average_of_the_rounds_and_comes_back_exactly(
    recipe_of, go, policy: Path, tmp_path: Path
) -> None:
    """a_0 = start, a_t = 0.9 a_(t-1) + 0.1 policy_t; round t + 1 is trained against a_t."""
    recipe = recipe_of(
        objective={"name": "nash_mp"}, roles={"reference": "start", "anchor": "ema:0.9"}
    )
    gone = go(recipe, tmp_path / "run")
    average = load_file(policy / "model.safetensors")
    for number in (1, 2, 3):
        anchor = weights_digest(
            load_round_policy(
                recipe,
                policy if number == 1 else gone.artefact(number - 1, "anchor"),
                str(policy),
                trainable=False,
            )
        )
        assert gone.said[number, "train"]["roles"]["anchor"]["weights"] == anchor
        newest = load_file(gone.artefact(number, "policy") / "model.safetensors")
        average = {name: 0.9 * average[name] + 0.1 * newest[name] for name in average}
        stored = load_file(gone.artefact(number, "anchor") / "model.safetensors")
        assert stored.keys() == average.keys()
        for name, tensor in stored.items():
            torch.testing.assert_close(tensor, average[name], rtol=0, atol=3e-7)
        assert any((stored[n] - newest[n]).abs().max() > 1e-3 for n in stored)
        average = stored


LORA = {
    "use_peft": True,
    "lora_r": 2,
    "lora_alpha": 8,
    "lora_target_modules": ["q_proj", "v_proj"],
    # TRL switches it off in memory, and the disk keeps it.
    "lora_dropout": 0.1,
}
KINDS = {"full": {}, "lora": LORA}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_handed_over_in_memory_equals_what_is_read_back(
    kind: str, recipe_of, go, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    recipe = recipe_of(
        model=KINDS[kind],
        train={"gradient_checkpointing": True},
        roles={"reference": "previous_round", "previous": "round_start"},
        each_round=[*tiny_loops.STAGES, {"run": "evaluate"}],
    )
    live = go(recipe, tmp_path / "live").files()
    request.getfixturevalue("reloading")
    assert go(recipe, tmp_path / "read").files() == live


def test_a_loop_of_adapters_keeps_one_base_and_one_adapter(
    recipe_of, go, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def second_copy(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a whole second model was loaded")

    monkeypatch.setattr("align.trainers.scoring.load_frozen", second_copy)
    recipe = recipe_of(model=LORA, train={"learning_rate": 1e-2})
    gone = go(recipe, tmp_path / "run")
    before: dict[str, torch.Tensor] = {}
    base = load_file(policy / "model.safetensors")
    for number in (1, 2, 3):
        folder = gone.artefact(number, "policy")
        assert not (folder / "model.safetensors").exists()
        about = json.loads((folder / "adapter_config.json").read_text())
        assert about["r"] == 2
        weights = load_file(folder / "adapter_model.safetensors")
        if before:
            # It goes on from where it was: A stays near, and B does not begin at 0 again.
            assert weights.keys() == before.keys()
            change = max((weights[n] - before[n]).abs().max() for n in weights)
            assert 0 < change < 0.2
        before = weights
    reference, previous = (
        [gone.said[n, "train"]["roles"][role]["weights"] for n in (1, 2, 3)]
        for role in ("reference", "previous")
    )
    # Round 1: the new adapter, which adds nothing yet; then the base with the adapter off.
    assert reference[1] == reference[2] == _digest_under_an_adapter(recipe, gone, policy, base)
    assert len(set(previous)) == 3
    assert previous[1:] == [
        weights_digest(
            load_round_policy(recipe, gone.artefact(n, "policy"), str(policy), trainable=True)
        )
        for n in (1, 2)
    ]


def _digest_under_an_adapter(recipe: Any, gone: Any, policy: Path, base: dict[str, Any]) -> str:
    model = load_round_policy(recipe, gone.artefact(1, "policy"), str(policy), trainable=False)
    state = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): tensor
        for name, tensor in model.state_dict().items()
        if ".default." not in name
    }
    assert state.keys() == base.keys()
    assert all(torch.equal(state[name], base[name]) for name in base)
    return weights_digest(model, without=[".default."])


@pytest.mark.parametrize("kind", KINDS)
def test_training_that_was_cut_off_goes_on_from_its_checkpoint(
    kind: str, recipe_of, go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from align.trainers.preference import PreferenceTrainer

    recipe = recipe_of(model=KINDS[kind], rounds=1, train={"num_train_epochs": 2})
    straight = go(recipe, tmp_path / "straight")
    assert straight.said[1, "train"]["steps"] >= 3
    save = PreferenceTrainer._save_checkpoint
    steps: list[int] = []

    class PowerCut(Exception):
        pass

    def cut_after_the_second(self: Any, *args: Any) -> None:
        save(self, *args)
        steps.append(self.state.global_step)
        if len(steps) == 2:
            raise PowerCut

    monkeypatch.setattr(PreferenceTrainer, "_save_checkpoint", cut_after_the_second)
    with pytest.raises(PowerCut):
        go(recipe, tmp_path / "cut")
    resumed = go(recipe, tmp_path / "cut")
    assert steps[2] == 3, "it began anew"
    assert resumed.files() == straight.files()
    assert not list((tmp_path / "cut").glob("rounds/*/.*")), "scratch is left"


def test_a_signal_while_training_leaves_a_checkpoint_and_says_so(
    recipe_of, go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os
    import signal

    from align.trainers.preference import PreferenceTrainer

    recipe = recipe_of(rounds=1, train={"num_train_epochs": 2, "save_steps": 100})
    step = PreferenceTrainer.training_step
    seen: list[int] = []

    def signalled(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(self.state.global_step)
        if len(seen) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(PreferenceTrainer, "training_step", signalled)
    with pytest.raises(Interrupted, match="Stopped by SIGTERM at step 1 of"):
        go(recipe, tmp_path / "run")
    go(recipe, tmp_path / "run")
    assert seen[:2] == [0, 1], "it began anew"


def test_a_round_leaves_nothing_of_its_trainer_in_memory(recipe_of, go, tmp_path: Path) -> None:
    """With a reference in circles its optimizer would stay until Python cleans up."""
    gc.collect()
    gc.disable()
    try:
        go(recipe_of(rounds=2), tmp_path / "run")
        left = [o for o in gc.get_objects() if issubclass(type(o), torch.optim.Optimizer)]
    finally:
        gc.enable()
    assert not left


def test_the_optimizer_is_gone_before_the_average_is_moved(
    recipe_of, go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[int] = []
    move = train.update_average

    def counted(*args: Any) -> None:
        left.append(sum(issubclass(type(o), torch.optim.Optimizer) for o in gc.get_objects()))
        move(*args)

    monkeypatch.setattr(train, "update_average", counted)
    roles = {"reference": "start", "anchor": "ema:0.9"}
    gc.collect()
    gc.disable()
    try:
        go(recipe_of(rounds=1, objective={"name": "nash_mp"}, roles=roles), tmp_path / "run")
    finally:
        gc.enable()
    assert left == [0]


def test_what_a_launch_config_says_is_part_of_the_key(recipe_of, place: Path, shop_of) -> None:
    config = place / "two.yaml"
    config.write_text("num_processes: 2\n")
    stages = [dict(s) for s in tiny_loops.STAGES[:3]] + [{"run": "train", "launch": str(config)}]

    recipe = recipe_of(each_round=stages)
    two = dict(shop_of(recipe).stages()[3].settings())
    config.write_text("num_processes: 4\n")
    assert dict(shop_of(recipe).stages()[3].settings()) != two


def test_only_roles_that_the_objective_reads_are_read(recipe_of) -> None:
    recipe = recipe_of(
        objective={"name": "dpo"}, roles={"reference": "previous_round", "anchor": "ema:0.5"}
    )
    training = RoundTraining(recipe)
    assert training.reads == ("policy@previous_round",)
    assert training.decay is None
