"""For readiness checks: is this process connected to the cluster?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["problems"]


def problems(
    stats: Mapping[str, Any],
    *,
    max_probe_age: float = 30.0,
    max_buffer_count: int = 5000,
    max_inbox_age: float = 30.0,
) -> list[str]:
    """The current problems of a manager, an emitter or a client, in words. Empty if there are none.

    An object that has not been used has no problems. A growing `echo_age` is not a problem: a server that publishes
    nothing receives no echo, and if an echo is overdue, the listener reconnects.

    Args:
        stats: The result of the object's `stats()`.
        max_probe_age: Maximum time in seconds since the last answer of the listening session. A session that does not
            answer is replaced within `heartbeat_timeout`, so use a higher value. Default 30.
        max_buffer_count: Maximum number of messages that wait for their commit. Default 5000, half of the default of
            `buffer_count`.
        max_inbox_age: Maximum time in seconds that received messages wait while this process takes none, because its
            event loop or its background thread is blocked. Call this function from another thread, or pass the numbers
            to another process, to notice that. Default 30.
    """
    found = []
    deaf, mute = (_outage(stats, whose) for whose in ("listener", "publisher"))
    state, probe_age, waiting = stats.get("state", "idle"), stats.get("probe_age"), stats.get("buffer_count", 0)
    if state == "closed":
        found.append("it was closed")
    elif state == "connecting":
        found.append(f"not listening on all channels: what other servers send does not arrive{deaf}")
    elif state == "listening" and probe_age is not None and probe_age > max_probe_age:
        found.append(f"the listening session has not answered for {probe_age:.0f} s")
    if waiting > max_buffer_count:
        found.append(f"{waiting} messages wait to be committed{mute}")
    inbox_age = stats.get("inbox_age", 0.0)
    if inbox_age > max_inbox_age and state != "idle":  # nobody reads what an emitter is told
        found.append(f"this process has taken none of the messages that wait for it, for {inbox_age:.0f} s")
    return found


def _outage(stats: Mapping[str, Any], whose: str) -> str:
    """Why a connection is not there, for whoever may ask: the server's words name roles and hosts, and are left out."""
    outage = stats.get(f"{whose}_outage")
    if outage is None:
        return ""
    reason = " ".join(filter(None, (outage["kind"], outage["sqlstate"])))
    return f" ({reason}, for {stats[f'{whose}_outage_seconds']:.0f} s)"
