# Generated from async_event_log.py by scripts/async_to_sync.py; edit that file.
"""`EventLog`: events stored in PostgreSQL and read in commit-safe order."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Literal, cast

from socketio_postgres import _core
from socketio_postgres._bus.hook import Hook
from socketio_postgres._bus.password import PasswordCall
from socketio_postgres._bus.primitives import chunks_of, run
from socketio_postgres._typing import Self, Unpack
from socketio_postgres.events._sync.store_in import store_in
from socketio_postgres.events.blocker import BLOCKERS_SQL, Blocker
from socketio_postgres.events.event import (
    ANY,
    VERSION_MAX,
    Event,
    ExpectedVersion,
    Page,
    StoredEvent,
    StoreResult,
    check_positive,
    check_version,
    expected_number,
    is_storable,
)
from socketio_postgres.events.filter import Filter, conditions_of
from socketio_postgres.events.growth import Growth
from socketio_postgres.events.options import EventStoreKeywords, EventStoreOptions
from socketio_postgres.events.partition import check_partitions
from socketio_postgres.events.stats import EventStoreStats, TableLayout
from socketio_postgres.exceptions import (
    BufferFullError,
    EventNotFoundError,
    ForkedProcessError,
    IncompatibleVersionError,
    LocksNotVisibleError,
    OptionsError,
    StoreClosedError,
)

__all__ = ["EventLog"]

_VERSION: Final = re.compile("[0-9]{1,30}", re.ASCII)

_INDEXES: Final = ("type", "category", "partition")

CLOSE_LIMIT: Final = 10.0
"""Seconds that closing waits for what is being stored."""


class EventLog:
    """Writing and reading: the part of an `EventStore` that needs no subscription."""

    def __init__(self, dsn: str = "", **options: Unpack[EventStoreKeywords]) -> None:
        self.options = EventStoreOptions.of(dsn, options)
        # An invalid DSN or table name raises here, at the call that passes it.
        self._error_handler = Hook("error_handler", self.options.error_handler, self.options.logger)
        self._password = None if self.options.password is None else PasswordCall(self.options.password)
        self._core = self._new_core()
        self._growth = Growth()
        self._pid = os.getpid()
        self._is_open = False
        self._is_closed = False

    @classmethod
    def from_connection_string(cls, dsn: str) -> Self:
        """A store with every option at its default; `NewWithConnectionString` in Go."""
        return cls(dsn)

    @classmethod
    def from_options(cls, options: EventStoreOptions) -> Self:
        """A store with these options; `New` with a `Config` in Go."""
        values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
        return cls(values.pop("dsn"), **values)

    def _new_core(self) -> _core.EventStore:
        return _core.EventStore(dataclasses.replace(self.options, password=self._password))

    def _opened_core(self) -> _core.EventStore:
        if self._is_closed:
            raise StoreClosedError("the event store is closed; create a new one")
        if self._pid != os.getpid():
            if self._is_open:
                raise ForkedProcessError("the event store was started before a fork; create it in the child process")
            self._core, self._pid = self._new_core(), os.getpid()
        if self._password is not None:
            self._password.used()
        self._is_open = True
        return self._core

    @property
    def description(self) -> str:
        """The server that it connects to, without secrets."""
        return self._core.description

    def open(self) -> None:
        """Connect, and find the table or make it, now instead of with the first call.

        A table that is there is left as it is. A new one is made with go-sync-kit's columns, so that a Go process can
        use it, too, but with one notification per statement and only the indexes that are needed.

        Raises:
            SchemaMismatchError: The table is missing and may not be created, or is not fit for events. If its sequence
                is behind its rows, as after a restore of the rows alone, the text has the statement that mends it.
            LocksNotVisibleError: The server does not show the locks of writers; see `enable_serial_order`.
            ConnectionLostError: The server cannot be reached.
            DatabaseError: It refuses.
        """
        core = self._opened_core()
        run(core.open)

    def layout(self) -> TableLayout:
        """The properties of the table when it was last read. Empty before the store is open.

        It is looked at when it is opened, by `enable_guard` and its like, and after conflicts and refusals.
        """
        return cast("TableLayout", self._core.layout() or {})

    # ------------------------------------------------------------------------------------------------- writing

    def store(self, event: Event | Sequence[Event], *, expected: ExpectedVersion = ANY) -> StoreResult:
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
            AggregateLockedError: Another transaction held the aggregate, or the id, for longer than `lock_wait`.
            BufferFullError: Too many calls wait, and `on_full` is `raise`.
            ConnectionLostError: The server was away for longer than `answer_timeout`; `may_be_sent` says whether the
                commit is in doubt.
            StoreClosedError: The store was closed.
        """
        events, checks = self._checked_call(event, expected)
        results = self._store(events, checks)
        return results[-1]

    @staticmethod
    def _checked_call(event: Event | Sequence[Event], expected: ExpectedVersion) -> tuple[list[Event], dict[str, int]]:
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
        return events, checks

    def store_batch(
        self, events: Iterable[Event], *, expected: Mapping[str, ExpectedVersion] | None = None
    ) -> list[StoreResult]:
        """Store events of any aggregates, in this order, all or none.

        Args:
            events: What to store.
            expected: Expected versions by aggregate id. Other aggregates may be at any version.

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
        return self._store(list(events), checks)

    def _store(self, events: list[Event], checks: dict[str, int]) -> list[StoreResult]:
        core, ticket = self._opened_core(), 0

        def store(inbox: _core.Inbox, token: int) -> None:
            nonlocal ticket
            ticket = core.store(events, checks, ticket, inbox, token)

        def wait(inbox: _core.Inbox, token: int) -> None:
            nonlocal ticket
            ticket = core.wait_for_room(ticket, inbox, token)

        positions = None
        try:
            while positions is None:
                try:
                    positions = run(store)
                except BufferFullError:
                    if self.options.on_full == "raise":
                        raise
                    run(wait)
        except BaseException:
            core.give_up(ticket)
            raise
        return [
            StoreResult(version, event.id, at, old) for event, (version, at, old) in zip(events, positions, strict=True)
        ]

    def store_in(self, conn: Any, event: Event | Sequence[Event], *, expected: ExpectedVersion = ANY) -> StoreResult:
        """Store an event, or several of one aggregate, in your own transaction: it commits with your changes, or not.

        See `store_batch_in`.

        Args:
            conn: A connection of psycopg, asyncpg, SQLAlchemy (or its session) or Django, to the same database, with
                your transaction open.
            event: What to store.
            expected: What the aggregate must be like before, as in `store`.

        Returns:
            Where the (last) event will be once you commit.
        """
        events, checks = self._checked_call(event, expected)
        return self._store_in(conn, events, checks)[-1]

    def store_batch_in(
        self, conn: Any, events: Iterable[Event], *, expected: Mapping[str, ExpectedVersion] | None = None
    ) -> list[StoreResult]:
        """Store events of any aggregates in your own transaction.

        They become visible, and are notified, when you commit; a rollback leaves nothing but a gap in the versions.
        They come where their versions are, which are drawn now: from now on until the end of your transaction readers
        of the table wait before these versions, and writers that expect something of these aggregates wait for you
        (all writers do that add to an aggregate you expect something of). So do it late, and end soon.

        Args:
            conn: A connection of psycopg, asyncpg, SQLAlchemy (or its session) or Django, to the same database, with
                your transaction open.
            events: What to store.
            expected: Expected versions, as in `store_batch`. They need READ COMMITTED.

        Returns:
            Where each event will be once you commit.

        Raises:
            WrongExpectedVersionError: An aggregate is not as expected. Your transaction goes on without the events.
            DuplicateEventError: An id is taken by another event. Likewise; but if `version` is 0, another transaction
                was storing the same id at this moment, and yours can only be rolled back.
            OptionsError: It is no such connection, has no transaction open, or not the isolation level.
            SchemaMismatchError: The connection sees another table of this name, or none.
        """
        checks = {
            aggregate_id: number
            for aggregate_id, wanted in (expected or {}).items()
            if (number := expected_number(wanted)) is not None
        }
        return self._store_in(conn, list(events), checks)

    def _store_in(self, conn: Any, events: list[Event], checks: dict[str, int]) -> list[StoreResult]:
        self.open()
        core = self._opened_core()

        def look_again() -> None:
            run(core.look_again)
            core.checked(events)

        return store_in(conn, self.layout(), core.checked(events), checks, self._growth, look_again)

    def import_events(
        self,
        events: Iterable[Event],
        *,
        chunk_size: int = 10_000,
        skip_existing: bool = False,
        progress: Callable[[int], object] | None = None,
    ) -> int:
        """Store very many events by COPY, in memory for two chunks: one is made while the other is stored.

        Each chunk is a transaction of its own, so an error leaves the earlier ones stored. There are no expected
        versions. An id that exists is an error, unless the import skips what exists: then it can be run again after
        an error, and is by itself after a commit in doubt.

        Args:
            events: Any iterable.
            chunk_size: Events in one transaction.
            skip_existing: Leave out events that are stored already, with the same id and content. They go through a
                temporary table, which takes about twice the time.
            progress: Called with the number of events stored so far, after each chunk.

        Returns:
            How many were stored. With `skip_existing`, those of a chunk whose commit was in doubt may be missing.

        Raises:
            DatabaseError: An id exists; `sqlstate` is 23505. Not with `skip_existing`.
            DuplicateEventError: With `skip_existing`: an id is taken by another event.
            AggregateLockedError: Another transaction held an aggregate, or an id, for longer than `lock_wait`.
        """
        importing = self._opened_core().importing(skip_existing)
        total = 0

        def add(chunk: list[Event]) -> None:
            nonlocal total
            stored = run(functools.partial(importing.add, chunk))
            total += stored
            if stored and progress is not None:
                progress(total)

        try:
            for chunk in chunks_of(events, chunk_size):
                add(chunk)
        finally:
            add([])  # the running chunk ends before an error of the source is raised
        return total

    # ------------------------------------------------------------------------------------------------- reading

    def load(
        self,
        since: int = 0,
        filters: Iterable[Filter] = (),
        *,
        types: Iterable[str] | str | None = None,
        limit: int | None = None,
        max_bytes: int | None = None,
        backwards: bool = False,
    ) -> Page:
        """The events there are, your own included.

        Args:
            since: Only later versions. Pass the page's `safe_since` next time, not the last version: a transaction
                that is open may still add a lower one.
            filters: Conditions, all of which must hold.
            types: Shorthand for `Filter("type", …)`.
            limit: At most so many. Default: all, in memory; see `read`.
            max_bytes: At most so many bytes of events (`StoredEvent.size_bytes`), but at least one event. Default: no
                limit. A page that is shorter than `limit` for this reason is not the last one; an empty page is.
            backwards: The last event first.

        Raises:
            IncompatibleVersionError: `since` is no version.
            FilterError: A filter is wrong.
            OptionsError: `max_bytes` is not a positive integer.
            StoreRewoundError: The table ends before `since`.
        """
        check_positive("max_bytes", max_bytes)
        conditions = conditions_of(filters, types)
        events, safe_since = self._load(since, conditions, limit, backwards, may_look=True, max_bytes=max_bytes)
        return Page(events, safe_since)

    def load_by_aggregate(
        self,
        aggregate_id: str,
        since: int = 0,
        filters: Iterable[Filter] = (),
        *,
        types: Iterable[str] | str | None = None,
        limit: int | None = None,
        backwards: bool = False,
    ) -> Page:
        """The events of one aggregate, in order.

        The locks of writers are read only with a `limit`, for whoever goes on page by page. Without one, the page's
        `safe_since` is what is known from earlier reads of this process: at least `since`, and never too high.

        Args:
            aggregate_id: The aggregate.
            since: Only later versions.
            filters: Further conditions, all of which must hold.
            types: Shorthand for `Filter("type", …)`.
            limit: At most so many. Default: all.
            backwards: The last event first.
        """
        conditions = conditions_of([Filter("aggregate_id", aggregate_id), *filters], types)
        events, safe_since = self._load(since, conditions, limit, backwards, may_look=limit is not None)
        return Page(events, safe_since)

    def _load(
        self,
        since: int,
        conditions: list[Any],
        limit: int | None,
        backwards: bool,
        until: int = VERSION_MAX,
        *,
        may_look: bool = False,
        max_bytes: int | None = None,
    ) -> tuple[list[StoredEvent], int]:
        check_version(since, "since")
        most = VERSION_MAX if limit is None else check_version(limit, "limit")
        core = self._opened_core()
        page: tuple[list[StoredEvent], int] = run(
            lambda inbox, token: core.load(since, until, most, backwards, conditions, may_look, max_bytes, inbox, token)
        )
        return page

    def read(
        self,
        since: int = 0,
        filters: Iterable[Filter] = (),
        *,
        types: Iterable[str] | str | None = None,
        backwards: bool = False,
    ) -> Iterator[StoredEvent]:
        """The events there are, one by one, with the memory of a few pages; ends at the end.

        While one page is iterated the next ones are read. A page has at most `batch_size` events, and fewer when they
        are large: about 4 MiB together.

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
            events, _ = run(reading.next)
            if not events:
                return
            # Each is let go of as soon as the caller does: kept to the end of its page, what was decoded would be
            # looked through by the garbage collector again and again.
            events.reverse()
            while events:
                yield events.pop()

    def get(self, event_id: str) -> StoredEvent:
        """The event with this id.

        Raises:
            EventNotFoundError: There is none.
        """
        core = self._opened_core()
        version, events = 0, list[StoredEvent]()
        if is_storable(event_id):
            version = run(lambda inbox, token: core.version_of(event_id, inbox, token))
        if version:
            events, _ = self._load(version - 1, [], 1, False, version)
        # It may have been deleted in between.
        if not events or events[0].id != event_id:
            raise EventNotFoundError(f"there is no event with id {event_id!r}", event_id=event_id)
        return events[0]

    def latest_version(self, *, settled: bool = True, timeout: float | None = None) -> int:
        """The version of the last event, or 0.

        Args:
            settled: Wait until all versions given out by now are final: safe to continue from. That takes as long as
                the transactions that have stored events and are still open. False: the last version there is, as in Go.
            timeout: Seconds to wait at most; None waits for ever.

        Raises:
            OperationTimeoutError: A transaction was open for longer; `blockers` names it.
        """
        core = self._opened_core()
        version: int = run(lambda inbox, token: core.latest_version(settled, inbox, token), timeout)
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

    def _query(self, sql: str, *texts: str | None, timeout: float | None = None) -> list[list[str | None]]:
        core = self._opened_core()
        rows: list[list[str | None]] = run(lambda inbox, token: core.query(sql, list(texts), inbox, token), timeout)
        return rows

    # -------------------------------------------------------------------------------------------- maintenance

    def blockers(self) -> list[Blocker]:
        """Sessions whose open transaction has stored events, so that readers wait for them."""
        self.open()
        rows = self._query(BLOCKERS_SQL, str(self.layout()["sequence"]))
        return [Blocker.of(row[0] or "{}") for row in rows]

    def end_blocker(self, blocker: Blocker) -> bool:
        """End the transaction that `blockers` has named: terminate its session, or roll the prepared one back.

        Its changes are rolled back, as with any lost connection, and readers continue. Readers cannot skip it while it
        is open, because they would miss its events.

        Returns:
            Whether it was still there.

        Raises:
            DatabaseError: The role may not do that; it must be a member of the session's role, or of
                `pg_signal_backend`.
        """
        if blocker.prepared is not None:
            name = blocker.prepared.replace("'", "''")
            if not any(each.prepared == blocker.prepared for each in self.blockers()):
                return False
            self._query(f"ROLLBACK PREPARED '{name}'")
            return True
        # Another transaction of the same session, or another session of the same number, is not meant.
        rows = self._query(
            "SELECT pg_catalog.pg_terminate_backend(pid)::pg_catalog.text FROM pg_catalog.pg_stat_activity"
            " WHERE pid = $1::int"
            " AND pg_catalog.abs(extract(epoch FROM xact_start - $2::pg_catalog.timestamptz)) < 0.001",
            str(blocker.pid),
            None if blocker.transaction_start is None else blocker.transaction_start.isoformat(),
        )
        return bool(rows) and rows[0][0] == "true"

    def enable_serial_order(self) -> None:
        """Let all writers of the table take turns, whatever their language, by a trigger of our own.

        Then versions are committed in their order, and readers need not look at the locks of writers: the fallback
        for servers where those cannot be seen. In return a transaction that has stored events makes every other
        writer wait until it ends. Waits for writers at work; a store that is open already goes on as before.
        Rows with versions of their own making are not covered.

        Raises:
            DatabaseError: The role may not create it.
        """
        core = self._opened_core()
        with contextlib.suppress(LocksNotVisibleError):  # the table was found, or made, and this is the remedy
            run(core.open)
        run(lambda inbox, token: core.migrate("serial", inbox, token))

    def enable_go_notifications(self) -> None:
        """Notify Go processes of events in a table that this package created.

        go-sync-kit adds its trigger itself when it starts; this is for processes that may not. From then on two
        notifications go out for each event, and its limits apply: aggregate ids of at most 56 bytes. A store that is
        open already does not check them. On go-sync-kit's own table there is nothing to add.

        Raises:
            DatabaseError: The role may not create it.
        """
        core = self._opened_core()
        run(core.open)
        if not self.layout()["notifies_go"]:
            run(lambda inbox, token: core.migrate("go_notify", inbox, token))

    def enable_guard(self) -> None:
        """Make expected versions exact for writers of other languages, too, by a trigger of our own.

        Their inserts then wait for one another per aggregate and may deadlock when one transaction touches several
        aggregates; so it is not on by default.

        Raises:
            DatabaseError: The role may not create it.
        """
        core = self._opened_core()
        run(lambda inbox, token: core.migrate("guard", inbox, token))

    def add_index(self, kind: Literal["type", "category", "partition"], *, partitions: int | None = None) -> None:
        """Make an index that readers with a filter use, if it is not there, and wait until it is valid.

        Others store and read meanwhile. It takes about as long as reading the table twice, and waits for transactions
        that are open when it begins. Readers of this process use it at once, those of others when they next look at the
        table. An index that was left invalid, as when the process was ended meanwhile, is made again.

        Each index costs every writer some time; see the documents. Drop it by name when it is no longer wanted: it is
        called after the table, such as `events_type_version`.

        Args:
            kind: "type" for filters by `type`; "category" for filters by `aggregate_prefix` whose prefixes contain a
                hyphen, such as `order-`; "partition" for durable subscriptions with so many `partitions`.
            partitions: With "partition", the number of partitions, as in `durable`.

        Raises:
            OptionsError: An argument is wrong.
            SchemaMismatchError: It is go-sync-kit's table, whose layout stays as it is.
            DatabaseError: The role may not create it, or `statement_timeout` is too short.
        """
        if kind not in _INDEXES:
            reason = f"must be one of {', '.join(_INDEXES)}"
            raise OptionsError(f"invalid kind: {reason} (got {kind!r})", option="kind", value=repr(kind), reason=reason)
        if kind == "partition":
            check_partitions(partitions)
        elif partitions is not None:
            reason = 'goes with kind "partition" only'
            raise OptionsError(
                f"invalid partitions: {reason}", option="partitions", value=repr(partitions), reason=reason
            )
        core = self._opened_core()
        run(lambda inbox, token: core.add_index(kind, partitions or 1, inbox, token))

    def stats(self) -> EventStoreStats:
        """Counters: those of Go's `Stats` for the pool, and of writing, reading and listening.

        Empty in a forked child before it uses the store: those of its parent are not its own.
        """
        return cast("EventStoreStats", self._core.stats() if self._pid == os.getpid() else {})

    def close(self) -> None:
        """Finish what is being stored or waits, end the subscriptions, disconnect; takes at most about ten seconds.

        Calls that are not finished then fail. Whoever calls it meanwhile waits for the end, too.
        """
        self._is_closed = True
        if self._is_open and self._pid == os.getpid():
            core = self._core
            run(lambda inbox, token: core.close(CLOSE_LIMIT, inbox, token))

    def __enter__(self) -> Self:
        try:
            self.open()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _report(self, error: Exception, what: str) -> None:
        self.options.logger.error("%s: %s", what, error, exc_info=error)
        self._error_handler(error)
