"""`DurableState`: how far a durable subscription is."""

from __future__ import annotations

import dataclasses
import json

__all__ = ["DurableState", "PartitionState"]


@dataclasses.dataclass(frozen=True)
class PartitionState:
    """A partition of a durable subscription as it is in the database.

    Attributes:
        partition: Its number, from 0.
        position: Version up to which its events are acknowledged.
        owner: Who has it, or had it last.
        is_owned: Whether the owner's lease is valid.
    """

    partition: int
    position: int
    owner: str | None
    is_owned: bool


@dataclasses.dataclass(frozen=True)
class DurableState:
    """A durable subscription as it is in the database.

    Attributes:
        name: Its name.
        position: Version up to which events are acknowledged; of several partitions the lowest.
        owner: Who has it, or had it last: host, process id and a random part; several are separated by commas.
        is_owned: Whether the leases of all its partitions are valid.
        is_paused: Whether nobody may have it.
        lag: Versions between its position and the end of the table; gaps and what the filter leaves out included.
        lag_seconds: Age of the oldest event after its position, matching or not; 0 when there is none.
        parked: Events set aside.
        partitions: Each of its partitions; one, if it is not divided.
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

    @classmethod
    def of(cls, row: str) -> DurableState:
        """From JSON text."""
        fields = json.loads(row)
        return cls(**{**fields, "partitions": tuple(PartitionState(**each) for each in fields["partitions"])})
