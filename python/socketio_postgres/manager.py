"""The managers: they make a python-socketio server one of the servers of a cluster."""

from __future__ import annotations

from socketio_postgres._cluster._sync.manager import PostgresManager
from socketio_postgres._cluster._sync.server_operator import RemoteSocket
from socketio_postgres._cluster.async_manager import AsyncPostgresManager
from socketio_postgres._cluster.async_server_operator import AsyncRemoteSocket

__all__ = ["AsyncPostgresManager", "AsyncRemoteSocket", "PostgresManager", "RemoteSocket"]
