# Generated from async_event_store.py by scripts/async_to_sync.py; edit that file.
"""`EventStore`: events stored in PostgreSQL, read in commit-safe order, and heard live."""

from __future__ import annotations

import contextlib

from socketio_postgres._bus.hook import Hook
from socketio_postgres._typing import Unpack
from socketio_postgres.events._sync.callback_subscription import CallbackSubscription
from socketio_postgres.events._sync.event_feed import EventFeed
from socketio_postgres.events.event import END, Handler
from socketio_postgres.events.filter import Filter
from socketio_postgres.events.options import EventStoreKeywords

__all__ = ["EventStore"]


class EventStore(EventFeed):
    """An event store on one table, shared with go-sync-kit if it made the table.

    Nothing connects before the first call, or `with`. Any number of threads may use it at once.

        with EventStore(dsn) as store:
            result = store.store(Event("OrderPlaced", "order-1", {"total": 5}), expected=NO_STREAM)
            for event in store.subscribe(after=START):
                ...

    Args:
        dsn: Connection string or URL as libpq reads it.
        options: As in `EventStoreOptions`.

    Raises:
        OptionsError: The DSN or an option is wrong.
    """

    def __init__(self, dsn: str = "", **options: Unpack[EventStoreKeywords]) -> None:
        super().__init__(dsn, **options)
        self._callbacks: list[CallbackSubscription] = []

    # ---------------------------------------------------------------- writing, reading: async_event_log.py
    # ----------------------------------------------- subscriptions, durable or not: async_event_feed.py
    # --------------------------------------------------------------------------- callbacks, as go-sync-kit has them

    def subscribe_to_all(self, handler: Handler) -> CallbackSubscription:
        """Call `handler` with each event that is stored from now on. `SubscribeToAll` in Go.

        Args:
            handler: Receives a `NotificationPayload`; no coroutine function. It runs in a thread of its own. Exceptions
                that it raises are logged and passed to `error_handler`; then the next event follows.
        """
        return self._call_back(handler, "events_global", [])

    def subscribe_to_stream(self, aggregate_id: str, handler: Handler) -> CallbackSubscription:
        """Call `handler` with each event of an aggregate that is stored from now on. `SubscribeToStream` in Go."""
        return self._call_back(handler, f"stream_{aggregate_id}", [Filter("aggregate_id", aggregate_id)])

    def subscribe_to_event_type(self, event_type: str, handler: Handler) -> CallbackSubscription:
        """Call `handler` with each event of a type that is stored from now on. `SubscribeToEventType` in Go."""
        return self._call_back(handler, "events_global", [Filter("type", event_type)])

    def _call_back(self, handler: Handler, channel: str, filters: list[Filter]) -> CallbackSubscription:
        Hook.check("handler", handler)
        subscription = self.subscribe(END, filters)
        subscription.__enter__()
        # Callbacks of an event loop that was closed without ending them are still in the list.
        self._callbacks = [each for each in self._callbacks if each.is_active]
        callback = CallbackSubscription(subscription, handler, channel, self._report, self._forget_callback)
        self._callbacks.append(callback)
        return callback

    def _forget_callback(self, callback: CallbackSubscription) -> None:
        with contextlib.suppress(ValueError):  # it had ended at once
            self._callbacks.remove(callback)

    def unsubscribe_from_stream(self, aggregate_id: str) -> None:
        """End all callbacks of an aggregate. `UnsubscribeFromStream` in Go."""
        self._cancel_channel(f"stream_{aggregate_id}")

    def unsubscribe_from_all(self) -> None:
        """End all callbacks for all events and for event types. `UnsubscribeFromAll` in Go."""
        self._cancel_channel("events_global")

    def _cancel_channel(self, channel: str) -> None:
        for callback in [callback for callback in self._callbacks if callback.channel == channel]:
            callback.cancel()

    def active_subscriptions(self) -> list[str]:
        """Channels of the callbacks. `GetActiveSubscriptions` in Go."""
        return sorted({callback.channel for callback in self._callbacks if callback.is_active})

    @property
    def is_listener_connected(self) -> bool:
        """Whether the listening connection is open. Without subscriptions there is none."""
        return bool(self._core.stats()["is_listening"])

    def close(self) -> None:
        """Finish the running calls, end the subscriptions, and disconnect."""
        for callback in list(self._callbacks):
            callback.cancel()
        super().close()
