"""The low-level clients: every method, asynchronous and blocking."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from socketio_postgres import (
    AsyncPostgresClient,
    ClosedError,
    ConnectionLostError,
    DatabaseError,
    EncodeError,
    GapInfo,
    Notification,
    OperationTimeoutError,
    OptionsError,
    PayloadTooLargeError,
    PostgresClient,
    SocketIOPostgresError,
)
from tests.fixtures.database import Database
from tests.fixtures.postgres import LISTENS, sessions, terminate
from tests.fixtures.waiting import TIMEOUT_S, eventually


class Steered:
    """Either client behind one face: blocking methods run in a thread, as an application would have it."""

    def __init__(self, client: Any) -> None:
        self.client = client

    async def __call__(self, method: str, *args: Any, **kwargs: Any) -> Any:
        call: Callable[..., Any] = getattr(self.client, method)
        if isinstance(self.client, AsyncPostgresClient):
            return await asyncio.wait_for(call(*args, **kwargs), TIMEOUT_S)
        return await asyncio.wait_for(asyncio.to_thread(call, *args, **kwargs), TIMEOUT_S)

    async def next(self) -> Notification:
        """The next notification, by the method; another test iterates."""
        notification = await self("wait_for_notification", TIMEOUT_S)
        assert isinstance(notification, Notification)
        return notification


@pytest.fixture(params=[AsyncPostgresClient, PostgresClient], ids=lambda kind: kind.__name__)
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
async def client(database: Database, kind: Any) -> AsyncIterator[Steered]:
    steered = Steered(kind(database.dsn))
    yield steered
    await steered("close")


@pytest.fixture
async def other(database: Database) -> AsyncIterator[AsyncPostgresClient]:
    async with AsyncPostgresClient(database.dsn) as client:
        yield client


async def test_notifications_reach_who_listens(client: Steered, other: AsyncPostgresClient) -> None:
    await client("listen", "jobs")
    await other.notify("jobs", "first")
    await client("notify", "jobs", "second")  # its own arrive, too: this is no cluster
    await other.notify("elsewhere", "unheard")
    await other.notify("jobs")
    first, second, third = [await client.next() for _ in range(3)]
    assert [(n.channel, n.payload) for n in (first, second, third)] == [
        ("jobs", "first"),
        ("jobs", "second"),
        ("jobs", ""),
    ]
    assert first.pid == third.pid != second.pid


async def test_several_channels_and_unlisten(client: Steered, other: AsyncPostgresClient) -> None:
    for channel in ("jobs", "Jobs", 'odd "name"; --', "é" * 31):
        await client("listen", channel)
        await client("listen", channel)  # twice is once
        await other.notify(channel, "x")
        assert (await client.next()).channel == channel
    await client("unlisten", "jobs")
    await client("unlisten", "never listened to")
    await other.notify("jobs", "unheard")
    await other.notify("Jobs", "heard")
    assert (await client.next()).payload == "heard"


async def test_notifications_keep_their_order(client: Steered, other: AsyncPostgresClient) -> None:
    await client("listen", "jobs")
    await asyncio.gather(*(other.notify("jobs", str(number)) for number in range(500)))
    assert [(await client.next()).payload for _ in range(500)] == [str(number) for number in range(500)]


async def test_what_is_sent_together_keeps_its_channel_and_its_place(
    client: Steered, other: AsyncPostgresClient
) -> None:
    for channel in "abc":
        await client("listen", channel)
    sent = [Notification("abc"[number % 3], f"{number}", 0) for number in range(300)]
    await asyncio.gather(*(other.notify(each.channel, each.payload) for each in sent))
    seen = [await client.next() for _ in sent]
    assert [(each.channel, each.payload) for each in seen] == [(each.channel, each.payload) for each in sent]
    assert other.stats()["publish_groups"] < len(sent), "some waited together, however slow this machine is"


async def test_equal_notifications_all_arrive(client: Steered, other: AsyncPostgresClient) -> None:
    await client("listen", "jobs")
    await asyncio.gather(*(other.notify("jobs", "same") for _ in range(50)))
    assert [(await client.next()).payload for _ in range(50)] == ["same"] * 50
    with pytest.raises(OperationTimeoutError):
        await client("wait_for_notification", 0.05)


async def test_waiting_has_a_limit(client: Steered, other: AsyncPostgresClient) -> None:
    await client("listen", "jobs")
    for limit in (0.05, 0, 0.0):
        with pytest.raises(OperationTimeoutError, match="no notification within"):
            await client("wait_for_notification", limit)
    await other.notify("jobs", "x")  # and nothing was lost by that
    assert (await client.next()).payload == "x"


@pytest.mark.parametrize("size", [7999, 8000])
async def test_the_largest_payload(client: Steered, other: AsyncPostgresClient, size: int) -> None:
    await client("listen", "jobs")
    payload = "é" * (size // 2) + "x" * (size % 2)
    if size > 7999:
        with pytest.raises(PayloadTooLargeError) as caught:
            await client("notify", "jobs", payload)
        assert (caught.value.size_bytes, caught.value.limit_bytes) == (8000, 7999)
    else:
        await client("notify", "jobs", payload)
        assert (await client.next()).payload == payload


async def test_bad_arguments(client: Steered) -> None:
    for method, args in [("listen", ()), ("unlisten", ()), ("notify", ("x",))]:
        if method != "unlisten":
            with pytest.raises(PayloadTooLargeError, match="63"):
                await client(method, "x" * 64, *args)
            for channel in ("", "a\0b"):
                with pytest.raises(OptionsError, match="channel"):
                    await client(method, channel, *args)
        for no_channel in (None, 5, b"jobs"):
            with pytest.raises(TypeError):
                await client(method, no_channel, *args)
    with pytest.raises(EncodeError, match="NUL"):
        await client("notify", "jobs", "a\0b")
    with pytest.raises(TypeError):
        await client("notify", "jobs", b"bytes")
    with pytest.raises(TypeError):
        await client("insert_attachment", "text")
    for no_id in ("7", None, 1.5):
        with pytest.raises(TypeError):
            await client("get_attachment", no_id)


async def test_attachments(client: Steered, database: Database) -> None:
    await client("ensure_table")
    await client("ensure_table")
    assert database.value("SELECT count(*) FROM socket_io_attachments") == 0
    bodies = [b"", b"\x00\xff", bytes(1_000_000)]
    ids = [await client("insert_attachment", body) for body in bodies]
    assert ids == sorted(set(ids))
    assert [await client("get_attachment", each) for each in ids] == bodies
    assert await client("get_attachment", max(ids) + 1) is None
    assert await client("get_attachment", -1) is None


async def test_clean_up_goes_by_age(client: Steered, database: Database) -> None:
    await client("ensure_table")
    with database.connect() as connection:
        connection.execute(
            "INSERT INTO socket_io_attachments (payload, created_at)"
            " SELECT '', now() - make_interval(secs => age) FROM unnest(ARRAY[0, 31, 3600]) AS t(age)"
        )
    assert await client("cleanup_attachments") == 2
    assert await client("cleanup_attachments") == 0
    with database.connect() as connection:
        # A slow machine may make anything old meanwhile, but not what is yet to come.
        connection.execute(
            "TRUNCATE socket_io_attachments; INSERT INTO socket_io_attachments (payload, created_at)"
            " SELECT '', now() - make_interval(secs => age) FROM unnest(ARRAY[-3600, 11]) AS t(age)"
        )
        assert await client("cleanup_attachments", 10.0) == 1
        assert database.value("SELECT count(*) FROM socket_io_attachments") == 1
        connection.execute("UPDATE socket_io_attachments SET created_at = now()")
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s)", [0x73696F2E7067])  # another is deleting
            assert await client("cleanup_attachments", 0.0) == 0
    assert await client("cleanup_attachments", 0.0) == 1


async def test_a_missing_table_that_may_not_be_created(database: Database, kind: Any) -> None:
    client = Steered(kind(database.dsn, create_table=False, table_name="events"))
    with pytest.raises(DatabaseError) as caught:
        await client("ensure_table")
    assert caught.value.sqlstate == "42P01"
    assert 'CREATE UNLOGGED TABLE IF NOT EXISTS "events"' in (caught.value.hint or "")
    for method, args in [("insert_attachment", (b"",)), ("get_attachment", (1,)), ("cleanup_attachments", ())]:
        with pytest.raises(DatabaseError) as caught:
            await client(method, *args)
        assert caught.value.sqlstate == "42P01"
    await client("close")


async def test_a_gap_is_told_and_healed(database: Database, kind: Any, other: AsyncPostgresClient) -> None:
    errors: list[Exception] = []
    gaps: list[GapInfo] = []
    client = Steered(kind(database.dsn, error_handler=errors.append, on_gap=gaps.append))
    await client("listen", "jobs")
    await client("listen", "more")
    before = time.time()
    await other.notify("jobs", "before")
    assert (await client.next()).payload == "before"
    assert terminate(database, LISTENS) == 1
    await eventually(lambda: client.client._bus.stats()["listener_reconnects"] == 1, "it listens again")
    for channel in ("jobs", "more"):
        await other.notify(channel, "after")
        assert (await client.next()).channel == channel
    await eventually(lambda: gaps, "it is told")  # of the blocking one, in a thread of its own
    [gap] = gaps
    assert (gap.reason, gap.namespace, gap.sender, gap.missing) == ("reconnect", None, None, None)
    assert before <= gap.since <= time.time()
    # Why it was lost, and why it could not be had again at once, if that was so; each is told once.
    await eventually(lambda: errors, "it is told why")
    assert {type(error) for error in errors} <= {DatabaseError, ConnectionLostError}
    assert len({str(error) for error in errors}) == len(errors)
    await client("close")


async def test_nothing_works_after_closing(client: Steered) -> None:
    await client("listen", "jobs")
    await client("close")
    await client("close")
    for method, args in [
        ("start", ()),
        ("listen", ("jobs",)),
        ("unlisten", ("jobs",)),
        ("notify", ("jobs", "x")),
        ("ensure_table", ()),
        ("insert_attachment", (b"",)),
        ("get_attachment", (1,)),
        ("cleanup_attachments", ()),
        ("wait_for_notification", (1.0,)),
    ]:
        with pytest.raises(ClosedError):
            await client(method, *args)


async def test_nothing_is_left_behind(database: Database, kind: Any) -> None:
    client = Steered(kind(database.dsn))
    await client("start")
    await client("listen", "jobs")
    await client("insert_attachment", b"")
    assert len(sessions(database)) == 3
    await client("close")
    await eventually(lambda: not sessions(database), "all sessions are closed")


async def test_iterating(database: Database, other: AsyncPostgresClient) -> None:
    async with AsyncPostgresClient(database.dsn) as client:
        await client.listen("jobs")
        for number in range(5):
            await other.notify("jobs", str(number))
        payloads = []
        async for notification in client:
            payloads.append(notification.payload)
            if len(payloads) == 5:
                break
    assert payloads == ["0", "1", "2", "3", "4"]


def test_iterating_in_a_thread(database: Database) -> None:
    payloads = []
    with PostgresClient(database.dsn) as client, PostgresClient(database.dsn) as sender:
        client.listen("jobs")

        def send() -> None:
            for number in range(5):
                sender.notify("jobs", str(number))

        thread = threading.Thread(target=send)
        thread.start()
        for notification in client:
            payloads.append(notification.payload)
            if len(payloads) == 5:
                break
        thread.join()
    assert payloads == ["0", "1", "2", "3", "4"]


async def test_two_tasks_share_what_comes(database: Database, other: AsyncPostgresClient) -> None:
    async with AsyncPostgresClient(database.dsn) as client:
        await client.listen("jobs")
        waiting = [asyncio.create_task(client.wait_for_notification(TIMEOUT_S)) for _ in range(4)]
        for number in range(4):
            await other.notify("jobs", str(number))
        got = await asyncio.gather(*waiting)
    assert sorted(notification.payload for notification in got) == ["0", "1", "2", "3"]


async def test_a_waiting_task_can_be_cancelled(database: Database, other: AsyncPostgresClient) -> None:
    async with AsyncPostgresClient(database.dsn) as client:
        await client.listen("jobs")
        for _ in range(3):
            task = asyncio.create_task(client.wait_for_notification())
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await other.notify("jobs", "x")
        assert (await client.wait_for_notification(TIMEOUT_S)).payload == "x"


@pytest.fixture
def many(database: Database) -> Iterator[PostgresClient]:
    with PostgresClient(database.dsn) as client:
        yield client


def test_many_threads_notify(many: PostgresClient) -> None:
    many.listen("jobs")
    failures: list[SocketIOPostgresError] = []

    def work(thread: int) -> None:
        try:
            for number in range(50):
                many.notify("jobs", f"{thread} {number}")
        except SocketIOPostgresError as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(8)]
    for each in threads:
        each.start()
    got = [many.wait_for_notification(TIMEOUT_S).payload.split() for _ in range(400)]
    for each in threads:
        each.join()
    assert failures == []
    for thread in range(8):
        assert [int(number) for sender, number in got if int(sender) == thread] == list(range(50))


async def test_an_iteration_ends_when_the_client_is_closed(client: Steered, other: AsyncPostgresClient) -> None:
    """Those that wait at that moment, too; what had arrived before is handed out."""
    await client("listen", "jobs")
    found: list[str] = []
    if isinstance(client.client, AsyncPostgresClient):

        async def iterate() -> None:
            async for notification in client.client:
                found.append(notification.payload)  # noqa: PERF401 - to be seen at once
    else:

        def iterate_blocking() -> None:
            for notification in client.client:
                found.append(notification.payload)  # noqa: PERF401 - likewise

        async def iterate() -> None:
            await asyncio.to_thread(iterate_blocking)

    waiting = [asyncio.create_task(iterate()) for _ in range(3)]
    await other.notify("jobs", "1")
    await eventually(lambda: found, "one of them has it")
    await client("close")
    await asyncio.wait_for(asyncio.gather(*waiting), TIMEOUT_S)
    await asyncio.wait_for(iterate(), TIMEOUT_S)
    assert found == ["1"]
    with pytest.raises(ClosedError, match="closed"):
        await client("wait_for_notification", 1.0)


async def test_what_had_arrived_is_handed_out_after_closing(client: Steered, other: AsyncPostgresClient) -> None:
    await client("listen", "jobs")
    await client("notify", "jobs", "own")
    await other.notify("jobs", "others")
    assert (await client.next()).payload == "own"
    await eventually(lambda: client.client._bus.inbox.bytes > 0, "it has arrived")
    await client("close")
    assert (await client("wait_for_notification", 1.0)).payload == "others"


async def test_an_error_handler_that_raises_stops_nobody(
    database: Database, kind: Any, other: AsyncPostgresClient, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(error: object) -> None:
        raise LookupError(type(error).__name__)

    client = Steered(kind(database.dsn, error_handler=fail, on_gap=fail))
    await client("listen", "jobs")
    assert terminate(database, LISTENS) == 1
    await eventually(lambda: client.client._bus.stats()["listener_reconnects"] == 1, "it listens again, and says so")
    await other.notify("jobs", "after")
    assert (await client.next()).payload == "after"
    await eventually(lambda: "on_gap raised: LookupError('GapInfo')" in caplog.text, "it is logged")
    await eventually(lambda: "error_handler raised: LookupError(" in caplog.text, "it is logged")
    await client("close")
