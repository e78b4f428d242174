"""A clock for one event loop that passes only while everybody sleeps and no request is open."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from align.servers.server import Call, Caller, Reply


class VirtualClock:
    """Attributes:
    seconds: that have passed.
    open_requests: that somebody waits for.
    hanging: how many of them the server has decided not to answer.
    """

    def __init__(self, hanging: Callable[[], int] = lambda: 0) -> None:
        self.seconds = 0.0
        self.hanging = hanging
        self.open_requests = 0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = 0
        self._driver: asyncio.Task[None] | None = None

    def now(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._count += 1
        heapq.heappush(self._sleepers, (self.seconds + seconds, self._count, woken))
        if self._driver is None or self._driver.done():
            self._driver = asyncio.create_task(self._drive())
        await woken

    async def _drive(self) -> None:
        while self._sleepers:
            # Whoever can go on without the clock goes first.
            for _ in range(5):
                await asyncio.sleep(0)
            if self.open_requests > self.hanging():
                await asyncio.sleep(0.0005)
                continue
            deadline, _, woken = heapq.heappop(self._sleepers)
            if not woken.done():
                self.seconds = max(self.seconds, deadline)
                woken.set_result(None)


class Watched:
    """A caller whose open requests hold the clock."""

    def __init__(self, caller: Caller, clock: VirtualClock) -> None:
        self._caller = caller
        self._clock = clock

    @property
    def model(self) -> str:
        return self._caller.model

    @property
    def revision(self) -> str:
        return self._caller.revision

    @property
    def address(self) -> str:
        return self._caller.address

    @property
    def extra(self) -> Mapping[str, Any]:
        return self._caller.extra

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Callable[[Call], Awaitable[Reply]]]:
        async with self._caller.connect() as send:

            async def watched(call: Call) -> Reply:
                self._clock.open_requests += 1
                try:
                    return await send(call)
                finally:
                    self._clock.open_requests -= 1

            yield watched
