"""What the functions write is what our encoder and the published Node.js packages write."""

from __future__ import annotations

import json
import re
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from psycopg.types.json import Jsonb

from socketio_postgres import Emitter, Message, MessageType
from socketio_postgres.codec import decode, encode, encode_msgpack
from tests.fixtures.bus import BusReader
from tests.fixtures.database import Database
from tests.fixtures.spy import spying
from tests.unit.test_transactional_vectors import VECTORS as TRANSACTIONAL
from tests.unit.test_transactional_vectors import said as said_by
from tests.unit.test_vectors import RECORDED, SAID, Said, completed, raw

T = MessageType
CALLS = {
    T.BROADCAST: "SELECT socketio.emit(%(event)s, %(args)s, %(to)s, %(except_)s, %(nsp)s)",
    T.SOCKETS_JOIN: "SELECT socketio.join(%(to)s, %(rooms)s, %(except_)s, %(nsp)s, %(everybody)s)",
    T.SOCKETS_LEAVE: "SELECT socketio.leave(%(to)s, %(rooms)s, %(except_)s, %(nsp)s, %(everybody)s)",
    T.DISCONNECT_SOCKETS: "SELECT socketio.disconnect(%(to)s, %(close)s, %(except_)s, %(nsp)s, %(everybody)s)",
    T.SERVER_SIDE_EMIT: "SELECT socketio.server_side_emit(%(event)s, %(args)s, %(nsp)s)",
}


def call(connection: psycopg.Connection, said: Said) -> None:
    """Say the same in SQL."""
    kind, nsp, fields = said
    event, *args = fields.get("packet", [""])
    given = {
        "nsp": nsp,
        "event": event,
        "args": Jsonb(args),
        "to": fields.get("to"),
        "everybody": "to" not in fields,
        "except_": fields.get("except_"),
        "rooms": fields.get("rooms", []),
        "close": fields.get("close", False),
    }
    connection.execute(CALLS[kind], given)


def is_expressible(said: Said) -> bool:
    """Whether SQL can say it: no binary, no NUL, no flags, nothing that waits for answers."""
    kind, _, fields = said
    return (
        kind in CALLS
        and fields.keys().isdisjoint({"request_id", "volatile", "compress"})
        and not re.search(r"b'|\\x00", repr(fields))
    )


VECTORS = [
    pytest.param(said, raw(frame), id=f"{item['what'][:50]}-{number}")
    for item in RECORDED
    for number, (frame, said) in enumerate(zip(item["frames"], SAID[item["what"]], strict=True))
    if is_expressible(said)
]
OWN: list[Said] = [said_by(vector) for vector in TRANSACTIONAL]


@pytest.mark.parametrize(("said", "recorded"), VECTORS)
async def test_frames_of_node(
    installed: Database, psql: psycopg.Connection, said: Said, recorded: dict[str, Any]
) -> None:
    async with spying(installed) as spy:
        call(psql, said)
        [frame] = await spy.wait_for(lambda _: True)
    ours = frame.message
    assert (ours["type"], ours["uid"], ours["nsp"], ours["source"]) == (
        recorded["type"],
        "emitter",
        said[1],
        "_sio_adapter",
    )
    assert ours["data"] == completed(recorded, said[1])
    assert frame.payload.startswith('{"type":'), "by its first key, servers tell Node.js from Go"


def test_the_vectors_have_every_function() -> None:
    assert {said.values[0][0] for said in VECTORS} == set(CALLS)  # type: ignore[index]


@pytest.mark.parametrize("said", OWN, ids=lambda said: said[0].name)
async def test_they_are_ours_to_the_byte(installed: Database, psql: psycopg.Connection, said: Said) -> None:
    """Apart from the order of keys in an object, which jsonb does not keep."""
    kind, nsp, fields = said
    message = Message(kind, nsp, uid="emitter", **fields)
    async with spying(installed, [f"socket.io#{nsp}"]) as spy:
        call(psql, said)
        [frame] = await spy.wait_for(lambda _: True)
        text = re.sub(r',"k":"[\w-]{8}"}$', "}", frame.payload)
        assert text == encode(message)
        psql.execute("UPDATE socketio.settings SET payload_threshold = 1")
        call(psql, said)
        frame = (await spy.wait_for(lambda _: True, 2))[1]
    assert frame.attachment == encode_msgpack(message)
    assert frame.header.get("rooms") == (None if kind == T.SERVER_SIDE_EMIT else fields.get("to", []))
    assert list(frame.header)[:4] == ["type", "uid", "nsp", "source"]
    assert frame.header["attachmentId"].isdigit()
    assert decode(frame.attachment or b"", nsp=nsp).packet() == fields.get("packet")  # type: ignore[union-attr]


@pytest.mark.parametrize("vector", TRANSACTIONAL, ids=lambda vector: vector["what"])
async def test_they_are_the_vectors(installed: Database, psql: psycopg.Connection, vector: dict[str, Any]) -> None:
    async with spying(installed, [vector["frame"]["channel"]]) as spy:
        call(psql, said_by(vector))
        [frame] = await spy.wait_for(lambda _: True)
    assert json.loads(frame.payload) == {**json.loads(vector["frame"]["payload"]), "k": frame.message["k"]}
    assert list(frame.message) == list(json.loads(vector["frame"]["payload"]))


@pytest.mark.parametrize("letter", ["x", "é", "😀"])
async def test_the_threshold_counts_bytes(installed: Database, psql: psycopg.Connection, letter: str) -> None:
    async with spying(installed) as spy, BusReader(installed) as reader:
        psql.execute("SELECT socketio.emit('size', '[\"\"]')")
        [empty] = await spy.wait_for(lambda _: True)
        texts = []
        for count, size in enumerate((7999, 8000), start=2):
            letters, rest = divmod(size - empty.payload_bytes, len(letter.encode()))
            texts.append(letter * letters + "." * rest)
            psql.execute("SELECT socketio.emit('size', jsonb_build_array(%s::text))", [texts[-1]])
            frame = (await spy.wait_for(lambda _: True, count))[-1]
            assert (frame.attachment is None, frame.payload_bytes == size) == (size < 8000, size < 8000)
        assert (await reader.wait_for(3))[1:] == [["size", text] for text in texts]


async def test_equal_messages_arrive_as_often_as_emitted(installed: Database, psql: psycopg.Connection) -> None:
    async with BusReader(installed) as reader:
        psql.execute("SELECT count(socketio.emit('tick')) FROM generate_series(1, 1000)")
        psql.execute("SELECT socketio.emit('end')")
        packets = await reader.wait_for(1001)
    assert packets == [["tick"]] * 1000 + [["end"]]
    assert reader.gap_infos == []
    assert reader.failures == []


async def test_emitters_and_sql_beside_each_other_leave_no_gap(installed: Database, psql: psycopg.Connection) -> None:
    async with BusReader(installed) as reader:
        with Emitter(installed.dsn) as io:
            for number in range(100):
                io.emit("ours", number)
                with psql.transaction(force_rollback=number % 2 == 0):
                    psql.execute("SELECT socketio.emit('sql', jsonb_build_array(%s))", [number])
            io.flush()  # `close` waits for five seconds only
        await reader.wait_for(150)
    assert [packet[1] for packet in reader.packets if packet[0] == "sql"] == list(range(1, 100, 2))
    assert reader.gap_infos == []


async def test_long_lists_of_rooms_are_not_hinted(installed: Database, psql: psycopg.Connection) -> None:
    rooms = [f"room-{number}" for number in range(1000)]
    async with spying(installed) as spy:
        psql.execute("SELECT socketio.emit('e', '[1]', %s)", [rooms])
        [frame] = await spy.wait_for(lambda _: True)
    assert "rooms" not in frame.header
    assert frame.message["data"]["opts"]["rooms"] == rooms


PIECES = st.lists(st.sampled_from([",", ":", " ", ", ", ": ", '"', "\\", "a", "é", "{", "]"]), max_size=6).map("".join)
"""Texts that look like JSON's own punctuation."""
JSON = st.recursive(
    st.one_of(PIECES, st.integers(), st.none(), st.booleans()),
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(PIECES, inner, max_size=5)),
)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(value=JSON)
@example(value={"a, b": 1, "a,b": 2})
@example(value=["x: y", "hello, world", 1, {"\\": '", "'}])
def test_wire_text_is_json_without_blanks(psql: psycopg.Connection, value: Any) -> None:
    row = psql.execute("SELECT socketio._compact(%s)", [Jsonb(value)]).fetchone()
    assert row is not None
    assert json.loads(row[0]) == value
    assert row[0] == json.dumps(json.loads(row[0]), separators=(",", ":"), ensure_ascii=False)
