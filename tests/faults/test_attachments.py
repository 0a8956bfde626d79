"""Attachments that are gone before anybody has read them, and a table that is."""

from __future__ import annotations

import asyncio
import threading

from socketio_postgres import AsyncEmitter, AttachmentMissingError, GapInfo
from tests.fixtures.bus import BusReader, serving
from tests.fixtures.clients import PythonClient
from tests.fixtures.database import Database
from tests.fixtures.history import Gap
from tests.fixtures.postgres import OwnPostgres, the_session
from tests.fixtures.proxy import Proxy
from tests.fixtures.waiting import TIMEOUT_S, eventually
from tests.fixtures.workload import Receiver, Workload, at_rest

TABLE = "socket_io_attachments"
FETCHES = f"query ~ '{TABLE}' AND query !~ 'pg_notify'"

DROP_EVERY_THIRD = f"""
    CREATE FUNCTION forget() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN IF NEW.id % 3 = 0 THEN RETURN NULL; END IF; RETURN NEW; END $$;
    CREATE TRIGGER forget BEFORE INSERT ON {TABLE} FOR EACH ROW EXECUTE FUNCTION forget()
"""


async def test_every_third_is_gone(database: Database) -> None:
    """The notification came, and the row is not there: one message is missing, and a gap stands exactly there."""
    async with Receiver(database) as receiver, Workload(database) as work:
        await work.recover(receiver)
        with database.connect() as connection:
            connection.execute(DROP_EVERY_THIRD)
        await work.recover(receiver)
        await eventually(lambda: receiver.stats["attachments_missing"], "some are gone")
        with database.connect() as connection:
            connection.execute(f"DROP TRIGGER forget ON {TABLE}")
        verdict = await work.check(receiver)
        missing = receiver.stats["attachments_missing"]
        assert missing > 0
        assert verdict.lost == missing
        assert verdict.failed == 0
        assert {(gap.reason, gap.missing) for gap in receiver.gaps} == {("attachment", 1)}
        assert {type(failure) for failure in receiver.failures} == {AttachmentMissingError}
    await at_rest(database)


async def test_somebody_deletes_all_the_time(database: Database) -> None:
    """A clean-up with the wrong age races with every reader."""
    async with Receiver(database) as receiver, Workload(database) as work:
        await work.recover(receiver)
        is_over = threading.Event()

        def delete() -> None:
            with database.connect() as connection:
                while not is_over.wait(0.01):
                    connection.execute(f"DELETE FROM {TABLE}")

        deleting = asyncio.create_task(asyncio.to_thread(delete))
        await asyncio.sleep(2)
        is_over.set()
        await deleting
        verdict = await work.check(receiver)
        assert verdict.failed == 0
        assert verdict.lost == receiver.stats["attachments_missing"]
    await at_rest(database)


async def test_the_fetching_session_is_terminated(database: Database) -> None:
    """A fetch that breaks is repeated: nothing is lost, and order is kept meanwhile."""
    async with Receiver(database) as receiver, Workload(database) as work:
        await work.recover(receiver)
        for _ in range(5):
            fetcher = await the_session(database, FETCHES)
            database.value("SELECT pg_terminate_backend(%s)", fetcher)
            await work.recover(receiver)
        verdict = await work.check(receiver)
        assert (verdict.lost, verdict.failed) == (0, 0)
        assert receiver.gaps == []
    await at_rest(database)


async def test_the_table_is_dropped(database: Database) -> None:
    """By an overeager migration, or because the server crashed before it was durable: it is made anew."""
    async with Receiver(database) as receiver, Workload(database) as work:
        await work.recover(receiver)
        for number in (1, 2):
            with database.connect() as connection:
                # The next table counts from 1: who reads late must not find another's body under its id.
                connection.execute("SELECT setval(pg_get_serial_sequence(%s, 'id'), %s)", (TABLE, number * 10**9))
                await work.recover(receiver)
                connection.execute(f"DROP TABLE {TABLE}")
            await work.recover(receiver)
            await eventually(lambda: database.value("SELECT to_regclass(%s)::text", TABLE), "there is a table again")
            await work.recover(receiver)
        await work.check(receiver)
        before = receiver.stats["attachments"]
        async with AsyncEmitter(database.dsn) as io:
            await io.emit("work", "x", 0, 0, "0000000000", b"")
        await eventually(lambda: receiver.stats["attachments"] == before + 1, "attachments are read again")
    await at_rest(database)


async def test_no_more_is_read_at_once_than_fits_into_memory(postgres: OwnPostgres) -> None:
    """What piled up while the database could not be asked comes in parts of 16 MiB."""
    database, mebibyte = postgres.database, 1024 * 1024
    with Proxy(database) as proxy:
        reading = BusReader(
            database, ("/", "/fence"), dsn=proxy.dsn, listen_dsn=database.dsn, heartbeat_timeout=4 * TIMEOUT_S
        )
        async with reading as reader, AsyncEmitter(database.dsn) as io:
            await io.emit("first", b"")
            await reader.wait_for(1)
            [link] = proxy.links
            link.freeze()
            for number in range(12):
                await io.emit("large", bytes(3 * mebibyte), number)
            await io.of("/fence").emit("all are announced")
            await reader.wait_for(2)
            link.thaw()
            packets = await reader.wait_for(14)
            assert [packet[2] for packet in packets[2:]] == list(range(12))
            assert proxy.links == [link], "all came this way"
            assert 12 * mebibyte < link.largest_answer_bytes < 17 * mebibyte
            assert reader.gap_infos == []


async def test_an_application_is_told(database: Database) -> None:
    gaps: list[GapInfo] = []
    async with serving(database, on_gap=gaps.append) as one, AsyncEmitter(database.dsn) as io:
        await one.manager.start()
        client = await PythonClient.connect(one.url)
        await io.emit("first", b"1")
        await client.wait_for("first")
        with database.connect() as connection:
            connection.execute(DROP_EVERY_THIRD.replace("% 3 = 0", "> 0"))
        await asyncio.gather(io.emit("second", b"2"), io.emit("third"))
        assert await client.wait_for("third") == [()]
        await eventually(lambda: gaps, "the gap is told")
        [gap] = gaps
        assert Gap(gap.reason, None, gap.missing) == Gap("attachment", None, 1)
        assert gap.namespace == "/"
        assert str(gap.sender).startswith("emitter/")
        assert client.received("second") == []
        assert one.manager.stats()["missing_messages"] == 1
        await client.disconnect()
