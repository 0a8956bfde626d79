"""Children that emit through what their parent uses, too. Argument: how they are made."""

import sys

HOW = sys.argv[1] if __name__ == "__main__" else ""
if HOW == "gevent":
    import gevent.monkey

    gevent.monkey.patch_all()

# ruff: noqa: E402 - patching comes first
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

from socketio_postgres import Emitter
from socketio_postgres._bus import bus

bus.EXIT_LIMIT = 30.0  # type: ignore[misc]  # a busy machine may need more than the usual five seconds

CHILDREN = 3
EVENTS = 20
emitter = Emitter(os.environ.get("SIO_PG_TEST_DSN", ""))


def work(child: int) -> None:
    """No flush: the end of the process is enough."""
    for number in range(EVENTS):
        emitter.emit("child", child, number, os.getpid())


def fork_children() -> None:
    for child in range(CHILDREN):
        if os.fork() == 0:
            work(child)
            sys.exit(0)  # and not os._exit, which ends the process at once
    for _ in range(CHILDREN):
        _, status = os.wait()
        assert status == 0


def main() -> None:
    emitter.emit("parent", "before", os.getpid())
    emitter.flush()
    if HOW in {"os.fork", "gevent"}:
        fork_children()
    elif HOW in {"fork", "spawn", "forkserver"}:
        context = multiprocessing.get_context(HOW)
        # typeshed's base class of the contexts lacks what all of them have
        children = [context.Process(target=work, args=(child,)) for child in range(CHILDREN)]  # type: ignore[attr-defined]
        for process in children:
            process.start()
        for process in children:
            process.join()
            assert process.exitcode == 0
    elif HOW == "pool":
        pool = multiprocessing.get_context("fork").Pool(2)
        pool.map(work, range(CHILDREN))
        pool.close()
        pool.join()
    else:
        with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as executor:
            list(executor.map(work, range(CHILDREN)))
    # Nobody flushes this either.
    emitter.emit("parent", "after", os.getpid())


if __name__ == "__main__":
    main()
