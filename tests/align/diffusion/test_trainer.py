"""Training from the first loss to the last checkpoint, interrupted and not."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from align.diffusion import (
    DiffusionDPO,
    DiffusionSFT,
    DiffusionTrainer,
    SePPO,
    SePPOConfig,
    SePPOTrainer,
)
from align.diffusion.denoiser import DiffusersDenoiser, Sampler
from align.diffusion.errors import batch_errors, draw_noise
from align.diffusion.policies import TwoAdapters, TwoNetworks
from align.diffusion.pool import batches_of_round, rows_of_round
from align.diffusion.replay import state_digest
from align.diffusion.seeds import generator_for
from align.errors import DataError, Interrupted, MachineError, NumericalError, RecipeError
from align.types import Pair
from align.worlds.unet import scheduler_from_scratch
from tests.align.diffusion.small import random_records, settings, small_network


def weights(trainer: DiffusionTrainer) -> str:
    return state_digest(trainer.policy.state())


def stop_after(updates: int, trainer: DiffusionTrainer) -> Callable[[], str | None]:
    return lambda: "SIGTERM" if trainer.step >= updates else None


@pytest.mark.parametrize("adapters", [False, True])
@pytest.mark.parametrize("objective", [SePPO(), DiffusionDPO()])
def test_the_first_loss_is_log_2_exactly(trainer_of, objective, adapters) -> None:
    log = trainer_of(objective, adapters=adapters, rounds=1, updates_per_round=1).train()
    assert log[0]["loss"] == torch.tensor(2.0).log().item()
    assert log[0]["rewards/accuracies"] == 0.5
    assert log[0]["rewards/margins"] == 0
    assert log[0].get("flip_rate", 0) == 0
    assert log[0]["grad_norm"] > 0


@pytest.mark.parametrize("adapters", [False, True])
def test_the_reference_is_a_checkpoint_and_never_changes(trainer_of, adapters, tmp_path) -> None:
    trainer = trainer_of(SePPO(beta=40), adapters=adapters, output_dir=tmp_path, rounds=5)
    seen: list[tuple[int, str]] = []
    update = trainer._update

    def watched(*args: Any) -> None:
        before = state_digest(trainer.policy.reference_state())
        update(*args)
        assert state_digest(trainer.policy.reference_state()) == before
        seen.append((trainer.reference_number, before))

    trainer._update = watched
    trainer.train()
    kept = {number: state_digest(trainer.replay.load(number)) for number in range(6)}
    assert len(set(kept.values())) == 6
    assert all(digest == kept[number] for number, digest in seen)
    assert len({number for number, _ in seen}) > 1
    assert kept[5] == weights(trainer)
    assert [entry["reference"] for entry in trainer.log.history] == [n for n, _ in seen]


@pytest.mark.parametrize(("strategy", "expected"), [("latest", [0, 1, 2]), ("initial", [0, 0, 0])])
def test_strategies(trainer_of, strategy, expected) -> None:
    log = trainer_of(SePPO(reference_selection=strategy), updates_per_round=1).train()
    assert [entry["reference"] for entry in log] == expected


def test_latest_starts_each_round_at_log_2(trainer_of) -> None:
    # The newest checkpoint is the policy itself; with the first one it is not.
    latest = trainer_of(SePPO(reference_selection="latest")).train()
    initial = trainer_of(SePPO(reference_selection="initial")).train()
    firsts = [entry["loss"] for entry in latest][::2]
    assert firsts == pytest.approx([math.log(2)] * 3, abs=1e-7)
    assert abs(initial[2]["loss"] - math.log(2)) > 1e-4


@pytest.mark.parametrize("adapters", [False, True])
@pytest.mark.parametrize("after", [3, 4])
def test_an_interrupted_run_ends_as_if_it_had_not_been(
    trainer_of, tmp_path: Path, adapters: bool, after: int
) -> None:
    objective = SePPO(beta=40)
    whole = trainer_of(objective, adapters=adapters, output_dir=tmp_path / "whole", rounds=4)
    expected = whole.train()

    def part() -> DiffusionTrainer:
        return trainer_of(objective, adapters=adapters, output_dir=tmp_path / "part", rounds=4)

    first = part()
    with pytest.raises(Interrupted, match=f"after update {after} of 8"):
        first.train(stop_after(after, first))
    samples = tmp_path / "part" / "samples" / "process-0.safetensors"
    pool = samples.read_bytes()
    torch.manual_seed(99)
    second = part()
    assert second.train() == expected
    assert weights(second) == weights(whole)
    assert second.replay.numbers() == whole.replay.numbers() == [0, 1, 2, 3, 4]
    assert samples.read_bytes() != pool
    # A finished run that is asked again does nothing.
    third = part()
    assert third.train() == expected
    assert weights(third) == weights(whole)


def test_a_resumed_round_reads_its_samples_again(trainer_of, tmp_path: Path, monkeypatch) -> None:
    first = trainer_of(SePPO(), output_dir=tmp_path)
    with pytest.raises(Interrupted):
        first.train(stop_after(3, first))
    second = trainer_of(SePPO(), output_dir=tmp_path)
    made: list[int] = []
    sample = second.denoiser.sample
    monkeypatch.setattr(
        second.denoiser, "sample", lambda *a, **k: made.append(second.step) or sample(*a, **k)
    )
    second.train()
    # Round 2 lies on disk; round 3 starts after update 4.
    assert made == [4]


def test_a_run_with_other_settings_does_not_go_on(trainer_of, tmp_path: Path) -> None:
    trainer_of(SePPO(), output_dir=tmp_path, rounds=1).train()
    with pytest.raises(RecipeError, match="objective"):
        trainer_of(SePPO(beta=3), output_dir=tmp_path, rounds=1).train()
    newest = tmp_path / "newest" / "progress.json"
    newest.write_text(newest.read_text() + " ")
    with pytest.raises(RecipeError, match=r"progress\.json"):
        trainer_of(SePPO(), output_dir=tmp_path, rounds=1).train()


def test_runs_are_reproducible_and_seeds_differ(trainer_of) -> None:
    one, same, other = (trainer_of(SePPO(), seed=seed) for seed in (0, 0, 1))
    torch.manual_seed(1)
    one.train()
    torch.manual_seed(2)
    same.train()
    other.train()
    assert weights(one) == weights(same) != weights(other)


def test_accumulated_batches_are_one_batch(trainer_of) -> None:
    # Two batches of one record: the gradient that is clipped is the mean of the records' own.
    trainer = trainer_of(
        DiffusionSFT(), gradient_accumulation_steps=2, per_device_train_batch_size=1, rounds=1,
        updates_per_round=1, pool_size=2, learning_rate=1e-9,
    )  # fmt: skip
    gradients: dict[str, torch.Tensor] = {}
    clip = trainer.accelerator.clip_grad_norm_

    def spy(parameters: Any, norm: float) -> Any:
        gradients["sum"] = torch.cat([p.grad.flatten().clone() for p in parameters])
        return clip(parameters, norm)

    trainer.accelerator.clip_grad_norm_ = spy
    log = trainer.train()
    expected = []
    generator_losses = []
    for part in range(2):
        _, rows = rows_of_round(12, 2, 0, 1)
        place = batches_of_round(2, 1, 2, 1, 0, seed=0)[part].item()
        batch = trainer.data.batch([rows[int(place)]])
        t, e = draw_noise(batch, 50, generator_for(0, "update", 0, part, 0), "uniform", (0, 1))
        network = small_network()
        errors = batch_errors(
            trainer.denoiser, network, None, batch, None, t, e, "mean", torch.device("cpu")
        )
        errors.policy.chosen.mean().backward()
        expected.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
        generator_losses.append(errors.policy.chosen.item())
    torch.testing.assert_close(gradients["sum"], (expected[0] + expected[1]) / 2)
    assert log[0]["loss"] == pytest.approx(sum(generator_losses) / 2)


def test_fine_tuning_learns_the_images(trainer_of) -> None:
    data = random_records(4)
    trainer = trainer_of(
        DiffusionSFT(), data=data, rounds=1, updates_per_round=40, per_device_train_batch_size=4
    )
    log = trainer.train()
    losses = [entry["loss"] for entry in log]
    assert sum(losses[-10:]) < 0.85 * sum(losses[:10])
    assert trainer.replay.numbers() == []


def test_diffusion_dpo_prefers_the_chosen_images(trainer_of) -> None:
    trainer = trainer_of(
        DiffusionDPO(beta=40), data=random_records(4), rounds=2, updates_per_round=20,
        per_device_train_batch_size=4,
    )  # fmt: skip
    log = trainer.train()
    assert {entry["reference"] for entry in log} == {0}
    late = [entry["rewards/accuracies"] for entry in log[-10:]]
    assert sum(late) / 10 > 0.8
    assert sum(entry["rewards/margins"] for entry in log[-10:]) > 0


def test_spin_is_diffusion_dpo_on_the_references_samples(trainer_of) -> None:
    """One round from the initial reference without the flip: one SPIN-Diffusion iteration."""
    spin = trainer_of(
        SePPO(beta=40, anchor_flip=False, reference_selection="initial"), rounds=1, pool_size=4,
        updates_per_round=3,
    )  # fmt: skip
    rejected: dict[int, torch.Tensor] = {}
    start = spin._start_round

    def watched(*args: Any) -> Any:
        pool = start(*args)
        rejected.update(zip(pool.rows, pool.samples, strict=True))
        return pool

    spin._start_round = watched
    expected = [entry["loss"] for entry in spin.train()]
    data = random_records()
    for row, sample in rejected.items():
        data.rejected[row] = sample.numpy()  # type: ignore[index]
    dpo = trainer_of(DiffusionDPO(beta=40), data=data, rounds=1, pool_size=4, updates_per_round=3)
    assert [entry["loss"] for entry in dpo.train()] == expected
    assert weights(dpo) == weights(spin)


def test_the_two_images_of_a_record_share_noise_and_timestep(trainer_of) -> None:
    trainer = trainer_of(SePPO())
    batch = trainer.data.batch([0, 1])
    t, e = torch.tensor([3, 40]), torch.randn(2, 3, 8, 8)
    found = batch_errors(
        trainer.denoiser, trainer.model, trainer.policy, batch, batch.chosen, t, e, "mean",
        torch.device("cpu"),
    )  # fmt: skip
    torch.testing.assert_close(found.policy.chosen, found.policy.rejected)
    assert isinstance(found.reference, Pair)
    assert not found.reference.chosen.requires_grad
    assert found.policy.chosen.requires_grad


def test_named_trainer_and_its_configuration() -> None:
    config = SePPOConfig(
        beta=40, anchor_flip=False, reference_selection="latest", rounds=2, updates_per_round=3,
        **settings().model_dump(include={"pool_size", "sampler", "use_cpu", "logging_steps"}),
    )  # fmt: skip
    assert config.objective == SePPO(beta=40, anchor_flip=False, reference_selection="latest")
    assert config.training.max_steps == 6
    network = small_network()
    trainer = SePPOTrainer(
        TwoNetworks(network),
        DiffusersDenoiser(scheduler_from_scratch(50), Sampler(steps=2, guidance_scale=1.0)),
        config,
        random_records(rejected=False),
    )
    assert len(trainer.train()) == 6
    with pytest.raises(ValueError, match="bta"):
        SePPOConfig(bta=1)  # type: ignore[call-arg]


def test_flow_matching_trains(tmp_path: Path) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    denoiser = DiffusersDenoiser(
        FlowMatchEulerDiscreteScheduler(num_train_timesteps=50), Sampler(None, 2, 1.0)
    )
    policy = TwoAdapters(small_network(), rank=2, alpha=4, target_modules=("to_q",), seed=0)
    log = DiffusionTrainer(
        policy, denoiser, SePPO(), settings(timesteps="logit_normal"), random_records()
    ).train()
    assert log[0]["loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert all(math.isfinite(entry["loss"]) for entry in log)


def test_what_cannot_be_trained_is_refused(trainer_of, monkeypatch) -> None:
    with pytest.raises(DataError, match="rejected image"):
        trainer_of(DiffusionDPO(), data=random_records(rejected=False))
    trainer = trainer_of(SePPO())
    with torch.no_grad():
        trainer.policy.network.conv_out.bias.fill_(float("inf"))
    with pytest.raises(NumericalError, match="samples"):
        trainer.train()
    trainer = trainer_of(DiffusionSFT())
    with torch.no_grad():
        trainer.policy.network.conv_out.bias.fill_(float("nan"))
    with pytest.raises(NumericalError, match="update 1 is nan"):
        trainer.train()

    from accelerate import Accelerator
    from accelerate.utils import DistributedType

    monkeypatch.setattr(Accelerator, "distributed_type", property(lambda _: DistributedType.FSDP))
    with pytest.raises(MachineError, match="FSDP"):
        trainer_of(SePPO())


def test_learning_rate(trainer_of) -> None:
    def rates(**changes: Any) -> list[float]:
        log = trainer_of(DiffusionSFT(), learning_rate=1.0, max_grad_norm=1e-6, **changes).train()
        return [entry["learning_rate"] for entry in log]

    assert rates(warmup_steps=2) == [0.5, 1, 1, 1, 1, 1]
    assert rates(lr_scheduler_type="linear", warmup_steps=2) == [0.5, 1, 1, 0.75, 0.5, 0.25]
    assert rates(lr_scheduler_type="cosine")[3] == pytest.approx(0.5)


def test_samples_are_made_before_a_stop_is_heard_too_late(trainer_of) -> None:
    with pytest.raises(Interrupted, match="made its samples"):
        trainer_of(SePPO()).train(lambda: "SIGTERM")


def test_under_bfloat16_policy_and_reference_still_tie(trainer_of) -> None:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    try:
        for adapters in (False, True):
            trainer = trainer_of(SePPO(), adapters=adapters, bf16=True, rounds=1)
            log = trainer.train()
            assert log[0]["loss"] == torch.tensor(2.0).log().item()
            assert log[0]["flip_rate"] == 0
            assert {p.dtype for p in trainer.policy.network.parameters()} == {torch.float32}
    finally:
        AcceleratorState._reset_state(True)


def test_the_log_is_plain_json(trainer_of) -> None:
    log = trainer_of(SePPO()).train()
    assert json.loads(json.dumps(log, allow_nan=False)) == log
