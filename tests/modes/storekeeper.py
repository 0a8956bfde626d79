"""Uses an `EventStore` in the main greenlet, and prints how far a heartbeat beside it came during each step.

Arguments: `threading`, `gevent`, `gevent patched`, `eventlet` or `eventlet patched`; a DSN. For each step it prints its
name and the number of beats, of which there are a hundred in a second.
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
from typing import TypeVar

from socketio_postgres import Event, EventStore, NotificationPayload, OperationTimeoutError
from socketio_postgres.events._sync.callback_subscription import CallbackSubscription

T = TypeVar("T")

if LIBRARY == "threading":

    def spawn(function: Callable[[], None]) -> None:
        threading.Thread(target=function, daemon=True).start()

    pause = time.sleep

LONG = 0.5
"""Seconds that a step waits at least, so that a heartbeat that goes on has beaten some fifty times."""

ENOUGH = 5
"""Beats that show that it goes on."""

ATTEMPTS = 20
"""Of a long step: while the system lets this process wait, the heart does not beat either."""

beats = 0


def beat() -> None:
    global beats  # noqa: PLW0603
    while True:
        beats += 1
        pause(0.01)


def step(name: str, function: Callable[[], object]) -> None:
    before = beats
    function()
    print(name, beats - before, flush=True)


def long_step(name: str, wait: Callable[[T], object], prepare: Callable[[], T]) -> None:
    """A step that waits for `LONG`; only the beats during `wait` count."""
    count = 0
    for _ in range(ATTEMPTS):
        given = prepare()
        before = beats
        wait(given)
        count = beats - before
        if count >= ENOUGH:
            break
    print(name, count, flush=True)


def step_in_vain(name: str, wait: Callable[[], object]) -> None:
    def wait_in_vain(_: None) -> None:
        with contextlib.suppress(OperationTimeoutError):
            wait()
            raise AssertionError("it did not wait")

    long_step(name, wait_in_vain, lambda: None)


spawn(beat)
pause(0.05)
store = EventStore(DSN)
other = EventStore(DSN)
begun = threading.Event()
is_held = threading.Event()


def handle(_: NotificationPayload) -> None:
    """Take long, in a thread of the core's."""
    begun.set()
    time.sleep(LONG)


def called() -> CallbackSubscription:
    """A callback that is under way."""
    begun.clear()
    callback = store.subscribe_to_all(handle)
    store.store(Event("T", "called"))
    while not begun.is_set():
        pause(0.01)
    return callback


def hold() -> None:
    with other.durable("d", lease=60):
        is_held.set()
        pause(LONG)


def held() -> None:
    """Let another store own the durable subscription."""
    is_held.clear()
    spawn(hold)
    while not is_held.is_set():
        pause(0.01)


def take_over(_: None) -> None:
    with store.durable("d", lease=20) as durable:
        next(iter(durable))


step("open", store.open)
step("store", lambda: [store.store(Event("T", f"a{number}")) for number in range(50)])
step("load", lambda: [store.load() for _ in range(20)])
step_in_vain("wait for a version", lambda: store.wait_for(1000, timeout=LONG))
with store.subscribe() as subscription:
    step("read", lambda: [subscription.next() for _ in range(50)])
    step_in_vain("wait for an event", lambda: subscription.next(LONG))
    step_in_vain("wait for a loop", lambda: subscription.wait_for(1000, timeout=LONG))
long_step("cancel a callback", lambda callback: callback.cancel(), called)
long_step("take over", take_over, held)
step("close", lambda: [each.close() for each in (store, other)])  # type: ignore[func-returns-value]
