"""A live dashboard of orders: a projection of the event store keeps the totals, and every client sees them change.

pip install socketio-postgres 'uvicorn[standard]' 'psycopg[binary]'
export DATABASE_URL=postgresql://app@localhost/app
uvicorn examples.order_dashboard:app --ws websockets-sansio --timeout-graceful-shutdown 5
"""

import asyncio
import contextlib
import os
from collections.abc import Sequence
from typing import Any

import psycopg
import socketio

from socketio_postgres import AsyncEventStore, AsyncPostgresManager, Event, Park, Projection, StoredEvent

DSN = os.environ["DATABASE_URL"]
mgr = AsyncPostgresManager(DSN)
sio = socketio.AsyncServer(client_manager=mgr, async_mode="asgi", cors_allowed_origins=[])
store = AsyncEventStore(DSN)
running: set[asyncio.Task[None]] = set()


class Totals(Projection):
    """How many orders there are, and what they are worth."""

    name = "order-totals"
    types = "OrderPlaced"

    async def handle(self, conn: psycopg.AsyncConnection[Any], events: Sequence[StoredEvent]) -> None:
        added = sum(event.data["total"] for event in events)
        changed = await conn.execute(
            "UPDATE order_totals SET orders = orders + %s, total = total + %s RETURNING orders, total",
            (len(events), added),
        )
        # If this transaction fails, it is repeated, and the next emit corrects this one: totals are not differences.
        await sio.emit("totals", await changed.fetchone())


async def connection() -> psycopg.AsyncConnection[Any]:
    return await psycopg.AsyncConnection.connect(DSN)


async def start() -> None:
    async with await connection() as conn:
        await conn.execute("SELECT pg_advisory_xact_lock(hashtext('order_totals'))")  # other processes start, too
        await conn.execute("CREATE TABLE IF NOT EXISTS order_totals AS SELECT 0 AS orders, 0::bigint AS total")
    await mgr.start()
    await store.open()
    # With partitions any number of processes may run it: one at a time does the work, and another one takes over.
    running.add(asyncio.create_task(store.run(Totals(), connect=connection, on_error=Park(after=5), partitions=1)))


async def stop() -> None:
    for task in running:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    await store.close()
    await mgr.close()


app = socketio.ASGIApp(sio, on_startup=start, on_shutdown=stop)


@sio.event
async def connect(sid: str, environ: dict[str, Any], auth: object = None) -> None:
    async with await connection() as conn:
        found = await conn.execute("SELECT orders, total FROM order_totals")
        await sio.emit("totals", await found.fetchone(), to=sid)


@sio.event
async def place(sid: str, order: str, total: int) -> None:
    await store.store(Event("OrderPlaced", order, {"total": total}))
