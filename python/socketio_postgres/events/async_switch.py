"""`AsyncSwitch`: a version of a projection takes the place of the one that is served, in one transaction."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable
from logging import Logger
from typing import Any, Final

from socketio_postgres._bus.async_statements import rows_on, run_on
from socketio_postgres._bus.drivers import sqlstate_of
from socketio_postgres._bus.primitives import afinished, asleep
from socketio_postgres.events.async_positions import QueryFunction
from socketio_postgres.events.async_transaction import transaction_from
from socketio_postgres.events.partition import retired
from socketio_postgres.events.projection import Projection, base_of, subscription_name
from socketio_postgres.exceptions import EventStoreError, SchemaMismatchError, SocketIOPostgresError

__all__ = ["AsyncSwitch", "begin_anew"]

LOOK_SECONDS: Final = 1.0
"""Seconds between two looks at how far the versions are, and the first pause after a transaction that failed."""

RETRY_LAST: Final = 60.0
"""The longest such pause."""

HOLD_SECONDS: Final = 5.0
"""Seconds for which the version that is served may be held at its position, until this one has reached it; also the
longest wait for a lock."""

TICK: Final = 0.05
"""Seconds between two looks at whether that is so, or whether to end."""

CONFLICTS_MAX: Final = 5
"""How often `rebuild` is tried when it conflicts with another transaction, such as that of a replay."""

_RETIRE: Final = (
    "is_paused = true, owner = NULL, lease_until = NULL, epoch = epoch + 1, updated_at = pg_catalog.now(),"
    " replaced_by ="
)
"""Earlier releases of this package know no `replaced_by`, but leave alone what is paused."""


class _NotYetError(Exception):
    """The transaction is to be rolled back, because the version that is served is ahead, or has just been made."""


@dataclasses.dataclass(frozen=True)
class _Version:
    """The durable subscription of a version of the projection; its lowest and highest position in all partitions."""

    name: str
    low: int
    high: int
    replaced_by: str | None
    is_paused: bool
    parked: int


class AsyncSwitch:
    """Looks after the succession of a projection's versions.

    The rows of version 1 name the version that is served in `replaced_by`; while that is empty, or if there are no
    such rows yet, it is version 1. The rows of every version that was replaced stay, and retire its consumers.
    """

    def __init__(
        self,
        projection: Projection,
        connect: Any,
        query: QueryFunction,
        tables: tuple[str, str, str],
        *,
        lease: float,
        allow_parked: bool,
        report: Callable[[Exception, str], None],
        logger: Logger,
    ) -> None:
        self._projection = projection
        self._base = projection.name
        self._number = projection.version
        self._name = subscription_name(projection.name, projection.version)
        self._connect = connect
        self._query = query
        self._table, self._parked, self._consumers = tables
        self._lease = lease
        self._allow_parked = allow_parked
        self._report = report
        self._logger = logger
        self._is_ended = False
        self._has_told = False

    async def is_wanted(self) -> bool:
        """Whether this version is yet to take the place of the one that is served.

        Raises:
            SubscriptionRetiredError: A newer version is served.
        """
        if self._number == 1:
            return False  # its own rows say it all
        served, _ = self._served(await self._versions())
        if served > self._number:
            raise retired(self._name, subscription_name(self._base, served))
        return served < self._number

    def end(self) -> None:
        """Let `run` end soon."""
        self._is_ended = True

    async def run(self) -> None:
        """Wait until this version is not behind the one that is served, and take its place."""
        pause, goal = LOOK_SECONDS, None
        while not self._is_ended:
            try:
                versions = await self._versions()
                number, served = self._served(versions)
                if number >= self._number:
                    if number > self._number:
                        await self._retire_ourselves(subscription_name(self._base, number))
                    else:
                        self._logger.info("projection %s: version %s is served now", self._base, number)
                    return
                ours = versions.get(self._number)
                high = 0 if served is None else served.high
                # What it was at a look ago will do: while a transaction holds it, the rest is soon made up for.
                is_near = ours is not None and ours.low >= (high if goal is None else min(goal, high))
                goal = high
                if is_near and ours is not None and not ours.is_paused and self._may_have(ours.parked):
                    await self._switch()  # the next look finds out whether it was committed
                pause = LOOK_SECONDS
            except _NotYetError:
                pause = min(pause * 2, RETRY_LAST)
            except SocketIOPostgresError as error:
                if not self._is_ended:
                    self._report(error, f"{self._name}: the switch is tried again")
                pause = min(pause * 2, RETRY_LAST)
            except Exception as error:  # noqa: BLE001 - the user's, and those of three libraries
                self._report(error, f"{self._name}: the switch was rolled back, and is tried again")
                pause = min(pause * 2, RETRY_LAST)
            await self._wait(pause)

    async def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self._is_ended and time.monotonic() < deadline:
            await asleep(TICK)

    def _may_have(self, parked: int) -> bool:
        if not parked or self._allow_parked:
            return True
        if not self._has_told:
            self._has_told = True
            self._report(self._has_parked(parked), f"{self._name}: no switch yet")
        return False

    def _has_parked(self, parked: int) -> EventStoreError:
        return EventStoreError(
            f"the durable subscription {self._name!r} has {parked} parked events, which its table would lack: replay"
            " them, or run the projection with allow_parked=True"
        )

    # --------------------------------------------------------------------------------------------- the versions

    async def _versions(self) -> dict[int, _Version]:
        """What the versions of the projection are at, by number."""
        rows = await self._query(
            "SELECT name, pg_catalog.min(position)::pg_catalog.text, pg_catalog.max(position)::pg_catalog.text,"
            " pg_catalog.max(replaced_by), pg_catalog.bool_or(is_paused)::pg_catalog.text,"
            f" (SELECT pg_catalog.count(*) FROM {self._parked} p WHERE p.name = s.name)::pg_catalog.text"
            f" FROM {self._table} s WHERE name = $1 OR pg_catalog.starts_with(name, $2) GROUP BY name",
            self._base,
            f"{self._base}@",
        )
        found = {}
        for name, low, high, replaced_by, is_paused, parked in rows:
            number = self._number_of(name or "")
            if number:
                numbers = (int(low or 0), int(high or 0))
                found[number] = _Version(name or "", *numbers, replaced_by, is_paused == "true", int(parked or 0))
        return found

    def _number_of(self, name: str) -> int:
        """The version whose durable subscription has this name; 0 if there is none."""
        if name == self._base:
            return 1
        return int(name[len(self._base) + 1 :]) if base_of(name) == self._base else 0

    def _served(self, versions: dict[int, _Version]) -> tuple[int, _Version | None]:
        """The version that is served, and what it is at; 0 if there is none."""
        first = versions.get(1)
        number = 0 if first is None else self._number_of(first.replaced_by or first.name)
        return number, versions.get(number)

    async def _retire_ourselves(self, newer: str) -> None:
        """A newer version took over while our rows were being made, and did not see them."""
        await self._query(
            f"WITH parked AS (DELETE FROM {self._parked} WHERE name = $1),"
            f" consumers AS (DELETE FROM {self._consumers} WHERE name = $1)"
            f" UPDATE {self._table} SET {_RETIRE} $2 WHERE name = $1",
            self._name,
            newer,
        )

    # ------------------------------------------------------------------------------------------ the transaction

    async def _switch(self) -> None:
        """Take the place of the version that is served, unless another process has done so.

        Raises:
            _NotYetError: That version is ahead, and stays ahead for a while.
            Exception: What `switch` of the projection raised, or a library. Nothing is changed.
        """
        async with transaction_from(self._connect) as conn:
            await _read_committed(conn)
            await self._limit(conn, "lock_timeout", HOLD_SECONDS)
            await self._limit(conn, "idle_in_transaction_session_timeout", self._lease)
            await _check_table(conn, self._query, self._table)
            goal, older = await self._hold_others(conn)
            await self._reach(conn, goal)
            ours = await _locked(conn, self._table, self._name)
            if not ours or any(position < goal or is_paused for position, is_paused, _ in ours):
                raise _NotYetError
            await self._check_parked(conn)
            for name in older:
                await run_on(conn, f"UPDATE {self._table} SET {_RETIRE} %s WHERE name = %s", [self._name, name])
                for table in (self._parked, self._consumers):
                    await run_on(conn, f"DELETE FROM {table} WHERE name = %s", [name])
            # Last, so that it is part of the transaction, whatever it does.
            await afinished(self._projection.switch(conn))

    async def _limit(self, conn: Any, setting: str, seconds: float) -> None:
        milliseconds = str(max(int(seconds * 1000), 1))
        await rows_on(conn, "SELECT pg_catalog.set_config(%s, %s, true)", [setting, milliseconds])

    async def _hold_others(self, conn: Any) -> tuple[int, list[str]]:
        """Hold all older versions where they are; returns the position of the one that is served, and their names.

        The rows of version 1 come first: one process at a time gets further.
        """
        # Where version 1 has never run, a row is made that retires it.
        sql = f"INSERT INTO {self._table} (name, position) VALUES (%s, 0) ON CONFLICT DO NOTHING"
        await run_on(conn, sql, [self._base])
        held = {self._base: await _locked(conn, self._table, self._base)}
        served = next((successor for *_, successor in held[self._base]), None) or self._base
        if not held[self._base] or self._number_of(served) >= self._number:
            raise _NotYetError  # somebody has deleted it, or was faster; the next look sees it
        older = await self._older(conn)
        for name in older[1:]:
            held[name] = await _locked(conn, self._table, name)
        if served in held and not held[served]:
            raise _NotYetError  # it was divided anew, more than once
        return max((position for position, *_ in held.get(served, [])), default=0), older

    async def _older(self, conn: Any) -> list[str]:
        """Names of all older versions, in order."""
        sql = f"SELECT DISTINCT name FROM {self._table} WHERE name = %s OR pg_catalog.starts_with(name, %s)"
        names: Iterable[str] = [str(name) for (name,) in await rows_on(conn, sql, [self._base, f"{self._base}@"])]
        return sorted((name for name in names if 0 < self._number_of(name) < self._number), key=self._number_of)

    async def _reach(self, conn: Any, goal: int) -> None:
        """Wait until this version, which goes on meanwhile, has reached a position."""
        deadline = time.monotonic() + HOLD_SECONDS
        while True:
            sql = f"SELECT coalesce(pg_catalog.min(position), -1) FROM {self._table} WHERE name = %s"
            ((position,),) = await rows_on(conn, sql, [self._name])
            if int(position) >= goal:
                return
            if self._is_ended or time.monotonic() >= deadline:
                raise _NotYetError
            await asleep(TICK)

    async def _check_parked(self, conn: Any) -> None:
        """Our rows are locked, so nothing is parked from now on."""
        sql = f"SELECT pg_catalog.count(*) FROM {self._parked} WHERE name = %s"
        ((parked,),) = await rows_on(conn, sql, [self._name])
        if parked and not self._allow_parked:
            raise self._has_parked(int(parked))


async def begin_anew(
    projection: Projection,
    name: str,
    connect: Any,
    position: int,
    query: QueryFunction,
    tables: tuple[str, str, str],
) -> bool:
    """Empty the table of a projection and set its durable subscription back; False if there is no subscription.

    Raises:
        SubscriptionRetiredError: It was replaced.
        Exception: What `reset` of the projection raised, or a library. Nothing is changed.
    """
    table = tables[1]
    await query(f"SELECT FROM {table} LIMIT 0")  # makes the tables
    attempts = 0
    while True:
        try:
            return await _begin_anew(projection, name, connect, position, query, tables)
        except Exception as error:
            attempts += 1
            if attempts == CONFLICTS_MAX or not (sqlstate_of(error) or "").startswith("40"):
                raise


async def _begin_anew(
    projection: Projection,
    name: str,
    connect: Any,
    position: int,
    query: QueryFunction,
    tables: tuple[str, str, str],
) -> bool:
    events, table, parked = tables
    async with transaction_from(connect) as conn:
        await _read_committed(conn)
        await _check_table(conn, query, table)
        found = await _locked(conn, table, name)
        if not found:
            return False
        for _, _, replaced_by in found:
            if replaced_by is not None:
                raise retired(name, replaced_by)
        await run_on(
            conn,
            f"UPDATE {table} SET position = %s, position_id = (SELECT e.id FROM {events} e WHERE e.version = %s),"
            " epoch = epoch + 1, owner = NULL, lease_until = NULL, attempts = 0, unclean = 0,"
            " updated_at = pg_catalog.now() WHERE name = %s",
            [position, position, name],
        )
        # In the order of a replay, which changes the table before it removes the event.
        await afinished(projection.reset(conn))
        await run_on(conn, f"DELETE FROM {parked} WHERE name = %s", [name])
    return True


async def _read_committed(conn: Any) -> None:
    """Let each statement see what was committed by others while it waited."""
    await run_on(conn, "SET TRANSACTION ISOLATION LEVEL READ COMMITTED", [])


async def _locked(conn: Any, table: str, name: str) -> list[tuple[Any, ...]]:
    """Lock the rows of a durable subscription, in the order in which others do so; returns what each is at."""
    sql = f"SELECT position, is_paused, replaced_by FROM {table} WHERE name = %s ORDER BY partition FOR UPDATE"
    # `repartition_durable` may have replaced them while this waited.
    return await rows_on(conn, sql, [name]) or await rows_on(conn, sql, [name])


async def _check_table(conn: Any, query: QueryFunction, table: str) -> None:
    """Check that the user's connection leads to the same table: another schema may have one so named."""
    sql = "SELECT CAST(CAST(pg_catalog.to_regclass(CAST({} AS pg_catalog.text)) AS pg_catalog.oid) AS pg_catalog.text)"
    ((found,),) = await rows_on(conn, sql.format("%s"), [table])
    ((expected,),) = await query(sql.format("$1"), table)
    if found is None or found != expected:
        raise SchemaMismatchError(
            f"table {table} is another one on this connection, or none: it leads to another database, or has another"
            " search_path; give table_name with its schema",
            table_name=table,
            reason="it is another one on this connection",
        )
