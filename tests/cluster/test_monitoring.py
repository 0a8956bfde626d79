"""Metrics through the libraries' own exporters, and the documented health checks, with PostgreSQL there and gone."""

from __future__ import annotations

import asyncio
import io
import re
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import prometheus_client
import psycopg
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client.parser import text_string_to_metric_families

from socketio_postgres import AsyncEmitter, AsyncEventStore, Event
from socketio_postgres._bus.metrics import METRICS
from socketio_postgres.opentelemetry import observe
from socketio_postgres.prometheus import PostgresCollector
from tests.fixtures.bus import acquainted, serving
from tests.fixtures.database import Database
from tests.fixtures.waiting import TIMEOUT_S, eventually

OPERATIONS = Path(__file__).parents[2] / "docs/operations.md"


# ---------------------------------------------------------------------------------------------------- metrics


@contextmanager
def scraping(collector: PostgresCollector) -> Iterator[Callable[[], dict[str, dict[tuple[str, ...], float]]]]:
    """What Prometheus reads over HTTP: name, values of the labels, value."""
    registry = prometheus_client.CollectorRegistry()
    registry.register(collector)
    server, thread = prometheus_client.start_http_server(0, addr="127.0.0.1", registry=registry)

    def scrape() -> dict[str, dict[tuple[str, ...], float]]:
        found: dict[str, dict[tuple[str, ...], float]] = {}
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/metrics", timeout=TIMEOUT_S) as answer:
            for family in text_string_to_metric_families(answer.read().decode()):
                for sample in family.samples:
                    found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
        return found

    try:
        yield scrape
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


async def test_prometheus_scrapes_servers_and_emitters(database: Database) -> None:
    async with serving(database) as one, serving(database) as two, AsyncEmitter(database.dsn) as emitter:
        await acquainted(one, two)
        await emitter.server_side_emit("hello", b"bytes")  # for the server itself, which has no clients
        await eventually(lambda: one.manager.stats()["attachments"] == 1, "the attachment is read")
        with scraping(PostgresCollector({"server": one.manager, "jobs": emitter})) as scrape:
            found = await asyncio.to_thread(scrape)
    assert found["socketio_postgres_published_total"]["jobs",] == 1
    assert found["socketio_postgres_attachments_total"] == {("server",): 1, ("jobs",): 0}
    assert found["socketio_postgres_is_listening"]["server",] == 1
    assert found["socketio_postgres_peers"] == {("server", "/"): 1}
    assert 0 <= found["socketio_postgres_probe_age_seconds"]["server",] < 60
    assert found["socketio_postgres_gaps_total"]["server",] == 0


async def test_an_event_store_is_scraped(database: Database) -> None:
    async with AsyncEventStore(database.dsn) as store, store.subscribe() as live:
        await store.store([Event("T", "a"), Event("T", "a")])
        await live.next(TIMEOUT_S)
        with database.connect() as holder, scraping(PostgresCollector({"orders": store})) as scrape:
            quiet = await asyncio.to_thread(scrape)
            holder.execute("BEGIN")
            holder.execute("SELECT nextval('events_version_seq')")
            await store.store(Event("T", "b"))
            await eventually(lambda: store.stats()["gap_seconds"] is not None, "readers wait")
            found = await asyncio.to_thread(scrape)
    assert found["socketio_postgres_stored_total"] == {("orders",): 3}
    assert found["socketio_postgres_is_listening"] == {("orders",): 1}
    assert found["socketio_postgres_wait_duration_seconds_total"]["orders",] >= 0
    assert "socketio_postgres_gap_seconds" not in quiet
    assert found["socketio_postgres_gap_seconds"]["orders",] >= 0


async def test_opentelemetry_collects_the_same(database: Database) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    async with serving(database) as one, serving(database) as two:
        await acquainted(one, two)
        observe({"server": one.manager}, meter_provider=provider)
        data = await asyncio.to_thread(reader.get_metrics_data)
    provider.shutdown()
    assert data is not None
    metrics = {metric.name: metric.data for metric in data.resource_metrics[0].scope_metrics[0].metrics}
    found = {
        name.removeprefix("socketio_postgres."): (dict(point.attributes or {}), point.value)  # type: ignore[union-attr]
        for name, metric in metrics.items()
        for point in metric.data_points
    }
    assert found.keys() <= {metric.key for metric in METRICS}
    assert found["is_listening"] == ({"name": "server"}, 1.0)
    assert found["peers"] == ({"name": "server", "namespace": "/"}, 1.0)
    assert found["published"][1] > 0


# ----------------------------------------------------------------------------------------------- health checks


def documented(marker: str, database: Database) -> dict[str, Any]:
    """The variables of the documented health check that contains `marker`."""
    blocks = re.findall(r"^```python\n(.*?)^```$", OPERATIONS.read_text(), re.MULTILINE | re.DOTALL)
    (code,) = (block for block in blocks if "/readyz" in block and marker in block)
    variables: dict[str, Any] = {"__name__": "snippet"}
    exec(re.sub(r'"postgresql://[^"]*"', repr(database.url), code), variables)  # noqa: S102 - our own document
    return variables


@contextmanager
def shut(database: Database, postgres_dsn: str) -> Iterator[None]:
    """Nobody may connect any more, and whoever is connected is thrown out."""
    with psycopg.connect(postgres_dsn, autocommit=True, connect_timeout=10) as server:
        server.execute(f"ALTER DATABASE {database.name} ALLOW_CONNECTIONS false")
        server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [database.name])
        try:
            yield
        finally:
            server.execute(f"ALTER DATABASE {database.name} ALLOW_CONNECTIONS true")


async def ask_asgi(app: Any, path: str) -> tuple[int, str]:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    await app({"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b""}, receive, send)
    return sent[0]["status"], sent[1]["body"].decode()


async def ask_wsgi(app: Any, path: str) -> tuple[int, str]:
    status: list[str] = []
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": path, "QUERY_STRING": "", "wsgi.input": io.BytesIO()}
    body = b"".join(app(environ, lambda line, _: status.append(line))).decode()
    return int(status[0].split()[0]), body


async def check_health(ask: Callable[[str], Any], database: Database, postgres_dsn: str) -> None:
    assert await ask("/healthz") == (200, "")
    assert await ask("/readyz") == (200, "")
    assert (await ask("/elsewhere"))[0] == 404

    async def is_ready() -> bool:
        return bool((await ask("/readyz"))[0] == 200)

    async def is_not_ready() -> bool:
        return not await is_ready()

    with shut(database, postgres_dsn):
        await eventually(is_not_ready, "the lost session is noticed")
        status, why = await ask("/readyz")
        assert (status, "not listening" in why) == (503, True)
        assert await ask("/healthz") == (200, ""), "a restart would disconnect the clients"
    await eventually(is_ready, "it listens again")


async def test_documented_asgi_health_check(database: Database, postgres_dsn: str) -> None:
    snippet = documented("async def health", database)
    assert await ask_asgi(snippet["app"], "/readyz") == (200, "")  # or no first client would ever be let in
    await snippet["mgr"].start()
    try:
        await check_health(lambda path: ask_asgi(snippet["app"], path), database, postgres_dsn)
    finally:
        await snippet["mgr"].close()


async def test_documented_wsgi_health_check(database: Database, postgres_dsn: str) -> None:
    snippet = documented("start_response", database)
    manager = snippet["mgr"]
    await asyncio.to_thread(manager.start)
    try:
        await check_health(lambda path: ask_wsgi(snippet["app"], path), database, postgres_dsn)
    finally:
        await asyncio.to_thread(manager.close)
