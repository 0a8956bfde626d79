"""How an `EventStore` waits, calls and goes on beside its caller; see `async_store_calls.py`."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, TypeAlias, TypeVar

from socketio_postgres._bus.green import has_hub, pause
from socketio_postgres._bus.handover import BlockingCalls, Operation
from socketio_postgres.events.event import Event, NotificationPayload, StoredEvent

__all__ = [
    "Background",
    "EventHandler",
    "EventSource",
    "Handler",
    "call",
    "chunks_of",
    "run_operation",
    "sleep",
]

T = TypeVar("T")
EventSource: TypeAlias = Iterable[Event]
Handler: TypeAlias = Callable[[NotificationPayload], object]
EventHandler: TypeAlias = Callable[[StoredEvent], object]

_calls: Final = BlockingCalls()

sleep = pause

END_INTERVAL: Final = 0.01
"""Seconds between two looks whether a thread has ended, where greenlets must go on meanwhile."""


def run_operation(operation: Operation, timeout: float | None = None) -> Any:
    """Blocking form of `async_store_calls.run_operation`."""
    return _calls.run(operation, timeout)


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
        if self._thread is threading.current_thread():
            return
        while has_hub() and self._thread.is_alive():
            pause(END_INTERVAL)
        self._thread.join()


def call(function: Callable[[T], object], argument: T) -> None:
    """Blocking form of `async_store_calls.call`."""
    function(argument)


def chunks_of(events: EventSource, size: int) -> Iterator[list[Event]]:
    """Blocking form of `async_store_calls.chunks_of`."""
    source = iter(events)
    while part := list(itertools.islice(source, size)):
        yield part
