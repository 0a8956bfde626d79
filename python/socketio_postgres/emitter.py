"""The emitters: emit to a cluster from any process, without a server."""

from __future__ import annotations

from socketio_postgres._cluster.async_emitter import AsyncEmitter
from socketio_postgres._cluster.emitter import Emitter

__all__ = ["AsyncEmitter", "Emitter"]
