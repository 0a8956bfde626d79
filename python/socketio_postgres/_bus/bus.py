"""The core's bus of this process: opened on first use, again after a fork, flushed at exit."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import dataclasses
import functools
import logging
import os
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable
from typing import Any, Final

from socketio_postgres import _core
from socketio_postgres._bus.handover import SIGNAL_INTERVAL, AsyncCalls, BlockingCalls, Operation, readable
from socketio_postgres._bus.messages import Message
from socketio_postgres._bus.options import BusOptions, BusSettings
from socketio_postgres._bus.password import AsyncPasswordCall
from socketio_postgres._bus.primitives import arun, awithin
from socketio_postgres.exceptions import ClosedError, ForkedProcessError, OperationTimeoutError, SocketIOPostgresError

__all__ = ["Bus"]

ITEM_TOKEN: Final = 0
"""Token under which background items of a bus arrive in its inbox; operations count from 1."""

PROBE_INTERVAL: Final = 5.0

EXIT_LIMIT: Final = 5.0
"""Seconds the process waits at exit for buffered messages, of all objects together, to be committed."""

log: Final = logging.getLogger("socketio_postgres")

_open: weakref.WeakSet[Bus] = weakref.WeakSet()
_of_the_parent: list[object] = []
"""Cores inherited through a fork: kept, because dropping them could touch the parent's connections."""

# Held while a core is opened or forgotten. No fork happens meanwhile, or the child would find it locked for ever.
_lock: Final = threading.Lock()
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


class Bus:
    """One object's way to PostgreSQL. Nothing starts at construction but the check of the options.

    Args:
        options: Validated settings.
        uid: Server id, or a function that makes one for each process.
        is_raw: Receive notifications as they are.
        probe_interval: Seconds after which the listening session is probed; twice that until a deaf one is noticed.
        before_exit: Called when the process ends without `close`. Messages that it publishes are still sent.
    """

    def __init__(
        self,
        options: BusOptions,
        *,
        uid: Callable[[], str],
        is_raw: bool = False,
        probe_interval: float = PROBE_INTERVAL,
        before_exit: Callable[[], object] | None = None,
    ) -> None:
        self.options = options
        self._password = None if options.password is None else AsyncPasswordCall(options.password)
        self._make_uid = uid
        self._is_raw = is_raw
        self._probe_interval = probe_interval
        self._before_exit = before_exit
        self._pid = os.getpid()
        self._open_core: tuple[_core.Bus, _core.Inbox] | None = None
        self._is_closed = False
        self._ends_with_process = False
        self.blocking = BlockingCalls()
        # An invalid DSN or table name raises here, at the call that passes it.
        self.description = self._make_core(self._new_inbox()).description

    def _new_inbox(self) -> _core.Inbox:
        return _core.Inbox(self.options.receive_buffer_bytes)

    def _make_core(self, inbox: _core.Inbox) -> _core.Bus:
        settings = BusSettings.make(
            dataclasses.replace(self.options, password=self._password),
            uid=self._make_uid(),
            is_raw=self._is_raw,
            probe_interval=self._probe_interval,
        )
        return _core.Bus(settings, inbox, ITEM_TOKEN)

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called in this process."""
        return self._is_closed and self._pid == os.getpid()

    def check_open(self) -> None:
        """Refuse a bus that is closed.

        Raises:
            ClosedError: `close` was called in this process.
        """
        if self.is_closed:
            raise ClosedError(f"the connection to {self.description} is closed; create a new object")

    @property
    def core(self) -> _core.Bus:
        """The core of this process.

        Raises:
            ClosedError: The bus was closed.
        """
        return self._opened()[0]

    def _opened(self) -> tuple[_core.Bus, _core.Inbox]:
        opened = self._open_core
        if opened is not None and self._pid == os.getpid() and not self._is_closed:
            return opened
        with _lock:
            if self._pid != os.getpid():
                _of_the_parent.append(self._open_core)
                self._open_core, self._is_closed, self._pid = None, False, os.getpid()
            self.check_open()
            if self._open_core is None:
                inbox = self._new_inbox()
                self._open_core = (self._make_core(inbox), inbox)
                _open.add(self)
                _flush_when_a_child_ends(os.getpid())
            return self._open_core

    @property
    def inbox(self) -> _core.Inbox:
        """Where background items of this process's core arrive."""
        return self._opened()[1]

    @property
    def last_inbox(self) -> _core.Inbox:
        """The same, also once the bus is closed: what arrived before may still be taken.

        Raises:
            ClosedError: It was closed before it was used.
        """
        opened = self._open_core
        return opened[1] if opened is not None and self.is_closed else self.inbox

    def begin_anew(self) -> None:
        """Forget the core, and that it was closed. The old core still sends its buffer, and then disconnects."""
        with _lock:
            opened, self._open_core, self._is_closed = self._open_core, None, False
            if opened is not None:
                opened[1].close()

    # ------------------------------------------------------------------------------------------------ asyncio

    def _calls(self) -> AsyncCalls:
        if self._password is not None:
            self._password.used()
        return AsyncCalls.of_running_loop()

    def used_on(self, loop: asyncio.AbstractEventLoop) -> None:
        """Note the loop whose calls do not pass here, because nothing of the core is waited for."""
        if self._password is not None:
            self._password.used_on(loop)

    async def wait_for_room(self) -> None:
        """Wait until the buffer has room. Callers whose message found no room wait before they continue."""
        await self.call(self.core.when_space)

    def publish(self, message: Message) -> asyncio.Future[None]:
        """Append a message now; the future ends once it is committed."""
        calls, opened = self._calls(), self._open_core
        if opened is None or self._is_closed:
            opened = self._opened()
        try:
            return calls.start(opened[0].publish, message)
        except ForkedProcessError:
            return calls.start(self.core.publish, message)  # as in `append`

    async def publish_many(self, messages: list[Message]) -> None:
        """Append messages and wait until all of them are committed; raises the first failure."""
        calls, core = self._calls(), self.core
        commits, refusal = [], None
        for message in messages:
            try:
                commits.append(calls.start(core.publish, message))
            except SocketIOPostgresError as error:
                refusal = error
                break
        for end in [*await asyncio.gather(*commits, return_exceptions=True), refusal]:
            if isinstance(end, BaseException):
                raise end

    async def notify(self, channel: str, payload: str) -> None:
        """Append a raw notification and wait until it is committed."""
        await self._calls().start(self.core.notify, channel, payload)

    async def flush(self, timeout: float | None = None) -> None:
        """Wait until everything published before is committed; raise what failed since the last flush.

        Raises:
            OperationTimeoutError: Not all was committed within `timeout` seconds.
        """
        core = self.core
        try:
            await self.call(core.flush, timeout)
        except OperationTimeoutError:
            raise self._not_flushed(timeout) from None
        _raise_failures(core)

    async def call(self, operation: Operation, timeout: float | None = None) -> Any:
        """Run any operation of the core.

        Raises:
            OperationTimeoutError: It did not end within `timeout` seconds. It goes on in the background.
        """
        if timeout is None:
            return await self._calls().start(operation)
        if self._password is not None:
            self._password.used()
        return await arun(operation, timeout)

    async def readable(self, inbox: _core.Inbox, timeout: float | None, *, again: bool) -> None:
        """Wait until an inbox holds something, or the time is over; `again` as in `AsyncCalls.readable`."""
        with contextlib.suppress(asyncio.TimeoutError):
            await awithin(readable(inbox, again=again), timeout)

    async def close(self, limit: float) -> None:
        """Commit the buffer within `limit` seconds, and disconnect."""
        core = self._begin_close()
        if core is not None:
            # Two parts report their end, the listener and the publisher, in this order or the other.
            calls = self._calls()
            done = calls.start(core.close_listener)
            await calls.start(core.close_publisher, limit)
            await done
            core.release()

    # ----------------------------------------------------------------------------------------------- blocking

    def wait_for_room_blocking(self) -> None:
        """Blocking form of `wait_for_room`."""
        self.call_blocking(self.core.when_space)

    def publish_blocking(self, message: Message) -> None:
        """Append a message, and wait for room if there was none; when `on_full` says so."""
        if not self.append(message):
            self.wait_for_room_blocking()
        self._log_failures()

    def publish_many_blocking(self, messages: list[Message]) -> None:
        """Append messages as one group; those that find no room one by one, as `publish_blocking` does."""
        for message in messages[self.core.publish_many(messages) :]:
            self.publish_blocking(message)
        self._log_failures()

    def _log_failures(self) -> None:
        """Log failures of messages that no caller waits for."""
        for failure in self.take_failures():
            log.error("emitting through %s: %s", self.description, failure)

    def notify_blocking(self, channel: str, payload: str) -> None:
        """Blocking form of `notify`."""
        self.call_blocking(lambda inbox, token: self.core.notify(channel, payload, inbox, token))

    def flush_blocking(self, timeout: float | None = None) -> None:
        """Blocking form of `flush`."""
        core = self.core
        try:
            self.blocking.run(core.flush, timeout)
        except OperationTimeoutError:
            raise self._not_flushed(timeout) from None
        _raise_failures(core)

    def _not_flushed(self, timeout: float | None) -> OperationTimeoutError:
        """What a flush that was not done in time still waits for."""
        stats = self.stats()
        count, size = stats.get("buffer_count", 0), stats.get("buffer_bytes", 0)
        waiting = f"{count} message{'' if count == 1 else 's'} of {size} bytes"
        return OperationTimeoutError(f"{waiting} for {self.description} not committed within {timeout} s")

    def call_blocking(self, operation: Operation, timeout: float | None = None) -> Any:
        """Blocking form of `call`."""
        return self.blocking.run(operation, timeout)

    def readable_blocking(self, inbox: _core.Inbox, timeout: float | None, *, again: bool) -> None:  # noqa: ARG002
        """Blocking form of `readable`; returns now and then, so that Ctrl-C is seen."""
        self.blocking.wait(inbox, SIGNAL_INTERVAL if timeout is None else min(timeout, SIGNAL_INTERVAL))

    def close_blocking(self, limit: float) -> None:
        """Blocking form of `close`."""
        core = self._begin_close()
        if core is not None:
            self.blocking.run(core.close_listener)
            self.blocking.run(lambda inbox, token: core.close_publisher(limit, inbox, token))
            core.release()

    # ------------------------------------------------------------------------------------------------- common

    def append(self, message: Message) -> bool:
        """Append a message to the ordered buffer; False when the caller is to wait for room before it goes on.

        Raises:
            BufferFullError: There is no room, and `on_full` is `raise`.
        """
        opened = self._open_core
        if opened is None or self._is_closed:
            opened = self._opened()
        try:
            return opened[0].publish(message)
        except ForkedProcessError:
            # The core looks for a fork anyway, so that we need no system call for each message.
            return self.core.publish(message)

    def __del__(self) -> None:
        # The core continues until its buffer is committed, or too old, and then disconnects.
        opened = getattr(self, "_open_core", None)
        if opened is None or self._pid != os.getpid() or self._is_closed or self._ends_with_process:
            return
        if opened[0].is_used:
            text = f"unclosed connection to {self.description}; close the object that uses it, or use a `with` block"
            warnings.warn(text, ResourceWarning, stacklevel=2, source=self)

    def _begin_close(self) -> _core.Bus | None:
        with _lock:
            opened = self._open_core if self._pid == os.getpid() and not self._is_closed else None
            self._is_closed, self._pid = True, os.getpid()
            _open.discard(self)
            if opened is None:
                return None
            opened[1].close()
            return opened[0]

    def take_failures(self) -> list[SocketIOPostgresError]:
        """Background failures since the last call, for objects that have no loop or thread to wait for them."""
        opened = self._open_core
        if opened is None or opened[1].is_empty or self._pid != os.getpid():
            return []
        return [value for _, kind, value in opened[1].drain(1000) if kind == _core.FAILURE]

    def flush_at_exit(self, deadline: float) -> None:
        """Commit the buffer, until a time of the monotonic clock, if this process has opened the core."""
        if not self.stats():
            return
        self._ends_with_process = True
        try:
            if self._before_exit is not None:
                self._before_exit()
            if self.stats()["buffer_count"]:
                self.flush_blocking(max(deadline - time.monotonic(), 0.0))
        except SocketIOPostgresError:
            log.exception("messages buffered for %s were not committed before the process ended", self.description)

    def stats(self) -> dict[str, Any]:
        """Counters of the core; empty before the first use."""
        opened = self._open_core
        return dict(opened[0].stats()) if opened is not None and self._pid == os.getpid() else {}


def _raise_failures(core: _core.Bus) -> None:
    # Called only after a complete wait: a cancelled flush must not consume the failure.
    failure = core.take_unreported()
    if failure is not None:
        raise failure


@functools.cache
def _exit_deadline(pid: int) -> float:  # noqa: ARG001  (once in each process, however many of these hooks it has)
    return time.monotonic() + EXIT_LIMIT


@functools.cache
def _flush_when_a_child_ends(pid: int) -> None:  # noqa: ARG001  (once in each process)
    """Children of `multiprocessing`, and Celery's, end without calling what `atexit` knows."""
    multiprocessing = sys.modules.get("multiprocessing.util")  # a process that starts such children has loaded it
    if multiprocessing is not None:
        multiprocessing.Finalize(None, _flush_at_exit, exitpriority=0)
    celery = sys.modules.get("celery.signals")
    if celery is not None:
        celery.worker_process_shutdown.connect(_flush_at_exit, weak=False)


@atexit.register
def _flush_at_exit(**_: object) -> None:
    """Commit what a script emitted just before it ended, and let servers say goodbye."""
    deadline = _exit_deadline(os.getpid())
    for bus in list(_open):
        bus.flush_at_exit(deadline)
    dropped = _core.wait_for_dropped(max(deadline - time.monotonic(), 0.0))
    if dropped:
        log.error("%d objects that were dropped without being closed had still messages to commit", dropped)
