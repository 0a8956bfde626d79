"""The results of `stats()` of managers, emitters and clients. docs/operations.md describes each key."""

from __future__ import annotations

from typing import Literal, TypedDict

__all__ = ["BusStats", "ManagerStats", "Outage"]


class Outage(TypedDict):
    """The reason of an outage, according to the last attempt to connect.

    Attributes:
        kind: Name of the exception.
        sqlstate: The server's SQLSTATE; None if the failure is not the server's.
        text: The exception's text, without secrets.
        since: When the outage began, in seconds as returned by `time.time()`.
    """

    kind: str
    sqlstate: str | None
    text: str
    since: float


class BusStats(TypedDict, total=False):
    """Counters of an emitter or a client since its first use in this process, and its current state.

    From the first use on, all keys are present; before it, none. Durations are in seconds.
    """

    state: Literal["idle", "connecting", "listening", "closed"]
    is_listening: bool
    channels: int
    members: int | None
    listener_reconnects: int
    probe_age: float | None
    echo_age: float | None
    notification_queue_usage: float | None
    listener_outage: Outage | None
    listener_outage_seconds: float | None
    published: int
    publish_failed: int
    publish_in_doubt: int
    publish_dropped: int
    publish_groups: int
    publish_attachments: int
    publisher_reconnects: int
    publisher_outage: Outage | None
    publisher_outage_seconds: float | None
    buffer_count: int
    buffer_bytes: int
    received: int
    irrelevant: int
    own: int
    duplicates: int
    undecodable: int
    bad_signatures: int
    attachments: int
    attachments_skipped: int
    attachments_missing: int
    overflowed: int
    gaps: int
    missing_messages: int
    inbox_bytes: int
    inbox_age: float
    held_bytes: int


class ManagerStats(BusStats, total=False):
    """Those of a manager.

    Attributes:
        peers: For each namespace, the ids of the other servers; there before the first use, too.
    """

    peers: dict[str, list[str]]
