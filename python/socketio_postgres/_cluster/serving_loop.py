"""Which event loop an `AsyncPostgresManager` serves on, and how the calls of other loops get there.

python-socketio keeps rooms and clients in plain dictionaries and queues, which belong to one event loop. A program may
have several, one after the other (each test of a suite, each `asyncio.run`) or at once (a thread that emits).
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import itertools
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar, cast

from socketio_postgres.exceptions import ClosedError, OperationTimeoutError

__all__ = ["on_serving_loop", "starts_serving"]

HAND_OVER_LIMIT: Final = 10.0
"""Seconds that the call of another loop waits for its turn on the one that serves, which may be blocked."""

LOOK_INTERVAL: Final = 0.5
"""Interval in seconds at which a caller checks whether the loop that it waits for has ended."""


F = TypeVar("F", bound=Callable[..., Coroutine[Any, Any, Any]])


def on_serving_loop(method: F) -> F:
    """Run calls from other event loops on the serving loop. For methods of `AsyncNode`."""
    return _carried_out(method, serves=False)


def starts_serving(method: F) -> F:
    """The same for what makes the loop that calls the serving one, unless another one has clients."""
    return _carried_out(method, serves=True)


def _carried_out(method: F, *, serves: bool) -> F:
    @functools.wraps(method)
    async def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        loop = asyncio.get_running_loop()
        while loop is not self.runner.loop:
            home = self.runner.settle(loop, serves=serves)
            if home is None:
                break
            if kwargs.get("callback") is not None:
                kwargs["callback"] = _on_its_loop(kwargs["callback"], loop)
            handed_over = _HandedOver(functools.partial(_while_it_serves, self, method, *args, **kwargs), home)
            if await handed_over.is_carried_out():
                return handed_over.result()
        return await method(self, *args, **kwargs)

    return cast("F", call)


class _HasEndedError(Exception):
    """The loop that was to carry out a call is being torn down; nothing was done."""


async def _while_it_serves(node: Any, method: Callable[..., Coroutine[Any, Any, Any]], *args: Any, **kw: Any) -> Any:
    if node.runner.has_ended_with_loop:
        raise _HasEndedError
    return await method(node, *args, **kw)


class _HandedOver:
    """A call of one loop that another one carries out."""

    def __init__(self, call: Callable[[], Coroutine[Any, Any, Any]], home: asyncio.AbstractEventLoop) -> None:
        self._call = call
        self._home = home
        self._claims = itertools.count()  # the side that draws 0 decides whether the call runs
        self._value: Any = None

    async def _begin(self) -> Any:
        # Otherwise the caller no longer waits for it.
        return await self._call() if self._is_first() else None

    def _is_first(self) -> bool:
        return next(self._claims) == 0

    def result(self) -> Any:
        """Its result."""
        return self._value

    async def is_carried_out(self) -> bool:
        """Wait for its end, and raise its exception. False if its loop ended before it began.

        Raises:
            OperationTimeoutError: The loop did not get to it. It was not begun.
            ClosedError: The loop ended meanwhile.
        """
        begin = self._begin()
        try:
            future = asyncio.run_coroutine_threadsafe(begin, self._home)
        except RuntimeError:  # it was closed just now
            begin.close()
            return False
        end = asyncio.wrap_future(future)
        deadline = time.monotonic() + HAND_OVER_LIMIT
        try:
            while not (await asyncio.wait({end}, timeout=LOOK_INTERVAL))[0]:
                if self._home.is_closed():
                    break
                if time.monotonic() <= deadline:
                    continue
                if self._is_first():
                    raise OperationTimeoutError(f"the event loop that serves was blocked for {HAND_OVER_LIMIT} s")
                if not self._home.is_running():  # stopped, and perhaps never closed
                    break
        finally:
            is_given_up = self._is_first()
            end.cancel()  # unless it is done
        if not end.cancelled():
            try:
                self._value = end.result()
            except _HasEndedError:
                return False
            return True
        if is_given_up:
            begin.close()
            return False
        raise ClosedError("the event loop that serves ended during the call")


def _on_its_loop(callback: Callable[..., Any], loop: asyncio.AbstractEventLoop) -> Callable[..., Any]:
    """A callback as its giver expects it: called on their own loop, as long as that one runs."""

    async def call(*args: Any) -> Any:
        result = callback(*args)
        return await result if inspect.isawaitable(result) else result

    async def call_there(*args: Any) -> Any:
        if not loop.is_running():
            return await call(*args)
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call(*args), loop))

    return call_there
