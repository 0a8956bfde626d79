"""What of `stats()` is measured, for any monitoring system; `prometheus` and `opentelemetry` publish it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal, Protocol, TypeAlias

__all__ = ["METRICS", "Metric", "Source", "Sources", "read", "samples"]


class Source(Protocol):
    """A manager, an emitter, a client or an event store."""

    def stats(self) -> Mapping[str, Any]:
        """Its counters; none before its first use."""
        ...


Sources: TypeAlias = Mapping[str, Source]
"""What to watch, each under a name of its own, which becomes the label `name`."""


@dataclasses.dataclass(frozen=True)
class Metric:
    """One key of `stats()`.

    Attributes:
        key: The key; the metric's name is made of it.
        kind: A counter only grows, as long as the process lives; a gauge is how it is now.
        unit: In the notation of OpenTelemetry (UCUM): `By`, `s`, `1` for a fraction, or `{item}` for counts.
        description: One line.
    """

    key: str
    kind: Literal["counter", "gauge"]
    unit: str
    description: str


_CLUSTER: Final = (
    Metric("published", "counter", "{message}", "Messages committed."),
    Metric("publish_failed", "counter", "{message}", "Messages not committed, or perhaps not."),
    Metric("publish_in_doubt", "counter", "{message}", "Of the failed messages, those that may be committed."),
    Metric("publish_dropped", "counter", "{message}", "Of the failed messages, those the buffer had no room for."),
    Metric("publish_groups", "counter", "{transaction}", "Transactions that committed messages."),
    Metric("publish_attachments", "counter", "{message}", "Of the published messages, those sent as attachments."),
    Metric("publisher_reconnects", "counter", "{connection}", "Publishing connections opened after a failure."),
    Metric("publisher_outage_seconds", "gauge", "s", "Time since publishing began to fail; none when it works."),
    Metric("buffer_count", "gauge", "{message}", "Messages waiting to be committed."),
    Metric("buffer_bytes", "gauge", "By", "Size of the messages waiting to be committed."),
    Metric("is_listening", "gauge", "", "1 while the listening session holds all its channels."),
    Metric("channels", "gauge", "{channel}", "Channels wanted."),
    Metric("members", "gauge", "{server}", "Python servers of the cluster at the last probe, this one included."),
    Metric("peers", "gauge", "{server}", "Other servers known in the namespace."),
    Metric("listener_reconnects", "counter", "{connection}", "Listening sessions opened after the first."),
    Metric("listener_outage_seconds", "gauge", "s", "Time without a listening session; none when there is one."),
    Metric("probe_age", "gauge", "s", "Time since the listening session last answered."),
    Metric("echo_age", "gauge", "s", "Time since a message of our own last came back; grows while none is sent."),
    Metric("notification_queue_usage", "gauge", "1", "Used part of PostgreSQL's notification queue."),
    Metric("received", "counter", "{message}", "Messages of other senders received."),
    Metric("irrelevant", "counter", "{message}", "Messages for rooms without a client here, skipped."),
    Metric("own", "counter", "{message}", "Messages of our own that came back."),
    Metric("duplicates", "counter", "{message}", "Messages that came twice, dropped."),
    Metric("undecodable", "counter", "{message}", "Notifications and attachments that are no messages, dropped."),
    Metric("bad_signatures", "counter", "{message}", "Messages without a valid signature, dropped."),
    Metric("attachments", "counter", "{message}", "Attachments read."),
    Metric("attachments_skipped", "counter", "{message}", "Attachments for rooms without a client here, not read."),
    Metric("attachments_missing", "counter", "{message}", "Messages lost because their attachment was gone."),
    Metric("overflowed", "counter", "{message}", "Messages dropped because the process did not keep up."),
    Metric("gaps", "counter", "{gap}", "Times that messages were found missing."),
    Metric("missing_messages", "counter", "{message}", "Messages known to be missing."),
    Metric("inbox_bytes", "gauge", "By", "Size of the messages waiting for the application."),
    Metric("inbox_age", "gauge", "s", "Time that messages have waited without the application taking any."),
    Metric("held_bytes", "gauge", "By", "Size of the messages waiting behind attachments."),
)
# Beside `is_listening`, `listener_reconnects` and `listener_outage_seconds`, which stand above. The process ids in
# `gap_holders` are no number.
_EVENT_STORE: Final = (
    Metric("max_open_connections", "gauge", "{connection}", "Most connections for writing and reading."),
    Metric("open_connections", "gauge", "{connection}", "Connections for writing and reading."),
    Metric("in_use", "gauge", "{connection}", "Of the open connections, those at work."),
    Metric("idle", "gauge", "{connection}", "Of the open connections, those not at work."),
    Metric("wait_count", "counter", "{operation}", "Operations that waited for a connection."),
    Metric("wait_duration", "counter", "s", "Time that operations waited for connections, together."),
    Metric("max_idle_closed", "counter", "{connection}", "Connections closed because enough were idle."),
    Metric("max_idle_time_closed", "counter", "{connection}", "Connections closed because they were idle for long."),
    Metric("max_lifetime_closed", "counter", "{connection}", "Connections closed for their age."),
    Metric("stored", "counter", "{event}", "Events stored."),
    Metric("store_failed", "counter", "{call}", "Calls to store that failed."),
    Metric("store_groups", "counter", "{transaction}", "Transactions that stored events."),
    Metric("store_alone", "counter", "{call}", "Calls to store tried again alone."),
    Metric("store_waiting", "gauge", "{call}", "Calls to store that wait."),
    Metric("subscriptions", "gauge", "{subscription}", "Subscriptions."),
    Metric("settled_version", "gauge", "", "Version up to which subscriptions were given everything."),
    Metric("read", "counter", "{event}", "Events read for subscriptions."),
    Metric("reads", "counter", "{query}", "Queries that read them."),
    Metric("pages", "counter", "{query}", "Queries of subscriptions that catch up by themselves."),
    Metric("page_timeouts", "counter", "{query}", "Queries of these that took too long and were repeated in parts."),
    Metric("lock_looks", "counter", "{query}", "Looks at the lock of the sequence."),
    Metric("subscription_wakeups", "counter", "{wakeup}", "Waiting subscriptions that an event woke."),
    Metric("notifications", "counter", "{notification}", "Notifications of events received."),
    Metric("reader_outage_seconds", "gauge", "s", "Time since readers cannot connect; none when they can."),
    Metric("gap_seconds", "gauge", "s", "Time that readers have waited for an open transaction."),
)
METRICS: Final = _CLUSTER + _EVENT_STORE


def samples(metric: Metric, stats: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[dict[str, str], float]]:
    """The current values of a metric, each with its labels. Unknown values are left out.

    Args:
        metric: Which.
        stats: What each source's `stats()` returned, by its name.
    """
    for name, of_source in stats.items():
        value = of_source.get(metric.key)
        if isinstance(value, Mapping):  # of each namespace
            yield from (({"name": name, "namespace": namespace}, float(len(each))) for namespace, each in value.items())
        elif value is not None:
            yield {"name": name}, float(value)


def read(sources: Sources) -> dict[str, Mapping[str, Any]]:
    """The statistics of all sources, by their names."""
    return {name: source.stats() for name, source in list(sources.items())}
