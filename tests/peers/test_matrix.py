"""One cluster of several languages, every operation in every direction, printed as a matrix.

Two Python servers (asyncio and threads) and two Node.js servers share a database. Every server has one client, the
official JavaScript one, in a room named by the server. A cell of the matrix is one operation from one server to
another server or to its client; what is known not to work, for a defect of the peers, is listed with the reason and
must still fail. Go takes part by its recorded frames only, see test_go.py: its adapter's module cannot be had.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from tests.fixtures.database import Database
from tests.fixtures.members import SERVER_SIDE_EVENT, AsyncMember, Member, PeerMember, SyncMember
from tests.fixtures.node import NodeClient, NodePeer, NodeServer
from tests.fixtures.waiting import eventually

NAMESPACES = ("/", "/chat")
SYMBOLS = {"Python": "Py", "Node.js": "Js"}
DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "interoperability.md"

WAIT_S = 30.0
DEFECT_WAIT_S = 1.0


@dataclasses.dataclass
class Seats:
    """Who takes part.

    Attributes:
        members: The servers.
        clients: Their clients in the namespace `/`, by the server's label.
        chatters: Their clients in `/chat`.
    """

    members: list[Member]
    clients: dict[str, NodeClient]
    chatters: dict[str, NodeClient]


Operation = Callable[[Seats, Member, Member, str, float], Awaitable[None]]
"""Seats, sender, receiver, a mark that makes this cell's event unique, seconds to wait."""


async def _arrives(client: NodeClient, name: str, args: tuple[object, ...], wait_s: float) -> None:
    assert await client.wait_for(name, timeout=wait_s) == [args]


async def broadcast(seats: Seats, sender: Member, receiver: Member, mark: str, wait_s: float) -> None:
    await sender.emit(mark, 1, "two", {"three": [3, None, True, 4.5]})
    await _arrives(seats.clients[receiver.label], mark, (1, "two", {"three": [3, None, True, 4.5]}), wait_s)


async def to_a_room(seats: Seats, sender: Member, receiver: Member, mark: str, wait_s: float) -> None:
    await sender.emit(mark, "x", to=receiver.label)
    await _arrives(seats.clients[receiver.label], mark, ("x",), wait_s)
    others = [client for label, client in seats.clients.items() if label != receiver.label]
    assert not any(client.received(mark) for client in others)


async def except_a_room(seats: Seats, sender: Member, receiver: Member, mark: str, wait_s: float) -> None:
    other = next(member for member in seats.members if member not in {sender, receiver})
    await sender.emit(mark, "x", except_=other.label)
    await _arrives(seats.clients[receiver.label], mark, ("x",), wait_s)
    assert not seats.clients[other.label].received(mark)


async def to_a_sid(seats: Seats, sender: Member, receiver: Member, mark: str, wait_s: float) -> None:
    client = seats.clients[receiver.label]
    await sender.emit(mark, "x", to=client.sid)
    await _arrives(client, mark, ("x",), wait_s)


async def second_namespace(seats: Seats, sender: Member, receiver: Member, mark: str, wait_s: float) -> None:
    await sender.emit(mark, "x", namespace="/chat")
    await _arrives(seats.chatters[receiver.label], mark, ("x",), wait_s)


async def binary(seats: Seats, sender: Member, receiver: Member, mark: str, wait_s: float) -> None:
    await sender.emit(mark, b"\x00\xff", {"nested": [b"x"]}, to=receiver.label)
    await _arrives(seats.clients[receiver.label], mark, (b"\x00\xff", {"nested": [b"x"]}), wait_s)


async def large(seats: Seats, sender: Member, receiver: Member, mark: str, wait_s: float) -> None:
    await sender.emit(mark, "x" * 20_000, to=receiver.label)
    await _arrives(seats.clients[receiver.label], mark, ("x" * 20_000,), wait_s)


async def unicode(seats: Seats, sender: Member, receiver: Member, mark: str, wait_s: float) -> None:
    text = 'é \u0000 😀 \u2028 "quote" \\ /'
    await sender.emit(mark, text, to=receiver.label)
    await _arrives(seats.clients[receiver.label], mark, (text,), wait_s)


async def acknowledgement(seats: Seats, sender: Member, receiver: Member, mark: str, wait_s: float) -> None:
    del seats
    assert await sender.emit_with_ack("echo", mark, to=receiver.label, timeout=wait_s) == [mark]


async def binary_acknowledgement(seats: Seats, sender: Member, receiver: Member, mark: str, wait_s: float) -> None:
    del seats, mark
    assert await sender.emit_with_ack("bytes", to=receiver.label, timeout=wait_s) == [b"\x09"]


async def fetch_sockets(seats: Seats, sender: Member, receiver: Member, mark: str, wait_s: float) -> None:
    del mark
    (found,) = await sender.fetch_sockets(receiver.label, wait_s)
    client = seats.clients[receiver.label]
    assert found["id"] == client.sid
    assert set(found["rooms"]) >= {client.sid, receiver.label}
    assert isinstance(found["handshake"]["headers"], dict)


async def join_and_leave(seats: Seats, sender: Member, receiver: Member, mark: str, wait_s: float) -> None:
    client = seats.clients[receiver.label]
    await sender.sockets_join(client.sid, mark)
    await sender.emit(f"{mark}-in", to=mark)
    await _arrives(client, f"{mark}-in", (), wait_s)
    await sender.sockets_leave(client.sid, mark)
    await sender.emit(f"{mark}-out", to=mark)
    await sender.emit(f"{mark}-end")
    await _arrives(client, f"{mark}-end", (), wait_s)
    assert not client.received(f"{mark}-out")


async def server_side_event(seats: Seats, sender: Member, receiver: Member, mark: str, wait_s: float) -> None:
    del seats
    await sender.server_side_emit(mark, {"a": 2})
    await eventually(lambda: [mark, {"a": 2}] in receiver.heard(), f"{receiver} hears {mark}", wait_s)


async def counted(seats: Seats, sender: Member, receiver: Member, mark: str, wait_s: float) -> None:
    del receiver, mark

    async def knows_all() -> bool:
        return await sender.server_count() == len(seats.members)

    await eventually(knows_all, f"{sender} counts all", wait_s)


OPERATIONS: dict[str, Operation] = {
    "broadcast": broadcast,
    "to a room": to_a_room,
    "except a room": except_a_room,
    "to a sid": to_a_sid,
    "second namespace": second_namespace,
    "binary": binary,
    "20 kB": large,
    "unicode, NUL": unicode,
    "acknowledgement": acknowledgement,
    "binary acknowledgement": binary_acknowledgement,
    "fetch sockets": fetch_sockets,
    "join, leave": join_and_leave,
    "server-side event": server_side_event,
    "server count": counted,
}

DEFECTS: dict[tuple[str, str, str], str] = {}
"""(operation, sender's language, receiver's language): why it cannot work."""


@contextlib.asynccontextmanager
async def seated(database: Database) -> AsyncIterator[Seats]:
    """Start the cluster, and one client for each server and namespace."""
    async with contextlib.AsyncExitStack() as stack:
        events = [SERVER_SIDE_EVENT]
        peers = [await stack.enter_async_context(NodePeer(f"node{number}")) for number in (1, 2, 3)]
        members: list[Member] = [
            await AsyncMember("py-async", database, NAMESPACES).start(),
            await SyncMember("py-threads", database, NAMESPACES).start(),
        ]
        for peer in peers[:2]:
            node = await NodeServer.start(peer, database, NAMESPACES, events)
            members.append(PeerMember(peer.label, "Node.js", peer, node.url))
        for member in members:
            stack.push_async_callback(_close_unless_left, members, member)
        clients, chatters = {}, {}
        for member in members:
            clients[member.label] = await peers[2].connect(
                member.url, label=member.label, auth={"rooms": [member.label]}, replies={"bytes": [b"\x09"]}
            )
            chatters[member.label] = await peers[2].connect(
                member.url, label=f"{member.label} chat", namespace="/chat", auth={"rooms": []}
            )
        yield Seats(members, clients, chatters)


async def _close_unless_left(members: list[Member], member: Member) -> None:
    if member in members:
        await member.close()


def matrix(results: dict[tuple[str, str, str], str]) -> str:
    """The results as a table of Markdown."""
    columns = list(itertools.product(SYMBOLS, SYMBOLS))
    head = "| operation | " + " | ".join(f"{SYMBOLS[a]}→{SYMBOLS[b]}" for a, b in columns) + " |"
    rows = [head, "|---" * (len(columns) + 1) + "|"]
    rows += [
        f"| {operation} | " + " | ".join(results[operation, a, b] for a, b in columns) + " |"
        for operation in OPERATIONS
    ]
    return "\n".join(rows) + "\n"


@pytest.mark.timeout(300)
async def test_every_operation_in_every_direction(
    database: Database, node_packages: None, record_matrix: Callable[[str], None]
) -> None:
    results: dict[tuple[str, str, str], str] = {}
    wrong: list[str] = []
    async with seated(database) as seats:
        for member in seats.members:
            await counted(seats, member, member, "", WAIT_S)
        for number, (name, operation) in enumerate(OPERATIONS.items()):
            for sender, receiver in itertools.permutations(seats.members, 2):
                cell = (name, sender.language, receiver.language)
                mark = f"{number}-{sender}-{receiver}"
                is_defect = cell in DEFECTS
                problem = ""
                try:
                    wait_s = DEFECT_WAIT_S if is_defect else WAIT_S
                    await asyncio.wait_for(operation(seats, sender, receiver, mark, wait_s), wait_s + 2)
                except Exception as error:  # noqa: BLE001  (one cell must not hide the others)
                    problem = f"{type(error).__name__}: {error}"
                if bool(problem) != is_defect:
                    wrong.append(f"{name}, {sender} → {receiver}: {problem or 'works now: remove it from DEFECTS'}")
                symbol = "✗" if problem else "✓"
                results[cell] = symbol if results.get(cell, symbol) == symbol else "?"
    table = matrix(results)
    record_matrix(table)
    assert not wrong, "\n".join(wrong)
    assert table in DOCUMENT.read_text(), f"docs/interoperability.md is out of date, it should have:\n{table}"


async def test_server_side_answers(database: Database, node_packages: None) -> None:
    """All other servers answer, whatever they are written in."""
    async with seated(database) as seats:
        for member in seats.members:
            await counted(seats, member, member, "", WAIT_S)
        for sender in seats.members[:2]:
            answers = await sender.server_side_emit_with_ack("value")
            assert answers == ["value"] * 3


async def test_a_goodbye_is_heard_by_all(database: Database, node_packages: None) -> None:
    """Each server that closes is no longer counted by the others, at once and not after a time-out."""
    async with seated(database) as seats:
        for member in seats.members:
            await counted(seats, member, member, "", WAIT_S)
        leaving = seats.members.pop(0)
        await leaving.close()
        for member in seats.members:
            await counted(seats, member, member, "", WAIT_S)
