"""What all benches share: PostgreSQL, an event loop, how much to send, and how results are printed.

Every bench checks what it is about to measure, then measures it. Rivals of one job are in one group, so that the
report of pytest-benchmark shows each time as a multiple of the group's best.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import psycopg
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benches.shared import CHANNEL, MESSAGES, MESSAGES_OF_CHECK, Committed, Run
from tests.fixtures.database import Database, database, encoding, postgres_dsn

__all__ = ["committed", "count", "database", "encoding", "patient", "postgres_dsn", "run"]


@pytest.fixture(autouse=True)
def patient(request: pytest.FixtureRequest) -> None:
    """A measurement takes longer than a test may."""
    request.node.add_marker(pytest.mark.timeout(600))


@pytest.fixture
def count(benchmark: BenchmarkFixture) -> int:
    """Messages per round."""
    return MESSAGES_OF_CHECK if benchmark.disabled else MESSAGES


@pytest.fixture
def run() -> Iterator[Run]:
    """An event loop for this bench, which is itself no coroutine: pytest-benchmark calls plain functions."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield loop.run_until_complete
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    asyncio.set_event_loop(None)


@pytest.fixture
def committed(database: Database) -> Committed:
    """What listeners get when a function is called: payloads in order, or a failure when it is not that many."""

    def call(publish: Callable[[], object], expected: int) -> list[str]:
        with psycopg.connect(database.dsn, autocommit=True) as connection:
            connection.execute(f'LISTEN "{CHANNEL}"')
            publish()
            # A marker of our own: whatever was committed before it has been seen when it arrives.
            connection.execute("SELECT pg_notify(%s, 'end')", (CHANNEL,))
            payloads = []
            for notification in connection.notifies(timeout=30):
                if notification.payload == "end":
                    break
                payloads.append(notification.payload)
        assert len(payloads) == expected
        return payloads

    return call
