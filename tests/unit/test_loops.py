"""An event loop that ends takes only its own along, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from collections.abc import Callable, Coroutine
from pathlib import Path

import pytest

from socketio_postgres import AsyncEmitter, _core
from socketio_postgres._bus.handover import AsyncCalls

NOWHERE = "postgresql://app@127.0.0.1:1/app?connect_timeout=60"


def descriptors() -> int:
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


def never(inbox: _core.Inbox, token: int) -> None:
    """An operation that does not end."""
    del inbox, token


async def call_never() -> None:
    await AsyncCalls.of_running_loop().start(never)


async def give_up(call: Coroutine[object, object, object]) -> asyncio.AbstractEventLoop:
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(call, 0.01)
    return asyncio.get_running_loop()


async def leave_open(call: Coroutine[object, object, object]) -> asyncio.AbstractEventLoop:
    task = asyncio.create_task(call)
    await asyncio.sleep(0.01)
    assert not task.done()
    return asyncio.get_running_loop()


def run_and_close(main: Coroutine[object, object, asyncio.AbstractEventLoop]) -> asyncio.AbstractEventLoop:
    """As a worker does that knows nothing of `asyncio.run`: nothing is cancelled."""
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # "Task was destroyed but it is pending!"
    try:
        return loop.run_until_complete(main)
    finally:
        loop.close()


@pytest.mark.parametrize("run", [asyncio.run, run_and_close])
@pytest.mark.parametrize("end", [give_up, leave_open])
def test_what_was_given_up_keeps_no_loop(
    run: Callable[..., asyncio.AbstractEventLoop],
    end: Callable[[Coroutine[object, object, object]], Coroutine[object, object, asyncio.AbstractEventLoop]],
) -> None:
    before = descriptors()
    loops = [weakref.ref(run(end(call_never()))) for _ in range(20)]
    assert descriptors() < before + 20, "each loop has some; others come and go in the background"
    assert [loop() for loop in loops] == [None] * 20


def test_an_outage_keeps_no_loop() -> None:
    """The messages wait for PostgreSQL; those who waited for them are gone."""
    io = AsyncEmitter(NOWHERE, buffer_age=60)
    asyncio.run(give_up(io.emit("first")))  # opens what belongs to the emitter
    before = descriptors()
    loops = [weakref.ref(asyncio.run(give_up(io.emit("hello", number)))) for number in range(20)]
    assert descriptors() < before + 20, "each loop has some; a connection that is being tried for has one, too"
    assert [loop() for loop in loops] == [None] * 20
    assert io.stats()["buffer_count"] == 21
    asyncio.run(io._bus.close(0.0))


async def test_what_was_given_up_is_forgotten_at_once() -> None:
    calls = AsyncCalls.of_running_loop()
    for _ in range(20):
        await give_up(call_never())
    assert calls._pending == {}
