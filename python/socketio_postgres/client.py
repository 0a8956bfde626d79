"""The clients: LISTEN, NOTIFY and the attachment table without the cluster protocol."""

from __future__ import annotations

from socketio_postgres._bus._sync.client import PostgresClient
from socketio_postgres._bus.async_client import AsyncPostgresClient
from socketio_postgres._bus.gap import GapInfo
from socketio_postgres._bus.notification import Notification

__all__ = ["AsyncPostgresClient", "GapInfo", "Notification", "PostgresClient"]
