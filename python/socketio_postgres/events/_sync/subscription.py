# Generated from async_subscription.py by scripts/async_to_sync.py; edit that file.
"""`Subscription`: events as they were, then as they come."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Final, TypeAlias

from socketio_postgres import _core
from socketio_postgres._bus.primitives import run
from socketio_postgres._typing import Self
from socketio_postgres.events._sync.wait_for_version import wait_for_version
from socketio_postgres.events.event import (
    END,
    START,
    AfterVersion,
    CaughtUp,
    Checkpoint,
    ControlItem,
    FellBehind,
    Reconnected,
    StoredEvent,
    StoreResult,
    check_version,
)
from socketio_postgres.exceptions import ClosedError, OperationTimeoutError, StoreClosedError

__all__ = ["Subscription"]

Opener: TypeAlias = Callable[[], _core.Subscription]

PATIENCE: Final = 5.0
"""Seconds after which the core answers even when it has nothing: time to see whether something holds readers up."""


class Subscription:
    """An endless iterator of stored events: first those there are, then each new one as it is committed.

    Versions increase strictly; each matching event comes once, whatever happens to the connections meanwhile. While
    the subscriber is busy nothing is fetched but the batch it is in, and nobody else is slowed down. One thread at a
    time iterates. Close it with `with`, `close()`, or by leaving the last reference to it.

    Made by `EventStore.subscribe`.
    """

    def __init__(
        self,
        opener: Opener,
        *,
        after: AfterVersion,
        prefetch: int,
        on_idle: Callable[[], None],
        patience: float = PATIENCE,
        after_id: str | None = None,
    ) -> None:
        self._opener = opener
        self._after_id = after_id
        self._after = None if after is END else 0 if after is START else check_version(after, "after")
        self._prefetch = prefetch
        self._on_idle = on_idle
        self._patience = patience
        self._core: _core.Subscription | None = None
        self._items: collections.deque[StoredEvent | ControlItem] = collections.deque()
        self._fetched = 0
        self._fetched_id: str | None = None
        self._position: int | None = self._after
        self._position_id = after_id
        self._handled: int | None = None
        self._reconnects = 0
        self._is_caught_up = False
        self._is_closed = False

    @property
    def position(self) -> int | None:
        """Version up to which all events were delivered; None until `END` was looked up."""
        return self._position

    @property
    def position_id(self) -> str | None:
        """Id of the event at `position`; None while it is not known.

        Whoever keeps both can tell, when going on later, whether the table still has the history that was read.
        """
        return self._position_id

    @property
    def handled(self) -> int | None:
        """Version up to which the subscriber has processed events; None at first."""
        return self._handled

    def wait_for(self, version: StoreResult | int, timeout: float | None = None) -> None:
        """Wait until the subscriber has processed all events up to a version.

        For another thread than the one that iterates. Events that do not match the filter need no processing.

        Args:
            version: A version, or the result of `store`.
            timeout: Maximum number of seconds to wait. Default: no limit.

        Raises:
            OperationTimeoutError: The version was not reached in time.
            ClosedError: The subscription was closed.
        """
        wanted = check_version(version.version if isinstance(version, StoreResult) else version)

        def look() -> int:
            if self._is_closed:
                raise ClosedError("the subscription was closed before it came so far")
            if self._core is not None:
                self._core.nudge()  # so that progress without events is told at once
            return -1 if self._handled is None else self._handled

        wait_for_version(look, wanted, timeout, "the subscription")

    @property
    def is_caught_up(self) -> bool:
        """Whether all events that existed at the last look have been delivered."""
        return self._is_caught_up and not self._items

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._is_closed

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> StoredEvent:
        while True:
            item = self._next_item(reports_progress=False, timeout=None)
            if isinstance(item, StoredEvent):
                return item

    def next(self, timeout: float | None = None) -> StoredEvent:
        """The next event.

        Args:
            timeout: Maximum number of seconds to wait. Default: no limit.

        Raises:
            OperationTimeoutError: No event arrived in time.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
            item = self._next_item(reports_progress=False, timeout=left)
            if isinstance(item, StoredEvent):
                return item

    def next_or_idle(self, patience: float | None = None, *, heeded: int | None = None) -> StoredEvent | None:
        """The next event, or None if there was none for a while. `position` may have moved nevertheless.

        Args:
            patience: Maximum number of seconds to wait. Default: that of the subscription.
            heeded: How many changes of durable subscriptions the caller has heeded; it waits no longer than until there
                are others. Default: it does not matter.
        """
        self._handled = self._position
        if not self._items:
            limit = self._patience if patience is None else min(patience, self._patience)
            self._fetch(limit, heeded=heeded)
        while self._items:
            item = self._take()
            if isinstance(item, StoredEvent):
                return item
        if self._is_closed:
            raise StopIteration
        return None

    def items(self) -> Iterator[StoredEvent | ControlItem]:
        """Events, and between them `CaughtUp`, `FellBehind`, `Checkpoint` and `Reconnected`."""
        while not self._is_closed:
            try:
                item = self._next_item(reports_progress=True, timeout=None)
            except StopIteration:
                return
            yield item

    def _next_item(self, *, reports_progress: bool, timeout: float | None) -> StoredEvent | ControlItem:
        deadline = None if timeout is None else time.monotonic() + timeout
        self._handled = self._position
        while not self._items:
            if self._is_closed:
                raise StopIteration
            patience = self._patience if deadline is None else min(deadline - time.monotonic(), self._patience)
            tells_caught_up = not self._is_caught_up
            self._fetch(max(patience, 0.0), reports_progress=reports_progress, tells_caught_up=tells_caught_up)
            if not self._items and deadline is not None and time.monotonic() >= deadline:
                raise OperationTimeoutError(f"no event within {timeout} s")
        return self._take()

    def _take(self) -> StoredEvent | ControlItem:
        item = self._items.popleft()
        if isinstance(item, StoredEvent):
            self._position, self._position_id = item.version, item.id
        elif item.position != self._position:
            # After all events of an answer: how far it has come.
            self._position, self._position_id = item.position, self._fetched_id
        return item

    def _begin(self) -> _core.Subscription:
        if self._core is None:
            core = self._opener()
            after, after_id = self._after, self._after_id
            begun = run(lambda inbox, token: core.begin(after, after_id, inbox, token))
            self._fetched, self._fetched_id = self._position, self._position_id = begun
            self._core = core
        return self._core

    def _fetch(
        self,
        patience: float,
        *,
        reports_progress: bool = False,
        tells_caught_up: bool = False,
        heeded: int | None = None,
    ) -> None:
        try:
            core = self._begin()
            position = self._fetched
            # An answer that nobody waits for any more loses nothing: the next question names the position anew.
            events, position, position_id, is_caught_up, reconnects = run(
                lambda inbox, token: core.next(
                    position, self._prefetch, reports_progress, tells_caught_up, patience, heeded, inbox, token
                )
            )
        except ClosedError as error:
            if self._is_closed and not isinstance(error, StoreClosedError):
                raise StopIteration from None
            raise
        if reconnects > self._reconnects:
            self._items.append(Reconnected(self._fetched))
        if events and self._is_caught_up and not is_caught_up:
            self._items.append(FellBehind(self._fetched))
        self._items.extend(events)
        if is_caught_up and not self._is_caught_up:
            self._items.append(CaughtUp(position))
        elif position > (events[-1].version if events else self._fetched):
            self._items.append(Checkpoint(position))
        self._reconnects = reconnects
        self._is_caught_up = is_caught_up
        if position != self._fetched:
            self._fetched, self._fetched_id = position, position_id
        if not events:
            self._on_idle()

    def close(self) -> None:
        """End the subscription. An iteration that waits ends, too."""
        self._is_closed = True
        self._items.clear()
        if self._core is not None:
            self._core.close()

    def __enter__(self) -> Self:
        self._begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
