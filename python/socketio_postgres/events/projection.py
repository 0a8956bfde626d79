"""`Projection`: a table or the like that is kept up to date from events, in the transaction that moves its position."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, ClassVar, Final, TypeAlias

from socketio_postgres.events.event import START, AfterVersion, StoredEvent, check_name, check_positive
from socketio_postgres.events.filter import Filter
from socketio_postgres.exceptions import OptionsError

__all__ = ["HandleFunction", "Projection", "base_of", "named", "projection_of", "subscription_name"]

HandleFunction: TypeAlias = Callable[[Any, Sequence[StoredEvent]], Awaitable[None] | None]
"""Receives a connection and events, as `Projection.handle`."""

_VERSIONED: Final = re.compile(r"(.*)@((?!1$)[1-9][0-9]{0,18})", re.DOTALL)
"""Name of the durable subscription of a version from 2 on."""


class Projection:
    """A table, or anything else in the same database, that is kept up to date from events: each exactly once.

        class Totals(Projection):
            name = "totals"

            async def handle(self, conn, events):
                for event in events:
                    await conn.execute("UPDATE …")

    `AsyncEventStore.run` calls `handle`; `EventStore.run` calls a `handle` that is no coroutine function.

    When the code changes so that the table must be made anew, count `version` up and write to another table. The new
    version starts at the beginning, beside the one that is served, and replaces it by `switch`.

    Attributes:
        name: Name of its durable subscription. That of a version from 2 on has the version added: `totals@2`; so no
            name ends like this.
        version: Version of the code, from 1 on. Default 1.
        types: Only events of these types. Default: all.
        filters: Conditions, all of which must hold. Default: none.
        start: Where to begin when the name is new: `START`, `END` or a version. Default `START`.
    """

    name: str = ""
    version: int = 1
    types: ClassVar[Iterable[str] | str | None] = None
    filters: ClassVar[Iterable[Filter]] = ()
    start: ClassVar[AfterVersion] = START

    def handle(self, conn: Any, events: Sequence[StoredEvent]) -> Awaitable[None] | None:
        """Apply events. Must not commit or roll back.

        Args:
            conn: A connection from `connect`, with an open transaction, which also moves the position.
            events: At least one, in order. Each comes once, unless its transaction was rolled back.

        Raises:
            Exception: Nothing of these events is applied. They are tried again one by one, so that the others are not
                held up; `on_error` decides about the one that fails.
        """
        raise NotImplementedError

    def switch(self, conn: Any) -> Awaitable[None] | None:
        """Let readers use the table of this version, for example by a view. Must not commit or roll back.

        Called when this version, from 2 on, has caught up with the one that is served, or when none is served. The
        transaction of the call also retires the version served before. A lock that it waits for longer than five
        seconds ends it, unless the method sets another `lock_timeout`. Default: nothing.

        Args:
            conn: A connection from `connect`, with an open transaction.

        Raises:
            Exception: The transaction is rolled back, and tried again later. The version served before goes on.
        """

    def reset(self, conn: Any) -> Awaitable[None] | None:
        """Empty the table, for `AsyncEventStore.rebuild`. Must not commit or roll back.

        Args:
            conn: A connection with an open transaction, which also sets the position back.
        """
        raise NotImplementedError


class _OfFunction(Projection):
    def __init__(self, name: str, function: HandleFunction) -> None:
        self.name = name
        self._function = function

    def handle(self, conn: Any, events: Sequence[StoredEvent]) -> Awaitable[None] | None:
        return self._function(conn, events)


def projection_of(projection: object) -> Projection:
    """Check a projection.

    Raises:
        OptionsError: It is none, or has no name or that of a version, or its version is no positive integer.
    """
    if isinstance(projection, Projection) and projection.name:
        check_name(projection.name)
        check_positive("version", projection.version or 0)
        if (found := _VERSIONED.fullmatch(projection.name)) is not None:
            reason = f"is that of version {found[2]} of a projection {found[1]!r}"
            shown = repr(projection.name)
            raise OptionsError(f"invalid name: {shown} {reason}", option="name", value=shown, reason=reason)
        return projection
    reason = "must be an object of a subclass of Projection with a name, or what @store.projection(name) made"
    shown = type(projection).__name__
    raise OptionsError(f"invalid projection: {reason} (got {shown})", option="projection", value=shown, reason=reason)


def base_of(name: str) -> str:
    """Name of the projection of which a durable subscription is a version; its own, if it is of none."""
    found = _VERSIONED.fullmatch(name)
    return name if found is None else found[1]


def subscription_name(name: str, version: int) -> str:
    """Name of the durable subscription of a version of a projection."""
    return name if version == 1 else f"{name}@{version}"


def named(name: str) -> Callable[[HandleFunction], Projection]:
    """Make a projection of a function."""
    return lambda function: _OfFunction(name, function)
