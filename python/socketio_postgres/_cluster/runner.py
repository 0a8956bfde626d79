"""The waiting half of `PostgresManager`: threads or greenlets, as the server's `async_mode` has it."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from socketio_postgres import _core
from socketio_postgres._bus.handover import BATCH, Operation
from socketio_postgres._bus.hook import Hook
from socketio_postgres._bus.messages import Message
from socketio_postgres._cluster.adapter import ClusterAdapter, Request
from socketio_postgres._cluster.broadcast_operator import Target
from socketio_postgres._cluster.local_delivery import Parcel
from socketio_postgres._cluster.member import JOIN_LIMIT, ClusterMember, Handler
from socketio_postgres.exceptions import (
    ClosedError,
    ForkedProcessError,
    OperationTimeoutError,
    PayloadTooLargeError,
)

__all__ = ["Waiting"]

RETRY_INTERVAL = 1.0
"""Seconds after which a refused LISTEN is asked for again; operators mend passwords and rights while we run."""

DISCONNECT_LIMIT = 1.0

END_LIMIT = 2.0
"""Seconds that closing waits for the background thread; it may be inside the application's logger."""


class Waiting(ClusterMember):
    """Runs a cluster member in a background thread or greenlet of the server.

    That one thread reads the inbox, drives the timers and joins namespaces; whoever needs the outcome waits for an
    event of the server's own kind.
    """

    def _hook(
        self,
        name: str,
        function: Callable[[Any], object] | None,
        failed: Callable[[Exception], None] | None = None,
    ) -> Hook:
        return Hook(name, function, self._log, failed, self._start_background)

    def _start_background(self, run: Callable[[], None]) -> None:
        """In a thread or greenlet of the server's kind."""
        if self.server is None:
            threading.Thread(target=run, name="socketio-postgres", daemon=True).start()
        else:
            self.server.start_background_task(run)

    _check_function = staticmethod(Hook.check)

    def _prepare_waiting(self) -> None:
        self._tokens = itertools.count(1)
        self._asked: dict[int, str] = {}
        self._ask_again: dict[str, float] = {}
        self._joined: dict[str, Any] = {}
        self._join_deadlines: dict[str, float] = {}
        self._waiting: dict[str, Any] = {}
        self._is_reading = False
        self._is_ending = False

    def set_server(self, server: Any) -> None:
        """As in `BaseManager`; from now on we wait as the server does."""
        super().set_server(server)
        self._bus.blocking.async_mode = server.eio.async_mode

    # ------------------------------------------------------------------------------------------ life cycle

    def _thread(self) -> None:
        """The background thread that `initialize` starts; ends when the manager is closed."""
        self._is_reading = True
        try:
            for namespace in self._served_namespaces():
                try:
                    self._ask(namespace)
                except PayloadTooLargeError as error:
                    self._report(error)
            self._read(self._bus.inbox)
        except ClosedError:
            pass
        except ForkedProcessError:
            return  # a copy of the parent's greenlet; this process has a background thread of its own, or none
        self._is_reading = False

    def _read(self, inbox: _core.Inbox) -> None:
        interval = self._heartbeat.cleanup_interval
        cleanup_at = time.monotonic() + interval
        while not self._is_ending:
            now = time.monotonic()
            due = self._guarded("a heartbeat", self._tick_now, now) or now + self._heartbeat.heartbeat_interval
            due = min(due, cleanup_at, *self._ask_again.values())
            if now >= cleanup_at:
                cleanup_at = now + interval
                if self._guarded("the clean-up", self._must_clean_up):
                    self.server.start_background_task(self._clean_up, interval)
            for namespace in [nsp for nsp, at in self._ask_again.items() if at <= now]:
                del self._ask_again[namespace]
                self._listen(namespace)
            self._bus.blocking.wait(inbox, max(due - now, 0.01))
            items: list[tuple[int, int, Any]] = []
            with contextlib.suppress(MemoryError):  # what could not be taken waits in the inbox
                inbox.drain(BATCH, items)
            for token, kind, value in items:
                self._guarded("taking over from the core", self._handle, token, kind, value)

    def _handle(self, token: int, kind: int, value: Any) -> None:
        if kind == _core.MESSAGE:
            self._receive(value)
        elif token in self._asked:
            namespace = self._asked.pop(token)
            if kind == _core.FAILED:
                self._ask_again[namespace] = time.monotonic() + RETRY_INTERVAL
            elif namespace not in self._adapters:
                self._serve(namespace)
                self._joined[namespace].set()
        else:
            self._take_item(kind, value)

    def _close(self, limit: float) -> None:
        if self._bus.is_closed:
            return
        self._end_thread()
        self._leave()
        self._bus.close_blocking(limit)

    def _before_exit(self) -> None:
        self._end_thread()
        self._leave()

    def _end_thread(self) -> None:
        """End the background thread, so that nothing is said after the goodbye."""
        self._is_ending = True
        if self._is_reading:
            # Answered at once, and so it wakes the thread.
            self._bus.core.when_space(self._bus.inbox, next(self._tokens))
        deadline = time.monotonic() + END_LIMIT
        while self._is_reading and time.monotonic() < deadline:
            self.server.sleep(0.001)

    def _ask(self, namespace: str) -> Any:
        """Start serving a namespace, once; returns the event of success."""
        _core.channel_name(self.channel, namespace)
        event = self._joined.get(namespace)
        if event is None:
            self._join_deadlines.setdefault(namespace, time.monotonic() + JOIN_LIMIT)
            event = self._joined.setdefault(namespace, self.server.eio.create_event())
            self._listen(namespace)
        return event

    def _join_soon(self, namespace: str) -> None:
        # Before it reads, the background thread has not looked at the handlers yet.
        if self._pid == os.getpid() and self._is_reading and not self._is_joined(namespace):
            self._ask(namespace)

    def _forget_join(self, namespace: str) -> None:
        self._joined.pop(namespace, None)
        self._join_deadlines.pop(namespace, None)

    def _listen(self, namespace: str) -> None:
        token = next(self._tokens)
        self._asked[token] = namespace
        self._bus.core.listen(_core.channel_name(self.channel, namespace), self._bus.inbox, token)

    def _join(self, namespace: str) -> None:
        """Serve a namespace; returns once LISTEN is active.

        Raises:
            OperationTimeoutError: It is not, `JOIN_LIMIT` seconds after it was asked for first. It goes on.
        """
        self._check_process()
        if self._is_joined(namespace):
            return
        self.initialize()
        event = self._ask(namespace)
        if not event.wait(max(self._join_deadlines[namespace] - time.monotonic(), 0.0)) and not event.is_set():
            raise OperationTimeoutError(f"PostgreSQL did not answer within {JOIN_LIMIT} s")

    def _join_served(self) -> None:
        """Serve all namespaces known beforehand; returns once LISTEN is active."""
        for namespace in self._served_namespaces():
            self._join(namespace)

    def _try_to_join(self, namespace: str) -> None:
        """Join if PostgreSQL answers; without the bus a server still serves its own clients.

        Raises:
            PayloadTooLargeError: It never can be joined: the channel's name would be too long.
        """
        try:
            self._join(namespace)
        except OperationTimeoutError as error:
            self._warn_not_joined(namespace, error)

    def _open(self) -> None:
        """Start the background thread, which reads what the core hands over."""
        if self.server is not None:
            self.initialize()

    def _receive(self, message: Message) -> None:
        raise NotImplementedError

    def _clean_up(self, age: float) -> None:
        try:
            self._run_core(lambda inbox, token: self._bus.core.expire_attachments(age, inbox, token))
        except Exception as error:  # noqa: BLE001  (the next one may succeed)
            self._report(error)

    # ------------------------------------------------------------------------------------------ primitives

    def _run_core(self, operation: Operation) -> Any:
        return self._bus.call_blocking(operation)

    def _wait_for_room(self) -> None:
        self._bus.wait_for_room_blocking()

    def _flush(self) -> None:
        self._bus.flush_blocking()

    def _send_packets(self, parcels: list[Parcel], *, is_in_batch: bool = False) -> None:  # noqa: ARG002
        for eio_sid, packets in parcels:
            for packet in packets:
                self.server._send_eio_packet(eio_sid, packet)  # noqa: SLF001  (as Manager.emit does)

    def _until_disconnecting(self, sids: Sequence[str], namespace: str) -> None:
        # The tasks just started mark the client before they call the application's handler.
        deadline = time.monotonic() + DISCONNECT_LIMIT
        while any(self.is_connected(sid, namespace) for sid in sids) and time.monotonic() < deadline:
            self.server.sleep(0.001)

    def _in_background(self, function: Handler, *args: Any) -> None:
        self.server.start_background_task(function, *args)

    @staticmethod
    def _call(function: Handler, *args: Any) -> Any:
        return function(*args)

    # -------------------------------------------------------------------------------------------- requests

    def _member(self, target: Target) -> ClusterAdapter:
        if not target.is_local:
            self._join(target.nsp)
        return self._adapters.get(target.nsp) or self._new_adapter(target.nsp)

    def _start_request(self, adapter: ClusterAdapter, target: Target, *, is_of_clients: bool = False) -> Request:
        request = self._request(adapter, is_local=target.is_local, is_of_clients=is_of_clients)
        self._waiting[request.id] = self.server.eio.create_event()
        return request

    def _complete(self, request: Request) -> None:
        waiting = self._waiting.get(request.id)
        if waiting is not None:
            waiting.set()

    def _answers(self, adapter: ClusterAdapter, request: Request, target: Target, *, partial: bool) -> list[Any]:
        waiting = self._waiting[request.id]
        now = time.monotonic()
        deadline = now + target.timeout
        while not request.is_complete and now < deadline:
            waiting.wait(min(deadline, adapter.settles_at(request, now)) - now)
            now = time.monotonic()
            self._run(adapter, adapter.settle, request, now)
        return request.responses if request.is_complete else self._timed_out(request, target, partial=partial)

    def _end_request(self, adapter: ClusterAdapter, request: Request) -> None:
        del self._waiting[request.id]
        self._abandon(adapter, request)
