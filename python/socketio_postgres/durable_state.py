"""`DurableState`: how far a durable subscription is."""

from __future__ import annotations

import dataclasses

__all__ = ["DurableState"]


@dataclasses.dataclass(frozen=True)
class DurableState:
    """A durable subscription as it is in the database.

    Attributes:
        name: Its name.
        position: Version up to which events are acknowledged.
        owner: Who has it, or had it last: host, process id and a random part.
        is_owned: Whether the owner's lease is valid.
        is_paused: Whether nobody may have it.
        lag: Versions between its position and the end of the table; gaps and what the filter leaves out included.
        parked: Events set aside.
    """

    name: str
    position: int
    owner: str | None
    is_owned: bool
    is_paused: bool
    lag: int
    parked: int
