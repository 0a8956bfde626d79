"""`AsyncPostgresClient`: LISTEN, NOTIFY and the attachment table, without the cluster protocol."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any, Final, cast

from socketio_postgres import _core
from socketio_postgres._bus.bus import Bus
from socketio_postgres._bus.gap import GapHandler, GapInfo
from socketio_postgres._bus.hook import AsyncHook
from socketio_postgres._bus.notification import Notification
from socketio_postgres._bus.options import BusKeywords, BusOptions
from socketio_postgres._bus.stats import BusStats
from socketio_postgres._typing import Self, Unpack
from socketio_postgres.exceptions import ClosedError, OperationTimeoutError

__all__ = ["AsyncPostgresClient"]

CLOSE_LIMIT: Final = 5.0

LISTEN_LIMIT: Final = 30.0
"""Seconds until `listen` says that PostgreSQL cannot be reached."""

log: Final = logging.getLogger("socketio_postgres")


class AsyncPostgresClient:
    """LISTEN and NOTIFY, and the attachment table.

    A lost listening connection is opened again, without a limit on attempts. The client then listens to the same
    channels, and calls `on_gap`. Notifications arrive in commit order; of several tasks that wait for one, each gets
    another. A notification that is not UTF-8, which only a database with the encoding SQL_ASCII accepts, is skipped and
    reported to `error_handler` as a `DecodeError`. The client connects with its first call.

        async with AsyncPostgresClient(dsn) as client:
            await client.listen("jobs")
            await client.notify("jobs", "1")
            async for notification in client:
                ...

    Args:
        dsn: Connection string or URL as libpq reads it.
        error_handler: Called with every background failure (an exception) after it is logged; a function or a
            coroutine function. Exceptions that it raises are logged.
        on_gap: Called with a `GapInfo` when notifications are lost: once the client listens again after its connection
            was lost, and when `receive_buffer_bytes` of notifications wait. A function or a coroutine function, as
            `error_handler`.
        options: As in `BusOptions`.

    Raises:
        OptionsError: The DSN or an option is wrong.
    """

    def __init__(
        self,
        dsn: str = "",
        *,
        error_handler: Callable[[Exception], object] | None = None,
        on_gap: GapHandler | None = None,
        **options: Unpack[BusKeywords],
    ) -> None:
        self._bus = Bus(BusOptions.of(dsn, options), uid=str, is_raw=True)
        self._error_handler = AsyncHook("error_handler", error_handler, log)
        self._on_gap = AsyncHook("on_gap", on_gap, log, self._error_handler)
        self._taken: list[tuple[int, int, Any]] = []

    async def start(self) -> None:
        """Connect now instead of with the first call.

        Raises:
            ConnectionLostError: PostgreSQL cannot be reached.
            DatabaseError: PostgreSQL refuses: a wrong password or database, or a standby.
        """
        core = self._bus.core
        await self._bus.call(lambda inbox, token: core.start_publisher(False, inbox, token))

    async def listen(self, channel: str) -> None:
        """Listen to a channel. Returns once LISTEN is active.

        During an outage the call waits until the connection is open again.

        Raises:
            OptionsError: The name is empty or contains a NUL.
            PayloadTooLargeError: The name has more than 63 bytes, which LISTEN would truncate silently.
            DatabaseError: PostgreSQL refuses the first connection: a wrong password or database, or a standby. Or the
                encoding of the database lacks a character of the name (`sqlstate` 22P05).
            OperationTimeoutError: LISTEN is not active after 30 seconds. The client still listens to the channel once
                PostgreSQL can be reached; `unlisten` undoes that.
        """
        core = self._bus.core
        await self._bus.call(lambda inbox, token: core.listen(channel, inbox, token), LISTEN_LIMIT)

    async def unlisten(self, channel: str) -> None:
        """Stop listening to a channel."""
        core = self._bus.core
        await self._bus.call(lambda inbox, token: core.unlisten(channel, inbox, token))

    async def notify(self, channel: str, payload: str = "") -> None:
        """Send a notification. Returns once it is committed.

        Equal notifications that are sent at the same time all arrive: they are committed in separate transactions,
        because PostgreSQL merges equal notifications of one transaction.

        Raises:
            PayloadTooLargeError: The payload has more than 7999 bytes, or the channel name more than 63.
            EncodeError: The payload contains a NUL, which PostgreSQL cannot store.
            DatabaseError: PostgreSQL refuses, for example because the encoding of the database lacks a character of the
                payload or of the channel name (`sqlstate` 22P05).
            ConnectionLostError: The connection was lost. `may_be_sent` says whether the commit is in doubt.
        """
        await self._bus.notify(channel, payload)

    async def wait_for_notification(self, timeout: float | None = None) -> Notification:
        """The next notification.

        Args:
            timeout: Maximum number of seconds to wait. Default: no limit.

        Raises:
            OperationTimeoutError: No notification arrived in time.
            ClosedError: The client was closed, and all notifications that had arrived were returned.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        has_waited = False
        while True:
            inbox = self._bus.last_inbox
            for _, kind, value in self._take(inbox):
                if kind == _core.NOTIFICATION:
                    return Notification(*value)
                self._tell(kind, value)
                break
            else:
                if inbox.is_closed:
                    raise ClosedError(f"the connection to {self._bus.description} is closed; create a new client")
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise OperationTimeoutError(f"no notification within {timeout} s")
                await self._bus.readable(inbox, left, again=has_waited)
                has_waited = True

    def _take(self, inbox: _core.Inbox) -> list[tuple[int, int, Any]]:
        """At most one item. An item that Ctrl-C interrupts on its way here is kept for the next call."""
        taken = self._taken or inbox.drain(1, self._taken)
        return [taken.pop(0)] if taken else []

    def _tell(self, kind: int, value: Any) -> None:
        if kind == _core.FAILURE:
            log.error("%s: %s", self._bus.description, value)
            self._error_handler(value)
        elif kind == _core.GAP:
            gap = GapInfo(*value)
            log.warning("%s: %s", self._bus.description, gap)
            self._on_gap(gap)

    def __aiter__(self) -> AsyncIterator[Notification]:
        return self

    async def __anext__(self) -> Notification:
        try:
            return await self.wait_for_notification()
        except ClosedError:
            raise StopAsyncIteration from None

    async def ensure_table(self) -> None:
        """Create the attachment table if it is missing.

        Raises:
            DatabaseError: The table is missing and may not be created, or has other columns. The hint contains the DDL.
        """
        await self._bus.call(self._bus.core.ensure_table)

    async def insert_attachment(self, body: bytes) -> int:
        """Store a body, and return its id.

        Raises:
            CommitInDoubtError: The connection was lost, or fell silent, during the commit.
        """
        core = self._bus.core
        attachment_id: int = await self._bus.call(lambda inbox, token: core.insert_attachment(body, inbox, token))
        return attachment_id

    async def get_attachment(self, attachment_id: int) -> bytes | None:
        """The body with an id, or None."""
        core = self._bus.core
        body: bytes | None = await self._bus.call(lambda inbox, token: core.get_attachment(attachment_id, inbox, token))
        return body

    async def cleanup_attachments(self, age: float = 30.0) -> int:
        """Delete bodies older than `age` seconds, and return their number.

        The number is also 0 while another session is deleting.
        """
        core = self._bus.core
        deleted: int = await self._bus.call(lambda inbox, token: core.expire_attachments(age, inbox, token))
        return deleted

    def stats(self) -> BusStats:
        """Counters since the first use in this process, and the current state. Empty before the first use."""
        return cast("BusStats", self._bus.stats())

    async def close(self) -> None:
        """Disconnect. An iteration still yields the notifications that had arrived, and then ends."""
        await self._bus.close(CLOSE_LIMIT)

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
