"""How a thread, or a greenlet, waits for the core without stopping anybody else.

A native wait, even one that releases the GIL, stops the only thread that gevent and eventlet have, and with it every
greenlet. There we wait for the inbox's descriptor in the hub instead. No monkey-patching is needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Awaitable
from typing import Any, Protocol, TypeVar

from socketio_postgres import _core

__all__ = ["EventletWait", "GeventWait", "ThreadWait", "Wait", "has_hub", "pause", "resolve", "wait_for_mode"]

T = TypeVar("T")


class Wait(Protocol):
    """Waits until an inbox holds something or the time is over."""

    def __call__(self, inbox: _core.Inbox, seconds: float) -> None:
        """Wait."""


class _TimeIsOver(Exception):  # noqa: N818  (no error)
    """Ends our own wait. A class of its own, because the application's time-outs around a call must pass through."""


class ThreadWait:
    """For threads of the operating system; the GIL is released."""

    def __call__(self, inbox: _core.Inbox, seconds: float) -> None:
        """Block the thread."""
        inbox.wait(seconds)


class GeventWait:
    """For greenlets of gevent."""

    def __call__(self, inbox: _core.Inbox, seconds: float) -> None:
        """Let other greenlets run."""
        from gevent import socket  # noqa: PLC0415  (installed only where it is used)

        with contextlib.suppress(_TimeIsOver):
            socket.wait_read(inbox.fileno(), seconds, _TimeIsOver())


class EventletWait:
    """For green threads of eventlet."""

    def __call__(self, inbox: _core.Inbox, seconds: float) -> None:
        """Let other green threads run."""
        from eventlet import hubs  # noqa: PLC0415  (installed only where it is used)

        with contextlib.suppress(_TimeIsOver):
            hubs.trampoline(inbox.fileno(), read=True, timeout=seconds, timeout_exc=_TimeIsOver)


def wait_for_mode(async_mode: str | None = None) -> Wait:
    """The wait that suits a server's `async_mode`, or else the thread that calls."""
    if async_mode in {"gevent", "gevent_uwsgi"} or _has_gevent_hub():
        return GeventWait()
    if async_mode == "eventlet" or _has_eventlet_hub():
        return EventletWait()
    return ThreadWait()


def pause(seconds: float) -> None:
    """Sleep, while the other greenlets of this thread run, if it has any."""
    if _has_gevent_hub():
        import gevent  # noqa: PLC0415  (installed only where it is used)

        gevent.sleep(seconds)
    elif _has_eventlet_hub():
        import eventlet  # noqa: PLC0415  (installed only where it is used)

        eventlet.sleep(seconds)
    else:
        time.sleep(seconds)


def resolve(awaitable: Awaitable[T]) -> T:
    """What an awaitable yields, in an event loop of its own, while other greenlets of this thread run, if it has any.

    There the loop runs in a thread of the operating system: greenlets of one thread cannot have a loop each.
    """

    async def wait() -> T:
        return await awaitable

    def run() -> tuple[Any, BaseException | None]:
        try:
            return asyncio.run(wait()), None
        except BaseException as error:  # noqa: BLE001  (the waiting caller gets it; gevent would also print it)
            return None, error

    if _has_gevent_hub():
        import gevent  # noqa: PLC0415  (installed only where it is used)

        value, error = gevent.get_hub().threadpool.apply(run)
    elif _has_eventlet_hub():
        from eventlet import tpool  # noqa: PLC0415  (installed only where it is used)

        value, error = tpool.execute(run)
    else:
        return asyncio.run(wait())
    if error is not None:
        raise error
    result: T = value
    return result


def has_hub() -> bool:
    """Whether the calling thread runs greenlets, which a native wait would stop."""
    return _has_gevent_hub() or _has_eventlet_hub()


# A thread that has a hub runs greenlets, monkey-patched or not. Both libraries make it with the first greenlet, and a
# program that has not imported them has none.


def _has_gevent_hub() -> bool:
    module = sys.modules.get("gevent._hub_local")
    return module is not None and module.get_hub_if_exists() is not None


def _has_eventlet_hub() -> bool:
    module = sys.modules.get("eventlet.hubs")
    return module is not None and hasattr(module._threadlocal, "hub")  # noqa: SLF001  (there is no public question)
