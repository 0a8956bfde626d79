"""What `stats()` returns; that of an event store is `events.EventStoreStats`."""

from __future__ import annotations

from socketio_postgres._bus.stats import BusStats, ManagerStats, Outage

__all__ = ["BusStats", "ManagerStats", "Outage"]
