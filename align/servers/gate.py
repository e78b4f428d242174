"""When the next request to a server may go out: pacing, rate limits, outages."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field

from align.errors import MachineError
from align.servers.server import Transient

FIRST_WAIT = 0.5
LONGEST_WAIT = 60.0
# So many faults in a row are taken for an outage. Where 30 % of the requests fail independently,
# one request in 15,000 ends such a row, which then costs one short pause.
OUTAGE_FAULTS = 8


class Limits(BaseModel):
    """How hard a server is asked, and how long; a node of the recipe.

    Attributes:
        concurrency: requests that are open at the same time.
        requests_per_minute: most requests that are sent; None leaves it to the server.
        tries: requests that one call may cost before it counts as unanswered; those that a
            server in an outage does not even take do not count.
        answer_tries: unusable answers (no verdict, a refusal, nothing) before a call is given up.
        patience: seconds without any answer from the server after which the run stops.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    concurrency: int = Field(default=16, ge=1)
    requests_per_minute: float | None = Field(default=None, gt=0.0)
    # More than OUTAGE_FAULTS, or one request at a time would be given up before an outage is seen.
    tries: int = Field(default=12, gt=OUTAGE_FAULTS)
    answer_tries: int = Field(default=6, ge=1)
    patience: float = Field(default=4 * 3600.0, gt=0.0)


class Clock(Protocol):
    """Seconds that pass."""

    def now(self) -> float:
        """Seconds since some moment."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Returns after so many seconds."""
        ...


class WallClock:
    """The machine's own time."""

    def now(self) -> float:
        """Seconds since some moment."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Returns after so many seconds."""
        await asyncio.sleep(seconds)


def backoff(faults: int) -> float:
    """Seconds to wait after so many faults in a row: 1/2, 1, 2, ... up to a minute."""
    return min(FIRST_WAIT * 2.0 ** min(faults - 1, 30), LONGEST_WAIT)


class Gate:
    """What all requests to one server pass; for one event loop.

    A server that asks for a pause gets one from all requests. After OUTAGE_FAULTS faults in a row
    the calls take turns in probing the server, one request at a time and at growing distances,
    until one is answered.

    Args:
        server: what to call the server in a message.
        limits: pace and patience.
        clock: whose seconds count.
    """

    def __init__(self, server: str, limits: Limits, clock: Clock) -> None:
        self._server = server
        self._limits = limits
        self._clock = clock
        self._interval = 60.0 / limits.requests_per_minute if limits.requests_per_minute else 0.0
        self._next_slot = clock.now()
        self._held_until = clock.now()
        self._last_answer = clock.now()
        self._row: set[str] = set()
        self._holds = 0
        self._probes = 0
        self._is_out = False
        self._probing = asyncio.Lock()

    async def enter(self) -> bool:
        """Waits until a request may go out.

        Returns:
            True for a probe: until `leave`, no other request goes out.
        """
        while not self._is_out:
            wait = self._wait()
            if wait <= 0:
                self._take_slot()
                return False
            await self._clock.sleep(wait)
        await self._probing.acquire()
        try:
            while self._is_out and (wait := self._wait()) > 0:
                await self._clock.sleep(wait)
        except BaseException:
            self._probing.release()
            raise
        if not self._is_out:
            self._probing.release()
            return await self.enter()
        self._take_slot()
        return True

    def _wait(self) -> float:
        return max(self._held_until, self._next_slot) - self._clock.now()

    def _take_slot(self) -> None:
        self._next_slot = max(self._next_slot, self._clock.now()) + self._interval

    def leave(self, is_probe: bool) -> None:
        """Told once per `enter`, however the request ended, after `answered` or `failed`."""
        if is_probe:
            self._probing.release()

    def answered(self) -> None:
        """The server answered something, if only that the request is wrong."""
        self._row.clear()
        self._holds = self._probes = 0
        self._is_out = False
        self._last_answer = self._clock.now()

    def failed(self, fault: Transient, call: str, *, is_probe: bool) -> bool:
        """No answer, or the request to come back later.

        Args:
            fault: what happened.
            call: key of the call that met it.
            is_probe: what `enter` said.

        Returns:
            Whether the fault counts among the tries of its call: what the server alone is to blame
            for does not, once the outage is known.

        Raises:
            MachineError: the server has answered nothing for longer than `limits.patience`.
        """
        now = self._clock.now()
        counts = not (self._is_out and fault.is_servers)
        # One call that fails again and again is no outage, unless the server is to blame.
        self._row.add(f"{call}/{len(self._row)}" if fault.is_servers else call)
        self._is_out = len(self._row) >= OUTAGE_FAULTS
        self._probes += is_probe
        wait = fault.asked_to_wait
        if wait is None and is_probe:
            wait = backoff(self._probes)
        elif wait is None and fault.is_servers:
            # Requests that were open together are refused together: that is one step, not many.
            self._holds += now >= self._held_until
            wait = backoff(max(self._holds, 1))
        if wait is not None:
            self._held_until = max(self._held_until, now + wait)
        silent = now - self._last_answer
        if self._is_out and silent > self._limits.patience:
            raise MachineError(
                f"{self._server} has answered nothing for {silent / 60:.0f} minutes (last: "
                f"{fault.detail}). Start it again, or wait until it is back, and run the same "
                "command again: what was answered is stored and is not asked twice."
            )
        return counts
