"""Emits, forks, and emits on both sides of the fork; nobody flushes at the end."""

import os
import sys

from socketio_postgres import Emitter
from socketio_postgres._bus import bus
from tests.fixtures.worker import EVENT, checksum_of

COUNT = 200
"""Messages of each: of the parent before and after, and of each child."""
CHILDREN = 3


def emit(io: Emitter, sender: str, start: int) -> None:
    for number in range(start, start + COUNT):
        body = number.to_bytes(4, "big") * 100 if number % 10 == 0 else "x" * (number % 50)
        io.emit(EVENT, sender, number, 0, f"{checksum_of(body):010}", body)


def main() -> None:
    bus.EXIT_LIMIT = 30.0  # type: ignore[misc]  # of all these processes, which a busy machine lets wait
    io = Emitter(os.environ["SIO_PG_TEST_DSN"])
    io.start()
    emit(io, "parent", 0)  # still on its way when the children are born
    children = []
    for child in range(CHILDREN):
        pid = os.fork()
        if pid == 0:
            emit(io, f"child-{child}", 0)
            sys.exit(0)
        children.append(pid)
    emit(io, "parent", COUNT)
    for pid in children:
        _, status = os.waitpid(pid, 0)
        assert status == 0


if __name__ == "__main__":
    main()
