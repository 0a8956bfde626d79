"""`Blocker`: a transaction that holds readers up. `Stall`: readers wait for one."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
from typing import Final

__all__ = ["BLOCKERS_SQL", "Blocker", "Stall"]


@dataclasses.dataclass(frozen=True)
class Blocker:
    """A session whose open transaction may still commit a version for which readers wait.

    Attributes:
        pid: Its server process; None for a prepared transaction, which has no session.
        application_name: Its `application_name`.
        user: Its role.
        state: Its state, for example `idle in transaction`.
        transaction_start: When its transaction began.
        query: Its last statement, if this role may see it.
        prepared: Name of the prepared transaction, or None.
    """

    pid: int | None
    application_name: str | None
    user: str | None
    state: str | None
    transaction_start: dt.datetime | None
    query: str | None
    prepared: str | None = None

    @classmethod
    def of(cls, row: str) -> Blocker:
        """From a row of `BLOCKERS_SQL`."""
        fields = json.loads(row)
        start = fields["transaction_start"]
        return cls(**{**fields, "transaction_start": None if start is None else dt.datetime.fromisoformat(start)})

    def __str__(self) -> str:
        who = f"prepared transaction {self.prepared!r}" if self.prepared else f"session {self.pid}"
        return (
            f"{who} ({self.application_name or 'no application name'}, user {self.user}), {self.state}, "
            f"open since {self.transaction_start}, last statement {(self.query or '')[:200]!r}"
        )


@dataclasses.dataclass(frozen=True)
class Stall:
    """Readers wait for a transaction that has stored events and stays open.

    Attributes:
        position: The version up to which readers have read.
        seconds: How long they have been waiting.
        blockers: The open transactions, the oldest first. Others may have begun since. Empty if the wait is over.
    """

    position: int
    seconds: float
    blockers: list[Blocker]

    def __str__(self) -> str:
        return (
            f"events after version {self.position} wait since {self.seconds:.0f} s for a transaction to end: "
            + "; ".join(str(blocker) for blocker in self.blockers)
        )


BLOCKERS_SQL: Final = """
SELECT pg_catalog.json_build_object('pid', l.pid, 'application_name', a.application_name,
    'user', coalesce(a.usename, p.owner),
    'state', CASE WHEN p.gid IS NULL THEN a.state ELSE 'prepared' END, 'query', a.query, 'prepared', p.gid,
    'transaction_start',
    pg_catalog.to_char(coalesce(a.xact_start, p.prepared) AT TIME ZONE 'UTC',
        'YYYY-MM-DD"T"HH24:MI:SS.US+00:00'))::pg_catalog.text
FROM pg_catalog.pg_locks l
LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
LEFT JOIN pg_catalog.pg_locks x ON l.pid IS NULL AND x.virtualtransaction = l.virtualtransaction
    AND x.locktype = 'transactionid' AND x.pid IS NULL AND x.mode = 'ExclusiveLock'
LEFT JOIN pg_catalog.pg_prepared_xacts p ON p.transaction = x.transactionid
WHERE l.locktype = 'relation' AND l.relation = $1::pg_catalog.regclass AND l.mode = 'RowExclusiveLock' AND l.granted
    AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
    -- Whoever looks at the sequence, as readers do, has the same lock for a moment, and has written nothing.
    AND (a.state = 'active' AND a.backend_xid IS NULL
        AND a.xact_start > pg_catalog.clock_timestamp() - '1 s'::pg_catalog.interval) IS NOT TRUE
ORDER BY coalesce(a.xact_start, p.prepared)
"""
