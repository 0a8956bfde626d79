"""The demo's emitter, a process with no server: `python -m socketio_postgres.demo.emitter INTERVAL`.

Sends `tick` to every client of every server, every so many seconds.
"""

from __future__ import annotations

import os
import sys
import threading
import time

from socketio_postgres import Emitter
from socketio_postgres.demo.process import READY, dsn_from_parent, when_parent_ends
from socketio_postgres.exceptions import SocketIOPostgresError


def run(dsn: str, interval: float, stop: threading.Event) -> None:
    """Emit until told to stop.

    Args:
        dsn: Connection string.
        interval: Seconds between two ticks.
        stop: Ends it when set.
    """
    count = 0
    with Emitter(dsn) as emitter:
        while not stop.wait(interval if count else 0):
            count += 1
            emitter.emit("tick", {"count": count, "at": time.time(), "pid": os.getpid()})
            if count == 1:
                emitter.flush()  # so that a server that cannot be reached is known at once
                print(READY, flush=True)


if __name__ == "__main__":
    parent_ended = threading.Event()
    when_parent_ends(parent_ended.set)
    try:
        run(dsn_from_parent(), float(sys.argv[1]), parent_ended)
    except SocketIOPostgresError as error:
        sys.exit(f"emitter: {error}")
