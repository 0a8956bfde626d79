"""`PostgresClient`: LISTEN, NOTIFY and the attachment table, without the cluster protocol, for threads."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Final

from socketio_postgres import _core
from socketio_postgres._bus.async_client import LISTEN_LIMIT, Notification
from socketio_postgres._bus.bus import Bus
from socketio_postgres._bus.gap import GapHandler, GapInfo
from socketio_postgres._bus.handover import SIGNAL_INTERVAL
from socketio_postgres._bus.hook import Hook
from socketio_postgres._bus.options import BusKeywords, BusOptions
from socketio_postgres._typing import Self, Unpack
from socketio_postgres.exceptions import ClosedError, OperationTimeoutError

__all__ = ["PostgresClient"]

CLOSE_LIMIT: Final = 5.0

log: Final = logging.getLogger("socketio_postgres")


class PostgresClient:
    """Blocking form of `AsyncPostgresClient`; any thread may call it, one at a time waits for notifications.

    `error_handler` and `on_gap` are no coroutine functions here; they run in a thread of their own.
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
        self._error_handler = Hook("error_handler", error_handler, log)
        self._on_gap = Hook("on_gap", on_gap, log, self._error_handler)
        self._taken: list[tuple[int, int, Any]] = []

    def start(self) -> None:
        """Blocking form of `AsyncPostgresClient.start`."""
        core = self._bus.core
        self._bus.call_blocking(lambda inbox, token: core.start_publisher(False, inbox, token))

    def listen(self, channel: str) -> None:
        """Blocking form of `AsyncPostgresClient.listen`."""
        core = self._bus.core
        self._bus.call_blocking(lambda inbox, token: core.listen(channel, inbox, token), LISTEN_LIMIT)

    def unlisten(self, channel: str) -> None:
        """Blocking form of `AsyncPostgresClient.unlisten`."""
        core = self._bus.core
        self._bus.call_blocking(lambda inbox, token: core.unlisten(channel, inbox, token))

    def notify(self, channel: str, payload: str = "") -> None:
        """Blocking form of `AsyncPostgresClient.notify`."""
        self._bus.notify_blocking(channel, payload)

    def wait_for_notification(self, timeout: float | None = None) -> Notification:
        """Blocking form of `AsyncPostgresClient.wait_for_notification`."""
        deadline = None if timeout is None else time.monotonic() + timeout
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
                left = SIGNAL_INTERVAL if deadline is None else deadline - time.monotonic()
                if left <= 0:
                    raise OperationTimeoutError(f"no notification within {timeout} s")
                self._bus.blocking.wait(inbox, min(left, SIGNAL_INTERVAL))

    def _take(self, inbox: _core.Inbox) -> list[tuple[int, int, Any]]:
        """At most one item. One that Ctrl-C finds on its way here is kept for the next call."""
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

    def __iter__(self) -> Iterator[Notification]:
        return self

    def __next__(self) -> Notification:
        try:
            return self.wait_for_notification()
        except ClosedError:
            raise StopIteration from None

    def ensure_table(self) -> None:
        """Blocking form of `AsyncPostgresClient.ensure_table`."""
        self._bus.call_blocking(self._bus.core.ensure_table)

    def insert_attachment(self, body: bytes) -> int:
        """Blocking form of `AsyncPostgresClient.insert_attachment`."""
        core = self._bus.core
        attachment_id: int = self._bus.call_blocking(lambda inbox, token: core.insert_attachment(body, inbox, token))
        return attachment_id

    def get_attachment(self, attachment_id: int) -> bytes | None:
        """Blocking form of `AsyncPostgresClient.get_attachment`."""
        core = self._bus.core
        body: bytes | None = self._bus.call_blocking(
            lambda inbox, token: core.get_attachment(attachment_id, inbox, token)
        )
        return body

    def cleanup_attachments(self, age: float = 30.0) -> int:
        """Blocking form of `AsyncPostgresClient.cleanup_attachments`."""
        core = self._bus.core
        deleted: int = self._bus.call_blocking(lambda inbox, token: core.expire_attachments(age, inbox, token))
        return deleted

    def stats(self) -> dict[str, Any]:
        """Counters since the first use in this process, and how things are now; empty before it."""
        return self._bus.stats()

    def close(self) -> None:
        """Blocking form of `AsyncPostgresClient.close`."""
        self._bus.close_blocking(CLOSE_LIMIT)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
