"""The network between us and PostgreSQL: cut, silent, half open, slow, in crumbs, gone."""

from __future__ import annotations

import asyncio
import functools
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from socketio_postgres import (
    AsyncEmitter,
    AsyncPostgresManager,
    ClosedError,
    CommitInDoubtError,
    ConnectionLostError,
    GapInfo,
    Message,
    MessageType,
    SelfTestError,
)
from socketio_postgres._bus.bus import Bus
from socketio_postgres._bus.options import BusOptions
from tests.faults.conftest import Rounds
from tests.fixtures.bus import BusReader, publish, serving
from tests.fixtures.clients import PythonClient
from tests.fixtures.database import Database
from tests.fixtures.history import Arrival
from tests.fixtures.postgres import LISTENS, PUBLISHES, OwnPostgres, sessions
from tests.fixtures.proxy import Direction, Link, Proxy, Shape
from tests.fixtures.swallowing_proxy import swallowing_proxy
from tests.fixtures.tables import Recovered
from tests.fixtures.waiting import TIMEOUT_S, eventually
from tests.fixtures.worker import EVENT, checksum_of
from tests.fixtures.workload import (
    ANSWER_S,
    CHANNEL,
    SHORT_ANSWER_S,
    SHORT_PROBE_INTERVAL_S,
    Receiver,
    Workload,
    at_rest,
)

NOTICE_S = 2 * SHORT_PROBE_INTERVAL_S
"""A link without a sign of life is given up then."""
RECOVERY_S = NOTICE_S + 6.0
"""From the fault on: noticing, and a few attempts."""


@pytest.fixture
def proxy(postgres: OwnPostgres) -> Iterator[Proxy]:
    with Proxy(postgres.database) as running:
        yield running


async def link_of(proxy: Proxy, database: Database, condition: str) -> Link:
    """The one link of a session, once its predecessors have ended."""

    def alone() -> list[Link] | None:
        found = proxy.links_of(sessions(database, condition))
        return found if len(found) == 1 else None

    [link] = await eventually(alone, f"there is one link where {condition}") or []
    return link


async def test_all_links_are_reset(postgres: OwnPostgres, proxy: Proxy, rounds: Rounds, recovered: Recovered) -> None:
    database = postgres.database
    async with Receiver(Database(proxy.dsn)) as receiver, Workload(database, proxy.dsn) as work:
        await work.recover(receiver)
        for number in rounds(3):
            proxy.reset()
            recovered(await work.recover(receiver), RECOVERY_S)
            # What comes before the new session has answered its first probe is there before the gap is told.
            await eventually(lambda number=number: receiver.reconnects() == number, "the gap is told once")  # type: ignore[misc]
        await work.check(receiver)
    await at_rest(database)


async def test_the_publishers_links_are_reset(
    postgres: OwnPostgres, proxy: Proxy, rounds: Rounds, recovered: Recovered
) -> None:
    database = postgres.database
    async with Receiver(database) as receiver, Workload(database, proxy.dsn, rate=1000) as work:
        await work.recover(receiver)
        for _ in rounds(5):
            proxy.reset()
            recovered(await work.recover(receiver), RECOVERY_S)
        verdict = await work.check(receiver)
    assert verdict.lost == 0
    assert verdict.failed == verdict.in_doubt
    assert receiver.reconnects() == 0
    await at_rest(database)


SILENCES: dict[str, tuple[Callable[..., None], tuple[Direction, ...]]] = {
    "black hole": (Link.swallow, ()),
    "black hole to the server": (Link.swallow, ("to_server",)),
    "black hole to us": (Link.swallow, ("to_client",)),
    "half open": (Link.freeze, ()),
    "half open to us": (Link.freeze, ("to_client",)),
}


@pytest.mark.parametrize("silence", SILENCES)
async def test_the_listeners_link_falls_silent(
    postgres: OwnPostgres, proxy: Proxy, silence: str, recovered: Recovered
) -> None:
    """Nothing is closed and nothing is said; a worker that looked healthy would be deaf for ever."""
    database = postgres.database
    receiving = Receiver(Database(proxy.dsn), probe_interval=SHORT_PROBE_INTERVAL_S)
    async with receiving as receiver, Receiver(database) as another, Workload(database) as work:
        await work.recover(receiver)
        break_, directions = SILENCES[silence]
        link = await link_of(proxy, database, LISTENS)
        before = receiver.reconnects()
        proxy.refuse()  # so that something is sent before it listens again, however slow the senders are
        since = time.time()
        break_(link, *directions)
        await work.recover(another)
        proxy.accept()
        await eventually(lambda: receiver.reconnects() > before, "it is noticed and told")
        recovered(await work.recover(receiver, since), RECOVERY_S)
        verdict = await work.check(receiver)
        assert verdict.failed == 0
        assert receiver.stats["missing_messages"] == verdict.lost
        if directions != ("to_server",):  # there the server goes on sending, until it gives up on us
            assert verdict.lost > 0, "what was sent meanwhile is lost, or the link was not silent"
            assert any("did not finish within" in str(failure) for failure in receiver.failures)
    await at_rest(database)


@pytest.mark.parametrize("silence", SILENCES)
async def test_the_publishers_links_fall_silent(
    postgres: OwnPostgres, proxy: Proxy, silence: str, recovered: Recovered
) -> None:
    """Whether a commit happened cannot be known then; everything behind it is sent on another connection."""
    database = postgres.database
    working = Workload(database, proxy.dsn, kinds=["manager"], rate=1000, answer=SHORT_ANSWER_S)
    async with Receiver(database) as receiver, working as work:
        await work.recover(receiver)
        break_, directions = SILENCES[silence]
        break_(await link_of(proxy, database, PUBLISHES), *directions)
        # What is under way may still come that way, and what follows it waits.
        recovered(await work.recover(receiver, time.time() + 1), RECOVERY_S)
        verdict = await work.check(receiver)
        assert verdict.lost == 0
        assert verdict.in_doubt > 0
        assert verdict.failed == verdict.in_doubt
    await at_rest(database)


async def test_a_silent_connection_is_closed_when_it_is_given_up(postgres: OwnPostgres, proxy: Proxy) -> None:
    """Or each silence would leave a socket here, and a session of PostgreSQL, that nobody uses any more."""
    database = postgres.database
    timing: dict[str, Any] = {"heartbeat_interval": 2.0, "heartbeat_timeout": 4.0}
    async with serving(Database(proxy.dsn), listen_dsn=database.dsn, **timing) as one:
        await one.manager.start()
        link = await link_of(proxy, database, PUBLISHES)
        link.freeze("to_client")
        await one.sio.emit("doubtful")
        with pytest.raises(CommitInDoubtError):
            await one.manager.flush()
        await eventually(lambda: link not in proxy.links, "our end is closed")


@pytest.mark.parametrize(
    ("shape", "rate"),
    [
        # So few that a starved proxy, which takes a turn for each crumb, can pass on what is sent.
        pytest.param(Shape(slice_bytes=11), 5, id="crumbs"),
        pytest.param(Shape(bytes_per_second=300_000, slice_bytes=1000), 40, id="slow"),
    ],
)
async def test_a_bad_link_loses_nothing(postgres: OwnPostgres, proxy: Proxy, shape: Shape, rate: float) -> None:
    """Bytes come slowly, or a few at a time, so that every frame is cut in the middle; that is no fault."""
    database = postgres.database
    async with Receiver(Database(proxy.dsn)) as receiver:
        working = Workload(database, proxy.dsn, kinds=["emitter", "async_emitter"], rate=rate, answer=2 * ANSWER_S)
        async with working as work:
            await work.recover(receiver)
            proxy.shape = shape
            await work.recover(receiver, timeout=2 * TIMEOUT_S)
            await asyncio.sleep(1)
            verdict = await work.check(receiver)
        assert (verdict.lost, verdict.failed) == (0, 0)
        assert receiver.gaps == []
    await at_rest(database)


@pytest.mark.parametrize("behind_it", ["a LISTEN", "a message of our own"])
async def test_a_backlog_on_a_slow_link_is_no_silence(postgres: OwnPostgres, proxy: Proxy, behind_it: str) -> None:
    """What we wait for is several limits away, and the server has nothing to do meanwhile.

    To give the session up, here or there, would lose all of it.
    """
    database = postgres.database
    async with Receiver(Database(proxy.dsn), probe_interval=5) as receiver, AsyncEmitter(database.dsn) as io:
        link = await link_of(proxy, database, LISTENS)
        proxy.shape = Shape(bytes_per_second=25_000, slice_bytes=1000)
        body = "x" * 7000
        emits = [io.emit(EVENT, "one", number, 0, f"{checksum_of(body):010}", body) for number in range(70)]
        await asyncio.gather(*emits)
        core = receiver.bus.core
        if behind_it == "a LISTEN":
            await receiver.bus.call(functools.partial(core.listen, "another"))
            assert receiver.stats["channels"] == 2
        elif behind_it == "a message of our own":
            await publish(receiver.bus, Message(MessageType.SOCKETS_JOIN, "/", to=["a"], rooms=["b"]))
            await eventually(lambda: receiver.stats["own"] == 1, "it comes back", 2 * TIMEOUT_S)
        await eventually(lambda: len(receiver.stream) == 70, "it all comes", 2 * TIMEOUT_S)
        proxy.shape = Shape()
        await receiver.bus.call(functools.partial(core.listen, "the next answer"))
        assert receiver.stream == [Arrival("one", number) for number in range(70)]
        assert link in proxy.links, "it is the same session"
    await at_rest(database)


async def test_a_server_starts_behind_a_backlog_on_a_slow_link(postgres: OwnPostgres, proxy: Proxy) -> None:
    """Its own first message comes back several limits later, and that is no deafness."""
    database = postgres.database
    timing: dict[str, Any] = {"heartbeat_interval": 5.0, "heartbeat_timeout": 10.0}
    backlog = """
        SELECT count(pg_notify(%s, format('{"uid":"emitter","type":3,"data":{"opts":{},"packet":{"type":2,'
            '"data":["backlog",%%s,"%%s"]}}}', n, repeat('x', 7000)))) FROM generate_series(1, 70) AS n
    """
    with Proxy(database) as publishing:
        server = serving(Database(publishing.dsn), listen_dsn=proxy.dsn, **timing)
        async with server as one:
            proxy.shape = Shape(bytes_per_second=2000)  # so that LISTEN takes a moment
            starting = asyncio.create_task(one.manager.start())
            await eventually(lambda: proxy.links, "the publisher is there, the listener comes")
            [link] = publishing.links
            link.freeze("to_server")  # its first message waits
            await eventually(lambda: sessions(database, LISTENS), "it listens, or asks the next question already")
            proxy.shape = Shape(bytes_per_second=25_000, slice_bytes=1000)
            database.value(backlog, CHANNEL)  # in one go: it takes twenty seconds to arrive
            link.thaw()
            began = time.monotonic()
            await starting
            assert time.monotonic() - began > timing["heartbeat_timeout"], "the backlog was long enough"
            assert one.errors == []


async def test_a_server_that_cannot_hear_does_not_start(database: Database) -> None:
    """Whatever is in between answers every question and lets no notification through."""
    async with swallowing_proxy(database) as deaf:
        timing: dict[str, Any] = {"heartbeat_interval": 3.0, "heartbeat_timeout": 6.0}
        async with serving(database, listen_dsn=deaf, **timing) as one:
            with pytest.raises(SelfTestError):
                await asyncio.wait_for(one.manager.start(), TIMEOUT_S)


SLOW = Shape(bytes_per_second=300_000, slice_bytes=30_000)
LARGE = bytes(4 * 1024 * 1024)
"""Takes fourteen seconds on such a link."""


async def test_a_large_message_on_a_slow_link_is_committed(postgres: OwnPostgres, proxy: Proxy) -> None:
    """All of it is taken off our hands at once; that nothing comes back for several limits is no silence."""
    database = postgres.database
    timing: dict[str, Any] = {"heartbeat_interval": 2.0, "heartbeat_timeout": 4.0}
    errors: list[Exception] = []
    manager = AsyncPostgresManager(proxy.dsn, write_only=True, error_handler=errors.append, **timing)
    async with BusReader(database) as reader, manager:
        proxy.shape = SLOW
        await manager.emit("large", LARGE)
        await manager.emit("small", 1)
        await manager.flush()
        assert await reader.wait_for(2) == [["large", LARGE], ["small", 1]]
        assert manager.stats()["publisher_reconnects"] == 0
        assert errors == []


async def test_a_large_row_on_a_slow_link_is_read(postgres: OwnPostgres, proxy: Proxy) -> None:
    """Nor is it a silence that the answer takes several limits, as long as more and more of it comes."""
    database = postgres.database
    async with (
        BusReader(database, dsn=proxy.dsn, listen_dsn=database.dsn, heartbeat_timeout=6.0) as reader,
        AsyncEmitter(database.dsn) as io,
    ):
        proxy.shape = SLOW
        await io.emit("large", LARGE)
        await io.emit("small", 1)
        await eventually(lambda: len(reader.packets) == 2, "both come", 2 * TIMEOUT_S)
        assert reader.packets == [["large", LARGE], ["small", 1]]
        assert len(proxy.links) == 1, "it came by this way"
        assert reader.failures == []


async def test_a_link_that_fell_silent_costs_no_attachment(postgres: OwnPostgres, proxy: Proxy) -> None:
    """However long it takes to notice, what was asked for is asked for again."""
    database = postgres.database
    async with (
        BusReader(database, dsn=proxy.dsn, listen_dsn=database.dsn, heartbeat_timeout=11.0) as reader,
        AsyncEmitter(database.dsn) as io,
    ):
        await io.emit("first", b"1")
        await reader.wait_for(1)
        [link] = proxy.links
        link.swallow()
        await asyncio.gather(*(io.emit("second", b"2", number) for number in range(3)))
        assert await reader.wait_for(4) == [["first", b"1"], *(["second", b"2", number] for number in range(3))]
        assert reader.gap_infos == []


async def test_no_connection_can_be_made(
    postgres: OwnPostgres, proxy: Proxy, rounds: Rounds, recovered: Recovered
) -> None:
    """All are cut, and the port is closed for a while: a firewall, or a name that leads nowhere."""
    database = postgres.database
    async with Receiver(Database(proxy.dsn)) as receiver, Workload(database, proxy.dsn) as work:
        await work.recover(receiver)
        for number in rounds(1):
            proxy.refuse()
            proxy.reset()
            await eventually(lambda: not receiver.stats["is_listening"], "it is noticed")
            await asyncio.sleep(1)
            proxy.accept()
            recovered(await work.recover(receiver), RECOVERY_S)
            await eventually(lambda number=number: receiver.reconnects() == number, "the gap is told once")  # type: ignore[misc]
        await work.check(receiver)
    await at_rest(database)


async def test_a_gap_is_told_when_nothing_more_is_lost(postgres: OwnPostgres, proxy: Proxy) -> None:
    """Not before LISTEN is active, however long that takes: whoever reads the truth then misses nothing after it."""
    database = postgres.database
    states: list[str] = []

    def on_gap(_: GapInfo) -> None:
        states.append(one.manager.stats()["state"])
        frame = '{"type":3,"uid":"peer","nsp":"/","data":{"opts":{},"packet":{"type":2,"data":["after the gap"]}}}'
        connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL, frame))

    server = serving(database, listen_dsn=proxy.dsn, on_gap=on_gap)
    with database.connect() as connection:
        async with server as one:
            await one.manager.start()
            client = await PythonClient.connect(one.url)
            proxy.shape = Shape(bytes_per_second=2000)  # so LISTEN takes a moment
            proxy.reset()
            await client.wait_for("after the gap")
            assert states == ["listening"]
            proxy.shape = Shape()
            await client.disconnect()


async def test_the_listener_ends_up_at_another_server(postgres: OwnPostgres, proxy: Proxy) -> None:
    """A name that leads to an old primary: its session is in best health, and would never hear anything again."""
    database = postgres.database
    with OwnPostgres() as other:
        server = serving(database, listen_dsn=proxy.dsn, heartbeat_interval=2.5, heartbeat_timeout=5.0)
        async with server as one:
            await one.manager.start()
            proxy.redirect(other.database)
            proxy.reset()
            await eventually(lambda: one.manager.stats()["listener_reconnects"] > 0, "it listens again")
            await eventually(lambda: sessions(other.database, LISTENS), "it listens there")
            # Nothing but the echo of what it says itself can show it.
            await one.manager.emit("anything", 1)
            found = await eventually(
                lambda: [error for error in one.errors if isinstance(error, SelfTestError)], "it is noticed"
            )
            assert {error.likely_cause for error in found} == {"other_database"}
            proxy.redirect(database)
            proxy.reset()
            await eventually(lambda: sessions(database, LISTENS), "it listens at the right one")
            await eventually(lambda: one.manager.stats()["is_listening"], "it says so")


async def test_an_attachment_that_is_not_answered_for_is_in_doubt(postgres: OwnPostgres, proxy: Proxy) -> None:
    """It is there, and the answer that says so got lost; before the statement was sent nothing is in doubt."""
    database = postgres.database
    bus = Bus(BusOptions(proxy.dsn), uid=lambda: "0123456789abcdef", probe_interval=5.0)
    insert = functools.partial(bus.core.insert_attachment, b"body")
    try:
        await bus.call(insert)
        before = database.value("SELECT count(*) FROM socket_io_attachments")
        assert isinstance(before, int)
        [link] = proxy.links
        link.freeze("to_client")
        inserting = asyncio.create_task(bus.call(insert))
        count = "SELECT count(*) FROM socket_io_attachments"
        await eventually(lambda: database.value(count) == before + 1, "it is there")
        with pytest.raises(CommitInDoubtError, match="did not answer"):
            await inserting
        assert database.value(count) == before + 1
        proxy.refuse()
        with pytest.raises(ConnectionLostError) as caught:
            await bus.call(insert)
        assert not caught.value.may_be_sent
    finally:
        await bus.close(1.0)


@pytest.fixture
def black_hole() -> Iterator[str]:
    """The DSN of a host that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"host=127.0.0.1 port={server.getsockname()[1]} user=any dbname=any connect_timeout=60"


async def test_closing_does_not_wait_for_a_connection(black_hole: str) -> None:
    """Nobody answers for as long as `connect_timeout` allows; whoever closes then is not held up by that."""
    manager = AsyncPostgresManager(black_hole, write_only=True)
    starting = asyncio.ensure_future(manager.start())
    await asyncio.sleep(0.2)  # it is connecting; earlier is no harder
    assert not starting.done()
    await asyncio.wait_for(manager.close(), 30)
    with pytest.raises(ClosedError):
        await starting
