"""Many calls of one server: order, tries, outages, pace, and what a stop leaves behind."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import asynccontextmanager

import pytest

from align.errors import Interrupted, MachineError, RecipeError
from align.servers.caller import CachedCaller
from align.servers.calls import CallStore
from align.servers.endpoint import Endpoint, OpenAICaller
from align.servers.gate import OUTAGE_FAULTS, Limits
from align.servers.server import Call, Rejected, Reply, Transient, Unanswered, no_text
from tests.align.judges.fault_server import FaultServer
from tests.align.judges.virtual_clock import VirtualClock, Watched

HOUR = 3600.0


class Scripted:
    """A server in memory: `behave(number of the call, attempt)` gives the reply or raises."""

    model = "m"
    revision = "r"
    address = "memory"
    extra: dict[str, object] = {}  # noqa: RUF012

    def __init__(self, behave):
        self.behave = behave
        self.attempts = Counter()
        self.open = self.most_open = 0

    @property
    def requests(self):
        return self.attempts.total()

    @asynccontextmanager
    async def connect(self):
        async def send(call):
            number = int(call.prompt)
            attempt = self.attempts[number]
            self.attempts[number] += 1
            self.open += 1
            self.most_open = max(self.most_open, self.open)
            try:
                await asyncio.sleep(0)
                return self.behave(number, attempt)
            finally:
                self.open -= 1

        yield send


def reply(number):
    return Reply(f"answer {number}", "stop", prompt_tokens=10, completion_tokens=2)


def calls(n):
    return [Call(str(i), {"temperature": 0}, "t", "p") for i in range(n)]


def texts(results):
    return [result.text if isinstance(result, Reply) else result.reason for result in results]


class Bench:
    """A store, a scripted server and a clock that belong together."""

    def __init__(self, store, behave, **limits):
        self.clock = VirtualClock()
        self.server = Scripted(behave)
        self.caller = CachedCaller(
            Watched(self.server, self.clock), store, Limits(**limits), self.clock
        )

    def ask(self, wanted, trouble=lambda _, reply: no_text(reply)):
        return self.caller.ask(wanted, trouble)


@pytest.fixture
def store(tmp_path):
    with CallStore(tmp_path / "calls.sqlite") as store:
        yield store


def test_results_come_in_the_order_of_the_calls_whatever_the_order_of_the_answers(store):
    def behave(number, attempt):
        if attempt < number % 4:
            raise Transient("late")
        return reply(number)

    bench = Bench(store, behave, concurrency=7)
    assert texts(bench.ask(calls(50))) == [f"answer {i}" for i in range(50)]
    assert bench.server.most_open == 7


def test_what_is_stored_is_not_asked_and_costs_no_tokens(store):
    first = Bench(store, lambda number, _: reply(number))
    first.ask(calls(10))
    again = Bench(store, lambda number, _: reply(number + 1000))
    # 10 stored, 5 new ones of 10 + 2 tokens each.
    assert texts(again.ask(calls(15))) == [f"answer {i if i < 10 else i + 1000}" for i in range(15)]
    spent = again.caller.spent
    assert (spent.asked, spent.stored, spent.requests) == (15, 10, 5)
    assert (spent.prompt_tokens, spent.completion_tokens) == (50, 10)


def test_equal_calls_of_one_batch_are_asked_once(store):
    bench = Bench(store, lambda number, _: reply(number))
    assert texts(bench.ask([*calls(3), *calls(3)])) == ["answer 0", "answer 1", "answer 2"] * 2
    assert bench.server.requests == 3


def test_another_sample_is_another_call(store):
    bench = Bench(store, lambda number, attempt: Reply(f"{number}/{attempt}", "stop"))
    wanted = [Call("5", {}, "t", "p", sample=sample) for sample in range(3)]
    assert sorted(texts(bench.ask(wanted))) == ["5/0", "5/1", "5/2"]


def test_a_call_that_fails_for_good_is_named_not_stored_and_asked_again(store):
    def broken(number, _attempt):
        if number == 3:
            raise Transient("HTTP 500")
        return reply(number)

    bench = Bench(store, broken, tries=9, concurrency=2)
    results = bench.ask(calls(40))
    assert results[3] == Unanswered("unanswered", "9 tries; the last: HTTP 500")
    assert sum(isinstance(result, Reply) for result in results) == 39
    # One request for each of the other 39, and 9 tries.
    assert bench.server.requests == 39 + 9
    assert bench.caller.spent.unanswered == 1
    assert len(store) == 39
    mended = Bench(store, lambda number, _: reply(number))
    assert texts(mended.ask(calls(40)))[3] == "answer 3"
    assert mended.server.requests == 1


def test_unusable_answers_have_a_limit_of_their_own_and_are_not_stored(store):
    bench = Bench(store, lambda *_: Reply(" \n", "stop"), answer_tries=4)
    (result,) = bench.ask(calls(1))
    assert result == Unanswered("empty", "an empty answer (finish_reason stop), 4 times")
    assert (bench.server.requests, len(store)) == (4, 0)


def test_a_request_that_the_server_calls_wrong_is_not_tried_again(store):
    def behave(number, _attempt):
        if number % 2:
            raise Rejected("HTTP 400: too long")
        return reply(number)

    bench = Bench(store, behave)
    results = bench.ask(calls(100))
    assert results[1] == Unanswered("rejected", "HTTP 400: too long")
    assert Counter(texts(results))["rejected"] == 50
    assert bench.server.requests == 100


def reject(*_):
    raise Rejected("HTTP 422: unknown field top_k")


def test_a_server_that_calls_everything_wrong_stops_the_run_early(store):
    bench = Bench(store, reject, concurrency=4)
    with pytest.raises(RecipeError, match=r"the first 16 requests wrong: HTTP 422: .*top_k"):
        bench.ask(calls(1000))
    assert bench.server.requests < 16 + 4


def test_repeating_only_the_wrong_ones_of_an_earlier_run_is_no_reason_to_stop(store):
    def behave(number, _attempt):
        return reject() if number >= 100 else reply(number)

    for _ in range(2):
        results = Bench(store, behave).ask(calls(140))
        assert Counter(texts(results))["rejected"] == 40


def test_what_cannot_be_mended_stops_every_call_at_once(store):
    def behave(number, _attempt):
        if number == 20:
            raise MachineError("the key is not accepted")
        return reply(number)

    bench = Bench(store, behave, concurrency=4)
    with pytest.raises(MachineError, match="the key is not accepted"):
        bench.ask(calls(1000))
    # Nothing beyond what was open with call 20 is sent, and every answer is kept.
    assert bench.server.requests <= 20 + 4
    assert len(store) >= 20


# What only the server is to blame for costs no tries, so two workers outlast it. For what a request
# may be to blame for, 67 probes must be shared among enough calls.
@pytest.mark.parametrize(("is_servers", "concurrency"), [(True, 2), (False, 16)])
def test_an_hour_without_the_server_is_waited_for(store, is_servers, concurrency):
    bench = Bench(
        store, lambda *_: None, concurrency=concurrency, answer_tries=1, tries=OUTAGE_FAULTS + 1
    )

    def behave(number, _attempt):
        if number >= 5 and bench.clock.now() < HOUR:
            raise Transient("nothing works", is_servers=is_servers)
        return reply(number)

    bench.server.behave = behave
    assert texts(bench.ask(calls(60))) == [f"answer {i}" for i in range(60)]
    # At the onset each worker fails about once; then one request at a time, at distances of
    # 1/2, 1, 2, ... 60 s: about 7 + 3600 / 60 probes.
    assert bench.server.requests - 60 < 2 * 16 + 7 + 60 + 2
    assert HOUR <= bench.clock.now() < HOUR + 61


def test_calls_that_break_the_server_do_not_look_like_an_outage(store):
    def behave(number, _attempt):
        if number in (10, 38, 39):
            raise Transient("HTTP 500")
        return reply(number)

    Bench(store, behave).ask(calls(38))
    again = Bench(store, behave)
    assert Counter(texts(again.ask(calls(40))))["unanswered"] == 3
    # 12 tries each, with waits of 1/2, 1, 2, ... 32, 60, 60, 60, 60 s at most between them, all
    # three at the same time. In an outage there would be a minute before almost every try.
    assert again.server.requests == 3 * 12
    assert again.clock.now() < 304


@pytest.mark.parametrize("concurrency", [1, 16])
def test_patience_with_a_dead_server_ends(store, concurrency):
    def dead(*_):
        raise Transient("connection refused", is_servers=True)

    bench = Bench(store, dead, patience=2 * HOUR, concurrency=concurrency)
    with pytest.raises(MachineError, match=r"nothing for 12\d minutes \(last: connection refused"):
        bench.ask(calls(100))
    assert 2 * HOUR < bench.clock.now() < 2 * HOUR + 61


def test_the_pace_is_never_exceeded(store):
    sent = []
    bench = Bench(store, lambda *_: None, requests_per_minute=120.0, concurrency=16)

    def behave(number, attempt):
        sent.append(bench.clock.now())
        if (number + attempt) % 3 == 0:
            raise Transient("HTTP 500")
        return reply(number)

    bench.server.behave = behave
    bench.ask(calls(600))
    # Every third first try of 600 calls fails, and costs one more request.
    assert len(sent) == 800
    busiest = max(sum(start <= t < start + 60.0 for t in sent) for start in sent)
    # 120 per minute; both ends of the window may hold one.
    assert 115 <= busiest <= 121


def test_a_server_that_asks_for_a_pause_gets_one_from_all_requests(store):
    sent = []
    bench = Bench(store, lambda *_: None, concurrency=8)

    def behave(number, attempt):
        sent.append(bench.clock.now())
        if number == 30 and attempt == 0:
            raise Transient("HTTP 429", asked_to_wait=100.0, is_servers=True)
        return reply(number)

    bench.server.behave = behave
    bench.ask(calls(100))
    assert set(sent) == {0.0, 100.0}
    # Nothing that was not open already went out before the pause was over.
    assert sum(t == 0.0 for t in sent) <= 31 + 8


def test_requests_that_are_refused_together_are_one_step_of_the_backoff(store):
    bench = Bench(store, lambda *_: None, concurrency=6)

    def behave(number, attempt):
        if attempt == 0 and number < 6:
            raise Transient("HTTP 429", is_servers=True)
        return reply(number)

    bench.server.behave = behave
    bench.ask(calls(6))
    assert bench.clock.now() == 0.5


def test_it_works_inside_a_running_loop_as_in_a_notebook(store):
    async def cell():
        return Bench(store, lambda number, _: reply(number)).ask(calls(5))

    assert texts(asyncio.run(cell())) == [f"answer {i}" for i in range(5)]


CHILD = """
import sys
from pathlib import Path
from align.servers.caller import CachedCaller
from align.servers.calls import CallStore
from align.servers.gate import Limits
from align.servers.server import Call, no_text
from align.servers.endpoint import Endpoint, OpenAICaller
with CallStore(Path(sys.argv[2])) as store:
    caller = OpenAICaller(Endpoint(base_url=sys.argv[1], model="m", revision="r"))
    asker = CachedCaller(caller, store, Limits(concurrency=4))
    asker.ask([Call(str(i), {}, "t", "p") for i in range(60)], lambda _, reply: no_text(reply))
"""


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_asks_again_only_what_was_open(tmp_path, stop):
    path = tmp_path / "calls.sqlite"
    with FaultServer(lambda body: f"answer {body['prompt']}") as server:
        server.delay = 0.03
        command = [sys.executable, "-c", CHILD, server.url, str(path)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        while server.requests < 20:
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(stop)
        _, errors = process.communicate(timeout=30)
        assert process.returncode != 0
        if stop == signal.SIGINT:
            assert errors.splitlines()[-1] == "KeyboardInterrupt"
        assert server.requests < 60
        subprocess.run(command, check=True)
        repeated = sum(count > 1 for count in server.answered.values())
        assert len(server.answered) == 60
        assert repeated <= 4
    with CallStore(path) as store:
        assert len(store) == 60


@pytest.mark.parametrize("is_notebook", [False, True])
def test_a_stop_signal_that_raises_ends_the_calls_and_keeps_the_answers(store, is_notebook):
    def stop(*_):
        raise Interrupted("stopped")

    before = signal.signal(signal.SIGUSR1, stop)
    try:
        with FaultServer(lambda body: f"answer {body['prompt']}") as server:
            server.delay = 0.05
            caller = OpenAICaller(Endpoint(base_url=server.url, model="m", revision="r"))
            asker = CachedCaller(caller, store, Limits(concurrency=4))

            def send_signal():
                while server.requests < 20:
                    time.sleep(0.005)
                os.kill(os.getpid(), signal.SIGUSR1)

            def ask():
                return asker.ask(calls(60), lambda _, reply: no_text(reply))

            async def cell():
                return ask()

            run = (lambda: asyncio.run(cell())) if is_notebook else ask
            sender = threading.Thread(target=send_signal)
            sender.start()
            with pytest.raises(Interrupted, match="stopped"):
                run()
            sender.join()
            assert server.requests < 60
            assert len(store) >= 20 - 4
            assert texts(ask()) == [f"answer {i}" for i in range(60)]
            assert server.requests <= 60 + 4
    finally:
        signal.signal(signal.SIGUSR1, before)
