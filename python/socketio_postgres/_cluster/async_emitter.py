"""`AsyncEmitter`: emit to the cluster from any asyncio program, without a server."""

from __future__ import annotations

import itertools
from collections.abc import Coroutine, Iterator
from types import TracebackType
from typing import Any, Final, cast

from socketio_postgres._bus.bus import Bus
from socketio_postgres._bus.messages import EMITTER_UID, Message
from socketio_postgres._bus.options import BusKeywords, BusOptions
from socketio_postgres._bus.primitives import IS_ASYNC
from socketio_postgres._bus.stats import BusStats
from socketio_postgres._cluster.async_in_transaction import AsyncTransactions, Place
from socketio_postgres._cluster.broadcast_operator import Namespace, Target
from socketio_postgres._cluster.framer import LONGEST, Framer
from socketio_postgres._cluster.sql_script import SCHEMA, install_script, remove_script
from socketio_postgres._typing import Self, Unpack

__all__ = ["AsyncEmitter"]

CLOSE_LIMIT: Final = 5.0
"""Seconds that closing waits for buffered messages."""

CHUNK: Final = 256
"""Events of `emit_many` that are handed to the core at once."""


class AsyncEmitter(Namespace[Coroutine[Any, Any, None]]):
    """Emit to the clients of all servers of the cluster. Each call returns when its message is committed.

    Events of one task arrive in the order of its calls. Many tasks may share one emitter: messages that wait while a
    commit is in flight are committed together. An emitter may be used from several event loops, one after the other.

    Args:
        dsn: Connection string or URL as libpq reads it.
        options: As in `BusOptions`.

    Raises:
        OptionsError: The DSN or an option is wrong.
    """

    def __init__(self, dsn: str = "", **options: Unpack[BusKeywords]) -> None:
        self._bus = Bus(BusOptions.of(dsn, options), uid=lambda: EMITTER_UID)
        self._transactions = AsyncTransactions(self._bus, self._find_place)
        super().__init__(self)

    async def _publish(self, message: Message, target: Target) -> None:
        if target.rooms != ():
            await self._bus.publish(message)

    async def _publish_many(self, messages: Iterator[Message], target: Target) -> None:
        if target.rooms != ():
            while chunk := list(itertools.islice(messages, CHUNK)):
                await self._bus.publish_many(chunk)

    @property
    def _framer(self) -> Framer:
        return self._transactions.framer

    async def _find_place(self, needs_table: bool) -> Place:
        core = self._bus.core
        place: Place = await self._bus.call(lambda inbox, token: core.find_place(needs_table, inbox, token))
        return place

    def in_transaction(self, conn: Any, *, longest: float = LONGEST) -> Namespace[Coroutine[Any, Any, None]]:
        """The start of a chain whose messages are sent on a connection of yours, in the transaction that is open there.

            async with conn.transaction():
                await conn.execute("UPDATE orders SET paid = true WHERE id = %s", (7,))
                await io.in_transaction(conn).to("order-7").emit("paid", {"id": 7})

        Clients of all servers, also of this one, receive what was emitted if and only if the transaction commits, in
        the order of the calls and of the commits. What a rollback to a savepoint undoes is not sent. There is no order
        between these messages and others of this object. See `docs/emit-with-your-data.md`.

        Args:
            conn: An asyncio connection of psycopg or asyncpg, an `AsyncConnection` or `AsyncSession` of SQLAlchemy. It
                must lead to the database of this object's DSN.
            longest: Seconds that the transaction may stay open after it has emitted something large or binary. The
                row that holds it lives that much longer. Default 60.

        Raises:
            OptionsError: `conn` is no such connection, or a pool. The methods of the chain raise it, too, before
                anything is sent: no transaction is open, or the connection leads to another database.
        """
        return self._transactions.on(conn, longest)

    async def start(self) -> None:
        """Connect now instead of with the first emit.

        Raises:
            ConnectionLostError: PostgreSQL cannot be reached.
            DatabaseError: PostgreSQL refuses: a wrong password or database, or a standby.
        """
        core = self._bus.core
        await self._bus.call(lambda inbox, token: core.start_publisher(False, inbox, token))

    async def flush(self, timeout: float | None = None) -> None:
        """Wait until everything emitted before, by any task, is committed or failed.

        Args:
            timeout: Maximum number of seconds to wait. Default: as long as `buffer_age` allows.

        Raises:
            SocketIOPostgresError: The first failure since the last flush. Its `failed_count` is the number of messages
                that failed. A `CommitInDoubtError` means that the outcome is unknown.
            OperationTimeoutError: Some messages were not committed in time. They may still be.
        """
        try:
            await self._bus.flush(timeout)
        finally:
            self._bus.take_failures()  # told by the exception just now

    async def install_sql(self, schema: str = SCHEMA) -> None:
        """Install the SQL functions, or bring older ones to this version: `SELECT socketio.emit('event', '[1]')`.

        Creates the schema, and the attachment table if it is missing. What the functions send has the channel prefix,
        the attachment table, the payload threshold and the signing key of this emitter. The role owns the functions
        afterwards, and others may execute them once they are granted to do so (`docs/emit-from-sql.md`). May be called
        again, also by several processes at once.

        Args:
            schema: Name of letters, digits and `_`. Default `socketio`.

        Raises:
            OptionsError: The schema is no such name.
            DatabaseError: PostgreSQL refuses: the role may not create a schema, or a newer version is installed
                (`sqlstate` 55000). Nothing has changed.
        """
        core = self._bus.core
        script = install_script(self._bus.options, core.table_name, schema)
        await self._bus.call(core.ensure_table)
        await self._bus.call(lambda inbox, token: core.migrate(script, inbox, token))

    async def uninstall_sql(self, schema: str = SCHEMA) -> None:
        """Remove the SQL functions and their schema. Nothing happens if they are not installed.

        Args:
            schema: As in `install_sql`.

        Raises:
            DatabaseError: A trigger uses one of the functions, or the schema holds something else (`sqlstate` 2BP01).
                Nothing has changed.
        """
        core, script = self._bus.core, remove_script(schema)
        await self._bus.call(lambda inbox, token: core.migrate(script, inbox, token))

    def stats(self) -> BusStats:
        """Counters since the first use in this process, and the current state. Empty before the first use."""
        return cast("BusStats", self._bus.stats())

    async def close(self) -> None:
        """Commit the buffer and disconnect."""
        if IS_ASYNC:
            await self._bus.close(CLOSE_LIMIT)
        elif not self._bus.is_closed:
            try:
                await self._bus.flush(CLOSE_LIMIT)
            finally:
                await self._bus.close(0.0)

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
