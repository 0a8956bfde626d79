"""`AsyncPositions`: the rows of one durable subscription, and every statement on them."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from socketio_postgres._bus.async_statements import has_transaction, rows_on, run_on
from socketio_postgres.events.event import StoredEvent
from socketio_postgres.events.failure_policy import ParkedEvent
from socketio_postgres.events.partition import Found, Partition
from socketio_postgres.exceptions import OptionsError

__all__ = ["AsyncPositions", "QueryFunction"]

QueryFunction = Callable[..., Awaitable[list[list[str | None]]]]

_GIVEN: Final = """pg_catalog.json_to_recordset($2::pg_catalog.json)
    AS x(partition int, epoch bigint, base bigint, position bigint, id pg_catalog.text)"""

# Ours without our knowing it: the answer to a claim was lost.
_FREE: Final = "(lease_until IS NULL OR lease_until < pg_catalog.clock_timestamp() OR owner = $2)"

# Milliseconds: above every epoch of a subscription of the same name that was deleted, for systems that know those.
_FIRST_EPOCH: Final = "(extract(epoch FROM pg_catalog.clock_timestamp()) * 1000)::bigint"


def _until(parameter: str) -> str:
    return f"pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => {parameter}::pg_catalog.float8)"


class AsyncPositions:
    """Where a durable subscription is, in the database.

    A row belongs to its owner until its lease is over, and while a transaction has it locked. No statement here waits
    for a row that is locked: the lock may be that of the consumer's own transaction. Every change names owner and
    epoch: a failover that loses commits may lead to the same epoch again.
    """

    def __init__(
        self, name: str, owner: str, lease: float, query: QueryFunction, tables: tuple[str, str, str, str]
    ) -> None:
        self._name = name
        self._owner = owner
        self._lease = str(lease)
        self._query = query
        self._events, self.table, self._parked, self._consumers = tables
        self._oid = 0

    # ------------------------------------------------------------------------------------------ the subscription

    async def made_with(self) -> tuple[int, str, str | None] | None:
        """Number of partitions and filter that the subscription was made with, and what has replaced it; or None."""
        rows = await self._query(
            "SELECT partitions::pg_catalog.text, filter, replaced_by, tableoid::pg_catalog.oid::pg_catalog.text"
            f" FROM {self.table} WHERE name = $1 ORDER BY partition LIMIT 1",
            self._name,
        )
        for partitions, filter_text, replaced_by, oid in rows:
            self._oid = int(oid or 0)
            return int(partitions or 0), filter_text or "", replaced_by
        return None

    async def make(self, partitions: int, filter_text: str, start: int) -> None:
        """Make the subscription, unless another process does so now: then its number of partitions counts."""
        await self._query(
            f"WITH first AS (INSERT INTO {self.table} (name, partition, partitions, position, filter, epoch)"
            f" VALUES ($1, 0, $2::int, $3::bigint, $4, {_FIRST_EPOCH}) ON CONFLICT DO NOTHING RETURNING name, epoch)"
            f" INSERT INTO {self.table} (name, partition, partitions, position, filter, epoch)"
            " SELECT name, number, $2::int, $3::bigint, $4, epoch"
            " FROM first, pg_catalog.generate_series(1, $2::int - 1) AS number",
            self._name,
            str(partitions),
            str(start),
            filter_text,
        )

    async def set_filter(self, filter_text: str) -> None:
        """Go on with another filter."""
        await self._query(f"UPDATE {self.table} SET filter = $2 WHERE name = $1", self._name, filter_text)

    # ------------------------------------------------------------------------------------------------ the owners

    async def arrive(self) -> None:
        """Say that this consumer takes part, and forget those that have not said so for a while."""
        await self._query(
            f"WITH gone AS (DELETE FROM {self._consumers} WHERE name = $1 AND owner <> $2"
            " AND lease_until < pg_catalog.clock_timestamp())"
            f" INSERT INTO {self._consumers} (name, owner, lease_until) VALUES ($1, $2, {_until('$3')})"
            " ON CONFLICT (name, owner) DO UPDATE SET lease_until = excluded.lease_until",
            self._name,
            self._owner,
            self._lease,
        )

    async def depart(self) -> None:
        """Take part no longer."""
        await self._query(f"DELETE FROM {self._consumers} WHERE name = $1 AND owner = $2", self._name, self._owner)

    async def owned(self) -> tuple[dict[str, int], dict[int, tuple[int, str | None]], str | None]:
        """How many partitions each consumer owns, every partition's epoch and owner, and what has replaced them all."""
        rows = await self._query(
            f"SELECT owner, NULL, NULL, 'valid', NULL FROM {self._consumers}"
            " WHERE name = $1 AND lease_until > pg_catalog.clock_timestamp()"
            " UNION ALL SELECT owner, partition::pg_catalog.text, epoch::pg_catalog.text,"
            " CASE WHEN lease_until > pg_catalog.clock_timestamp() THEN 'valid' END, replaced_by"
            f" FROM {self.table} WHERE name = $1",
            self._name,
        )
        owned = {str(owner): 0 for owner, partition, *_ in rows if partition is None}
        owners = {}
        replaced_by = None
        for owner, partition, epoch, valid, successor in rows:
            if partition is not None:
                replaced_by = successor
                owners[int(partition)] = (int(epoch or 0), owner)
                if valid and owner in owned:
                    owned[owner] += 1
        return owned, owners, replaced_by

    async def claim(
        self, most: int, own: Iterable[int], partitions: int
    ) -> list[tuple[Partition, str | None, str | None]]:
        """Take free partitions, of so many. Returns each, its event id, and the id that the table has there.

        Of an owner that has not let go it is counted how often that happened, until the position moves on.
        """
        rows = await self._query(
            f"UPDATE {self.table} s SET epoch = epoch + 1, owner = $2, updated_at = pg_catalog.now(),"
            f" lease_until = {_until('$3')}, unclean = CASE WHEN owner IS NULL THEN 0 WHEN owner = $2 THEN unclean"
            " ELSE unclean + 1 END"
            f" WHERE name = $1 AND partition IN (SELECT partition FROM {self.table}"
            f" WHERE name = $1 AND NOT is_paused AND NOT partition = ANY($5::pg_catalog.text::int[]) AND {_FREE}"
            " AND partitions = $6::int"
            " ORDER BY partition LIMIT $4::int FOR UPDATE SKIP LOCKED)"
            " RETURNING partition::pg_catalog.text, epoch::pg_catalog.text, position::pg_catalog.text,"
            " unclean::pg_catalog.text, attempts::pg_catalog.text, position_id,"
            f" (SELECT e.id FROM {self._events} e WHERE e.version = s.position)",
            self._name,
            self._owner,
            self._lease,
            str(most),
            _numbers(own),
            str(partitions),
        )
        claimed = []
        for *numbers, expected, found in rows:
            number, epoch, position, unclean, attempts = (int(each or 0) for each in numbers)
            ours = Partition(number, epoch, position, position, expected, unclean=unclean, attempts=attempts)
            claimed.append((ours, expected, found))
        return claimed

    async def renew(self, own: Iterable[Partition], replaying: Iterable[int], timeout: float) -> None:
        """Extend the leases, and the claims on parked events. Rows that are locked or lost stay unchanged."""
        await self._query(
            f"WITH claims AS (UPDATE {self._parked} SET claimed_until = {_until('$3')} WHERE name = $1"
            f" AND version IN (SELECT version FROM {self._parked} WHERE name = $1 AND claimed_by = $4"
            " AND version = ANY($5::pg_catalog.text::bigint[]) FOR UPDATE SKIP LOCKED))"
            f" UPDATE {self.table} s SET lease_until = {_until('$3')} {self._of_given()}",
            self._name,
            self._fields(own),
            self._lease,
            self._owner,
            _numbers(replaying),
            timeout=timeout,
        )

    def _of_given(self) -> str:
        """The rows of partitions of ours that are not locked."""
        return (
            f"FROM {_GIVEN} WHERE s.name = $1 AND s.partition = x.partition AND s.epoch = x.epoch AND s.owner = $4"
            f" AND s.partition IN (SELECT l.partition FROM {self.table} l, {_GIVEN} WHERE l.name = $1"
            " AND l.partition = x.partition AND l.epoch = x.epoch AND l.owner = $4 FOR UPDATE OF l SKIP LOCKED)"
        )

    async def write(
        self, own: Iterable[Partition], *, releases: bool = False, timeout: float | None = None
    ) -> dict[int, int]:
        """Write acknowledged positions, and extend or end the leases. Returns the position of each written row.

        Those that are missing in the result are locked, or belong to somebody else.
        """
        change = "owner = NULL, lease_until = NULL, unclean = 0" if releases else f"lease_until = {_until('$3')}"
        moves = "s.position BETWEEN x.base AND x.position - 1"
        reset = "" if releases else f" unclean = CASE WHEN {moves} THEN 0 ELSE s.unclean END,"
        rows = await self._query(
            f"UPDATE {self.table} s SET position = CASE WHEN {moves} THEN x.position ELSE s.position END,"
            f" position_id = CASE WHEN {moves} THEN x.id ELSE s.position_id END,"
            f" attempts = CASE WHEN {moves} THEN 0 ELSE s.attempts END,{reset}"
            f" updated_at = pg_catalog.now(), {change} {self._of_given()}"
            " RETURNING s.partition::pg_catalog.text, s.position::pg_catalog.text",
            self._name,
            self._fields(own),
            self._lease,
            self._owner,
            timeout=timeout,
        )
        return {int(partition or 0): int(position or 0) for partition, position in rows}

    def _free(self) -> str:
        """The row of a partition of ours, `$2` with the epoch `$3`, unless it is locked."""
        return (
            f"free AS MATERIALIZED (SELECT partition FROM {self.table} WHERE name = $1 AND partition = $2::int"
            " AND epoch = $3::bigint AND owner = $4 FOR UPDATE SKIP LOCKED)"
        )

    async def begin(self, ours: Partition) -> int | None:
        """Note that the next event is being handled, and the position before it. Returns how often it was begun.

        None when the partition belongs to somebody else, or is locked.
        """
        rows = await self._query(
            f"WITH {self._free()} UPDATE {self.table} s SET attempts = attempts + 1, updated_at = pg_catalog.now(),"
            " position_id = CASE WHEN position = $5::bigint THEN position_id ELSE $6 END, position = $5::bigint"
            " FROM free WHERE s.name = $1 AND s.partition = free.partition AND s.position <= $5::bigint"
            " RETURNING attempts::pg_catalog.text",
            self._name,
            str(ours.number),
            str(ours.epoch),
            self._owner,
            str(max(ours.written, ours.acknowledged)),
            ours.acknowledged_id,
        )
        return int(rows[0][0] or 0) if rows else None

    async def look(self, number: int) -> Found | None:
        """What a partition is at; None when the subscription was deleted."""
        rows = await self._query(
            f"SELECT epoch::pg_catalog.text, position::pg_catalog.text, owner, replaced_by FROM {self.table}"
            " WHERE name = $1 AND partition = $2::int",
            self._name,
            str(number),
        )
        for epoch, position, owner, replaced_by in rows:
            return Found(int(epoch or 0), int(position or 0), owner, replaced_by)
        return None

    async def is_locked(self, ours: Partition) -> bool:
        """Whether a transaction has a partition locked at this moment."""
        sql = f"SELECT name FROM {self.table} WHERE name = $1 AND partition = $2::int FOR UPDATE SKIP LOCKED"
        is_free = await self._query(sql, self._name, str(ours.number))
        return not is_free and await self.look(ours.number) is not None

    def is_ours(self, found: Found | None, ours: Partition) -> bool:
        """Whether a partition, as `look` found it, belongs to this consumer."""
        return found is not None and (found.epoch, found.owner) == (ours.epoch, self._owner)

    async def write_in(self, conn: Any, ours: Partition, event: StoredEvent) -> str | None:
        """Move a position in the user's transaction; returns that transaction, or None if the position was not moved.

        Raises:
            OptionsError: No transaction is open on the connection.
        """
        if not await has_transaction(conn):
            raise OptionsError(
                "invalid conn: open a transaction on it first, or switch autocommit off",
                option="conn",
                value="",
                reason="no transaction is open",
            )
        # The oid: another schema, or database, may have a table of the same name.
        rows = await rows_on(
            conn,
            f"UPDATE {self.table} SET position = %s, position_id = %s, attempts = 0, unclean = 0,"
            " updated_at = pg_catalog.now() WHERE name = %s AND partition = %s AND epoch = %s AND owner = %s"
            " AND position BETWEEN %s AND %s AND CAST(tableoid AS bigint) = %s"
            " RETURNING CAST(pg_catalog.txid_current() AS pg_catalog.text)",
            [
                event.version,
                event.id,
                self._name,
                ours.number,
                ours.epoch,
                self._owner,
                ours.base_for(event.version),
                event.version - 1,
                self._oid,
            ],
        )
        return str(rows[0][0]) if rows else None

    async def transaction_of(self, conn: Any) -> str | None:
        """The transaction that has changed something on the user's connection; None if there is none."""
        sql = "SELECT CAST(pg_catalog.txid_current_if_assigned() AS pg_catalog.text)"
        ((found,),) = await rows_on(conn, sql, [])
        return None if found is None else str(found)

    async def fence_in(self, conn: Any, own: Iterable[Partition]) -> tuple[dict[int, int], str]:
        """Lock positions in the user's transaction; returns those of partitions that still belong to this consumer.

        In one order, in which others lock them, too. The second result names the transaction.
        """
        found: dict[int, int] = {}
        transaction = ""
        for ours in sorted(own, key=lambda each: each.number):
            rows = await rows_on(
                conn,
                "SELECT position, CAST(pg_catalog.txid_current() AS pg_catalog.text)"
                f" FROM {self.table} WHERE name = %s AND partition = %s AND epoch = %s AND owner = %s"
                " AND CAST(tableoid AS bigint) = %s FOR UPDATE",
                [self._name, ours.number, ours.epoch, self._owner, self._oid],
            )
            if rows:
                found[ours.number] = int(rows[0][0])
                transaction = str(rows[0][1])
        return found, transaction

    async def move_in(self, conn: Any, changes: list[tuple[Partition, StoredEvent]], transaction: str) -> bool:
        """Move positions that the user's transaction has locked; False when it is another one by now."""
        for ours, event in changes:
            count = await run_on(
                conn,
                f"UPDATE {self.table} SET position = %s, position_id = %s, attempts = 0, unclean = 0,"
                " updated_at = pg_catalog.now() WHERE name = %s AND partition = %s AND epoch = %s AND owner = %s"
                " AND CAST(pg_catalog.txid_current() AS pg_catalog.text) = %s",
                [event.version, event.id, self._name, ours.number, ours.epoch, self._owner, transaction],
            )
            if not count:
                return False
        return True

    async def is_on(self, conn: Any) -> bool:
        """Whether the user's connection leads to the same table: another schema or database may have one so named."""
        sql = "SELECT CAST(CAST(pg_catalog.to_regclass(CAST(%s AS pg_catalog.text)) AS pg_catalog.oid) AS bigint)"
        ((oid,),) = await rows_on(conn, sql, [self.table])
        return bool(oid == self._oid)

    # --------------------------------------------------------------------------------------------- parked events

    async def park(self, ours: Partition, event: StoredEvent, attempts: int, error: str | None) -> bool:
        """Set an event aside and move on past it, in one transaction.

        True, too, when the same call has done so before, and its answer was lost. False when the partition belongs to
        somebody else, is locked, or is at another position.
        """
        rows = await self._query(
            f"WITH {self._free()}, moved AS (UPDATE {self.table} s SET position = $5::bigint, position_id = $6,"
            " attempts = 0, unclean = 0, updated_at = pg_catalog.now() FROM free WHERE s.name = $1"
            " AND s.partition = free.partition AND s.position BETWEEN $7::bigint AND $5::bigint - 1 RETURNING s.name),"
            f" done AS (INSERT INTO {self._parked} (name, version, aggregate_id, attempts, last_error)"
            " SELECT name, $5::bigint, $8, $9::int, $10 FROM moved"
            " ON CONFLICT (name, version) DO UPDATE SET"
            f" attempts = {self._parked}.attempts + excluded.attempts,"
            f" last_error = coalesce(excluded.last_error, {self._parked}.last_error) RETURNING name)"
            f" SELECT name FROM done UNION ALL SELECT p.name FROM free, {self._parked} p WHERE p.name = $1"
            f" AND p.version = $5::bigint AND EXISTS (SELECT FROM {self.table} s WHERE s.name = $1"
            " AND s.partition = free.partition AND s.position = $5::bigint)",
            self._name,
            str(ours.number),
            str(ours.epoch),
            self._owner,
            str(event.version),
            event.id,
            str(ours.base_for(event.version)),
            event.aggregate_id,
            str(attempts),
            error,
        )
        return bool(rows)

    async def is_held(self, aggregate_id: str) -> bool:
        """Whether an event of the aggregate is set aside at this moment."""
        sql = f"SELECT 'held' FROM {self._parked} WHERE name = $1 AND aggregate_id = $2 LIMIT 1"
        return bool(await self._query(sql, self._name, aggregate_id))

    async def parked(self) -> list[ParkedEvent]:
        """Events that were set aside, in order."""
        rows = await self._query(
            "SELECT pg_catalog.json_build_object('version', version, 'aggregate_id', aggregate_id,"
            " 'attempts', attempts, 'last_error', last_error)::pg_catalog.text"
            f" FROM {self._parked} WHERE name = $1 ORDER BY version",
            self._name,
        )
        return [ParkedEvent(**json.loads(row[0] or "{}")) for row in rows]

    async def claim_parked(self, after: int, held: Iterable[str], taken: Iterable[int]) -> tuple[int, str] | None:
        """Claim the first parked event of an aggregate, for as long as a lease; returns its version and aggregate.

        It may have a claim of ours that nobody needs any more, unless it is one of those that are taken.
        """
        rows = await self._query(
            f"UPDATE {self._parked} SET claimed_by = $2, claimed_until = {_until('$3')}"
            f" WHERE name = $1 AND version = (SELECT p.version FROM {self._parked} p"
            " WHERE p.name = $1 AND p.version > $4::bigint AND NOT p.aggregate_id = ANY($5::pg_catalog.text[])"
            " AND (p.claimed_until IS NULL OR p.claimed_until < pg_catalog.clock_timestamp() OR p.claimed_by = $2)"
            " AND NOT p.version = ANY($6::pg_catalog.text::bigint[])"
            f" AND NOT EXISTS (SELECT FROM {self._parked} e WHERE e.name = $1 AND e.aggregate_id = p.aggregate_id"
            " AND e.version < p.version) ORDER BY p.version LIMIT 1 FOR UPDATE SKIP LOCKED)"
            " RETURNING version::pg_catalog.text, aggregate_id",
            self._name,
            self._owner,
            self._lease,
            str(after),
            _array(held),
            _numbers(taken),
        )
        return (int(rows[0][0] or 0), rows[0][1] or "") if rows else None

    async def unpark(self, version: int) -> bool:
        """Forget a parked event that this consumer has claimed; False when the claim was lost."""
        rows = await self._query(
            f"DELETE FROM {self._parked} WHERE name = $1 AND version = $2::bigint AND claimed_by = $3 RETURNING 'done'",
            self._name,
            str(version),
            self._owner,
        )
        return bool(rows)

    async def unpark_in(self, conn: Any, version: int) -> bool:
        """The same in the user's transaction."""
        sql = f"DELETE FROM {self._parked} WHERE name = %s AND version = %s AND claimed_by = %s"
        return await run_on(conn, sql, [self._name, version, self._owner]) == 1

    async def release_parked(self) -> None:
        """Give all claimed events back, but for those that a transaction of the user's has locked."""
        await self._query(
            f"UPDATE {self._parked} SET claimed_by = NULL, claimed_until = NULL WHERE name = $1"
            f" AND version IN (SELECT version FROM {self._parked} WHERE name = $1 AND claimed_by = $2"
            " FOR UPDATE SKIP LOCKED)",
            self._name,
            self._owner,
        )

    async def failed_again(self, version: int, error: str) -> None:
        """Give a claimed event back, with what happened."""
        await self._query(
            f"UPDATE {self._parked} SET claimed_by = NULL, claimed_until = NULL, attempts = attempts + 1,"
            " last_error = $4 WHERE name = $1 AND version = $2::bigint AND claimed_by = $3",
            self._name,
            str(version),
            self._owner,
            error,
        )

    @staticmethod
    def _fields(own: Iterable[Partition]) -> str:
        return json.dumps(
            [
                {
                    "partition": each.number,
                    "epoch": each.epoch,
                    "base": each.base,
                    "position": max(each.base, each.acknowledged),
                    "id": each.acknowledged_id,
                }
                for each in own
            ]
        )


def _array(texts: Iterable[str]) -> str:
    """PostgreSQL's text for an array of texts."""
    quoted = ('"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"' for text in texts)
    return "{" + ",".join(quoted) + "}"


def _numbers(numbers: Iterable[int]) -> str:
    """PostgreSQL's text for an array of numbers."""
    return "{" + ",".join(map(str, numbers)) + "}"
