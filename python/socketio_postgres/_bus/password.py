"""How the core asks the application for a password: on a thread of its own, at every connect."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import time
import weakref
from collections.abc import Awaitable, Callable
from concurrent import futures
from typing import Final

from socketio_postgres._bus.green import resolve
from socketio_postgres._bus.handover import Reference, nothing

__all__ = ["AsyncPasswordCall", "PasswordCall"]

TURN_LIMIT: Final = 2.0
"""Seconds after which a loop that does not come to the coroutine is taken for blocked."""

ANSWER_LIMIT: Final = 60.0
"""Seconds that it may take then; `connect_timeout` ends the attempt to connect before that."""

LOOK_INTERVAL: Final = 0.2
"""Seconds after which is looked whether the loop has been closed."""


class PasswordCall:
    """A `password` function as the core calls it; a coroutine is run under a loop of its own."""

    def __init__(self, function: Callable[[], str | Awaitable[str]]) -> None:
        self._function = function
        self._loop: Reference[asyncio.AbstractEventLoop] = nothing

    def used(self) -> None:
        """Note that its object is used now."""

    def __call__(self) -> str:
        """Ask for the password."""
        password = self._function()
        if not inspect.isawaitable(password):
            return password
        loop = self._loop()
        if loop is None or not loop.is_running():
            return resolve(password)
        return _resolve_on(loop, password)


class AsyncPasswordCall(PasswordCall):
    """The same for objects that are used on event loops: a coroutine runs on the last one that used it, if possible.

    There it may use objects that belong to the loop: a client session, a pool, a cache with a lock.
    """

    def used(self) -> None:
        """Note that its object is used on the running loop."""
        self.used_on(asyncio.get_running_loop())

    def used_on(self, loop: asyncio.AbstractEventLoop) -> None:
        """Note that its object is used on a loop."""
        if self._loop() is not loop:
            self._loop = weakref.ref(loop)


def _resolve_on(loop: asyncio.AbstractEventLoop, password: Awaitable[str]) -> str:
    """Run it there; if the loop is blocked or ends before it begins, in a private one after all."""
    claims = itertools.count()  # the thread that draws 0 runs it
    answer: futures.Future[str] = futures.Future()

    async def ask() -> None:
        if next(claims) != 0:
            return
        try:
            answer.set_result(await password)
        except BaseException as error:
            answer.set_exception(error)  # and not the task's: the loop would log it, and it may hold the secret
            if not isinstance(error, Exception):
                raise

    asking = ask()
    try:
        task = asyncio.run_coroutine_threadsafe(asking, loop)
    except RuntimeError:  # it was closed just now
        asking.close()
        return resolve(password)
    begun = time.monotonic()
    while True:
        if futures.wait([answer], timeout=LOOK_INTERVAL).done:
            return answer.result()
        waited = time.monotonic() - begun
        if (waited > TURN_LIMIT or loop.is_closed()) and next(claims) == 0:
            return resolve(password)
        if waited > ANSWER_LIMIT or loop.is_closed():
            task.cancel()
            raise TimeoutError("the password function has not answered")
