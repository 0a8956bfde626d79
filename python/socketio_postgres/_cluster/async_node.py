"""The waiting half of `AsyncPostgresManager`: tasks, futures and time-outs of asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import math
import os
import time
from asyncio import get_running_loop
from collections.abc import Callable, Sequence
from typing import Any, Final

from socketio_postgres import _core
from socketio_postgres._bus.handover import Operation, batches_of
from socketio_postgres._bus.hook import AsyncHook
from socketio_postgres._bus.messages import Message
from socketio_postgres._cluster.adapter import ClusterAdapter, Request
from socketio_postgres._cluster.batch import Batch
from socketio_postgres._cluster.broadcast_operator import Target
from socketio_postgres._cluster.local_delivery import FEW, Parcel, queue_for
from socketio_postgres._cluster.member import GOODBYE_LIMIT, JOIN_LIMIT, ClusterMember, Handler
from socketio_postgres._cluster.serving_loop import on_serving_loop
from socketio_postgres.exceptions import ClosedError, PayloadTooLargeError, SocketIOPostgresError

__all__ = ["AsyncWaiting"]

TURN_INTERVAL: Final = 0.002
"""Seconds for which a loop of emits may go on without a turn for others. What it may queue for clients meanwhile takes
them some ten times as long to send, no more than one broadcast to a thousand clients does."""


class AsyncWaiting(ClusterMember):
    """Runs a cluster member on an event loop."""

    _loop: asyncio.AbstractEventLoop | None
    """The one that serves, or before that the one that was used last."""

    def _hook(
        self,
        name: str,
        function: Callable[[Any], object] | None,
        failed: Callable[[Exception], None] | None = None,
    ) -> AsyncHook:
        return AsyncHook(name, function, self._log, failed)

    _check_function = staticmethod(AsyncHook.check)

    def _prepare_waiting(self) -> None:
        self._loop = None
        self._has_ended_with_loop = False
        self._joining: dict[str, tuple[asyncio.Task[None], float]] = {}
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._reader: asyncio.Task[None] | None = None
        self._ticker: asyncio.Task[None] | None = None
        self._cleaner: asyncio.Task[None] | None = None
        self._background: set[asyncio.Future[Any]] = set()
        self._turn_at = -math.inf
        self.thread: asyncio.Task[None] | None = None  # python-socketio's name for what `initialize` starts

    # ------------------------------------------------------------------------------------------ life cycle

    def _settle(self, loop: asyncio.AbstractEventLoop, *, serves: bool) -> asyncio.AbstractEventLoop | None:
        """Whether another loop than the running one, and which, has to carry out a call.

        Args:
            loop: The running one.
            serves: Whether the call makes its loop the one that serves: there a client connects, or `start` is called.
        """
        self._check_process()
        home = self._loop
        has_started = self._reader is not None or self.thread is not None
        if home is not None and has_started and home is not loop:
            # A loop that has clients keeps them, for as long as it is there. One that is ending has let them go.
            is_there = not home.is_closed() and not (self._has_ended_with_loop and self._bus.is_closed)
            if is_there and (self.rooms or (home.is_running() and not serves)):
                return home if home.is_running() else None
            self._begin_anew(home)
        self._loop = loop
        self._bus.used_on(loop)
        return None

    def _is_at_home(self) -> bool:
        """Whether the running loop is to carry out what is called."""
        loop = get_running_loop()
        return loop is self._loop or self._settle(loop, serves=False) is None

    @on_serving_loop
    async def _emit_at_home(self, *args: Any, **kwargs: Any) -> None:
        await self.emit(*args, **kwargs)

    def _begin_anew(self, home: asyncio.AbstractEventLoop) -> None:
        """Another loop has served until now: begin as in a new process; its clients, if it had any, went with it."""
        tasks = self._tasks()
        has_left, is_closed = self._has_ended_with_loop, self._bus.is_closed
        if not is_closed:
            self._leave()
        if has_left or not is_closed:
            self._bus.begin_anew()
        self._prepare()
        self._forget_clients()
        self._renew_uid()
        # Last, because another thread may run them: one that found itself in office would close what begins here.
        with contextlib.suppress(RuntimeError):  # it has been closed, and nothing of it runs any more
            home.call_soon_threadsafe(lambda: [task.cancel() for task in tasks])

    def _tasks(self) -> list[asyncio.Task[None]]:
        joining = [task for task, _ in self._joining.values()]
        return [task for task in (self._reader, self._ticker, self._cleaner, self.thread, *joining) if task is not None]

    def initialize(self) -> None:
        """As in `AsyncPubSubManager`, and again on another event loop when the one that served has ended."""
        with contextlib.suppress(RuntimeError):  # outside of any loop it starts nothing of ours
            self._settle(get_running_loop(), serves=True)
        super().initialize()

    async def _thread(self) -> None:
        """The background task that `initialize` starts; lives until the server's loop is torn down."""
        if self.thread is not asyncio.current_task():
            return  # another loop took over before it began
        try:
            self._open()  # first: what is registered while this looks at the handlers is joined by `_join_soon`
            joins = [self._join(nsp) for nsp in self._served_namespaces()]
            for error in await asyncio.gather(*joins, return_exceptions=True):
                if isinstance(error, PayloadTooLargeError):
                    self._report(error)
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            if self.thread is asyncio.current_task() and not self._bus.is_closed:
                await self._close(GOODBYE_LIMIT, ends_with_loop=True)

    async def _close(self, limit: float, *, ends_with_loop: bool = False) -> None:
        self._has_ended_with_loop = ends_with_loop
        if self._bus.is_closed:
            return
        self._leave()
        for task in self._tasks():
            if task is not asyncio.current_task():
                task.cancel()
        await self._bus.close(limit)

    def _open(self) -> None:
        """Start reading what the core hands over."""
        self._check_process()
        inbox = self._bus.inbox
        if self._reader is None or self._reader.done():
            self._reader = asyncio.create_task(self._read(inbox), name="socketio-postgres reader")
            self._ticker = asyncio.create_task(self._tick(), name="socketio-postgres ticker")

    async def _join(self, namespace: str) -> None:
        """Serve a namespace; returns once LISTEN is active.

        Raises:
            asyncio.TimeoutError: It is not, `JOIN_LIMIT` seconds after it was asked for first. It goes on.
        """
        self._check_process()
        if self._is_joined(namespace):
            return
        if self.server is not None:
            self.initialize()  # whose task takes leave when the loop ends
        task, deadline = self._ask(namespace)
        await asyncio.wait_for(asyncio.shield(task), max(deadline - time.monotonic(), 0.0))

    def _ask(self, namespace: str) -> tuple[asyncio.Task[None], float]:
        """Start serving a namespace, once; returns the task that does, and when waiting for it ends."""
        if namespace not in self._joining:
            task = asyncio.create_task(self._join_now(namespace), name=f"socketio-postgres join {namespace}")
            self._joining[namespace] = (task, time.monotonic() + JOIN_LIMIT)

            def end(task: asyncio.Task[None]) -> None:
                self._joining.pop(namespace, None)
                if not task.cancelled():
                    task.exception()  # which whoever waits is told; nobody may wait

            task.add_done_callback(end)
        return self._joining[namespace]

    def _join_soon(self, namespace: str) -> None:
        reader = self._reader
        if reader is None or reader.done() or self._pid != os.getpid():
            return
        loop = reader.get_loop()
        if not loop.is_closed():
            loop.call_soon_threadsafe(self._join_unless_closed, namespace)

    def _join_unless_closed(self, namespace: str) -> None:
        if not self._bus.is_closed and not self._is_joined(namespace):
            self._ask(namespace)

    async def _join_now(self, namespace: str) -> None:
        channel = _core.channel_name(self.channel, namespace)
        self._open()
        while True:
            try:
                await self._run_core(lambda inbox, token: self._bus.core.listen(channel, inbox, token))
                break
            except ClosedError:
                raise
            except SocketIOPostgresError:
                # The listener has reported it already. Operators mend passwords and rights while we run.
                await asyncio.sleep(1.0)
        self._serve(namespace)

    async def _join_served(self) -> None:
        """Serve all namespaces known beforehand; returns once LISTEN is active."""
        await asyncio.gather(*(self._join(nsp) for nsp in self._served_namespaces()))

    async def _try_to_join(self, namespace: str) -> None:
        """Join if PostgreSQL answers; without the bus a server still serves its own clients.

        Raises:
            PayloadTooLargeError: It never can be joined: the channel's name would be too long.
        """
        try:
            await self._join(namespace)
        except PayloadTooLargeError:
            raise
        except (SocketIOPostgresError, asyncio.TimeoutError) as error:
            self._warn_not_joined(namespace, error)

    async def _read(self, inbox: _core.Inbox) -> None:
        message = _core.MESSAGE
        async for items in batches_of(inbox):
            batch = Batch(self)
            for _, kind, value in items:
                if kind == message and batch.pass_on(value):
                    continue
                if kind == message:
                    await self._receive(value)
                else:
                    self._take_item(kind, value)
                batch = Batch(self)  # what it knew may no longer be so

    async def _receive(self, message: Message) -> None:
        raise NotImplementedError

    async def _tick(self) -> None:
        interval = self._heartbeat.cleanup_interval
        cleanup_at = time.monotonic() + interval
        while True:
            now = time.monotonic()
            due = self._guarded("a heartbeat", self._tick_now, now) or now + self._heartbeat.heartbeat_interval
            if time.monotonic() >= cleanup_at:
                cleanup_at = time.monotonic() + interval
                must = self._guarded("the clean-up", self._must_clean_up)
                if must and (self._cleaner is None or self._cleaner.done()):
                    # Peers expect heartbeats, however long that takes.
                    self._cleaner = asyncio.create_task(self._clean_up(interval), name="socketio-postgres clean-up")
            await asyncio.sleep(max(min(due, cleanup_at) - time.monotonic(), 0.01))

    async def _clean_up(self, age: float) -> None:
        try:
            await self._run_core(lambda inbox, token: self._bus.core.expire_attachments(age, inbox, token))
        except Exception as error:  # noqa: BLE001  (the next one may succeed)
            self._report(error)

    # ------------------------------------------------------------------------------------------ primitives

    async def _run_core(self, operation: Operation) -> Any:
        return await self._bus.call(operation)

    async def _wait_for_room(self) -> None:
        await self._bus.wait_for_room()

    async def _flush(self) -> None:
        await self._bus.flush()

    async def _send_packets(self, parcels: list[Parcel], *, is_in_batch: bool = False) -> None:
        await queue_for(self.server, parcels)
        if not is_in_batch or len(parcels) > FEW:
            await self._give_turn()

    async def _give_turn(self) -> None:
        """Let others run, unless they had their turn just now.

        As with python-socketio, whoever emits in a loop lets others run, but not after each emit: the writers of all
        clients would have to be woken up for a single packet each, which costs as much as sending it.
        """
        if time.monotonic() - self._turn_at >= TURN_INTERVAL:
            await asyncio.sleep(0)
            self._turn_at = time.monotonic()

    async def _until_disconnecting(self, sids: Sequence[str], namespace: str) -> None:  # noqa: ARG002
        # The tasks just started run up to the application's handler now.
        await asyncio.sleep(0)

    def _in_background(self, function: Handler, *args: Any) -> None:
        task = self.server.start_background_task(function, *args)
        self._background.add(task)  # the loop alone would not keep it
        task.add_done_callback(self._background.discard)

    @staticmethod
    async def _call(function: Handler, *args: Any) -> Any:
        result = function(*args)
        return await result if inspect.isawaitable(result) else result

    # -------------------------------------------------------------------------------------------- requests

    async def _member(self, target: Target) -> ClusterAdapter:
        if not target.is_local:
            await self._join(target.nsp)
        return self._adapters.get(target.nsp) or self._new_adapter(target.nsp)

    def _start_request(self, adapter: ClusterAdapter, target: Target, *, is_of_clients: bool = False) -> Request:
        request = self._request(adapter, is_local=target.is_local, is_of_clients=is_of_clients)
        self._waiting[request.id] = asyncio.get_running_loop().create_future()
        return request

    def _complete(self, request: Request) -> None:
        waiting = self._waiting.get(request.id)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    async def _answers(self, adapter: ClusterAdapter, request: Request, target: Target, *, partial: bool) -> list[Any]:
        waiting = self._waiting[request.id]
        now = time.monotonic()
        deadline = now + target.timeout
        while not request.is_complete and now < deadline:
            # Not `wait_for`, which would cancel what others are still to complete.
            await asyncio.wait([waiting], timeout=min(deadline, adapter.settles_at(request, now)) - now)
            now = time.monotonic()
            self._run(adapter, adapter.settle, request, now)
        return request.responses if request.is_complete else self._timed_out(request, target, partial=partial)

    def _end_request(self, adapter: ClusterAdapter, request: Request) -> None:
        self._waiting.pop(request.id, None)
        self._abandon(adapter, request)
