"""Which statistics are metrics, and what they are called."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from socketio_postgres import (
    AsyncEmitter,
    AsyncEventStore,
    AsyncPostgresClient,
    AsyncPostgresManager,
    Emitter,
    PostgresClient,
)
from socketio_postgres._bus.metrics import METRICS, Metric, samples
from socketio_postgres.opentelemetry import observe
from socketio_postgres.prometheus import PostgresCollector

NOWHERE = "postgresql://nobody@127.0.0.1:1/nothing"


class Fixed:
    """Always the same statistics."""

    def __init__(self, **stats: Any) -> None:
        self._stats = stats

    def stats(self) -> Mapping[str, Any]:
        return self._stats


def opened_stats() -> dict[str, Any]:
    """All keys that there are, without a database: the core opens on first use and connects later."""
    manager = AsyncPostgresManager(NOWHERE)
    _ = manager._node._bus.core
    return dict(manager.stats())


def test_every_statistic_is_a_metric() -> None:
    # Words; is_listening and the seconds are what there is to alarm on.
    words = {"state", "publisher_outage", "listener_outage", "reader_outage", "gap_holders"}
    manager = opened_stats().keys() - words
    store = AsyncEventStore(NOWHERE).stats().keys() - words
    assert sorted(metric.key for metric in METRICS) == sorted(manager | store)


def test_what_is_known_before_the_first_message_is_zero() -> None:
    unknown = {"members", "probe_age", "echo_age", "notification_queue_usage", "peers", "gap_seconds"}
    unknown |= {f"{whose}_outage_seconds" for whose in ("publisher", "listener", "reader")}
    limits = {"max_open_connections": 25.0}
    for stats in (opened_stats(), AsyncEventStore(NOWHERE).stats()):
        for metric in METRICS:
            is_known = metric.key in stats.keys() - unknown
            expected = [({"name": "it"}, limits.get(metric.key, 0.0))] if is_known else []
            assert list(samples(metric, {"it": stats})) == expected, metric.key


@pytest.mark.parametrize("kind", [AsyncPostgresManager, Emitter, AsyncEmitter, PostgresClient, AsyncPostgresClient])
def test_what_was_not_used_has_no_values(kind: Any) -> None:
    registry = CollectorRegistry()
    registry.register(PostgresCollector({"unused": kind(NOWHERE)}))
    assert not [sample for family in registry.collect() for sample in family.samples]


def test_names_in_prometheus() -> None:
    registry = CollectorRegistry()
    stats = dict.fromkeys((metric.key for metric in METRICS), 1) | {"peers": {"/": ["a", "b"]}}
    registry.register(PostgresCollector({"server": Fixed(**stats)}))
    text = generate_latest(registry).decode()  # type: ignore[no-untyped-call]
    families = {family.name: family for family in text_string_to_metric_families(text)}  # type: ignore[no-untyped-call]
    assert len(families) == len(METRICS)
    names = {sample.name for family in families.values() for sample in family.samples}
    assert all(name.startswith("socketio_postgres_") for name in names)
    for metric in METRICS:
        unit = {"By": "_bytes", "s": "_seconds", "1": "_ratio"}.get(metric.unit, "")
        name = f"socketio_postgres_{metric.key.removesuffix(unit)}{unit}"
        assert (f"{name}_total" in names) == (metric.kind == "counter")
        assert (name in names) == (metric.kind == "gauge")
    assert {
        "socketio_postgres_buffer_bytes",
        "socketio_postgres_buffer_count",
        "socketio_postgres_is_listening",
        "socketio_postgres_probe_age_seconds",
        "socketio_postgres_notification_queue_usage_ratio",
    } <= names
    assert families["socketio_postgres_probe_age_seconds"].unit == "seconds"
    (peers,) = families["socketio_postgres_peers"].samples
    assert (peers.labels, peers.value) == ({"name": "server", "namespace": "/"}, 2.0)


def test_sources_are_told_apart_and_may_come_later() -> None:
    sources = {"one": Fixed(received=1)}
    registry = CollectorRegistry()
    registry.register(PostgresCollector(sources))
    sources["two"] = Fixed(received=2)
    values = [registry.get_sample_value("socketio_postgres_received_total", {"name": name}) for name in ("one", "two")]
    assert values == [1.0, 2.0]


def test_a_second_collector_is_refused() -> None:
    registry = CollectorRegistry()
    registry.register(PostgresCollector({}))
    with pytest.raises(ValueError, match="Duplicated"):
        registry.register(PostgresCollector({}))


def test_names_and_units_in_opentelemetry() -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    observe({"server": Fixed(received=3, probe_age=1.5, echo_age=None)}, meter_provider=provider)
    data = reader.get_metrics_data()
    provider.shutdown()
    assert data is not None
    (scope,) = data.resource_metrics[0].scope_metrics
    found = {metric.name: metric for metric in scope.metrics}
    assert found.keys() == {"socketio_postgres.received", "socketio_postgres.probe_age"}
    assert (scope.scope.name, found["socketio_postgres.probe_age"].unit) == ("socketio_postgres", "s")
    received = found["socketio_postgres.received"].data
    assert type(received).__name__ == "Sum"
    assert [(dict(point.attributes or {}), point.value) for point in received.data_points] == [  # type: ignore[union-attr]
        ({"name": "server"}, 3.0)
    ]


def test_units_are_known_to_prometheus() -> None:
    assert {metric.unit for metric in METRICS if not metric.unit.startswith("{")} == {"", "By", "s", "1"}


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.key)
def test_a_metric_says_what_it_is(metric: Metric) -> None:
    assert metric.description.endswith(".")
    assert (metric.unit == "By") == metric.key.endswith("_bytes")
    assert (metric.unit == "s") == metric.key.endswith(("_age", "_duration", "_seconds"))


@pytest.mark.parametrize(
    ("module", "library", "extra"),
    [
        ("prometheus", "prometheus_client", "prometheus"),
        ("opentelemetry", "opentelemetry", "opentelemetry"),
    ],
)
def test_a_missing_library_names_the_extra(module: str, library: str, extra: str) -> None:
    code = f"import sys; sys.modules[{library!r}] = None; import socketio_postgres.{module}"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f'pip install "socketio-postgres[{extra}]"' in ended.stderr.splitlines()[-1]
