"""What users write, checked by the type checkers and never run."""

from __future__ import annotations

from typing import Any

from typing_extensions import assert_type

import socketio_postgres
from socketio_postgres import (
    AsyncEmitter,
    AsyncPostgresClient,
    AsyncPostgresManager,
    ConnectionLostError,
    Emitter,
    EventStore,
    Message,
    MessageType,
    Notification,
    PostgresClient,
    PostgresManager,
    RequestTimeoutError,
)
from socketio_postgres._cluster.async_server_operator import AsyncRemoteSocket
from socketio_postgres.health import problems
from socketio_postgres.manager import RemoteSocket
from socketio_postgres.opentelemetry import observe
from socketio_postgres.prometheus import PostgresCollector


def misspelt() -> object:
    # Names are imported when they are asked for, and still a checker knows them; mypy wants this comment to be needed.
    return socketio_postgres.Emiter  # type: ignore[attr-defined]


def token() -> str:
    return "secret"


async def fresh_token() -> str:
    return "secret"


async def asynchronous() -> None:
    manager = AsyncPostgresManager("postgresql://app@db/app", channel="chat", password=fresh_token, max_payload=1000)
    assert_type(await manager.to("room").except_(["a", 1]).fetch_sockets(), list[AsyncRemoteSocket])
    assert_type(await manager.of("/chat").timeout(2.0).emit_with_ack("sure?", 1, partial=True), list[Any])
    assert_type(await manager.in_("room").local.volatile.compress(True).emit("news", {"a": [1]}), None)
    assert_type(await manager.sockets_join("room"), None)
    assert_type(await manager.server_side_emit_with_ack("ping", timeout=1.0), list[Any])
    assert_type(manager.server_count("/"), int)
    await manager.flush()
    async with AsyncEmitter("postgresql://app@db/app", buffer_count=10) as io:
        assert_type(await io.of("/chat").to("room").emit("news", b"bytes"), None)
        await io.server_side_emit("reload")
    async with AsyncPostgresClient("postgresql://app@db/app") as client:
        await client.listen("jobs")
        async for notification in client:
            assert_type(notification, Notification)
        assert_type(await client.get_attachment(1), bytes | None)


def blocking() -> None:
    manager = PostgresManager("postgresql://app@db/app", write_only=True, password=token)
    assert_type(manager.to("room").fetch_sockets(), list[RemoteSocket])
    assert_type(manager.to("room").emit("news", 1), None)
    assert_type(manager.emit("news", {"a": 1}, room="room"), None)
    with Emitter("postgresql://app@db/app", table_name="chat.attachments") as io:
        assert_type(io.to({"a", "b"}).emit("news"), None)
        try:
            io.flush(timeout=1.0)
        except ConnectionLostError as error:
            assert_type(error.may_be_sent, bool)
            assert_type(error.failed_count, int)
        except RequestTimeoutError as error:
            assert_type(error.missing_servers, list[str])
    with PostgresClient("postgresql://app@db/app") as client:
        assert_type(client.wait_for_notification(1.0), Notification)


def handlers(manager: AsyncPostgresManager) -> None:
    @manager.on_server_side("reload")
    async def reload(what: str) -> str:
        return what

    def done(result: Any) -> None:
        del result

    manager.on_server_side("done", done, namespace="/chat")
    assert_type(Message(MessageType.BROADCAST, "/", packet=["hello"]).type, int)
    assert_type(reload.__name__, str)


def monitoring(manager: AsyncPostgresManager, blocking: PostgresManager, io: Emitter, jobs: AsyncEmitter) -> None:
    assert_type(problems(manager.stats(), max_probe_age=10), list[str])
    PostgresCollector({"server": manager, "other": blocking, "io": io, "store": EventStore("")})
    observe({"jobs": jobs, "client": PostgresClient(), "async client": AsyncPostgresClient()})
