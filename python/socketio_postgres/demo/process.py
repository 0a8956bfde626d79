"""What the demo's processes share: the connection string from, and an end with, the process that started them."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

DSN_VARIABLE = "SOCKETIO_POSTGRES_DEMO_DSN"
"""Environment variable with the connection string: unlike an argument, others on the machine cannot read it."""

READY = "ready"
"""The line a process prints when it does its work."""


_GRACE = 5.0  # seconds to end in order


def dsn_from_parent() -> str:
    """Give the connection string that the starting process passed on."""
    return os.environ[DSN_VARIABLE]


def when_parent_ends(stop: Callable[[], object]) -> None:
    """Call `stop`, from another thread, when the starting process closes our standard input or dies.

    A process that has not ended some seconds later is ended from here, so that none is left behind.
    """

    def wait_for_end_of_input() -> None:
        # os.read, not sys.stdin: a thread inside sys.stdin would hold its lock while the interpreter ends.
        while os.read(0, 1024):
            pass
        stop()
        time.sleep(_GRACE)
        os._exit(1)

    threading.Thread(target=wait_for_end_of_input, name="parent", daemon=True).start()
