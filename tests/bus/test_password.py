"""A coroutine function that gives the password runs where its object is used."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from socketio_postgres import (
    AsyncEmitter,
    AsyncEventStore,
    AsyncPostgresClient,
    AsyncPostgresManager,
    ConnectionLostError,
    Emitter,
)
from socketio_postgres._bus import password as _password
from socketio_postgres._bus.password import AsyncPasswordCall
from tests.fixtures.database import Database
from tests.fixtures.waiting import TIMEOUT_S

SECRET = "hunter2"


class Asked:
    """Notes on which loop it was asked, through a lock that belongs to one."""

    def __init__(self) -> None:
        self.loops: list[asyncio.AbstractEventLoop] = []

    async def __call__(self) -> str:
        await asyncio.sleep(0.01)
        self.loops.append(asyncio.get_running_loop())
        return SECRET


async def _emit(io: Any) -> None:
    await io.emit("hello", 1)


async def _flush(mgr: AsyncPostgresManager) -> None:
    await mgr.emit("hello", 1)
    await mgr.flush()


@pytest.mark.parametrize(
    ("kind", "use"),
    [
        (AsyncEmitter, _emit),
        (AsyncPostgresClient, lambda client: client.listen("jobs")),
        (lambda dsn, **options: AsyncPostgresManager(dsn, write_only=True, **options), _flush),
        (AsyncEventStore, lambda store: store.open()),
    ],
    ids=["emitter", "client", "write-only manager", "event store"],
)
async def test_it_runs_on_the_loop_that_uses_the_object(
    database: Database, kind: Callable[..., Any], use: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_password, "TURN_LIMIT", TIMEOUT_S)  # the loop is not blocked, only slow
    asked = Asked()
    what = kind(database.dsn, password=asked)
    await asyncio.wait_for(use(what), TIMEOUT_S)
    await what.close()
    assert asked.loops
    assert set(asked.loops) == {asyncio.get_running_loop()}


async def test_blocking_classes_have_a_loop_of_their_own(database: Database) -> None:
    """The running one is blocked by them."""
    asked = Asked()
    began = time.monotonic()
    with Emitter(database.dsn, password=asked) as io:
        io.emit("hello", 1)
    assert asked.loops
    assert asyncio.get_running_loop() not in asked.loops
    assert time.monotonic() - began < TIMEOUT_S


async def test_a_blocked_loop_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_password, "TURN_LIMIT", 0.1)
    asked = Asked()
    call = AsyncPasswordCall(asked)
    call.used()
    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.append(call()))
    thread.start()
    thread.join(TIMEOUT_S)  # blocks the loop
    assert answers == [SECRET]
    assert asyncio.get_running_loop() not in asked.loops
    await asyncio.sleep(0)
    assert len(asked.loops) == 1, "it is asked once"


def test_a_loop_that_is_gone() -> None:
    asked = Asked()
    call = AsyncPasswordCall(asked)

    async def use() -> None:
        call.used()

    asyncio.run(use())
    assert call() == SECRET
    loop = asyncio.new_event_loop()
    loop.run_until_complete(use())
    assert call() == SECRET, "it is not closed, and does not run"
    loop.close()
    assert call() == SECRET


def test_a_loop_that_ends_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_password, "TURN_LIMIT", TIMEOUT_S)  # the loop is not blocked, only slow to begin
    begun = threading.Event()

    async def hang() -> str:
        begun.set()
        await asyncio.sleep(60)
        return SECRET

    call = AsyncPasswordCall(hang)
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001 - which one, is the question
            errors.append(error)

    async def main() -> threading.Thread:
        call.used()
        thread = threading.Thread(target=ask)
        thread.start()
        await asyncio.to_thread(begun.wait, TIMEOUT_S)
        return thread

    asyncio.run(main()).join(TIMEOUT_S)
    assert [type(error) for error in errors] == [asyncio.CancelledError]


async def test_what_it_raises_stays_secret(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> str:
        raise LookupError(SECRET)

    io = AsyncEmitter(database.dsn, password=fail, buffer_age=0.2)
    with pytest.raises(ConnectionLostError, match="LookupError") as caught:
        await asyncio.wait_for(io.start(), TIMEOUT_S)
    assert SECRET not in str(caught.value)
    assert SECRET not in caplog.text
    await io.close()
