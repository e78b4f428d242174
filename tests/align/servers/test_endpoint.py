"""Where a model is served: addresses, keys, and what a server asks for."""

import email.utils
import time

import pytest
from pydantic import ValidationError

from align.errors import RecipeError
from align.servers.caller import CachedCaller
from align.servers.calls import CallStore
from align.servers.endpoint import Endpoint, OpenAICaller, retry_after
from align.servers.gate import Limits
from align.servers.server import Call, no_text
from tests.align.judges.fault_server import FaultServer
from tests.align.judges.virtual_clock import VirtualClock, Watched


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000/v1",
        "ftp://localhost/v1",
        "http:///v1",
        "http://user:secret@localhost/v1",
        "http://localhost/v1?key=secret",
    ],
)
def test_an_address_is_whole_and_holds_no_secret(url):
    with pytest.raises(ValidationError, match="base_url"):
        Endpoint(base_url=url, model="m", revision="r")


def test_the_revision_must_be_said():
    with pytest.raises(ValidationError, match="revision"):
        Endpoint(base_url="http://localhost/v1", model="m")  # pyright: ignore


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0.0),
    ],
)
def test_a_servers_wish_to_wait(headers, seconds):
    assert retry_after(headers) == seconds


def test_a_wish_to_wait_until_a_date():
    date = email.utils.formatdate(time.time() + 100, usegmt=True)
    assert 98 < retry_after({"retry-after": date}) <= 100


def ask(server, store, **endpoint):
    clock = VirtualClock(lambda: server.hanging)
    caller = OpenAICaller(Endpoint(base_url=server.url, model="m", revision="r", **endpoint))
    asker = CachedCaller(Watched(caller, clock), store, Limits(), clock)
    calls = [Call("hello", {}, "t", "p")]
    return asker.ask(calls, lambda _, reply: no_text(reply)), clock


@pytest.fixture
def store(tmp_path):
    with CallStore(tmp_path / "calls.sqlite") as store:
        yield store


def test_retry_after_is_honoured(store):
    with FaultServer(lambda body: "hi") as server:
        server.script = lambda digest, attempt: "429 Retry-After" if attempt < 3 else None
        (reply,), clock = ask(server, store)
    assert reply.text == "hi"
    # Three times the two seconds that the server asks for.
    assert clock.now() == 6.0


def test_no_server_of_somebody_else_gets_the_users_openai_settings(store, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-1")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-canary")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project-canary")
    with FaultServer(lambda body: "hi") as server:
        ask(server, store)
    assert server.headers["authorization"] == "Bearer EMPTY"
    assert "canary" not in str(server.headers)


def test_a_key_that_is_not_set_is_a_recipe_error(store, monkeypatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with (
        FaultServer(lambda body: "hi") as server,
        pytest.raises(RecipeError, match="JUDGE_KEY, which is not set"),
    ):
        ask(server, store, api_key_env="JUDGE_KEY")


def test_a_wrong_address_or_model_stops_at_once_with_the_servers_words(store):
    with FaultServer(lambda body: "hi") as server:
        server.script = lambda digest, attempt: "404"
        with pytest.raises(RecipeError, match=r"HTTP 404: .*scripted 404 \*\*\*.*base_url"):
            ask(server, store)
        assert server.requests == 1


def test_nobody_at_the_address_is_an_outage_and_not_the_calls_fault(store):
    with FaultServer(lambda body: "hi") as server:
        pass
    clock = VirtualClock()
    caller = OpenAICaller(Endpoint(base_url=server.url, model="m", revision="r"))
    asker = CachedCaller(Watched(caller, clock), store, Limits(patience=3600), clock)
    with pytest.raises(OSError, match=r"answered nothing for 6\d minutes .*ConnectError"):
        asker.ask([Call("hello", {}, "t", "p")], lambda _, reply: no_text(reply))
