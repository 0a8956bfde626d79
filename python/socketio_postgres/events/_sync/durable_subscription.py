# Generated from async_durable_subscription.py by scripts/async_to_sync.py; edit that file.
"""`DurableSubscription`: a subscription whose position is in the database, for one consumer or many."""

from __future__ import annotations

import math
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Final

from socketio_postgres._bus.hook import Hook
from socketio_postgres._bus.primitives import Background, call, sleep
from socketio_postgres._typing import Self
from socketio_postgres.events._sync.event_batch import EventBatch
from socketio_postgres.events._sync.positions import Positions, QueryFunction
from socketio_postgres.events._sync.subscription import Subscription
from socketio_postgres.events.event import EventHandler, StoredEvent, check_name, check_positive, check_seconds
from socketio_postgres.events.failure_policy import FailurePolicy, Park, ParkedEvent, Skip, policy_of
from socketio_postgres.events.partition import Found, Partition, partition_of, retired, shares
from socketio_postgres.exceptions import (
    AlreadyAcknowledgedError,
    ConnectionLostError,
    DatabaseError,
    EventStoreError,
    OperationTimeoutError,
    OptionsError,
    SchemaMismatchError,
    SocketIOPostgresError,
    StoreRewoundError,
    SubscriptionFencedError,
    SubscriptionRetiredError,
)

__all__ = ["DurableSubscription", "check_batch"]

BATCH_BYTES: Final = 4 * 1024 * 1024
"""Size of events at which a batch ends, unless the caller says otherwise."""

CHECKPOINT_COUNT: Final = 100
"""Acknowledged events after which the position is written."""

BALANCE_SECONDS: Final = 1.0
"""Seconds between two looks at who else takes part; less with a short lease."""

ALONE_SECONDS: Final = 5.0
"""The same for the owner of an undivided subscription, who only looks whether it was rewound, paused or deleted, in
case the notification of that was lost."""

CLOSE_LIMIT: Final = 5.0
"""Seconds for which leaving waits for a database that is away."""

ERROR_LIMIT: Final = 1.0
"""The same when the block is left with an error, which must not be kept waiting."""

TICK: Final = 0.1
"""Seconds between two looks of the renewing task at whether it is to end."""

RETRY_FIRST: Final = 0.1
RETRY_LAST: Final = 5.0
"""Shortest and longest pause between two attempts of a loop whose database is away."""

SUSPICIOUS: Final = 2
"""Owners in a row that ended without progress, after which each event is counted before it is handled."""

_ENDED: Final = {"FATAL", "PANIC"}
"""Severities of the errors with which a server refuses, or ends, a session, whatever the reason."""

_PASSING: Final = ("08", "25006", "40001", "40P01", "53", "55P03", "57", "58")
"""SQLSTATEs, and classes of them, of statements that may succeed later: a pooler's errors, a standby, conflicts, lack
of memory or disk, and statements that a limit of the role or an administrator has ended."""


_UNKNOWN: Final = Found(0, 0, None)


def check_batch(max_count: int, max_wait: float, max_bytes: int) -> None:
    """Check the limits of a batch.

    Raises:
        OptionsError: One of them is wrong.
    """
    check_positive("max_count", max_count or 0)
    check_positive("max_bytes", max_bytes or 0)
    check_seconds("max_wait", max_wait, 0)


def _is_outage(error: SocketIOPostgresError) -> bool:
    """Whether waiting may help: the database was there before."""
    if isinstance(error, (ConnectionLostError, OperationTimeoutError)):
        return True
    return isinstance(error, DatabaseError) and (error.severity in _ENDED or error.sqlstate.startswith(_PASSING))


class DurableSubscription:
    """Events after a position that outlives the process: at least once, and each aggregate in order.

    Aggregates fall into partitions, by a hash of their ids; there is one, unless `partitions` says otherwise. Each
    partition has a position in the database, and belongs to one consumer at a time, by a lease. Consumers with the same
    name share the partitions evenly: when one joins, others hand partitions over between two events; when one dies, its
    partitions are taken over after its lease. A consumer that owns none waits.

    The lease is renewed beside the handler, so a slow handler does not lose it. A consumer that was frozen, or cut off
    from the database, for longer than the lease loses its partitions. It takes part again by itself; its `ack`,
    `ack_in` and `park` of events in a lost partition raise `SubscriptionFencedError` and change nothing.

    In a loop, an event is acknowledged when the next one is asked for, unless `ack`, `ack_in` or `park` was called for
    it. Leaving the loop does not acknowledge the event at hand. With `ack_in` the position commits together with your
    own changes, so that they happen exactly once.

    While the database is unavailable, the loop waits. Events that were not acknowledged are delivered again.

    Made by `EventStore.durable`.
    """

    def __init__(
        self,
        name: str,
        *,
        query: QueryFunction,
        subscribe: Callable[[int, str | None, float, list[Any]], Subscription],
        get: Callable[[int], StoredEvent | None],
        changes: Callable[[], int],
        tables: tuple[str, str, str, str],
        start: Callable[[], int],
        filter_text: str,
        partitions: int,
        lease: float,
        checkpoint_interval: float,
        reset: bool,
        report: Callable[[Exception, str], None],
    ) -> None:
        check_name(name)
        self.name = name
        self._query = query
        self._subscribe = subscribe
        self._get = get
        self._changes = changes
        self._start = start
        self._filter_text = filter_text
        self._count = partitions
        self._lease = lease
        self._checkpoint_interval = min(checkpoint_interval, lease / 3)
        self._balance_seconds = min(lease / 4, BALANCE_SECONDS)
        self._reset = reset
        self._report = report
        owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._owner = owner
        self._positions = Positions(name, owner, lease, self._ask, tables)
        self._own: dict[int, Partition] = {}
        self._live: Subscription | None = None
        # Version up to which `_live` has delivered. Partitions that came later begin further back than earlier events.
        self._delivered = 0
        self._given: StoredEvent | None = None
        self._unwritten = 0
        self._written_at = 0.0
        self._balanced_at: float | None = None
        # How many changes by others, of whichever durable subscription, our last look at ours has seen.
        self._heeded = 0
        # Parked events that `replay_parked` is handling.
        self._replaying: set[int] = set()
        # Aggregates that have parked events; None before it was looked up.
        self._held: set[str] | None = None
        self._is_entered = False
        self._is_away = False
        self._lock_limit = min(lease, CLOSE_LIMIT)
        self._instead = "another name, or reset=True to go on with the new ones"
        self._renewing: Background | None = None

    @property
    def position(self) -> int:
        """The lowest version up to which events of our partitions are acknowledged; 0 without any."""
        return min((each.taken for each in self._own.values()), default=0)

    @property
    def partitions(self) -> list[int]:
        """The partitions that this consumer owns at this moment; undivided, there is one, number 0."""
        return sorted(self._own)

    def fencing_token(self, event: StoredEvent) -> int:
        """A number that grows each time the event's partition changes hands, also when the subscription is made anew.

        Give it to other systems with your changes: one that remembers the highest number can refuse a consumer that
        was frozen and does not know yet that it has lost the partition.

        Raises:
            SubscriptionFencedError: The partition belongs to somebody else now.
        """
        return self._partition_with(event).epoch

    # ------------------------------------------------------------------------------------------------ the owner

    def __enter__(self) -> Self:
        made = self._positions.made_with()
        if made is None:
            self._positions.make(self._count, self._filter_text, self._start())
            made = self._positions.made_with()
        if self._reset and made is not None:
            self._positions.set_filter(self._filter_text)
            made = (made[0], self._filter_text, made[2])
        self._check_made(made)
        self._is_entered = True
        self._renewing = Background(self._renew, f"durable {self.name}")
        try:
            self._balance()
            while not self._own and self._count == 1:
                sleep(self._balance_seconds)
                self._balance()
        except BaseException:
            self._is_entered = False
            self._renewing.stop()
            raise
        return self

    def _check_made(self, made: tuple[int, str, str | None] | None) -> None:
        """Check that the subscription was made as it is asked for, and was not replaced."""
        if made is None:
            raise self._deleted()
        partitions, filter_text, replaced_by = made
        if replaced_by is not None:
            raise retired(self.name, replaced_by)
        self._check_count(partitions)
        if filter_text != self._filter_text:
            raise OptionsError(
                f"invalid filters: the durable subscription {self.name!r} was made with {filter_text}; give the same,"
                f" {self._instead}",
                option="filters",
                value=self._filter_text,
                reason="differ from those the subscription was made with",
            )

    def _check_count(self, partitions: int) -> None:
        if partitions != self._count:
            raise OptionsError(
                f"invalid partitions: the durable subscription {self.name!r} was made with {partitions}; give as many,"
                " or change it with repartition_durable",
                option="partitions",
                value=str(self._count),
                reason=f"the subscription was made with {partitions}",
            )

    def _deleted(self) -> SubscriptionFencedError:
        return SubscriptionFencedError(f"the durable subscription {self.name!r} was deleted", name=self.name)

    def _renew(self) -> None:
        """Extend the leases, beside the handler and beside long reads."""
        renewed_at = time.monotonic()
        while self._is_entered:
            sleep(min(TICK, self._lease / 10))
            if time.monotonic() - renewed_at < self._lease / 3 or not (self._own or self._replaying):
                continue
            try:
                self._positions.renew(list(self._own.values()), list(self._replaying), self._lease / 3)
            except SocketIOPostgresError:
                continue  # the loop tells about an outage; until then each attempt counts
            renewed_at = time.monotonic()

    def _balance(self) -> None:
        """See who else takes part, and hand over or take what makes the shares even."""
        self._balanced_at = time.monotonic()
        changes = self._changes()
        if self._count > 1:
            self._positions.arrive()
        owned, owners, replaced_by = self._positions.owned()
        if not owners:
            raise self._deleted()
        if replaced_by is not None:
            raise retired(self.name, replaced_by)
        self._check_count(len(owners))  # it may have been divided anew
        before = {number: each.epoch for number, each in self._own.items()}
        self._drop([number for number, each in self._own.items() if owners.get(number) != (each.epoch, self._owner)])
        share = 1 if self._count == 1 else shares(owned | {self._owner: len(self._own)}, self._count)[self._owner]
        if len(self._own) > share:
            self._hand_over(self.partitions[share:])
        if len(self._own) < share:
            self._claim(share - len(self._own))
        # A partition that was lost and is ours again may be at another position.
        if {number: each.epoch for number, each in self._own.items()} != before:
            self._begin_anew()
        self._heeded = changes

    def _claim(self, most: int) -> None:
        claimed = self._positions.claim(most, self._own, self._count)
        for ours, expected, found in claimed:
            if expected is not None and expected != found:
                self._positions.write([each for each, _, _ in claimed], releases=True)
                raise self._rewound(
                    ours.written,
                    f"is at version {ours.written}, the event {expected!r}; now the table has"
                    f" {'no event' if found is None else f'the event {found!r}'} there",
                )
        self._own.update((ours.number, ours) for ours, _, _ in claimed)
        self._held = None

    def _rewound(self, position: int, what: str) -> StoreRewoundError:
        return StoreRewoundError(
            f"the durable subscription {self.name!r} {what}: it was set back, by a restore or a failover;"
            " rewind_durable says where to go on",
            position=position,
        )

    def _drop(self, numbers: list[int]) -> None:
        """Forget partitions that are somebody else's now."""
        for number in numbers:
            self._own.pop(number, None)
        if self._given is not None and partition_of(self._given.aggregate_id, self._count) not in self._own:
            self._given = None

    def _hand_over(self, numbers: list[int]) -> None:
        """Give partitions back, with their positions. Their events are acknowledged by now.

        What a transaction with an `ack_in` has locked is handed over the next time.
        """
        written = self._positions.write([self._own[number] for number in numbers], releases=True)
        self._drop([number for number in numbers if number in written or self._is_lost(number)])

    def _begin_anew(self) -> None:
        """Read the partitions we have now, from the one that is furthest behind."""
        if self._live is not None:
            self._live.close()
            self._live = None
        if self._own:
            conditions: list[Any] = []
            if len(self._own) < self._count:
                conditions = [("partitions", str(self._count), [str(number) for number in self.partitions])]
            patience = max(min(self._balance_seconds, self._checkpoint_interval), 0.05)
            first = min(self._own.values(), key=lambda each: each.taken)
            self._delivered = first.taken
            self._live = self._subscribe(first.taken, first.taken_id, patience, conditions)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave: write acknowledged positions, and release the leases.

        What a transaction of the user's has locked stays as it is; its lease runs out.
        """
        self._is_entered = False
        if self._live is not None:
            self._live.close()
            self._live = None
        if self._renewing is not None:
            self._renewing.stop()
        limit = CLOSE_LIMIT if error is None else ERROR_LIMIT
        try:
            self._let_go(limit)
        except SocketIOPostgresError as problem:
            if error is None:
                raise
            self._report(problem, f"{self.name}: leaving")
        finally:
            self._own.clear()
            self._given = None

    def _let_go(self, limit: float) -> None:
        deadline = time.monotonic() + limit
        while True:
            left = max(deadline - time.monotonic(), TICK)
            try:
                if self._release(left):
                    return
            except SocketIOPostgresError as problem:
                if not _is_outage(problem) or time.monotonic() + RETRY_FIRST >= deadline:
                    raise
                sleep(RETRY_FIRST)
            else:
                if time.monotonic() >= deadline:
                    return
                sleep(TICK / 10)

    def _release(self, timeout: float) -> bool:
        """Let go of the leases; False while a row is locked that the user's own transaction cannot have locked."""
        if self._own:
            written = self._positions.write(list(self._own.values()), releases=True, timeout=timeout)
            for number, ours in list(self._own.items()):
                if number in written or ours.pending is not None or self._is_lost(number):
                    del self._own[number]
            if self._own:
                return False
        if self._count > 1:
            self._positions.depart()
        return True

    # --------------------------------------------------------------------------------------------- the iteration

    def __iter__(self) -> Self:
        self._give_back()  # a loop before this one was left with it
        return self

    def __next__(self) -> StoredEvent:
        self._check_entered()
        self._acknowledge_given()
        while self._is_entered:
            event = self._next(None)
            if event is not None:
                self._given = event
                return event
        raise StopIteration

    def batches(
        self, max_count: int = 500, max_wait: float = 0.2, max_bytes: int = BATCH_BYTES
    ) -> Iterator[EventBatch]:
        """Events in batches, to be handled and acknowledged together: one commit for many events.

            for batch in durable.batches():
                with conn.transaction():
                    for event in batch:
                        ...
                    batch.ack_in(conn)

        A batch is acknowledged when the next one is asked for, unless `ack` or `ack_in` was called for it.

        Args:
            max_count: Most events in a batch. Default 500.
            max_wait: Most seconds that a batch waits for further events once it has one. Default 0.2.
            max_bytes: A batch ends with the event that brings it to so many bytes (`StoredEvent.size_bytes`). Default
                4 MiB.

        Raises:
            OptionsError: An argument is wrong.
        """
        self._check_entered()
        check_batch(max_count, max_wait, max_bytes)
        self._give_back()
        while self._is_entered:
            self._acknowledge_given()
            events = self._next_batch(max_count, max_wait, max_bytes)
            if events:
                self._given = events[-1]
                yield EventBatch(events, self._acknowledge_many, self._acknowledge_many_in)

    def _next_batch(self, max_count: int, max_wait: float, max_bytes: int) -> list[StoredEvent]:
        events: list[StoredEvent] = []
        size = 0
        is_complete = False
        try:
            event = self._next(None)
            live, deadline = self._live, time.monotonic() + max_wait
            while event is not None:
                events.append(event)
                size += event.size_bytes
                left = deadline - time.monotonic()
                has_room = len(events) < max_count and size < max_bytes and left > 0
                event = self._next(left, has_more=True) if has_room else None
                if self._live is not live:
                    return []  # partitions have come or gone, or are at an earlier position
            if events and self._changes() != self._heeded:
                self._look_after()
                if self._live is not live:
                    return []  # it was paused, or rewound, while the batch waited for more
            is_complete = True
        finally:
            if events and not is_complete:
                self._begin_anew()  # they were not delivered, and come again
        # A commit that was in doubt may have been found.
        return [each for each in events if self._is_to_come(each)]

    def _is_to_come(self, event: StoredEvent) -> bool:
        ours = self._own.get(partition_of(event.aggregate_id, self._count))
        return ours is not None and event.version > ours.taken

    def _check_entered(self) -> None:
        if not self._is_entered:
            raise EventStoreError(f"enter the durable subscription {self.name!r} with a with statement first")

    def _next(self, patience: float | None, *, has_more: bool = False) -> StoredEvent | None:
        """The next event; None when there was none for a while, of `patience` seconds at most.

        With `has_more`, the caller has events that it has not handed out yet.
        """
        self._look_after()
        if self._live is None:
            sleep(min(self._balance_seconds / 2, self._balance_seconds if patience is None else patience))
            return None
        try:
            event = self._live.next_or_idle(patience, heeded=self._heeded)
        except StopIteration:
            return None  # it was closed meanwhile: the block is left, or partitions have come or gone
        if event is None:
            if not has_more and self._live.position is not None:
                self._delivered = self._live.position
                self._pass(self._live.position, self._live.position_id)
            return None
        self._delivered = event.version
        # Others of our partitions may begin further back.
        return event if self._is_to_come(event) else None

    def _look_after(self) -> None:
        """Write and look at the others if it is time."""
        now = time.monotonic()
        is_due = self._unwritten >= CHECKPOINT_COUNT * max(len(self._own), 1)
        if is_due or (self._unwritten and now - self._written_at >= self._checkpoint_interval):
            self._write()
        if self._changes() != self._heeded:
            self._balance()
        elif self._balanced_at is None or now - self._balanced_at >= self._balance_seconds:
            # An owner of the one partition hears from its own statements when it has lost it.
            is_time = self._balanced_at is None or now - self._balanced_at >= min(self._lease / 3, ALONE_SECONDS)
            if self._count > 1 or not self._own or is_time:
                self._balance()

    def _ask(self, sql: str, *texts: str | None, timeout: float | None = None) -> list[list[str | None]]:
        """Run a statement, and wait while the database is away, unless there is a limit or the block is being left."""
        delay = RETRY_FIRST
        while True:
            try:
                rows = self._query(sql, *texts, timeout=timeout)
            except SocketIOPostgresError as error:
                if timeout is not None or not self._is_entered or not _is_outage(error):
                    raise
                if not self._is_away:
                    self._is_away = True
                    self._report(error, f"{self.name}: waiting for the database")
                sleep(delay)
                delay = min(delay * 2, RETRY_LAST)
            else:
                self._is_away = False
                return rows

    def _give_back(self) -> None:
        """Do not acknowledge what was handed out last: it is delivered again, unless it is acknowledged meanwhile."""
        if self._given is not None:
            self._given = None
            self._begin_anew()

    def _acknowledge_given(self) -> None:
        if self._given is not None:
            self._take(self._given)

    def _take(self, event: StoredEvent) -> None:
        ours = self._own.get(partition_of(event.aggregate_id, self._count))
        if ours is not None:
            if ours.pending == event.version:
                ours.pending = None  # whether that `ack_in` has committed makes no difference any more
            self._unwritten += ours.acknowledge(event.version, event.id)
        self._pass(event.version, event.id)
        if self._given is not None and self._given.version <= event.version:
            self._given = None

    def _pass(self, version: int, event_id: str | None) -> None:
        """Events come in order of versions over all our partitions, so all of ours are done up to this one.

        Not so an event that came before some of the partitions did.
        """
        if version <= self._delivered:
            for each in self._own.values():
                self._unwritten += each.acknowledge(version, event_id)

    def _write(self) -> None:
        """Write acknowledged positions. A row that is locked is written the next time."""
        written = self._positions.write(list(self._own.values()))
        self._unwritten, self._written_at = 0, time.monotonic()
        is_back = False
        for number, position in written.items():
            ours = self._own.get(number)
            if ours is not None:
                self._check_not_set_back(ours, position)
                is_back = not ours.found(position) or is_back
        missing = [number for number in self._own if number not in written]
        lost = [number for number in missing if self._is_lost(number)]
        self._unwritten = len(missing) - len(lost)
        self._drop(lost)
        if lost:
            self._balanced_at = None  # look at once who has them: perhaps nobody, after a rewind
        if lost or is_back:
            self._begin_anew()

    def _check_not_set_back(self, ours: Partition, position: int) -> None:
        """Only a restore or a failover takes back what was written, with the owner that it has now."""
        if ours.pending is None and position < ours.written:
            raise self._rewound(
                ours.written, f"was at version {ours.written}; now the database has it at version {position}"
            )

    def _is_lost(self, number: int) -> bool:
        """Whether a partition that could not be written belongs to somebody else; otherwise it is locked now."""
        found = self._positions.look(number)
        ours = self._own.get(number)
        return ours is None or not self._positions.is_ours(found, ours)

    def _partition_with(self, event: StoredEvent) -> Partition:
        number = partition_of(event.aggregate_id, self._count)
        ours = self._own.get(number)
        if ours is None:
            raise self._fenced(number)
        return ours

    def _fenced(self, number: int, found: Found | None = _UNKNOWN) -> SubscriptionFencedError:
        if found is None:
            return self._deleted()
        if found.replaced_by is not None:
            return retired(self.name, found.replaced_by)
        return SubscriptionFencedError(
            f"partition {number} of the durable subscription {self.name!r} belongs to {found.owner or 'somebody else'}"
            " now: this consumer was cut off for longer than its lease, or the subscription was rewound or paused",
            name=self.name,
        )

    def ack(self, event: StoredEvent) -> None:
        """Acknowledge an event and all before it, now.

        Raises:
            SubscriptionFencedError: The event's partition belongs to somebody else.
            EventStoreError: The transaction of an earlier `ack_in` was rolled back, but the loop went on.
        """
        ours = self._partition_with(event)
        self._take(event)
        deadline = time.monotonic() + min(self._lease, CLOSE_LIMIT)
        while True:
            self._write()
            if self._own.get(ours.number) is not ours:
                raise self._fenced(ours.number, self._positions.look(ours.number))
            if ours.acknowledged < event.version:
                self._given = None
                raise self._rolled_back(ours, ours.written)
            # A transaction with an `ack_in` has the row locked: it is written once that has ended.
            if ours.written >= event.version or ours.pending is not None or time.monotonic() >= deadline:
                return
            sleep(TICK / 10)

    def ack_in(self, conn: Any, event: StoredEvent) -> None:
        """Acknowledge an event and all before it in your own transaction: both commit, or neither.

        After a rollback the call may be repeated in another transaction. If the loop goes on instead, the next call
        says so, and the loop comes back to the event. In `replay_parked` the call removes the parked event.

        Args:
            conn: A connection of psycopg, asyncpg or SQLAlchemy (or its session) to the same database, with your
                transaction open.
            event: The event.

        Raises:
            SubscriptionFencedError: The event's partition belongs to somebody else. Let it end your transaction.
            OptionsError: No transaction is open on the connection, or it is of no such library.
            SchemaMismatchError: The connection leads to another table.
            AlreadyAcknowledgedError: It was acknowledged before, for example by a commit whose answer was lost. Let it
                end your transaction, so that its changes are not made again.
            EventStoreError: The transaction of an earlier `ack_in` was rolled back, but the loop went on.
        """
        if event.version in self._replaying:
            if not self._positions.unpark_in(conn, event.version):
                raise self._fenced(partition_of(event.aggregate_id, self._count))
            self._replaying.discard(event.version)
            return
        self._acknowledge_in(conn, event)

    def _acknowledge_in(self, conn: Any, event: StoredEvent) -> None:
        try:
            ours = self._partition_with(event)
            transaction = self._positions.write_in(conn, ours, event)
            if transaction is None:
                self._refuse(conn, ours, event)
                return
        except BaseException:
            self._give_back()
            raise
        ours.pending, ours.pending_in = max(event.version, ours.pending or 0), transaction
        if event.version <= self._delivered:
            for other in self._own.values():
                if other is not ours:
                    self._unwritten += other.acknowledge(event.version, event.id)
        if self._given is not None and self._given.version <= event.version:
            self._given = None

    def _refuse(self, conn: Any, ours: Partition, event: StoredEvent) -> None:
        """Find out why a position could not be moved in the user's transaction, and raise it.

        Nothing is raised if the same transaction has moved it so far.
        """
        found = self._look_at(ours)
        if not self._positions.is_on(conn):
            raise SchemaMismatchError(
                f"table {self._positions.table} is another one on this connection, or none: it leads to another"
                " database, or has another search_path; give table_name with its schema",
                table_name=self._positions.table,
                reason="it is another one on this connection",
            )
        if ours.pending is not None and self._positions.transaction_of(conn) == ours.pending_in:
            return
        raise self._not_next(ours, found, event)

    def _look_at(self, ours: Partition) -> int:
        """The position of a partition in the database.

        Raises:
            SubscriptionFencedError: It belongs to somebody else.
        """
        found = self._positions.look(ours.number)
        if found is None or not self._positions.is_ours(found, ours):
            self._drop([ours.number])
            self._balanced_at = None
            self._begin_anew()
            raise self._fenced(ours.number, found)
        return found.position

    def _not_next(self, ours: Partition, position: int, event: StoredEvent) -> SocketIOPostgresError:
        """Why the position cannot be moved past an event from where it is."""
        if position >= event.version:
            ours.found(position)
            self._take(event)
            return AlreadyAcknowledgedError(
                f"event {event.version} of the durable subscription {self.name!r} was acknowledged before: it is at"
                f" version {position}, by a transaction that is committed",
                name=self.name,
                version=event.version,
                position=position,
            )
        self._check_not_set_back(ours, position)
        error = self._rolled_back(ours, position, ours.base_for(event.version))
        ours.found(position)
        self._given = None
        self._begin_anew()
        return error

    def _rolled_back(self, ours: Partition, position: int, base: int | None = None) -> EventStoreError:
        instead = "" if base is None else f" instead of {base}"
        return EventStoreError(
            f"partition {ours.number} of the durable subscription {self.name!r} is at version {position}{instead}:"
            " the transaction of an ack_in was rolled back and the loop went on; what it would have acknowledged comes"
            " again"
        )

    def _acknowledge_many(self, events: list[StoredEvent]) -> None:
        self.ack(events[-1])

    def _acknowledge_many_in(self, conn: Any, events: list[StoredEvent]) -> None:
        """The last event of each partition stands for all before it."""
        last = {partition_of(event.aggregate_id, self._count): event for event in events}
        for _, event in sorted(last.items()):  # in the order in which others lock them
            self._acknowledge_in(conn, event)
        if self._given is not None and self._given.version <= events[-1].version:
            self._given = None

    # -------------------------------------------------------------------------------------------- projections

    def serve_projection(self) -> None:
        """Let parking wait for a position that is locked as long as it takes: no lock is the caller's own."""
        self._lock_limit = math.inf
        self._instead = "or give the projection a new version"

    def fence_in(self, conn: Any, events: list[StoredEvent]) -> tuple[list[StoredEvent], str]:
        """Lock the positions of events in a transaction; returns the events that it has not been moved past, and it.

        Raises:
            SubscriptionFencedError: A partition belongs to somebody else.
            SchemaMismatchError: The connection leads to another table.
        """
        own = {ours.number: ours for ours in map(self._partition_with, events)}
        positions, transaction = self._positions.fence_in(conn, own.values())
        for number, ours in own.items():
            if number not in positions:
                self._refuse(conn, ours, events[-1])
                raise self._fenced(number)  # it was somebody else's for a moment
        fresh = [each for each in events if each.version > positions[partition_of(each.aggregate_id, self._count)]]
        return fresh, transaction

    def move_in(self, conn: Any, events: list[StoredEvent], transaction: str) -> None:
        """Move positions past events in the transaction that has locked them.

        Raises:
            EventStoreError: That has ended.
        """
        last = {partition_of(event.aggregate_id, self._count): event for event in events}
        changes = [(self._own[number], event) for number, event in last.items()]
        if not self._positions.move_in(conn, changes, transaction):
            raise EventStoreError(f"the handler of {self.name!r} has ended the transaction, which is not its own")

    def has_committed(self, events: list[StoredEvent]) -> None:
        """Note that a transaction that moved positions past events was committed."""
        for event in events:
            ours = self._own.get(partition_of(event.aggregate_id, self._count))
            if ours is not None and event.version > ours.written:
                ours.written, ours.pending, ours.unclean = event.version, None, 0
        self._take(events[-1])

    def is_to_be_handled_alone(self, event: StoredEvent, policy: FailurePolicy) -> bool:
        """Whether an event may have to be set aside, or may end the process."""
        if isinstance(policy, Park) and policy.whole_aggregate and event.aggregate_id in self._held_aggregates():
            return True
        ours = self._own.get(partition_of(event.aggregate_id, self._count))
        return ours is not None and ours.unclean >= SUSPICIOUS

    def set_aside(self, event: StoredEvent, error: BaseException, attempts: int) -> None:
        """Park an event, unless its transaction was committed nevertheless."""
        try:
            self.park(event, error, attempts=attempts)
        except AlreadyAcknowledgedError as done:
            self._report(done, f"{self.name}: event {event.version} was handled before")

    def come_back(self) -> None:
        """Read again from the positions in the database."""
        self._given = None
        self._write()
        self._begin_anew()

    # ---------------------------------------------------------------------------------------------- failures

    def run(self, handler: EventHandler, on_error: FailurePolicy | None = None) -> None:
        """Call `handler` with each event, for ever. When it returns, the event is acknowledged.

        With `Park`, an event that ends the process itself is set aside, too: once owners have ended twice without
        progress, each event is counted before it is handled, and one that was begun more often than `after` is parked.

        Args:
            handler: Receives a `StoredEvent`. No coroutine function, which nobody would await here. It may acknowledge
                with `ack_in`.
            on_error: What to do when it raises: `Stop`, `Skip` or `Park`. Default `Stop()`.

        Raises:
            OptionsError: The handler is no function, or a coroutine function.
            Exception: What the handler raised, with `Stop`.
            SubscriptionRetiredError: A newer version of a projection has replaced the subscription.
            SubscriptionFencedError: The subscription was deleted.
        """
        Hook.check("handler", handler)
        policy = policy_of(on_error)
        for event in self:
            is_handled = False
            try:
                if not isinstance(policy, Park) or self.is_fit(event, policy):
                    self._handle(event, handler, policy)
                is_handled = True
            except SubscriptionRetiredError:
                raise
            except SubscriptionFencedError as error:
                # Another consumer owns the partition, and handles the event. This one continues with the others.
                self._report(error, f"{self.name}: event {event.version} is left to another consumer")
            finally:
                if not is_handled:
                    self._given = None  # not acknowledged: it is delivered again
                    self._begin_anew()

    def is_fit(self, event: StoredEvent, policy: Park) -> bool:
        """Whether an event is to be handled: otherwise it was set aside."""
        if policy.whole_aggregate:
            held = self._held_aggregates()
            if event.aggregate_id in held:
                # They may have been replayed meanwhile, by whomever.
                if self._positions.is_held(event.aggregate_id):
                    self.park(event, None, attempts=0)
                    return False
                held.discard(event.aggregate_id)
        ours = self._partition_with(event)
        if ours.unclean < SUSPICIOUS:
            return True
        begun = self._when_unlocked(ours, lambda: self._positions.begin(ours))
        if begun is None:
            raise self._not_next(ours, self._look_at(ours), event)
        ours.written = max(ours.written, ours.acknowledged)
        if begun <= max(policy.after, SUSPICIOUS):
            return True
        error = EventStoreError(f"the process ended {begun - 1} times while it handled the event")
        self.park(event, error, attempts=begun - 1)
        return False

    def _handle(self, event: StoredEvent, handler: EventHandler, policy: FailurePolicy) -> None:
        attempts = 0
        while True:
            attempts += 1
            try:
                call(handler, event)
            except SubscriptionFencedError:
                raise
            except Exception as error:
                if isinstance(error, AlreadyAcknowledgedError) and error.version == event.version:
                    # An earlier attempt has failed with an error, but its transaction was committed.
                    self._report(error, f"{self.name}: event {event.version} was handled before")
                    return
                if attempts < policy.after:
                    sleep(policy.pause(attempts))
                    continue
                if isinstance(policy, Park):
                    self.set_aside(event, error, attempts)
                elif isinstance(policy, Skip):
                    self._take(event)
                else:
                    raise
                self._report(error, f"{self.name}: event {event.version} failed {attempts} times")
            else:
                ours = self._own.get(partition_of(event.aggregate_id, self._count))
                if ours is not None:
                    ours.unclean = 0
            return

    def _held_aggregates(self) -> set[str]:
        if self._held is None:
            self._held = {parked.aggregate_id for parked in self._positions.parked()}
        return self._held

    def park(self, event: StoredEvent, error: BaseException | None, *, attempts: int = 1) -> None:
        """Set an event aside and acknowledge it, in one transaction.

        Raises:
            SubscriptionFencedError: The event's partition belongs to somebody else.
            AlreadyAcknowledgedError: It was acknowledged before.
            EventStoreError: A transaction, perhaps one of yours with an `ack_in`, has the position locked; or one was
                rolled back, but the loop went on.
        """
        text = None if error is None else f"{type(error).__name__}: {error}".replace("\0", "")
        try:
            ours = self._partition_with(event)
            is_parked = self._when_unlocked(ours, lambda: self._positions.park(ours, event, attempts, text))
            found = ours.written if is_parked else self._look_at(ours)
        except BaseException:
            self._give_back()
            raise
        if not is_parked:
            problem = self._not_next(ours, found, event)
            self._give_back()
            raise problem
        ours.pending, ours.written = None, event.version
        self._take(event)
        if self._held is not None:
            self._held.add(event.aggregate_id)

    def _when_unlocked(self, ours: Partition, change: Callable[[], int | None]) -> int | None:
        """Try to change a position that a transaction may have locked; a falsy result stands for no change."""
        begun_at = time.monotonic()
        while not (changed := change()):
            if not self._positions.is_locked(ours):
                return change()
            if time.monotonic() - begun_at >= self._lock_limit:
                raise EventStoreError(
                    f"partition {ours.number} of the durable subscription {self.name!r} is locked by a transaction,"
                    " perhaps one of yours with an ack_in: end it first"
                )
            sleep(TICK / 10)
        return changed

    def parked(self) -> list[ParkedEvent]:
        """Events that were set aside, in order."""
        return self._positions.parked()

    def replay_parked(self, handler: EventHandler) -> int:
        """Call `handler` with each parked event, each aggregate in order; those it returns from are parked no longer.

        What fails stays parked, and so does what follows of its aggregate. Each event is claimed for a lease, which is
        renewed: however many replay at once, each event is one's. With `ack_in` in the handler, the event is
        removed in your own transaction, so that it is handled exactly once.

        Returns:
            How many were handled.
        """
        self._check_entered()
        handled, after = 0, 0
        held: set[str] = set()
        # Whether the user's transactions that have removed these were committed is not known.
        removed: set[int] = set()
        while True:
            claimed = self._positions.claim_parked(after, held, self._replaying | removed)
            if claimed is None:
                if not after:
                    self._positions.release_parked()
                    return handled
                after = 0  # what followed of an aggregate may be the first one now
                continue
            version, aggregate_id = claimed
            self._replaying.add(version)
            try:
                event = self._get(version)
                if event is not None:
                    call(handler, event)
            except Exception as error:  # noqa: BLE001 - the user's; the event stays where it is
                held.add(aggregate_id)
                self._report(error, f"{self.name}: parked event {version} failed again")
                self._positions.failed_again(version, f"{type(error).__name__}: {error}".replace("\0", ""))
            else:
                handled += 1
                if version in self._replaying:
                    self._positions.unpark(version)
                else:
                    removed.add(version)
            finally:
                self._replaying.discard(version)
            after = version
