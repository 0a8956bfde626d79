"""Looking at, and moving, the sockets of all servers."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import aiohttp
import pytest
import socketio

from socketio_postgres._cluster.async_server_operator import AsyncRemoteSocket
from tests.cluster.servers import FakePeer, Server, Took, Trio, open_trio, timed_out
from tests.fixtures.clients import PythonClient
from tests.fixtures.database import Database
from tests.fixtures.spy import spying
from tests.fixtures.waiting import TIMEOUT_S, asked, eventually

SOCKETS, HEARTBEAT = 8, 2


def ids(sockets: list[AsyncRemoteSocket]) -> set[str]:
    assert len({socket.id for socket in sockets}) == len(sockets)
    return {socket.id for socket in sockets}


async def seat(trio: Trio) -> tuple[PythonClient, PythonClient, PythonClient, PythonClient]:
    """One client on each server, those of `b` and `c` in a room; and one in another namespace."""
    return (
        await trio.a.connect(),
        await trio.b.connect("red"),
        await trio.c.connect("red", "blue"),
        await trio.b.connect("red", namespace="/chat"),
    )


# ------------------------------------------------------------------------------------------------------ fetching


async def test_fetch_finds_all_the_meant_sockets(trio: Trio) -> None:
    a, b, c, chat = await seat(trio)
    manager = trio.a.manager
    assert ids(await manager.fetch_sockets()) == {a.sid, b.sid, c.sid}
    assert ids(await manager.to("red").fetch_sockets()) == {b.sid, c.sid}
    assert ids(await manager.to("red").except_("blue").fetch_sockets()) == {b.sid}
    assert ids(await manager.except_("red").fetch_sockets()) == {a.sid}
    assert ids(await manager.to([a.sid, c.sid]).fetch_sockets()) == {a.sid, c.sid}
    assert ids(await manager.local.fetch_sockets()) == {a.sid}
    assert ids(await manager.to("red").local.fetch_sockets()) == set()
    assert ids(await manager.to([]).fetch_sockets()) == set()
    assert ids(await manager.to("green").fetch_sockets()) == set()
    for server in trio.servers:
        assert ids(await server.manager.of("/chat").fetch_sockets()) == {chat.sid}
        assert server.expects_nothing()


async def test_local_fetch_publishes_nothing(trio: Trio) -> None:
    await trio.a.connect()
    async with spying(trio.database) as spy:
        await trio.a.manager.local.fetch_sockets()
        await trio.a.manager.local.sockets_join("red")
        await trio.a.manager.local.emit("hello")
        await trio.a.manager.emit("fence", None)
        await spy.wait_for_broadcast("fence")
        types = [frame.header["type"] for frame in spy.frames if frame.header["uid"] == trio.a.uid]
        assert [each for each in types if each != HEARTBEAT] == [3], "heartbeats come by themselves"


async def test_a_fetched_socket_tells_its_rooms_and_handshake(trio: Trio) -> None:
    before = time.time()
    client = await trio.b.connect("red", 42)
    [mine] = await trio.b.manager.fetch_sockets()
    [seen] = await trio.a.manager.fetch_sockets()
    assert seen == mine
    assert (seen.id, seen.nsp, seen.namespace) == (client.sid, "/", "/")
    assert seen.rooms == {client.sid, "red", "42"}
    assert seen.data == {}
    shake = seen.handshake
    assert {name: type(value) for name, value in shake.items()} == {
        "headers": dict,
        "time": str,
        "address": str,
        "xdomain": bool,
        "secure": bool,
        "issued": int,
        "url": str,
        "query": dict,
        "auth": dict,
    }
    assert shake["headers"]["upgrade"] == "websocket"
    assert all(name == name.lower() and isinstance(value, str) for name, value in shake["headers"].items())
    assert shake["address"] == "127.0.0.1"
    assert before * 1000 - 1 <= shake["issued"] <= time.time() * 1000
    assert shake["url"].startswith("/socket.io/?")
    assert shake["query"]["EIO"] == "4"
    assert shake["query"]["transport"] == "websocket"
    assert shake["auth"] == {}  # what the client authenticated with is nobody's business
    assert (shake["secure"], shake["xdomain"]) == (False, False)


@pytest.mark.parametrize("is_shared", [False, True])
async def test_the_session_is_shared_on_request_only(database: Database, is_shared: bool) -> None:
    async with open_trio(database, share_session=is_shared) as trio:
        client = await trio.b.connect()
        await trio.b.sio.save_session(client.sid, {"user": "ann", "roles": ["x"]})
        [socket] = await trio.a.manager.fetch_sockets()
        assert socket.data == ({"user": "ann", "roles": ["x"]} if is_shared else {})


async def test_who_does_not_answer_a_fetch_is_named(trio: Trio) -> None:
    a, b, c, _ = await seat(trio)
    async with spying(trio.database) as spy:
        await FakePeer(spy).join([trio.a])
        manager = trio.a.manager
        error = await timed_out(lambda seconds: manager.timeout(seconds).fetch_sockets(), ["fake"])
        responses: Any = error.responses
        assert {each["id"] for each in responses} == {a.sid, b.sid, c.sid}
        partial = await asked(
            lambda seconds: manager.timeout(seconds).fetch_sockets(partial=True), lambda found: len(found) == 3
        )
        assert ids(partial) == {a.sid, b.sid, c.sid}
        assert trio.a.expects_nothing()


async def test_a_server_without_sockets_answers_with_a_list(trio: Trio) -> None:
    """Node.js walks through it without looking."""
    async with spying(trio.database) as spy:
        FakePeer(spy).say(7, opts={"rooms": [], "except": [], "flags": {}}, requestId="r1")
        frames = await spy.wait_for(lambda frame: frame.header["type"] == SOCKETS, count=3)
        assert {frame.header["uid"] for frame in frames} == {server.uid for server in trio.servers}
        assert all(frame.message["data"] == {"requestId": "r1", "sockets": []} for frame in frames)


async def test_many_sockets_travel_as_an_attachment(trio: Trio) -> None:
    clients = await asyncio.gather(*(trio.b.connect(*(f"room {n}" for n in range(50))) for _ in range(20)))
    assert ids(await trio.a.manager.fetch_sockets()) == {client.sid for client in clients}


# ------------------------------------------------------------------------------------------------- join and leave


async def rooms_become(expected: dict[PythonClient, set[Any]], trio: Trio) -> None:
    home = {client: server for server in trio.servers for client in server.clients}
    await eventually(
        lambda: {client: home[client].rooms(client) for client in expected} == expected, f"rooms are {expected}"
    )


async def test_sockets_join(trio: Trio) -> None:
    a, b, c, chat = await seat(trio)
    manager = trio.a.manager
    await manager.sockets_join("all")
    await manager.to("red").sockets_join(["one", "two"])
    await manager.to(b.sid).sockets_join("given")
    await manager.to("red").except_("blue").sockets_join("not blue")
    await rooms_become(
        {
            a: {"all"},
            b: {"red", "all", "one", "two", "given", "not blue"},
            c: {"red", "blue", "all", "one", "two"},
            chat: {"red"},
        },
        trio,
    )


async def test_sockets_leave(trio: Trio) -> None:
    a, b, c, chat = await seat(trio)
    await trio.a.manager.to("blue").sockets_leave(["red", "never there"])
    await rooms_become({a: set(), b: {"red"}, c: {"blue"}, chat: {"red"}}, trio)
    await trio.a.manager.to(b.sid).sockets_leave("red")
    await rooms_become({b: set(), c: {"blue"}, chat: {"red"}}, trio)
    await trio.b.manager.of("chat").sockets_leave("red")
    await rooms_become({chat: set()}, trio)
    await trio.b.manager.sockets_join("x")
    await trio.b.manager.sockets_leave("x")
    await trio.b.manager.sockets_join("end")
    await rooms_become({a: {"end"}, b: {"end"}, c: {"blue", "end"}}, trio)


async def test_the_methods_of_a_fetched_socket(trio: Trio) -> None:
    a, b, _, _ = await seat(trio)
    sockets = {socket.id: socket for socket in await trio.a.manager.fetch_sockets()}
    for client in (a, b):
        socket = sockets[client.sid]
        await socket.join(["one", "two"])
        await socket.leave("two")
        await socket.emit("hello", 1, b"\x00")
        assert await client.wait_for("hello") == [(1, b"\x00")]
    await rooms_become({a: {"one"}, b: {"red", "one"}}, trio)
    for client in (a, b):
        await sockets[client.sid].disconnect()
        assert await client.wait_for_disconnect() == "server disconnect"
    assert trio.c.clients[0].received("hello") == []


async def test_rooms_are_numbers_here_and_strings_on_the_wire(trio: Trio) -> None:
    a = await trio.a.connect(42)
    b = await trio.b.connect(42)
    c = await trio.c.connect("43")
    assert ids(await trio.c.manager.to(42).fetch_sockets()) == {a.sid, b.sid}
    assert ids(await trio.c.manager.to("42").fetch_sockets()) == {a.sid, b.sid}
    await trio.c.sio.emit("number", 1, room=42)
    await trio.c.manager.to("42").emit("text", 1)
    for client in (a, b):
        await client.wait_for("number")
        await client.wait_for("text")

    await trio.b.sio.enter_room(c.sid, 42)  # who is on another server
    await eventually(lambda: trio.c.rooms(c) == {"43", "42"})
    await trio.c.sio.emit("own", 1, room=42)
    await trio.a.sio.emit("other", 1, room=42)
    for client in (a, b, c):
        assert await client.wait_for("other") == [(1,)]
        assert await client.wait_for("own") == [(1,)]

    await trio.a.sio.close_room(42)
    await eventually(lambda: [server.rooms(server.clients[0]) for server in trio.servers] == [set(), set(), {"43"}])


async def test_a_number_room_closes_where_others_made_it(trio: Trio) -> None:
    client = await trio.a.connect()
    await trio.b.sio.enter_room(client.sid, 42)
    await eventually(lambda: trio.a.rooms(client) == {"42"})
    await trio.a.sio.leave_room(client.sid, 42)
    assert trio.a.rooms(client) == set()
    await trio.b.sio.enter_room(client.sid, 42)
    await eventually(lambda: trio.a.rooms(client) == {"42"})
    await trio.a.sio.close_room(42)
    assert trio.a.rooms(client) == set()


# --------------------------------------------------------------------------------------------------- disconnecting


async def two_namespaces(server: Server) -> socketio.AsyncClient:
    client = socketio.AsyncClient(reconnection=False)
    await client.connect(server.url, namespaces=["/", "/chat"], transports=["websocket"], wait_timeout=TIMEOUT_S)
    return client


@pytest.mark.parametrize("close", [False, True])
@pytest.mark.parametrize("home", ["a", "b"])
async def test_disconnecting_ends_the_other_namespaces_only_with_close(trio: Trio, home: str, close: bool) -> None:
    server: Server = getattr(trio, home)
    client = await two_namespaces(server)
    other = await trio.c.connect("stays")
    await trio.a.manager.except_("stays").disconnect_sockets(close)
    await eventually(lambda: "/" not in client.namespaces)
    await server.sees()
    if close:
        await eventually(lambda: not client.connected)
        await eventually(lambda: not server.python.sids("/chat"))
    else:
        assert await trio.a.manager.of("/chat").emit_with_ack("still there") == [None]
        assert client.connected
    await client.disconnect()
    assert await trio.a.manager.emit_with_ack("you, too") == [None]
    assert not other.disconnects


async def test_only_the_meant_sockets_are_disconnected(trio: Trio) -> None:
    a, b, c, chat = await seat(trio)
    await trio.a.manager.to("red").except_("blue").disconnect_sockets()
    assert await b.wait_for_disconnect() == "server disconnect"
    await trio.b.sees()
    assert ids(await trio.a.manager.fetch_sockets()) == {a.sid, c.sid}
    assert ids(await trio.a.manager.of("/chat").fetch_sockets()) == {chat.sid}
    await trio.a.manager.disconnect_sockets()
    for client in (a, c):
        assert await client.wait_for_disconnect() == "server disconnect"
    for server in trio.servers:
        await server.sees()
    assert await trio.b.manager.fetch_sockets() == []
    assert [each.what for each in trio.b.python.happenings if each.namespace == "/"] == ["connect", "disconnect"]


async def test_what_was_emitted_before_a_disconnection_arrives(trio: Trio) -> None:
    a, b, c, _ = await seat(trio)
    for n in range(50):
        await trio.a.manager.emit("before", n)
    await trio.a.manager.disconnect_sockets()
    await trio.a.manager.emit("after", None)
    for client in (a, b, c):
        await client.wait_for_disconnect()
        assert client.received("before") == [(n,) for n in range(50)]
        assert client.received("after") == []


async def test_a_disconnect_handler_may_ask_the_cluster(trio: Trio) -> None:
    """It runs because a message came; if that message's listener ran it, the answers could not be heard."""
    found: list[set[str]] = []
    stays = await trio.a.connect("stays", replies={"ask": ["pong"]})
    leaves = await trio.b.connect()

    async def disconnect(sid: str, reason: str) -> None:
        sockets = await trio.b.manager.fetch_sockets()
        replies = await trio.b.manager.to(stays.sid).emit_with_ack("ask")
        found.append(ids(sockets) | set(replies))

    trio.b.sio.on("disconnect", disconnect)
    await trio.a.manager.to(leaves.sid).disconnect_sockets()
    await eventually(lambda: found, "the handler has its answers")
    assert found == [{stays.sid, "pong"}]


# --------------------------------------------------------------------------------------------------------- ghosts


async def test_who_vanishes_during_its_connect_handler_is_not_counted(trio: Trio) -> None:
    """python-socketio 5.18 would keep such a client in its rooms for ever, and it will never acknowledge."""
    entered, leave = asyncio.Event(), asyncio.Event()

    async def connect(sid: str, environ: object, auth: object) -> None:
        entered.set()
        await leave.wait()

    trio.b.sio.on("connect", connect)
    async with aiohttp.ClientSession() as browser:
        url = f"{trio.b.url}/socket.io/?EIO=4&transport=polling"

        async def post(data: str) -> None:
            async with browser.post(url, data=data) as response:
                await response.read()

        async with browser.get(url) as response:
            opened = await response.text()
        url += f"&sid={json.loads(opened[1:])['sid']}"
        connecting = asyncio.create_task(post("40"))
        await asyncio.wait_for(entered.wait(), TIMEOUT_S)
        await post("1")  # Engine.IO's "close"
        await eventually(lambda: all(each.closed for each in trio.b.sio.eio.sockets.values()), "it is gone")
        leave.set()
        await connecting
    await eventually(lambda: not trio.b.python.sids(), "it is in no room")

    present = await trio.b.connect(replies={"ask": ["here"]})
    for server in trio.servers:
        with Took() as took:
            assert ids(await server.manager.timeout(60).fetch_sockets()) == {present.sid}
            assert await server.manager.timeout(60).emit_with_ack("ask") == ["here"]
        assert took.seconds < 40
