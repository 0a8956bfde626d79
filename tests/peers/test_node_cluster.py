"""What a Node.js `setupPrimary` cluster hears of PostgreSQL: the facts behind the `source` that we send."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest

from socketio_postgres import AsyncPostgresManager
from tests.fixtures.clients import Client, PythonClient
from tests.fixtures.database import Database
from tests.fixtures.node import FOLDER, NodePeer, NodeServer
from tests.fixtures.node_cluster import AdminPeer, NodeCluster
from tests.fixtures.server import PythonServer
from tests.fixtures.spy import spying
from tests.fixtures.waiting import TIMEOUT_S, eventually, nothing_arrives

pytestmark = pytest.mark.usefixtures("node_packages")

SOURCE = "_sio_adapter"


@dataclass
class Mixed:
    """A standalone server and a cluster of two workers, with one client each."""

    alone: NodePeer
    cluster: NodeCluster
    servers: list[NodeServer]
    clients: list[Client]
    """Of the standalone server, then of each worker."""


@pytest.fixture
async def mixed(database: Database) -> AsyncIterator[Mixed]:
    async with AsyncExitStack() as stack:
        alone = await stack.enter_async_context(NodePeer("alone"))
        cluster = await stack.enter_async_context(NodeCluster())
        peers = [alone, *await cluster.open(database)]
        servers = [await NodeServer.start(peer, database, server_side_events=["news"]) for peer in peers]
        clients: list[Client] = [
            await peer.connect(server.url, label=peer.label) for peer, server in zip(peers, servers, strict=True)
        ]
        # Workers hear each other through the primary; the primary listens once a worker has announced itself.
        await eventually(lambda: _all_know(servers[:1], 3), "the standalone server hears both workers")
        await eventually(lambda: _all_know(servers[1:], 2), "the workers hear each other")
        yield Mixed(alone, cluster, servers, clients)


async def _all_know(servers: list[NodeServer], count: int) -> bool:
    return [await server.server_count() for server in servers] == [count] * len(servers)


def broadcast(event: str, **more: object) -> dict[str, object]:
    """A message as the standalone adapter sends it."""
    return {
        "type": 3,
        "data": {
            "packet": {"type": 2, "data": [event], "nsp": "/"},
            "opts": {"rooms": [], "except": [], "flags": {}},
        },
        "uid": "somebody",
        "nsp": "/",
        **more,
    }


async def test_a_standalone_server_hears_the_workers_and_is_not_heard(mixed: Mixed, database: Database) -> None:
    """The workers' messages carry `source`; those of a standalone server do not, and workers drop them."""
    worker = mixed.cluster.workers[0]
    async with spying(database) as spy:
        await mixed.alone.call("server.emit", name="from-alone")
        await worker.call("server.emit", name="from-worker")
        [alone] = await spy.wait_for_broadcast("from-alone")
        [cluster] = await spy.wait_for_broadcast("from-worker")
    assert "source" not in alone.message
    assert cluster.message["source"] == SOURCE
    for client in mixed.clients:
        await client.wait_for("from-worker")
    await nothing_arrives()
    assert [len(client.received("from-alone")) for client in mixed.clients] == [1, 0, 0]
    counts = [await server.server_count() for server in mixed.servers]
    assert counts == [3, 2, 2]  # for the workers the standalone server does not exist


async def test_source_is_what_it_takes(mixed: Mixed, database: Database) -> None:
    async with spying(database) as spy:
        spy.notify("socket.io#/", broadcast("without"))
        spy.notify("socket.io#/", broadcast("with", source=SOURCE))
        # In an attachment it must be inside: the primary reads the row and forwards nothing of the header.
        inside = spy.attach(broadcast("inside", source=SOURCE))
        spy.notify("socket.io#/", {"uid": "somebody", "type": 3, "nsp": "/", "attachmentId": inside})
        outside = spy.attach(broadcast("outside"))
        spy.notify("socket.io#/", {"uid": "somebody", "type": 3, "nsp": "/", "attachmentId": outside, "source": SOURCE})
        spy.notify("socket.io#/", broadcast("last", source=SOURCE))
    for client in mixed.clients:
        for event in ("with", "inside", "last"):
            await client.wait_for(event)
    for event in ("without", "outside"):
        await mixed.clients[0].wait_for(event)  # a row is read beside the messages after it
    await nothing_arrives()
    for event in ("without", "outside"):
        assert [len(client.received(event)) for client in mixed.clients] == [1, 0, 0], event


async def test_only_senders_with_source_are_counted_as_servers(mixed: Mixed, database: Database) -> None:
    """A worker waits for the answers of those it counts, so our heartbeats must carry `source` as well."""
    async with spying(database) as spy:
        spy.notify("socket.io#/", {"type": 2, "uid": "without", "nsp": "/"})
        spy.notify("socket.io#/", {"type": 2, "uid": "with", "nsp": "/", "source": SOURCE})
        await eventually(lambda: _all_know(mixed.servers[1:], 3), "the workers count one of the two")
        await eventually(lambda: _all_know(mixed.servers[:1], 5), "the standalone server counts both")


async def test_the_workers_requests_come_from_the_database(mixed: Mixed) -> None:
    """The standalone server is asked, and its answers are dropped for want of `source`: upstream's own gap."""
    sockets = await mixed.cluster.workers[0].call("server.fetchSockets")
    assert {socket["id"] for socket in sockets} == {client.sid for client in mixed.clients[1:]}


async def test_the_cluster_repeats_its_own_attachments(mixed: Mixed) -> None:
    """Upstream: the header of an attachment has no `nodeId`, so the primary takes its own for somebody else's."""
    await mixed.cluster.workers[0].call("server.emit", name="binary", args=[b"\x01" * 9000])
    alone, first, second = mixed.clients
    await second.wait_for("binary", 2)  # from the primary directly, and once more from PostgreSQL
    await alone.wait_for("binary")
    await nothing_arrives()
    assert [len(client.received("binary")) for client in (alone, first, second)] == [1, 1, 2]


def test_setup_primary_throws_as_published() -> None:
    """Upstream: it reads `require("cluster").default`, which Node.js does not have; cluster.js puts it there."""
    script = "require('@socket.io/postgres-adapter').setupPrimary({})"
    done = subprocess.run(["node", "-e", script], cwd=FOLDER, capture_output=True, text=True, check=False, timeout=60)  # noqa: S607
    assert done.returncode != 0
    assert "reading 'isPrimary'" in done.stderr


async def test_the_admin_ui_lists_the_sockets_of_other_servers(database: Database) -> None:
    async with AdminPeer("admin") as admin, NodePeer("other") as other:
        watched = await NodeServer.start(admin, database)
        server = await NodeServer.start(other, database, ["/", "/admin"])
        await eventually(lambda: _all_know([watched, server], 2), "they know each other")
        client = await other.connect(server.url, label="client", auth={"rooms": ["red"]})
        ui = await admin.connect(watched.url, label="ui", namespace="/admin")
        [(found,)] = await ui.wait_for("all_sockets")
        [entry] = [socket for socket in found if socket["id"] == client.sid]
        assert set(entry["rooms"]) == {client.sid, "red"}
        assert entry["handshake"]["headers"]["host"] in server.url
        assert await ui.wait_for("server_stats")
        assert admin.errors == []


async def test_a_python_server_is_a_full_member_for_the_workers(mixed: Mixed, database: Database) -> None:
    """Counted, heard with small and large messages, and answering; all of it needs `source`."""
    manager = AsyncPostgresManager(database.dsn, heartbeat_interval=0.2, heartbeat_timeout=60.0)
    async with PythonServer(manager) as server:
        await manager.start()
        await eventually(lambda: _all_know(mixed.servers[1:], 3), "the workers count the Python server")
        await eventually(lambda: manager.server_count() == 1 + len(mixed.servers), "it counts all of them")
        client = await PythonClient.connect(server.url, replies={"ask": ["python"]})
        await manager.of("/").emit("small", 1)
        await manager.of("/").emit("large", "x" * 9000)
        for receiver in [*mixed.clients, client]:
            assert await receiver.wait_for("small") == [(1,)]
            assert await receiver.wait_for("large") == [("x" * 9000,)]
        worker = mixed.cluster.workers[0]
        sockets = await worker.call("server.fetchSockets")
        assert {socket["id"] for socket in sockets} == {client.sid, *(each.sid for each in mixed.clients[1:])}
        flags = {"timeout": TIMEOUT_S * 1000}
        answers = await worker.call("server.emitWithAck", to=client.sid, name="ask", args=[], flags=flags)
        assert answers == ["python"]
        await client.disconnect()
        await manager.close()
        await eventually(lambda: _all_know(mixed.servers[1:], 2), "the Python server said goodbye")


async def test_the_admin_uis_of_both_languages_share_a_cluster(database: Database) -> None:
    """Node's UI reads `handshake.headers` and `data` of our sockets unconditionally; ours is instrumented, too."""
    manager = AsyncPostgresManager(database.dsn, heartbeat_interval=0.2, heartbeat_timeout=60.0)
    async with AdminPeer("admin") as admin, PythonServer(manager) as server, AsyncExitStack() as stack:
        instrumentation = server.sio.instrument(auth=False, mode="development", server_id="python")
        stack.callback(instrumentation.uninstrument)  # it patches Engine.IO's classes, for the whole process
        watched = await NodeServer.start(admin, database)
        await manager.start()
        await eventually(lambda: _all_know([watched], 2), "Node counts Python")
        client = await PythonClient.connect(server.url, auth={"rooms": ["red"]})
        ui = await admin.connect(watched.url, label="ui", namespace="/admin")
        [(found,)] = await ui.wait_for("all_sockets")
        [entry] = [socket for socket in found if socket["id"] == client.sid]
        assert set(entry["rooms"]) == {client.sid, "red"}
        assert entry["handshake"]["headers"]["host"] in server.url
        assert entry["clientId"]
        await ui.emit("join", "/", "blue", client.sid)  # an admin's action on a socket of another server
        await eventually(lambda: "blue" in manager.get_rooms(client.sid, "/"), "joined from the Admin UI")
        await ui.wait_for("room_joined")  # reported by the Python server's own instrumentation
        assert admin.errors == []
        await client.disconnect()
        await manager.close()
