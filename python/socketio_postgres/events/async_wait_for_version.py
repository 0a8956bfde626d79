"""Waiting for a position that is not announced: in the database, or of a loop of the application."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Final

from socketio_postgres._bus.primitives import asleep
from socketio_postgres.exceptions import OperationTimeoutError

__all__ = ["wait_for_version"]

LOOK_FIRST: Final = 0.001
"""Seconds after the first look; they double."""
LOOK_LAST: Final = 0.1
"""Most seconds between two looks."""


async def wait_for_version(look: Callable[[], Awaitable[int]], wanted: int, timeout: float | None, what: str) -> None:
    """Look again and again, until the number found is at least the one wanted.

    Raises:
        OperationTimeoutError: It is not within `timeout` seconds.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    delay = LOOK_FIRST
    while (found := await look()) < wanted:
        left = delay if deadline is None else deadline - time.monotonic()
        if left <= 0:
            raise OperationTimeoutError(f"{what} is at version {max(found, 0)}, not at {wanted}, after {timeout} s")
        await asleep(min(delay, left))
        delay = min(delay * 2, LOOK_LAST)
