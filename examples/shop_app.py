"""A shop whose page follows its table: whatever changes an order, psql included, changes the page once it commits.

pip install 'socketio-postgres[cli]' 'psycopg[binary]' 'uvicorn[standard]'
export DATABASE_URL=postgresql://app@localhost/app
(socketio-postgres sql; socketio-postgres sql --functions; cat examples/shop.sql) | psql -1 $DATABASE_URL
uvicorn examples.shop_app:app --ws websockets-sansio --workers 2
xdg-open 'http://localhost:8000/?customer=7'
psql $DATABASE_URL -c "UPDATE orders SET status = 'paid' WHERE customer_id = 7"
"""

import os
from pathlib import Path
from typing import Any

import psycopg
import socketio

from socketio_postgres import AsyncPostgresManager

DSN = os.environ["DATABASE_URL"]
PAGE = {"filename": str(Path(__file__).with_name("shop.html")), "content_type": "text/html"}

# PostgreSQL reads and sends in one transaction, and the table is locked for that moment: every change is either in this
# message or comes after it.
SHOW = """
    SELECT socketio.emit('orders', jsonb_build_array(coalesce(jsonb_agg(shown), '[]')), ARRAY[%(sid)s::text])
    FROM (SELECT id, item, status FROM orders WHERE customer_id = %(customer)s ORDER BY id) AS shown
"""

mgr = AsyncPostgresManager(DSN)
# `always_connect`: the client is connected before the handler runs, so it can receive what the handler has sent.
sio = socketio.AsyncServer(client_manager=mgr, async_mode="asgi", cors_allowed_origins=[], always_connect=True)
app = socketio.ASGIApp(sio, static_files={"/": PAGE}, on_startup=mgr.start, on_shutdown=mgr.close)


@sio.event
async def connect(sid: str, environ: dict[str, Any], auth: dict[str, Any] | None = None) -> None:
    # A real shop takes the customer from a session or a token, not from what the page says.
    customer = int((auth or {})["customer"])
    await sio.enter_room(sid, f"customer:{customer}")
    async with await psycopg.AsyncConnection.connect(DSN) as connection:  # one transaction; a real shop has a pool
        await connection.execute("LOCK TABLE orders IN SHARE MODE")
        await connection.execute(SHOW, {"sid": sid, "customer": customer})
