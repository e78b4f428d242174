"""Many calls of one model server: the store first, then bounded concurrency and patience.

A call that comes back is in the store before anybody sees its answer. Whatever fails on the way is
tried again; what fails for good is `Unanswered` with its reason, and is asked again by the next
run. The order of the results is the order of the calls.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from align.errors import RecipeError
from align.progress import Phase, progress
from align.servers.calls import Answered, CallStore
from align.servers.gate import Clock, Gate, Limits, WallClock, backoff
from align.servers.server import Call, Caller, Rejected, Reply, Transient, Unanswered

# So many requests in a row that the server calls wrong, with none right, mean a wrong setting.
ALL_WRONG = 16
R = TypeVar("R")


@dataclass
class Spent:
    """What a caller has cost so far.

    Attributes:
        asked: calls that somebody wanted.
        stored: those that the store answered, and repetitions within one batch.
        requests: requests sent to the server, tries included.
        unanswered: calls that ended without an answer.
        prompt_tokens: of the usable answers, as the server counts them.
        completion_tokens: of the usable answers, as the server counts them.
    """

    asked: int = 0
    stored: int = 0
    requests: int = 0
    unanswered: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def to_json(self) -> dict[str, int]:
        """Plain values for the ledger."""
        return asdict(self)


class CachedCaller:
    """Asks a server for what the store does not hold yet.

    Args:
        caller: sends the requests.
        store: keeps the usable answers.
        limits: concurrency, pace, tries and patience.
        clock: whose seconds count.
    """

    def __init__(
        self,
        caller: Caller,
        store: CallStore,
        limits: Limits | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.caller = caller
        self.store = store
        self.limits = limits or Limits()
        self.clock = clock or WallClock()
        self.spent = Spent()

    def ask(
        self, calls: Sequence[Call], trouble: Callable[[Call, Reply], Unanswered | None]
    ) -> list[Reply | Unanswered]:
        """One result per call, in their order; equal calls are asked once.

        Args:
            calls: what to ask.
            trouble: why an answer is unusable, or None; only usable ones are stored.

        Raises:
            AlignError: what no other try can mend; what was answered by then is stored.
        """
        keys = [call.key(self.caller.model, self.caller.revision) for call in calls]
        results: dict[str, Reply | Unanswered] = {}
        missing: dict[str, Call] = {}
        for key, call in zip(keys, calls, strict=True):
            stored = self.store.get(key)
            if stored is None:
                missing[key] = call
            else:
                results[key] = Reply(**json.loads(stored))
        self.spent.asked += len(keys)
        self.spent.stored += len(keys) - len(missing)
        if missing:
            stored = len(results)
            title = f"calls of {self.caller.model}"
            with progress(title, stored + len(missing), "calls", done=stored) as advance:
                _complete(self._ask_missing(missing, results, trouble, advance))
        self.spent.unanswered += sum(isinstance(results[key], Unanswered) for key in missing)
        return [results[key] for key in keys]

    async def _ask_missing(
        self,
        missing: Mapping[str, Call],
        results: dict[str, Reply | Unanswered],
        trouble: Callable[[Call, Reply], Unanswered | None],
        advance: Phase,
    ) -> None:
        queue = iter(missing.items())
        async with self.caller.connect() as send:
            # What the store answered counts: a run that only repeats its few wrong calls is no
            # sign of a wrong setting.
            batch = _Batch(self, send, trouble, queue, results, advance, answered=len(results))
            workers = [
                asyncio.create_task(batch.work())
                for _ in range(min(self.limits.concurrency, len(missing)))
            ]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
                await batch.finish()


@dataclass
class _Batch:
    """The calls of one `ask`, while they are under way in one event loop.

    Attributes:
        answered: calls with an answer so far, the store's included.
        wrong: calls that the server rejected.
        waiting: answers that are to be written, and who waits for that.
    """

    owner: CachedCaller
    send: Callable[[Call], Awaitable[Reply]]
    trouble: Callable[[Call, Reply], Unanswered | None]
    queue: Iterator[tuple[str, Call]]
    results: dict[str, Reply | Unanswered]
    advance: Phase
    answered: int
    wrong: int = 0
    waiting: list[tuple[Answered, asyncio.Future[str]]] = field(default_factory=list)
    writer: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        owner = self.owner
        self.server = f"The server of {owner.caller.model} at {owner.caller.address}"
        self.gate = Gate(self.server, owner.limits, owner.clock)

    async def finish(self) -> None:
        """Waits for the disk: also an answer that nobody waits for any more is kept."""
        if self.writer is not None:
            await self.writer

    async def work(self) -> None:
        """One of the workers: takes calls until none is left."""
        for key, call in self.queue:
            reply = self.results[key] = await self._settle(key, call)
            tokens = reply.completion_tokens if isinstance(reply, Reply) else None
            self.advance(1, tokens=tokens or 0)

    async def _settle(self, key: str, call: Call) -> Reply | Unanswered:
        limits = self.owner.limits
        # Waits are spread by the call's own numbers, so that a run can be repeated.
        spread = random.Random(key)
        tries = unusable = 0
        while True:
            try:
                reply = await self._send_once(key, call)
            except Rejected as rejected:
                return self._wrong(str(rejected))
            except _Fault as fault:
                tries += fault.counts
                if tries >= limits.tries:
                    return Unanswered("unanswered", f"{tries} tries; the last: {fault}")
                if not fault.is_held:
                    await self.owner.clock.sleep(backoff(tries) * spread.uniform(0.5, 1.0))
                continue
            problem = self.trouble(call, reply)
            if problem is None:
                return await self._keep(key, call, reply)
            unusable += 1
            if unusable >= limits.answer_tries:
                return Unanswered(problem.reason, f"{problem.detail}, {unusable} times")

    async def _send_once(self, key: str, call: Call) -> Reply:
        gate = self.gate
        is_probe = await gate.enter()
        try:
            self.owner.spent.requests += 1
            try:
                reply = await self.send(call)
            except Transient as fault:
                counts = gate.failed(fault, key, is_probe=is_probe)
                raise _Fault(fault, counts=counts) from fault
            except Rejected:
                gate.answered()
                raise
            gate.answered()
            self.answered += 1
            return reply
        finally:
            gate.leave(is_probe)

    def _wrong(self, detail: str) -> Unanswered:
        self.wrong += 1
        if self.wrong >= ALL_WRONG and not self.answered:
            raise RecipeError(
                f"{self.server} calls every one of the first {self.wrong} requests "
                f"wrong: {detail}. Look at the model's name, the sampling settings and the extra "
                "fields of the endpoint."
            )
        return Unanswered("rejected", detail)

    async def _keep(self, key: str, call: Call, reply: Reply) -> Reply:
        """Returns the reply that stands in the store, once it is on disk there."""
        caller, spent = self.owner.caller, self.owner.spent
        about = {
            "model": caller.model,
            "revision": caller.revision,
            "parameters": dict(call.parameters),
            "template": call.template,
            "parser": call.parser,
            "sample": call.sample,
        }
        answer = json.dumps(asdict(reply))
        done: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.waiting.append((Answered(key, about, answer), done))
        if self.writer is None or self.writer.done():
            self.writer = asyncio.create_task(self._write())
        standing = Reply(**json.loads(await done))
        spent.prompt_tokens += reply.prompt_tokens or 0
        spent.completion_tokens += reply.completion_tokens or 0
        return standing

    async def _write(self) -> None:
        # Answers that arrive while the disk is busy share the next transaction: waiting for the
        # disk once per answer would be the slowest part of a fast server.
        while self.waiting:
            batch, self.waiting = self.waiting, []
            try:
                standing = await asyncio.to_thread(
                    self.owner.store.put_many, [answered for answered, _ in batch]
                )
            except Exception as error:
                for _, done in batch:
                    if not done.done():
                        done.set_exception(error)
                continue
            for (_, done), answer in zip(batch, standing, strict=True):
                if not done.done():
                    done.set_result(answer)


class _Fault(Exception):
    """A transient fault, and what the gate made of it."""

    def __init__(self, fault: Transient, *, counts: bool) -> None:
        super().__init__(fault.detail)
        self.counts = counts
        # The gate holds all requests for these, so the call needs no wait of its own.
        self.is_held = fault.is_servers or fault.asked_to_wait is not None


def _complete(work: Coroutine[Any, Any, R]) -> R:
    """Runs `work` to its end; in a thread where this one has a running loop, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    begun: Future[Callable[[], object]] = Future()

    async def cancellable() -> R:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        begun.set_result(lambda: loop.call_soon_threadsafe(task.cancel))
        return await work

    with ThreadPoolExecutor(max_workers=1) as pool:
        ended = pool.submit(asyncio.run, cancellable())
        try:
            return ended.result()
        except BaseException:
            # Ctrl-C reaches this thread only; without this it would wait for all the calls.
            if not ended.done():
                begun.result()()
            raise
