"""What training shows: a line per log, or a bar, and the batches of an evaluation."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from align import progress as module
from align.trainers.progress import TrainingProgress, shown

LOGS = {"loss": 0.69314, "rewards/margins": 0.0121, "learning_rate": 1e-3}


class Driven:
    """A trainer's calls of the callback, by a clock that the test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, disable_tqdm: bool = False) -> None:
        self.at = 0.0
        monkeypatch.setattr(module, "now", lambda: self.at)
        self.args = TrainingArguments("out", disable_tqdm=disable_tqdm, report_to=[], use_cpu=True)
        self.state = TrainerState(max_steps=20, is_world_process_zero=True)
        self.callback = TrainingProgress()

    def call(self, event: str, **given: Any) -> None:
        getattr(self.callback, event)(self.args, self.state, TrainerControl(), **given)

    def step(self, seconds: float) -> None:
        self.at += seconds
        self.state.global_step += 1
        self.call("on_step_end")


def test_the_shown_numbers_are_few() -> None:
    assert shown(LOGS) == "loss 0.6931  margin 0.012"


def test_every_log_is_a_line_and_a_resumed_run_counts_its_own_steps(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "align")
    driven = Driven(monkeypatch)
    driven.state.global_step = 10
    driven.call("on_train_begin")
    driven.step(2.0)
    driven.step(2.0)
    driven.call("on_log", logs=LOGS)
    driven.call("on_log", logs={"eval_loss": 1.0})
    for _ in range(8):
        driven.step(2.0)
    driven.call("on_train_end")
    assert caplog.messages == [
        "train: 12/20 steps, loss 0.6931  margin 0.012, 0.5 steps/s, 16 s left",
        "train: 20 steps in 20 s, loss 0.6931  margin 0.012, 0.5 steps/s",
    ]


def test_slow_steps_say_themselves_between_two_logs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "align")
    driven = Driven(monkeypatch)
    driven.call("on_train_begin")
    driven.step(40.0)
    driven.step(40.0)
    assert [line.partition(",")[0] for line in caplog.messages] == [
        "train: 1/20 steps",
        "train: 2/20 steps",
    ]


def test_an_evaluation_stands_within_training(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "align")
    driven = Driven(monkeypatch)
    driven.call("on_train_begin")
    for _ in range(3):
        driven.at += 4.0
        driven.call("on_prediction_step", eval_dataloader=range(9))
    assert caplog.messages == [
        "train: 0/20 steps; evaluate: 2/9 batches, 0.25 batches/s, 28 s left"
    ]
    driven.call("on_evaluate")
    driven.call("on_train_end")
    assert caplog.messages[1:] == ["train: 0 steps in 12 s"]


def test_other_ranks_say_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "align")
    driven = Driven(monkeypatch)
    driven.state.is_world_process_zero = False
    driven.call("on_train_begin")
    driven.call("on_prediction_step", eval_dataloader=range(9))
    driven.step(60.0)
    driven.call("on_log", logs=LOGS)
    driven.call("on_train_end")
    assert caplog.messages == []


@pytest.mark.parametrize("disable_tqdm", [False, True])
def test_on_a_terminal_the_numbers_stand_in_the_bar_or_in_lines_as_wished(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, disable_tqdm: bool
) -> None:
    caplog.set_level(logging.INFO, "align")
    monkeypatch.setattr(module, "has_bars", lambda: True)
    monkeypatch.setattr("align.trainers.progress.has_bars", lambda: True)
    drawn: list[str] = []
    monkeypatch.setattr(module._bars, "add", lambda phase: drawn.append(str(phase)))
    driven = Driven(monkeypatch, disable_tqdm=disable_tqdm)
    driven.call("on_train_begin")
    driven.step(1.0)
    driven.call("on_log", logs=LOGS)
    assert bool(drawn) is not disable_tqdm
    assert len(caplog.messages) == int(disable_tqdm)


@pytest.mark.parametrize(("step", "logs"), [(18, False), (19, True)])
def test_the_last_step_is_logged_whatever_logging_steps_says(
    monkeypatch: pytest.MonkeyPatch, step: int, logs: bool
) -> None:
    driven = Driven(monkeypatch)
    driven.state.global_step = step
    driven.call("on_train_begin")
    driven.state.global_step += 1
    control = TrainerControl()
    driven.callback.on_step_end(driven.args, driven.state, control)
    assert control.should_log is logs
