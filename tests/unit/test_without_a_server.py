"""Managers that are no server of the cluster: what they cannot do raises at the call, and nothing is sent."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from socketio_postgres import AsyncPostgresManager, NotAServerError, PostgresManager

Manager = AsyncPostgresManager | PostgresManager

ASKING: dict[str, Callable[[Any], Any]] = {
    "fetch_sockets": lambda mgr: mgr.fetch_sockets(),
    "fetch_sockets of a room": lambda mgr: mgr.to("red").fetch_sockets(),
    "fetch_sockets of nobody": lambda mgr: mgr.to([]).fetch_sockets(),
    "fetch_sockets of this process": lambda mgr: mgr.local.fetch_sockets(),
    "emit_with_ack": lambda mgr: mgr.emit_with_ack("ask", 1),
    "emit_with_ack to nobody": lambda mgr: mgr.to([]).emit_with_ack("ask", 1),
    "server_side_emit_with_ack": lambda mgr: mgr.server_side_emit_with_ack("ask", 1),
    "server_side_emit_with_ack of a namespace": lambda mgr: mgr.of("/jobs").server_side_emit_with_ack("ask"),
    "server_count": lambda mgr: mgr.server_count(),
    "a callback": lambda mgr: mgr.emit("ask", 1, room="red", callback=print),
    "a local emit": lambda mgr: mgr.local.emit("hello"),
}


@pytest.mark.parametrize("ask", ASKING.values(), ids=ASKING)
@pytest.mark.parametrize("is_write_only", [True, False], ids=["write_only", "no server"])
@pytest.mark.parametrize("kind", [AsyncPostgresManager, PostgresManager])
async def test_asking_needs_a_server(kind: type[Manager], is_write_only: bool, ask: Callable[[Any], Any]) -> None:
    manager = kind("host=nowhere", write_only=is_write_only)

    async def asking() -> None:
        asked = ask(manager)
        if inspect.isawaitable(asked):
            await asked

    with pytest.raises(NotAServerError, match="write_only" if is_write_only else "client_manager") as caught:
        await asking()
    assert isinstance(caught.value, RuntimeError)  # which python-socketio's managers raise for a callback
    assert manager.stats().get("published", 0) == 0
    assert manager.stats().get("buffer_count", 0) == 0


@pytest.mark.parametrize("kind", [AsyncPostgresManager, PostgresManager])
def test_a_handler_of_one_that_hears_nothing_is_refused(kind: type[Manager]) -> None:
    with pytest.raises(NotAServerError, match="write_only"):
        kind("host=nowhere", write_only=True).on_server_side("ask", print)
    kind("host=nowhere").on_server_side("ask", print)  # its server may come later
