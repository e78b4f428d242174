"""A caller whose answers outlive the process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from align.servers.caller import CachedCaller
from align.servers.calls import CallStore
from align.servers.endpoint import Endpoint, OpenAICaller

CALLS = "calls.sqlite"


@contextlib.contextmanager
def cached_caller(server: Endpoint, folder: Path) -> Iterator[CachedCaller]:
    """Asks `server`; its answers are kept in `folder`, whichever round asked first."""
    with CallStore(folder / CALLS) as store:
        yield CachedCaller(OpenAICaller(server), store)
