"""The options of managers, emitters and clients; those of an event store are `events.EventStoreOptions`."""

from __future__ import annotations

from socketio_postgres._bus.options import (
    BusKeywords,
    BusOptions,
    HeartbeatOptions,
    ManagerKeywords,
    OnFull,
    Password,
)

__all__ = ["BusKeywords", "BusOptions", "HeartbeatOptions", "ManagerKeywords", "OnFull", "Password"]
