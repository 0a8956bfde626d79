"""What a room, a sid and a namespace may be: the same for every method of both managers, here and elsewhere."""

from __future__ import annotations

import asyncio
import copy
import enum
import gc
import inspect
import json
import logging
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import socketio

from socketio_postgres import AsyncEmitter, AsyncPostgresManager, EncodeError, OptionsError, PostgresManager
from tests.fixtures.database import Database
from tests.fixtures.spy import spying
from tests.fixtures.waiting import eventually


class Room(str, enum.Enum):
    """Rooms as applications like to write them."""

    LOBBY = "lobby"


class Level(enum.IntEnum):
    """Rooms that are numbers."""

    TOP = 7


class Space(str, enum.Enum):
    """A namespace likewise."""

    CHAT = "/chat"


class Books:
    """A server and a manager of either kind; its clients exist in the books only, and what they are sent is kept."""

    def __init__(self, kind: type[Any], dsn: str, **options: Any) -> None:
        self.is_async = kind is AsyncPostgresManager
        self.errors: list[Exception] = []
        self.manager = kind(dsn, error_handler=self.errors.append, **{"heartbeat_timeout": 30.0, **options})
        self.sent: list[tuple[str, str]] = []
        self.sio = (self._async_server if self.is_async else self._server)()
        self.number = 0

    def _async_server(self) -> Any:
        sent = self.sent

        class Server(socketio.AsyncServer):  # type: ignore[misc]  # python-socketio is not typed
            async def _send_eio_packet(self, eio_sid: str, packet: Any) -> None:
                sent.append((eio_sid, packet.data))

        return Server(client_manager=self.manager, async_mode="asgi", namespaces="*")

    def _server(self) -> Any:
        sent = self.sent

        class Server(socketio.Server):  # type: ignore[misc]  # python-socketio is not typed
            def _send_eio_packet(self, eio_sid: str, packet: Any) -> None:
                sent.append((eio_sid, packet.data))

        return Server(client_manager=self.manager, async_mode="threading", namespaces="*")

    async def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a method of the server or the manager."""
        if self.is_async:
            result = function(*args, **kwargs)
            return await result if inspect.isawaitable(result) else result
        return await asyncio.to_thread(function, *args, **kwargs)

    async def connect(self, namespace: str = "/") -> str:
        """A client; its sid."""
        self.number += 1
        eio_sid = f"eio{self.number}"
        goodbye = mock.AsyncMock() if self.is_async else mock.Mock()
        self.sio.eio.sockets[eio_sid] = SimpleNamespace(closed=False, last_ping=None, send=goodbye)
        sid: str = await self.run(self.manager.connect, eio_sid, namespace)
        return sid

    def take(self) -> set[str]:
        """Events that were sent since the last call, as text, with the number of the client: `1:2["e"]`."""
        taken = {f"{eio_sid[3:]}:{data}" for eio_sid, data in self.sent}
        self.sent.clear()
        return taken


@pytest.fixture(params=[AsyncPostgresManager, PostgresManager], ids=["async", "blocking"])
async def books(request: pytest.FixtureRequest, database: Database) -> AsyncIterator[Books]:
    one = Books(request.param, database.dsn)
    yield one
    await one.run(one.manager.close)
    assert one.errors == []


NO_ROOM: list[Any] = [
    None,
    "",
    b"red",
    bytearray(b"red"),
    True,
    False,
    1.5,
    0.0,
    float("nan"),
    float("inf"),
    10**5000,
    {"red": 1},
    object(),
    iter(["red"]),
    "\ud800",
]
NOT_ONE_ROOM: list[Any] = [[], ["red"], ("red",), {"red"}, frozenset({"red"})]
NO_ROOMS: list[Any] = [[None], ["red", ""], [["red"]], [b"red"], [1.5], [True], ("red", "\ud800")]
NO_SID: list[Any] = [None, "", b"sid", 5, True, ["sid"], [], "\ud800"]
NO_NAMESPACE: list[Any] = [5, b"/chat", ["/chat"], "/\ud800"]


async def refused(books: Books, option: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """The call raises, and no client is in another room afterwards, or was sent something."""
    manager = books.manager
    before = copy.deepcopy((manager.rooms, manager._node.sockets._aliases, manager._node.sockets._connected_at))
    with pytest.raises(OptionsError) as caught:
        await books.run(function, *args, **kwargs)
    assert caught.value.option == option, (function, args)
    assert (manager.rooms, manager._node.sockets._aliases, manager._node.sockets._connected_at) == before, (
        function,
        args,
    )
    assert books.take() == set(), (function, args)


async def still_a_member(books: Books, database: Database) -> None:
    """The core passes on what is for everybody here, and for the client alone."""
    async with AsyncEmitter(database.dsn) as io:
        [*sids] = books.manager.rooms["/"][None]
        await io.emit("all")
        await io.to(sids[0]).emit("one")
        await eventually(lambda: '1:2["one"]' in {f"{eio[3:]}:{data}" for eio, data in books.sent}, "it is delivered")
    assert books.take() == {'1:2["all"]', '1:2["one"]'}


async def test_a_bad_room_is_refused_before_anything_changes(books: Books, database: Database) -> None:
    sid = await books.connect()
    await books.run(books.manager.start)
    sio, manager = books.sio, books.manager
    async with spying(database) as spy:
        for room in [*NO_ROOM, *NOT_ONE_ROOM]:
            for client in (sid, "elsewhere"):
                await refused(books, "room", sio.enter_room, client, room)
                await refused(books, "room", sio.leave_room, client, room)
            await refused(books, "room", sio.close_room, room)
        for room in [*NO_ROOM, *NO_ROOMS]:
            if room is not None:
                await refused(books, "room", sio.emit, "e", room=room)
                await refused(books, "room", manager.emit, "e", 1, room=room)
                await refused(books, "to", manager.emit, "e", 1, to=room)
                await refused(books, "to", manager.emit, "e", 1, to=room, ignore_queue=True)
                if room != [None]:  # nobody among nobody
                    await refused(books, "skip_sid", sio.emit, "e", skip_sid=room)
            for choose in (manager.to, manager.in_, manager.except_, manager.of("/x").to):
                await refused(books, "room", choose, room)
            await refused(books, "room", manager.to(sid).sockets_join, room)
            await refused(books, "room", manager.to(sid).sockets_leave, room)
        for wrong in NO_SID:
            for function, args in ((sio.enter_room, ("red",)), (sio.leave_room, ("red",)), (manager.disconnect, ())):
                await refused(books, "sid", function, wrong, *args)
            await refused(books, "sid", sio.disconnect, wrong)
        for wrong in NO_NAMESPACE:
            await refused(books, "namespace", manager.emit, "e", 1, namespace=wrong)
            await refused(books, "namespace", manager.enter_room, sid, wrong, "red")
            await refused(books, "namespace", manager.leave_room, sid, wrong, "red")
            await refused(books, "namespace", manager.close_room, "red", wrong)
            await refused(books, "namespace", manager.disconnect, sid, wrong)
            await refused(books, "namespace", manager.can_disconnect, sid, wrong)
            await refused(books, "namespace", manager.server_count, wrong)
            await refused(books, "namespace", manager.on_server_side, "e", print, namespace=wrong)
            await refused(books, "nsp", manager.of, wrong)
        await books.run(sio.emit, "end")
        await spy.wait_for_broadcast("end")
        assert [frame.header["type"] for frame in spy.frames if frame.header["type"] not in (1, 2)] == [3]
    assert books.take() == {'1:2["end"]'}
    assert manager.is_connected(sid, "/")
    await still_a_member(books, database)


async def test_a_client_stays_in_the_room_of_its_own(
    books: Books, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """Without it nobody could reach it any more; and whoever leaves all of `sio.rooms` means the others."""
    sid = await books.connect()
    await books.run(books.manager.start)
    await books.run(books.sio.enter_room, sid, "red")
    for room in books.sio.rooms(sid):
        await books.run(books.sio.leave_room, sid, room)
    assert books.sio.rooms(sid) == [sid]
    assert "the room of its own" in caplog.text
    async with AsyncEmitter(database.dsn) as io:
        await io.in_(sid).sockets_leave([sid, "red"])
    await still_a_member(books, database)


async def test_a_str_enum_is_its_text(books: Books, database: Database) -> None:
    one, two = await books.connect(), await books.connect("/chat")
    await books.run(books.manager.start)
    await books.run(books.sio.enter_room, one, Room.LOBBY)
    await books.run(books.sio.enter_room, two, Room.LOBBY, namespace=Space.CHAT)
    assert {type(room) for room in books.sio.rooms(one)} == {str}
    async with spying(database) as spy, AsyncEmitter(database.dsn) as io:
        for room in (Room.LOBBY, "lobby", [Room.LOBBY]):
            await books.run(books.sio.emit, "e", to=room)
            assert books.take() == {'1:2["e"]'}
            await books.run(books.sio.emit, "e", to=room, namespace=Space.CHAT)
            assert books.take() == {'2:2/chat,["e"]'}
            for emit, expected in ((io.to(room).emit, '1:2["f"]'), (io.of(Space.CHAT).to(room).emit, '2:2/chat,["f"]')):
                await emit("f")
                await eventually(lambda: books.sent, "it is delivered")
                assert books.take() == {expected}
        await books.run(books.sio.emit, "all", skip_sid=Room.LOBBY)
        assert books.take() == set()
        frames = await spy.wait_for_broadcast("e", 3)
        assert [frame.message["data"]["opts"]["rooms"] for frame in frames] == [["lobby"]] * 3
        assert {frame.message["nsp"] for frame in frames} == {"/"}
        await books.run(books.sio.enter_room, "elsewhere", Room.LOBBY, namespace=Space.CHAT)
        await books.run(books.sio.close_room, Room.LOBBY)
        await books.run(books.manager.flush)
    assert books.sio.rooms(one) == [one]
    await books.run(books.sio.leave_room, two, "lobby", namespace="/chat")
    assert books.sio.rooms(two, "/chat") == [two]


async def test_a_number_is_its_digits(books: Books, database: Database) -> None:
    one, two = await books.connect(), await books.connect()
    await books.run(books.manager.start)
    await books.run(books.sio.enter_room, one, Level.TOP)
    await books.run(books.sio.enter_room, two, "7")
    both = {'1:2["e"]', '2:2["e"]'}
    async with AsyncEmitter(database.dsn) as io:
        for room in (7, "7", Level.TOP, [Level.TOP]):
            await books.run(books.sio.emit, "e", to=room)
            assert books.take() == both
            await books.run(books.sio.emit, "e", to=room, ignore_queue=True)
            assert books.take() == both
            await io.to(room).emit("e")
            await eventually(lambda: len(books.sent) == 2, "it is delivered")
            assert books.take() == both
            assert {sid for sid, _ in books.manager.get_participants("/", room)} == {one, two}
    await books.run(books.sio.close_room, 7)
    assert books.sio.rooms(one) == [one]
    assert books.manager._node.sockets._aliases == {}


async def test_the_slash_of_a_namespace_may_be_left_out(books: Books) -> None:
    """As in Socket.IO, and in the chain."""
    sid = await books.connect("/chat")
    await books.run(books.sio.enter_room, sid, "red", namespace="chat")
    assert set(books.sio.rooms(sid, "/chat")) == {sid, "red"}
    await books.run(books.sio.emit, "e", to="red", namespace="chat")
    assert books.take() == {'1:2/chat,["e"]'}
    await books.run(books.sio.disconnect, sid, namespace="chat")
    await eventually(lambda: not books.manager.is_connected(sid, "/chat"), "it is disconnected")


async def test_very_many_rooms_and_strange_names(books: Books, database: Database) -> None:
    sid = await books.connect()
    await books.run(books.manager.start)
    many = [f"room {number}" for number in range(100_000)]
    odd = ["a\0b", "\u2028", "'; DROP TABLE x; --", "é", "😀", " ", "[]", "None", "*"]
    for room in [many[-1], *odd]:
        await books.run(books.sio.enter_room, sid, room)
    async with AsyncEmitter(database.dsn) as io:
        await books.run(books.sio.emit, "e", to=many)
        assert books.take() == {'1:2["e"]'}
        await io.to(many).emit("e")
        await eventually(lambda: books.sent, "it is delivered")
        assert books.take() == {'1:2["e"]'}
        for room in odd:
            await books.run(books.sio.emit, "e", to=room)
            assert books.take() == {'1:2["e"]'}
            await io.to(room).emit("e")
            await eventually(lambda: books.sent, "it is delivered")
            assert books.take() == {'1:2["e"]'}


async def test_who_is_skipped_here_is_who_is_skipped_elsewhere(books: Books, database: Database) -> None:
    """Servers are told names only, and a sid is a room like any other."""
    one, two = await books.connect(), await books.connect()
    await books.run(books.manager.start)
    await books.run(books.sio.enter_room, one, 42)
    async with AsyncEmitter(database.dsn) as io:
        for skip in (one, [one], 42, "42", {42, "unknown"}, [None, 42]):
            await books.run(books.sio.emit, "e", skip_sid=skip)
            assert books.take() == {'2:2["e"]'}, skip
            await books.run(books.sio.emit, "e", skip_sid=skip, ignore_queue=True)
            assert books.take() == {'2:2["e"]'}, skip
        await io.except_(42).emit("e")
        await eventually(lambda: books.sent, "it is delivered")
        assert books.take() == {'2:2["e"]'}
    assert two


# ------------------------------------------------------------------------------------------------ an empty list


NOBODY: list[Any] = [[], (), set(), frozenset()]


async def test_an_empty_list_is_nobody_for_the_manager(books: Books) -> None:
    await books.connect()
    for nobody in NOBODY:
        for arguments in ({"to": nobody}, {"room": nobody}, {"to": nobody, "room": "red"}):
            await books.run(books.manager.emit, "e", 1, **arguments)
            await books.run(books.manager.emit, "e", 1, **arguments, ignore_queue=True)
        assert list(books.manager.get_participants("/", nobody)) == []
    assert books.take() == set()


async def test_an_empty_list_is_nobody_for_the_server(books: Books) -> None:
    """python-socketio's server makes `to or room` of it, and so everybody; the guard tells us what it was."""
    sid = await books.connect()
    kind = socketio.AsyncNamespace if books.is_async else socketio.Namespace
    space = kind("/")
    books.sio.register_namespace(space)
    for nobody in NOBODY:
        for emit in (books.sio.emit, space.emit):
            await books.run(emit, "e", {"secret": 1}, nobody)
            await books.run(emit, "e", to=nobody)
            await books.run(emit, "e", to=nobody, ignore_queue=True)
            await books.run(emit, "e", room=nobody)
            await books.run(emit, "e", to=nobody, room="red")
        for send in (books.sio.send, space.send):
            await books.run(send, "hello", to=nobody)
        for call in (books.sio.call, space.call):
            with pytest.raises(ValueError, match="without a room"):
                await books.run(call, "e", to=nobody)
    assert books.take() == set()
    falsehoods: list[Any] = ["", False, 0.0, b"", {}]
    for wrong in falsehoods:
        await refused(books, "to", books.sio.emit, "e", to=wrong)
    await books.run(books.sio.enter_room, sid, 0)
    other = await books.connect()
    await books.run(books.sio.emit, "e", to=0)
    assert books.take() == {'1:2["e"]'}
    for everybody in ({}, {"to": None}, {"to": None, "room": None}):
        await books.run(books.sio.emit, "e", **everybody)
        assert books.take() == {'1:2["e"]', '2:2["e"]'}
    await books.run(books.sio.emit, "e", 5, other)
    assert books.take() == {'2:2["e",5]'}


def made(kind: Any, server: Any, **options: Any) -> Any:
    """A server with our manager, which nothing connects."""
    return server(client_manager=kind("postgresql://app@does-not-exist.invalid/app", **options), async_mode="asgi")


async def test_the_guard_can_be_left_out(database: Database) -> None:
    books = Books(AsyncPostgresManager, database.dsn, guard_empty_rooms=False)
    await books.connect()
    await books.sio.emit("e", to=[])
    assert books.take() == {'1:2["e"]'}
    assert "emit" not in vars(books.sio)
    await books.manager.close()


def test_the_guard_is_to_be_true_or_false() -> None:
    with pytest.raises(OptionsError, match="guard_empty_rooms"):
        AsyncPostgresManager("", guard_empty_rooms="no")  # type: ignore[arg-type]


async def test_the_guard_is_not_seen_otherwise() -> None:
    class Server(socketio.AsyncServer):  # type: ignore[misc]  # python-socketio is not typed
        """With an emit of its own."""

        got: tuple[Any, ...] = ()

        async def emit(self, event: str, *args: Any, **kwargs: Any) -> None:
            """As the application likes it."""
            self.got = (event, args, kwargs)

    sio = made(AsyncPostgresManager, Server)
    plain = socketio.AsyncServer(async_mode="asgi")
    for server, kind in ((sio, Server), (made(AsyncPostgresManager, socketio.AsyncServer), socketio.AsyncServer)):
        assert inspect.iscoroutinefunction(server.emit)
        assert inspect.signature(server.emit) == inspect.signature(kind(async_mode="asgi").emit)
        assert server.emit.__doc__ == kind.emit.__doc__
        with mock.patch.object(server, "emit") as emit:
            assert isinstance(emit, mock.AsyncMock)
    assert "emit" not in vars(plain)
    await sio.emit("e", 1, "red", extra=2)
    assert sio.got == ("e", (1, "red"), {"extra": 2})
    await sio.emit("e", 1, [], extra=2)
    assert sio.got == ("e", (1, None), {"room": [], "extra": 2})
    await sio.emit("e", 1, (), "red")
    assert sio.got == ("e", (1, None, []), {})
    sio.manager.set_server(sio)
    assert not hasattr(vars(sio)["emit"].__wrapped__, "__wrapped__"), "guarded twice"


# ------------------------------------------------------------------------------ nothing is left behind, or runs away


async def test_a_callback_that_was_never_asked_for_leaves_nothing(books: Books) -> None:
    sid = await books.connect()
    await books.run(books.manager.start)
    for wrong in (object(), float("nan"), {1, 2}):
        with pytest.raises(EncodeError):
            await books.run(books.sio.emit, "e", wrong, to=sid, callback=print)
        with pytest.raises(EncodeError):
            await books.run(books.sio.emit, "e", wrong, to="elsewhere", callback=print)
    with pytest.raises(OptionsError):
        await books.run(books.sio.emit, 5, to="elsewhere", callback=print)
    adapter = books.manager._node.peers.adapters["/"]
    assert adapter._requests == {}
    assert books.manager.callbacks == {}


async def test_a_tick_that_raises_is_not_the_last(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    for kind in (AsyncPostgresManager, PostgresManager):
        books = Books(kind, database.dsn, heartbeat_interval=0.1, heartbeat_timeout=60.0)
        await books.run(books.manager.start)
        ticks: list[float] = []
        real = books.manager._node.tick

        def tick(now: float, ticks: list[float] = ticks, real: Callable[[float], float] = real) -> float:
            ticks.append(now)
            if len(ticks) < 3:
                raise RuntimeError("a user's logger, for example")
            return real(now)

        with mock.patch.object(books.manager._node, "tick", tick):
            await eventually(lambda: len(ticks) > 4, "it ticks on")  # noqa: B023
        expected = ["a user's logger, for example"] * 2
        await eventually(lambda: [str(error) for error in books.errors] == expected, "it is told")  # noqa: B023
        await books.run(books.manager.close)
    assert "a heartbeat raised" in caplog.text


async def test_handlers_of_the_application_are_not_collected_while_they_run(database: Database) -> None:
    """The event loop alone keeps no task."""
    books = Books(AsyncPostgresManager, database.dsn)
    await books.manager.start()
    steps: list[str] = []

    async def news() -> None:
        steps.append("begun")
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        alive.append(lambda: waiting.set_result(None))
        await waiting
        steps.append("ended")

    alive: list[Callable[[], None]] = []
    books.manager.on_server_side("news", news)
    async with AsyncEmitter(database.dsn) as io:
        await io.server_side_emit("news")
    await eventually(lambda: steps == ["begun"], "the handler runs")
    gc.collect()
    assert any(task in books.manager._node.runner._background for task in asyncio.all_tasks())
    alive[0]()
    await eventually(lambda: steps == ["begun", "ended"], "the handler ends")
    await eventually(lambda: not books.manager._node.runner._background, "nothing is kept afterwards")
    await books.manager.close()


class Broken(logging.Logger):
    """An application's logger whose destination is gone, and which says so."""

    def handle(self, record: logging.LogRecord) -> None:
        """Fail for whatever matters."""
        if record.levelno > logging.INFO:
            raise OSError("disk full")


async def test_a_logger_that_raises_makes_nobody_deaf(database: Database) -> None:
    for kind in (AsyncPostgresManager, PostgresManager):
        books = Books(kind, database.dsn, logger=Broken("broken"))
        await books.connect()
        await books.run(books.manager.start)
        bad = {"type": 3, "uid": "other", "nsp": "/", "data": {"opts": {}, "packet": {"type": 2, "data": [5]}}}
        with database.connect() as connection:
            connection.execute("SELECT pg_notify('socket.io#/', %s)", [json.dumps(bad)])
        async with AsyncEmitter(database.dsn) as io:
            await io.emit("after")
        await eventually(lambda: '1:2["after"]' in books.take(), "it still listens")  # noqa: B023
        await eventually(lambda: len(books.errors) == 1, "it is told, once")  # noqa: B023
        await books.run(books.manager.close)
