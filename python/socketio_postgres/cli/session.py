"""`Session`: statements on one connection, which is opened as the manager opens its connections."""

from __future__ import annotations

import asyncio
from types import TracebackType

from socketio_postgres import _core
from socketio_postgres._bus.primitives import arun
from socketio_postgres._typing import Self

__all__ = ["Row", "Session", "ask"]

Row = list[str | None]

ANSWER_LIMIT = 10.0
"""Seconds without an answer after which a statement is given up."""


class Session:
    """A connection that opens with its first statement, and ends with the `async with` block."""

    def __init__(self, dsn: str) -> None:
        self._core = _core.Session(dsn, ANSWER_LIMIT)

    @property
    def description(self) -> str:
        """What it connects to, without secrets."""
        return self._core.description

    async def rows(self, sql: str) -> list[Row]:
        """Run statements without parameters; returns the rows of the last one.

        Raises:
            ConnectionLostError: PostgreSQL cannot be reached, or has not answered.
            DatabaseError: PostgreSQL refuses the connection or a statement.
        """
        rows: list[Row] = await arun(lambda inbox, token: self._core.query(sql, inbox, token))
        return rows

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await arun(self._core.close)


def ask(dsn: str, sql: str) -> list[Row]:
    """Run one statement on a connection of its own. Blocks, so no event loop may run in this thread."""

    async def once() -> list[Row]:
        async with Session(dsn) as session:
            return await session.rows(sql)

    return asyncio.run(once())
