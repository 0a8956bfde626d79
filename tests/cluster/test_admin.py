"""python-socketio's own instrumentation for the Admin UI, on one server of a cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.cluster.servers import Trio
from tests.fixtures.clients import PythonClient
from tests.fixtures.spy import spying
from tests.fixtures.waiting import eventually, nothing_arrives

STATS_INTERVAL_S = 0.1
BROADCAST, SERVER_SIDE = 3, 9


@asynccontextmanager
async def instrumented(trio: Trio, mode: str) -> AsyncIterator[PythonClient]:
    """Instrument `a`; gives an admin that watches it. The other two are left as they are."""
    admin = trio.a.sio.instrument(auth=False, mode=mode, server_stats_interval=STATS_INTERVAL_S)
    try:
        yield await trio.a.connect(namespace="/admin", label="admin")
    finally:
        await admin.shutdown()
        admin.uninstrument()


async def told(admin: PythonClient, event: str, *expected: Any) -> None:
    """Wait until the admin has been told something, whose arguments begin so (after the time stamps)."""
    await eventually(
        lambda: any(args[: len(expected)] == expected for args in admin.received(event)),
        f"admin is told {event} {expected}, has {admin.received(event)}",
    )


async def test_the_admin_sees_clients_rooms_and_events(trio: Trio) -> None:
    early = await trio.b.connect()
    async with instrumented(trio, "development") as admin:
        [(config,)] = await admin.wait_for("config")
        assert "ALL_EVENTS" in config["supportedFeatures"]
        [(sockets,)] = await admin.wait_for("all_sockets")
        assert [each["id"] for each in sockets] == [admin.sid]

        client = await trio.a.connect("red")
        await eventually(
            lambda: client.sid in [args[0]["id"] for args in admin.received("socket_connected")], "socket_connected"
        )
        await told(admin, "room_joined", "/", "red", client.sid)
        await client.emit("hello", 1)
        await told(admin, "event_received", "/", client.sid, ["hello", 1])
        await trio.a.sio.emit("answer", 2)
        await told(admin, "event_sent", "/", client.sid, ["answer", 2])
        assert await early.wait_for("answer") == [(2,)]

        # What another server does to the client is seen, too.
        await trio.b.sio.enter_room(client.sid, "blue")
        await told(admin, "room_joined", "/", "blue", client.sid)
        await trio.b.manager.to(client.sid).sockets_leave("red")
        await told(admin, "room_left", "/", "red", client.sid)
        await trio.c.manager.to(client.sid).disconnect_sockets()
        await told(admin, "socket_disconnected", "/", client.sid, "server disconnect")


async def test_the_admin_knows_the_server_by_its_id_in_the_cluster(trio: Trio) -> None:
    async with instrumented(trio, "production") as admin, spying(trio.database, ["socket.io#/admin"]) as spy:
        stats = [args[0] for args in await admin.wait_for("server_stats", 2)]
        assert {each["serverId"] for each in stats} == {trio.a.uid}
        [frame, *_] = await spy.wait_for(lambda frame: frame.header["type"] == BROADCAST)
        assert frame.header["uid"] == trio.a.uid


@pytest.mark.parametrize("mode", ["development", "production"])
async def test_the_cluster_works_on(trio: Trio, mode: str) -> None:
    away = await trio.b.connect("red", replies={"ask": ["away"]})
    async with instrumented(trio, mode) as admin:
        [(config,)] = await admin.wait_for("config")
        assert ("ALL_EVENTS" in config["supportedFeatures"]) == (mode == "development")
        client = await trio.a.connect("red", replies={"ask": ["here"]})
        await trio.b.sio.emit("from b", 1, room="red")
        await trio.a.sio.emit("from a", 2, room="red", skip_sid=away.sid)
        assert await client.wait_for("from b") == [(1,)]
        assert await client.wait_for("from a") == [(2,)]
        for server in trio.servers:
            assert sorted(await server.manager.emit_with_ack("ask")) == ["away", "here"]
        assert await trio.a.sio.call("ask", to=away.sid, timeout=15) == "away"
        assert await trio.b.sio.call("ask", to=client.sid, timeout=15) == "here"
        await trio.b.manager.sockets_join("blue")
        await eventually(lambda: trio.a.rooms(client) == {"red", "blue"})

        fetched = {socket.id: socket for socket in await trio.b.manager.fetch_sockets()}
        assert fetched[away.sid].data == {}
        if mode == "development":  # what Node.js's Admin UI reads of a socket of another server
            eio_sid = trio.a.manager.eio_sid_from_sid(client.sid, "/")
            expected = {"_admin": {"clientId": eio_sid[:12], "transport": "websocket"}}
            assert fetched[client.sid].data == expected
        else:
            assert fetched[client.sid].data == {}


async def test_what_comes_from_the_cluster_is_not_published_again(trio: Trio) -> None:
    async with instrumented(trio, "development") as admin:
        await admin.wait_for("all_sockets")
        client = await trio.a.connect()
        await told(admin, "room_joined", "/", client.sid, client.sid)  # the last that its connecting causes
        await trio.a.manager.flush()  # the admin is told before that is committed
        async with spying(trio.database, ["socket.io#/", "socket.io#/admin"]) as spy:
            await trio.b.sio.emit("hello", 1)
            assert await client.wait_for("hello") == [(1,)]
            await trio.b.manager.sockets_join("red")
            await told(admin, "room_joined", "/", "red", client.sid)
            await nothing_arrives()
            await trio.a.manager.server_side_emit("fence")
            await spy.wait_for(lambda frame: frame.header["type"] == SERVER_SIDE)  # what `a` has sent is before it
            broadcasts = [frame for frame in spy.frames if frame.header["type"] == BROADCAST]
            events = [
                (frame.header["uid"], frame.message["data"]["packet"]["data"][0])
                for frame in broadcasts
                if frame.message["data"]["packet"]["data"][0] != "server_stats"
            ]
            assert events == [(trio.b.uid, "hello"), (trio.a.uid, "room_joined")]
    assert client.received("hello") == [(1,)]


async def test_what_the_admin_does_reaches_the_cluster(trio: Trio) -> None:
    away = await trio.b.connect("red")
    async with instrumented(trio, "development") as admin:
        client = await trio.a.connect("red")
        await admin.emit("emit", "/", "red", "hello", 1, {"two": 2})
        for each in (client, away):
            assert await each.wait_for("hello") == [(1, {"two": 2})]
        # python-socketio looks for members of a room on its own server only.
        await admin.emit("join", "/", "blue", "red")
        await eventually(lambda: trio.a.rooms(client) == {"red", "blue"})
        await admin.emit("leave", "/", "red", "red")
        await eventually(lambda: trio.a.rooms(client) == {"blue"})
        await admin.emit("_disconnect", "/", False, "blue")
        await client.wait_for_disconnect()
        assert trio.b.rooms(away) == {"red"}
