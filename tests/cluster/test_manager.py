"""python-socketio's manager surface, rule by rule, with two servers and real clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from socketio.async_pubsub_manager import AsyncPubSubManager

from socketio_postgres import AsyncEmitter, AsyncPostgresManager, ClosedError, OptionsError, PostgresManager
from tests.fixtures.bus import Serving, acquainted, serving
from tests.fixtures.clients import PythonClient
from tests.fixtures.database import Database
from tests.fixtures.spy import Spy, spying
from tests.fixtures.waiting import TIMEOUT_S, eventually


@dataclass
class Pair:
    """Two servers in one cluster; `a` and `b` are clients of the first, `c` and `d` of the second."""

    one: Serving
    two: Serving
    spy: Spy
    clients: dict[str, PythonClient]

    def __getattr__(self, name: str) -> PythonClient:
        return self.clients[name]

    @property
    def sio(self) -> Any:
        return self.one.sio

    async def fence(self) -> None:
        """Everything that the first server sent before has arrived, or never will."""
        for client in self.clients.values():
            count = len(client.received("fence"))
            await self.sio.emit("fence", to=client.sid)
            await client.wait_for("fence", count + 1)

    async def got(self, name: str = "e") -> dict[str, list[tuple[Any, ...]]]:
        """What every client received of one event."""
        await self.fence()
        return {label: client.received(name) for label, client in self.clients.items() if client.received(name)}

    async def reached(self) -> str:
        """Which clients received the event, each exactly once."""
        got = await self.got()
        assert all(len(each) == 1 for each in got.values()), got
        for client in self.clients.values():
            client.events = [event for event in client.events if event.name != "e"]
        return "".join(sorted(got))


@pytest.fixture
async def pair(database: Database) -> AsyncIterator[Pair]:
    patient: dict[str, Any] = {"heartbeat_timeout": 30.0}
    async with spying(database) as spy, serving(database, **patient) as one, serving(database, **patient) as two:
        await acquainted(one, two)
        clients = {
            label: await PythonClient.connect(server.url, label=label, auth={"rooms": rooms})
            for label, server, rooms in [
                ("a", one, ["red"]),
                ("b", one, ["blue"]),
                ("c", two, ["red"]),
                ("d", two, ["blue", "red"]),
            ]
        }
        # auth joins rooms in the connect handler, which runs beside the client's own connect
        await eventually(lambda: _seated(one, two), "all are in their rooms")
        yield Pair(one, two, spy, clients)
        for client in clients.values():
            await client.disconnect()
        assert one.errors == two.errors == []


def _seated(one: Serving, two: Serving) -> bool:
    count = {room: sum(len(each.manager.rooms["/"].get(room, {})) for each in (one, two)) for room in ("red", "blue")}
    return count == {"red": 3, "blue": 2}


# ------------------------------------------------------------------------------------------------------ emit: data


DATA: list[tuple[Any, tuple[Any, ...]]] = [
    (None, ()),
    ((), ()),
    ("x", ("x",)),
    (0, (0,)),
    ("", ("",)),
    (False, (False,)),
    ([], ([],)),
    ([1, [2]], ([1, [2]],)),
    ({"a": None}, ({"a": None},)),
    ((1, "two", [3]), (1, "two", [3])),
    ((None,), (None,)),
    ((None, None), (None, None)),
    (b"\x00\xff", (b"\x00\xff",)),
    ((b"\x00", {"x": [b"\x01", 2]}), (b"\x00", {"x": [b"\x01", 2]})),
    ([b"\x00", "x"], ([b"\x00", "x"],)),
    ("é😀\u0000" * 3000, ("é😀\u0000" * 3000,)),
    (b"\x02" * 100_000, (b"\x02" * 100_000,)),
]
"""What is given to `emit`, and the arguments that clients get."""


def everybody_gets(*args: tuple[Any, ...]) -> dict[str, list[tuple[Any, ...]]]:
    return {label: list(args) for label in "abcd"}


async def test_data(pair: Pair) -> None:
    for data, _ in DATA:
        await pair.sio.emit("e", data)
    assert await pair.got() == everybody_gets(*(args for _, args in DATA))


async def test_other_kinds_of_binary(pair: Pair, database: Database) -> None:
    """From another process: for its own clients python-socketio passes them to a WebSocket that takes bytes only."""
    manager = AsyncPostgresManager(database.dsn, write_only=True)
    await manager.emit("e", (bytearray(b"\x01"), {"x": memoryview(b"\x02")}))
    await manager.emit("e", [(b"\x03",)])
    for client in pair.clients.values():
        assert await client.wait_for("e", 2) == [(b"\x01", {"x": b"\x02"}), ([[b"\x03"]],)]
    await manager.close()


async def test_send_is_an_event(pair: Pair) -> None:
    await pair.sio.send("hello")
    assert await pair.got("message") == everybody_gets(("hello",))


async def test_many_events_of_a_chain(pair: Pair) -> None:
    await pair.one.manager.to("red").emit_many([("e", number) for number in range(300)])
    numbers = [(number,) for number in range(300)]
    assert await pair.got() == dict.fromkeys("acd", numbers)
    await pair.one.manager.to([]).emit_many([("e", 1)])
    with pytest.raises(OptionsError, match="events"):
        await pair.one.manager.of("/").emit_many(["e"])
    assert await pair.got() == dict.fromkeys("acd", numbers)


# --------------------------------------------------------------------------------------------------- emit: to whom


ROOMS: list[tuple[Any, str]] = [
    (None, "abcd"),
    ("red", "acd"),
    ("blue", "bd"),
    ("green", ""),
    (["red"], "acd"),
    (["red", "blue"], "abcd"),
    (("red", "blue"), "abcd"),
    ({"blue"}, "bd"),
    (["green", "blue"], "bd"),
    ([], ""),
    ((), ""),
    (set(), ""),
    (5, ""),
]


async def test_rooms(pair: Pair) -> None:
    for room, reached in ROOMS:
        await pair.sio.emit("e", 1, room=room)
        assert await pair.reached() == reached, room
        await pair.one.manager.emit("e", 1, to=room)
        assert await pair.reached() == reached, room
        await pair.sio.emit("e", 1, to=room)  # python-socketio's server makes `to or room` of an empty list: guarded
        assert await pair.reached() == reached, room
        if room is not None:
            await pair.sio.emit("e", 1, to=room, room="green")
            assert await pair.reached() == reached, room


async def test_zero_is_a_room(pair: Pair) -> None:
    for server, client in ((pair.one, pair.a), (pair.two, pair.c)):
        await server.sio.enter_room(client.sid, 0)
    for choice in ({"room": 0}, {"to": 0}, {"to": "0"}):
        await pair.sio.emit("e", 1, **choice)
        assert await pair.reached() == "ac"


async def test_rooms_that_are_numbers(pair: Pair) -> None:
    await pair.two.sio.enter_room(pair.c.sid, 42)
    await pair.sio.enter_room(pair.d.sid, 42)  # a remote client, so by name
    await pair.sio.enter_room(pair.a.sid, 42)
    await pair.fence()
    await pair.sio.emit("e", 1, room=42)
    assert await pair.reached() == "acd"
    await pair.sio.close_room(42)
    await pair.fence()
    await pair.sio.emit("e", 1, room=42)
    assert await pair.reached() == ""


async def test_single_clients(pair: Pair) -> None:
    for label, client in pair.clients.items():
        await pair.sio.emit("e", 1, to=client.sid)
        assert await pair.reached() == label
    await pair.sio.emit("e", 1, to=[pair.a.sid, pair.d.sid, "blue"])
    assert await pair.reached() == "abd"


async def test_skip_sid(pair: Pair) -> None:
    a, c, d = pair.a.sid, pair.c.sid, pair.d.sid
    cases: list[tuple[Any, Any, str]] = [
        (None, None, "abcd"),
        (None, a, "bcd"),
        (None, c, "abd"),
        (None, [a, c], "bd"),
        (None, (a, c), "bd"),
        (None, {a, c}, "bd"),
        (None, [], "abcd"),
        (None, [None, d], "abc"),
        (None, "unknown", "abcd"),
        ("red", c, "ad"),
        (["red", "blue"], [a, d], "bc"),
        (a, a, ""),
    ]
    for room, skip, reached in cases:
        await pair.sio.emit("e", 1, room=room, skip_sid=skip)
        assert await pair.reached() == reached, (room, skip)


async def test_ignore_queue_stays_here(pair: Pair) -> None:
    seen = len(pair.spy.frames)
    await pair.sio.emit("e", 1, ignore_queue=True)
    await pair.sio.emit("e", 1, room="blue", ignore_queue=True)
    acknowledged: asyncio.Queue[tuple[Any, ...]] = asyncio.Queue()
    await pair.sio.emit("f", 1, to=pair.a.sid, callback=lambda *args: acknowledged.put_nowait(args), ignore_queue=True)
    assert await asyncio.wait_for(acknowledged.get(), TIMEOUT_S) == (1,)
    got = await pair.got()
    assert got == {"a": [(1,)], "b": [(1,), (1,)]}
    fences = [frame for frame in pair.spy.frames[seen:] if frame.header["type"] == 3]
    assert all(frame.message["data"]["packet"]["data"][0] == "fence" for frame in fences)


async def test_other_namespaces_hear_nothing(database: Database) -> None:
    namespaces = ("/", "/a")
    async with serving(database, namespaces) as one, serving(database, namespaces) as two:
        await acquainted(one, two, namespaces=namespaces)
        clients = {
            (number, nsp): await PythonClient.connect(server.url, namespace=nsp)
            for number, server in enumerate((one, two))
            for nsp in namespaces
        }
        await one.sio.emit("e", "in a", namespace="/a")
        await one.sio.emit("e", "in root")
        for (_, nsp), client in clients.items():
            assert await client.wait_for("e") == [("in a",) if nsp == "/a" else ("in root",)]
        for client in clients.values():
            await client.disconnect()


# -------------------------------------------------------------------------------------------------------- callbacks


@pytest.mark.parametrize("args", [(), (1,), (None,), ("x", [2]), (b"\x00",), (b"\x01", "y")], ids=repr)
async def test_an_acknowledgement_of_a_remote_client(pair: Pair, args: tuple[Any, ...]) -> None:
    acknowledged: asyncio.Queue[tuple[Any, ...]] = asyncio.Queue()
    for client in (pair.a, pair.c):
        await pair.sio.emit("e", args, to=client.sid, callback=lambda *reply: acknowledged.put_nowait(reply))
        assert await asyncio.wait_for(acknowledged.get(), TIMEOUT_S) == args


async def test_call(pair: Pair) -> None:
    for client in (pair.a, pair.c):
        assert await pair.sio.call("e", (), to=client.sid, timeout=TIMEOUT_S) is None
        assert await pair.sio.call("e", 1, to=client.sid, timeout=TIMEOUT_S) == 1
        assert await pair.sio.call("e", (1, 2), to=client.sid, timeout=TIMEOUT_S) == (1, 2)


async def test_a_coroutine_as_callback(pair: Pair) -> None:
    done: asyncio.Queue[Any] = asyncio.Queue()

    async def callback(value: Any) -> None:
        await asyncio.sleep(0)
        done.put_nowait(value)

    await pair.sio.emit("e", "x", to=pair.c.sid, callback=callback)
    assert await asyncio.wait_for(done.get(), TIMEOUT_S) == "x"


async def test_a_callback_for_a_room_is_called_once(pair: Pair) -> None:
    replies: list[Any] = []
    await pair.sio.emit("e", 7, room="red", callback=lambda *reply: replies.append(reply))
    assert await pair.reached() == "acd"
    await eventually(lambda: replies, "the first acknowledgement is passed on")
    await pair.fence()
    assert replies == [(7,)]


async def test_callbacks_need_a_server_and_a_room(pair: Pair, database: Database) -> None:
    seen = len([frame for frame in pair.spy.frames if frame.header["type"] == 3])
    with pytest.raises(ValueError, match="room"):
        await pair.sio.emit("e", 1, callback=print)
    for write_only in (True, False):
        manager = AsyncPostgresManager(database.dsn, write_only=write_only)
        with pytest.raises(RuntimeError, match="server"):
            await manager.emit("e", 1, room="red", callback=print)
        await manager.close()
    assert await pair.reached() == ""
    broadcasts = [frame for frame in pair.spy.frames if frame.header["type"] == 3][seen:]
    assert all(frame.message["data"]["packet"]["data"][0] == "fence" for frame in broadcasts)


# ------------------------------------------------------------------------------------------------- rooms and clients


async def test_entering_and_leaving_rooms(pair: Pair) -> None:
    for client in (pair.a, pair.c):
        await pair.sio.enter_room(client.sid, "green")
    await pair.sio.emit("e", 1, room="green")
    assert await pair.reached() == "ac"
    assert "green" in pair.two.sio.rooms(pair.c.sid)
    for client in (pair.a, pair.c):
        await pair.sio.leave_room(client.sid, "green")
    await pair.sio.emit("e", 1, room="green")
    assert await pair.reached() == ""
    assert "green" not in pair.two.sio.rooms(pair.c.sid)


async def test_local_rooms_are_nobody_elses_business(pair: Pair) -> None:
    await pair.fence()
    await pair.spy.wait_for_broadcast("fence", len(pair.clients))  # what the clients' coming caused is before them
    seen = len(pair.spy.frames)
    await pair.sio.enter_room(pair.a.sid, "green")
    await pair.sio.leave_room(pair.a.sid, "green")
    assert await pair.one.manager.can_disconnect(pair.a.sid, "/")
    await pair.fence()
    assert {frame.header["type"] for frame in pair.spy.frames[seen:]} <= {2, 3}


async def test_closing_a_room(pair: Pair) -> None:
    await pair.sio.close_room("red")
    await pair.sio.emit("e", 1, room="red")
    assert await pair.reached() == ""
    await pair.sio.emit("e", 1, room="blue")
    assert await pair.reached() == "bd"
    assert "red" not in pair.two.sio.rooms(pair.d.sid)


async def test_joining_the_room_of_another_client_is_refused(pair: Pair) -> None:
    """A remote client is made to join a room named as a client of its own server: told in the log, no harm done."""
    await pair.sio.enter_room(pair.c.sid, pair.d.sid)
    await pair.fence()
    await pair.sio.emit("e", 1, to=pair.d.sid)
    assert await pair.reached() == "d"


async def test_disconnecting_clients(pair: Pair) -> None:
    await pair.sio.disconnect(pair.c.sid)
    await pair.c.wait_for_disconnect()
    await pair.sio.disconnect(pair.a.sid)
    await pair.a.wait_for_disconnect()
    await eventually(lambda: len(pair.two.server.sids()) == 1, "the other server saw it go")
    reasons = {item.sid: item.detail for item in pair.two.server.happenings if item.what == "disconnect"}
    assert reasons == {pair.c.sid: "server disconnect"}
    for label in "ac":
        del pair.clients[label]
    await pair.sio.emit("e", 1)
    assert await pair.reached() == "bd"


async def test_disconnecting_through_the_manager(pair: Pair) -> None:
    assert await pair.one.manager.can_disconnect(pair.c.sid, "/") is False  # its own server is asked
    await pair.c.wait_for_disconnect()
    await pair.one.manager.disconnect(pair.d.sid, "/")
    await pair.d.wait_for_disconnect()
    await pair.one.manager.disconnect(pair.b.sid, "/")
    await pair.b.wait_for_disconnect()
    await pair.one.manager.disconnect("unknown", "/")
    for label in "bcd":
        del pair.clients[label]
    await pair.sio.emit("e", 1)
    assert await pair.reached() == "a"


async def test_closing_connections_with_all_their_namespaces(database: Database) -> None:
    async with serving(database, ["/", "/a"]) as ours, AsyncEmitter(database.dsn) as io:
        await acquainted(ours, namespaces=("/", "/a"))
        client = await PythonClient.connect(ours.url)
        await client._sio.disconnect()
        client = await PythonClient.connect(ours.url, namespace="/a")
        await io.of("/a").in_(client.sid).disconnect_sockets(close=True)
        await client.wait_for_disconnect()
        await eventually(lambda: not client._sio.eio.sid, "the connection is closed, too")
        await eventually(lambda: not ours.sio.eio.sockets, "on the server, too")
        assert ours.errors == []


async def test_a_disconnect_handler_may_wait_for_others(pair: Pair) -> None:
    """Handlers run beside the reader: one that itself waits for the cluster does not stop it."""
    answers: asyncio.Queue[Any] = asyncio.Queue()

    async def on_disconnect(sid: str, reason: str) -> None:
        answers.put_nowait(await pair.two.sio.call("question", reason, to=pair.a.sid, timeout=TIMEOUT_S))

    pair.two.sio.on("disconnect", on_disconnect, namespace="/")
    await pair.sio.disconnect(pair.c.sid)
    assert await asyncio.wait_for(answers.get(), TIMEOUT_S) == "server disconnect"
    del pair.clients["c"]


# -------------------------------------------------------------------------------------------------- without a server


async def test_a_write_only_manager_does_everything(pair: Pair, database: Database) -> None:
    manager = AsyncPostgresManager(database.dsn, write_only=True)
    await manager.emit("e", (1, b"x"))
    await manager.flush()
    await eventually(lambda: all(c.received("e") == [(1, b"x")] for c in pair.clients.values()), "all hear it")
    await manager.emit("f", None, room=["red"], skip_sid=pair.c.sid)
    await manager.enter_room(pair.b.sid, "/", "green")
    await manager.emit("g", 1, to="green")
    await manager.leave_room(pair.b.sid, "/", "green")
    await manager.emit("g", 2, to="green")
    await manager.close_room("red")
    await manager.emit("g", 3, to="red")
    await manager.emit("g", 4, to=[])
    await manager.disconnect(pair.d.sid, "/")
    assert await manager.can_disconnect(pair.c.sid, "/") is False
    await manager.emit("end", None)
    await pair.b.wait_for("end")
    await pair.a.wait_for("end")
    await pair.d.wait_for_disconnect()
    await pair.c.wait_for_disconnect()
    assert {label: client.received("f") for label, client in pair.clients.items()} == {
        "a": [()],
        "b": [],
        "c": [],
        "d": [()],
    }
    assert {label: client.received("g") for label, client in pair.clients.items() if client.received("g")} == {
        "b": [(1,)]
    }
    assert pair.one.manager.server_count() == pair.two.manager.server_count() == 2
    await manager.close()
    for label in "cd":
        del pair.clients[label]


async def test_a_manager_is_a_context(pair: Pair, database: Database) -> None:
    async with AsyncPostgresManager(database.dsn, write_only=True) as manager:
        assert manager.stats()["state"] == "idle", "it has connected; only servers listen"
        await manager.emit("event", "async")
    with pytest.raises(ClosedError):
        await manager.emit("event", "too late")

    def blocking() -> None:
        with PostgresManager(database.dsn, write_only=True) as manager:
            manager.emit("event", "blocking")
        with pytest.raises(ClosedError):
            manager.emit("event", "too late")

    await asyncio.to_thread(blocking)
    # A fence for a client of the first server does not pass PostgreSQL, and so may overtake them.
    await eventually(lambda: all(len(each.received("event")) >= 2 for each in pair.clients.values()), "all hear both")
    assert await pair.got("event") == everybody_gets(("async",), ("blocking",))


async def test_it_is_a_pub_sub_manager_to_everyone_who_asks(database: Database) -> None:
    manager = AsyncPostgresManager(database.dsn, "chat", True)
    assert isinstance(manager, AsyncPubSubManager)
    assert (manager.channel, manager.write_only, manager.name) == ("chat", True, "postgres")
    assert len(manager.host_id) == 32
    assert manager.__dict__, "python-socketio's admin instrumentation replaces methods of the instance"
    with pytest.raises(OptionsError):
        AsyncPostgresManager(database.dsn, channel=5)  # type: ignore[arg-type]


async def test_the_servers_json_module_is_used(database: Database) -> None:
    import datetime as dt  # noqa: PLC0415
    import json as stdlib_json  # noqa: PLC0415

    import socketio  # noqa: PLC0415

    class Dates:
        loads = staticmethod(stdlib_json.loads)

        @staticmethod
        def dumps(value: object, **options: Any) -> str:
            return stdlib_json.dumps(value, default=str, **options)

    manager = AsyncPostgresManager(database.dsn, write_only=True, json=Dates)
    async with spying(database) as spy:
        await manager.emit("e", {"day": dt.date(2026, 11, 21)})
        [frame] = await spy.wait_for_broadcast("e")
        assert frame.message["data"]["packet"]["data"] == ["e", {"day": "2026-11-21"}]
    await manager.close()
    server = socketio.AsyncServer(client_manager=AsyncPostgresManager(database.dsn), json=Dates, async_mode="asgi")
    assert server.manager.json is Dates
