"""What the Go side (github.com/zishang520/socket.io v3.0.2) does to a Node.js peer, shown with its recorded frames.

The frames are those of `vectors/go.json`, replayed byte for byte except for the request id. No Go program runs here:
the module proxy did not serve the adapter's module when this was written, so what only a running Go process can show
(deaf namespaces, no reconnection, its own requests) is described in the documentation and not tested.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from tests.fixtures.clients import Client
from tests.fixtures.database import Database
from tests.fixtures.go_vectors import frames
from tests.fixtures.node import NodeError, NodePeer, NodeServer
from tests.fixtures.spy import BROADCAST, Spy, spying
from tests.fixtures.waiting import TIMEOUT_S, asked, eventually, nothing_arrives

pytestmark = pytest.mark.usefixtures("node_packages")

CHANNEL = "socket.io#/"


@dataclass
class Lab:
    """A real Node.js server with one client, and a spy that repeats what Go once said."""

    node: NodePeer
    client: Client
    spy: Spy

    def replay(self, what: str, request_id: str | None = None) -> None:
        """Send the frames of an occasion, as answers to this request."""
        for frame in frames(what):
            payload = frame["payload"]
            if "attachment_msgpack_hex" in frame:
                header = json.loads(payload)
                header["attachmentId"] = self.spy.attach(bytes.fromhex(frame["attachment_msgpack_hex"]))
                payload = json.dumps(header, separators=(",", ":"))
            if request_id is not None:
                recorded = json.loads(payload)["data"]["requestId"]
                payload = payload.replace(json.dumps(recorded), json.dumps(request_id))
            self.spy.notify(frame["channel"], payload)

    async def ask(self, command: str, answer: str, **request: object) -> Any:
        """Have Node.js ask the cluster, and answer with what Go answered."""
        asked = len(self.spy.frames)
        task = asyncio.create_task(self.node.call(command, **request))

        def question() -> str | None:
            for frame in self.spy.frames[asked:]:
                if frame.header["type"] in (BROADCAST, 7, 9):
                    found: str = frame.message["data"]["requestId"]
                    return found
            return None

        self.replay(answer, await eventually(question, "Node.js asks"))
        return await task


@pytest.fixture
async def lab(database: Database) -> AsyncIterator[Lab]:
    async with NodePeer("node") as node, spying(database) as spy:
        # Go says nothing more, and must not be taken for dead meanwhile.
        server = await NodeServer.start(
            node, database, server_side_events=["news"], adapter={"heartbeatTimeout": 600_000}
        )
        client = await node.connect(server.url, label="client")

        replaying = Lab(node, client, spy)

        async def counted() -> bool:
            replaying.replay("answer to INITIAL_HEARTBEAT")
            return await server.server_count() == 2

        await eventually(counted, "Node.js counts the Go server")
        yield replaying


async def test_no_client_is_a_count_left_out(lab: Lab) -> None:
    """Go omits a zero `clientCount`; Node.js adds `undefined`, gets NaN, and every such request times out.

    We read an absent count as 0, and send ours also when it is 0.
    """
    [frame] = frames("answers to BROADCAST with requestId, no client")
    assert "clientCount" not in json.loads(frame["payload"])["data"]

    async def responses(seconds: float) -> object:
        answer, flags = "answers to BROADCAST with requestId, no client", {"timeout": seconds * 1000}
        with pytest.raises(NodeError, match="timed out") as caught:
            await lab.ask("server.emitWithAck", answer, name="ask", flags=flags)
        return caught.value.details["responses"]

    assert await asked(responses, bool) == [None]  # the one client there is did answer


async def test_no_socket_is_a_list_left_out(lab: Lab) -> None:
    """Go omits an empty `sockets`; Node.js throws inside and its request times out.

    We read an absent list as empty, and send ours also when it is empty.
    """
    [frame] = frames("answer to FETCH_SOCKETS, no socket")
    assert "sockets" not in json.loads(frame["payload"])["data"]

    async def errors(seconds: float) -> list[str]:
        with pytest.raises(NodeError, match="missing 1 responses"):
            await lab.ask(
                "server.fetchSockets", "answer to FETCH_SOCKETS, no socket", flags={"timeout": seconds * 1000}
            )
        return [item["error"]["message"] for item in lab.node.errors]

    assert await asked(errors, bool) == ["Cannot read properties of undefined (reading 'forEach')"]


@pytest.mark.parametrize(
    ("event", "seen"),
    [("echo", [5]), ("two", [1, 2]), ("null", [None]), ("list", [[1, 2]]), ("none", None), ("bin", [{}])],
)
async def test_acknowledgements_are_lists(lab: Lab, event: str, seen: object) -> None:
    """Go sends the list of all arguments where Node.js expects the first one, and its binary becomes `{}`.

    We read the list as the arguments when the sender is Go; nobody can restore the binary.
    """
    answers = await lab.ask(
        "server.emitWithAck",
        f"answers to BROADCAST with requestId, the client acknowledges '{event}'",
        name="ask",
        args=["node"],
        flags={"timeout": TIMEOUT_S * 1000},
    )
    assert len(answers) == 2
    answers.remove("node")
    assert answers == [seen]


async def test_server_side_answers_are_lists(lab: Lab) -> None:
    """The same for `serverSideEmitWithAck`."""
    answers = await lab.ask(
        "server.serverSideEmitWithAck", "answer to SERVER_SIDE_EMIT 'news' with requestId", name="news"
    )
    assert answers == [[7]]


async def test_a_handshake_of_another_make(lab: Lab) -> None:
    """Header names are capitalised and values are lists, absent data stays absent: Node.js code that reads them breaks.

    Ours are as Node.js writes them.
    """
    sockets = await lab.ask("server.fetchSockets", "answer to FETCH_SOCKETS, one socket")
    [go] = [socket for socket in sockets if socket["id"] != lab.client.sid]
    assert go["handshake"]["headers"]["Upgrade"] == ["websocket"]
    assert "upgrade" not in go["handshake"]["headers"]
    assert go["handshake"]["query"]["EIO"] == ["4"]
    assert "data" not in go


async def test_binary_becomes_text(lab: Lab) -> None:
    """Go overlooks binary inside its structures and sends it as base64 text, unless the message is long anyway.

    Nothing tells such a text from a real one, so we deliver it as it is.
    """
    lab.replay("io.Emit('bin', []byte{1,2,3})")
    assert await lab.client.wait_for("bin") == [("AQID",)]
    lab.replay("io.Emit('bigbin', 9000 * 'x', []byte{1})")
    assert await lab.client.wait_for("bigbin") == [("x" * 9000, b"\x01")]


async def test_the_emitter_reaches_nobody(lab: Lab) -> None:
    """The Go emitter's messages carry no `nsp`, which Node.js and Go servers require.

    We take the namespace from the channel.
    """
    for what in ("emitter.Emit('hello', 1)", "emitter.Emit('big', 9000 * 'x')", "io.Emit('noargs')"):
        lab.replay(what)
    await lab.client.wait_for("noargs")
    await nothing_arrives()
    assert {event.name for event in lab.client.events} == {"noargs"}


async def test_8000_bytes_are_lost(lab: Lab, database: Database) -> None:
    """Go stores attachments only above 8000 bytes, and PostgreSQL refuses 8000: that one size is never sent.

    The emitter returns the error, the server hides it. We store from 8000 bytes on.
    """
    assert [len(frame["payload"].encode()) for frame in frames("7999 bytes")] == [7999]
    assert frames("8000 bytes") == frames("emitter 8000 bytes") == []
    assert "attachment_msgpack_hex" in frames("8001 bytes")[0]
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="too long"):
        lab.spy.notify(CHANNEL, "x" * 8000)
    lab.replay("7999 bytes")
    lab.replay("8001 bytes")
    await lab.client.wait_for("x", 2)


async def test_false_flags_and_an_empty_namespace_do_no_harm(lab: Lab) -> None:
    """Not defects: every flag is spelled out as false, and the packet's own namespace is empty."""
    packet = json.loads(frames("io.Emit('noargs')")[0]["payload"])["data"]["packet"]
    assert packet["nsp"] == ""
    lab.replay("io.Volatile().Compress(true).Emit('flags')")
    lab.replay("io.Emit('noargs')")
    await lab.client.wait_for("flags")
    await lab.client.wait_for("noargs")
