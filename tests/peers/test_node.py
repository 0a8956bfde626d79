"""One cluster of a Node.js server and ours: the published packages on one side, python-socketio on the other.

Every sender, of either language, must reach the official JavaScript client and python-socketio's on either server.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

import psycopg
import pytest
import socketio
from psycopg.types.json import Jsonb

from socketio_postgres import AsyncEmitter, AsyncPostgresManager, Emitter
from socketio_postgres._cluster import adapter
from tests.fixtures.clients import Client, PythonClient
from tests.fixtures.cluster import CASES, MEGABYTE, NAMESPACES, Case, Cluster, OurSide, Role, exactly
from tests.fixtures.database import Database
from tests.fixtures.node import HEARTBEAT_S, NodePeer, NodeServer
from tests.fixtures.senders import (
    AsyncEmitterSender,
    Broadcast,
    EmitterSender,
    ManagerSender,
    NodeSender,
    Sender,
    SqlSender,
    TransactionSender,
)
from tests.fixtures.server import PythonServer
from tests.fixtures.spy import spying
from tests.fixtures.waiting import TIMEOUT_S, eventually

pytestmark = pytest.mark.usefixtures("node_packages")

BOTH = ("node", "ours")


@dataclass(frozen=True)
class SenderKind:
    """What a sender can do, and whom it reaches: the other half of the matrix."""

    name: str
    sides: tuple[str, ...] = BOTH
    """The official emitter's messages carry no `nsp`: current Node.js adapters drop them, ours must not."""
    knows_flags: bool = True
    """Whether it has Socket.IO's flags, rooms to leave out, and disconnecting with `close`."""
    is_sql: bool = False
    """Whether arguments are jsonb: without bytes and NUL, and with numbers that are numerics. It has no flags."""


NODE_SERVER = SenderKind("Node server")
NODE_EMITTER = SenderKind("Node emitter", sides=("ours",))
OUR_SERVER = SenderKind("our server", knows_flags=False)
OUR_WRITER = SenderKind("our write-only manager", knows_flags=False)
OUR_ASYNC_EMITTER = SenderKind("our AsyncEmitter")
OUR_EMITTER = SenderKind("our Emitter")
OUR_SQL = SenderKind("our SQL functions", is_sql=True)
OUR_TRANSACTION = SenderKind("our server in a transaction")

KINDS = (
    NODE_SERVER,
    NODE_EMITTER,
    OUR_SERVER,
    OUR_WRITER,
    OUR_ASYNC_EMITTER,
    OUR_EMITTER,
    OUR_SQL,
    OUR_TRANSACTION,
)


class Mixed:
    """The two servers, and any sender on demand."""

    def __init__(
        self, database: Database, peer: NodePeer, node: NodeServer, ours: OurSide, stack: AsyncExitStack
    ) -> None:
        self.database = database
        self.peer = peer
        self.node = node
        self.ours = ours
        self.cluster = Cluster({"node": node, "ours": ours})
        self._stack = stack

    def client(self, side: str, role: str) -> Client:
        """The client that plays a role on one side."""
        return self.cluster.clients[side, role]

    async def sender(self, kind: SenderKind) -> Sender:
        """Open a sender that lives as long as the cluster."""
        if kind is NODE_SERVER:
            return NodeSender(self.peer, "server")
        if kind is NODE_EMITTER:
            options = {"payloadThreshold": 7999}
            await self.peer.call("emitter.open", database={**self.database.node, "max": 1}, options=options)
            self._stack.push_async_callback(self.peer.call, "emitter.close")
            return NodeSender(self.peer, "emitter")
        if kind is OUR_SERVER:
            return ManagerSender(self.ours.manager, self.ours.server.sio)
        if kind is OUR_WRITER:
            manager = AsyncPostgresManager(self.database.dsn, write_only=True)
            self._stack.push_async_callback(manager.close)
            return ManagerSender(manager)
        if kind is OUR_EMITTER:
            return EmitterSender(self._stack.enter_context(Emitter(self.database.dsn)))
        return await self._awaiting_sender(kind)

    async def _awaiting_sender(self, kind: SenderKind) -> Sender:
        """One whose calls return when they are committed."""
        if kind is OUR_ASYNC_EMITTER:
            return AsyncEmitterSender(await self._stack.enter_async_context(AsyncEmitter(self.database.dsn)))
        connection = await psycopg.AsyncConnection.connect(self.database.dsn, autocommit=True)
        self._stack.push_async_callback(connection.close)
        if kind is OUR_SQL:
            await self.ours.manager.install_sql()
            await connection.execute("UPDATE socketio.settings SET max_bytes = 2000000")
            return SqlSender(connection)
        return TransactionSender(self.ours.manager, connection)


@pytest.fixture
async def mixed(database: Database) -> AsyncIterator[Mixed]:
    """Both servers count each other, and each has its cast of clients."""
    failures: list[Exception] = []
    async with AsyncExitStack() as stack:
        manager = AsyncPostgresManager(
            database.dsn, heartbeat_interval=HEARTBEAT_S, heartbeat_timeout=60.0, error_handler=failures.append
        )
        stack.push_async_callback(manager.close)
        server = await stack.enter_async_context(PythonServer(manager, NAMESPACES))
        await manager.start()
        peer = await stack.enter_async_context(NodePeer())
        # Node.js 0.5.0 tries to notify a payload of exactly 8000 bytes, which PostgreSQL refuses.
        node = await NodeServer.start(peer, database, NAMESPACES, ["news"], adapter={"payloadThreshold": 7999})
        stack.push_async_callback(node.close)
        mixed = Mixed(database, peer, node, OurSide(server, manager), stack)

        async def connect(side: str, url: str, role: Role) -> Client:
            label, auth = f"{side} {role.name}", {"rooms": role.rooms}
            if (side, role.name) == ("ours", "blue"):
                return await PythonClient.connect(url, label=label, namespace=role.namespace, auth=auth)
            return await peer.connect(url, label=label, namespace=role.namespace, auth=auth)

        await mixed.cluster.meet()
        await mixed.cluster.seat(connect)
        yield mixed
    assert peer.errors == []
    assert failures == []


MATRIX = [
    pytest.param(kind, case, id=f"{kind.name} - {case.name}")
    for kind in KINDS
    for case in CASES
    if (kind.knows_flags or not (case.has_flags or case.excepts_rooms)) and not (kind.is_sql and case.is_beyond_sql)
]


@pytest.mark.parametrize(("kind", "case"), MATRIX)
async def test_broadcast(mixed: Mixed, kind: SenderKind, case: Case) -> None:
    await case.check(mixed.cluster, await mixed.sender(kind), kind.sides)


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind.knows_flags and not kind.is_sql], ids=lambda kind: kind.name
)
async def test_flags_and_rooms_on_the_wire(mixed: Mixed, kind: SenderKind) -> None:
    """Clients cannot see flags; what servers are told must be the same whoever tells it."""
    sender = await mixed.sender(kind)
    async with spying(mixed.database) as spy:
        await sender.send(
            Broadcast("a", volatile=True, compress=False, to=("red", "blue"), except_=("green",)), Broadcast("b")
        )
        [flagged], [plain] = await spy.wait_for_broadcast("a"), await spy.wait_for_broadcast("b")
    assert flagged.message["data"]["opts"] == {
        "rooms": ["red", "blue"],
        "except": ["green"],
        "flags": {"volatile": True, "compress": False},
    }
    assert plain.message["data"]["opts"] == {"rooms": [], "except": [], "flags": {}}


SENDER = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


@SENDER
@pytest.mark.parametrize("letter", ["x", "é"])
async def test_payloads_around_the_limit(mixed: Mixed, kind: SenderKind, letter: str) -> None:
    """PostgreSQL takes 7999 bytes; one more must travel as an attachment."""
    sender = await mixed.sender(kind)
    width = len(json.dumps(letter)[1:-1] if kind is OUR_TRANSACTION else letter.encode())  # the first writes ASCII
    async with spying(mixed.database) as spy:
        # Our messages are numbered: from here on with three digits, whatever heartbeats come in between.
        await sender.send(*(Broadcast("warm", (number,)) for number in range(100)))
        await sender.send(Broadcast("size", ("",)))
        [empty] = await spy.wait_for_broadcast("size")
        for count, size in enumerate((7999, 8000, 8001), start=2):
            letters, rest = divmod(size - empty.payload_bytes, width)
            text = letter * letters + "." * rest
            await sender.send(Broadcast("size", (text,)))
            frame = (await spy.wait_for_broadcast("size", count))[-1]
            if size <= 7999:
                assert frame.payload_bytes == size
            else:
                assert frame.attachment is not None
            for side in kind.sides:
                for role in ("red", "blue"):
                    assert (await mixed.client(side, role).wait_for("size", count))[-1] == (text,)


@pytest.mark.parametrize("kind", [OUR_SERVER, OUR_ASYNC_EMITTER], ids=lambda kind: kind.name)
async def test_headers_that_name_rooms(mixed: Mixed, kind: SenderKind) -> None:
    """Node.js takes no notice of them, and reads the row as ever."""
    sender = await mixed.sender(kind)
    async with spying(mixed.database) as spy:
        await sender.send(Broadcast("upload", (b"binary",), to=("red",)), Broadcast("upload", (b"to all",)))
        red, everybody = await spy.wait_for_broadcast("upload", 2)
    assert (red.header["rooms"], everybody.header["rooms"]) == (["red"], [])
    for side in kind.sides:
        assert await mixed.client(side, "blue").wait_for("upload") == [(b"to all",)]
        assert sorted(await mixed.client(side, "red").wait_for("upload", 2)) == [(b"binary",), (b"to all",)]


@SENDER
async def test_a_burst_of_equal_events_arrives_whole(mixed: Mixed, kind: SenderKind) -> None:
    """PostgreSQL drops equal notifications within a transaction, so whoever groups must tell them apart."""
    sender = await mixed.sender(kind)
    await sender.send(*[Broadcast("tick")] * 100)
    for side in kind.sides:
        for role in ("red", "blue"):
            await mixed.client(side, role).wait_for("tick", 100)
    await mixed.cluster.fence(sender, kind.sides)
    for side in kind.sides:
        for role in ("red", "blue"):
            assert mixed.client(side, role).received("tick") == [()] * 100


@SENDER
async def test_order(mixed: Mixed, kind: SenderKind) -> None:
    """Our side delivers as PostgreSQL committed, however long an attachment takes; ours commit in call order."""
    binary = "binary" if kind.is_sql else b"binary"
    bodies: list[object] = ["small", "large" * 2000, binary, "x" * 7000, "huge" * (MEGABYTE // 10)]
    numbers = list(range(60))
    sender = await mixed.sender(kind)
    async with spying(mixed.database) as spy:
        await sender.send(*(Broadcast("step", (number, bodies[number % len(bodies)])) for number in numbers))
        frames = await spy.wait_for_broadcast("step", len(numbers))
        for side in kind.sides:
            for role in ("red", "blue"):
                await mixed.client(side, role).wait_for("step", len(numbers))
    committed = [frame.message["data"]["packet"]["data"][1] for frame in frames]
    if kind in (NODE_SERVER, NODE_EMITTER):
        assert sorted(committed) == numbers  # it inserts an attachment first and announces it later
    else:
        assert committed == numbers
    for role in ("red", "blue"):
        received = mixed.client("ours", role).received("step")
        assert [number for number, _ in received] == committed
        assert all(body == bodies[int(number) % len(bodies)] for number, body in received)


REMOTE = [
    pytest.param(kind, side, id=f"{kind.name} - client of {side}")
    for kind in KINDS
    for side in kind.sides
    if (kind, side) not in ((NODE_SERVER, "node"), (OUR_SERVER, "ours"))
]


@pytest.mark.parametrize(("kind", "side"), REMOTE)
async def test_remote_rooms(mixed: Mixed, kind: SenderKind, side: str) -> None:
    sender, red, blue = await mixed.sender(kind), mixed.client(side, "red"), mixed.client(side, "blue")

    async def rooms(client: Client) -> set[str]:
        return await mixed.cluster.sides[side].rooms(client.sid)

    async def red_joined() -> bool:
        return await rooms(red) == {red.sid, "red", "green"}

    async def red_left() -> bool:
        return await rooms(red) == {red.sid, "green"}

    async def blue_closed() -> bool:
        return await rooms(blue) == {blue.sid}

    await sender.join(red.sid, "green")
    await eventually(red_joined, "red joins green")
    await sender.send(Broadcast("hello", to=("green",)))
    await red.wait_for("hello")
    await mixed.cluster.fence(sender, kind.sides)
    assert [client for client in mixed.cluster.clients.values() if client.received("hello")] == [red]
    await sender.leave(red.sid, "red")
    await eventually(red_left, "red leaves red")
    await sender.close_room("blue")
    await eventually(blue_closed, "room blue is closed")


DISCONNECTS = [
    pytest.param(*param.values, close, id=f"{param.id}{' and connection' if close else ''}")
    for param in REMOTE
    for close in (False, True)
    if not close or (isinstance(param.values[0], SenderKind) and param.values[0].knows_flags)
]


@pytest.mark.parametrize(("kind", "side", "close"), DISCONNECTS)
async def test_remote_disconnect(mixed: Mixed, kind: SenderKind, side: str, close: bool) -> None:
    sender, server = await mixed.sender(kind), mixed.cluster.sides[side]
    target = await mixed.peer.connect(server.url, label="target")
    neighbour = await mixed.peer.connect(server.url, label="neighbour", namespace="/admin", shares=target)
    await sender.send(Broadcast("last words", to=(target.sid,)))
    await sender.disconnect(target.sid, close=close)
    assert await target.wait_for_disconnect() == "io server disconnect"
    assert target.received("last words") == [()]

    async def is_gone() -> bool:
        return target.sid not in await server.sids()

    await eventually(is_gone, "the server forgets the client")
    if close:
        await neighbour.wait_for_disconnect()
    else:
        await mixed.cluster.fence(sender, kind.sides)
        await eventually(lambda: neighbour.received("fence") != [], "the neighbour is still there")
        assert neighbour.disconnects == []
    assert mixed.client(side, "red").disconnects == []


@pytest.mark.parametrize("kind", [OUR_ASYNC_EMITTER, OUR_EMITTER, OUR_SQL, OUR_TRANSACTION], ids=lambda kind: kind.name)
async def test_our_emitters_reach_node_servers_themselves(mixed: Mixed, kind: SenderKind) -> None:
    args = [1, {"a": [None, "é"]}, "x" * 9000 if kind is OUR_SQL else b"\x00\xff"]
    if kind is OUR_SQL:
        await mixed.ours.manager.install_sql()
        mixed.database.value("SELECT socketio.server_side_emit('news', %s, '/admin')::text", Jsonb(args))
    elif kind is OUR_ASYNC_EMITTER:
        async with AsyncEmitter(mixed.database.dsn) as emitter:
            await emitter.of("admin").server_side_emit("news", *args)
    elif kind is OUR_TRANSACTION:
        async with await psycopg.AsyncConnection.connect(mixed.database.dsn) as connection:
            await mixed.ours.manager.in_transaction(connection).of("admin").server_side_emit("news", *args)
    else:
        with Emitter(mixed.database.dsn) as blocking:
            blocking.of("/admin").server_side_emit("news", *args)
    [event] = await mixed.peer.wait_for("server.serverSideEvent", namespace="/admin")
    assert exactly(event["args"]) == exactly(args)


async def test_every_length_in_a_transaction(mixed: Mixed) -> None:
    """Text, bytes, arrays and maps, of the lengths where MessagePack changes how it writes them, with a rollback."""
    values: list[object] = []
    for length in (0, 15, 16, 31, 32, 255, 256, 65_535, 65_536):
        values += ["x" * length, "é" * length, bytes(length), [length] * length]
        if length < 65_535:
            values += [{str(number): number for number in range(length)}, [b"x", *[{"a": length}] * length]]
    async with await psycopg.AsyncConnection.connect(mixed.database.dsn) as connection:
        chain = mixed.ours.manager.in_transaction(connection)
        await chain.emit_many([("length", "lost", value) for value in values])
        await connection.rollback()
        await chain.emit_many([("length", value) for value in values])
    for side, role in (("node", "red"), ("ours", "red"), ("ours", "blue")):
        client = mixed.client(side, role)
        received = await client.wait_for("length", len(values))
        # Node.js reads attachments side by side, so that a small one overtakes a large one.
        by_text = [exactly(args) for args in received]
        expected = [exactly((value,)) for value in values]
        assert sorted(by_text) == sorted(expected) if side == "node" else by_text == expected, client


async def test_acknowledgements_of_node_clients(mixed: Mixed) -> None:
    """Node.js passes the first argument of an acknowledgement on."""
    answer = await mixed.ours.server.sio.call(
        "ask", ("a", b"\x01"), to=mixed.client("node", "red").sid, timeout=TIMEOUT_S
    )
    assert answer == "a"
    answer = await mixed.ours.server.sio.call("ask", b"\x01", to=mixed.client("node", "red").sid, timeout=TIMEOUT_S)
    assert answer == b"\x01"


async def test_acknowledgements_of_our_clients(mixed: Mixed) -> None:
    answers = await mixed.peer.call(
        "server.emitWithAck", name="ask", args=[b"\x01"], flags={"timeout": TIMEOUT_S * 1000}
    )
    assert answers == [b"\x01"] * 6


async def test_each_counts_the_other_until_it_leaves(mixed: Mixed, database: Database) -> None:
    async with NodePeer("second Node") as peer:
        second_node = await NodeServer.start(peer, database, NAMESPACES)
        second = AsyncPostgresManager(database.dsn)
        async with PythonServer(second, NAMESPACES) as server:
            await second.start()
            cluster = Cluster({**mixed.cluster.sides, "Node 2": second_node, "ours 2": OurSide(server, second)})
            await cluster.meet(count=4)
        await second.close()
        await mixed.cluster.meet(count=3)
        await eventually(lambda: _counts(second_node, 3), "so does the other Node")
        await second_node.close()
        await mixed.cluster.meet(count=2)


SILENT_SERVER = """
import asyncio, sys, socketio
from socketio_postgres import AsyncPostgresManager

async def main():
    manager = AsyncPostgresManager(sys.argv[1], heartbeat_interval=0.2)
    socketio.AsyncServer(client_manager=manager, async_mode="asgi")
    await manager.start()
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_whoever_dies_is_no_longer_counted(database: Database) -> None:
    """Nobody says goodbye here: silence alone must do, on both sides."""
    manager = AsyncPostgresManager(database.dsn, heartbeat_interval=HEARTBEAT_S, heartbeat_timeout=3.0)
    async with PythonServer(manager) as server, NodePeer("survivor") as survivor, NodePeer("victim") as victim:
        await manager.start()
        node = await NodeServer.start(survivor, database, adapter={"heartbeatTimeout": 3000})
        await NodeServer.start(victim, database)
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", SILENT_SERVER, database.dsn)
        try:
            cluster = Cluster({"node": node, "ours": OurSide(server, manager)})
            await eventually(lambda: manager.server_count() == 4, "ours counts both victims")
            await eventually(lambda: _counts(node, 4), "Node counts both victims")
        finally:
            process.kill()
            await process.wait()
        victim.kill()
        await cluster.meet(["/"], 2)
    await manager.close()


async def _counts(node: NodeServer, count: int) -> bool:
    return await node.server_count() == count


async def test_a_node_server_that_comes_later_is_met_at_once(mixed: Mixed) -> None:
    """With heartbeats switched off in practice, the answers to the first announcement must do."""
    async with NodePeer("late") as late:
        server = await NodeServer.start(late, mixed.database, adapter={"heartbeatInterval": 60_000})
        await eventually(lambda: mixed.ours.manager.server_count() == 3, "ours hears the announcement")
        await server.close()
        await eventually(lambda: mixed.ours.manager.server_count() == 2, "ours hears the goodbye")


async def test_a_newcomer_asks_a_node_server_that_it_does_not_know_yet(
    mixed: Mixed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing tells of Node.js servers before they speak; they answer the question itself."""
    # A slow machine must not end the wait.
    monkeypatch.setattr(adapter, "FOREIGN_ANSWER", 10.0)
    monkeypatch.setattr(adapter, "NATIVE_ANSWER", TIMEOUT_S)
    node_client = await mixed.peer.connect(mixed.node.url, label="on Node")
    before = {each.id for each in await mixed.ours.manager.fetch_sockets()}
    assert node_client.sid in before
    for ask in ("fetch_sockets", "emit_with_ack"):
        newcomer = AsyncPostgresManager(mixed.database.dsn)
        socketio.AsyncServer(client_manager=newcomer, async_mode="asgi")
        try:
            await newcomer.start()
            # As if the answers to its announcement were still on their way.
            newcomer._node.peers.adapters["/"]._peers.clear()
            if ask == "fetch_sockets":
                assert {each.id for each in await newcomer.timeout(TIMEOUT_S).fetch_sockets()} == before
            else:
                assert len(await newcomer.timeout(TIMEOUT_S).emit_with_ack("ask")) == len(before)
        finally:
            await newcomer.close()


async def test_a_node_client_acknowledges_to_who_does_not_know_its_server(mixed: Mixed) -> None:
    client = await mixed.peer.connect(mixed.node.url, label="on Node")
    manager = mixed.ours.manager
    manager._node.peers.adapters["/"]._peers.clear()
    assert await manager.server.call("ask", b"\x01", to=client.sid, timeout=TIMEOUT_S) == b"\x01"


async def test_a_handler_hears_a_node_server_in_a_namespace_without_clients(mixed: Mixed, database: Database) -> None:
    heard: list[tuple[object, ...]] = []
    mixed.ours.manager.on_server_side("job", lambda *args: heard.append(args), namespace="/jobs")
    async with NodePeer("jobs") as peer:
        node = await NodeServer.start(peer, database, ("/jobs",))
        await eventually(lambda: mixed.ours.manager.server_count("/jobs") == 2, "they meet in the namespace")
        await peer.call("server.serverSideEmit", namespace="/jobs", name="job", args=[1])
        await eventually(lambda: heard == [(1,)], "the handler is called")
        await node.close()


async def test_other_names_for_channel_and_table(database: Database) -> None:
    """Options of the adapter that both sides must read alike."""
    adapter = {"channelPrefix": "chat", "tableName": "chat_attachments", "payloadThreshold": 100}
    manager = AsyncPostgresManager(database.dsn, channel="chat", table_name="chat_attachments", payload_threshold=100)
    async with PythonServer(manager) as server, NodePeer() as peer:
        await manager.start()
        node = await NodeServer.start(peer, database, adapter=adapter)
        await Cluster({"node": node, "ours": OurSide(server, manager)}).meet(["/"])
        ours = await peer.connect(server.url, label="ours")
        theirs = await peer.connect(node.url, label="theirs")
        text = "x" * 100
        async with spying(database, ["chat#/"], "chat_attachments") as spy:
            await server.sio.emit("hello", text)
            await peer.call("server.emit", name="hello", args=[text])
            for client in (ours, theirs):
                assert await client.wait_for("hello", 2) == [(text,)] * 2
            assert all(frame.attachment for frame in await spy.wait_for_broadcast("hello", 2))
        await node.close()
        assert peer.errors == []
    await manager.close()
    assert database.value("SELECT to_regclass('socket_io_attachments') IS NULL")


async def test_a_case_that_must_fail_here(mixed: Mixed) -> None:
    """The check sees a message that somebody else sent to too many."""
    case = replace(CASES[0], reaches=frozenset({"red"}))
    with pytest.raises(AssertionError):
        await case.check(mixed.cluster, await mixed.sender(OUR_EMITTER), BOTH)
