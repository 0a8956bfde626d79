"""Events that servers send each other, and what their handlers may do."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from socketio_postgres import AsyncEmitter, RequestTimeoutError
from tests.cluster.servers import FakePeer, Server, Took, Trio, open_trio
from tests.fixtures.database import Database
from tests.fixtures.spy import spying
from tests.fixtures.waiting import eventually

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
        assert sorted(await server.manager.server_side_emit_with_ack("ask", timeout=15)) == others
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

    assert await trio.a.manager.server_side_emit_with_ack("ask", 5, timeout=15) == [None, None]
    # It was reported, and b still hears, answers and delivers.
    assert [repr(trio.failures.pop())] == ["ZeroDivisionError(5)"]
    assert await trio.a.manager.server_side_emit_with_ack("other", timeout=15) == [None, None]
    await trio.b.connect(replies={"ask": ["fine"]})
    assert await trio.a.manager.emit_with_ack("ask") == ["fine"]
    [record] = [each for each in caplog.records if each.levelno >= logging.ERROR and each.name == "socketio_postgres"]
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


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
    [answer, nothing] = sorted(await trio.a.manager.server_side_emit_with_ack("relay", timeout=15), key=bool)[::-1]
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
    waiting = asyncio.create_task(trio.a.manager.server_side_emit_with_ack("slow", timeout=15))
    replies = await trio.a.manager.server_side_emit_with_ack("fast", timeout=15)
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
        with pytest.raises(RequestTimeoutError) as caught:
            await trio.a.manager.server_side_emit_with_ack("ask", timeout=1.0)
        assert caught.value.missing_servers == ["fake"]
        assert set(caught.value.responses) == {"b", "c"}
        assert sorted(await trio.a.manager.server_side_emit_with_ack("ask", timeout=1.0, partial=True)) == ["b", "c"]
        assert trio.a.expects_nothing()


async def test_an_answer_that_comes_too_late_is_nobodys(trio: Trio) -> None:
    async with spying(trio.database) as spy:
        fake = FakePeer(spy)
        await fake.join([trio.a])
        assert await trio.a.manager.server_side_emit_with_ack("ask", timeout=0.5, partial=True) == [None, None]
        late = (await fake.request(9)).message["data"]["requestId"]
        fake.say(ANSWER, requestId=late, packet="late")
        second = asyncio.create_task(trio.a.manager.server_side_emit_with_ack("again", timeout=15))
        await eventually(lambda: trio.a.manager._waiting)
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

        with Took() as took:
            _, replies = await asyncio.gather(leave(), trio.a.manager.server_side_emit_with_ack("ask", timeout=15))
        assert sorted(replies) == ["b", "c"]
        assert took.seconds < 8
        assert trio.a.manager.server_count() == 3


async def test_a_server_that_closes_meanwhile_is_waited_for_no_longer(trio: Trio) -> None:
    asked = asyncio.Event()

    @trio.c.manager.on_server_side("ask")
    async def never(*_: object) -> None:
        asked.set()
        await asyncio.get_running_loop().create_future()

    listen(trio.b)
    with Took() as took:
        waiting = asyncio.create_task(trio.a.manager.server_side_emit_with_ack("ask", timeout=15))
        await asyncio.wait_for(asked.wait(), 10)
        await trio.c.manager.close()
        assert await waiting == ["b"]
    assert took.seconds < 10
    await trio.meet(2, [trio.a, trio.b])
    for task in asyncio.all_tasks():
        if "_handle_server_side" in repr(task):
            task.cancel()


async def test_a_peer_that_falls_silent_is_waited_for_no_longer(database: Database) -> None:
    async with open_trio(database, heartbeat_interval=0.3, heartbeat_timeout=2.0) as trio:
        await trio.b.connect(replies={"ask": ["b"]})
        async with spying(database) as spy:
            fake = FakePeer(spy)
            await fake.join([trio.a])
            with Took() as took:
                answers, replies, sockets = await asyncio.gather(
                    trio.a.manager.server_side_emit_with_ack("ask", timeout=15),
                    trio.a.manager.timeout(15).emit_with_ack("ask"),
                    trio.a.manager.timeout(15).fetch_sockets(),
                )
            assert (answers, replies, len(sockets)) == ([None, None], ["b"], 1)
            assert 1.5 < took.seconds < 10
            # The others have said something all the while, so they are still there.
            assert trio.a.manager.server_count() == 3


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
