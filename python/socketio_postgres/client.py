"""The clients: LISTEN, NOTIFY and the attachment table without the cluster protocol."""

from __future__ import annotations

from socketio_postgres._bus.async_client import AsyncPostgresClient, Notification
from socketio_postgres._bus.client import PostgresClient
from socketio_postgres._bus.gap import GapInfo

__all__ = ["AsyncPostgresClient", "GapInfo", "Notification", "PostgresClient"]
