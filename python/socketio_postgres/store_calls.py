"""How an `EventStore` waits: in the calling thread or greenlet."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, TypeAlias

from socketio_postgres.blocker import Stall
from socketio_postgres.event import Event, NotificationPayload, StoredEvent
from socketio_postgres.exceptions import OperationTimeoutError
from socketio_postgres.handover import BlockingCalls, Operation

__all__ = [
    "Background",
    "EventHandler",
    "EventSource",
    "Handler",
    "call_event_handler",
    "call_handler",
    "call_on_stall",
    "chunks_of",
    "run_operation",
    "sleep",
    "wait_until",
]

EventSource: TypeAlias = "Iterable[Event]"
Handler: TypeAlias = "Callable[[NotificationPayload], object]"
EventHandler: TypeAlias = "Callable[[StoredEvent], object]"

_calls: Final = BlockingCalls()

sleep = time.sleep


def run_operation(operation: Operation, timeout: float | None = None) -> Any:
    """Blocking form of `async_store_calls.run_operation`."""
    return _calls.run(operation, timeout)


LOOK_FIRST: Final = 0.001
LOOK_LAST: Final = 0.1


def wait_until(look: Callable[[], int], wanted: int, timeout: float | None, what: str) -> None:
    """Blocking form of `async_store_calls.wait_until`."""
    deadline = None if timeout is None else time.monotonic() + timeout
    delay = LOOK_FIRST
    while (found := look()) < wanted:
        left = delay if deadline is None else deadline - time.monotonic()
        if left <= 0:
            raise OperationTimeoutError(f"{what} is at version {max(found, 0)}, not at {wanted}, after {timeout} s")
        sleep(min(delay, left))
        delay = min(delay * 2, LOOK_LAST)


class Background:
    """Work that goes on beside its caller, in a thread; it ends by itself when what it waits for is closed."""

    def __init__(self, work: Callable[[], None], name: str) -> None:
        self._thread = threading.Thread(target=work, name=name, daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Wait for its end unless it is the caller itself."""
        if self._thread is not threading.current_thread():
            self._thread.join()


def call_handler(handler: Handler, payload: NotificationPayload) -> None:
    """Call a user's function."""
    handler(payload)


def call_event_handler(handler: EventHandler, event: StoredEvent) -> None:
    """Call a user's function."""
    handler(event)


def call_on_stall(on_stall: Callable[[Stall], object], stall: Stall) -> None:
    """Call a user's function."""
    on_stall(stall)


def chunks_of(events: EventSource, size: int) -> Iterator[list[Event]]:
    """Blocking form of `async_store_calls.chunks_of`."""
    source = iter(events)
    while part := list(itertools.islice(source, size)):
        yield part
