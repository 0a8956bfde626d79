"""What a readiness check asks: is this process connected to the others?"""

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
    """What keeps a manager, an emitter or a client from its work now, in words; empty when nothing does.

    An object that was not used yet has no problems. Nor is it one when `echo_age` grows: a silent server hears nothing
    of itself, and an echo that is overdue makes the listener connect anew.

    Args:
        stats: What its `stats()` returned.
        max_probe_age: Seconds that the listening session may be without an answer. It is asked, and replaced when it
            does not answer, within `heartbeat_timeout`; give more than that. Default 30.
        max_buffer_count: Messages that may wait to be committed. Default 5000, half of the option `buffer_count`.
        max_inbox_age: Seconds that received messages may wait without this process taking any: its event loop, or the
            background thread, is blocked or gone. Ask from another thread, or process, to see that. Default 30.
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
