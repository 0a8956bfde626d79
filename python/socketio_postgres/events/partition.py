"""`Partition`: a part of a durable subscription that one consumer owns, and who should own how many."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Final, NamedTuple

from socketio_postgres.exceptions import OptionsError, SubscriptionRetiredError

__all__ = ["Found", "Partition", "check_partitions", "partition_of", "retired", "shares"]

PARTITIONS_MAX: Final = 1024


def check_partitions(partitions: object) -> None:
    """Check a number of partitions.

    Raises:
        OptionsError: It is not an integer from 1 to 1024.
    """
    if isinstance(partitions, bool) or not isinstance(partitions, int) or not 1 <= partitions <= PARTITIONS_MAX:
        reason = f"must be an integer from 1 to {PARTITIONS_MAX}"
        raise OptionsError(
            f"invalid partitions: {reason} (got {partitions!r})",
            option="partitions",
            value=repr(partitions),
            reason=reason,
        )


def partition_of(aggregate_id: str, partitions: int) -> int:
    """The partition that an aggregate falls into: the first three bytes of the id's SHA-256, modulo the partitions.

    The same in the core and in SQL; `filter.rs` has both.
    """
    return int.from_bytes(hashlib.sha256(aggregate_id.encode()).digest()[:3], "big") % partitions


def retired(name: str, replaced_by: str) -> SubscriptionRetiredError:
    """The error of a consumer whose subscription was replaced."""
    return SubscriptionRetiredError(
        f"the durable subscription {name!r} was replaced by {replaced_by!r}: a newer version of its projection is"
        " served now, and this one may end",
        name=name,
        replaced_by=replaced_by,
    )


class Found(NamedTuple):
    """What the database says about a partition."""

    epoch: int
    position: int
    owner: str | None
    replaced_by: str | None = None


@dataclasses.dataclass
class Partition:
    """A partition that this consumer owns.

    Attributes:
        number: From 0.
        epoch: How often the partition has changed hands. A statement that names another epoch changes nothing.
        written: The position in the database, as it was last read or written.
        acknowledged: Version up to which events are acknowledged; not written yet if it is above `written`.
        acknowledged_id: The id of the event with this version, if it is known.
        pending: The version of the last `ack_in`. Whether its transaction commits is not known yet.
        pending_in: That transaction.
        unclean: How many owners in a row have ended without letting go, and without progress.
        attempts: How often the next event was begun by such owners.
    """

    number: int
    epoch: int
    written: int
    acknowledged: int
    acknowledged_id: str | None = None
    pending: int | None = None
    pending_in: str | None = None
    unclean: int = 0
    attempts: int = 0

    @property
    def taken(self) -> int:
        """Version up to which this consumer has handled events, with or without a commit."""
        return max(self.acknowledged, self.pending or 0)

    @property
    def taken_id(self) -> str | None:
        """The id of the event with this version, if it is known."""
        return self.acknowledged_id if self.acknowledged >= (self.pending or 0) else None

    @property
    def base(self) -> int:
        """The lowest position that the database can have, unless a transaction with an `ack_in` was rolled back."""
        return self.written if self.pending is None else self.pending

    def base_for(self, version: int) -> int:
        """The same for an `ack_in` of a version, which may repeat one whose transaction was rolled back."""
        return self.written if self.pending is None or version <= self.pending else self.pending

    def acknowledge(self, version: int, event_id: str | None) -> bool:
        """Move on to an event in memory; False when it is no news.

        An `ack_in` of an earlier version stays pending: should it have been rolled back, the database refuses this one.
        """
        if version <= self.acknowledged:
            return False
        self.acknowledged, self.acknowledged_id = version, event_id
        return True

    def found(self, position: int) -> bool:
        """Take over the position that the database has; False when an `ack_in` was rolled back."""
        is_as_expected = position >= self.base
        self.written = position
        if not is_as_expected:
            self.acknowledged, self.acknowledged_id, self.pending = position, None, None
        elif self.pending is not None and position >= self.pending:
            self.pending = None
        self.acknowledge(position, None)
        return is_as_expected


def shares(owned: Mapping[str, int], partitions: int) -> dict[str, int]:
    """How many partitions each consumer should own.

    Args:
        owned: How many each consumer owns now; at least one consumer.
        partitions: How many there are.

    Returns:
        Shares that differ by at most one. Consumers that own more keep more, so that as few as possible move.
    """
    least, extra = divmod(partitions, len(owned))
    in_order = sorted(owned, key=lambda owner: (-owned[owner], owner))
    return {owner: least + (place < extra) for place, owner in enumerate(in_order)}
