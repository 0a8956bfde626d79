"""What `dir(manager)` shows beside python-socketio's own names is what a user may call."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from socketio.async_pubsub_manager import AsyncPubSubManager
from socketio.pubsub_manager import PubSubManager

from socketio_postgres import (
    AsyncEmitter,
    AsyncPostgresManager,
    Emitter,
    OperationTimeoutError,
    PostgresManager,
    SocketIOPostgresError,
)

LIFE = {"start", "flush", "close"}
CHOOSING = {"to", "in_", "except_", "local", "volatile", "compress", "timeout", "of"}
ACTING = {"sockets_join", "sockets_leave", "disconnect_sockets", "emit_with_ack", "fetch_sockets", "in_transaction"}
SERVERS = {"on_server_side", "server_side_emit", "server_side_emit_with_ack", "server_count", "stats"}
SQL = {"install_sql", "uninstall_sql"}

PRIVATE = {"_node", "_target", "_with", "_changed", "_send"}
"""The node, and what every chain is made of."""

NEWER = {"pre_connect", "json"}
"""Names that python-socketio's managers have since 5.17 and 5.16, and ours with every version."""


@pytest.mark.parametrize(
    ("ours", "theirs", "block"),
    [
        (AsyncPostgresManager, AsyncPubSubManager, {"__aenter__", "__aexit__"}),
        (PostgresManager, PubSubManager, {"__enter__", "__exit__"}),
    ],
)
def test_a_manager_shows_what_a_user_may_call(ours: type[Any], theirs: type[Any], block: set[str]) -> None:
    manager = ours("host=nowhere")
    names = set(dir(manager)) - set(dir(theirs())) - TYPING - NEWER
    assert {name for name in names if not name.startswith("_")} == LIFE | CHOOSING | ACTING | SERVERS | SQL
    assert {name for name in names if name.startswith("_")} == PRIVATE | block
    assert set(vars(manager)) - set(vars(theirs())) <= {"_node", "json"}


TYPING = {"__orig_bases__", "__parameters__", "__class_getitem__", "__annotations__", "__slots__", "_is_protocol"}
"""What `Generic` leaves on a class."""


def test_positional_arguments_follow_python_socketio() -> None:
    """As in `AsyncRedisManager(url, channel, write_only, logger, json)`."""
    for ours, theirs in ((AsyncPostgresManager, AsyncPubSubManager), (PostgresManager, PubSubManager)):
        names = [
            name
            for name, parameter in inspect.signature(ours).parameters.items()
            if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        ]
        stock = list(inspect.signature(theirs).parameters)
        assert names == ["dsn", "channel", "write_only", "logger", "json"]
        assert names[1 : len(stock) + 1] == stock


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"postgresql://app@127.0.0.1:{listening.getsockname()[1]}/app?sslmode=disable&connect_timeout=60"


WAITING = r"^2 messages of \d+ bytes for .* not committed within 0\.1 s$"


async def test_a_flush_says_what_it_waited_for(silent: str) -> None:
    manager = AsyncPostgresManager(silent, write_only=True, buffer_age=0.5)
    emitter = AsyncEmitter(silent, buffer_age=0.5)
    await manager.emit("event", 1)
    await manager.emit("event", 2)
    emits = [asyncio.create_task(emitter.emit("event", number)) for number in range(2)]
    await asyncio.sleep(0)
    for each in (manager, emitter):
        with pytest.raises(OperationTimeoutError, match=WAITING):
            await each.flush(timeout=0.1)
    await asyncio.gather(manager.close(), emitter.close(), *emits, return_exceptions=True)


def test_a_blocking_flush_says_what_it_waited_for(silent: str) -> None:
    for sender in (PostgresManager(silent, write_only=True, buffer_age=0.5), Emitter(silent, buffer_age=0.5)):
        sender.emit("event", 1)
        sender.emit("event", 2)
        with pytest.raises(OperationTimeoutError, match=WAITING):
            sender.flush(timeout=0.1)
        with contextlib.suppress(SocketIOPostgresError):  # an emitter's tells what was never sent
            sender.close()
