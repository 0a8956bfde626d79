"""How an `AsyncEventStore` waits, calls and goes on beside its caller.

`store_calls.py` is the blocking counterpart, written by hand: here is what differs between tasks and threads, so that
all that builds on it can be generated.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, TypeAlias, TypeVar

from socketio_postgres._bus.handover import AsyncCalls, Operation
from socketio_postgres.events.event import Event, NotificationPayload, StoredEvent
from socketio_postgres.exceptions import OperationTimeoutError

__all__ = [
    "AsyncBackground",
    "EventHandler",
    "EventSource",
    "Handler",
    "call",
    "chunks_of",
    "run_operation",
    "sleep",
]

T = TypeVar("T")
EventSource: TypeAlias = Iterable[Event] | AsyncIterable[Event]
Handler: TypeAlias = Callable[[NotificationPayload], Awaitable[object] | object]
EventHandler: TypeAlias = Callable[[StoredEvent], Awaitable[object] | object]

sleep = asyncio.sleep


async def run_operation(operation: Operation, timeout: float | None = None) -> Any:
    """Start an operation of the core and wait for its end.

    Raises:
        OperationTimeoutError: It did not end within `timeout` seconds. It goes on in the background.
    """
    try:
        return await asyncio.wait_for(AsyncCalls.of_running_loop().start(operation), timeout)
    except OperationTimeoutError:
        raise  # the core's own, which says what took so long
    except asyncio.TimeoutError:
        raise OperationTimeoutError(f"PostgreSQL did not answer within {timeout} s") from None


class AsyncBackground:
    """Work that goes on beside its caller, as a task of the running loop."""

    def __init__(self, work: Callable[[], Awaitable[None]], name: str) -> None:
        async def run() -> None:
            await work()

        self._task = asyncio.get_running_loop().create_task(run(), name=name)

    @property
    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        return not self._task.done() and not self._task.get_loop().is_closed()

    async def stop(self) -> None:
        """End it, and wait for that unless it is the caller itself. What another loop has going is only told to end."""
        task, loop = self._task, self._task.get_loop()
        if task is asyncio.current_task():
            return
        if loop is asyncio.get_running_loop():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        elif self.is_running:
            with contextlib.suppress(RuntimeError):  # it was closed just now
                loop.call_soon_threadsafe(task.cancel)


async def call(function: Callable[[T], Awaitable[object] | object], argument: T) -> None:
    """Call a user's function, and await what it returns if that can be awaited."""
    result = function(argument)
    if isinstance(result, Awaitable):
        await result


async def chunks_of(events: EventSource, size: int) -> AsyncIterator[list[Event]]:
    """Lists of at most `size` events, taken from any iterable as they are needed."""
    if isinstance(events, AsyncIterable):
        chunk: list[Event] = []
        async for event in events:
            chunk.append(event)
            if len(chunk) >= size:
                yield chunk
                chunk = []
        if chunk:
            yield chunk
        return
    source = iter(events)
    while part := list(itertools.islice(source, size)):
        yield part
