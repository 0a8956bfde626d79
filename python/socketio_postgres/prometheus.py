"""Statistics for Prometheus, through its own library: `pip install "socketio-postgres[prometheus]"`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from socketio_postgres._bus.metrics import METRICS, Metric, Sources, read, samples

try:
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.registry import Collector
except ImportError as error:
    raise ImportError(
        'socketio_postgres.prometheus needs prometheus_client: pip install "socketio-postgres[prometheus]"'
    ) from error

__all__ = ["PostgresCollector"]

PREFIX: Final = "socketio_postgres_"
UNITS: Final = {"By": "bytes", "s": "seconds", "1": "ratio"}


class PostgresCollector(Collector):
    """Reads `stats()` whenever Prometheus asks, on whichever thread it does; between that nothing runs.

    A metric is named `socketio_postgres_`, the key of `stats()`, and by Prometheus' rules the unit and `_total`. Values
    that are not known yet are left out, and so is an object that was not used yet in this process.

    Args:
        sources: Managers, emitters, clients and event stores of this process, by the names that become the label
            `name`. Looked at again each time. One registry takes one collector, so name them all here.
    """

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def describe(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """The metrics without values, by which a registry notices that two collectors are in each other's way."""
        return (_family(metric) for metric in METRICS)

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """The metrics with their present values."""
        stats = read(self._sources)
        for metric in METRICS:
            family = _family(metric)
            for labels, value in samples(metric, stats):
                family.add_metric(list(labels.values()), value)
            yield family


def _family(metric: Metric) -> CounterMetricFamily | GaugeMetricFamily:
    name, labels = PREFIX + metric.key, ["name", "namespace"] if metric.key == "peers" else ["name"]
    unit = UNITS.get(metric.unit, "")
    if metric.kind == "counter":
        return CounterMetricFamily(name, metric.description, labels=labels, unit=unit)  # the library appends _total
    return GaugeMetricFamily(name, metric.description, labels=labels, unit=unit)
