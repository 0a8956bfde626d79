"""The harness itself: two Node.js servers pass the matrix that ours must pass, so a red test below is our fault."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from tests.fixtures.clients import Client, PythonClient
from tests.fixtures.cluster import CASES, NAMESPACES, Case, Cluster, Role
from tests.fixtures.database import Database
from tests.fixtures.node import NodeError, NodePeer, NodeServer
from tests.fixtures.senders import Broadcast, NodeSender
from tests.fixtures.server import PythonServer
from tests.fixtures.spy import spying
from tests.fixtures.waiting import TIMEOUT_S, eventually, nothing_arrives

pytestmark = pytest.mark.usefixtures("node_packages")


@pytest.fixture
async def peers() -> AsyncIterator[dict[str, NodePeer]]:
    """Two Node.js processes."""
    async with NodePeer("left") as left, NodePeer("right") as right:
        yield {"left": left, "right": right}


@pytest.fixture
async def cluster(database: Database, peers: dict[str, NodePeer]) -> AsyncIterator[Cluster]:
    """A Node.js server in each."""
    async with AsyncExitStack() as stack:
        sides = {}
        for name, peer in peers.items():
            sides[name] = await NodeServer.start(peer, database, NAMESPACES, ["news"])
            stack.push_async_callback(sides[name].close)
        cluster = Cluster(sides)

        async def connect(side: str, url: str, role: Role) -> Client:
            return await peers[side].connect(
                url, label=f"{side} {role.name}", namespace=role.namespace, auth={"rooms": role.rooms}
            )

        await cluster.meet()
        await cluster.seat(connect)
        yield cluster


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_node_to_node(cluster: Cluster, peers: dict[str, NodePeer], case: Case) -> None:
    await case.check(cluster, NodeSender(peers["left"], "server"), sides=("left", "right"))
    assert peers["left"].errors == peers["right"].errors == []


async def test_the_matrix_can_fail(cluster: Cluster, peers: dict[str, NodePeer]) -> None:
    sender = NodeSender(peers["left"], "server")
    wrong = Case("wrong", Broadcast("hello", (True,), to=("red",)), frozenset({"red"}))  # reaches `both` too
    with pytest.raises(AssertionError, match=r"right both|left both"):
        await wrong.check(cluster, sender, sides=("left", "right"))
    with pytest.raises(AssertionError):
        await cluster.clients["right", "admin"].wait_for("hello", timeout=0.1)


async def test_a_burst_arrives_whole(cluster: Cluster, peers: dict[str, NodePeer]) -> None:
    await NodeSender(peers["left"], "server").send(*[Broadcast("tick")] * 100)
    for side in cluster.sides:
        assert await cluster.clients[side, "red"].wait_for("tick", 100) == [()] * 100


async def test_remote_sockets(cluster: Cluster, peers: dict[str, NodePeer]) -> None:
    sender, right = NodeSender(peers["left"], "server"), cluster.sides["right"]
    red, blue = cluster.clients["right", "red"], cluster.clients["right", "blue"]
    await sender.join(red.sid, "green")
    await eventually(lambda: _is_in(cluster, red, "green"), "red joins green")
    await sender.leave(red.sid, "red")
    await eventually(lambda: _is_out(cluster, red, "red"), "red leaves red")
    await sender.close_room("blue")
    await eventually(lambda: _is_out(cluster, blue, "blue"), "blue is closed")
    await sender.disconnect(blue.sid, close=True)
    assert await blue.wait_for_disconnect() == "io server disconnect"
    assert blue.sid not in await right.sids()
    assert red.sid in await right.sids()


async def _is_in(cluster: Cluster, client: Client, room: str) -> bool:
    return room in await cluster.sides["right"].rooms(client.sid)


async def _is_out(cluster: Cluster, client: Client, room: str) -> bool:
    return not await _is_in(cluster, client, room)


async def test_requests_and_answers(cluster: Cluster, peers: dict[str, NodePeer]) -> None:
    left = peers["left"]
    sockets = await left.call("server.fetchSockets", to="red")
    assert {socket["id"] for socket in sockets} == set(cluster.sids(["red", "both"]))
    answers = await left.call("server.emitWithAck", name="ask", args=[b"\x01"], flags={"timeout": TIMEOUT_S * 1000})
    assert answers == [b"\x01"] * 6
    assert await left.call("server.serverSideEmitWithAck", name="news", args=["today"]) == ["today"]
    await left.call("server.serverSideEmit", name="news", args=[b"\x02"])
    await peers["right"].wait_for("server.serverSideEvent", name="news", args=[b"\x02"])
    with pytest.raises(NodeError, match="reserved"):
        await left.call("server.emit", name="connect")


async def test_clients_and_servers_talk(cluster: Cluster, peers: dict[str, NodePeer]) -> None:
    """The rest of what the peers can do, between every kind of client and server that the tests use."""
    node = cluster.sides["left"].url
    async with PythonServer() as python:
        for url in (node, python.url):
            clients = [
                await peers["left"].connect(url, label=f"websocket {url}"),
                await peers["left"].connect(url, label=f"polling {url}", transports=["polling"]),
                await PythonClient.connect(url),  # over polling it takes half a minute to leave
            ]
            for client in clients:
                assert await client.call("echo", b"\x00\xff") == b"\x00\xff", client
                await client.disconnect()
                await client.wait_for_disconnect()
        await eventually(lambda: not python.sids(), "the server saw them go")
        assert {item.what for item in python.happenings} == {"connect", "echo", "disconnect"}


async def test_leaving_and_dying(cluster: Cluster, peers: dict[str, NodePeer], database: Database) -> None:
    async with NodePeer("third") as third, NodePeer("fourth") as fourth:
        leaver = await NodeServer.start(third, database)
        await NodeServer.start(fourth, database)
        await cluster.meet(["/"], 4)
        await leaver.close()
        await cluster.meet(["/"], 3)
        fourth.kill()
        with pytest.raises(ConnectionError, match="fourth ended"):
            await fourth.call("server.serverCount")
    assert peers["left"].errors == []


async def test_the_official_emitter_reaches_no_current_adapter(
    cluster: Cluster, peers: dict[str, NodePeer], database: Database
) -> None:
    """Its messages carry no `nsp`, which adapters since 0.4 require: the reason why ours accepts them without."""
    sender = NodeSender(peers["left"], "emitter")
    await peers["left"].call("emitter.open", database=database.node)
    async with spying(database) as spy:
        await sender.send(Broadcast("hello"))
        [frame] = await spy.wait_for_broadcast("hello")
    assert "nsp" not in frame.message
    await nothing_arrives()
    assert not any(client.received("hello") for client in cluster.clients.values())
    await peers["left"].call("emitter.close")


async def test_the_spy_sees_what_node_documents(
    cluster: Cluster, peers: dict[str, NodePeer], database: Database
) -> None:
    sender = NodeSender(peers["left"], "server")
    async with spying(database) as spy:
        await sender.send(Broadcast("small", ("é",)), Broadcast("big", (b"\x01",), "/admin", to=("red",)))
        [small] = await spy.wait_for_broadcast("small")
        [big] = await spy.wait_for_broadcast("big")
        assert small.attachment is None
        assert small.payload_bytes == len(small.payload) + 1
        assert (small.channel, big.channel) == ("socket.io#/", "socket.io#/admin")
        assert set(big.header) == {"uid", "type", "attachmentId"}
        assert big.message["data"]["packet"]["data"] == ["big", b"\x01"]
        # and it can speak itself
        forged = {**big.message, "uid": "somebody", "nsp": "/admin"}
        spy.notify("socket.io#/admin", {"uid": "somebody", "type": 3, "attachmentId": spy.attach(forged)})
        assert await cluster.clients["right", "admin"].wait_for("big", 2) == [(b"\x01",)] * 2
