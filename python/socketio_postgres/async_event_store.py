"""`AsyncEventStore`: events stored in PostgreSQL, read in commit-safe order, and heard live."""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import json
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final

from typing_extensions import Self, Unpack

from socketio_postgres import _core
from socketio_postgres.async_durable_subscription import AsyncDurableSubscription
from socketio_postgres.async_store_calls import (
    AsyncBackground,
    EventSource,
    Handler,
    call_handler,
    chunks_of,
    run_operation,
)
from socketio_postgres.async_subscription import PATIENCE, AsyncSubscription
from socketio_postgres.event import (
    ANY,
    END,
    START,
    VERSION_MAX,
    AfterVersion,
    Event,
    ExpectedVersion,
    NotificationPayload,
    Page,
    StoredEvent,
    StoreResult,
    check_version,
    expected_number,
)
from socketio_postgres.event_store_options import EventStoreKeywords, EventStoreOptions
from socketio_postgres.exceptions import (
    ClosedError,
    EventNotFoundError,
    ForkedProcessError,
    IncompatibleVersionError,
    OptionsError,
    StoreClosedError,
)
from socketio_postgres.filter import Filter, conditions_of

__all__ = ["AsyncCallbackSubscription", "AsyncEventStore", "Blocker", "DurableState"]

_VERSION: Final = re.compile("[0-9]{1,30}", re.ASCII)

_LEASE_MIN: Final = 0.1
_LEASE_MAX: Final = 86_400.0

CLOSE_LIMIT: Final = 10.0
"""Seconds that closing waits for what is being stored."""


@dataclasses.dataclass(frozen=True)
class Blocker:
    """A session whose open transaction may still commit a version that others wait for.

    Attributes:
        pid: Its server process; None for a prepared transaction, which has no session.
        application_name: What it calls itself.
        user: Its role.
        state: What it does, for example `idle in transaction`.
        transaction_start: Since when its transaction is open.
        query: Its last statement; hidden from roles that may not see it.
        prepared: Name of the prepared transaction, or None.
    """

    pid: int | None
    application_name: str | None
    user: str | None
    state: str | None
    transaction_start: dt.datetime | None
    query: str | None
    prepared: str | None = None


@dataclasses.dataclass(frozen=True)
class DurableState:
    """A durable subscription as it is in the database.

    Attributes:
        name: Its name.
        position: Version up to which events are acknowledged.
        owner: Who has it, or had it last: host, process id and a random part.
        is_owned: Whether the owner's lease is valid.
        is_paused: Whether nobody may have it.
        lag: Versions between its position and the end of the table; gaps and what the filter leaves out included.
        parked: Events set aside.
    """

    name: str
    position: int
    owner: str | None
    is_owned: bool
    is_paused: bool
    lag: int
    parked: int


class AsyncEventStore:
    """An event store on one table, shared with go-sync-kit if it made the table.

    Nothing connects before the first call, or `async with`. Any number of tasks may use it at once.

        async with AsyncEventStore(dsn) as store:
            result = await store.store(Event("OrderPlaced", "order-1", {"total": 5}), expected=NO_STREAM)
            async for event in store.subscribe(after=START):
                ...

    Args:
        dsn: Connection string or URL as libpq reads it.
        options: As in `EventStoreOptions`.

    Raises:
        OptionsError: The DSN or an option is wrong.
    """

    def __init__(self, dsn: str = "", **options: Unpack[EventStoreKeywords]) -> None:
        self.options = EventStoreOptions.of(dsn, options)
        # What cannot work is told here, at the call that gave it.
        self._core = _core.EventStore(self.options)
        self._pid = os.getpid()
        self._is_open = False
        self._is_closed = False
        self._callbacks: list[AsyncCallbackSubscription] = []
        self._warned_at = 0.0
        self._has_side_tables = False

    @classmethod
    def from_connection_string(cls, dsn: str) -> Self:
        """A store with every option at its default; `NewWithConnectionString` in Go."""
        return cls(dsn)

    @classmethod
    def from_options(cls, options: EventStoreOptions) -> Self:
        """A store with these options; `New` with a `Config` in Go."""
        values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
        return cls(values.pop("dsn"), **values)

    def _opened_core(self) -> _core.EventStore:
        if self._is_closed:
            raise StoreClosedError("the event store is closed; create a new one")
        if self._pid != os.getpid():
            if self._is_open:
                raise ForkedProcessError("the event store was started before a fork; create it in the child process")
            self._core, self._pid = _core.EventStore(self.options), os.getpid()
        self._is_open = True
        return self._core

    @property
    def description(self) -> str:
        """What it connects to, without secrets."""
        return self._core.description

    async def open(self) -> None:
        """Connect, and find the table or make it, now instead of with the first call.

        A table that is there is left as it is. A new one is made with go-sync-kit's columns, so that a Go process can
        use it, too, but with one notification per statement and only the indexes that are needed.

        Raises:
            SchemaMismatchError: The table is missing and may not be created, or is no event table.
            ConnectionLostError: The server cannot be reached.
            DatabaseError: It refuses.
        """
        core = self._opened_core()
        await run_operation(core.open)

    def layout(self) -> dict[str, Any]:
        """What was found out about the table when it was opened; empty before."""
        return dict(self._core.layout() or {})

    # ------------------------------------------------------------------------------------------------- writing

    async def store(self, event: Event | Sequence[Event], *, expected: ExpectedVersion = ANY) -> StoreResult:
        """Store an event, or several of one aggregate: all or none.

        Calls made at the same time are committed together; each succeeds or fails for itself.

        Args:
            event: What to store.
            expected: What the aggregate must be like before: `ANY`, `NO_STREAM`, `EXISTS`, or the version of its last
                event. Exact among the writers of this package; for others it is with the guard (`enable_guard`).

        Returns:
            Where the (last) event was stored. If all were stored before, under the same ids and with the same content,
            then where that was.

        Raises:
            WrongExpectedVersionError: The aggregate is not as expected.
            DuplicateEventError: An id is taken by another event.
            AggregateIdTooLongError: More than 56 bytes, where go-sync-kit's trigger is.
            PayloadTooLargeError: go-sync-kit's trigger could not notify of it.
            EncodeError: Something that JSON or PostgreSQL cannot hold.
            ConnectionLostError: `may_be_sent` says whether the commit is in doubt; it is after half a minute of asking.
            StoreClosedError: The store was closed.
        """
        events = [event] if isinstance(event, Event) else list(event)
        if not events:
            raise OptionsError("invalid event: give at least one", option="event", value="[]", reason="is empty")
        number = expected_number(expected)
        aggregates = {item.aggregate_id for item in events}
        if number is not None and len(aggregates) != 1:
            raise OptionsError(
                f"invalid expected: the events belong to {len(aggregates)} aggregates; use store_batch",
                option="expected",
                value=repr(expected),
                reason="the events belong to several aggregates",
            )
        checks = {} if number is None else dict.fromkeys(aggregates, number)
        results = await self._store(events, checks)
        return results[-1]

    async def store_batch(
        self, events: Iterable[Event], *, expected: Mapping[str, ExpectedVersion] | None = None
    ) -> list[StoreResult]:
        """Store events of any aggregates, in this order, all or none.

        Args:
            events: What to store.
            expected: What must be true of aggregates before, by aggregate id; those not named may be as they like.

        Returns:
            Where each event was stored, in the order given.

        Raises:
            WrongExpectedVersionError: An aggregate is not as expected.
            DuplicateEventError: An id is taken by another event.
        """
        checks = {
            aggregate_id: number
            for aggregate_id, wanted in (expected or {}).items()
            if (number := expected_number(wanted)) is not None
        }
        return await self._store(list(events), checks)

    async def _store(self, events: list[Event], checks: dict[str, int]) -> list[StoreResult]:
        core = self._opened_core()
        positions = await run_operation(lambda inbox, token: core.store(events, checks, inbox, token))
        return [
            StoreResult(version, event.id, at, old) for event, (version, at, old) in zip(events, positions, strict=True)
        ]

    async def import_events(
        self,
        events: EventSource,
        *,
        chunk_size: int = 10_000,
        progress: Callable[[int], object] | None = None,
    ) -> int:
        """Store very many events by COPY, in memory for two chunks: one is made while the other is stored.

        Each chunk is a transaction of its own, so an error leaves the earlier ones stored. There are no expected
        versions, and an id that exists is an error.

        Args:
            events: Any iterable.
            chunk_size: Events in one transaction.
            progress: Called with the number stored so far, after each chunk.

        Returns:
            How many were stored.

        Raises:
            DatabaseError: An id exists; `sqlstate` is 23505.
        """
        importing = self._opened_core().importing()
        total = 0

        async def add(chunk: list[Event]) -> None:
            nonlocal total
            stored = await run_operation(functools.partial(importing.add, chunk))
            total += stored
            if stored and progress is not None:
                progress(total)

        try:
            async for chunk in chunks_of(events, chunk_size):
                await add(chunk)
        finally:
            await add([])  # what is under way ends before an error of the source is told
        return total

    # ------------------------------------------------------------------------------------------------- reading

    async def load(
        self,
        since: int = 0,
        filters: Iterable[Filter] = (),
        *,
        types: Iterable[str] | str | None = None,
        limit: int | None = None,
        backwards: bool = False,
    ) -> Page:
        """The events there are, your own included.

        Args:
            since: Only later versions. Pass the page's `safe_since` next time, not the last version: a transaction
                that is open may still add a lower one.
            filters: Conditions, all of which must hold.
            types: Shorthand for `Filter("type", …)`.
            limit: At most so many. Default: all, in memory; see `read`.
            backwards: The last event first.

        Raises:
            IncompatibleVersionError: `since` is no version.
            FilterError: A filter is wrong.
            StoreRewoundError: The table ends before `since`.
        """
        events, safe_since = await self._load(since, conditions_of(filters, types), limit, backwards)
        return Page(events, safe_since)

    async def load_by_aggregate(
        self, aggregate_id: str, since: int = 0, *, limit: int | None = None, backwards: bool = False
    ) -> Page:
        """The events of one aggregate, in order.

        Args:
            aggregate_id: The aggregate.
            since: Only later versions.
            limit: At most so many. Default: all.
            backwards: The last event first.
        """
        conditions = conditions_of([Filter("aggregate_id", aggregate_id)])
        events, safe_since = await self._load(since, conditions, limit, backwards)
        return Page(events, safe_since)

    async def _load(
        self, since: int, conditions: list[Any], limit: int | None, backwards: bool, until: int = VERSION_MAX
    ) -> tuple[list[StoredEvent], int]:
        check_version(since, "since")
        most = VERSION_MAX if limit is None else check_version(limit, "limit")
        core = self._opened_core()
        page: tuple[list[StoredEvent], int] = await run_operation(
            lambda inbox, token: core.load(since, until, most, backwards, conditions, inbox, token)
        )
        return page

    async def read(
        self,
        since: int = 0,
        filters: Iterable[Filter] = (),
        *,
        types: Iterable[str] | str | None = None,
        backwards: bool = False,
    ) -> AsyncIterator[StoredEvent]:
        """The events there are, one by one, with the memory of a few pages; ends at the end.

        While one page is iterated the next ones are read.

        To go on later, use `subscribe`: where this ended is no safe place to continue.

        Args:
            since: Only later versions.
            filters: Conditions, all of which must hold.
            types: Shorthand for `Filter("type", …)`.
            backwards: The last event first.
        """
        check_version(since, "since")
        reading = self._opened_core().read(since, self.options.batch_size, backwards, conditions_of(filters, types))
        while True:
            events, _ = await run_operation(reading.next)
            if not events:
                return
            # Each is let go of as soon as the caller does: kept to the end of its page, what was decoded would be
            # looked through by the garbage collector again and again.
            events.reverse()
            while events:
                yield events.pop()

    async def get(self, event_id: str) -> StoredEvent:
        """The event with this id.

        Raises:
            EventNotFoundError: There is none.
        """
        core = self._opened_core()
        sql = f"SELECT version::text FROM {core.table('')} WHERE id = $1"
        rows = await self._query(sql, event_id)
        if not rows:
            raise EventNotFoundError(f"there is no event with id {event_id!r}", event_id=event_id)
        version = int(rows[0][0] or 0)
        events, _ = await self._load(version - 1, [], 1, False, version)
        return events[0]

    async def latest_version(self, *, settled: bool = True, timeout: float | None = None) -> int:
        """The version of the last event; 0 when there is none.

        Args:
            settled: Wait until all versions given out by now are final: safe to continue from. That takes as long as
                the transactions that have stored events and are still open. False: the last version there is, as in Go.
            timeout: Seconds to wait at most; None waits for ever.

        Raises:
            OperationTimeoutError: A transaction was open for longer; `blockers` names it.
        """
        core = self._opened_core()
        version: int = await run_operation(lambda inbox, token: core.latest_version(settled, inbox, token), timeout)
        return version

    @staticmethod
    def parse_version(text: str) -> int:
        """A version from its text; an empty one is 0.

        Raises:
            IncompatibleVersionError: It is no integer from 0 to 2**63 - 1.
        """
        if text == "":
            return 0
        if not _VERSION.fullmatch(text):
            raise IncompatibleVersionError(f"a version is an integer from 0 to 2**63 - 1, not {text!r}", value=text)
        return check_version(int(text))

    async def _query(self, sql: str, *texts: str | None) -> list[list[str | None]]:
        core = self._opened_core()
        rows: list[list[str | None]] = await run_operation(
            lambda inbox, token: core.query(sql, list(texts), inbox, token)
        )
        return rows

    # ---------------------------------------------------------------------------------------------- subscribing

    def subscribe(
        self,
        after: AfterVersion = START,
        filters: Iterable[Filter] = (),
        *,
        types: Iterable[str] | str | None = None,
        prefetch: int = 500,
    ) -> AsyncSubscription:
        """All events after a position, then each new one as it is committed, for ever and without a gap.

        All subscriptions of a store share one listening connection and one reader.

        Args:
            after: `START`, `END` (what is stored from the first step on), or a version.
            filters: Conditions, all of which must hold.
            types: Shorthand for `Filter("type", …)`.
            prefetch: Most events fetched ahead.

        Returns:
            An asynchronous iterator; also a context manager, which begins at once and closes it.

        Raises:
            FilterError: A filter is wrong.
            IncompatibleVersionError: `after` is no version.
            StoreRewoundError: While iterating: the table ends before the position.
            StoreClosedError: While iterating: the store was closed.
        """
        return self._subscription(conditions_of(filters, types), after, prefetch, PATIENCE)

    def _subscription(
        self, conditions: list[Any], after: AfterVersion, prefetch: int, patience: float
    ) -> AsyncSubscription:
        async def opener() -> _core.Subscription:
            core = self._opened_core()
            await run_operation(core.open)
            return core.subscribe(conditions)

        return AsyncSubscription(
            opener, after=after, prefetch=prefetch, on_idle=self._warn_of_blockers, patience=patience
        )

    def durable(
        self,
        name: str,
        filters: Iterable[Filter] = (),
        *,
        types: Iterable[str] | str | None = None,
        start: AfterVersion = START,
        lease: float = 30.0,
        prefetch: int = 100,
        reset: bool = False,
    ) -> AsyncDurableSubscription:
        """A subscription whose position is kept in the database, under a name.

        One consumer at a time has it; others with the same name wait until it ends or its lease runs out.

        Args:
            name: Under which it is kept.
            filters: Conditions, all of which must hold; the same each time.
            types: Shorthand for `Filter("type", …)`.
            start: Where to begin when the name is new: `START`, `END` or a version.
            lease: Seconds without a sign of life after which another consumer takes over. Handling one event must not
                take longer. Default 30.
            prefetch: Most events fetched ahead.
            reset: Go on with other filters than before, from the same position.

        Returns:
            To be entered with a with statement.

        Raises:
            FilterError: A filter is wrong.
            OptionsError: Another argument is.
        """
        conditions = conditions_of(filters, types)
        after = start if start is END or start is START else check_version(start, "start")
        if not _LEASE_MIN <= lease <= _LEASE_MAX:
            raise OptionsError(
                f"invalid lease: must be a number of seconds from 0.1 to 86400 (got {lease!r})",
                option="lease",
                value=repr(lease),
                reason="must be a number of seconds from 0.1 to 86400",
            )

        async def begin() -> int:
            if after is END:
                return await self.latest_version()
            return 0 if after is START else check_version(after, "start")

        async def get(version: int) -> StoredEvent | None:
            events, _ = await self._load(version - 1, [], 1, False, version)
            return events[0] if events else None

        def subscribe(position: int, patience: float) -> AsyncSubscription:
            return self._subscription(conditions, position, prefetch, patience)

        return AsyncDurableSubscription(
            name,
            query=self._query_durable,
            subscribe=subscribe,
            get=get,
            tables=(self._core.table("_subscriptions"), self._core.table("_parked")),
            start=begin,
            filter_text=json.dumps(conditions),
            lease=lease,
            reset=reset,
            report=self._report,
        )

    async def _query_durable(self, sql: str, *texts: str | None) -> list[list[str | None]]:
        if not self._has_side_tables:
            core = self._opened_core()
            await run_operation(core.open)
            await run_operation(lambda inbox, token: core.migrate("subscriptions", inbox, token))
            self._has_side_tables = True
        return await self._query(sql, *texts)

    async def durable_subscriptions(self) -> list[DurableState]:
        """All durable subscriptions of the table, and how far behind each is."""
        latest = await self.latest_version(settled=False)
        rows = await self._query_durable(
            "SELECT json_build_object('name', name, 'position', position, 'owner', owner, 'is_paused', is_paused,"
            f" 'is_owned', coalesce(lease_until > clock_timestamp(), false), 'lag', greatest({latest} - position, 0),"
            f" 'parked', (SELECT count(*) FROM {self._core.table('_parked')} p WHERE p.name = s.name))::text"
            f" FROM {self._core.table('_subscriptions')} s ORDER BY name"
        )
        return [DurableState(**json.loads(row[0] or "{}")) for row in rows]

    async def rewind_durable(self, name: str, position: int) -> None:
        """Let a durable subscription go on after another version; whoever has it is fenced off."""
        check_version(position, "position")
        await self._change_durable(name, "position = $2::bigint, epoch = epoch + 1, lease_until = NULL", str(position))

    async def pause_durable(self, name: str) -> None:
        """Let nobody have a durable subscription until it is resumed; whoever has it is fenced off."""
        await self._change_durable(name, "is_paused = true, epoch = epoch + 1, lease_until = NULL")

    async def resume_durable(self, name: str) -> None:
        """End a pause."""
        await self._change_durable(name, "is_paused = false")

    async def _change_durable(self, name: str, change: str, *texts: str) -> None:
        table = self._core.table("_subscriptions")
        sql = f"UPDATE {table} SET {change}, updated_at = now() WHERE name = $1 RETURNING name"
        if not await self._query_durable(sql, name, *texts):
            raise OptionsError(
                f"invalid name: there is no durable subscription {name!r}",
                option="name",
                value=repr(name),
                reason="is not the name of a durable subscription",
            )

    async def delete_durable(self, name: str) -> None:
        """Forget a durable subscription, and what it parked; whoever has it is fenced off."""
        for suffix in ("_parked", "_subscriptions"):
            sql = f"DELETE FROM {self._core.table(suffix)} WHERE name = $1"
            await self._query_durable(sql, name)

    async def subscribe_to_all(self, handler: Handler) -> AsyncCallbackSubscription:
        """Call `handler` with each event stored from now on; `SubscribeToAll` in Go.

        Args:
            handler: Receives a `NotificationPayload`; may be a coroutine function.
                What it raises is logged and given to `error_handler`, and the next event follows.
        """
        return await self._call_back(handler, "events_global", [])

    async def subscribe_to_stream(self, aggregate_id: str, handler: Handler) -> AsyncCallbackSubscription:
        """Call `handler` with each event of an aggregate stored from now on; `SubscribeToStream` in Go."""
        return await self._call_back(handler, f"stream_{aggregate_id}", [Filter("aggregate_id", aggregate_id)])

    async def subscribe_to_event_type(self, event_type: str, handler: Handler) -> AsyncCallbackSubscription:
        """Call `handler` with each event of a type stored from now on; `SubscribeToEventType` in Go."""
        return await self._call_back(handler, "events_global", [Filter("type", event_type)])

    async def _call_back(self, handler: Handler, channel: str, filters: list[Filter]) -> AsyncCallbackSubscription:
        subscription = self.subscribe(END, filters)
        await subscription.__aenter__()
        callback = AsyncCallbackSubscription(subscription, handler, channel, self._report, self._callbacks.remove)
        self._callbacks.append(callback)
        return callback

    async def unsubscribe_from_stream(self, aggregate_id: str) -> None:
        """End every callback of an aggregate; `UnsubscribeFromStream` in Go."""
        await self._cancel_channel(f"stream_{aggregate_id}")

    async def unsubscribe_from_all(self) -> None:
        """End every callback for all events, and for event types; `UnsubscribeFromAll` in Go."""
        await self._cancel_channel("events_global")

    async def _cancel_channel(self, channel: str) -> None:
        for callback in [callback for callback in self._callbacks if callback.channel == channel]:
            await callback.cancel()

    def active_subscriptions(self) -> list[str]:
        """Channels that callbacks are there for; `GetActiveSubscriptions` in Go."""
        return sorted({callback.channel for callback in self._callbacks})

    @property
    def is_listener_connected(self) -> bool:
        """Whether the listening connection is up; it is only while there are subscriptions."""
        return bool(self._core.stats()["is_listening"])

    def _report(self, error: Exception, what: str) -> None:
        self.options.logger.error("%s: %s", what, error, exc_info=error)
        if self.options.error_handler is not None:
            self.options.error_handler(error)

    # -------------------------------------------------------------------------------------------- maintenance

    async def blockers(self) -> list[Blocker]:
        """Sessions that have drawn a version and not ended their transaction: whoever reads waits for them."""
        core = self._opened_core()
        await run_operation(core.open)
        sequence = str(self.layout()["sequence"])
        rows = await self._query(_BLOCKERS_SQL, sequence)
        found = [json.loads(row[0] or "{}") for row in rows]
        for blocker in found:
            start = blocker["transaction_start"]
            blocker["transaction_start"] = None if start is None else _time(start)
        return [Blocker(**blocker) for blocker in found]

    async def _warn_of_blockers(self) -> None:
        """Log who holds readers up, once in a while."""
        limit, now = self.options.stall_warning, time.monotonic()
        seconds = self._core.stats()["gap_seconds"]
        if seconds is None or seconds < limit or now - self._warned_at < limit:
            return
        self._warned_at = now
        for blocker in await self.blockers():
            self.options.logger.warning(
                "events wait since %.0f s for a transaction to end: %s", seconds, _described(blocker)
            )

    async def enable_guard(self) -> None:
        """Make expected versions exact for writers of other languages, too, by a trigger of our own.

        Their inserts then wait for one another per aggregate and may deadlock when one transaction touches several
        aggregates; so it is not on by default.

        Raises:
            DatabaseError: The role may not create it.
        """
        core = self._opened_core()
        await run_operation(lambda inbox, token: core.migrate("guard", inbox, token))

    def stats(self) -> dict[str, Any]:
        """Counters: those of Go's `Stats` for the pool, and of writing, reading and listening."""
        return dict(self._core.stats())

    async def close(self) -> None:
        """Finish what is being stored, end the subscriptions, disconnect."""
        if self._is_closed:
            return
        self._is_closed = True
        for callback in list(self._callbacks):
            await callback.cancel()
        if self._is_open and self._pid == os.getpid():
            core = self._core
            await run_operation(lambda inbox, token: core.close(CLOSE_LIMIT, inbox, token))

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class AsyncCallbackSubscription:
    """A handler that is being called with events.

    Attributes:
        channel: The channel that go-sync-kit would listen on for it.
    """

    def __init__(
        self,
        subscription: AsyncSubscription,
        handler: Handler,
        channel: str,
        report: Callable[[Exception, str], None],
        forget: Callable[[AsyncCallbackSubscription], None],
    ) -> None:
        self.channel = channel
        self._subscription = subscription
        self._handler = handler
        self._report = report
        self._forget = forget
        self._is_cancelled = False
        self._background = AsyncBackground(self._run, f"event-store {channel}")

    @property
    def is_active(self) -> bool:
        """Whether it is still being called."""
        return not self._is_cancelled and self._background.is_running

    async def _run(self) -> None:
        try:
            async for event in self._subscription:
                try:
                    await call_handler(self._handler, NotificationPayload.of(event))
                except Exception as error:  # noqa: BLE001 - the user's; one failure must not end the subscription
                    self._report(error, f"the handler of {self.channel} failed for event {event.id!r}")
        except ClosedError:
            return
        except Exception as error:  # noqa: BLE001 - nobody else would hear of it
            self._report(error, f"the subscription to {self.channel} ended")

    async def cancel(self) -> None:
        """Stop calling the handler; other subscriptions go on. After it returns no call is under way."""
        if not self._is_cancelled:
            self._is_cancelled = True
            self._subscription.close()
            self._forget(self)
        await self._background.stop()


def _time(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text)


def _described(blocker: Blocker) -> str:
    who = f"prepared transaction {blocker.prepared!r}" if blocker.prepared else f"session {blocker.pid}"
    return (
        f"{who} ({blocker.application_name or 'no application name'}, user {blocker.user}), {blocker.state}, "
        f"open since {blocker.transaction_start}, last statement {(blocker.query or '')[:200]!r}"
    )


_BLOCKERS_SQL: Final = """
SELECT json_build_object('pid', l.pid, 'application_name', a.application_name, 'user', coalesce(a.usename, p.owner),
    'state', CASE WHEN p.gid IS NULL THEN a.state ELSE 'prepared' END, 'query', a.query, 'prepared', p.gid,
    'transaction_start',
    to_char(coalesce(a.xact_start, p.prepared) AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US+00:00'))::text
FROM pg_locks l
LEFT JOIN pg_stat_activity a ON a.pid = l.pid
LEFT JOIN pg_locks x ON l.pid IS NULL AND x.virtualtransaction = l.virtualtransaction AND x.locktype = 'transactionid'
    AND x.pid IS NULL AND x.mode = 'ExclusiveLock'
LEFT JOIN pg_prepared_xacts p ON p.transaction = x.transactionid
WHERE l.locktype = 'relation' AND l.relation = $1::regclass AND l.mode = 'RowExclusiveLock' AND l.granted
    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
ORDER BY coalesce(a.xact_start, p.prepared)
"""
