# Generated from async_in_transaction.py by scripts/async_to_sync.py; edit that file.
"""`in_transaction`: publishing on a connection of the user's own, in their transaction."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeAlias

from socketio_postgres import _core
from socketio_postgres._bus._sync.statements import has_transaction, rows_on
from socketio_postgres._bus.bus import Bus
from socketio_postgres._bus.drivers import bad_connection, check_kind
from socketio_postgres._bus.messages import Message
from socketio_postgres._cluster.broadcast_operator import Namespace, Target
from socketio_postgres._cluster.framer import Frame, Framer, checked_longest, stored_sql

__all__ = ["Transactions"]

Place: TypeAlias = tuple[str, str | None]
"""Which database a connection leads to, and the attachment table there once it was needed."""

CHUNK: Final = 256
"""Messages of `emit_many` in one statement."""

# Nothing is sent where the connection leads to another database, so nothing has to be known about it beforehand.
_HERE: Final = f"(SELECT {_core.PLACE_SQL} AS here) AS place"

_ASK: Final = f"SELECT here, here = %s FROM {_HERE}"

_ONE: Final = f"""
SELECT here, CASE WHEN here = %s THEN CAST(pg_catalog.pg_notify(%s, %s) AS pg_catalog.text) END FROM {_HERE}
"""

# One parameter, a JSON text, carries all messages: every library and driver can send it.
_MANY: Final = f"""
SELECT here, CASE WHEN here = %s THEN (
    SELECT CAST(pg_catalog.count(pg_catalog.pg_notify(channel, payload)) AS pg_catalog.text)
    FROM (SELECT channel, payload
        FROM pg_catalog.json_to_recordset(CAST(CAST(%s AS pg_catalog.text) AS pg_catalog.json))
            AS m(n int, channel pg_catalog.text, payload pg_catalog.text) ORDER BY n) AS ordered) END
FROM {_HERE}
"""


class Transactions:
    """What one emitter or manager sends on connections of the user's own.

    Args:
        bus: Its bus; nothing is sent on that.
        find_place: Asks where its own connection leads, and for the attachment table if that is needed.
    """

    def __init__(self, bus: Bus, find_place: Callable[[bool], Place]) -> None:
        self.framer = Framer(bus.options)
        self.check_open = bus.check_open
        self._find_place = find_place
        self._place: Place | None = None

    def on(self, conn: Any, longest: float) -> Namespace[None]:
        """The start of a chain on a connection.

        Raises:
            OptionsError: It is no connection that will do, or `longest` is no number of seconds.
        """
        check_kind(conn, is_async=False)
        return Namespace(Transaction(self, conn, checked_longest(longest)))

    def place(self, *, needs_table: bool = False, again: bool = False) -> Place:
        """Where this object's own connection leads, as last asked."""
        place = self._place
        if again or place is None or (needs_table and place[1] is None):
            place = self._place = self._find_place(needs_table)
        return place

    def run_here(self, conn: Any, sql: str, values: Sequence[str]) -> None:
        """Run a statement whose first parameter and first column are the database.

        Raises:
            OptionsError: The connection leads to another one. Nothing was sent.
        """
        known, _ = self.place()
        here = rows_on(conn, sql, [known, *values])[0][0]
        if here == known:
            return
        # The server may have been restarted, or another one may have taken its place, since this was asked.
        known, _ = self.place(again=True)
        if here != known or rows_on(conn, sql, [known, *values])[0][0] != known:
            raise bad_connection(
                "it leads to another database than the emitter's or manager's own DSN, where no server listens;"
                " give both the same server and database"
            )

    def store(self, conn: Any, frames: Sequence[Frame], longest: float) -> None:
        """Send attachments.

        Raises:
            OptionsError: As `run_here`.
        """
        self.run_here(conn, _ASK, [])
        _, table = self.place(needs_table=True)
        try:
            for channel, text, body in frames:
                rows_on(conn, stored_sql(str(table), longest), [body, channel, text])
        except BaseException:
            self._place = None  # the table may be another one now
            raise


class Transaction:
    """The sender of a chain.

    Args:
        transactions: Whose messages they are.
        conn: Connection of the user's own.
        longest: Seconds that attachments are to outlive this.
    """

    def __init__(self, transactions: Transactions, conn: Any, longest: float) -> None:
        self._transactions = transactions
        self._conn = conn
        self._longest = longest
        self._framer = transactions.framer

    def _publish(self, message: Message, target: Target) -> None:
        self._publish_many(iter([message]), target)

    def _publish_many(self, messages: Iterator[Message], target: Target) -> None:
        self._transactions.check_open()
        if not has_transaction(self._conn):
            raise bad_connection("open a transaction on it first, or switch autocommit off")
        if target.rooms == ():
            return
        while chunk := list(itertools.islice(messages, CHUNK)):
            frames = [self._framer.frame(message) for message in chunk]
            for is_stored, group in itertools.groupby(frames, lambda frame: frame.body is not None):
                if is_stored:
                    self._transactions.store(self._conn, list(group), self._longest)
                else:
                    self._notify(list(group))

    def _notify(self, frames: list[Frame]) -> None:
        if len(frames) == 1:
            ((channel, text, _),) = frames
            self._transactions.run_here(self._conn, _ONE, [channel, text])
            return
        given = [{"n": n, "channel": frame.channel, "payload": frame.text} for n, frame in enumerate(frames)]
        self._transactions.run_here(self._conn, _MANY, [json.dumps(given)])
