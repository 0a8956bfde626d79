"""`AsyncCompetingSubscription`: a durable subscription that several consumers share, by partitions of aggregates."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from types import TracebackType
from typing import Any, Final

from socketio_postgres._bus.primitives import asleep
from socketio_postgres._typing import Self
from socketio_postgres.events.async_durable_subscription import CHECKPOINT_COUNT, AsyncDurableSubscription
from socketio_postgres.events.async_statements import run_on
from socketio_postgres.events.event import EventHandler, StoredEvent
from socketio_postgres.events.failure_policy import FailurePolicy
from socketio_postgres.exceptions import ConnectionLostError, EventStoreError, SubscriptionFencedError

__all__ = ["AsyncCompetingSubscription", "partition_of"]

BALANCE_SECONDS: Final = 1.0
"""Seconds between two looks at who else takes part; less with a short lease."""

_OF_OURS: Final = """pg_catalog.json_to_recordset($1::pg_catalog.json)
    AS x(partition int, epoch bigint, written bigint, position bigint)"""


def partition_of(aggregate_id: str, partitions: int) -> int:
    """The partition that an aggregate falls into: the first three bytes of the id's SHA-256, modulo the partitions.

    The same in the core and in SQL; `filter.rs` has both.
    """
    return int.from_bytes(hashlib.sha256(aggregate_id.encode()).digest()[:3], "big") % partitions


@dataclasses.dataclass
class _Partition:
    """A partition that is ours."""

    number: int
    epoch: int
    written: int
    """The position in the database."""
    acknowledged: int
    is_in_doubt: bool = False
    """The position was last written in a transaction of the user's, whose end we do not know."""

    def fields(self) -> dict[str, int]:
        return {
            "partition": self.number,
            "epoch": self.epoch,
            "written": self.written,
            "position": max(self.written, self.acknowledged),
        }


class AsyncCompetingSubscription(AsyncDurableSubscription):
    """As `AsyncDurableSubscription`, with any number of consumers at a time.

    Aggregates fall into partitions; each partition belongs to one consumer at a time, by a lease with a fence, and has
    a position of its own. So the events of one aggregate come in order, to one consumer at a time; those of different
    aggregates have no order among consumers, nor when a partition has come from another consumer.

    Consumers share the partitions evenly. When one comes, the others hand partitions over between two events; when one
    dies, its partitions are taken over after its lease. Who has none waits. Whoever lost a partition, because it was
    too slow, goes on with the others: an `ack` or `ack_in` of an event in the lost one raises
    `SubscriptionFencedError` and changes nothing.

    Made by `AsyncEventStore.durable` with `partitions`.
    """

    def __init__(self, name: str, *, partitions: int, **arguments: Any) -> None:
        super().__init__(name, **arguments)
        self._count = partitions
        self._own: dict[int, _Partition] = {}
        self._balanced_at: float | None = None
        self._balance_seconds = min(self._lease / 4, BALANCE_SECONDS)
        self._is_entered = False

    @property
    def position(self) -> int:
        """The lowest version up to which events of our partitions are acknowledged; 0 without any."""
        return min((each.acknowledged for each in self._own.values()), default=0)

    @property
    def partitions(self) -> list[int]:
        """The partitions that are ours at this moment."""
        return sorted(self._own)

    def _is_ours(self, aggregate_id: str) -> bool:
        return partition_of(aggregate_id, self._count) in self._own

    # -------------------------------------------------------------------------------------------------- the leases

    async def __aenter__(self) -> Self:
        if not await self._made():
            start = await self._start()
            await self._rows(
                f"INSERT INTO {self._table} (name, partition, partitions, position, filter)"
                " SELECT $1, number, $2::int, $3::bigint, $4 FROM pg_catalog.generate_series(0, $2::int - 1) AS number"
                " ON CONFLICT DO NOTHING",
                self.name,
                str(self._count),
                str(start),
                self._filter_text,
            )
        if self._reset:
            await self._rows(
                f"UPDATE {self._table} SET filter = $2 WHERE name = $1 RETURNING name", self.name, self._filter_text
            )
        for partitions, filter_text in await self._made():
            wrong = self._mismatch(filter_text, partitions, self._count)
            if wrong is not None:
                raise wrong
        await self._rows(
            f"DELETE FROM {self._consumers} WHERE name = $1 AND lease_until < pg_catalog.clock_timestamp()"
            " RETURNING name",
            self.name,
        )
        self._is_entered = True
        await self._balance()
        return self

    async def _made(self) -> list[list[str | None]]:
        return await self._rows(
            f"SELECT DISTINCT partitions::pg_catalog.text, filter FROM {self._table} WHERE name = $1", self.name
        )

    async def _balance(self) -> None:
        """Say that we are here, see who else is, and hand over or take what makes the shares even."""
        self._balanced_at = time.monotonic()
        await self._rows(
            f"INSERT INTO {self._consumers} (name, owner, lease_until)"
            " VALUES ($1, $2, pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => $3::pg_catalog.float8))"
            " ON CONFLICT (name, owner) DO UPDATE SET lease_until = excluded.lease_until",
            self.name,
            self._owner,
            str(self._lease),
        )
        rows = await self._rows(
            f"SELECT owner, NULL, NULL, NULL FROM {self._consumers}"
            " WHERE name = $1 AND lease_until > pg_catalog.clock_timestamp()"
            " UNION ALL SELECT NULL, partition::pg_catalog.text, epoch::pg_catalog.text,"
            " CASE WHEN NOT is_paused AND (owner = $2 OR"
            " lease_until IS NULL OR lease_until < pg_catalog.clock_timestamp()) THEN 'free' ELSE 'taken' END"
            f" FROM {self._table} WHERE name = $1",
            self.name,
            self._owner,
        )
        consumers = sorted(str(owner) for owner, _, _, _ in rows if owner is not None)
        states = {int(number): (int(epoch or 0), state) for _, number, epoch, state in rows if number is not None}
        if not states:
            raise SubscriptionFencedError(f"the durable subscription {self.name!r} was deleted", name=self.name)
        lost = [number for number, each in self._own.items() if states.get(number, (0, ""))[0] != each.epoch]
        share, extra = divmod(self._count, max(len(consumers), 1))
        share += consumers.index(self._owner) < extra if self._owner in consumers else 0
        before = {number: each.epoch for number, each in self._own.items()}
        self._drop(lost)
        if len(self._own) > share:
            await self._hand_over(self.partitions[share:])
        free = [number for number, (_, state) in states.items() if state == "free" and number not in self._own]
        if len(self._own) < share and free:
            await self._claim(share - len(self._own))
        # One that was lost and is ours again may be at another position.
        if {number: each.epoch for number, each in self._own.items()} != before:
            self._begin_anew()

    async def _claim(self, most: int) -> None:
        # A row that somebody has locked, a consumer in an ack_in say, is left alone: waiting for it would cost us the
        # other leases.
        rows = await self._rows(
            f"UPDATE {self._table} SET epoch = epoch + 1, owner = $2, updated_at = pg_catalog.now(),"
            " lease_until = pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => $3::pg_catalog.float8)"
            f" WHERE name = $1 AND partition IN (SELECT partition FROM {self._table}"
            " WHERE name = $1 AND NOT is_paused AND NOT partition = ANY($5::pg_catalog.text::int[]) AND (owner = $2 OR"
            " lease_until IS NULL OR lease_until < pg_catalog.clock_timestamp())"
            " ORDER BY partition LIMIT $4::int FOR UPDATE SKIP LOCKED)"
            " RETURNING partition::pg_catalog.text, epoch::pg_catalog.text, position::pg_catalog.text",
            self.name,
            self._owner,
            str(self._lease),
            str(most),
            "{" + ",".join(map(str, self._own)) + "}",
        )
        for number, epoch, position in rows:
            at = int(position or 0)
            self._own[int(number or 0)] = _Partition(int(number or 0), int(epoch or 0), at, at)
        self._held = None

    def _drop(self, numbers: list[int]) -> None:
        """Forget partitions that are somebody else's now."""
        for number in numbers:
            del self._own[number]
        if self._given is not None and not self._is_ours(self._given.aggregate_id):
            self._given = None

    async def _hand_over(self, numbers: list[int]) -> None:
        """Give partitions back, with their positions; what was given out of them is acknowledged by now."""
        await self._update(numbers, "owner = NULL, lease_until = NULL")
        self._drop([number for number in numbers if number in self._own])

    def _begin_anew(self) -> None:
        """Read the partitions we have now, from the one that is furthest behind."""
        if self._live is not None:
            self._live.close()
            self._live = None
        if self._own:
            condition = ("partitions", str(self._count), [str(number) for number in self.partitions])
            self._live = self._subscribe(self.position, self._balance_seconds, [condition])

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.close()
            self._live = None
        self._is_entered = False
        if error is None:
            self._acknowledge_given()
        else:
            # An ack_in was probably rolled back together with the user's transaction: leave its partition as it is.
            doubtful = [number for number, each in self._own.items() if each.is_in_doubt]
            for number in doubtful:
                await self._rows(
                    f"UPDATE {self._table} SET owner = NULL, lease_until = NULL"
                    " WHERE name = $1 AND partition = $2::int AND epoch = $3::bigint RETURNING name",
                    self.name,
                    str(number),
                    str(self._own[number].epoch),
                )
            self._drop(doubtful)
        await self._hand_over(self.partitions)
        await self._rows(
            f"DELETE FROM {self._consumers} WHERE name = $1 AND owner = $2 RETURNING name", self.name, self._owner
        )

    # ---------------------------------------------------------------------------------------------- the iteration

    async def __anext__(self) -> StoredEvent:
        if not self._is_entered:
            raise EventStoreError(f"enter the durable subscription {self.name!r} with a with statement first")
        self._acknowledge_given()
        while True:
            await self._write_in_time()
            if self._balanced_at is None or time.monotonic() - self._balanced_at >= self._balance_seconds:
                await self._balance()
            if self._live is None:
                await asleep(self._balance_seconds / 2)
                continue
            patience = min(self._balance_seconds, self._checkpoint_interval or self._balance_seconds)
            item = await self._live.next_or_idle(patience)
            if item is None:
                self._pass(self._live.position or 0)
                continue
            ours = self._own.get(partition_of(item.aggregate_id, self._count))
            # The others of ours begin further back.
            if ours is not None and item.version > ours.acknowledged:
                self._given = item
                return item

    def _take(self, version: int) -> None:
        self._pass(version)
        if self._given is not None and self._given.version <= version:
            self._given = None

    def _pass(self, version: int) -> None:
        """Events come in order of versions over all our partitions, so all of ours are done up to this one."""
        for each in self._own.values():
            if version > each.acknowledged:
                each.acknowledged = version
                self._unwritten += 1

    async def _write_in_time(self) -> None:
        now = time.monotonic()
        is_due = self._unwritten >= CHECKPOINT_COUNT * max(len(self._own), 1) or (
            self._unwritten and now - self._written_at >= self._checkpoint_interval
        )
        if is_due or now - self._renewed_at >= self._lease / 3:
            await self._write()

    async def _write(self) -> None:
        before = set(self._own)
        await self._update(
            self.partitions,
            f"lease_until = pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => {float(self._lease)})",
        )
        self._unwritten = 0
        self._written_at = self._renewed_at = time.monotonic()
        if self._own.keys() != before:
            self._begin_anew()

    async def _update(self, numbers: list[int], change: str) -> None:
        """Write positions; partitions that are no longer ours are dropped."""
        if not numbers:
            return
        given = [self._own[number].fields() for number in numbers]
        sql = (
            f"UPDATE {self._table} s SET position = x.position, updated_at = pg_catalog.now(), {change} FROM {_OF_OURS}"
            " WHERE s.name = $2 AND s.partition = x.partition AND s.epoch = x.epoch"
            " AND s.position BETWEEN x.written AND x.position"
            # One with an ack_in in a transaction that is still open is left alone: the loop cannot wait for itself.
            # Those of other consumers are not locked: they would take it for such a transaction.
            f" AND s.partition IN (SELECT l.partition FROM {self._table} l WHERE l.name = $2"
            f" AND l.partition IN (SELECT x.partition FROM {_OF_OURS}) FOR UPDATE SKIP LOCKED)"
            " RETURNING s.partition::pg_catalog.text"
        )
        deadline = time.monotonic() + self._lease
        while True:
            try:
                rows = await self._rows(sql, json.dumps(given), self.name)
            except ConnectionLostError:
                # The commit may be in doubt: that is why the position may be further already.
                if time.monotonic() >= deadline:
                    raise
                await asleep(0.1)
            else:
                break
        written = {int(row[0] or 0) for row in rows}
        for fields in given:
            if fields["partition"] in written:
                ours = self._own[fields["partition"]]
                ours.written, ours.is_in_doubt = fields["position"], False
        for number in set(numbers) - written:
            await self._lose(number)

    async def _lose(self, number: int) -> EventStoreError:
        """Find out why a partition could not be written, and forget it if it is somebody else's.

        Returns:
            The reason, unless it is raised.

        Raises:
            EventStoreError: It is ours, but an `ack_in` was rolled back and the loop went on.
        """
        rows = await self._rows(
            f"SELECT epoch::pg_catalog.text, owner, position::pg_catalog.text FROM {self._table}"
            " WHERE name = $1 AND partition = $2::int",
            self.name,
            str(number),
        )
        ours = self._own.get(number)
        if ours is not None and rows and rows[0][0] == str(ours.epoch):
            # What is written is in the database: it was locked at that moment only, and is written the next time.
            if int(rows[0][2] or 0) >= ours.written or not await self._rows(
                f"SELECT epoch::pg_catalog.text FROM {self._table} WHERE name = $1 AND partition = $2::int"
                " FOR UPDATE SKIP LOCKED",
                self.name,
                str(number),
            ):
                return EventStoreError(f"partition {number} is locked by an open transaction")
            ours.acknowledged = ours.written = int(rows[0][2] or 0)
            self._given = None
            self._begin_anew()
            raise EventStoreError(
                f"partition {number} of the durable subscription {self.name!r} is at version {rows[0][2]}: the"
                " transaction of an ack_in was rolled back and the loop went on; leave the loop when that happens"
            )
        self._drop([number] if ours is not None else [])
        owner = rows[0][1] if rows else None
        return SubscriptionFencedError(
            f"partition {number} of the durable subscription {self.name!r} belongs to {owner or 'nobody'} now; this"
            " consumer was too slow, or the subscription was rewound, paused or deleted",
            name=self.name,
        )

    def _of(self, event: StoredEvent) -> _Partition:
        number = partition_of(event.aggregate_id, self._count)
        ours = self._own.get(number)
        if ours is None:
            raise SubscriptionFencedError(
                f"partition {number} of the durable subscription {self.name!r} is not ours any more", name=self.name
            )
        return ours

    async def ack(self, event: StoredEvent) -> None:
        """As in `AsyncDurableSubscription.ack`; events of other partitions of ours before it are acknowledged, too."""
        number = self._of(event).number
        self._take(event.version)
        await self._write()
        if number not in self._own:
            raise await self._lose(number)

    async def ack_in(self, conn: Any, event: StoredEvent) -> None:
        """As in `AsyncDurableSubscription.ack_in`; nobody takes the partition over before your transaction ends."""
        ours = self._of(event)
        changed = await run_on(
            conn,
            f"UPDATE {self._table} SET position = %s, updated_at = pg_catalog.now()"
            " WHERE name = %s AND partition = %s AND epoch = %s AND position BETWEEN %s AND %s",
            [event.version, self.name, ours.number, ours.epoch, ours.written, event.version],
        )
        if changed != 1:
            self._given = None
            raise await self._lose(ours.number)
        self._take(event.version)
        ours.written, ours.is_in_doubt = event.version, True

    # --------------------------------------------------------------------------------------------------- failures

    async def _handle(self, event: StoredEvent, handler: EventHandler, policy: FailurePolicy) -> None:
        try:
            await super()._handle(event, handler, policy)
        except SubscriptionFencedError:
            # One partition is somebody else's, who gets the event, too; the others go on.
            self._given = None

    async def park(self, event: StoredEvent, error: BaseException | None, *, attempts: int = 1) -> None:
        """As in `AsyncDurableSubscription.park`."""
        ours = self._of(event)
        rows = await self._rows(
            f"WITH moved AS (UPDATE {self._table} SET position = $1::bigint, updated_at = pg_catalog.now()"
            " WHERE name = $2 AND partition = $8::int AND epoch = $3::bigint"
            " AND position BETWEEN $4::bigint AND $1::bigint RETURNING name)"
            f" INSERT INTO {self._parked_table} (name, version, aggregate_id, attempts, last_error)"
            " SELECT name, $1::bigint, $5, $6::int, $7 FROM moved"
            " ON CONFLICT (name, version) DO UPDATE SET attempts = excluded.attempts, last_error = excluded.last_error"
            " RETURNING 'parked'",
            str(event.version),
            self.name,
            str(ours.epoch),
            str(ours.written),
            event.aggregate_id,
            str(attempts),
            None if error is None else f"{type(error).__name__}: {error}".replace("\0", ""),
            str(ours.number),
        )
        if not rows:
            raise await self._lose(ours.number)
        self._take(event.version)
        ours.written, ours.is_in_doubt = event.version, False
