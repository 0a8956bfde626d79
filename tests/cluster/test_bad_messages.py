"""Whatever stands in a notification: counted, reported, skipped, and the next good event is delivered."""

from __future__ import annotations

import json
import logging
from typing import Any

import msgpack

from socketio_postgres import AsyncEmitter, AttachmentMissingError, DecodeError, SocketIOPostgresError
from socketio_postgres._bus.hook import AsyncHook
from tests.fixtures.bus import acquainted, serving
from tests.fixtures.clients import PythonClient
from tests.fixtures.database import Database
from tests.fixtures.waiting import eventually


def message(kind: Any = 3, *, data: Any = None, **fields: Any) -> str:
    return json.dumps({"type": kind, "uid": "bad", "nsp": "/", "data": data, **fields})


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def broadcast(text: str) -> str:
    """A broadcast with this JSON text as its packet's data."""
    return '{"type":3,"uid":"bad","data":{"packet":{"type":2,"data":' + text + "}}}"


PAYLOADS = {
    "empty": "",
    "spaces": "   ",
    "a word": "hello",
    "cut": '{"type":3,"uid":"a',
    "two": '{"type":2}{"type":2}',
    "null": "null",
    "an array": "[]",
    "an array like a message": '[2,"a","/"]',
    "a string": '"x"',
    "no type": message(None),
    "type 0": message(0),
    "type 14": message(14),
    "type 99": message(99),
    "type as text": message("3"),
    "uid of a wrong type": message(uid=["a"]),
    "nsp of a wrong type": message(nsp={"a": 1}),
    "data of a wrong type": message(data="text"),
    "data an array": message(data=[1, 2]),
    "no packet": message(data={}),
    "packet null": message(data={"packet": None}),
    "packet of a wrong type": message(data={"packet": ["e"]}),
    "packet's data of a wrong type": message(data={"packet": {"type": 2, "data": {"0": "e"}}}),
    "opts of a wrong type": message(data={"packet": {"data": ["e"]}, "opts": []}),
    "rooms of a wrong type": message(data={"packet": {"data": ["e"]}, "opts": {"rooms": "all"}}),
    "a room of a wrong type": message(data={"packet": {"data": ["e"]}, "opts": {"rooms": [[]]}}),
    "except of a wrong type": message(data={"packet": {"data": ["e"]}, "opts": {"except": {"a": 1}}}),
    "flags of a wrong type": message(data={"packet": {"data": ["e"]}, "opts": {"flags": {"volatile": 1}}}),
    "rooms to join of a wrong type": message(4, data={"opts": {}, "rooms": "red"}),
    "close of a wrong type": message(6, data={"opts": {}, "close": "yes"}),
    "no request id": message(7, data={"opts": {}}),
    "a count of a wrong type": message(11, data={"requestId": "q", "clientCount": -1}),
    "an attachment id that is none": message(attachmentId="seven"),
    "7.9 kB of nesting": "[" * 7900,
    "7.9 kB of nested objects": '{"data":' * 980,
    "3.9 kB of nested data": broadcast(nested(3900)),
    "101 levels of data": broadcast(nested(101)),
}
"""Refused by the codec."""

BODIES: dict[str, bytes] = {
    "empty": b"",
    "no map": b"\x93\x01\x02\x03",
    "reserved": b"\xc1",
    "garbage": bytes(range(255, 0, -1)),
    "cut": msgpack.packb({"type": 3, "data": {"packet": {"type": 2, "data": ["tick", 0]}}})[:-3],
    "a length that is not there": b"\x82\xa4type\x03\xa4data\xdd\xff\xff\xff\xff",
    "unknown type": msgpack.packb({"type": 99}),
    "wrong types": msgpack.packb({"type": 3, "uid": {"a": 1}}),
    "a megabyte of nested arrays": b"\x82\xa4type\x03\xa4data\x81\xa6packet\x81\xa4data"
    + b"\x91" * 1_000_000
    + b"\xc0",
    "a megabyte of nested maps": b"\x82\xa4type\x03\xa4data" + b"\x81\xa1a" * 300_000 + b"\xc0",
    "a megabyte of nesting where nobody looks": b"\x82\xa4type\x02\xa1x" + b"\x91" * 1_000_000 + b"\xc0",
    "a megabyte of nothing but openings": b"\x91" * 1_000_000,
}
"""Refused by the codec, as attachments."""

DELIVERED_TO_NOBODY = {
    "no event": broadcast("[]"),
    "an event that is no text": broadcast("[5,6]"),
    "an event that is null": broadcast("[null]"),
    "a server-side event that is no text": message(9, data={"packet": [5]}),
}
"""Well-formed, but nothing that could be delivered."""

HARMLESS = {
    "null uid": message(2, uid=None),
    "null everything": '{"type":3,"uid":null,"nsp":null,"data":{"packet":{"data":["other"]},"opts":null}}',
    "an unknown namespace": message(2, nsp="/nobody-knows"),
    "unknown request": message(8, data={"requestId": "unknown", "sockets": [1, 2, "x"]}),
    "unknown acknowledgement": message(12, data={"requestId": "unknown", "packet": {"a": 1}}),
    "a goodbye of a stranger": message(13),
    "joining nobody": message(4, data={"opts": {"rooms": ["nobody"]}, "rooms": ["red"]}),
    "unknown keys": message(2, whatever=[[[]]], n="x"),
    "an emitter's heartbeat": message(1, uid="emitter"),
    "type as a float": '{"type":2.0,"uid":"bad"}',
}
"""Nothing wrong, and nothing to do for the client; none may disturb, whether it is reported or not."""


async def test_bad_notifications(database: Database) -> None:
    """All of them through one server: each is counted and reported once, and it still delivers afterwards."""
    async with serving(database) as ours:
        await acquainted(ours)
        client = await PythonClient.connect(ours.url)
        async with AsyncEmitter(database.dsn) as io:
            with database.connect() as connection:
                for number, (name, payload) in enumerate(PAYLOADS.items(), 1):
                    connection.execute("SELECT pg_notify('socket.io#/', %s)", [payload])
                    await io.emit("tick", number)
                    await client.wait_for("tick", number)
                    await eventually(lambda number=number: len(ours.errors) >= number, f"{name!r} is reported")  # type: ignore[misc]
                    error = ours.errors[-1]
                    assert isinstance(error, DecodeError), (name, error)
                    assert (error.channel, error.size_bytes) == ("socket.io#/", len(payload)), name
                    assert error.reason, name
                    assert ours.manager.stats()["undecodable"] == number, name
        assert len(ours.errors) == len(PAYLOADS)
        assert client.received("tick") == [(number,) for number in range(1, len(PAYLOADS) + 1)]
        assert [event.name for event in client.events if event.name != "tick"] == []
        await client.disconnect()


async def test_bad_attachments(database: Database) -> None:
    async with serving(database) as ours:
        await acquainted(ours)
        client = await PythonClient.connect(ours.url)
        async with AsyncEmitter(database.dsn) as io:
            with database.connect() as connection:
                for number, (name, body) in enumerate(BODIES.items(), 1):
                    row = connection.execute(
                        "INSERT INTO socket_io_attachments (payload) VALUES (%s) RETURNING id", [body]
                    ).fetchone()
                    assert row is not None
                    header = json.dumps({"type": 3, "uid": "bad", "attachmentId": str(row[0])})
                    connection.execute("SELECT pg_notify('socket.io#/', %s)", [header])
                    await io.emit("tick", number)
                    await client.wait_for("tick", number)
                    await eventually(lambda number=number: len(ours.errors) >= number, f"{name!r} is reported")  # type: ignore[misc]
                    error = ours.errors[-1]
                    assert isinstance(error, DecodeError), (name, error)
                    assert (error.channel, error.size_bytes) == ("socket.io#/", len(body)), name
                    assert ours.manager.stats()["undecodable"] == number, name
        assert len(ours.errors) == len(BODIES)
        assert client.received("tick") == [(number,) for number in range(1, len(BODIES) + 1)]
        await client.disconnect()


async def test_messages_that_can_be_delivered_to_nobody(database: Database) -> None:
    async with serving(database) as ours:
        await acquainted(ours)
        client = await PythonClient.connect(ours.url)
        with database.connect() as connection:
            for name, payload in DELIVERED_TO_NOBODY.items():
                ours.errors.clear()
                connection.execute("SELECT pg_notify('socket.io#/', %s)", [payload])
                [error] = await eventually(lambda: ours.errors, f"{name!r} is reported")
                assert isinstance(error, SocketIOPostgresError), (name, error)
            connection.execute("SELECT pg_notify('socket.io#/', %s)", [broadcast('["tick"]')])
        await client.wait_for("tick")
        assert len(client.events) == 1
        await client.disconnect()


async def test_messages_that_mean_nothing_here(database: Database) -> None:
    async with serving(database) as ours:
        await acquainted(ours)
        client = await PythonClient.connect(ours.url)
        with database.connect() as connection:
            for number, payload in enumerate(HARMLESS.values(), 1):
                connection.execute("SELECT pg_notify('socket.io#/', %s)", [payload])
                connection.execute("SELECT pg_notify('socket.io#/', %s)", [broadcast(f'["tick",{number}]')])
                await client.wait_for("tick", number)
        assert len(client.received("other")) == 1
        assert ours.manager.server_count() <= 2, "the sender of bad messages may count, nobody else"
        assert all(isinstance(error, DecodeError) for error in ours.errors)
        await client.disconnect()


async def test_an_error_handler_that_fails_disturbs_nobody(database: Database) -> None:
    async with serving(database) as ours:
        calls: list[Exception] = []

        def broken(error: Exception) -> None:
            calls.append(error)
            raise RuntimeError("the handler goes wrong")

        ours.manager._node.reports.error_handler = AsyncHook("error_handler", broken, logging.getLogger(__name__))
        await acquainted(ours)
        client = await PythonClient.connect(ours.url)
        with database.connect() as connection:
            for payload in ("nonsense", message(attachmentId="12345"), broadcast("[1]"), broadcast('["tick"]')):
                connection.execute("SELECT pg_notify('socket.io#/', %s)", [payload])
        await client.wait_for("tick")
        await eventually(lambda: len(calls) == 3, "it was called each time")
        assert any(isinstance(error, AttachmentMissingError) for error in calls)
        await client.disconnect()
