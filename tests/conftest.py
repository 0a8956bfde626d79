"""Fixtures for all tests, and the promise that SIO_PG_REQUIRE_ALL=1 lets nothing be skipped."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Generator

import engineio.packet
import hypothesis
import pytest
import socketio.packet
import uvloop

pytest_plugins = [
    "tests.fixtures.database",
    "tests.fixtures.node",
    "tests.fixtures.side_by_side",
    "tests.fixtures.tables",
    "tests.fixtures.browser",
]

# An example may take longer than 200 ms, and so may making some: others use the machine, too.
hypothesis.settings.register_profile("patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("patient")

REQUIRE_ALL = os.environ.get("SIO_PG_REQUIRE_ALL") == "1"


UVLOOP = os.environ.get("SIO_PG_TEST_UVLOOP") == "1"


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The event loop of the tests: asyncio's own, or the one that `uvicorn[standard]` takes."""
    return {"uvloop": uvloop.new_event_loop} if UVLOOP else {"asyncio": asyncio.new_event_loop}


def _forbid_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    # A strict xfail is also reported as skipped; that one is a statement and not a hole.
    if REQUIRE_ALL and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"SIO_PG_REQUIRE_ALL=1 allows no skip, and this one says: {reason}"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skipped test into a failed one where nothing may be skipped."""
    report = yield
    _forbid_skip(report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Turn a skipped module into a failed one where nothing may be skipped."""
    report = yield
    _forbid_skip(report)
    return report


@pytest.fixture(autouse=True)
def _original_json() -> Generator[None]:
    """A server that is given a json module sets it for the whole process; the next test begins without it."""
    kinds = (socketio.packet.Packet, engineio.packet.Packet)
    before = [kind.json for kind in kinds]
    yield
    for kind, json in zip(kinds, before, strict=True):
        kind.json = json
