# Generated from async_event_feed.py by scripts/async_to_sync.py; edit that file.
"""`EventFeed`: stored events as they come, to subscriptions that are durable or not."""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from socketio_postgres import _core
from socketio_postgres._bus.drivers import check_connect
from socketio_postgres._bus.hook import Hook
from socketio_postgres._bus.options import bad_option
from socketio_postgres._bus.primitives import run
from socketio_postgres._typing import Unpack
from socketio_postgres.events._sync.durable_subscription import BATCH_BYTES, DurableSubscription, check_batch
from socketio_postgres.events._sync.event_log import EventLog
from socketio_postgres.events._sync.projector import Projector
from socketio_postgres.events._sync.subscription import PATIENCE, Subscription
from socketio_postgres.events._sync.switch import Switch, begin_anew
from socketio_postgres.events._sync.wait_for_version import wait_for_version
from socketio_postgres.events.blocker import Stall
from socketio_postgres.events.durable_state import DurableState
from socketio_postgres.events.event import (
    END,
    START,
    AfterVersion,
    StoredEvent,
    StoreResult,
    check_seconds,
    check_version,
)
from socketio_postgres.events.failure_policy import FailurePolicy, policy_of
from socketio_postgres.events.filter import Filter, conditions_of
from socketio_postgres.events.options import EventStoreKeywords
from socketio_postgres.events.partition import check_partitions
from socketio_postgres.events.projection import (
    HandleFunction,
    Projection,
    base_of,
    named,
    projection_of,
    subscription_name,
)
from socketio_postgres.exceptions import (
    DatabaseError,
    OperationTimeoutError,
    OptionsError,
    SchemaMismatchError,
    StoreStalledError,
)

__all__ = ["EventFeed"]

_LEASE_MIN: Final = 0.1


class EventFeed(EventLog):
    """Subscriptions: the part of an `EventStore` that delivers new events."""

    def __init__(self, dsn: str = "", **options: Unpack[EventStoreKeywords]) -> None:
        super().__init__(dsn, **options)
        on_stall = self.options.on_stall
        self._on_stall = Hook(
            "on_stall", on_stall if callable(on_stall) else None, self.options.logger, self._error_handler
        )
        self._warned_at = 0.0
        self._has_side_tables = False

    def subscribe(
        self,
        after: AfterVersion | StoredEvent = START,
        filters: Iterable[Filter] = (),
        *,
        types: Iterable[str] | str | None = None,
        prefetch: int = 500,
    ) -> Subscription:
        """All events after a position, and then each new event as it is committed, without a gap.

        All subscriptions of a process share one listening connection and one reader, even across stores that have the
        same connection string and table.

        When the connection is lost or refused, the subscription tries again, without a limit or as often as
        `max_reconnect_attempts` says. Until then no events arrive, and none is missed afterwards. Each reason is logged
        and passed to `error_handler` once; `stats()` shows it.

        Args:
            after: `START`, `END` (what is stored from the first step on), a version, or the last event that was
                handled, which must still be there.
            filters: Conditions, all of which must hold.
            types: Shorthand for `Filter("type", …)`.
            prefetch: Maximum number of events to fetch in advance. Default 500.

        Returns:
            An iterator. It is also a context manager, which begins at once and closes the iterator.

        Raises:
            FilterError: A filter is wrong.
            IncompatibleVersionError: `after` is no version.
            StoreRewoundError: While iterating: the table went back in time, or ends before the position.
            SchemaMismatchError: While iterating: the table was changed so that reading is not safe any more.
            StoreClosedError: While iterating: the store was closed.
        """
        conditions = conditions_of(filters, types)
        if isinstance(after, StoredEvent):
            return self._subscription(conditions, after.version, prefetch, PATIENCE, after.id)
        return self._subscription(conditions, after, prefetch, PATIENCE)

    def _subscription(
        self,
        conditions: list[Any],
        after: AfterVersion,
        prefetch: int,
        patience: float,
        after_id: str | None = None,
    ) -> Subscription:
        def opener() -> _core.Subscription:
            core = self._opened_core()
            run(core.open)
            return core.subscribe(conditions)

        return Subscription(
            opener,
            after=after,
            prefetch=prefetch,
            on_idle=self._look_around,
            patience=min(patience, self.options.stall_warning),
            after_id=after_id,
        )

    def durable(
        self,
        name: str,
        filters: Iterable[Filter] = (),
        *,
        types: Iterable[str] | str | None = None,
        start: AfterVersion = START,
        partitions: int = 1,
        lease: float = 30.0,
        checkpoint_interval: float = 1.0,
        prefetch: int = 100,
        reset: bool = False,
    ) -> DurableSubscription:
        """A subscription whose position is kept in the database, under a name.

        One consumer owns it at a time. Other consumers with the same name wait until that one ends, or its lease
        expires. With `partitions`, several consumers share it; each aggregate belongs to one of them at a time.

        Args:
            name: Name of the subscription.
            filters: Conditions, all of which must hold. They must be the same each time.
            types: Shorthand for `Filter("type", …)`.
            start: Where to begin if the name is new: `START`, `END` or a version. Default `START`.
            partitions: Number of parts into which aggregates are divided, by a hash of their ids: 1 to 1024. It must be
                the same each time. A few times the number of consumers lets them share evenly. Default 1: not divided.
            lease: Seconds without a sign of life after which another consumer takes over. It is renewed while an event
                is handled, however long that takes. Default 30.
            checkpoint_interval: Interval in seconds at which positions are written, at most a third of the lease. After
                a crash, events of this interval are delivered again. With 0, the position is written after each event.
                Default 1.
            prefetch: Maximum number of events to fetch in advance. Default 100.
            reset: Continue with other filters than before, from the same position. Default False.

        Returns:
            A subscription, to be entered with a `with` statement.

        Raises:
            FilterError: A filter is wrong.
            OptionsError: Another argument is.
        """
        conditions = conditions_of(filters, types)
        after = start if start is END or start is START else check_version(start, "start")
        check_partitions(partitions)
        check_seconds("lease", lease, _LEASE_MIN)
        check_seconds("checkpoint_interval", checkpoint_interval, 0)

        def get(version: int) -> StoredEvent | None:
            events, _ = self._load(version - 1, [], 1, False, version)
            return events[0] if events else None

        def subscribe(position: int, event_id: str | None, patience: float, more: list[Any]) -> Subscription:
            return self._subscription(conditions + more, position, prefetch, patience, event_id)

        def changes() -> int:
            return self._core.durable_changes()  # a child of a fork replaces the core

        arguments: dict[str, Any] = {
            "query": self._query_durable,
            "subscribe": subscribe,
            "get": get,
            "changes": changes,
            "tables": tuple(self._core.table(suffix) for suffix in ("", "_subscriptions", "_parked", "_consumers")),
            "start": lambda: self._version_of(after),
            "filter_text": json.dumps(conditions),
            "partitions": partitions,
            "lease": lease,
            "checkpoint_interval": checkpoint_interval,
            "reset": reset,
            "report": self._report,
        }
        return DurableSubscription(name, **arguments)

    def _version_of(self, start: AfterVersion) -> int:
        if start is END:
            return self.latest_version()
        return 0 if start is START else check_version(start, "start")

    def run(
        self,
        projection: Projection,
        *,
        connect: Any,
        on_error: FailurePolicy | None = None,
        partitions: int = 1,
        lease: float = 30.0,
        max_count: int = 500,
        max_wait: float = 0.2,
        max_bytes: int = BATCH_BYTES,
        allow_parked: bool = False,
    ) -> None:
        """Keep a projection up to date, for ever: each event is applied exactly once, in order of its aggregate.

        A batch of events is one transaction on a connection of yours, which also moves the position. What conflicts
        with another transaction (40001, 40P01), has no connection, or loses it, is tried again. When `handle` raises,
        its events are tried one by one; `on_error` decides about the one that fails. Run it in any number of processes:
        with `partitions` they share the work; without it, one works and the others stand by.

        A version of the projection that is newer than the one that is served is built beside it, from the projection's
        `start`. When it has caught up, one transaction calls `switch` of the projection and retires all older versions,
        wherever they run.

        Args:
            projection: An object of a subclass of `Projection`, or what `projection(name)` made of a function.
            connect: A pool of psycopg or asyncpg, an engine of SQLAlchemy, or a function that returns a connection of
                one of them to the same database. For a switch, a pool needs two connections.
            on_error: `Stop`, `Skip` or `Park`. Default `Stop()`: raise.
            partitions: As in `durable`.
            lease: As in `durable`.
            max_count: Most events in a transaction. Default 500.
            max_wait: Most seconds that a transaction waits for further events once it has one. Default 0.2.
            max_bytes: A transaction ends with the event that brings it to so many bytes. Default 4 MiB.
            allow_parked: Switch to this version although it has parked events, which its table lacks. Default False:
                the switch waits until they are replayed.

        Raises:
            OptionsError: An argument is wrong, the subscription was divided anew, or `connect` gives connections that
                commit each statement.
            SchemaMismatchError: The connection leads to another table.
            Exception: What `handle` raised, with `Stop`; or what `connect` raised, unless it may succeed later.
            SubscriptionRetiredError: A newer version is served now, so that this one may end.
            SubscriptionFencedError: The subscription was deleted.
        """
        checked = self._checked(projection)
        check_connect(connect)
        policy = policy_of(on_error)
        check_batch(max_count, max_wait, max_bytes)
        table, parked, consumers = (self._core.table(each) for each in ("_subscriptions", "_parked", "_consumers"))
        switch = Switch(
            checked,
            connect,
            self._query_durable,
            (table, parked, consumers),
            lease=lease,
            allow_parked=allow_parked,
            report=self._report,
            logger=self.options.logger,
        )
        durable = self.durable(
            subscription_name(checked.name, checked.version),
            checked.filters,
            types=checked.types,
            start=checked.start,
            partitions=partitions,
            lease=lease,
        )
        projector = Projector(durable, checked, connect, policy, switch, self._report)
        projector.run(max_count, max_wait, max_bytes)

    def rebuild(self, projection: Projection, *, connect: Any) -> None:
        """Let a projection begin anew in the same table, which has no events until then.

        One transaction calls `reset` of the projection, which empties the table, sets the position back to the
        projection's `start`, and forgets parked events. Consumers are notified and go on from there. To keep a full
        table meanwhile, run another version of the projection instead.

        Args:
            projection: The projection; its version says which table and subscription are meant.
            connect: As in `run`.

        Raises:
            OptionsError: An argument is wrong, there is no `reset`, or the projection has never run.
            SubscriptionRetiredError: A newer version is served.
            Exception: What `reset` raised. Nothing is changed. After a conflict with another transaction `reset` is
                called again.
        """
        checked = self._checked(projection)
        if type(checked).reset is Projection.reset:
            reason = "has no reset"
            raise OptionsError(
                f"invalid projection: {checked.name!r} {reason}",
                option="projection",
                value=repr(checked.name),
                reason=reason,
            )
        check_connect(connect)
        start = checked.start
        position = self._version_of(start if start is END or start is START else check_version(start, "start"))
        name = subscription_name(checked.name, checked.version)
        events, table, parked = (self._core.table(suffix) for suffix in ("", "_subscriptions", "_parked"))
        if not begin_anew(checked, name, connect, position, self._query_durable, (events, table, parked)):
            raise _no_durable(name)

    @staticmethod
    def _checked(projection: object) -> Projection:
        checked = projection_of(projection)
        for name in ("handle", "switch", "reset"):
            if inspect.iscoroutinefunction(getattr(checked, name)):
                raise bad_option("projection", checked.name, f"its {name} is a coroutine function")
        return checked

    @staticmethod
    def projection(name: str) -> Callable[[HandleFunction], Projection]:
        """Decorate a function with two arguments, a connection and events, to be a projection for `run`.

        Args:
            name: Name of its durable subscription.
        """
        return named(name)

    def wait_for(self, version: StoreResult | int, *, durable: str | None = None, timeout: float | None = None) -> None:
        """Wait until subscriptions have processed events up to `version`, so that projections include your last event.

        Args:
            version: A version, or the result of `store`.
            durable: Name of a durable subscription of any process. The call waits until its position in the database
                has reached the version, which is when it acknowledges, or within its `checkpoint_interval`. Default:
                the call waits until no event can be added before the version, so that `load` and `subscribe` can
                continue after it. Each subscription of this process has its own `wait_for`. The name of a projection
                stands for the version that is served.
            timeout: Maximum number of seconds to wait. Default: no limit, even for a version that is not stored yet.

        Raises:
            OperationTimeoutError: The version was not reached in time. `blockers` names transactions that hold readers
                up.
            OptionsError: There is no durable subscription of this name.
        """
        wanted = check_version(version.version if isinstance(version, StoreResult) else version)

        def settled() -> int:
            core = self._opened_core()
            found: int = run(core.settled_version)
            return found

        def acknowledged() -> int:
            table = self._core.table("_subscriptions")
            sql = (
                f"SELECT pg_catalog.min(position)::pg_catalog.text FROM {table} WHERE name ="
                f" coalesce((SELECT pg_catalog.max(replaced_by) FROM {table} WHERE name = $1), $1)"
            )
            (row,) = self._query_durable(sql, durable)
            if row[0] is None:
                raise _no_durable(durable)
            return int(row[0])

        if durable is None:
            wait_for_version(settled, wanted, timeout, "what is settled")
        else:
            wait_for_version(acknowledged, wanted, timeout, f"the durable subscription {durable!r}")

    def _query_durable(self, sql: str, *texts: str | None, timeout: float | None = None) -> list[list[str | None]]:
        if not self._has_side_tables:
            core = self._opened_core()
            run(core.open)
            run(lambda inbox, token: core.migrate("subscriptions", inbox, token))
            self._has_side_tables = True
        return self._query(sql, *texts, timeout=timeout)

    def durable_subscriptions(self) -> list[DurableState]:
        """All durable subscriptions of the table, with their positions and lags."""
        latest = self.latest_version(settled=False)
        rows = self._query_durable(
            "SELECT pg_catalog.json_build_object('name', name, 'position', pg_catalog.min(position),"
            " 'owner', pg_catalog.string_agg(DISTINCT owner, ', '), 'is_paused', pg_catalog.bool_or(is_paused),"
            " 'is_owned', pg_catalog.bool_and(coalesce(lease_until > pg_catalog.clock_timestamp(), false)),"
            " 'lag_seconds', greatest(coalesce((SELECT extract(epoch FROM pg_catalog.clock_timestamp() - e.created_at)"
            f" FROM {self._core.table('')} e WHERE e.version > pg_catalog.min(s.position)"
            " AND pg_catalog.max(s.replaced_by) IS NULL ORDER BY e.version LIMIT 1), 0), 0),"
            " 'lag', CASE WHEN pg_catalog.max(replaced_by) IS NULL"
            f" THEN greatest({latest} - pg_catalog.min(position), 0) ELSE 0 END,"
            " 'replaced_by', pg_catalog.max(replaced_by),"
            f" 'parked', (SELECT pg_catalog.count(*) FROM {self._core.table('_parked')} p WHERE p.name = s.name),"
            " 'partitions', pg_catalog.json_agg(pg_catalog.json_build_object('partition', partition,"
            " 'position', position, 'owner', owner,"
            " 'is_owned', coalesce(lease_until > pg_catalog.clock_timestamp(), false))"
            " ORDER BY partition))::pg_catalog.text"
            f" FROM {self._core.table('_subscriptions')} s GROUP BY name ORDER BY name"
        )
        return [DurableState.of(row[0] or "{}") for row in rows]

    def rewind_durable(self, name: str, position: int) -> None:
        """Let a durable subscription continue after another version. Its owner continues there, too."""
        check_version(position, "position")
        self._change_durable(
            name,
            "position = $2::bigint, position_id = (SELECT e.id FROM"
            f" {self._core.table('')} e WHERE e.version = $2::bigint), attempts = 0, unclean = 0,"
            " epoch = epoch + 1, owner = NULL, lease_until = NULL",
            str(position),
        )

    def pause_durable(self, name: str) -> None:
        """Stop a durable subscription until `resume_durable`. Its owner loses it."""
        self._change_durable(name, "is_paused = true, epoch = epoch + 1, owner = NULL, lease_until = NULL")

    def resume_durable(self, name: str) -> None:
        """End a pause."""
        self._change_durable(name, "is_paused = false")

    def _change_durable(self, name: str, change: str, *texts: str) -> None:
        table = self._core.table("_subscriptions")
        # In the order in which others lock them.
        sql = (
            f"WITH held AS MATERIALIZED (SELECT partition FROM {table} WHERE name = $1 ORDER BY partition FOR UPDATE)"
            f" UPDATE {table} SET {change}, updated_at = pg_catalog.now() WHERE name = $1"
            " AND partition IN (SELECT partition FROM held) AND replaced_by IS NULL RETURNING name"
        )
        for _ in range(2):  # the second time, if `repartition_durable` has just replaced them
            if self._query_durable(sql, name, *texts):
                return
        self._check_not_replaced(name)
        raise _no_durable(name)

    def _check_not_replaced(self, name: str) -> None:
        table = self._core.table("_subscriptions")
        sql = f"SELECT replaced_by FROM {table} WHERE name = $1 AND replaced_by IS NOT NULL LIMIT 1"
        for (replaced_by,) in self._query_durable(sql, name):
            reason = f"was replaced by {replaced_by!r}"
            raise OptionsError(f"invalid name: {name!r} {reason}", option="name", value=repr(name), reason=reason)

    def repartition_durable(self, name: str, partitions: int) -> None:
        """Divide a durable subscription into another number of partitions.

        No consumer may own it, so stop the consumers or pause it; those that still run then end with
        `OptionsError`. All partitions must be at the same position, as they are once all events are processed;
        `rewind_durable` sets them all to one position.

        Raises:
            OptionsError: The subscription does not exist, a consumer owns it, or the positions differ.
        """
        check_partitions(partitions)
        table = self._core.table("_subscriptions")
        # What counts is what the rows are once they are locked: a transaction with an `ack_in` may have had them.
        changed = self._query_durable(
            f"WITH held AS MATERIALIZED (SELECT * FROM {table} WHERE name = $1 AND replaced_by IS NULL"
            " ORDER BY partition FOR UPDATE),"
            " fit AS MATERIALIZED (SELECT pg_catalog.min(position) AS position,"
            " pg_catalog.max(position_id) AS position_id, pg_catalog.max(epoch) AS epoch,"
            " pg_catalog.max(filter) AS filter, pg_catalog.bool_or(is_paused) AS is_paused FROM held"
            " HAVING pg_catalog.min(position) = pg_catalog.max(position) AND NOT"
            " pg_catalog.bool_or(coalesce(lease_until > pg_catalog.clock_timestamp(), false))),"
            f" old AS (DELETE FROM {table} WHERE name = $1 AND EXISTS (SELECT FROM fit) RETURNING partition)"
            f" INSERT INTO {table} (name, partition, partitions, position, position_id, epoch, filter, is_paused)"
            " SELECT $1, number, $2::int, position, position_id, epoch + 1, filter, is_paused"
            " FROM fit, (SELECT pg_catalog.count(*) FROM old) AS gone,"
            " pg_catalog.generate_series(0, $2::int - 1) AS number RETURNING name",
            name,
            str(partitions),
        )
        if not changed:
            if not self._query_durable(f"SELECT name FROM {table} WHERE name = $1", name):
                raise _no_durable(name)
            self._check_not_replaced(name)
            reason = "somebody has it, or its partitions are at different positions"
            raise OptionsError(f"invalid name: {name!r}: {reason}", option="name", value=repr(name), reason=reason)

    def delete_durable(self, name: str) -> None:
        """Delete a durable subscription and its parked events, in one transaction. Its owner loses it.

        With the version of a projection that is served, those that it has replaced are deleted, too: the next `run`
        begins anew. Deleting a version that is yet to be served ends its rebuild. It waits for transactions that have
        a version of the projection locked, such as a switch.

        Raises:
            OptionsError: It was replaced by another one.
        """
        parked, consumers, table = (self._core.table(suffix) for suffix in ("_parked", "_consumers", "_subscriptions"))
        # What counts is what the rows are once they are locked, in the order in which a switch does so: it may just be
        # replacing some of them, by this one or by a newer one.
        sql = (
            f"WITH held AS MATERIALIZED (SELECT name, partition, replaced_by FROM {table} WHERE name IN ($1, $2)"
            " OR pg_catalog.starts_with(name, $3) AND pg_catalog.substr(name, pg_catalog.length($3) + 1) ~ '^[0-9]+$'"
            ' ORDER BY pg_catalog.length(name), name COLLATE pg_catalog."C", partition FOR UPDATE),'
            " gone AS MATERIALIZED (SELECT * FROM held WHERE name = $1 AND replaced_by IS NULL OR replaced_by = $1),"
            f" parked AS (DELETE FROM {parked} WHERE name = $1 OR name IN (SELECT name FROM gone)),"
            f" consumers AS (DELETE FROM {consumers} WHERE name = $1 OR name IN (SELECT name FROM gone))"
            f" DELETE FROM {table} s USING gone WHERE s.name = gone.name AND s.partition = gone.partition"
            " RETURNING s.name"
        )
        base = base_of(name)
        # The second time, if `repartition_durable` has just replaced them.
        if not self._query_durable(sql, name, base, f"{base}@"):
            self._check_not_replaced(name)
            self._query_durable(sql, name, base, f"{base}@")

    def _look_around(self) -> None:
        """Report why no events have arrived for a while, if there is a reason."""
        self._tell_outages()
        self._look_for_stall()

    def _tell_outages(self) -> None:
        """Log why subscriptions had to wait, and what has changed about the table without affecting them.

        Each reason is logged once. They go on when the connection is there again.
        """
        for failure in self._core.take_failures():
            what = "" if isinstance(failure, SchemaMismatchError) else "subscriptions wait: "
            self.options.logger.warning("%s: %s%s", self.description, what, failure)
            self._error_handler(failure)

    def _look_for_stall(self) -> None:
        """Log which transactions hold readers up, at intervals, and act on `on_stall`."""
        limit, now, stats = self.options.stall_warning, time.monotonic(), self._core.stats()
        seconds = stats["gap_seconds"]
        if seconds is None or seconds < limit or now - self._warned_at < limit:
            return
        try:
            blockers = self.blockers()
        except (DatabaseError, OperationTimeoutError):
            return  # the database is away; its next look will tell
        self._warned_at = now
        stall = Stall(stats["settled_version"], seconds, blockers)
        if not stall.blockers:
            return
        self.options.logger.warning("%s", stall)
        if self.options.on_stall == "error":
            self._warned_at = 0.0  # every subscription raises it
            raise StoreStalledError(str(stall), position=stall.position, seconds=stall.seconds, blockers=stall.blockers)
        self._on_stall(stall)


def _no_durable(name: str | None) -> OptionsError:
    return OptionsError(
        f"invalid name: there is no durable subscription {name!r}",
        option="name",
        value=repr(name),
        reason="is not the name of a durable subscription",
    )
