# Generated from async_event_batch.py by scripts/async_to_sync.py; edit that file.
"""`EventBatch`: events of a durable subscription that are acknowledged together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, overload

from socketio_postgres.events.event import StoredEvent

__all__ = ["EventBatch"]


class EventBatch(Sequence[StoredEvent]):
    """Events in the order of their versions; at least one.

    Made by `DurableSubscription.batches`.
    """

    def __init__(
        self,
        events: list[StoredEvent],
        ack: Callable[[list[StoredEvent]], None],
        ack_in: Callable[[Any, list[StoredEvent]], None],
    ) -> None:
        self._events = events
        self._ack = ack
        self._ack_in = ack_in

    def ack(self) -> None:
        """Acknowledge all of them, now.

        Raises:
            SubscriptionFencedError: The partition of the last one belongs to somebody else.
        """
        self._ack(self._events)

    def ack_in(self, conn: Any) -> None:
        """Acknowledge all of them in your own transaction; see `DurableSubscription.ack_in`.

        Args:
            conn: A connection of psycopg, asyncpg or SQLAlchemy (or its session) to the same database, with your
                transaction open.

        Raises:
            SubscriptionFencedError: A partition belongs to somebody else. Let it end your transaction.
            OptionsError: No transaction is open on the connection, or it is of no such library.
        """
        self._ack_in(conn, self._events)

    @overload
    def __getitem__(self, index: int) -> StoredEvent: ...
    @overload
    def __getitem__(self, index: slice) -> list[StoredEvent]: ...
    def __getitem__(self, index: int | slice) -> StoredEvent | list[StoredEvent]:
        return self._events[index]

    def __iter__(self) -> Iterator[StoredEvent]:
        return iter(self._events)

    def __len__(self) -> int:
        return len(self._events)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)} events up to version {self._events[-1].version}>"
