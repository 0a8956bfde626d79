"""Servers to be broken, and how long each recovery took.

SIO_PG_SOAK   seconds for which each test goes on breaking things; by default a few rounds
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fixtures.database import Database, new_database
from tests.fixtures.pgbouncer import pgbouncer_program
from tests.fixtures.postgres import OwnPostgres

__all__ = ["pgbouncer_program"]

Rounds = Callable[[int], Iterator[int]]
"""Type of the fixture `rounds`."""

SOAK_S = float(os.environ.get("SIO_PG_SOAK", "0"))

_TIMEOUT_S = 180
"""As in pyproject.toml: for one test, the time of the soak not counted."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give long versions time."""
    for item in items:
        if SOAK_S and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(_TIMEOUT_S + 2 * SOAK_S))


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[OwnPostgres]:
    """A server for the tests of one file."""
    with OwnPostgres() as server:
        yield server


@pytest.fixture
def postgres(own_postgres: OwnPostgres) -> Iterator[OwnPostgres]:
    """A server that runs when the test begins, whatever happened to it before, and of which nobody else knows."""
    own_postgres.start()
    yield own_postgres
    if own_postgres.pid is not None:
        own_postgres.thaw()


@pytest.fixture
def database(postgres: OwnPostgres) -> Iterator[Database]:
    """As everywhere, but on the file's server.

    Notifications have one queue for all databases of a server, and a listener in another one, such as a server that the
    tests of a mode share, is only called when it is pages behind.
    """
    with new_database(postgres.dsn()) as database:
        yield database


@pytest.fixture
def rounds() -> Rounds:
    """Counts the times that something is to be broken: so often at least, and for as long as the soak lasts."""

    def count(at_least: int) -> Iterator[int]:
        end = time.monotonic() + SOAK_S
        for number in itertools.count(1):
            if number > at_least and time.monotonic() > end:
                return
            yield number

    return count
