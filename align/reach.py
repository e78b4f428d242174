"""Whether a failure is the network's."""

from __future__ import annotations

from httpx2 import TransportError
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled


def is_out_of_reach(error: BaseException | None) -> bool:
    """Whether a failure, or one that it came from, is a Hub that cannot be reached."""
    unreached = (TransportError, LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError)
    while error is not None and not isinstance(error, unreached):
        error = error.__cause__ or error.__context__
    return error is not None
