"""With a signing key, only who has it is listened to."""

from __future__ import annotations

import json
from typing import Any

import pytest

from socketio_postgres import AsyncEmitter, Emitter, OptionsError, SignatureError
from tests.fixtures.bus import BusReader, acquainted, serving
from tests.fixtures.clients import PythonClient
from tests.fixtures.database import Database
from tests.fixtures.spy import spying
from tests.fixtures.waiting import eventually

KEY = "correct horse battery staple"
BIG = "é" * 5000


async def test_holders_of_the_key_understand_each_other(database: Database) -> None:
    async with serving(database, signing_key=KEY) as one, serving(database, signing_key=KEY.encode()) as two:
        await acquainted(one, two)
        client = await PythonClient.connect(two.url)
        await one.sio.emit("hello", 1)
        await one.sio.emit("hello", BIG)
        await one.sio.emit("hello", b"\x00")
        await one.manager.flush()  # another sender follows
        with Emitter(database.dsn, signing_key=KEY) as io:
            io.emit("hello", 4)
        assert await client.wait_for("hello", 4) == [(1,), (BIG,), (b"\x00",), (4,)]
        assert len(await one.manager.fetch_sockets()) == 1
        assert one.errors == two.errors == []
        await client.disconnect()


@pytest.mark.parametrize("key", [None, "another key, as long"])
async def test_others_are_dropped_counted_and_reported(database: Database, key: str | None) -> None:
    async with (
        BusReader(database, signing_key=KEY) as reader,
        AsyncEmitter(database.dsn, signing_key=key) as stranger,
        AsyncEmitter(database.dsn, signing_key=KEY) as friend,
    ):
        for value in (1, BIG, b"\x00"):
            await stranger.emit("hello", value)
        await friend.emit("hello", "friend")
        assert await reader.wait_for(1) == [["hello", "friend"]]
        await eventually(lambda: len(reader.failures) == 3, "all are reported")
        assert {type(failure) for failure in reader.failures} == {SignatureError}
        assert reader.stats["bad_signatures"] == 3
        assert reader.gap_infos == []


async def test_nothing_can_be_changed_or_moved(database: Database) -> None:
    channels = ["socket.io#/", "socket.io#/other"]
    reader = BusReader(database, ("/", "/other"), signing_key=KEY)
    async with spying(database, channels) as spy, reader, AsyncEmitter(database.dsn, signing_key=KEY) as io:
        await io.emit("hello", 1)
        await io.emit("hello", BIG)
        await reader.wait_for(2)
        inline, header = (frame.payload for frame in await spy.wait_for(lambda _: True, 2))
        row = json.loads(header)["attachmentId"]
        other_row = database.value("INSERT INTO socket_io_attachments (payload) VALUES ('\\x90') RETURNING id")
        forged: list[tuple[str, str]] = [
            (channels[0], inline.replace('"hello"', '"hullo"')),
            (channels[0], inline.replace('"n":1', '"n":77')),
            (channels[1], inline.replace('"n":1', '"n":1')),
            (channels[0], inline[:-1] + ',"type":6}'),
            (channels[0], header.replace(f'"attachmentId":"{row}"', f'"attachmentId":"{row}","nsp":"/x"')),
            (channels[0], header.replace('"n":2', '"n":9')),
        ]
        with database.connect() as connection:
            for channel, payload in forged:
                connection.execute("SELECT pg_notify(%s, %s)", (channel, payload))
        await eventually(lambda: reader.stats["bad_signatures"] == len(forged))
        # A header that is genuine, and so counts as heard, with somebody else's row.
        await io.emit("hello", BIG + "!")
        await reader.wait_for(3)
        with database.connect() as connection:
            connection.execute("UPDATE socket_io_attachments SET payload = '\\x90'")
            swapped = header.replace(f'"{row}"', f'"{other_row}"')
            connection.execute("SELECT pg_notify(%s, %s)", (channels[0], swapped))
        await eventually(lambda: reader.stats["duplicates"] == 1, "a replay is a repeated number")
        assert len(reader.packets) == 3


async def test_a_body_that_was_not_signed_is_a_gap(database: Database) -> None:
    async with BusReader(database, signing_key=KEY) as reader, AsyncEmitter(database.dsn, signing_key=KEY) as io:
        await io.emit("hello", BIG)
        await reader.wait_for(1)
        with database.connect() as connection:
            connection.execute(
                "CREATE FUNCTION forge() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.payload = '\\x90'; "
                "RETURN NEW; END $$"
            )
            connection.execute(
                "CREATE TRIGGER forge BEFORE INSERT ON socket_io_attachments FOR EACH ROW EXECUTE FUNCTION forge()"
            )
        await io.emit("hello", BIG)
        await eventually(lambda: [gap.reason for gap in reader.gap_infos] == ["attachment"])
        await eventually(lambda: reader.failures, "and why")
        assert [type(failure) for failure in reader.failures] == [SignatureError]


@pytest.mark.parametrize("key", ["short", b"15 bytes only..", 7, ["a" * 20]])
def test_bad_keys_are_refused_without_being_shown(key: Any) -> None:
    with pytest.raises(OptionsError) as caught:
        Emitter("", signing_key=key)
    assert caught.value.option == "signing_key"
    assert "short" not in str(caught.value)


def test_the_key_stands_in_no_repr() -> None:
    io = Emitter("host=db", signing_key=KEY)
    assert KEY not in repr(io)
    assert KEY not in repr(io._bus.options)
    assert KEY not in str(vars(io))
