"""What differs between tasks and threads: each thing in an async form, `aname`, and in a blocking one, `name`.

All that builds on it is written once, for tasks; `scripts/async_to_sync.py` makes the blocking twin of that.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from typing import Any, Final, TypeVar

from socketio_postgres._bus.green import has_hub, pause
from socketio_postgres._bus.handover import AsyncCalls, BlockingCalls, Operation
from socketio_postgres.exceptions import OperationTimeoutError

__all__ = [
    "IS_ASYNC",
    "AsyncBackground",
    "Background",
    "acall",
    "achunks_of",
    "arun",
    "asleep",
    "awithin",
    "call",
    "chunks_of",
    "run",
    "sleep",
]

T = TypeVar("T")

IS_ASYNC: bool = True
"""True in hand-written code. In a generated twin, only the other branch of an `if` with it remains."""

END_INTERVAL: Final = 0.01
"""Seconds between two looks whether a thread has ended, where greenlets must go on meanwhile."""

_calls: Final = BlockingCalls()

asleep = asyncio.sleep
sleep = pause


async def arun(operation: Operation, timeout: float | None = None) -> Any:
    """Start an operation of the core and wait for its end; returns its result or raises its exception.

    Raises:
        OperationTimeoutError: It did not end within `timeout` seconds. It goes on in the background.
    """
    try:
        return await awithin(AsyncCalls.of_running_loop().start(operation), timeout)
    except OperationTimeoutError:
        raise  # the core's own, which says what took so long
    except asyncio.TimeoutError:
        raise OperationTimeoutError(f"PostgreSQL did not answer within {timeout} s") from None


async def awithin(awaitable: Awaitable[T], timeout: float | None) -> T:
    """What an awaitable returns, or `asyncio.TimeoutError` after `timeout` seconds; it is cancelled then.

    Unlike `asyncio.wait_for` before Python 3.12, it loses no cancellation that comes together with the result.
    """
    if timeout is None:
        return await awaitable
    future = asyncio.ensure_future(awaitable)
    try:
        await asyncio.wait([future], timeout=timeout)
        if not future.done():
            raise asyncio.TimeoutError
        return future.result()
    finally:
        future.cancel()


def run(operation: Operation, timeout: float | None = None) -> Any:
    """Blocking form of `arun`."""
    return _calls.run(operation, timeout)


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
            # Again: before Python 3.12, `asyncio.wait_for` loses a cancellation that comes together with the result.
            while not task.done():
                task.cancel()
                await asyncio.wait([task], timeout=0.1)
            await asyncio.gather(task, return_exceptions=True)
        elif self.is_running:
            with contextlib.suppress(RuntimeError):  # it was closed just now
                loop.call_soon_threadsafe(task.cancel)


class Background:
    """Work beside its caller, in a thread. It ends by itself when the object that it waits for is closed."""

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


async def acall(function: Callable[[T], object], argument: T) -> None:
    """Call a user's function, and await what it returns if that can be awaited."""
    result = function(argument)
    if isinstance(result, Awaitable):
        await result


def call(function: Callable[[T], object], argument: T) -> None:
    """Call a user's function.

    Raises:
        TypeError: It returned a coroutine, which would never run here.
    """
    result = function(argument)
    if isinstance(result, Coroutine):
        result.close()
        raise TypeError("the handler returned a coroutine, which only the Async classes await")


async def afinished(value: object) -> None:
    """Await what a user's function has returned, if that can be awaited."""
    if isinstance(value, Awaitable):
        await value


def finished(value: object) -> None:
    """Blocking form of `afinished`.

    Raises:
        TypeError: The function returned a coroutine.
    """
    call(lambda _: value, None)


@contextlib.asynccontextmanager
async def aopened(connection: Any) -> AsyncIterator[Any]:
    """A connection, or what becomes one when it is awaited or entered; left or closed at the end."""
    if isinstance(connection, Awaitable) and not hasattr(connection, "__aenter__"):
        connection = await connection
    if hasattr(connection, "__aenter__"):
        async with connection as entered:
            yield entered
        return
    try:
        yield connection
    finally:
        await connection.close()


@contextlib.contextmanager
def opened(connection: Any) -> Iterator[Any]:
    """Blocking form of `aopened`."""
    if hasattr(connection, "__enter__"):
        with connection as entered:
            yield entered
        return
    with contextlib.closing(connection):
        yield connection


async def achunks_of(items: Iterable[T] | AsyncIterable[T], size: int) -> AsyncIterator[list[T]]:
    """Lists of at most `size` items, taken from any iterable as they are needed."""
    if isinstance(items, AsyncIterable):
        chunk: list[T] = []
        async for item in items:
            chunk.append(item)
            if len(chunk) >= size:
                yield chunk
                chunk = []
        if chunk:
            yield chunk
        return
    for chunk in chunks_of(items, size):
        yield chunk


def chunks_of(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Blocking form of `achunks_of`."""
    source = iter(items)
    while chunk := list(itertools.islice(source, size)):
        yield chunk
