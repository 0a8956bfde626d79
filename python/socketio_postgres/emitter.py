"""The emitters: emit to a cluster from any process, without a server."""

from __future__ import annotations

from socketio_postgres._cluster._sync.emitter import Emitter
from socketio_postgres._cluster.async_emitter import AsyncEmitter

__all__ = ["AsyncEmitter", "Emitter"]
