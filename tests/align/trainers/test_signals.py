"""A signal ends training in good order: step finished, checkpoint saved, handlers put back."""

import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from align.runs.manifest import damage
from align.trainers import DPOConfig, DPOTrainer

STEPS = 6


class SignalInStep(TrainerCallback):
    """Sends this process a signal in the middle of a step, as a scheduler would."""

    def __init__(self, number: int, step: int) -> None:
        self.number, self.step = number, step

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            os.kill(os.getpid(), self.number)


@pytest.fixture
def build(tiny_folder, tiny_tokenizer, pairs):
    def trainer(out: Path, *callbacks: TrainerCallback) -> DPOTrainer:
        return DPOTrainer(
            tiny_folder,
            args=DPOConfig(
                output_dir=str(out),
                learning_rate=5e-3,
                max_steps=STEPS,
                per_device_train_batch_size=4,
                logging_steps=4,
                save_steps=100,
                bf16=False,
                use_cpu=True,
                report_to=[],
                disable_tqdm=True,
                gradient_checkpointing=False,
                beta=0.3,
            ),
            train_dataset=pairs,
            processing_class=tiny_tokenizer,
            callbacks=list(callbacks),
        )

    return trainer


@pytest.fixture
def former_handlers():
    """Handlers of somebody else, who must find them again."""

    def somebody_elses(number, frame):
        raise AssertionError("the signal reached the former handler during training")

    former = {n: signal.signal(n, somebody_elses) for n in (signal.SIGTERM, signal.SIGINT)}
    yield somebody_elses
    for number, handler in former.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(
    number: signal.Signals, build, tmp_path, former_handlers
) -> None:
    stopped = build(tmp_path / "run", SignalInStep(number, 3))
    stopped.train()
    assert stopped.stopped_by == number.name
    assert stopped.state.global_step == 3
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-3"]
    assert damage(tmp_path / "run" / "checkpoint-3") is None
    assert signal.getsignal(signal.SIGTERM) is former_handlers
    assert signal.getsignal(signal.SIGINT) is former_handlers

    resumed = build(tmp_path / "run")
    resumed.train(resume_from_checkpoint=True)
    assert resumed.stopped_by is None
    assert resumed.state.global_step == STEPS

    straight = build(tmp_path / "straight")
    straight.train()
    expected = straight.model.state_dict()
    for name, tensor in resumed.model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    # The log of step 4 covers steps 1-3, which another process made.
    (first, *_), (found, *_) = straight.state.log_history, resumed.state.log_history
    assert found["step"] == first["step"] == 4
    for name in ("loss", "num_tokens", "rewards/margins", "logps/chosen"):
        assert found[name] == first[name], name


def test_an_error_in_training_puts_the_handlers_back_too(build, tmp_path, former_handlers) -> None:
    class Fails(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            assert signal.getsignal(signal.SIGTERM) is not former_handlers
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        build(tmp_path / "run", Fails()).train()
    assert signal.getsignal(signal.SIGTERM) is former_handlers
    assert signal.getsignal(signal.SIGINT) is former_handlers


def test_outside_the_main_thread_training_works_without_handlers(
    build, tmp_path, former_handlers
) -> None:
    seen: list[object] = []

    class Look(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            seen.append(signal.getsignal(signal.SIGTERM))

    trainer = build(tmp_path / "run", Look())
    thread = threading.Thread(target=trainer.train)
    thread.start()
    thread.join()
    assert trainer.state.global_step == STEPS
    assert seen == [former_handlers] * STEPS
