"""What `stats()` of managers, emitters and clients returns; docs/operations.md says what each key means."""

from __future__ import annotations

from typing import Literal, TypedDict

__all__ = ["BusStats", "ManagerStats", "Outage"]


class Outage(TypedDict):
    """Why there is no connection, as of the last attempt.

    Attributes:
        kind: Name of the exception.
        sqlstate: The server's code; None when the failure is not the server's.
        text: The exception's text, without secrets.
        since: When it began, in seconds as `time.time()` has them.
    """

    kind: str
    sqlstate: str | None
    text: str
    since: float


class BusStats(TypedDict, total=False):
    """Counters of an emitter or a client since its first use in this process, and how things are now.

    All keys are there from the first use on, and none before it. Durations are seconds.
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
