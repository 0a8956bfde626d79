"""Waits in the main thread for a PostgreSQL that never answers, until somebody presses Ctrl-C.

Arguments: `threading`, `gevent` or `eventlet`; what to wait in; port of the silent server.
"""

from __future__ import annotations

import sys

LIBRARY, WHAT, PORT = sys.argv[1:]
if LIBRARY == "gevent":
    import gevent.monkey

    gevent.monkey.patch_all()
elif LIBRARY == "eventlet":
    import eventlet

    eventlet.monkey_patch()

# ruff: noqa: E402, T201 - patching comes first, and the test reads what is printed
import signal
import threading
import time

from socketio_postgres import Emitter, PostgresClient

DSN = f"postgresql://app@127.0.0.1:{PORT}/app?connect_timeout=60"

ticks = 0


def tick() -> None:
    global ticks  # noqa: PLW0603
    while True:
        ticks += 1
        if ticks == 20:
            print("others run", flush=True)
        time.sleep(0.01)


try:
    threading.Thread(target=tick, daemon=True).start()
    if WHAT == "start":
        Emitter(DSN).start()
    elif WHAT == "flush":
        emitter = Emitter(DSN)
        emitter.emit("event")
        emitter.flush()
    elif WHAT == "emit":
        emitter = Emitter(DSN, buffer_count=1)
        while True:
            emitter.emit("event")
    else:
        PostgresClient(DSN).wait_for_notification()
except KeyboardInterrupt:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it may be pressed more than once
    print("interrupted", flush=True)
    # What is buffered would be given `EXIT_LIMIT` seconds at exit; that is another test's matter.
    import os

    os._exit(3)
