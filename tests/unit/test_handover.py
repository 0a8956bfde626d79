"""The inbox and those who wait for it: an event loop, or a thread."""

from __future__ import annotations

import asyncio
import gc
import select
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from socketio_postgres import ClosedError, OperationTimeoutError, SocketIOPostgresError, _core, exceptions
from socketio_postgres._bus.bus import Bus
from socketio_postgres._bus.handover import AsyncCalls, BlockingCalls, batches_of, readable
from socketio_postgres._bus.options import BusOptions

NOWHERE = "postgresql://app:hunter2@127.0.0.1:1/app?connect_timeout=60"


def new_bus() -> Bus:
    return Bus(BusOptions(NOWHERE), uid=lambda: "a1")


def finish(inbox: _core.Inbox, token: int) -> None:
    """An operation that ends at once and needs no database."""
    new_bus().core.when_space(inbox, token)


def never(inbox: _core.Inbox, token: int) -> None:
    """An operation that does not end."""
    del inbox, token


def is_readable(inbox: _core.Inbox) -> bool:
    return bool(select.select([inbox.fileno()], [], [], 0)[0])


def test_an_inbox_is_readable_while_it_holds_something() -> None:
    inbox = _core.Inbox(1000)
    assert (inbox.drain(10), inbox.bytes, inbox.dropped, is_readable(inbox)) == ([], 0, 0, False)
    for token in (1, 2, 3):
        finish(inbox, token)
    assert is_readable(inbox)
    assert inbox.drain(2) == [(1, _core.FINISHED, None), (2, _core.FINISHED, None)]
    assert is_readable(inbox)
    assert inbox.drain(2) == [(3, _core.FINISHED, None)]
    assert not is_readable(inbox)
    assert inbox.drain(2) == []
    finish(inbox, 4)
    assert is_readable(inbox)


def test_waiting_ends_with_the_time_or_an_item() -> None:
    inbox = _core.Inbox(1000)
    began = time.monotonic()
    assert inbox.wait(0.05) is False
    assert time.monotonic() - began >= 0.05
    thread = threading.Timer(0.05, finish, (inbox, 1))
    thread.start()
    assert inbox.wait(600.0) is True  # the item ends it, not the time; and other threads run, or it never would
    assert inbox.wait(0.0) is True
    thread.join()
    inbox.drain(1)
    assert inbox.wait(-1.0) is False


unconnected = new_bus()


def cannot_connect(inbox: _core.Inbox, token: int) -> None:
    """An operation that fails soon, with a `ConnectionLostError`."""
    unconnected.core.start_publisher(False, inbox, token)


@contextmanager
def exceptions_raise(error: BaseException) -> Iterator[None]:
    """Making the exception of a failed operation is Python code, in which Ctrl-C, for example, may be noticed."""

    def refuse(*_: object, **__: object) -> None:
        raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exceptions, "ConnectionLostError", refuse)
        yield


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), SystemExit()])
def test_an_exception_while_items_are_taken_loses_none(error: BaseException) -> None:
    inbox = _core.Inbox(1000)
    finish(inbox, 1)
    cannot_connect(inbox, 2)
    taken: list[tuple[int, int, object]] = []

    def take_all() -> None:
        while True:
            inbox.drain(10, taken)
            inbox.wait(20.0)

    with exceptions_raise(error), pytest.raises(type(error)):
        take_all()
    assert taken == [(1, _core.FINISHED, None)]
    finish(inbox, 3)
    assert is_readable(inbox)
    assert inbox.wait(0.0)
    assert [(token, kind) for token, kind, _ in inbox.drain(10)] == [(2, _core.FAILED), (3, _core.FINISHED)]
    assert inbox.dropped == 0


def test_a_value_that_cannot_be_made_is_reported_and_the_others_go_on() -> None:
    inbox = _core.Inbox(1000)
    cannot_connect(inbox, 1)
    assert inbox.wait(20.0)
    finish(inbox, 2)
    with exceptions_raise(TypeError("broken")):
        [(token, kind, value), other] = inbox.drain(10)
    assert (token, kind, str(value), other) == (1, _core.FAILED, "broken", (2, _core.FINISHED, None))
    assert inbox.dropped == 1


def test_an_exception_in_a_loop_leaves_no_future_behind() -> None:
    loop = asyncio.new_event_loop()
    try:

        async def ask() -> list[asyncio.Future[object]]:
            calls = AsyncCalls.of_running_loop()
            futures = [calls.start(finish), calls.start(cannot_connect)]
            await asyncio.wait_for(asyncio.shield(futures[1]), 20)
            return futures

        with exceptions_raise(KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(ask())
        pending = asyncio.all_tasks(loop)
        results = loop.run_until_complete(asyncio.wait_for(asyncio.gather(*pending, return_exceptions=True), 20))
        assert [type(result).__name__ for result in results] == ["ConnectionLostError"]
    finally:
        loop.close()


async def test_a_reader_outlives_a_lack_of_memory() -> None:
    inbox = _core.Inbox(1000)
    cannot_connect(inbox, 1)
    assert await asyncio.to_thread(inbox.wait, 20.0)
    reader = batches_of(inbox)
    with exceptions_raise(MemoryError()):
        reading = asyncio.ensure_future(anext(reader))
        await asyncio.wait({reading}, timeout=0.3)
        assert not reading.done()
    assert [(token, kind) for token, kind, _ in await asyncio.wait_for(reading, 20)] == [(1, _core.FAILED)]


async def test_futures_of_a_loop() -> None:
    calls = AsyncCalls.of_running_loop()
    assert AsyncCalls.of_running_loop() is calls
    assert await asyncio.wait_for(asyncio.gather(*(calls.start(finish) for _ in range(600))), 20) == [None] * 600


async def test_a_cancelled_call_disturbs_nobody() -> None:
    calls = AsyncCalls.of_running_loop()
    cancelled = calls.start(finish)
    cancelled.cancel()
    assert await asyncio.wait_for(calls.start(finish), 20) is None
    assert cancelled.cancelled()


async def test_an_operation_that_fails_to_start_leaves_nothing_behind() -> None:
    calls = AsyncCalls.of_running_loop()
    bus = new_bus()
    with pytest.raises(ValueError, match="63"):
        calls.start(lambda inbox, token: bus.core.listen("x" * 64, inbox, token))
    assert await asyncio.wait_for(calls.start(finish), 20) is None
    await bus.close(0.0)


def test_loops_of_threads_do_not_mix() -> None:
    """Each thread asks for its own in turn with the other, so that what was asked for last is the wrong one."""
    turn = threading.Barrier(2)

    async def use() -> set[AsyncCalls]:
        found = set()
        for _ in range(20):
            turn.wait(20)
            found.add(AsyncCalls.of_running_loop())
            await asyncio.wait_for(AsyncCalls.of_running_loop().start(finish), 20)
        return found

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda _: asyncio.run(use()), range(2))
    assert len(one) == len(other) == 1
    assert one != other


def test_every_loop_has_its_own() -> None:
    async def use() -> AsyncCalls:
        await asyncio.wait_for(AsyncCalls.of_running_loop().start(finish), 20)
        return AsyncCalls.of_running_loop()

    first = weakref.ref(asyncio.run(use()))
    second = asyncio.run(use())
    assert first() is not second
    gc.collect()
    assert first() is None, "calls of a loop that is gone"


async def test_items_come_in_order() -> None:
    inbox = _core.Inbox(1000)
    total = 700  # several batches

    def fill() -> None:
        bus = new_bus()
        for token in range(total):
            bus.core.when_space(inbox, token)

    thread = threading.Thread(target=fill)
    thread.start()
    seen = []

    async def read() -> None:
        async for items in batches_of(inbox):
            for token, kind, _ in items:
                assert kind == _core.FINISHED
                seen.append(token)
            if len(seen) == total:
                return

    await asyncio.wait_for(read(), 20)
    thread.join()
    assert seen == list(range(total))


async def test_a_cancelled_reader_stops_watching() -> None:
    inbox = _core.Inbox(1000)
    task = asyncio.create_task(readable(inbox))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not asyncio.get_running_loop().remove_reader(inbox.fileno())  # uvloop says nothing, asyncio False
    finish(inbox, 1)
    await asyncio.wait_for(readable(inbox), 20)


def test_blocking_calls_from_many_threads() -> None:
    calls = BlockingCalls()
    results: list[object] = []

    def use() -> None:
        for _ in range(50):
            results.append(calls.run(finish, 20.0))  # noqa: PERF401 - one call at a time is the test

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert results == [None] * 400


def test_a_blocking_call_can_time_out_and_its_late_end_is_ignored() -> None:
    calls = BlockingCalls()
    late: list[tuple[_core.Inbox, int]] = []
    with pytest.raises(OperationTimeoutError, match=r"0\.05 s"):
        calls.run(lambda inbox, token: late.append((inbox, token)), 0.05)
    [(inbox, token)] = late
    finish(inbox, token)  # it ends after all
    assert calls.run(finish, 20.0) is None
    with pytest.raises(OperationTimeoutError):
        calls.run(never, 0.05)


def test_a_failure_is_raised_where_the_call_was_made() -> None:
    bus = new_bus()
    core = bus.core
    with pytest.raises(SocketIOPostgresError):
        bus.call_blocking(lambda inbox, token: core.start_publisher(False, inbox, token), 20.0)
    bus.close_blocking(0.0)


def test_a_bus_says_where_to_but_not_with_which_password() -> None:
    assert "127.0.0.1" in new_bus().description
    assert "hunter2" not in new_bus().description


def test_a_closed_bus_stays_closed() -> None:
    bus = new_bus()
    assert [bus.is_closed] == [False]
    bus.core  # noqa: B018 - opens it
    bus.close_blocking(0.0)
    bus.close_blocking(0.0)
    assert bus.is_closed
    with pytest.raises(ClosedError, match="closed; create a new object"):
        bus.core  # noqa: B018 - must raise


def test_a_bus_that_was_never_used_costs_nothing() -> None:
    threads = {thread.name for thread in threading.enumerate()}
    files = Path("/proc/self/fd")
    before = len(list(files.iterdir())) if files.exists() else 0
    buses = [new_bus() for _ in range(20)]
    # Threads of other tests may end meanwhile.
    assert {thread.name for thread in threading.enumerate()} <= threads
    if before:
        assert len(list(files.iterdir())) < before + 20
    for bus in buses:
        assert bus.stats() == {}
        assert bus.take_failures() == []
        bus.close_blocking(0.0)
