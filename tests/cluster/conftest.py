"""The cluster that most tests start from."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.cluster.servers import Trio, open_trio
from tests.fixtures.database import Database
from tests.fixtures.patience import patience

__all__ = ["patience", "trio"]


@pytest.fixture
async def trio(database: Database) -> AsyncIterator[Trio]:
    """Three servers that count each other."""
    async with open_trio(database) as servers:
        yield servers
