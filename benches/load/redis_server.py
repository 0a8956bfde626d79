"""A Redis of the bench's own, on a free port: `redis-server` of the PATH, without persistence."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from socketio_postgres.demo.embedded import free_port

START_LIMIT_S = 60.0


def find_redis() -> str | None:
    """The program, if it is installed: Debian's package `redis-server`."""
    return shutil.which("redis-server")


@contextmanager
def redis_server(program: str) -> Iterator[str]:
    """Run it; gives its URL."""
    port = free_port()
    process = subprocess.Popen(
        [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + START_LIMIT_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            if time.monotonic() > deadline:
                raise TimeoutError(f"redis-server does not answer on port {port}")
            time.sleep(0.02)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait(60)
