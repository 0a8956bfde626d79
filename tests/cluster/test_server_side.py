"""Events that servers send each other, and what their handlers may do."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import socketio

from socketio_postgres import (
    AsyncEmitter,
    AsyncPostgresManager,
    OptionsError,
    PayloadTooLargeError,
    PostgresManager,
)
from socketio_postgres._bus.options import HeartbeatOptions
from socketio_postgres._cluster import adapter
from tests.cluster.servers import FakePeer, Server, Trio, timed_out
from tests.fixtures.database import Database
from tests.fixtures.spy import spying
from tests.fixtures.waiting import TIMEOUT_S, asked, eventually

Manager = AsyncPostgresManager | PostgresManager

ANSWER, GOODBYE = 10, 13


def listen(server: Server, event: str = "ask", namespace: str = "/") -> list[tuple[Any, ...]]:
    """Answer an event with the server's name; gives what it was called with."""
    calls: list[tuple[Any, ...]] = []

    @server.manager.on_server_side(event, namespace=namespace)
    async def answer(*args: Any) -> str:
        calls.append(args)
        return server.name

    return calls


async def test_an_event_reaches_the_other_servers_and_not_its_sender(trio: Trio) -> None:
    calls = [listen(server) for server in trio.servers]
    args = (1, "two", None, {"three": [b"\x00\xff"]})
    await trio.a.manager.server_side_emit("ask", *args)
    await trio.a.manager.server_side_emit("ask")
    await eventually(lambda: calls[1:] == [[args, ()], [args, ()]])
    # The answers come after whatever was sent before: had it reached its sender, that would be known by now.
    assert sorted(await trio.b.manager.server_side_emit_with_ack("ask", "fence")) == ["a", "c"]
    assert calls[0] == [("fence",)]


async def test_namespaces_are_apart(trio: Trio) -> None:
    main, chat = listen(trio.b), listen(trio.b, namespace="/chat")
    listen(trio.c, namespace="/chat")
    await trio.a.manager.of("/chat").server_side_emit("ask", 1)
    assert sorted(await trio.a.manager.of("chat").server_side_emit_with_ack("ask", 2)) == ["b", "c"]
    assert (main, chat) == ([], [(1,), (2,)])


async def test_all_others_answer(trio: Trio) -> None:
    for server in trio.servers:
        listen(server)
    for server in trio.servers:
        others = sorted(each.name for each in trio.servers if each is not server)
        assert sorted(await server.manager.server_side_emit_with_ack("ask", timeout=TIMEOUT_S)) == others
        assert server.expects_nothing()


@pytest.mark.parametrize("answer", [None, 0, [], {"deep": [None]}, b"\x00\xff", [1, b"\x00"], "x" * 9000])
async def test_an_answer_of_any_shape(trio: Trio, answer: object) -> None:
    def plain(*_: object) -> object:
        return answer

    async def coroutine(*_: object) -> object:
        return answer

    trio.b.manager.on_server_side("ask", plain)
    trio.c.manager.on_server_side("ask", coroutine)
    assert await trio.a.manager.server_side_emit_with_ack("ask") == [answer, answer]


async def test_who_has_no_handler_or_a_failing_one_answers_nothing(
    trio: Trio, caplog: pytest.LogCaptureFixture
) -> None:
    @trio.b.manager.on_server_side("ask")
    def fail(number: int) -> None:
        raise ZeroDivisionError(number)

    assert await trio.a.manager.server_side_emit_with_ack("ask", 5, timeout=TIMEOUT_S) == [None, None]
    # It was reported, and b still hears, answers and delivers.
    assert [repr(trio.failures.pop())] == ["ZeroDivisionError(5)"]
    assert await trio.a.manager.server_side_emit_with_ack("other", timeout=TIMEOUT_S) == [None, None]
    await trio.b.connect(replies={"ask": ["fine"]})
    assert await trio.a.manager.emit_with_ack("ask") == ["fine"]
    [record] = [each for each in caplog.records if each.levelno >= logging.ERROR and each.name == "socketio_postgres"]
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


async def test_who_waits_for_something_cancelled_answers_nothing(trio: Trio) -> None:
    listen(trio.b)

    @trio.c.manager.on_server_side("ask")
    async def answer() -> None:
        cancelled = asyncio.get_running_loop().create_future()
        cancelled.cancel()
        await cancelled

    assert sorted(await trio.a.manager.server_side_emit_with_ack("ask", timeout=TIMEOUT_S), key=str) == [None, "b"]


async def test_a_handler_may_itself_ask_the_cluster(trio: Trio) -> None:
    client = await trio.a.connect(replies={"ask": ["the client"]})

    @trio.b.manager.on_server_side("relay")
    async def relay() -> list[Any]:
        sockets = await trio.b.manager.fetch_sockets()
        return [
            [socket.id for socket in sockets],
            await trio.b.manager.emit_with_ack("ask"),
            await trio.b.sio.call("ask", to=client.sid),
            sorted(await trio.b.manager.server_side_emit_with_ack("leaf")),
        ]

    listen(trio.a, "leaf")
    listen(trio.c, "leaf")
    [answer, nothing] = sorted(await trio.a.manager.server_side_emit_with_ack("relay", timeout=TIMEOUT_S), key=bool)[
        ::-1
    ]
    assert nothing is None
    assert answer == [[client.sid], ["the client"], "the client", ["a", "c"]]


async def test_a_slow_handler_holds_up_nobody(trio: Trio) -> None:
    release = asyncio.Event()

    @trio.b.manager.on_server_side("slow")
    async def slow() -> str:
        await release.wait()
        return "slow"

    listen(trio.b, "fast")
    client = await trio.b.connect()
    waiting = asyncio.create_task(trio.a.manager.server_side_emit_with_ack("slow", timeout=TIMEOUT_S))
    replies = await trio.a.manager.server_side_emit_with_ack("fast", timeout=TIMEOUT_S)
    assert sorted(replies, key=str) == [None, "b"]
    await trio.a.manager.emit("meanwhile", 1)
    assert await client.wait_for("meanwhile") == [(1,)]
    assert not waiting.done()
    release.set()
    assert sorted(await waiting, key=str) == [None, "slow"]


async def test_who_never_answers_is_named(trio: Trio) -> None:
    listen(trio.b)
    listen(trio.c)
    async with spying(trio.database) as spy:
        await FakePeer(spy).join([trio.a])
        ask = trio.a.manager.server_side_emit_with_ack
        error = await timed_out(lambda seconds: ask("ask", timeout=seconds), ["fake"])
        assert set(error.responses) == {"b", "c"}
        partial = await asked(lambda seconds: ask("ask", timeout=seconds, partial=True), lambda found: len(found) == 2)
        assert sorted(partial) == ["b", "c"]
        assert trio.a.expects_nothing()


async def test_an_answer_that_comes_too_late_is_nobodys(trio: Trio) -> None:
    async with spying(trio.database) as spy:
        fake = FakePeer(spy)
        await fake.join([trio.a])
        ask = trio.a.manager.server_side_emit_with_ack
        partial = await asked(lambda seconds: ask("ask", timeout=seconds, partial=True), lambda found: len(found) == 2)
        assert partial == [None, None]
        late = (await fake.request(9)).message["data"]["requestId"]
        fake.say(ANSWER, requestId=late, packet="late")
        second = asyncio.create_task(ask("again"))
        await eventually(lambda: trio.a.manager._node.requests.is_asking)
        await spy.wait_for(lambda frame: frame.header["type"] == 9 and frame.message["data"]["packet"] == ["again"])
        request = (await fake.request(9)).message["data"]["requestId"]
        assert request != late
        fake.say(ANSWER, requestId=request, packet="in time")
        assert sorted(await second, key=str) == [None, None, "in time"]


async def test_a_peer_that_says_goodbye_is_waited_for_no_longer(trio: Trio) -> None:
    listen(trio.b)
    listen(trio.c)
    async with spying(trio.database) as spy:
        fake = FakePeer(spy)
        await fake.join([trio.a])

        async def leave() -> None:
            await fake.request(9)
            fake.say(GOODBYE)

        # Otherwise it would be named by the error that a request ends with when its time is over.
        _, replies = await asyncio.gather(leave(), trio.a.manager.server_side_emit_with_ack("ask"))
        assert sorted(replies) == ["b", "c"]
        assert trio.a.manager.server_count() == 3


async def test_a_server_that_closes_meanwhile_is_waited_for_no_longer(trio: Trio) -> None:
    is_asked = asyncio.Event()

    @trio.c.manager.on_server_side("ask")
    async def never(*_: object) -> None:
        is_asked.set()
        await asyncio.get_running_loop().create_future()

    listen(trio.b)
    waiting = asyncio.create_task(trio.a.manager.server_side_emit_with_ack("ask"))
    await asyncio.wait_for(is_asked.wait(), TIMEOUT_S)
    await trio.c.manager.close()
    assert await waiting == ["b"]  # and no error after the time-out
    await trio.meet(2, [trio.a, trio.b])
    for task in asyncio.all_tasks():
        if "_handle_server_side" in repr(task):
            task.cancel()


async def test_a_peer_that_falls_silent_is_waited_for_no_longer(trio: Trio) -> None:
    await trio.b.connect(replies={"ask": ["b"]})
    async with spying(trio.database) as spy:
        fake = FakePeer(spy)
        await fake.join([trio.a])
        asking = asyncio.gather(
            trio.a.manager.server_side_emit_with_ack("ask"),
            trio.a.manager.fetch_sockets(),
        )
        for kind in (9, 7):
            await fake.request(kind)
        fake.fall_silent(trio.a)
        answers, sockets = await asking
        assert (answers, len(sockets)) == ([None, None], 1)
        assert trio.a.manager.server_count() == 3, "the others are still there"


async def test_its_clients_are_waited_for_all_the_same(trio: Trio) -> None:
    """They may have been asked, and acknowledge once their server comes to itself."""
    await trio.b.connect(replies={"ask": ["b"]})
    async with spying(trio.database) as spy:
        fake = FakePeer(spy)
        await fake.join([trio.a])
        asking = asyncio.create_task(trio.a.manager.emit_with_ack("ask"))
        request = (await fake.request(3)).message["data"]["requestId"]
        fake.say(11, requestId=request, clientCount=1)
        fake.fall_silent(trio.a)
        assert trio.a.manager.server_count() == 3, "the fake is no longer counted"
        fake.say(12, requestId=request, packet="late")
        assert sorted(await asking) == ["b", "late"]

        await eventually(lambda: trio.a.manager.server_count() == 4, "what it said brought it back")
        error = await timed_out(lambda seconds: trio.a.manager.timeout(seconds).emit_with_ack("ask"), ["fake"])
        assert error.responses == ["b"]


async def test_an_emitter_reaches_all_servers(trio: Trio) -> None:
    calls = [listen(server) for server in trio.servers]
    async with AsyncEmitter(trio.database.dsn) as emitter:
        await emitter.server_side_emit("ask", 1, b"\x00")
    await eventually(lambda: calls == [[(1, b"\x00")]] * 3)


async def test_servers_are_counted(trio: Trio) -> None:
    manager = trio.a.manager
    assert [manager.server_count(), manager.server_count("/chat"), manager.server_count("/never used")] == [3, 3, 1]
    assert set(manager.stats()["peers"]["/"]) == {trio.b.uid, trio.c.uid}
    await trio.c.manager.close()
    await trio.meet(2, [trio.a, trio.b])


# ------------------------------------------------------------------------------------- namespaces without a client


@asynccontextmanager
async def listener(dsn: str, kind: str, *, is_late: bool) -> AsyncIterator[Manager]:
    """A server without clients that handles `ask` in `/jobs`, registered before or after its start."""
    manager: Manager
    if kind == "async":
        manager = AsyncPostgresManager(dsn)
        socketio.AsyncServer(client_manager=manager, async_mode="asgi")
    else:
        manager = PostgresManager(dsn)
        socketio.Server(client_manager=manager, async_mode="threading")

    async def start() -> None:
        if isinstance(manager, AsyncPostgresManager):
            await manager.start()
        else:
            await asyncio.to_thread(manager.start)

    if is_late:
        await start()
    manager.on_server_side("ask", lambda *args: [kind, *args], namespace="jobs")
    if not is_late:
        await start()
    try:
        yield manager
    finally:
        if isinstance(manager, AsyncPostgresManager):
            await manager.close()
        else:
            await asyncio.to_thread(manager.close)


@pytest.mark.parametrize("is_late", [False, True], ids=["before the start", "after it"])
@pytest.mark.parametrize("kind", ["async", "blocking"])
async def test_a_handler_serves_its_namespace(
    database: Database, kind: str, is_late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "NATIVE_ANSWER", 15.0)  # it may be starved for more than the usual second
    async with listener(database.dsn, kind, is_late=is_late) as manager:
        await eventually(lambda: manager._node.peers.is_serving("/jobs"), "the handler's namespace is served")
        asker = AsyncPostgresManager(database.dsn)
        socketio.AsyncServer(client_manager=asker, async_mode="asgi")
        try:
            assert await asker.of("/jobs").server_side_emit_with_ack("ask", 1, timeout=TIMEOUT_S) == [[kind, 1]]
        finally:
            await asker.close()


async def test_a_handler_may_be_registered_by_another_thread(trio: Trio) -> None:
    manager = trio.b.manager
    await asyncio.to_thread(manager.on_server_side, "ask", lambda: "b", namespace="/jobs")
    await eventually(lambda: manager._node.peers.is_serving("/jobs"), "the handler's namespace is served")


@pytest.mark.parametrize("kind", ["async", "blocking"])
async def test_a_handlers_namespace_is_kept(database: Database, kind: str) -> None:
    """Others without a client are left after a while."""
    timing = {"heartbeat_interval": 0.1, "heartbeat_timeout": 0.3}
    async with listener(database.dsn, kind, is_late=True) as manager:
        manager._node.peers.heartbeat = HeartbeatOptions(**timing)
        await eventually(lambda: manager._node.peers.is_serving("/jobs"), "the handler's namespace is served")
        manager._node.tick(time.monotonic() + 1000.0)
        assert manager._node.peers.is_serving("/jobs")


def test_a_handler_that_could_never_be_called_is_refused() -> None:
    manager = AsyncPostgresManager("host=nowhere")
    for namespace, error in (("/" + "x" * 100, PayloadTooLargeError), (5, OptionsError)):
        with pytest.raises(error):
            manager.on_server_side("ask", print, namespace=namespace)  # type: ignore[arg-type]
