"""What messages cost, as numbers that do not depend on any speed: round trips, transactions, WAL, encodings.

The figures of benches/REPORT.md differ from machine to machine; these must not.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import engineio.json
import psycopg
import pytest
import socketio
import socketio.packet
from engineio.async_socket import AsyncSocket

from socketio_postgres import AsyncEmitter, AsyncPostgresManager, Emitter
from socketio_postgres._cluster import socketio_delivery
from tests.fixtures.bus import BusReader
from tests.fixtures.database import Database
from tests.fixtures.postgres import OwnPostgres
from tests.fixtures.proxy import Proxy
from tests.fixtures.tally import Spoken, Tally
from tests.fixtures.waiting import TIMEOUT_S, eventually

CHANNEL = "socket.io#/"
# Nothing but what the tests do writes WAL or takes transaction ids.
QUIET = {"autovacuum": "off", "wal_level": "minimal", "max_wal_senders": "0", "checkpoint_timeout": "1h"}

COMMIT_RECORD_BYTES = 200
"""More than one transaction that only notifies writes: its commit record, and the end of a page now and then."""


@pytest.fixture(scope="module")
def quiet() -> Iterator[Database]:
    with OwnPostgres(**QUIET) as server:
        yield server.database


@dataclass(frozen=True)
class Cost:
    """What a server counted."""

    xids: int
    wal_bytes: int

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.xids - other.xids, self.wal_bytes - other.wal_bytes)


class Meter:
    """Reads what a server has counted, which costs it nothing of that."""

    def __init__(self, database: Database) -> None:
        self.connection = database.connect()

    @property
    def now(self) -> Cost:
        query = (
            "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint, "
            "pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint"
        )
        row = self.connection.execute(query).fetchone()
        assert row is not None
        return Cost(*row)


@pytest.fixture
def meter(quiet: Database) -> Iterator[Meter]:
    one = Meter(quiet)
    yield one
    one.connection.close()


@pytest.fixture
def proxy(quiet: Database) -> Iterator[Proxy]:
    with Proxy(quiet) as one:
        yield one


@pytest.fixture
def tally(proxy: Proxy) -> Tally:
    return Tally(proxy)


@pytest.fixture
async def io(tally: Tally) -> AsyncIterator[AsyncEmitter]:
    """An emitter that is connected and knows the table."""
    async with AsyncEmitter(tally.dsn) as emitter:
        await emitter.emit("first")
        await emitter.emit("first", b"binary")
        yield emitter


async def test_an_awaited_emit_is_one_round_trip(io: AsyncEmitter, tally: Tally, meter: Meter) -> None:
    spoken, cost = tally.now, meter.now
    for number in range(20):
        await io.to("room").emit("chat", number)
    assert tally.now - spoken == Spoken(round_trips=20, statements=20)
    cost = meter.now - cost
    assert cost.xids == 20
    assert cost.wal_bytes <= 20 * COMMIT_RECORD_BYTES


async def test_an_attachment_and_its_notification_are_one_round_trip(
    io: AsyncEmitter, tally: Tally, meter: Meter
) -> None:
    body = os.urandom(100_000)  # not to be compressed
    spoken, cost = tally.now, meter.now
    await io.emit("large", body)
    assert tally.now - spoken == Spoken(round_trips=1, statements=1)
    cost = meter.now - cost
    assert cost.xids == 1
    assert cost.wal_bytes <= 2 * COMMIT_RECORD_BYTES, "the table is unlogged; its sequence may not be"


def test_what_waits_for_a_commit_shares_the_next_one(quiet: Database, proxy: Proxy, tally: Tally, meter: Meter) -> None:
    with Emitter(tally.dsn) as io, psycopg.connect(quiet.dsn, autocommit=True) as listener:
        listener.execute(f'LISTEN "{CHANNEL}"')
        io.emit("first")
        io.flush()
        [link] = proxy.links
        list(listener.notifies(timeout=TIMEOUT_S, stop_after=1))
        spoken, cost = tally.now, meter.now
        link.freeze("to_client")
        io.emit("chat", 0)
        [notify] = listener.notifies(timeout=TIMEOUT_S, stop_after=1)  # committed, and nobody has been told
        assert '["chat",0]' in notify.payload
        for number in range(1, 1001):
            io.emit("chat", number)
        link.thaw()
        io.flush()
        assert tally.now - spoken == Spoken(round_trips=2, statements=2)
        cost = meter.now - cost
        assert cost.xids == 2
        assert cost.wal_bytes <= 2 * COMMIT_RECORD_BYTES


async def test_receiving_asks_nothing(quiet: Database, tally: Tally) -> None:
    async with BusReader(quiet, dsn=tally.dsn, heartbeat_timeout=3600.0) as reader, AsyncEmitter(quiet.dsn) as io:
        await io.emit("first")
        await reader.wait_for(1)
        await eventually(lambda: reader.listens == 1, "the session is set up")
        spoken = tally.now
        for number in range(50):
            await io.emit("chat", number)
        await reader.wait_for(51)
        assert tally.now - spoken == Spoken(round_trips=0, statements=0)


async def test_an_attachment_is_fetched_in_one_round_trip(quiet: Database, tally: Tally) -> None:
    async with BusReader(quiet, dsn=tally.dsn, heartbeat_timeout=3600.0) as reader, AsyncEmitter(quiet.dsn) as io:
        await io.emit("first", b"binary")
        await reader.wait_for(1)
        await eventually(lambda: reader.listens == 1, "the session is set up")
        spoken = tally.now
        await io.emit("large", b"x" * 50_000)
        await reader.wait_for(2)
        assert tally.now - spoken == Spoken(round_trips=1, statements=1)


async def test_an_attachment_for_nobody_here_is_not_fetched(quiet: Database, tally: Tally) -> None:
    async with BusReader(quiet, dsn=tally.dsn, heartbeat_timeout=3600.0) as reader, AsyncEmitter(quiet.dsn) as io:
        core = reader.bus.core
        core.mirror_rooms()
        core.enter_room("/", None)
        core.enter_room("/", "here")
        await io.emit("first", b"binary")
        await reader.wait_for(1)
        await eventually(lambda: reader.listens == 1, "the session is set up")
        spoken = tally.now
        await io.to("elsewhere").emit("large", b"x" * 50_000)
        await io.in_("elsewhere").sockets_join(["x" * 9000])
        await io.to("here").emit("small")
        await reader.wait_for(2)
        assert tally.now - spoken == Spoken(round_trips=0, statements=0)
        stats = reader.stats
        assert (stats["attachments_skipped"], stats["irrelevant"], stats["gaps"]) == (2, 2, 0)
        await io.to(["elsewhere", "here"]).emit("large", b"x" * 50_000)
        await reader.wait_for(3)
        assert tally.now - spoken == Spoken(round_trips=1, statements=1)
        # Names too long for the header, and a header of another package, that names none.
        await io.to(["x" * 5000]).emit("large", b"x" * 50_000)
        await eventually(lambda: reader.stats["attachments"] == 3, "the first is read")
        with quiet.connect() as connection:
            connection.execute(
                'SELECT pg_notify(%s, format(\'{"uid":"emitter","type":3,"attachmentId":"%%s"}\', max(id)))'
                " FROM socket_io_attachments",
                (CHANNEL,),
            )
        await eventually(lambda: reader.stats["attachments"] == 4, "so is the second")
        assert tally.now - spoken == Spoken(round_trips=3, statements=3)
        assert (reader.stats["irrelevant"], reader.stats["attachments_skipped"]) == (4, 2)


# ------------------------------------------------------------------------------------------------ encodings


class Members:
    """A server whose clients never read: their queues show what each would be sent."""

    def __init__(self, manager: AsyncPostgresManager) -> None:
        self.sio = socketio.AsyncServer(client_manager=manager, async_mode="asgi")
        self.sio.manager_initialized = True
        self.manager = manager
        self.sockets: list[AsyncSocket] = []

    async def join(self, count: int) -> None:
        await self.manager.start()
        for number in range(count):
            eio_sid = f"eio{number}"
            socket = AsyncSocket(self.sio.eio, eio_sid)
            self.sio.eio.sockets[eio_sid] = socket
            self.sockets.append(socket)
            await self.manager.connect(eio_sid, "/")

    async def received(self, count: int) -> list[list[Any]]:
        """So many packets of each client."""

        async def of(socket: AsyncSocket) -> list[Any]:  # Python 3.10 cannot await in a comprehension within another
            return [await socket.queue.get() for _ in range(count)]

        return [await of(socket) for socket in self.sockets]


@pytest.fixture
async def members(database: Database, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Members]:
    monkeypatch.setattr(socketio.packet.Packet, "json", engineio.json)  # servers of other tests have their own
    one = Members(AsyncPostgresManager(database.dsn))
    await one.join(10)
    yield one
    await one.manager.close()


def counting(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> Callable[[], int]:
    """Count the calls of a function from now on."""
    original = getattr(owner, name)
    calls = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)
    return lambda: calls


async def test_a_broadcast_is_encoded_once(members: Members, monkeypatch: pytest.MonkeyPatch) -> None:
    dumps = counting(monkeypatch, engineio.json, "dumps")
    encode = counting(monkeypatch, socketio.packet.Packet, "encode")
    await members.sio.emit("chat", {"number": 1})
    packets = [packet for [packet] in await members.received(1)]
    # One object for all: Engine.IO keeps its text with it.
    assert len({id(packet) for packet in packets}) == 1
    assert packets[0].data == '2["chat",{"number":1}]'
    assert (dumps(), encode()) == (1, 0), "the text for the bus is the one for the clients"


async def test_a_broadcast_with_acknowledgements_is_encoded_once(
    members: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    dumps = counting(monkeypatch, engineio.json, "dumps")
    encode = counting(monkeypatch, socketio.packet.Packet, "encode")
    sids = [sid for sid, _ in members.manager.get_participants("/", None)]
    await members.manager.emit("chat", {"number": 1}, "/", room=sids, callback=print)
    assert [packet.data for [packet] in await members.received(1)] == ['21["chat",{"number":1}]'] * 10
    await members.manager.emit("chat", 2, "/", room=sids[:1], callback=print)
    assert members.sockets[0].queue.get_nowait().data == '22["chat",2]'
    assert (dumps(), encode()) == (2, 0)


@pytest.mark.parametrize("data", [None, 'e"', {"a": [1, 2.5, None]}, ("two", {"of": "them"}), b"binary", [b"x", "y"]])
async def test_acknowledged_events_are_those_of_python_socketio(
    members: Members, monkeypatch: pytest.MonkeyPatch, data: object
) -> None:
    """By either way clients get the same, and answer to the same."""
    sids = [sid for sid, _ in members.manager.get_participants("/", None)]
    found = []
    for is_known in (True, False):
        monkeypatch.setattr(socketio_delivery, "IS_KNOWN", is_known)
        answers: list[tuple[object, ...]] = []
        members.manager.callbacks.clear()
        await members.manager.emit(
            "chat", data, "/", room=sids, skip_sid=sids[3], callback=lambda *args, to=answers: to.append(args)
        )
        sent = [[socket.queue.get_nowait().encode() for _ in range(socket.queue.qsize())] for socket in members.sockets]
        asked = {sid: sorted(ids) for sid, ids in members.manager.callbacks.items()}
        await members.manager.trigger_callback(sids[0], 1, ["yes", 2])
        await eventually(lambda answers=answers: answers == [("yes", 2)], "the first answer counts")  # type: ignore[misc]
        found.append((sent, asked))
    assert found[0] == found[1]
    assert found[0][0][3] == [], "it was left out"
    assert all(packets for number, packets in enumerate(found[0][0]) if number != 3)


async def test_json_from_elsewhere_is_neither_decoded_nor_encoded(
    members: Members, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = [counting(monkeypatch, engineio.json, name) for name in ("dumps", "loads")]
    text = '["chat",{"b":1.50,"a":"\\u00e9","b":2}]'  # no encoder writes it like this
    message = '{"uid":"emitter","nsp":"/","type":3,"data":{"packet":{"type":2,"nsp":"/","data":%s},"opts":{}}}'
    with database.connect() as connection:
        connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL, message % text))
    packets = [packet for [packet] in await members.received(1)]
    assert len({id(packet) for packet in packets}) == 1
    assert packets[0].data == f"2{text}"
    assert [count() for count in calls] == [0, 0]
