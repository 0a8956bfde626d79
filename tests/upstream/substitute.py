"""pytest plugin of the inner run: python-socketio's tests find our managers where they look for its own.

Nothing is mocked that those tests do not mock themselves, and PostgreSQL is real:

    SIO_PG_UPSTREAM_DSN       database
    SIO_PG_UPSTREAM_REPORT    file to write: one JSON object, the outcome by name of the test

The tests of `PubSubManager` watch one private seam, `_publish(dict)`. Ours publishes encoded messages; they are decoded
here and told to the test as the dict that says the same. The stock manager's other private methods, `_handle_emit` and
so on, are inherited by ours and never called; they are blocked, so that no test passes thanks to them.
"""

from __future__ import annotations

import base64
import functools
import json
import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from socketio import AsyncServer, async_manager, async_pubsub_manager, manager, pubsub_manager
from socketio.packet import Packet

from socketio_postgres import AsyncPostgresManager, PostgresManager
from socketio_postgres._bus.messages import Message, MessageType

STOCK_HANDLERS = frozenset(
    f"_handle_{method}" for method in ("emit", "callback", "disconnect", "enter_room", "leave_room", "close_room")
)

outcomes: dict[str, str] = {}
made: list[Any] = []
"""Managers of the test under way."""


def one_or_none(names: list[str]) -> str | None:
    """Rooms as these tests give them to the stock manager: none, or one."""
    assert len(names) <= 1
    return names[0] if names else None


def in_stock_words(message: Message, host_id: str) -> dict[str, Any]:
    """What the stock manager would have published instead of a message of ours."""
    to = one_or_none(message.to)
    words: dict[str, Any] = {"namespace": message.nsp, "host_id": host_id}
    if message.type == MessageType.BROADCAST:
        event, *data = message.packet()
        is_binary = Packet.data_is_binary(data)
        if is_binary:
            template, attachments = Packet.deconstruct_binary(data)
            data = [template, *(base64.b64encode(each).decode() for each in attachments)]
        words |= {"method": "emit", "event": event, "binary": is_binary, "data": data, "room": to}
        words |= {"skip_sid": one_or_none(message.except_), "callback": message.request_id}
    elif message.type == MessageType.DISCONNECT_SOCKETS:
        words |= {"method": "disconnect", "sid": to}
    elif message.type == MessageType.SOCKETS_JOIN:
        words |= {"method": "enter_room", "sid": to, "room": one_or_none(message.rooms)}
    elif message.type == MessageType.SOCKETS_LEAVE and message.rooms == message.to:
        words |= {"method": "close_room", "room": to}
    else:
        assert message.type == MessageType.SOCKETS_LEAVE
        words |= {"method": "leave_room", "sid": to, "room": one_or_none(message.rooms)}
    return words


class Seam:
    """The mock that a test put in the place of `_publish`, told everything in the stock manager's words."""

    def __init__(self, mock: Any, owner: Any) -> None:
        self._mock = mock
        self._owner = owner

    def __call__(self, message: Message) -> Any:
        return self._mock(in_stock_words(message, self._owner.host_id))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._mock, name)


class Substitution:
    """Mixed into both managers. The default channel is the stock one; ours is Node's."""

    def __init__(self, *args: Any, channel: str = "socketio", **kwargs: Any) -> None:
        self.failures: list[Exception] = []
        dsn = os.environ["SIO_PG_UPSTREAM_DSN"]
        super().__init__(dsn, channel, *args, **kwargs, error_handler=self.failures.append)  # type: ignore[call-arg]
        made.append(self)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_listen":
            raise AssertionError(f"{name} belongs to the stock manager; ours has no need of it")
        if name == "_publish":
            seam = value = Seam(value, self)
            emitted: list[Message] = []
            # What is emitted finds no room, so that the way through `_publish` is the only one.
            self._node.append = emitted.append
            self._node.wait_for_room = lambda: seam(emitted.pop())
        super().__setattr__(name, value)

    def __getattribute__(self, name: str) -> Any:
        if name in STOCK_HANDLERS:
            raise AssertionError(f"{name} belongs to the stock manager; ours has no need of it")
        return super().__getattribute__(name)


class AsyncPubSubSubstitute(Substitution, AsyncPostgresManager):
    """Stands for `AsyncPubSubManager`."""


class PubSubSubstitute(Substitution, PostgresManager):
    """Stands for `PubSubManager`."""


class AsyncSubstitute(AsyncPubSubSubstitute):
    """Stands for `AsyncManager`, whose `disconnect` only forgets a client: `ignore_queue` of every pub/sub manager."""

    async def disconnect(self, sid: str, namespace: str | None = None, **kwargs: Any) -> None:
        await super().disconnect(sid, namespace, **{"ignore_queue": True, **kwargs})


class SyncSubstitute(PubSubSubstitute):
    """Stands for `Manager`, as `AsyncSubstitute` for `AsyncManager`."""

    def disconnect(self, sid: str, namespace: str | None = None, **kwargs: Any) -> None:
        super().disconnect(sid, namespace, **{"ignore_queue": True, **kwargs})


# The tests' own web application sends its headers as text, which uvicorn accepts only when it runs on h11.
sys.modules["httptools"] = None  # type: ignore[assignment]

# They switch off pings, and with them what ends the last request of a polling client before it times out, 45 s later.
AsyncServer.__init__ = functools.partialmethod(AsyncServer.__init__, ping_interval=1, ping_timeout=1)

# Servers that are made without a manager look here, too.
async_manager.AsyncManager = AsyncSubstitute
async_pubsub_manager.AsyncPubSubManager = AsyncPubSubSubstitute
manager.Manager = SyncSubstitute
pubsub_manager.PubSubManager = PubSubSubstitute


@pytest.fixture(autouse=True)
async def _close_async_managers() -> AsyncIterator[None]:
    yield
    for each in made:
        if isinstance(each, AsyncPubSubSubstitute):
            await each.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    """End what the test's own clean-up would find running: it counts threads."""
    try:
        yield
    finally:
        for each in made:
            if isinstance(each, PubSubSubstitute):
                each.close()
        failures = [failure for each in made for failure in each.failures]
        assert not failures


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Iterator[None]:
    """Forget the managers of the test that ends."""
    yield
    made.clear()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note the outcome; a failed set-up or clean-up fails the test."""
    name = report.nodeid.split("::", 1)[1]
    if report.outcome != "passed" or name not in outcomes:
        outcomes[name] = report.outcome


def pytest_sessionfinish() -> None:
    """Hand the outcomes over."""
    Path(os.environ["SIO_PG_UPSTREAM_REPORT"]).write_text(json.dumps(outcomes))
