"""Statistics for OpenTelemetry, through its own API: `pip install "socketio-postgres[opentelemetry]"`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from socketio_postgres import _core
from socketio_postgres._bus.metrics import METRICS, Metric, Sources, read, samples

try:
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation, get_meter
except ImportError as error:
    raise ImportError(
        'socketio_postgres.opentelemetry needs opentelemetry-api: pip install "socketio-postgres[opentelemetry]"'
    ) from error

__all__ = ["observe"]

PREFIX: Final = "socketio_postgres."


def observe(sources: Sources, *, meter_provider: MeterProvider | None = None) -> None:
    """Have `stats()` read whenever OpenTelemetry collects, on its thread; between that nothing runs.

    An instrument is named `socketio_postgres.` and the key of `stats()`. Values that are not known yet are left out,
    and so is an object that was not used yet in this process. Call it once.

    Args:
        sources: Managers, emitters, clients and event stores of this process, by the names that become the attribute
            `name`. Looked at again each time.
        meter_provider: Default: the global one, which may also be set later.
    """
    meter = get_meter("socketio_postgres", _core.__version__, meter_provider)
    for metric in METRICS:
        create = meter.create_observable_counter if metric.kind == "counter" else meter.create_observable_gauge
        create(PREFIX + metric.key, [_callback(metric, sources)], unit=metric.unit, description=metric.description)


def _callback(metric: Metric, sources: Sources) -> Callable[[CallbackOptions], Iterator[Observation]]:
    def observations(_: CallbackOptions) -> Iterator[Observation]:
        return (Observation(value, labels) for labels, value in samples(metric, read(sources)))

    return observations
