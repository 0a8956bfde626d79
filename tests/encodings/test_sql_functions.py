"""The SQL functions in databases of other encodings: PostgreSQL converts what they send for those who listen."""

from __future__ import annotations

import pytest

from socketio_postgres import AsyncEmitter
from tests.fixtures.bus import BusReader
from tests.fixtures.database import Database

KEY = "correct horse battery staple"


@pytest.fixture(params=["LATIN1", "EUC_JP", "SQL_ASCII"])
def encoding(request: pytest.FixtureRequest) -> str:
    """What the test's database keeps text in."""
    encoding: str = request.param
    return encoding


async def test_what_the_database_can_store_arrives(database: Database, encoding: str) -> None:
    letter = "日" if encoding == "EUC_JP" else "é"
    async with (
        BusReader(database, signing_key=KEY) as reader,
        AsyncEmitter(database.dsn, signing_key=KEY) as io,
    ):
        await io.install_sql()
        for count in (10, 2650, 5000):
            # The second is near the limit: what counts is the longer of both texts, the stored and the sent one.
            database.value(
                "SELECT socketio.emit('e' || %s, jsonb_build_array(repeat(%s, %s)), ARRAY[%s])::text",
                letter, letter, count, letter,
            )  # fmt: skip
        packets = await reader.wait_for(3)
    assert packets == [["e" + letter, letter * count] for count in (10, 2650, 5000)]
    assert [message.to for message in reader.messages] == [[letter]] * 3
    assert reader.failures == []
