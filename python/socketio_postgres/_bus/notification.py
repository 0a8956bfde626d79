"""`Notification`: what the clients receive."""

from __future__ import annotations

import dataclasses

__all__ = ["Notification"]


@dataclasses.dataclass(frozen=True)
class Notification:
    """One notification.

    Attributes:
        channel: Channel it was sent on.
        payload: Its payload, at most 7999 bytes.
        pid: Process id of the session that sent it.
    """

    channel: str
    payload: str
    pid: int
