# Generated from async_wait_for_version.py by scripts/async_to_sync.py; edit that file.
"""Waiting for a position that is not announced: in the database, or of a loop of the application."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from socketio_postgres._bus.primitives import sleep
from socketio_postgres.exceptions import OperationTimeoutError

__all__ = ["wait_for_version"]

LOOK_FIRST: Final = 0.001
"""Seconds after the first look; they double."""
LOOK_LAST: Final = 0.1
"""Most seconds between two looks."""


def wait_for_version(look: Callable[[], int], wanted: int, timeout: float | None, what: str) -> None:
    """Look again and again, until the number found is at least the one wanted.

    Raises:
        OperationTimeoutError: It is not within `timeout` seconds.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    delay = LOOK_FIRST
    while (found := look()) < wanted:
        left = delay if deadline is None else deadline - time.monotonic()
        if left <= 0:
            raise OperationTimeoutError(f"{what} is at version {max(found, 0)}, not at {wanted}, after {timeout} s")
        sleep(min(delay, left))
        delay = min(delay * 2, LOOK_LAST)
