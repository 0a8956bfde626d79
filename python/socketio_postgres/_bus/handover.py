"""How Python waits for the core: one event loop, or one thread, at a time.

The core never calls Python. It fills an inbox and makes a descriptor readable; here an event loop watches that
descriptor, or a thread blocks on it with the GIL released.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
import os
import time
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any, ClassVar, Final, TypeAlias, TypeVar

from socketio_postgres import _core
from socketio_postgres._bus.green import wait_for_mode
from socketio_postgres.exceptions import ForkedProcessError, OperationTimeoutError

__all__ = ["AsyncCalls", "BlockingCalls", "Operation", "Reference", "batches_of", "nothing", "readable"]

Operation: TypeAlias = Callable[[_core.Inbox, int], object]
"""Starts something in the core, which reports its end to the inbox under the token, or raises if it cannot."""

INBOX_BYTES: Final = 64 * 1024 * 1024
"""Messages waiting for Python; beyond it they are dropped and reported, never left in PostgreSQL's queue."""

BATCH: Final = 256
"""Items taken at once, so that a flood still lets other callbacks of the loop run."""

SIGNAL_INTERVAL: Final = 0.1
"""A blocked thread looks up this often, so that Ctrl-C is seen."""


T = TypeVar("T")
Reference: TypeAlias = Callable[[], "T | None"]


def nothing() -> None:
    """A reference to something that is gone."""


class _Call(asyncio.Future[Any]):
    """The result of one operation, for its event loop. A cancelled call is no longer tracked."""

    of: dict[int, _Call]
    token: int

    def cancel(self, msg: Any | None = None) -> bool:
        """As in `Future`. The operation goes on, for as long as PostgreSQL is away."""
        self.of.pop(self.token, None)
        return super().cancel(msg)


class AsyncCalls:
    """Operations of the core as futures of one event loop.

    Attributes:
        loop: Reference to that loop; a strong one would keep both for ever.
    """

    # The loop keeps the values, through its reader. Kept here they would keep the loop, through futures that wait.
    _by_loop: ClassVar[weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, weakref.ref[AsyncCalls]]] = (
        weakref.WeakKeyDictionary()
    )
    _latest: ClassVar[tuple[Reference[asyncio.AbstractEventLoop], Reference[AsyncCalls]]] = (nothing, nothing)
    """The last result, which is nearly always the next one, too: faster than the dictionary, at every emit."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop: Reference[asyncio.AbstractEventLoop] = weakref.ref(loop)
        self._inbox = _core.Inbox(INBOX_BYTES)
        self._tokens = itertools.count(1)
        self._pending: dict[int, _Call] = {}
        self._watching: dict[int, collections.deque[asyncio.Future[None]]] = {}
        # Taken from the inbox and not told yet: more than one turn when an exception such as Ctrl-C ends the first.
        self._taken: list[tuple[int, int, Any]] = []
        loop.add_reader(self._inbox.fileno(), self._drain)

    @classmethod
    def of_running_loop(cls) -> AsyncCalls:
        """The one of the running loop."""
        loop = asyncio.get_running_loop()
        known, latest = cls._latest
        if known() is loop and (calls := latest()) is not None:
            return calls
        calls = cls._by_loop.get(loop, nothing)()
        if calls is None:
            calls = cls(loop)
            cls._by_loop[loop] = weakref.ref(calls)
        cls._latest = (calls.loop, weakref.ref(calls))
        return calls

    def start(self, operation: Callable[..., object], *args: Any) -> asyncio.Future[Any]:
        """Start an `Operation`, called with `args` first. The future receives its result or exception."""
        future = _Call(loop=asyncio.get_running_loop())
        future.of, future.token = self._pending, next(self._tokens)
        operation(*args, self._inbox, future.token)
        self._pending[future.token] = future
        return future

    async def readable(self, inbox: _core.Inbox, *, again: bool = False) -> None:
        """Wait until an inbox holds something, or is closed. Each item wakes one of those who wait, in turn.

        Args:
            inbox: The inbox.
            again: Keep the turn, because the items that arrived were not the awaited ones.
        """
        loop, descriptor = asyncio.get_running_loop(), inbox.fileno()
        waiting = self._watching.get(descriptor)
        if waiting is None:
            waiting = self._watching[descriptor] = collections.deque()
            loop.add_reader(descriptor, _wake_next, waiting)
        woken: asyncio.Future[None] = loop.create_future()
        (waiting.appendleft if again else waiting.append)(woken)
        try:
            await woken
        finally:
            with contextlib.suppress(ValueError):
                waiting.remove(woken)
            if not waiting and self._watching.get(descriptor) is waiting:
                del self._watching[descriptor]
                if not loop.is_closed():
                    loop.remove_reader(descriptor)

    def _drain(self) -> None:
        try:
            for token, kind, value in self._inbox.drain(BATCH, self._taken):
                future = self._pending.pop(token, None)
                if future is None or future.done():
                    continue  # the waiting task was cancelled
                if kind == _core.FAILED:
                    future.set_exception(value)
                else:
                    future.set_result(value)
        except BaseException:
            asyncio.get_running_loop().call_soon(self._drain)  # the others still wait; telling twice does nothing
            raise
        self._taken.clear()


async def batches_of(inbox: _core.Inbox) -> AsyncIterator[list[tuple[int, int, Any]]]:
    """Yield the items of an inbox as they come, in order, until it is closed: those that are there together.

    The next batch is not taken before the consumer has dealt with this one, so that a backlog stays in the bounded
    inbox. The consumer runs on the loop that iterates.
    """
    while True:
        items: list[tuple[int, int, Any]] = []
        try:
            inbox.drain(BATCH, items)
        except MemoryError:
            # What could not be taken waits in the inbox. A reader that has ended would leave a server deaf.
            await asyncio.sleep(0 if items else SIGNAL_INTERVAL)
        if items:
            yield items
            await asyncio.sleep(0)
        elif inbox.is_closed:
            return
        else:
            await readable(inbox)


async def readable(inbox: _core.Inbox, *, again: bool = False) -> None:
    """See `AsyncCalls.readable`. Any number of tasks, of several loops, may wait."""
    await AsyncCalls.of_running_loop().readable(inbox, again=again)


def _wake_next(waiting: collections.deque[asyncio.Future[None]]) -> None:
    while waiting:
        woken = waiting.popleft()
        if not woken.done():
            woken.set_result(None)
            return


class BlockingCalls:
    """Operations of the core as blocking calls, from any thread or greenlet.

    Attributes:
        async_mode: The server's way to wait; without it we wait as suits the calling thread.
    """

    def __init__(self) -> None:
        self.async_mode: str | None = None
        self._tokens = itertools.count(1)
        # Every call under way has an inbox of its own: greenlets of one thread must not see each other's results.
        self._idle: collections.deque[_core.Inbox] = collections.deque()
        self._pid = os.getpid()

    def run(self, operation: Operation, timeout: float | None = None) -> Any:
        """Start `operation` and block until it ends; returns its result or raises its exception.

        Raises:
            OperationTimeoutError: It did not end within `timeout` seconds. It goes on in the background.
        """
        if self._pid != os.getpid():
            # The parent still uses the other ends of what a forked child inherits.
            self._idle, self._pid = collections.deque(), os.getpid()
        idle = self._idle
        try:
            inbox = idle.pop()
        except IndexError:
            inbox = _core.Inbox(INBOX_BYTES)
        try:
            return self._run(operation, timeout, inbox)
        finally:
            idle.append(inbox)

    def _run(self, operation: Operation, timeout: float | None, inbox: _core.Inbox) -> Any:
        token = next(self._tokens)
        deadline = None if timeout is None else time.monotonic() + timeout
        operation(inbox, token)
        while True:
            for finished, kind, value in inbox.drain(BATCH):
                if finished != token:
                    continue  # the late end of an operation that timed out
                if kind == _core.FAILED:
                    raise value
                return value
            left = SIGNAL_INTERVAL if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise OperationTimeoutError(f"PostgreSQL did not answer within {timeout} s")
            self.wait(inbox, min(left, SIGNAL_INTERVAL))

    def wait(self, inbox: _core.Inbox, seconds: float) -> None:
        """Wait until an inbox holds something or the time is over.

        Raises:
            ForkedProcessError: We are in a child that was forked meanwhile; gevent copies waiting greenlets.
        """
        pid = os.getpid()
        wait_for_mode(self.async_mode)(inbox, seconds)
        if pid != os.getpid():
            raise ForkedProcessError("this greenlet waited when the process was forked; its result is the parent's")
