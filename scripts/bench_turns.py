"""Two training loops that take turns, step by step, in one process, and measure their own steps."""

from __future__ import annotations

import ctypes
import gc
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback


@dataclass(frozen=True)
class Step:
    """One optimizer step.

    Attributes:
        seconds: CPU time of the process, or time on the GPU.
        wall: seconds.
        peak: bytes above what was in use before; None where the machine does not say.
        tokens: slots that the model computed for the policy, padding included.
        loss: mean over the pairs.
    """

    seconds: float
    wall: float
    peak: int | None
    tokens: int
    loss: float


class CpuMeter:
    """CPU time of the process, and the kernel's high-water mark of its memory."""

    NEW_PEAK, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    _ARENAS = -8

    def __init__(self) -> None:
        self._libc: Any = ctypes.CDLL(None)
        self._measures_memory = self.NEW_PEAK.exists() and hasattr(self._libc, "malloc_trim")
        if self._measures_memory:
            # One heap for both threads, so that what one loop freed is given back for the other.
            self._libc.mallopt(self._ARENAS, 1)

    def begin(self) -> None:
        gc.collect()
        if self._measures_memory:
            # Memory that was freed and kept would hide the peak of what comes.
            self._libc.malloc_trim(0)
            self.NEW_PEAK.write_text("5")
            self._before = self._kilobytes("VmRSS")
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def end(self) -> tuple[float, float, int | None]:
        """Seconds of CPU, seconds of wall time, bytes."""
        cpu, wall = time.process_time() - self._cpu, time.perf_counter() - self._wall
        if not self._measures_memory:
            return cpu, wall, None
        return cpu, wall, (self._kilobytes("VmHWM") - self._before) * 1024

    def _kilobytes(self, name: str) -> int:
        (line,) = [one for one in self.STATUS.read_text().splitlines() if one.startswith(name)]
        return int(line.split()[1])


class CudaMeter:
    """Time between CUDA events, and the allocator's peak."""

    def begin(self) -> None:
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        self._before = torch.cuda.memory_allocated()
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        self._wall = time.perf_counter()
        self._events[0].record()

    def end(self) -> tuple[float, float, int | None]:
        """Seconds on the GPU, seconds of wall time, bytes."""
        self._events[1].record()
        torch.cuda.synchronize()
        wall = time.perf_counter() - self._wall
        milliseconds = self._events[0].elapsed_time(self._events[1])
        return milliseconds / 1000, wall, torch.cuda.max_memory_allocated() - self._before


Meter = CpuMeter | CudaMeter


def meter_of(device: str) -> Meter:
    return CudaMeter() if device == "cuda" else CpuMeter()


class Turns:
    """Whose step it is: 0 and 1 alternate, and so does who goes first."""

    def __init__(self, steps: int) -> None:
        self._order = [side for step in range(steps) for side in ((0, 1), (1, 0))[step % 2]]
        self._at = 0
        self._failed = False
        self._changed = threading.Condition()

    def wait_for(self, side: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._failed or self._order[self._at] == side)
        self._stop_if_failed()

    def wait_for_the_end(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._failed or self._at == len(self._order))
        self._stop_if_failed()

    def _stop_if_failed(self) -> None:
        if self._failed:
            raise RuntimeError("the other training loop failed")

    def hand_over(self) -> None:
        with self._changed:
            self._at += 1
            self._changed.notify_all()

    def fail(self) -> None:
        with self._changed:
            self._failed = True
            self._changed.notify_all()


class Side(TrainerCallback):
    """One of the two loops: waits for its turns, and measures its own steps."""

    def __init__(self, number: int, turns: Turns, meter: Meter, steps: int) -> None:
        self.number, self.turns, self.meter, self.wanted = number, turns, meter, steps
        self.steps: list[Step] = []
        self.tokens, self.loss = 0, torch.zeros(())

    def begin(self, model: Any) -> None:
        """A step begins; the turn lasts until the next one, and logging belongs to it."""
        if self.steps:
            self.turns.hand_over()
        self.turns.wait_for(self.number)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        self.meter.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        seconds, wall, peak = self.meter.end()
        self.steps.append(Step(seconds, wall, peak, self.tokens, float(self.loss)))
        control.should_training_stop = len(self.steps) == self.wanted
        return control

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.turns.hand_over()
        self.turns.wait_for_the_end()
