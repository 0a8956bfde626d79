"""How a thread, or a greenlet, waits for the core without stopping anybody else.

A native wait, even one that releases the GIL, stops the only thread that gevent and eventlet have, and with it every
greenlet. There we wait for the inbox's descriptor in the hub instead. No monkey-patching is needed.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Protocol

from socketio_postgres import _core

__all__ = ["EventletWait", "GeventWait", "ThreadWait", "Wait", "wait_for_mode"]


class Wait(Protocol):
    """Waits until an inbox holds something or the time is over."""

    def __call__(self, inbox: _core.Inbox, seconds: float) -> None:
        """Wait."""


class ThreadWait:
    """For threads of the operating system; the GIL is released."""

    def __call__(self, inbox: _core.Inbox, seconds: float) -> None:
        """Block the thread."""
        inbox.wait(seconds)


class GeventWait:
    """For greenlets of gevent."""

    def __call__(self, inbox: _core.Inbox, seconds: float) -> None:
        """Let other greenlets run."""
        from gevent import socket  # type: ignore[import-untyped]  # noqa: PLC0415  (installed only where it is used)

        with contextlib.suppress(TimeoutError):
            socket.wait_read(inbox.fileno(), seconds)


class EventletWait:
    """For green threads of eventlet."""

    def __call__(self, inbox: _core.Inbox, seconds: float) -> None:
        """Let other green threads run."""
        import eventlet  # type: ignore[import-untyped]  # noqa: PLC0415  (installed only where it is used)
        from eventlet import hubs  # noqa: PLC0415

        with contextlib.suppress(eventlet.Timeout):
            hubs.trampoline(inbox.fileno(), read=True, timeout=seconds)


def wait_for_mode(async_mode: str | None = None) -> Wait:
    """The wait that suits a server's `async_mode`, or else what is monkey-patched in this process."""
    if async_mode in {"gevent", "gevent_uwsgi"} or _is_patched("gevent.monkey", "is_module_patched", "threading"):
        return GeventWait()
    if async_mode == "eventlet" or _is_patched("eventlet.patcher", "is_monkey_patched", "thread"):
        return EventletWait()
    return ThreadWait()


def _is_patched(module: str, function: str, name: str) -> bool:
    loaded = sys.modules.get(module)  # a program that did not import it cannot have patched anything
    return loaded is not None and bool(getattr(loaded, function)(name))
