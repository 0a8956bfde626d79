"""`DurableState`: the position, owner and lag of a durable subscription."""

from __future__ import annotations

import dataclasses
import json

__all__ = ["DurableState", "PartitionState"]


@dataclasses.dataclass(frozen=True)
class PartitionState:
    """The state of a partition of a durable subscription in the database.

    Attributes:
        partition: Its number, from 0.
        position: Version up to which its events are acknowledged.
        owner: Its owner, or the last one; None once the owner has let go.
        is_owned: Whether the owner's lease is valid.
    """

    partition: int
    position: int
    owner: str | None
    is_owned: bool


@dataclasses.dataclass(frozen=True)
class DurableState:
    """The state of a durable subscription in the database.

    Attributes:
        name: Its name.
        position: Version up to which events are acknowledged; with several partitions, the lowest.
        owner: Its owners, separated by commas: host, process id and a random part of each. None once they have let go.
        is_owned: Whether the leases of all its partitions are valid.
        is_paused: Whether it is paused, so that no consumer may own it.
        lag: Number of versions between its position and the end of the table, including gaps and events that do not
            match its filters. 0 for one that was replaced.
        lag_seconds: Age of the oldest event after its position, matching or not; 0 when there is none.
        parked: Number of parked events.
        partitions: Its partitions; one, if it is not divided.
        replaced_by: Name of the one that has replaced it, with a newer version of its projection. None if none has.
    """

    name: str
    position: int
    owner: str | None
    is_owned: bool
    is_paused: bool
    lag: int
    lag_seconds: float
    parked: int
    partitions: tuple[PartitionState, ...]
    replaced_by: str | None = None

    @classmethod
    def of(cls, row: str) -> DurableState:
        """From JSON text."""
        fields = json.loads(row)
        return cls(**{**fields, "partitions": tuple(PartitionState(**each) for each in fields["partitions"])})
