"""Two nodes talk in a process that cannot import python-socketio. Arguments: `async` or `blocking`; a DSN."""

# ruff: noqa: T201, E402 - the test reads what is printed; what is missing is so before anything is imported

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import sys
import time
from collections.abc import Callable
from typing import Any

for missing in ("socketio", "engineio"):
    sys.modules[missing] = None  # type: ignore[assignment]  # importing it fails

from socketio_postgres._bus.messages import MessageType
from socketio_postgres._bus.options import BusOptions, HeartbeatOptions
from socketio_postgres._cluster._sync.node import Node
from socketio_postgres._cluster.async_node import AsyncNode
from socketio_postgres._cluster.broadcast_operator import Target
from tests.cluster.memory_sockets import AsyncMemorySockets, BlockingMemorySockets, MemorySockets

LIMIT_S = 30.0
ALL = Target("/", timeout=LIMIT_S)


async def run(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call a method of either kind of node."""
    if inspect.iscoroutinefunction(function):
        return await function(*args, **options)
    return await asyncio.to_thread(function, *args, **options)


async def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


async def talk(here: MemorySockets, there: MemorySockets, one: Any, other: Any) -> dict[str, Any]:
    """Let them do all that nodes do; gives what came of it."""
    here.connect("a", "red")
    there.connect("b", "red")
    there.connect("c")
    await run(one.start)
    await run(other.start)
    await eventually(lambda: one.server_count("/") == other.server_count("/") == 2)

    await run(one.emit, "to all", 1)
    await run(one.emit, "to red", (2, {"x": None}), rooms=("red",), skipped=("a",))
    await eventually(lambda: len(there.received["b"]) == 2 and there.received["c"])
    await run(one.act, ALL._replace(rooms=("c",)).message(MessageType.SOCKETS_JOIN, rooms=["blue"]), ALL)
    await run(other.enter_room, "a", "/", "blue", "blue")
    await run(one.leave_room, "b", "/", "red")
    await eventually(lambda: "blue" in here.rooms_of("a") and "blue" in there.rooms_of("c"))
    await eventually(lambda: "red" not in there.rooms_of("b"))
    fetched = await run(one.requests.fetch_sockets, ALL, partial=False)
    acknowledged = await run(other.requests.emit_with_ack, ALL._replace(rooms=("blue",)), ["ask", 7], partial=False)
    answers: list[Any] = []
    await run(one.emit, "call", (8, 9), rooms=("b",), callback=lambda *args: answers.append(args))
    await eventually(lambda: answers)
    one.receiver.on_server_side("sum", sum, "/")
    summed = await run(other.requests.server_side_emit_with_ack, ALL, ["sum", [1, 2]], partial=False)
    await run(one.disconnect, "c", "/")
    await eventually(lambda: not there.is_connected("c", "/"))
    await run(one.flush, LIMIT_S)
    await run(one.close)
    await eventually(lambda: other.server_count("/") == 1)
    await run(other.close)
    return {
        "received": here.received | there.received,
        "rooms": {each["id"]: each["rooms"] for each in fetched},
        "answers": [acknowledged, answers, summed],
    }


async def main(kind: str, dsn: str) -> None:
    parts = BusOptions.of(dsn, {}), HeartbeatOptions()
    options: dict[str, Any] = {"logger": logging.getLogger(__name__)}
    if kind == "async":
        here, there = AsyncMemorySockets(), AsyncMemorySockets()
        found = await talk(here, there, *(AsyncNode(*parts, each, **options) for each in (here, there)))
    else:
        a, b = BlockingMemorySockets(), BlockingMemorySockets()
        found = await talk(a, b, *(Node(*parts, each, **options) for each in (a, b)))
    print(json.dumps(found))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
