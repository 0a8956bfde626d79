"""Callbacks of emits, each waiting for the first acknowledgement, of whichever client on whichever server.

Who is a member of the cluster does not matter: an acknowledgement may come from a server that was silent for long, or
that nobody knew when the event was emitted.
"""

from __future__ import annotations

import collections
import dataclasses
import threading
from collections.abc import Callable
from typing import Any, Final

__all__ = ["CALLBACK_COUNT", "Callbacks"]

CALLBACK_COUNT: Final = 100_000
"""Callbacks that may wait at once. Beyond it the oldest are forgotten, and the log says so."""


@dataclasses.dataclass(frozen=True)
class Waiting:
    """One callback; see `Callbacks.add`."""

    namespace: str
    callback: Callable[..., Any]
    expires_at: float


class Callbacks:
    """Callbacks by the id of their request, for any thread. All of them wait equally long, so the oldest expires first.

    Args:
        limit: How many may wait at once.

    Attributes:
        forgotten: How many had to make room since `take_forgotten`.
    """

    def __init__(self, limit: int = CALLBACK_COUNT) -> None:
        self.limit = limit
        self.forgotten = 0
        self._waiting: dict[str, Waiting] = {}
        self._counts: collections.Counter[str] = collections.Counter()
        self._lock = threading.RLock()

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def add(self, request_id: str, namespace: str, callback: Callable[..., Any], expires_at: float) -> None:
        """Wait for an acknowledgement until `expires_at`."""
        with self._lock:
            self._waiting[request_id] = Waiting(namespace, callback, expires_at)
            self._counts[namespace] += 1
            while len(self._waiting) > self.limit:
                self.take(next(iter(self._waiting)))
                self.forgotten += 1

    def take(self, request_id: str) -> Callable[..., Any] | None:
        """The callback of a request, at the first call; None at later ones."""
        with self._lock:
            waiting = self._waiting.pop(request_id, None)
            if waiting is None:
                return None
            self._counts[waiting.namespace] -= 1
            if not self._counts[waiting.namespace]:
                del self._counts[waiting.namespace]
            return waiting.callback

    def expire(self, now: float) -> None:
        """Forget callbacks that received no answer in time."""
        with self._lock:
            while self._waiting:
                oldest = next(iter(self._waiting))
                if self._waiting[oldest].expires_at > now:
                    return
                self.take(oldest)

    def take_forgotten(self) -> int:
        """How many had to make room since this was asked last."""
        with self._lock:
            forgotten, self.forgotten = self.forgotten, 0
            return forgotten

    def is_waiting_in(self, namespace: str) -> bool:
        """Whether one waits in a namespace."""
        return namespace in self._counts
