"""The encodings in which tests of other folders run again: those that text takes every way in.

All others can be run with SIO_PG_TEST_ENCODING.
"""

from __future__ import annotations

import pytest

from tests.cluster.conftest import patience, trio

__all__ = ["encoding", "patience", "trio"]


@pytest.fixture(params=["LATIN1", "SQL_ASCII"])
def encoding(request: pytest.FixtureRequest) -> str:
    """The commonest of all others, and the one that checks nothing."""
    return str(request.param)
