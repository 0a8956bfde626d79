"""How a node runs beside its application: tasks of an event loop, or a background thread or greenlet of the server.

Both do the same for the node: read what the core hands over, drive the timers, ask for LISTEN until it is active. They
are the one part of the node that is written twice. Tasks can be cancelled and wait for several things at once; a thread
can do neither, so it reads, drives the timers and asks in one loop, and is told to end.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final

from socketio_postgres import _core
from socketio_postgres._bus.green import pause
from socketio_postgres._bus.handover import BATCH, batches_of
from socketio_postgres._bus.hook import AsyncHook, Hook
from socketio_postgres._bus.primitives import awithin
from socketio_postgres._cluster.fast_path import FastPath
from socketio_postgres.exceptions import (
    ClosedError,
    ForkedProcessError,
    OperationTimeoutError,
    PayloadTooLargeError,
    SocketIOPostgresError,
)

if TYPE_CHECKING:
    import logging

    from socketio_postgres._cluster._sync.node import Node
    from socketio_postgres._cluster.async_node import AsyncNode

__all__ = ["AsyncEvent", "AsyncRunner", "Runner"]

GOODBYE_LIMIT: Final = 1.0
"""Seconds that leaving waits for buffered messages when the event loop is being torn down."""

JOIN_LIMIT: Final = 10.0
"""Seconds a connecting client waits for LISTEN; then it is let in, and the log says so."""

RETRY_INTERVAL: Final = 1.0
"""Seconds after which a refused LISTEN is asked for again; operators mend passwords and rights while we run."""

DISCONNECT_LIMIT: Final = 1.0
"""Seconds that a thread waits for another one to begin to disconnect a client."""

END_LIMIT: Final = 2.0
"""Seconds that closing waits for the background thread; it may be inside the application's logger."""


class AsyncEvent:
    """Set once; one task waits for it."""

    def __init__(self) -> None:
        self._future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def set(self) -> None:
        """It has come."""
        if not self._future.done():
            self._future.set_result(None)

    async def wait(self, seconds: float) -> None:
        """Wait for it, so many seconds at most."""
        # Not `wait_for`, which would cancel a future that others will set.
        await asyncio.wait([self._future], timeout=seconds)


class AsyncRunner:
    """Runs a node on an event loop.

    Attributes:
        loop: The one that serves, or before that the one that was used last.
        has_ended_with_loop: The node was closed because its loop was torn down.
    """

    def __init__(self, node: AsyncNode[Any]) -> None:
        self._node = node
        self.reset()
        self.forked()

    def reset(self) -> None:
        """Nothing runs, on no loop."""
        self.loop: asyncio.AbstractEventLoop | None = None
        self.has_ended_with_loop = False
        self.reader: asyncio.Task[None] | None = None
        self.ticker: asyncio.Task[None] | None = None
        self._main: asyncio.Task[None] | None = None
        self._cleaner: asyncio.Task[None] | None = None
        self._joining: dict[str, tuple[asyncio.Task[None], float]] = {}
        self._background: set[asyncio.Task[Any]] = set()

    def forked(self) -> None:
        """In a forked child, where no thread holds the lock."""
        # Loops of several threads may want to be the one that serves.
        self._lock = threading.RLock()

    @staticmethod
    def hook(
        name: str,
        function: Callable[[Any], object] | None,
        log: logging.Logger,
        failed: Callable[[Exception], None] | None = None,
    ) -> AsyncHook:
        """What tells a function of the application's of something."""
        return AsyncHook(name, function, log, failed)

    check_function = staticmethod(AsyncHook.check)

    # ---------------------------------------------------------------------------------------- event loops

    def settle(self, loop: asyncio.AbstractEventLoop, *, serves: bool) -> asyncio.AbstractEventLoop | None:
        """Whether another loop than the running one, and which, has to carry out a call.

        Args:
            loop: The running one.
            serves: Whether the call makes its loop the one that serves: there a client connects, or `start` is called.
        """
        node = self._node
        node.check_process()
        with self._lock:
            home = self.loop
            has_started = self.reader is not None or self._main is not None
            if home is not None and has_started and home is not loop:
                # A loop that has clients keeps them, for as long as it is there. One that is ending has let them go.
                is_there = not home.is_closed() and not (self.has_ended_with_loop and node.is_closed)
                if is_there and (node.sockets.has_clients() or (home.is_running() and not serves)):
                    return home if home.is_running() else None
                self._begin_anew(home)
            self.loop = loop
            node.used_on(loop)
            return None

    def is_at_home(self) -> bool:
        """Whether calls run on the running loop."""
        loop = asyncio.get_running_loop()
        return loop is self.loop or self.settle(loop, serves=False) is None

    def is_revived(self) -> bool:
        """Whether a node that was found closed is open: its loop ended during the call, and another one took over."""
        with self._lock:
            if self._node.is_closed:
                if not self.has_ended_with_loop:
                    return False
                self.settle(asyncio.get_running_loop(), serves=False)
            return not self._node.is_closed

    def _begin_anew(self, home: asyncio.AbstractEventLoop) -> None:
        """Another loop has served until now: begin as in a new process; its clients, if it had any, went with it."""
        # One that has ended has cancelled its tasks, and waits for its last commits.
        tasks = [] if self.has_ended_with_loop else self._tasks()
        self._node.begin_anew(has_left=self.has_ended_with_loop)
        # Last, because another thread may run them: one that found itself in office would close what begins here.
        with contextlib.suppress(RuntimeError):  # it has been closed, and nothing of it runs any more
            home.call_soon_threadsafe(lambda: [task.cancel() for task in tasks])

    def _tasks(self) -> list[asyncio.Task[None]]:
        joining = [task for task, _ in self._joining.values()]
        return [task for task in (self.reader, self.ticker, self._cleaner, self._main, *joining) if task is not None]

    # ------------------------------------------------------------------------------------------ life cycle

    def start(self, *, serves: bool = False) -> None:
        """Run the node in the background, on the running loop unless another one runs it.

        Args:
            serves: Clients are going to connect on the running loop.
        """
        with self._lock:  # between being the one that serves and having begun, no other may come
            with contextlib.suppress(RuntimeError):  # outside of any loop it starts nothing of ours
                self.settle(asyncio.get_running_loop(), serves=serves)
            if self._node.is_first_start():
                self._main = self._node.sockets.start(self.run)

    async def run(self) -> None:
        """The task that `start` starts; lives until its loop is torn down."""
        if self._main is not asyncio.current_task():
            return  # another loop took over before it began
        node = self._node
        try:
            self.open()  # first, so that `join_soon` joins namespaces that are registered meanwhile
            joins = [self.join(namespace) for namespace in node.served_namespaces()]
            for error in await asyncio.gather(*joins, return_exceptions=True):
                if isinstance(error, PayloadTooLargeError):
                    node.reports.failure(error)
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            if self._main is asyncio.current_task() and not node.is_closed:
                await node.close_within(GOODBYE_LIMIT, ends_with_loop=True)

    def open(self) -> None:
        """Start reading what the core hands over, and the timers."""
        self._node.check_process()
        inbox = self._node.inbox
        if self.reader is None or self.reader.done():
            self.reader = asyncio.create_task(self._read(inbox), name="socketio-postgres reader")
            self.ticker = asyncio.create_task(self._tick(), name="socketio-postgres ticker")

    def end(self) -> None:
        """End all of it, but the task that calls."""
        for task in self._tasks():
            if task is not asyncio.current_task():
                task.cancel()

    def at_exit(self) -> None:
        """The process ends, and no loop runs any more."""

    async def _read(self, inbox: _core.Inbox) -> None:
        node, message = self._node, _core.MESSAGE
        async for items in batches_of(inbox):
            fast = FastPath(node.sockets, node.peers)
            for _, kind, value in items:
                if kind == message and fast.take(value):
                    continue
                if kind == message:
                    await node.receiver.receive(value)
                else:
                    node.receiver.take_item(kind, value)
                fast = FastPath(node.sockets, node.peers)  # its state may be outdated

    async def _tick(self) -> None:
        node = self._node
        interval = node.heartbeat.cleanup_interval
        cleanup_at = time.monotonic() + interval
        while True:
            now = time.monotonic()
            due = node.reports.guarded("a heartbeat", node.tick, now) or now + node.heartbeat.heartbeat_interval
            if time.monotonic() >= cleanup_at:
                cleanup_at = time.monotonic() + interval
                must = node.reports.guarded("the clean-up", node.must_clean_up)
                if must and (self._cleaner is None or self._cleaner.done()):
                    # Peers expect heartbeats, however long that takes.
                    self._cleaner = asyncio.create_task(node.clean_up(interval), name="socketio-postgres clean-up")
            await asyncio.sleep(max(min(due, cleanup_at) - time.monotonic(), 0.01))

    # --------------------------------------------------------------------------------------------- joining

    async def join(self, namespace: str) -> None:
        """Serve a namespace; returns once LISTEN is active.

        Raises:
            OperationTimeoutError: It is not, `JOIN_LIMIT` seconds after it was asked for first. It goes on.
        """
        task, deadline = self._ask(namespace)
        try:
            await awithin(asyncio.shield(task), max(deadline - time.monotonic(), 0.0))
        except SocketIOPostgresError:
            raise  # the core's own, which says more
        except asyncio.TimeoutError:
            raise OperationTimeoutError(f"PostgreSQL did not answer within {JOIN_LIMIT} s") from None

    def join_soon(self, namespace: str) -> None:
        """Serve a namespace, if this node runs; otherwise it is among those that it begins with. For any thread."""
        reader = self.reader
        if reader is None or reader.done() or not self._node.is_of_this_process:
            return
        loop = reader.get_loop()
        if not loop.is_closed():
            loop.call_soon_threadsafe(self._join_unless_closed, namespace)

    def forget_join(self, namespace: str) -> None:
        """The next use of a namespace must send LISTEN again, which it does here anyway."""

    def _join_unless_closed(self, namespace: str) -> None:
        if not self._node.is_closed and not self._node.peers.use(namespace):
            self._ask(namespace)

    def _ask(self, namespace: str) -> tuple[asyncio.Task[None], float]:
        """Start serving a namespace, once; returns the task that does, and when waiting for it ends."""
        if namespace not in self._joining:
            task = asyncio.create_task(self._join_now(namespace), name=f"socketio-postgres join {namespace}")
            self._joining[namespace] = (task, time.monotonic() + JOIN_LIMIT)

            def end(task: asyncio.Task[None]) -> None:
                self._joining.pop(namespace, None)
                if not task.cancelled():
                    task.exception()  # the waiting tasks get it; there may be none

            task.add_done_callback(end)
        return self._joining[namespace]

    async def _join_now(self, namespace: str) -> None:
        node = self._node
        channel = _core.channel_name(node.channel, namespace)
        self.open()
        while True:
            try:
                await node.run_core(lambda inbox, token: node.core.listen(channel, inbox, token))
                break
            except ClosedError:
                raise
            except SocketIOPostgresError:
                # The listener has reported it already.
                await asyncio.sleep(RETRY_INTERVAL)
        node.joined(namespace)

    # ------------------------------------------------------------------------------------------ primitives

    def use(self, server: Any) -> None:
        """From now on run as a server of python-socketio does, which is in tasks, too."""

    def spawn(self, function: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> None:
        """Run a function of ours in a task of its own, to its end."""
        task = asyncio.create_task(function(*args))
        self._background.add(task)  # the loop alone would not keep it
        task.add_done_callback(self._background.discard)

    @staticmethod
    def new_event() -> AsyncEvent:
        """What somebody is going to wait for."""
        return AsyncEvent()

    @staticmethod
    async def until_begun(is_begun: Callable[[], bool]) -> None:  # noqa: ARG004
        """Wait until tasks that were just spawned have begun, up to where they wait themselves."""
        await asyncio.sleep(0)


class Runner:
    """Runs a node in a background thread or greenlet.

    That one thread reads the inbox, drives the timers and joins namespaces. A thread that needs the result waits for an
    event of the server's own kind.

    Attributes:
        has_ended_with_loop: Never: threads have no loop.
    """

    def __init__(self, node: Node[Any]) -> None:
        self._node = node
        self._server: Any = None
        self.reset()

    def reset(self) -> None:
        """Nothing runs."""
        self._tokens = itertools.count(1)
        self._asked: dict[int, str] = {}
        self._ask_again: dict[str, float] = {}
        self._joined: dict[str, Any] = {}
        self._join_deadlines: dict[str, float] = {}
        self._is_reading = False
        self._is_ending = False
        self.has_ended_with_loop = False

    def forked(self) -> None:
        """In a child."""

    def use(self, server: Any) -> None:
        """From now on run and wait as a server of python-socketio does: its `async_mode` says how."""
        self._server = server

    def hook(
        self,
        name: str,
        function: Callable[[Any], object] | None,
        log: logging.Logger,
        failed: Callable[[Exception], None] | None = None,
    ) -> Hook:
        """What tells a function of the application's of something."""
        return Hook(name, function, log, failed, self.spawn)

    check_function = staticmethod(Hook.check)

    # ------------------------------------------------------------------------------------------ life cycle

    def start(self, *, serves: bool = False) -> None:  # noqa: ARG002  (threads are all alike)
        """Run the node in the background."""
        if self._node.is_first_start():
            self._node.sockets.start(self.run)

    def run(self) -> None:
        """The background thread that `start` starts; ends when the node is closed."""
        node = self._node
        self._is_reading = True
        try:
            for namespace in node.served_namespaces():
                try:
                    self._ask(namespace)
                except PayloadTooLargeError as error:
                    node.reports.failure(error)
            self._read(node.inbox)
        except ClosedError:
            pass
        except ForkedProcessError:
            return  # a copy of the parent's greenlet; this process has a background thread of its own, or none
        self._is_reading = False

    def _read(self, inbox: _core.Inbox) -> None:
        node = self._node
        interval = node.heartbeat.cleanup_interval
        cleanup_at = time.monotonic() + interval
        while not self._is_ending:
            now = time.monotonic()
            due = node.reports.guarded("a heartbeat", node.tick, now) or now + node.heartbeat.heartbeat_interval
            due = min(due, cleanup_at, *self._ask_again.values())
            if now >= cleanup_at:
                cleanup_at = now + interval
                if node.reports.guarded("the clean-up", node.must_clean_up):
                    self.spawn(node.clean_up, interval)
            for namespace in [nsp for nsp, at in self._ask_again.items() if at <= now]:
                del self._ask_again[namespace]
                self._listen(namespace)
            node.wait(inbox, max(due - now, 0.01))
            items: list[tuple[int, int, Any]] = []
            with contextlib.suppress(MemoryError):  # what could not be taken waits in the inbox
                inbox.drain(BATCH, items)
            for token, kind, value in items:
                node.reports.guarded("taking over from the core", self._handle, token, kind, value)

    def _handle(self, token: int, kind: int, value: Any) -> None:
        if kind == _core.MESSAGE:
            self._node.receiver.receive(value)
        elif token in self._asked:
            namespace = self._asked.pop(token)
            if kind == _core.FAILED:
                self._ask_again[namespace] = time.monotonic() + RETRY_INTERVAL
            elif not self._node.peers.is_serving(namespace):
                self._node.joined(namespace)
                self._joined[namespace].set()
        else:
            self._node.receiver.take_item(kind, value)

    def end(self) -> None:
        """End the background thread, so that nothing is said after the goodbye."""
        self._is_ending = True
        if self._is_reading:
            # Answered at once, and so it wakes the thread.
            self._node.core.when_space(self._node.inbox, next(self._tokens))
        deadline = time.monotonic() + END_LIMIT
        while self._is_reading and time.monotonic() < deadline:
            self.sleep(0.001)

    def at_exit(self) -> None:
        """The process ends."""
        self.end()

    # --------------------------------------------------------------------------------------------- joining

    def join(self, namespace: str) -> None:
        """Serve a namespace; returns once LISTEN is active.

        Raises:
            OperationTimeoutError: It is not, `JOIN_LIMIT` seconds after it was asked for first. It goes on.
        """
        event = self._ask(namespace)
        if not event.wait(max(self._join_deadlines[namespace] - time.monotonic(), 0.0)) and not event.is_set():
            raise OperationTimeoutError(f"PostgreSQL did not answer within {JOIN_LIMIT} s")

    def join_soon(self, namespace: str) -> None:
        """Serve a namespace, if this node runs; otherwise it is among those that it begins with."""
        # Before it reads, the background thread has not looked at the handlers yet.
        if self._node.is_of_this_process and self._is_reading and not self._node.peers.use(namespace):
            self._ask(namespace)

    def forget_join(self, namespace: str) -> None:
        """The next use of a namespace must send LISTEN again."""
        self._joined.pop(namespace, None)
        self._join_deadlines.pop(namespace, None)

    def _ask(self, namespace: str) -> Any:
        """Start serving a namespace, once; returns the event of success."""
        _core.channel_name(self._node.channel, namespace)
        event = self._joined.get(namespace)
        if event is None:
            self._join_deadlines.setdefault(namespace, time.monotonic() + JOIN_LIMIT)
            event = self._joined.setdefault(namespace, self.new_event())
            self._listen(namespace)
        return event

    def _listen(self, namespace: str) -> None:
        node, token = self._node, next(self._tokens)
        self._asked[token] = namespace
        node.core.listen(_core.channel_name(node.channel, namespace), node.inbox, token)

    # ------------------------------------------------------------------------------------------ primitives

    def spawn(self, function: Callable[..., object], *args: Any) -> None:
        """Run a function of ours in a thread or greenlet of its own, to its end."""
        if self._server is None:
            threading.Thread(target=function, args=args, name="socketio-postgres", daemon=True).start()
        else:
            self._server.start_background_task(function, *args)

    def new_event(self) -> Any:
        """What somebody is going to wait for."""
        return threading.Event() if self._server is None else self._server.eio.create_event()

    def sleep(self, seconds: float) -> None:
        """Let others run."""
        (pause if self._server is None else self._server.sleep)(seconds)

    def until_begun(self, is_begun: Callable[[], bool]) -> None:
        """Wait until the new greenlet or thread has begun."""
        deadline = time.monotonic() + DISCONNECT_LIMIT
        while not is_begun() and time.monotonic() < deadline:
            self.sleep(0.001)
