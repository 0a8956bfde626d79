"""`call` and `callback=` of python-socketio, to clients of any server."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
import socketio

from socketio_postgres._cluster import async_node
from tests.cluster.servers import FakePeer, Server, Trio
from tests.fixtures.cluster import exactly
from tests.fixtures.spy import spying
from tests.fixtures.waiting import eventually, nothing_arrives

HOMES = pytest.mark.parametrize("home", ["a", "b"], ids=["own client", "another server's"])


class Callback:
    """Remembers what it was called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __call__(self, *args: Any) -> None:
        self.calls.append(args)

    async def is_called(self) -> None:
        await eventually(lambda: self.calls, "the callback is called")


def home_of(trio: Trio, home: str) -> Server:
    server: Server = getattr(trio, home)
    return server


@HOMES
@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ((), None),
        ((None,), None),
        ((1,), 1),
        (([],), []),
        ((1, "two"), (1, "two")),
        ((b"\x00\xff",), b"\x00\xff"),
        (({"deep": b"\x00"}, 2), ({"deep": b"\x00"}, 2)),
    ],
    ids=["nothing", "null", "one", "a list", "two", "binary", "two with binary"],
)
async def test_call_gives_what_the_client_acknowledges(
    trio: Trio, home: str, reply: tuple[object, ...], value: object
) -> None:
    client = await home_of(trio, home).connect(replies={"ask": reply})
    bystander = await home_of(trio, home).connect()
    assert exactly(await trio.a.sio.call("ask", (1, b"\x00"), to=client.sid, timeout=15)) == exactly(value)
    assert client.received("ask") == [(1, b"\x00")]
    assert bystander.received("ask") == []
    await eventually(trio.a.expects_nothing)


@HOMES
async def test_a_callback_gets_the_arguments(trio: Trio, home: str) -> None:
    client = await home_of(trio, home).connect(replies={"none": [], "one": [1], "two": [1, None]})
    for event, expected in (("none", ()), ("one", (1,)), ("two", (1, None))):
        callback = Callback()
        await trio.a.sio.emit(event, None, to=client.sid, callback=callback)
        await callback.is_called()
        assert callback.calls == [expected]


@HOMES
async def test_a_callback_may_be_a_coroutine_that_asks_the_cluster(trio: Trio, home: str) -> None:
    client = await home_of(trio, home).connect(replies={"ask": [1], "again": ["yes"]})
    found: list[object] = []

    async def callback(value: int) -> None:
        found.extend([value, len(await trio.a.manager.fetch_sockets())])
        found.append(await trio.a.sio.call("again", to=client.sid))

    await trio.a.sio.emit("ask", to=client.sid, callback=callback)
    await eventually(lambda: len(found) == 3)
    assert found == [1, 1, "yes"]


@HOMES
async def test_who_does_not_answer_times_out(trio: Trio, home: str) -> None:
    client = await home_of(trio, home).connect(replies={"ask": None})
    with pytest.raises(socketio.exceptions.TimeoutError):
        await trio.a.sio.call("ask", to=client.sid, timeout=0.5)
    assert await client.wait_for("ask") == [()]
    forget(trio.a)


async def test_who_is_gone_times_out_and_is_forgotten(trio: Trio) -> None:
    client = await trio.b.connect()
    await client.disconnect()
    await trio.b.sees()
    with pytest.raises(socketio.exceptions.TimeoutError):
        await trio.a.sio.call("ask", to=client.sid, timeout=0.5)
    forget(trio.a)  # all servers have said that nobody will answer, but there may be others


async def test_a_client_that_leaves_instead_of_answering_times_out(trio: Trio) -> None:
    client = await trio.b.connect(replies={"ask": None})
    calling = asyncio.create_task(trio.a.sio.call("ask", to=client.sid, timeout=2.0))
    await client.wait_for("ask")
    await client.disconnect()
    with pytest.raises(socketio.exceptions.TimeoutError):
        await calling
    forget(trio.a)


@pytest.mark.parametrize("members", ["a", "b", "ab", "bc", "abc"])
async def test_the_first_acknowledgement_of_a_room_wins(trio: Trio, members: str) -> None:
    clients = [await home_of(trio, name).connect("red", replies={"ask": [name]}) for name in members]
    callback = Callback()
    await trio.a.sio.emit("ask", 1, room="red", callback=callback)
    for client in clients:
        assert await client.wait_for("ask") == [(1,)]
    await callback.is_called()
    await nothing_arrives()
    assert len(callback.calls) == 1
    assert callback.calls[0][0] in members
    await eventually(trio.a.expects_nothing)


async def test_our_own_slow_client_is_still_heard_after_the_others_have_none(trio: Trio) -> None:
    """The other servers answer first, each that it has no client; that must not end the request."""
    client = await trio.a.connect("red", replies={"ask": None})
    callback = Callback()
    async with spying(trio.database) as spy:
        await trio.a.sio.emit("ask", 1, room="red", callback=callback)
        await client.wait_for("ask")
        await spy.wait_for(lambda frame: frame.header["type"] == 11, count=2)
        fence = await trio.a.manager.server_side_emit_with_ack("fence")
        assert fence == [None, None]
        # Now the client acknowledges what it received long ago.
        [ack_id] = [key for key in trio.a.manager.callbacks[client.sid] if key]
        await trio.a.manager.trigger_callback(client.sid, ack_id, ["at last"])
        await callback.is_called()
    assert callback.calls == [("at last",)]


async def test_clients_left_out_are_not_waited_for(trio: Trio) -> None:
    left_out = await trio.a.connect("red")
    callback = Callback()
    await trio.a.sio.emit("ask", 1, room="red", skip_sid=left_out.sid, callback=callback)
    assert await trio.a.manager.server_side_emit_with_ack("fence") == [None, None]
    assert (left_out.received("ask"), callback.calls) == ([], [])
    forget(trio.a)


async def test_the_first_answer_of_a_peer_wins_over_its_others(trio: Trio) -> None:
    callback = Callback()
    async with spying(trio.database) as spy:
        fake = FakePeer(spy)
        await fake.join([trio.a])
        await trio.a.sio.emit("ask", 1, room="red", callback=callback)
        request = (await fake.request(3)).message["data"]["requestId"]
        fake.say(11, requestId=request, clientCount=2)
        fake.say(12, requestId=request, packet="first")
        fake.say(12, requestId=request, packet="second")
        await callback.is_called()
        # What it said is read before the answers to a later question, of which this one is the fake's.
        fence = asyncio.create_task(trio.a.manager.server_side_emit_with_ack("fence"))
        fake.say(10, requestId=(await fake.request(9)).message["data"]["requestId"], packet=None)
        await fence
    assert callback.calls == [("first",)]


@pytest.mark.parametrize("room", ["the sid", "red"], ids=["a client", "a room"])
async def test_an_acknowledgement_from_a_server_that_fell_silent_is_heard(trio: Trio, room: str) -> None:
    async with spying(trio.database) as spy:
        fake = FakePeer(spy)
        await fake.join([trio.a])
        callback = Callback()
        await trio.a.sio.emit("ask", 1, to=room, callback=callback)
        calling = asyncio.create_task(trio.a.sio.call("question", to=room, timeout=30))
        asked = await spy.wait_for(lambda frame: frame.header["type"] == 3, count=2)
        fake.fall_silent(trio.a)
        assert trio.a.manager.server_count() == 3, "the fake is no longer counted"
        for frame in asked:
            fake.say(11, requestId=frame.message["data"]["requestId"], clientCount=1)
            fake.say(12, requestId=frame.message["data"]["requestId"], packet="late")
        assert await calling == "late"
        await callback.is_called()
        assert callback.calls == [("late",)]


async def test_an_acknowledgement_from_a_server_not_known_yet_is_heard(trio: Trio) -> None:
    async with spying(trio.database) as spy:
        fake = FakePeer(spy)
        calling = asyncio.create_task(trio.a.sio.call("ask", to="the sid", timeout=30))
        request = (await fake.request(3)).message["data"]["requestId"]
        # All the others have said that they have nobody, and even so:
        await spy.wait_for(lambda frame: frame.header["type"] == 11, count=2)
        assert await trio.a.manager.server_side_emit_with_ack("fence") == [None, None]
        fake.say(12, requestId=request, packet="hello")
        assert await calling == "hello"


async def test_an_acknowledgement_from_a_server_that_left_is_heard(trio: Trio) -> None:
    """Its goodbye may overtake what its client still says."""
    async with spying(trio.database) as spy:
        fake = FakePeer(spy)
        await fake.join([trio.a])
        calling = asyncio.create_task(trio.a.sio.call("ask", to="the sid", timeout=30))
        request = (await fake.request(3)).message["data"]["requestId"]
        fake.say(13)
        fake.say(12, requestId=request, packet="farewell")
        assert await calling == "farewell"


async def test_too_many_callbacks_are_forgotten_aloud(
    trio: Trio, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = await trio.b.connect(replies={"ask": None, "answer": [1]})
    monkeypatch.setattr(trio.a.manager._node.callbacks, "limit", 2)
    callbacks = [Callback() for _ in range(3)]
    for callback in callbacks:
        await trio.a.sio.emit("ask", to=client.sid, callback=callback)
    assert len(trio.a.manager._node.callbacks) == 2
    assert await trio.a.sio.call("answer", to=client.sid, timeout=15) == 1
    await eventually(lambda: "callbacks" in caplog.text, "it is told")
    forget(trio.a)


async def test_what_is_never_acknowledged_is_forgotten(trio: Trio, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await trio.b.connect(replies={"ask": None})
    callback = Callback()
    await trio.a.sio.emit("ask", to=client.sid, callback=callback)
    await client.wait_for("ask")
    assert not trio.a.expects_nothing()
    forget(trio.a)  # in an hour; the next one soon
    monkeypatch.setattr(async_node, "CALLBACK_LIFETIME", 0.5)
    await trio.a.sio.emit("ask", to=client.sid, callback=callback)
    await eventually(trio.a.expects_nothing)
    assert callback.calls == []


async def test_a_failing_callback_stops_nothing(trio: Trio) -> None:
    client = await trio.b.connect(replies={"ask": [1]})

    def fail(value: int) -> None:
        raise ZeroDivisionError(value)

    await trio.a.sio.emit("ask", to=client.sid, callback=fail)
    await client.wait_for("ask")
    assert await trio.a.sio.call("ask", to=client.sid, timeout=15) == 1
    await eventually(lambda: list(map(repr, trio.failures)) == ["ZeroDivisionError(1)"], "it is reported, once")
    trio.failures.clear()


def forget(server: Server) -> None:
    """What `CALLBACK_LIFETIME` does in time: nobody tells a manager that `call` has given up, or that all are gone."""
    server.manager._node.expire_callbacks(time.monotonic() + async_node.CALLBACK_LIFETIME)
    assert server.expects_nothing()
