"""What `stats()` and `layout()` of an event store return; docs/event-store-reference.md explains each counter."""

from __future__ import annotations

from typing import TypedDict

from socketio_postgres._bus.stats import Outage

__all__ = ["EventStoreStats", "TableLayout"]


class EventStoreStats(TypedDict, total=False):
    """Counters of an event store since it was made, and how things are now. Durations are seconds.

    All keys are there, but none in a forked child before it uses the store.
    """

    max_open_connections: int
    open_connections: int
    in_use: int
    idle: int
    wait_count: int
    wait_duration: float
    max_idle_closed: int
    max_idle_time_closed: int
    max_lifetime_closed: int
    stored: int
    store_failed: int
    store_groups: int
    store_alone: int
    store_waiting: int
    subscriptions: int
    settled_version: int
    read: int
    reads: int
    pages: int
    page_timeouts: int
    lock_looks: int
    subscription_wakeups: int
    is_listening: bool
    listener_reconnects: int
    notifications: int
    listener_outage: Outage | None
    listener_outage_seconds: float | None
    reader_outage: Outage | None
    reader_outage_seconds: float | None
    gap_seconds: float | None
    gap_holders: list[int]


class TableLayout(TypedDict, total=False):
    """The properties of the event table. Once the store is open all keys are present, and before it none.

    Attributes:
        table_name: The table, with its schema, quoted.
        oid: Its object id.
        sequence: The sequence that versions come from, quoted.
        lock_class: First key of the advisory locks that writers of this table take.
        lock_mask: How many second keys there are, less one; an aggregate has the one of its id's hash.
        turn_key: Second key of the lock that writers take in turn, where `is_serial`.
        notifies_go: Whether go-sync-kit's trigger is there, with its limits.
        notifies_us: Whether our own trigger is there.
        has_aggregate_index: Whether an index leads to an aggregate's last version.
        is_guarded: Whether `enable_guard` was called.
        is_native: Whether we have made the table.
        is_serial: Whether `enable_serial_order` was called.
        indexes: Valid indexes of the table that are named after it, with its schema, quoted.
    """

    table_name: str
    oid: int
    sequence: str
    lock_class: int
    lock_mask: int
    turn_key: int
    notifies_go: bool
    notifies_us: bool
    has_aggregate_index: bool
    is_guarded: bool
    is_native: bool
    is_serial: bool
    indexes: list[str]
