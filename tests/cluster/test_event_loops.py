"""Managers, emitters, clients and stores that outlive an event loop, or are used by several at once."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import socketio
from anyio.from_thread import BlockingPortal, start_blocking_portal
from typing_extensions import Self

from socketio_postgres import (
    END,
    AsyncEmitter,
    AsyncEventStore,
    AsyncPostgresClient,
    AsyncPostgresManager,
    ClosedError,
    Event,
    OperationTimeoutError,
)
from socketio_postgres._cluster import runner, serving_loop
from tests.fixtures.bus import serving
from tests.fixtures.clients import PythonClient
from tests.fixtures.database import Database
from tests.fixtures.spy import spying
from tests.fixtures.waiting import TIMEOUT_S, eventually

THREADS, CALLS = 8, 10
LOOPS = 1000 if os.environ.get("SIO_PG_SOAK") else 30
HEARTBEAT = 2
SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


@pytest.fixture(autouse=True)
def _slow_postgres(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that ends waits for a second until what was emitted is committed."""
    monkeypatch.setattr(runner, "GOODBYE_LIMIT", TIMEOUT_S)


Main = Callable[[], Coroutine[Any, Any, Any]]


def run_and_close(main: Coroutine[Any, Any, Any]) -> Any:
    """As a worker does that knows nothing of `asyncio.run`: tasks are not cancelled."""
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # "Task was destroyed but it is pending!"
    try:
        return loop.run_until_complete(main)
    finally:
        loop.close()


def in_thread(main: Main) -> Future[Any]:
    """Run a coroutine function in another thread, under a loop of its own."""
    done: Future[Any] = Future()

    def run() -> None:
        try:
            done.set_result(asyncio.run(main()))
        except BaseException as error:  # noqa: BLE001 - whoever waits for it gets it
            done.set_exception(error)

    threading.Thread(target=run).start()
    return done


async def elsewhere(main: Main) -> Any:
    """Wait for `in_thread`."""
    return await asyncio.wait_for(asyncio.wrap_future(in_thread(main)), TIMEOUT_S)


async def close_of(manager: AsyncPostgresManager) -> None:
    await manager.close()


# ------------------------------------------------------------------------------------------ one after the other


@pytest.mark.parametrize("run", [asyncio.run, run_and_close])
def test_a_manager_serves_in_one_loop_after_the_other(
    database: Database, run: Callable[[Coroutine[Any, Any, Any]], Any]
) -> None:
    """A suite with one server, and a loop for each test."""
    mgr = AsyncPostgresManager(database.dsn)
    sio = socketio.AsyncServer(client_manager=mgr, async_mode="asgi")
    heard: list[int] = []
    mgr.on_server_side("hello", heard.append)

    async def test(number: int) -> str:
        async with spying(database) as spy:
            if number % 2:
                await mgr.start()
            await sio.emit("hello", number)
            [frame] = await spy.wait_for_broadcast("hello")
            assert frame.message["data"]["packet"]["data"] == ["hello", number]
            async with AsyncEmitter(database.dsn) as io:
                await eventually(lambda: mgr._node.peers.is_serving("/"), "the manager listens")
                await io.server_side_emit("hello", number)
                await eventually(lambda: number in heard, "it hears others")
        assert await mgr.fetch_sockets() == []
        return str(mgr.host_id)

    ids = [run(test(number)) for number in range(4)]
    assert len(set(ids)) == 4, "for peers it is a new server each time, whose numbers begin anew"
    run(close_of(mgr))

    async def after_closing() -> None:
        with pytest.raises(ClosedError):
            await sio.emit("hello", 9)

    run(after_closing())


def test_a_loop_that_ends_says_goodbye(database: Database) -> None:
    mgr = AsyncPostgresManager(database.dsn)
    socketio.AsyncServer(client_manager=mgr, async_mode="asgi")
    with database.connect() as spy:
        spy.execute('LISTEN "socket.io#/"')
        for _ in range(2):
            asyncio.run(mgr.start())
        types: list[int] = []
        for notify in spy.notifies(timeout=TIMEOUT_S):
            if (kind := json.loads(notify.payload)["type"]) != HEARTBEAT:  # these come by themselves
                types.append(kind)
            if len(types) == 4:
                break
    assert types == [1, 13, 1, 13]
    asyncio.run(eventually(lambda: database.value(SESSIONS) == 0, "its sessions are gone"))
    asyncio.run(close_of(mgr))


def test_what_a_dying_loop_still_emits_is_refused(database: Database) -> None:
    mgr = AsyncPostgresManager(database.dsn)
    sio = socketio.AsyncServer(client_manager=mgr, async_mode="asgi")
    errors: list[Exception] = []

    async def linger() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await eventually(lambda: mgr._node._bus.is_closed, "the manager has left")
            try:
                await sio.emit("late", 1)
            except ClosedError as error:
                errors.append(error)

    async def main() -> None:
        await mgr.start()
        task = asyncio.create_task(linger())
        await asyncio.sleep(0)
        assert not task.done()

    asyncio.run(main())
    assert len(errors) == 1
    assert len(asyncio.run(_started(mgr))) == 32
    asyncio.run(close_of(mgr))


async def _started(mgr: AsyncPostgresManager) -> str:
    await mgr.start()
    return str(mgr.host_id)


class Browser:
    """A client inside the process, as starlette's `TestClient` has it: the loop of the portal's thread, no sockets."""

    def __init__(self, app: socketio.ASGIApp, portal: BlockingPortal) -> None:
        self._portal = portal
        self._incoming: asyncio.Queue[dict[str, Any]] = portal.call(asyncio.Queue)
        self._outgoing: asyncio.Queue[dict[str, Any]] = portal.call(asyncio.Queue)
        scope = {
            "type": "websocket",
            "path": "/socket.io/",
            "raw_path": b"/socket.io/",
            "query_string": b"EIO=4&transport=websocket",
            "headers": [(b"connection", b"Upgrade"), (b"upgrade", b"websocket")],
            "scheme": "ws",
            "server": ("testserver", 80),
            "client": ("testclient", 50000),
        }
        self._serving = portal.start_task_soon(app, scope, self._incoming.get, self._outgoing.put)
        self._say({"type": "websocket.connect"})

    def _say(self, message: dict[str, Any]) -> None:
        self._portal.call(self._incoming.put, message)

    def send(self, text: str) -> None:
        self._say({"type": "websocket.receive", "text": text})

    def receive(self, start: str) -> str:
        """The next packet of a kind."""
        while True:
            message = self._portal.call(lambda: asyncio.wait_for(self._outgoing.get(), TIMEOUT_S))
            if message.get("text", "").startswith(start):
                return str(message["text"])

    def close(self) -> None:
        self._say({"type": "websocket.disconnect", "code": 1000})
        self._serving.result(TIMEOUT_S)


def test_two_test_clients_of_one_application(database: Database) -> None:
    mgr = AsyncPostgresManager(database.dsn)
    sio = socketio.AsyncServer(client_manager=mgr, async_mode="asgi")
    app = socketio.ASGIApp(sio)
    with AsyncBox(database) as box:
        for number in range(3):
            with start_blocking_portal("asyncio") as portal:
                browser = Browser(app, portal)
                browser.send("40")
                browser.receive("40")
                portal.call(sio.emit, "hello", number)
                assert browser.receive("42") == f'42["hello",{number}]'
                box.emit("from elsewhere", number)
                assert browser.receive("42") == f'42["from elsewhere",{number}]'
                if number != 1:  # one stays connected, and its loop ends
                    browser.close()
    asyncio.run(close_of(mgr))
    assert mgr.rooms == {}


class AsyncBox:
    """An emitter with a loop of its own."""

    def __init__(self, database: Database) -> None:
        self._io = AsyncEmitter(database.dsn)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._portal = self._stack.enter_context(start_blocking_portal("asyncio"))
        self._portal.call(self._io.start)
        return self

    def emit(self, event: str, *args: object) -> None:
        self._portal.call(self._io.emit, event, *args)

    def __exit__(self, *_: object) -> None:
        self._portal.call(self._io.close)
        self._stack.close()


# ---------------------------------------------------------------------------------------------- two at once


async def test_a_stray_loop_before_the_first_client(database: Database) -> None:
    """`asyncio.run(sio.emit(...))` in a thread, channels_redis#312."""
    async with serving(database) as one, serving(database) as other:
        await elsewhere(lambda: one.sio.emit("stray", 1))
        client = await PythonClient.connect(one.url)
        await elsewhere(lambda: one.sio.emit("stray", 2))
        await one.sio.emit("here", 3)
        assert await client.wait_for("stray") == [(2,)]
        assert await client.wait_for("here") == [(3,)]
        await other.manager.start()
        await eventually(lambda: one.manager.server_count() == 2, "the other knows it")
        await other.sio.emit("there", 4)
        assert await client.wait_for("there") == [(4,)]
        assert one.errors == []
        await client.disconnect()


async def test_a_loop_that_only_emits_gives_way_to_the_one_with_clients(database: Database) -> None:
    async with serving(database) as one:
        with start_blocking_portal("asyncio") as portal:
            await asyncio.to_thread(portal.call, one.sio.emit, "first", 1)
            assert one.manager._node.runner.loop is not asyncio.get_running_loop()
            client = await PythonClient.connect(one.url)
            assert one.manager._node.runner.loop is asyncio.get_running_loop()
            await asyncio.to_thread(portal.call, one.sio.emit, "second", 2)
            assert await client.wait_for("second") == [(2,)]
        await one.sio.emit("third", 3)
        assert await client.wait_for("third") == [(3,)]
        await client.disconnect()


def test_a_loop_that_is_ending_gives_way(database: Database) -> None:
    """It still runs, in another thread, but only to say goodbye."""
    mgr = AsyncPostgresManager(database.dsn)
    socketio.AsyncServer(client_manager=mgr, async_mode="asgi")
    close = mgr._node._bus.close
    is_ending, may_end = threading.Event(), threading.Event()

    async def close_slowly(limit: float) -> None:
        await close(limit)
        is_ending.set()
        await eventually(may_end.is_set, "it was used meanwhile")

    async def use() -> str:
        await mgr.emit("hello", 1)
        await mgr.flush()
        return str(mgr.host_id)

    async def serve() -> str:
        await mgr.start()
        mgr._node._bus.close = close_slowly  # type: ignore[method-assign]
        return await use()

    serving_there = in_thread(serve)
    assert is_ending.wait(TIMEOUT_S)
    mgr._node._bus.close = close  # type: ignore[method-assign]
    try:
        host_id = asyncio.run(use())
    finally:
        may_end.set()
    assert host_id != serving_there.result(TIMEOUT_S)
    assert asyncio.run(use()) != host_id
    asyncio.run(close_of(mgr))


async def test_start_takes_over_from_a_loop_that_runs_on(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the other loop still runs in its own thread ends without closing what begins here."""
    mgr = AsyncPostgresManager(database.dsn)
    socketio.AsyncServer(client_manager=mgr, async_mode="asgi")
    begin_anew = mgr._node._bus.begin_anew

    def begin_and_give_way() -> None:
        begin_anew()
        time.sleep(0.3)  # not a wait, but the time for the other thread to run

    monkeypatch.setattr(mgr._node._bus, "begin_anew", begin_and_give_way)
    with start_blocking_portal("asyncio") as portal:
        await asyncio.to_thread(portal.call, mgr.start)
        await mgr.start()
        await mgr.emit("hello", 1)
        await mgr.flush()
        await mgr.close()


async def test_the_serving_loop_disconnects_for_another(database: Database) -> None:
    async with serving(database) as one:
        client = await PythonClient.connect(one.url)
        handled: list[int] = []

        async def handle(*_: object) -> None:
            handled.append(threading.get_ident())

        one.sio.on("disconnect", handle)
        await elsewhere(lambda: one.sio.disconnect(client.sid))
        await eventually(lambda: handled == [threading.get_ident()], "the handler ran on the loop that serves")
        await eventually(lambda: not one.manager.rooms, "it has left")
        assert one.errors == []
        await client.disconnect()


async def test_another_loop_while_one_serves(database: Database) -> None:
    async with serving(database) as one, spying(database) as spy:
        client = await PythonClient.connect(one.url, replies={"question": ["answer"]})
        mgr, sio = one.manager, one.sio
        host_id, serving_thread = mgr.host_id, threading.get_ident()
        rooms: list[int] = []
        enter = mgr.basic_enter_room

        def spied(*args: Any, **more: Any) -> None:
            rooms.append(threading.get_ident())
            enter(*args, **more)

        mgr.basic_enter_room = spied  # type: ignore[method-assign]
        called: list[int] = []

        async def use() -> None:
            for number in range(20):
                await sio.emit("hello", number)
            await sio.enter_room(client.sid, "lobby")
            await mgr.to("lobby").emit("to the room", 1)
            assert [each.id for each in await mgr.in_("lobby").fetch_sockets()] == [client.sid]
            assert await mgr.timeout(TIMEOUT_S).emit_with_ack("question") == ["answer"]
            assert await sio.call("question", to=client.sid, timeout=TIMEOUT_S) == "answer"
            done = asyncio.Event()

            def callback(*_: object) -> None:
                called.append(threading.get_ident())
                done.set()

            await sio.emit("question", to=client.sid, callback=callback)
            await asyncio.wait_for(done.wait(), TIMEOUT_S)
            called.append(threading.get_ident())
            await mgr.flush()

        for _ in range(3):
            await elsewhere(use)
        assert called[0] == called[1] != serving_thread
        assert rooms == [serving_thread] * 3
        assert await client.wait_for("hello", 60) == [(number,) for number in range(20)] * 3
        assert await client.wait_for("to the room", 3) == [(1,)] * 3
        await spy.wait_for_broadcast("hello", 60)
        assert mgr.host_id == host_id
        assert one.errors == []
        await client.disconnect()


async def test_errors_reach_the_loop_that_called(database: Database) -> None:
    async with serving(database) as one:
        client = await PythonClient.connect(one.url)

        async def use() -> None:
            with pytest.raises(TypeError):
                await one.sio.emit("hello", object())

        await elsewhere(use)
        await client.disconnect()


async def test_a_blocked_loop_holds_nobody_up_for_ever(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_loop, "HAND_OVER_LIMIT", 0.1)
    monkeypatch.setattr(serving_loop, "LOOK_INTERVAL", 0.02)
    async with serving(database) as one:
        client = await PythonClient.connect(one.url)
        with pytest.raises(OperationTimeoutError, match="blocked"):
            in_thread(lambda: one.sio.emit("hello", 1)).result(TIMEOUT_S)  # blocks this loop
        await one.sio.emit("hello", 2)
        assert await client.wait_for("hello") == [(2,)], "what was given up is not sent later"
        await client.disconnect()


def test_a_loop_that_ends_during_a_call_of_another(database: Database) -> None:
    mgr = AsyncPostgresManager(database.dsn)
    sio = socketio.AsyncServer(client_manager=mgr, async_mode="asgi")
    begun = threading.Event()

    async def wait_for_ever(*_: object, **__: object) -> None:
        begun.set()
        await asyncio.sleep(60)

    async def serve() -> Future[Any]:
        await mgr.start()
        mgr._node._bus.flush = wait_for_ever  # type: ignore[method-assign]
        call = in_thread(mgr.flush)
        await asyncio.to_thread(begun.wait, TIMEOUT_S)
        return call

    call = asyncio.run(serve())
    with pytest.raises(ClosedError, match="ended during the call"):
        call.result(TIMEOUT_S)
    del mgr._node._bus.flush
    asyncio.run(sio.emit("hello", 1))
    asyncio.run(close_of(mgr))


def test_a_loop_that_stops_during_a_call_of_another(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is never closed, as after `run_until_complete`."""
    now = [0.0]
    monkeypatch.setattr(serving_loop, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(serving_loop, "LOOK_INTERVAL", 0.02)
    mgr = AsyncPostgresManager(database.dsn)
    socketio.AsyncServer(client_manager=mgr, async_mode="asgi")
    begun = threading.Event()

    async def wait_for_ever(*_: object, **__: object) -> None:
        begun.set()
        await asyncio.sleep(60)

    async def serve() -> Future[Any]:
        await mgr.start()
        mgr._node._bus.flush = wait_for_ever  # type: ignore[method-assign]
        call = in_thread(mgr.flush)
        await asyncio.to_thread(begun.wait, TIMEOUT_S)
        return call

    loop = asyncio.new_event_loop()
    call = loop.run_until_complete(serve())
    deadline = time.monotonic() + TIMEOUT_S
    while not wait([call], 0.1).done and time.monotonic() < deadline:
        now[0] += serving_loop.HAND_OVER_LIMIT  # again and again, because the call may look at the clock only now
    with pytest.raises(ClosedError, match="ended during the call"):
        call.result(TIMEOUT_S)
    del mgr._node._bus.flush
    loop.run_until_complete(mgr.close())
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


# ------------------------------------------------------------------------------------- loops of several threads


@pytest.mark.parametrize("attempt", range(3))
async def test_loops_of_many_threads_emit_at_once_and_nobody_serves(database: Database, attempt: int) -> None:
    """Each call has a loop of its own, which ends with it, and on which others may just have begun to rely."""
    mgr = AsyncPostgresManager(database.dsn)
    sio = socketio.AsyncServer(client_manager=mgr, async_mode="asgi")
    together = threading.Barrier(THREADS)
    calls = {(attempt, thread, number) for thread in range(THREADS) for number in range(CALLS)}

    def emit(thread: int) -> list[str]:
        errors = []
        together.wait()
        for number in range(CALLS):
            try:
                asyncio.run(sio.emit("hello", (attempt, thread, number)))
            except Exception as error:  # noqa: BLE001 - all of them are to be seen
                errors.append(repr(error))
        return errors

    async with spying(database) as spy:
        with ThreadPoolExecutor(THREADS) as threads:
            loop = asyncio.get_running_loop()
            ended = await asyncio.gather(*(loop.run_in_executor(threads, emit, thread) for thread in range(THREADS)))
        assert [error for errors in ended for error in errors] == []
        await asyncio.to_thread(asyncio.run, close_of(mgr))
        frames = await spy.wait_for_broadcast("hello", len(calls))
        assert {tuple(frame.message["data"]["packet"]["data"][1:]) for frame in frames} == calls
        assert len(frames) == len(calls), "each once"


# ----------------------------------------------------------------------------------------------- nothing grows


@contextlib.contextmanager
def kept(what: Any, close: Main) -> Iterator[Any]:
    try:
        yield what
    finally:
        asyncio.run(close())


@contextlib.contextmanager
def emitter(database: Database) -> Iterator[Main]:
    io = AsyncEmitter(database.dsn)
    with kept(io, io.close):
        yield lambda: io.emit("hello", 1)


@contextlib.contextmanager
def write_only_manager(database: Database) -> Iterator[Main]:
    mgr = AsyncPostgresManager(database.dsn, write_only=True)

    async def use() -> None:
        await mgr.emit("hello", 1)
        await mgr.flush()

    with kept(mgr, mgr.close):
        yield use


@contextlib.contextmanager
def serving_manager(database: Database) -> Iterator[Main]:
    mgr = AsyncPostgresManager(database.dsn)
    sio = socketio.AsyncServer(client_manager=mgr, async_mode="asgi")

    async def use() -> None:
        await mgr.start()
        await sio.emit("hello", 1)

    with kept(mgr, mgr.close):
        yield use


@contextlib.contextmanager
def client(database: Database) -> Iterator[Main]:
    listening = AsyncPostgresClient(database.dsn)

    async def use() -> None:
        await listening.listen("jobs")
        waiting = [asyncio.create_task(listening.wait_for_notification()) for _ in range(3)]
        await asyncio.sleep(0)
        for number in range(3):
            await listening.notify("jobs", str(number))
        notifications = await asyncio.wait_for(asyncio.gather(*waiting), TIMEOUT_S)
        assert [each.payload for each in notifications] == ["0", "1", "2"]

    with kept(listening, listening.close):
        yield use


@contextlib.contextmanager
def store(database: Database) -> Iterator[Main]:
    events = AsyncEventStore(database.dsn)
    heard: list[object] = []

    async def use() -> None:
        subscription = events.subscribe(END)
        await subscription.__aenter__()
        called = await events.subscribe_to_all(heard.append)
        result = await events.store(Event("Happened", "a"))
        event = await asyncio.wait_for(subscription.__anext__(), TIMEOUT_S)
        assert event.version == result.version
        await called.wait_for(result, TIMEOUT_S)
        subscription.close()
        assert events.active_subscriptions() == ["events_global"]

    with kept(events, events.close):
        yield use
        assert len(events._callbacks) <= 1


def _size() -> tuple[int, int]:
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir())), len(gc.get_objects())


@pytest.mark.timeout(max(180, LOOPS))
@pytest.mark.parametrize("run", [asyncio.run, run_and_close])
@pytest.mark.parametrize("kind", [emitter, write_only_manager, serving_manager, client, store])
def test_nothing_grows_from_loop_to_loop(
    database: Database,
    kind: Callable[[Database], contextlib.AbstractContextManager[Main]],
    run: Callable[[Coroutine[Any, Any, Any]], Any],
) -> None:
    """A worker that runs each of its jobs in a loop of its own: celery, a management command, a test suite."""
    with kind(database) as use:
        for _ in range(5):
            run(use())
        descriptors, objects = _size()
        for _ in range(LOOPS):
            run(use())
        # What an earlier loop had may be closed a little later; some of it for each loop would be far more.
        deadline = time.monotonic() + TIMEOUT_S
        while (after := _size())[0] > descriptors + 6 or after[1] > objects + 10 * LOOPS:
            assert time.monotonic() < deadline, (descriptors, objects, after)
            time.sleep(0.1)
