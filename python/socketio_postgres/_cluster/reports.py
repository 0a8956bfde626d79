"""What a node tells of failures: in the log, and to the functions of the application that want to know."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

from socketio_postgres._bus.gap import GapInfo
from socketio_postgres._bus.messages import Message
from socketio_postgres.exceptions import (
    ClosedError,
    CommitInDoubtError,
    ConnectionLostError,
    DatabaseError,
    ForkedProcessError,
    OperationTimeoutError,
    SelfTestError,
    SocketIOPostgresError,
)

__all__ = ["Reports", "explained"]

TOLD_COUNT: Final = 256
"""Kinds of failures that are remembered, to tell them once."""

T = TypeVar("T")


def explained(what: str, error: Exception) -> Exception:
    """An error of the core, with its subject."""
    return type(error)(f"{what} cannot travel: {error}", **vars(error))


def _is_passing(error: Exception) -> bool:
    """Whether it is about a connection that is opened again until it works, so that nothing is lost yet."""
    if isinstance(error, DatabaseError) and not isinstance(error, ConnectionLostError):
        # Connection exception, insufficient resources, operator intervention; a standby may be promoted.
        return error.sqlstate[:2] in {"08", "53", "57"} or error.sqlstate == "25006"
    return isinstance(error, (ConnectionLostError, OperationTimeoutError, SelfTestError)) and not isinstance(
        error, CommitInDoubtError
    )


class Reports:
    """Tells of failures.

    Args:
        log: The logger.
        where: What the node is connected to, without secrets.
        error_handler: Told every failure.
        on_gap: Told every gap.
    """

    def __init__(
        self,
        log: logging.Logger,
        where: str,
        error_handler: Callable[[Exception], None],
        on_gap: Callable[[GapInfo], None],
    ) -> None:
        self.log = log
        self.error_handler = error_handler
        self._where = where
        self._on_gap = on_gap
        self._told: set[tuple[object, ...]] = set()
        self._lock = threading.Lock()

    def failure(self, error: Exception) -> None:
        """Something failed in the background."""
        self._say(logging.WARNING if _is_passing(error) else logging.ERROR, "%s: %s", self._where, error)
        self.error_handler(error)

    def failure_once(self, what: str, error: Exception) -> None:
        """The same, for what would otherwise be told again with every request."""
        kind = (what, type(error))
        with self._lock:
            if kind in self._told:
                return
            if len(self._told) >= TOLD_COUNT:
                self._told.clear()
            self._told.add(kind)
        if isinstance(error, SocketIOPostgresError):
            self.failure(explained(what, error))
        else:
            self.raised(what, error)

    def gap(self, gap: GapInfo) -> None:
        """Messages will not come."""
        self._say(logging.WARNING, "%s: %s", self._where, gap)
        self._on_gap(gap)

    def bad_message(self, message: Message, error: Exception) -> None:
        """A message could not be applied."""
        what = "a message of server %s could not be applied: %r"
        self._say(logging.ERROR, what, message.uid, message, exc_info=error)
        self.error_handler(error)

    def raised(self, what: str, error: Exception) -> None:
        """A function raised, of the application's in most cases."""
        self._say(logging.ERROR, "%s raised: %r", what, error, exc_info=error)
        self.error_handler(error)

    def not_joined(self, namespace: str, error: Exception) -> None:
        """A namespace is served without the other servers for now."""
        why = str(error) or "PostgreSQL does not answer"
        self.log.warning("namespace %s is not connected to other servers yet: %s", namespace, why)

    def guarded(self, what: str, function: Callable[..., T], *args: Any) -> T | None:
        """Call a function that must not end the calling loop. An exception is reported, and the result is None."""
        try:
            return function(*args)
        except (ClosedError, ForkedProcessError):
            raise  # the loop is to end
        except Exception as error:  # noqa: BLE001  (a user's logger, for example)
            self.raised(what, error)
            return None

    def _say(self, level: int, text: str, *args: object, exc_info: Exception | None = None) -> None:
        """Log a failure. A logger of the application's that raises must not make two of one, or end what reports."""
        with contextlib.suppress(Exception):
            self.log.log(level, text, *args, exc_info=exc_info)
