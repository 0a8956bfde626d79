"""Uses an `EventStore` in the main greenlet, and prints how far a heartbeat beside it came during each step.

Arguments: `threading`, `gevent`, `gevent patched`, `eventlet` or `eventlet patched`; a DSN. For each step it prints its
name and the number of beats, of which there are a hundred in a second. A long step in which there were hardly any is
tried again: perhaps the machine was busy.
"""

from __future__ import annotations

import sys

MODE, DSN = sys.argv[1:]
LIBRARY, _, PATCHED = MODE.partition(" ")
if LIBRARY == "gevent":
    import gevent.monkey

    spawn, pause = gevent.spawn, gevent.sleep
    if PATCHED:
        gevent.monkey.patch_all()
elif LIBRARY == "eventlet":
    import eventlet

    spawn, pause = eventlet.spawn, eventlet.sleep
    if PATCHED:
        eventlet.monkey_patch()

# ruff: noqa: E402, T201 - patching comes first, and the test reads what is printed
import contextlib
import threading
import time
from collections.abc import Callable

from socketio_postgres import Event, EventStore, NotificationPayload, OperationTimeoutError

if LIBRARY == "threading":

    def spawn(function: Callable[[], None]) -> None:
        threading.Thread(target=function, daemon=True).start()

    pause = time.sleep

LONG = 0.5
"""Seconds that a step waits at least, so that a heartbeat that goes on has beaten some fifty times."""

ENOUGH = 5
"""Beats of a heartbeat that goes on."""

ATTEMPTS = 10

beats = 0


def beat() -> None:
    global beats  # noqa: PLW0603
    while True:
        beats += 1
        pause(0.01)


def step(name: str, function: Callable[[], object], attempts: int = 1) -> None:
    for _ in range(attempts):
        before = beats
        function()
        count = beats - before
        if count >= ENOUGH:
            break
    print(name, count, flush=True)


def long_step(name: str, function: Callable[[], object]) -> None:
    step(name, function, ATTEMPTS)


def wait_in_vain(wait: Callable[[], object]) -> None:
    with contextlib.suppress(OperationTimeoutError):
        wait()
        raise AssertionError("it did not wait")


spawn(beat)
pause(0.05)
store = EventStore(DSN)
other = EventStore(DSN)
begun, held = threading.Event(), threading.Event()


def handle(_: NotificationPayload) -> None:
    """Take long, in a thread of the core's."""
    begun.set()
    time.sleep(LONG)


def cancel_a_callback() -> None:
    begun.clear()
    callback = store.subscribe_to_all(handle)
    store.store(Event("T", "called"))
    while not begun.is_set():
        pause(0.01)
    callback.cancel()


def hold() -> None:
    with other.durable("d", lease=60):
        held.set()
        pause(LONG)


def take_over() -> None:
    held.clear()
    spawn(hold)
    while not held.is_set():
        pause(0.01)
    with store.durable("d", lease=60) as durable:
        next(iter(durable))


step("open", store.open)
step("store", lambda: [store.store(Event("T", f"a{number}")) for number in range(50)])
step("load", lambda: [store.load() for _ in range(20)])
long_step("wait for a version", lambda: wait_in_vain(lambda: store.wait_for(1000, timeout=LONG)))
with store.subscribe() as subscription:
    step("read", lambda: [subscription.next() for _ in range(50)])
    long_step("wait for an event", lambda: wait_in_vain(lambda: subscription.next(LONG)))
    long_step("wait for a loop", lambda: wait_in_vain(lambda: subscription.wait_for(1000, timeout=LONG)))
long_step("cancel a callback", cancel_a_callback)
long_step("take over", take_over)
step("close", lambda: [each.close() for each in (store, other)])  # type: ignore[func-returns-value]
