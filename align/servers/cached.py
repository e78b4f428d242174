"""A caller whose answers outlive the process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from align.servers.caller import CachedCaller
from align.servers.calls import CallStore, calls_file
from align.servers.endpoint import Endpoint, OpenAICaller


@contextlib.contextmanager
def cached_caller(server: Endpoint, folder: Path) -> Iterator[CachedCaller]:
    """Asks `server`; its answers are kept in the folder's store, whichever round asked first."""
    with CallStore(calls_file(folder)) as store:
        yield CachedCaller(OpenAICaller(server), store)
