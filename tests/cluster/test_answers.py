"""A server always answers, also when what it has to say cannot travel: nobody waits for it in vain."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from socketio_postgres import AsyncPostgresManager, EncodeError, PayloadTooLargeError
from tests.cluster.servers import Server, Trio, open_trio
from tests.fixtures.clients import PythonClient
from tests.fixtures.database import Database
from tests.fixtures.members import AsyncMember, SyncMember
from tests.fixtures.waiting import eventually

BORN = dt.date(2000, 2, 29)


def deep(levels: int) -> Any:
    """A list in a list and so on: deeper than a message may be, and no trouble to Socket.IO."""
    return [] if levels == 1 else [deep(levels - 1)]


def take_failures(trio: Trio, kind: type[Exception], count: int = 1) -> None:
    """So many were reported, and nothing else."""
    assert [type(each) for each in trio.failures] == [kind] * count
    trio.failures.clear()


# ------------------------------------------------------------------------------------------------- fetched sockets


async def test_a_session_value_that_is_no_json_is_left_out_and_told_once(database: Database) -> None:
    async with open_trio(database, share_session=True) as trio:
        client = await trio.b.connect()
        other = await trio.b.connect()
        await trio.b.sio.save_session(client.sid, {"user": "ann", "born": BORN, "avatar": b"\x00\xff"})
        await trio.b.sio.save_session(other.sid, {"born": BORN, "roles": ["x"]})
        for _ in range(3):
            found = {each.id: each.data for each in await trio.a.manager.timeout(15).fetch_sockets()}
            assert found == {client.sid: {"user": "ann", "avatar": b"\x00\xff"}, other.sid: {"roles": ["x"]}}
        [error] = trio.failures
        assert "'born'" in str(error)
        assert "2000" not in str(error), "a session holds secrets"
        take_failures(trio, EncodeError)


@pytest.mark.parametrize("session", ["a text", ["a list"], BORN, {1: "one", (2,): "two"}])
async def test_a_session_of_any_kind_is_answered(database: Database, session: object) -> None:
    async with open_trio(database, share_session=True) as trio:
        client = await trio.b.connect()
        await trio.b.sio.save_session(client.sid, session)
        [found] = await trio.a.manager.timeout(15).fetch_sockets()
        assert found.id == client.sid
        assert found.data == ({"1": "one"} if isinstance(session, dict) else {})
        take_failures(trio, EncodeError)


class Dates:
    """A json module that knows dates."""

    loads = staticmethod(json.loads)

    @staticmethod
    def dumps(value: object, **options: Any) -> str:
        return json.dumps(value, default=str, **options)


async def test_a_session_is_written_by_the_servers_json_module(database: Database) -> None:
    async with open_trio(database, share_session=True) as trio:
        client = await trio.b.connect()
        trio.b.manager.json = Dates
        await trio.b.sio.save_session(client.sid, {"born": BORN, "deep": [{"born": BORN}], "avatar": b"\x00"})
        [found] = await trio.a.manager.timeout(15).fetch_sockets()
        assert found.data == {"born": str(BORN), "deep": [{"born": str(BORN)}], "avatar": b"\x00"}


async def test_what_the_servers_json_module_refuses_is_left_out(database: Database) -> None:
    class Moody:
        loads = staticmethod(json.loads)

        @staticmethod
        def dumps(value: object, **options: Any) -> str:
            if "bad" in repr(value):
                raise ZeroDivisionError
            return json.dumps(value, **options)

    async with open_trio(database, share_session=True) as trio:
        client = await trio.b.connect("red")
        trio.b.manager.json = Moody
        await trio.b.sio.save_session(client.sid, {"mood": "bad", "user": "ann"})
        for _ in range(2):
            [found] = await trio.a.manager.timeout(15).fetch_sockets()
            assert (found.data, set(found.rooms)) == ({"user": "ann"}, {client.sid, "red"})
            assert found.handshake["headers"]
        take_failures(trio, EncodeError)


async def test_a_strange_handshake_is_answered(trio: Trio) -> None:
    client = await trio.b.connect("red")
    environs = trio.b.sio.environ
    eio_sid = trio.b.manager.eio_sid_from_sid(client.sid, "/")
    usual = environs[eio_sid]
    values: list[object] = [b"\xff", 5, None, "\udcff", object()]
    for name in ("QUERY_STRING", "PATH_INFO", "RAW_URI", "REMOTE_ADDR", "asgi.scope"):
        for value in values:
            environs[eio_sid] = {**usual, "HTTP_X": value, name: value}
            [found] = await trio.a.manager.timeout(15).fetch_sockets()
            assert (found.id, set(found.rooms)) == (client.sid, {client.sid, "red"})
            assert isinstance(found.handshake["headers"], dict), (name, value)
    environs[eio_sid] = usual
    assert {type(each) for each in trio.failures} <= {AttributeError, TypeError}, "an asgi.scope that is none"
    trio.failures.clear()


async def test_an_answer_that_is_too_large_goes_without_the_sessions(database: Database) -> None:
    async with open_trio(database, share_session=True, max_payload=20_000) as trio:
        clients = [await trio.b.connect("red") for _ in range(5)]
        await trio.b.sio.save_session(clients[0].sid, {"much": "x" * 30_000})
        await trio.b.sio.save_session(clients[1].sid, {"little": 1})
        for _ in range(2):
            found = await trio.a.manager.timeout(15).fetch_sockets()
            assert {each.id for each in found} == {client.sid for client in clients}
            assert all("red" in each.rooms and each.handshake["headers"] for each in found)
            assert [each.data for each in found] == [{}] * 5
        take_failures(trio, PayloadTooLargeError)


async def test_an_answer_that_is_still_too_large_goes_without_the_handshakes(database: Database) -> None:
    async with open_trio(database, max_payload=3_000) as trio:
        clients = [await trio.b.connect("red") for _ in range(8)]
        for _ in range(2):
            found = await trio.a.manager.timeout(15).fetch_sockets()
            assert {each.id for each in found} == {client.sid for client in clients}
            assert all("red" in each.rooms and each.handshake["headers"] == {} for each in found)
        take_failures(trio, PayloadTooLargeError)


async def test_a_blocking_server_answers_without_the_value(database: Database) -> None:
    failures: list[Exception] = []
    member = SyncMember("blocking", database, ["/"], share_session=True, error_handler=failures.append)
    asker = AsyncMember("asker", database, ["/"])
    async with AsyncExitStack() as stack:
        for each in (member, asker):
            await each.start()
            stack.push_async_callback(each.close)
        for each in (member, asker):
            await eventually(lambda each=each: each.manager.server_count() == 2, "they know each other")  # type: ignore[misc]
        client = await PythonClient.connect(member.url, auth={"rooms": []}, replies={"ask": [deep(200)]})
        stack.push_async_callback(client.disconnect)
        member.sio.save_session(client.sid, {"user": "ann", "born": BORN})
        member.manager.on_server_side("ask", lambda: BORN)
        for _ in range(2):
            [found] = await asker.manager.timeout(15).fetch_sockets()
            assert found.data == {"user": "ann"}
            assert await asker.manager.timeout(15).emit_with_ack("ask") == [None]
            assert await asker.manager.server_side_emit_with_ack("ask", timeout=15) == [None]
    # The session once, what is lost each time; a thread tells it.
    await eventually(lambda: [type(each) for each in failures] == [EncodeError] * 5, "five are told")


# ------------------------------------------------------------------------------------------- handlers and clients

UNSENDABLE: dict[str, tuple[Callable[[], object], type[Exception]]] = {
    "no JSON": (lambda: {"born": BORN}, EncodeError),
    "not finite": (lambda: float("nan"), EncodeError),
    "too deep": (lambda: deep(200), EncodeError),
    "too large": (lambda: "x" * 50_000, PayloadTooLargeError),
}


def served(trio: Trio) -> tuple[AsyncPostgresManager, Server]:
    """Who asks, and who answers."""
    return trio.a.manager, trio.b


@pytest.mark.parametrize("kind", UNSENDABLE)
async def test_a_handler_whose_answer_cannot_travel_answers_nothing(database: Database, kind: str) -> None:
    make, error = UNSENDABLE[kind]
    async with open_trio(database, max_payload=40_000) as trio:
        asker, server = served(trio)
        server.manager.on_server_side("ask", make)
        trio.c.manager.on_server_side("ask", lambda: "fine")
        answers = await asker.server_side_emit_with_ack("ask", timeout=15)
        assert sorted(answers, key=str) == [None, "fine"]
        take_failures(trio, error)


@pytest.mark.parametrize("kind", ["too deep", "too large"])
@pytest.mark.parametrize("is_several", [False, True])
async def test_an_acknowledgement_that_cannot_travel_counts_as_one_without_a_value(
    database: Database, kind: str, is_several: bool
) -> None:
    make, error = UNSENDABLE[kind]
    async with open_trio(database, max_payload=40_000) as trio:
        asker, server = served(trio)
        client = await server.connect(replies={"ask": [make(), 1] if is_several else [make()]})
        assert await asker.timeout(15).emit_with_ack("ask") == [None]
        take_failures(trio, error)
        assert await trio.a.sio.call("ask", to=client.sid, timeout=15) is None
        take_failures(trio, error)


async def test_what_cannot_be_told_does_not_end_the_server(database: Database) -> None:
    async with open_trio(database, share_session=True) as trio:
        client = await trio.b.connect(replies={"ask": [deep(200)]})
        await trio.b.sio.save_session(client.sid, {"born": BORN})
        trio.b.manager.on_server_side("ask", lambda: BORN)
        await trio.a.manager.timeout(15).fetch_sockets()
        await trio.a.manager.timeout(15).emit_with_ack("ask")
        await trio.a.manager.server_side_emit_with_ack("ask", timeout=15)
        take_failures(trio, EncodeError, 3)
        await trio.a.manager.emit("still", 1)
        await eventually(lambda: client.received("still") == [(1,)])
