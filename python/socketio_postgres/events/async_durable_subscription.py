"""`AsyncDurableSubscription`: a subscription whose position is kept in the database, by name."""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Final

from socketio_postgres._bus.hook import AsyncHook
from socketio_postgres._bus.primitives import acall, asleep
from socketio_postgres._typing import Self
from socketio_postgres.events.async_statements import run_on
from socketio_postgres.events.async_subscription import AsyncSubscription
from socketio_postgres.events.event import EventHandler, StoredEvent
from socketio_postgres.events.failure_policy import FailurePolicy, Park, ParkedEvent, Skip
from socketio_postgres.exceptions import (
    ConnectionLostError,
    EventStoreError,
    OptionsError,
    SubscriptionFencedError,
)

__all__ = ["AsyncDurableSubscription"]

CHECKPOINT_COUNT: Final = 100
"""Acknowledged events after which the position is written."""

QueryFunction = Callable[..., Awaitable[list[list[str | None]]]]


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value != "" and "\0" not in value


class AsyncDurableSubscription:
    """Events after a position that outlives the process: at least once, in order, one consumer at a time.

    Entering it takes the lease, waiting while another process has it. Whoever loses the lease, because it slept too
    long or died, can change nothing any more: every checkpoint names the owner's number (a fence).

    In a loop an event is acknowledged when the next one is asked for, unless `ack`, `ack_in` or `park` did it before.
    With `ack_in` the position commits together with your own changes, so that they happen exactly once.

    Made by `AsyncEventStore.durable`. With `partitions` several consumers share it: `AsyncCompetingSubscription`.
    """

    def __init__(
        self,
        name: str,
        *,
        query: QueryFunction,
        subscribe: Callable[[int, float, list[Any]], AsyncSubscription],
        get: Callable[[int], Awaitable[StoredEvent | None]],
        tables: tuple[str, str, str],
        start: Callable[[], Awaitable[int]],
        filter_text: str,
        lease: float,
        checkpoint_interval: float,
        reset: bool,
        report: Callable[[Exception, str], None],
    ) -> None:
        if not _is_name(name):
            raise OptionsError(
                f"invalid name: must be a string that is not empty (got {name!r})",
                option="name",
                value=repr(name),
                reason="must be a string that is not empty",
            )
        self.name = name
        self._query = query
        self._subscribe = subscribe
        self._get = get
        self._table, self._parked_table, self._consumers = tables
        self._start = start
        self._filter_text = filter_text
        self._lease = lease
        self._checkpoint_interval = min(checkpoint_interval, lease / 3)
        self._reset = reset
        self._report = report
        self._owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._epoch = 0
        self._live: AsyncSubscription | None = None
        self._given: StoredEvent | None = None
        # What is acknowledged, and how much of that is in the database.
        self._acknowledged = 0
        self._written = 0
        self._unwritten = 0
        # The last position was written in a transaction of the user's, whose end we do not know.
        self._is_in_doubt = False
        self._written_at = 0.0
        self._renewed_at = 0.0
        # Aggregates that have parked events; None before it was looked up.
        self._held: set[str] | None = None

    @property
    def position(self) -> int:
        """Version up to which events are acknowledged."""
        return self._acknowledged

    @property
    def partitions(self) -> list[int]:
        """The partitions that are ours at this moment: undivided, there is one, number 0."""
        return [] if self._live is None or self._live.is_closed else [0]

    # ------------------------------------------------------------------------------------------------ the lease

    async def __aenter__(self) -> Self:
        if not await self._rows(f"SELECT name FROM {self._table} WHERE name = $1", self.name):
            start = await self._start()
            await self._rows(
                f"INSERT INTO {self._table} (name, position, filter) VALUES ($1, $2::bigint, $3)"
                " ON CONFLICT DO NOTHING",
                self.name,
                str(start),
                self._filter_text,
            )
        while not await self._acquire():
            await asleep(min(self._lease / 4, 1.0))
        self._live = self._subscribe(self._written, min(self._lease / 3, 5.0), [])
        return self

    async def _acquire(self) -> bool:
        rows = await self._rows(
            f"UPDATE {self._table} SET epoch = epoch + 1, owner = $2, updated_at = pg_catalog.now(),"
            " lease_until = pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => $3::pg_catalog.float8),"
            " filter = CASE WHEN $4::boolean THEN $5 ELSE filter END"
            " WHERE name = $1 AND partition = 0 AND NOT is_paused"
            " AND (lease_until IS NULL OR lease_until < pg_catalog.clock_timestamp())"
            " RETURNING epoch::pg_catalog.text, position::pg_catalog.text, filter, partitions::pg_catalog.text",
            self.name,
            self._owner,
            str(self._lease),
            "true" if self._reset else "false",
            self._filter_text,
        )
        if not rows:
            return False
        epoch, position, filter_text, partitions = rows[0]
        self._epoch = int(epoch or 0)
        self._written = self._acknowledged = int(position or 0)
        self._renewed_at = self._written_at = time.monotonic()
        wrong = self._mismatch(filter_text, partitions, 1)
        if wrong is not None:
            await self._release()
            raise wrong
        return True

    def _mismatch(self, filter_text: str | None, partitions: str | None, wanted: int) -> OptionsError | None:
        """What differs from how the subscription was made."""
        if partitions != str(wanted):
            return OptionsError(
                f"invalid partitions: the durable subscription {self.name!r} was made with {partitions}; give as many,"
                " or change it with repartition_durable",
                option="partitions",
                value=str(wanted),
                reason=f"the subscription was made with {partitions}",
            )
        if filter_text != self._filter_text:
            return OptionsError(
                f"invalid filters: the durable subscription {self.name!r} was made with {filter_text}; give the same,"
                " another name, or reset=True to go on with the new ones",
                option="filters",
                value=self._filter_text,
                reason="differ from those the subscription was made with",
            )
        return None

    async def _release(self) -> None:
        await self._rows(
            f"UPDATE {self._table} SET lease_until = NULL, owner = NULL"
            " WHERE name = $1 AND partition = 0 AND epoch = $2::bigint",
            self.name,
            str(self._epoch),
        )

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.close()
        if isinstance(error, SubscriptionFencedError):
            return
        if error is None:
            self._acknowledge_given()
        # With an error, an ack_in was probably rolled back together with the user's transaction.
        if self._unwritten and not (error is not None and self._is_in_doubt):
            await self._write()
        await self._release()

    async def _rows(self, sql: str, *texts: str | None) -> list[list[str | None]]:
        return await self._query(sql, *texts)

    # --------------------------------------------------------------------------------------------- the iteration

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StoredEvent:
        if self._live is None:
            raise EventStoreError(f"enter the durable subscription {self.name!r} with a with statement first")
        self._acknowledge_given()
        while True:
            await self._write_in_time()
            # Nothing to do must not keep what was done from being written.
            item = await self._live.next_or_idle(self._checkpoint_interval if self._unwritten else None)
            if item is not None:
                self._given = item
                return item
            # Nothing matched for a while: that is progress, too.
            idle = self._live.position
            if idle is not None and idle > self._acknowledged:
                self._acknowledged = idle
                self._unwritten += 1

    def _acknowledge_given(self) -> None:
        if self._given is not None:
            self._take(self._given.version)

    def _take(self, version: int) -> None:
        if version > self._acknowledged:
            self._acknowledged = version
            self._unwritten += 1
        if self._given is not None and self._given.version <= version:
            self._given = None

    async def _write_in_time(self) -> None:
        now = time.monotonic()
        is_due = self._unwritten >= CHECKPOINT_COUNT or (
            self._unwritten and now - self._written_at >= self._checkpoint_interval
        )
        if is_due or now - self._renewed_at >= self._lease / 3:
            await self._write()

    async def _write(self) -> None:
        deadline = time.monotonic() + self._lease
        while True:
            try:
                rows = await self._write_once()
            except ConnectionLostError:
                # The commit may be in doubt: that is why the position may be further already.
                if time.monotonic() >= deadline:
                    raise
                await asleep(0.1)
            else:
                break
        if not rows:
            # An ack_in in a transaction that is still open: the loop cannot wait for itself. The row is locked, so
            # nobody takes it over either.
            if self._is_in_doubt and await self._is_locked():
                self._renewed_at = time.monotonic()
                return
            raise await self._refusal()
        self._written, self._unwritten, self._is_in_doubt = self._acknowledged, 0, False
        self._written_at = self._renewed_at = time.monotonic()

    async def _write_once(self) -> list[list[str | None]]:
        return await self._rows(
            f"UPDATE {self._table} SET position = $1::bigint, updated_at = pg_catalog.now(),"
            " lease_until = pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => $2::pg_catalog.float8)"
            " WHERE name = $3 AND partition = 0 AND epoch = $4::bigint AND position BETWEEN $5::bigint AND $1::bigint"
            f" AND name IN (SELECT name FROM {self._table} WHERE name = $3 AND partition = 0 FOR UPDATE SKIP LOCKED)"
            " RETURNING 'written'",
            str(self._acknowledged),
            str(self._lease),
            self.name,
            str(self._epoch),
            str(self._written),
        )

    async def _is_locked(self) -> bool:
        free = await self._rows(
            f"SELECT name FROM {self._table} WHERE name = $1 AND partition = 0 FOR UPDATE SKIP LOCKED", self.name
        )
        return not free

    async def _refusal(self) -> EventStoreError:
        rows = await self._rows(
            f"SELECT epoch::pg_catalog.text, owner, position::pg_catalog.text FROM {self._table} WHERE name = $1",
            self.name,
        )
        if rows and rows[0][0] == str(self._epoch):
            return EventStoreError(
                f"the durable subscription {self.name!r} is at version {rows[0][2]} instead of {self._written}: the"
                " transaction of an ack_in was rolled back and the loop went on; leave the loop when that happens"
            )
        owner = rows[0][1] if rows else None
        return SubscriptionFencedError(
            f"the durable subscription {self.name!r} belongs to {owner or 'nobody'} now; this consumer was too slow,"
            " or the subscription was rewound or deleted",
            name=self.name,
        )

    async def ack(self, event: StoredEvent) -> None:
        """Acknowledge an event and all before it, now.

        Raises:
            SubscriptionFencedError: Another consumer has taken over.
        """
        self._take(event.version)
        await self._write()

    async def ack_in(self, conn: Any, event: StoredEvent) -> None:
        """Acknowledge an event and all before it in your own transaction: both commit, or neither.

        Args:
            conn: A connection of psycopg, asyncpg or SQLAlchemy (or its session) to the same database, with your
                transaction open.
            event: The event.

        Raises:
            SubscriptionFencedError: Another consumer has taken over. Let it end your transaction.
            EventStoreError: An earlier transaction with an `ack_in` was rolled back, but the loop went on.
        """
        changed = await run_on(
            conn,
            f"UPDATE {self._table} SET position = %s, updated_at = pg_catalog.now()"
            " WHERE name = %s AND partition = 0 AND epoch = %s AND position BETWEEN %s AND %s",
            [event.version, self.name, self._epoch, self._written, event.version],
        )
        if changed != 1:
            raise await self._refusal()
        self._take(event.version)
        self._written, self._unwritten, self._is_in_doubt = event.version, 0, True

    # ---------------------------------------------------------------------------------------------- failures

    async def run(self, handler: EventHandler, on_error: FailurePolicy | None = None) -> None:
        """Call `handler` with each event, for ever; acknowledge what it returns from.

        Args:
            handler: Receives a `StoredEvent`; may be a coroutine function.
            on_error: What to do when it raises: `Stop`, `Skip` or `Park`. Default `Stop()`.

        Raises:
            OptionsError: The handler is no function.
            Exception: What the handler raised, with `Stop`.
            SubscriptionFencedError: Another consumer has taken over.
        """
        AsyncHook.check("handler", handler)
        policy = on_error or FailurePolicy()
        async for event in self:
            if isinstance(policy, Park) and policy.whole_aggregate:
                if self._held is None:
                    self._held = {parked.aggregate_id for parked in await self.parked()}
                if event.aggregate_id in self._held:
                    await self.park(event, None, attempts=0)
                    continue
            await self._handle(event, handler, policy)

    async def _handle(self, event: StoredEvent, handler: EventHandler, policy: FailurePolicy) -> None:
        attempts = 0
        while True:
            attempts += 1
            try:
                await acall(handler, event)
            except SubscriptionFencedError:
                raise
            except Exception as error:
                if attempts < policy.after:
                    await asleep(policy.pause(attempts))
                    await self._write_in_time()
                    continue
                if isinstance(policy, Park):
                    await self.park(event, error, attempts=attempts)
                    if self._held is not None:
                        self._held.add(event.aggregate_id)
                elif not isinstance(policy, Skip):
                    self._given = None  # not acknowledged: it comes again
                    raise
                self._report(error, f"{self.name}: event {event.version} failed {attempts} times")
            return

    async def park(self, event: StoredEvent, error: BaseException | None, *, attempts: int = 1) -> None:
        """Set an event aside and acknowledge it, in one transaction.

        Raises:
            SubscriptionFencedError: Another consumer has taken over.
        """
        rows = await self._rows(
            f"WITH moved AS (UPDATE {self._table} SET position = $1::bigint, updated_at = pg_catalog.now()"
            " WHERE name = $2 AND partition = 0 AND epoch = $3::bigint AND position BETWEEN $4::bigint AND $1::bigint"
            " RETURNING name)"
            f" INSERT INTO {self._parked_table} (name, version, aggregate_id, attempts, last_error)"
            " SELECT name, $1::bigint, $5, $6::int, $7 FROM moved"
            " ON CONFLICT (name, version) DO UPDATE SET attempts = excluded.attempts, last_error = excluded.last_error"
            " RETURNING 'parked'",
            str(event.version),
            self.name,
            str(self._epoch),
            str(self._written),
            event.aggregate_id,
            str(attempts),
            None if error is None else f"{type(error).__name__}: {error}".replace("\0", ""),
        )
        if not rows:
            raise await self._refusal()
        self._take(event.version)
        self._written, self._unwritten = event.version, 0

    async def parked(self) -> list[ParkedEvent]:
        """Events that were set aside, in order."""
        rows = await self._rows(
            "SELECT pg_catalog.json_build_object('version', version, 'aggregate_id', aggregate_id,"
            " 'attempts', attempts, 'last_error', last_error)::pg_catalog.text"
            f" FROM {self._parked_table} WHERE name = $1 ORDER BY version",
            self.name,
        )
        return [ParkedEvent(**json.loads(row[0] or "{}")) for row in rows]

    def _is_ours(self, aggregate_id: str) -> bool:
        """Whether no other consumer handles this aggregate."""
        del aggregate_id
        return True

    async def replay_parked(self, handler: EventHandler) -> int:
        """Call `handler` with each parked event, in order; those it returns from are parked no longer.

        What fails stays parked, and so does what follows of its aggregate.

        Returns:
            How many were handled.
        """
        handled, held = 0, set()
        for parked in await self.parked():
            event = await self._get(parked.version)
            if parked.aggregate_id in held or not self._is_ours(parked.aggregate_id):
                continue
            try:
                if event is not None:
                    await acall(handler, event)
            except Exception as error:  # noqa: BLE001 - the user's; it stays where it is
                held.add(parked.aggregate_id)
                self._report(error, f"{self.name}: parked event {parked.version} failed again")
                continue
            await self._rows(
                f"DELETE FROM {self._parked_table} WHERE name = $1 AND version = $2::bigint",
                self.name,
                str(parked.version),
            )
            handled += 1
        self._held = None
        return handled
