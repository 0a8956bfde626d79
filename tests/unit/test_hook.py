"""Functions of the application's are told of things in one way, whatever they do."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from socketio_postgres import (
    AsyncEventStore,
    AsyncPostgresClient,
    AsyncPostgresManager,
    EventStore,
    OptionsError,
    PostgresClient,
    PostgresManager,
)
from socketio_postgres._bus import hook
from socketio_postgres._bus.hook import AsyncHook, Hook
from socketio_postgres._bus.primitives import call
from tests.fixtures.waiting import TIMEOUT_S, eventually

log = logging.getLogger(__name__)
NOWHERE = "postgresql://app@127.0.0.1:1/app?connect_timeout=60"


async def coroutine_function(_: object) -> None:
    pass


class WithCoroutine:
    async def __call__(self, _: object) -> None:
        pass


COROUTINE_FUNCTIONS = [coroutine_function, WithCoroutine(), functools.partial(coroutine_function)]
OPTIONS = [
    (kind, option)
    for option, kinds in {
        "error_handler": (PostgresManager, PostgresClient, EventStore),
        "on_gap": (PostgresManager, PostgresClient),
        "on_stall": (EventStore,),
    }.items()
    for kind in kinds
]


@pytest.mark.parametrize("function", COROUTINE_FUNCTIONS)
@pytest.mark.parametrize(("kind", "option"), OPTIONS)
def test_blocking_classes_take_coroutine_functions(kind: Callable[..., Any], option: str, function: object) -> None:
    kind(NOWHERE, **{option: function})
    with pytest.raises(OptionsError, match="callable") as caught:
        kind(NOWHERE, **{option: "print"})
    assert caught.value.option == option


@pytest.mark.parametrize("function", COROUTINE_FUNCTIONS)
def test_handlers_of_blocking_classes_are_no_coroutine_functions(function: Callable[..., Any]) -> None:
    with pytest.raises(OptionsError, match="coroutine function"):
        PostgresManager(NOWHERE).on_server_side("job", function)
    with pytest.raises(OptionsError, match="coroutine function"):
        EventStore(NOWHERE).subscribe_to_all(function)
    with pytest.raises(OptionsError, match="coroutine function"):
        EventStore(NOWHERE).durable("name").run(function)


def test_a_handler_that_turns_out_to_be_one_has_failed() -> None:
    """Its event was not handled."""
    with pytest.raises(TypeError, match="coroutine"):
        call(lambda value: coroutine_function(value), 1)  # noqa: PLW0108 - the point


@pytest.mark.parametrize("kind", [AsyncPostgresManager, AsyncPostgresClient, AsyncEventStore])
def test_others_take_them(kind: Callable[..., Any]) -> None:
    kind(NOWHERE, error_handler=coroutine_function)
    with pytest.raises(OptionsError, match="callable"):
        kind(NOWHERE, error_handler="print")


async def test_an_event_loop_goes_on_meanwhile(caplog: pytest.LogCaptureFixture) -> None:
    told: list[object] = []
    gate = asyncio.Event()

    async def slow(value: object) -> None:
        await gate.wait()
        told.append(value)
        raise LookupError(value)

    failed: list[Exception] = []
    tell = AsyncHook("on_gap", slow, log, failed.append)
    for number in range(3):
        tell(number)
    await asyncio.sleep(0)
    assert told == []
    gate.set()
    await eventually(lambda: told == [0, 1, 2] and len(failed) == 3, "it was told of all")
    assert caplog.text.count("on_gap raised: LookupError") == 3


async def test_a_function_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    def fail(value: object) -> None:
        raise LookupError(value)

    AsyncHook("error_handler", fail, log)(1)
    assert "error_handler raised: LookupError(1)" in caplog.text
    AsyncHook("error_handler", None, log)(1)


async def test_calls_under_way_are_bounded(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(hook, "WAITING_MAX", 3)
    gate = asyncio.Event()
    told: list[object] = []

    async def slow(value: object) -> None:
        await gate.wait()
        told.append(value)

    tell = AsyncHook("on_gap", slow, log)
    for number in range(5):
        tell(number)
    assert caplog.text.count("on_gap is not told: 3 calls of it are under way") == 2
    gate.set()
    await eventually(lambda: told == [0, 1, 2], "the others come")


def test_the_loop_that_it_was_told_on_has_ended() -> None:
    told: list[object] = []

    async def note(value: object) -> None:
        await asyncio.sleep(0)
        told.append(value)

    tell = AsyncHook("on_gap", note, log)

    async def main(number: int) -> None:
        tell(number)
        if number:
            await eventually(lambda: told == [number], "it was told")

    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)
    loop.run_until_complete(main(0))
    loop.close()
    asyncio.run(main(1))
    assert tell._tasks == set()


def test_without_a_loop(caplog: pytest.LogCaptureFixture) -> None:
    AsyncHook("error_handler", coroutine_function, log)(1)
    assert "no event loop runs" in caplog.text


def test_a_thread_goes_on_meanwhile(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(hook, "WAITING_MAX", 3)
    gate, last = threading.Event(), threading.Event()
    told: list[object] = []

    def slow(value: object) -> None:
        gate.wait(TIMEOUT_S)
        told.append((value, threading.current_thread().name))
        if value == "last":
            last.set()
        raise LookupError(value)

    tell = Hook("on_gap", slow, log)
    tell(0)
    while tell._values:
        pass  # it is under way now
    for value in (1, 2, "last", 4):
        tell(value)
    assert told == []
    assert caplog.text.count("on_gap is not told: 3 calls of it wait") == 1
    gate.set()
    assert last.wait(TIMEOUT_S)
    assert told == [(value, "socketio-postgres on_gap") for value in (0, 1, 2, "last")]


def test_a_child_begins_anew() -> None:
    """The thread that was telling stayed with the parent."""
    gate, told = threading.Event(), threading.Event()

    def slow(value: object) -> None:
        # Not in the child: when it is forked, the thread may hold the lock inside of the gate.
        if value == os.getpid():
            told.set()
        else:
            gate.wait(TIMEOUT_S)

    tell = Hook("on_gap", slow, log)
    tell(1)
    child = os.fork()
    if child == 0:
        tell(os.getpid())
        os._exit(0 if told.wait(TIMEOUT_S) else 1)
    gate.set()
    assert os.waitpid(child, 0)[1] == 0


def test_a_thread_awaits_coroutines(caplog: pytest.LogCaptureFixture) -> None:
    told: list[object] = []
    failed: list[Exception] = []

    async def slow(value: object) -> None:
        await asyncio.sleep(0.001)
        told.append((value, threading.current_thread().name))
        if value == "cancel":
            raise asyncio.CancelledError
        raise LookupError(value)

    for function in (slow, functools.partial(slow), lambda value: slow(value)):  # noqa: PLW0108 - the point
        told.clear()
        tell = Hook("on_gap", function, log, failed.append)
        for value in (0, "cancel", 2):
            tell(value)
        wait_for(lambda: len(told) == 3 and not tell._is_running)  # noqa: B023 - at once
        assert told == [(value, "socketio-postgres on_gap") for value in (0, "cancel", 2)]
    assert [repr(error) for error in failed] == ["LookupError(0)", "LookupError(2)"] * 3
    assert caplog.text.count("on_gap raised a CancelledError") == 3


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_what_ends_the_thread_silences_nobody() -> None:
    """`sys.exit()`, and the time-outs of gevent and eventlet, which are no `Exception`."""
    gate, last = threading.Event(), threading.Event()
    told: list[object] = []

    def leave(value: object) -> None:
        gate.wait(TIMEOUT_S)
        told.append(value)
        if value == "last":
            last.set()
        raise SystemExit

    def start(run: Callable[[], None]) -> None:
        def run_quietly() -> None:  # pytest would complain
            with contextlib.suppress(SystemExit):
                run()

        threading.Thread(target=run_quietly).start()

    tell = Hook("on_gap", leave, log, start=start)
    for value in (0, 1, 2):
        tell(value)
    gate.set()
    while len(told) < 3 or tell._is_running:
        time.sleep(0.01)
    tell("last")
    assert last.wait(TIMEOUT_S)
    assert told == [0, 1, 2, "last"]


async def test_a_function_that_looks_at_a_cancelled_future(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever tells it is the one that reads for the whole server."""
    cancelled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    cancelled.cancel()
    AsyncHook("error_handler", lambda _: cancelled.result(), log)(1)
    assert "error_handler raised a CancelledError" in caplog.text
