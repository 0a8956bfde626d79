"""`AsyncEventStore`: events stored in PostgreSQL, read in commit-safe order, and heard live."""

from __future__ import annotations

import contextlib

from socketio_postgres._bus.hook import AsyncHook
from socketio_postgres._typing import Unpack
from socketio_postgres.events.async_callback_subscription import AsyncCallbackSubscription
from socketio_postgres.events.async_event_feed import AsyncEventFeed
from socketio_postgres.events.event import END, Handler
from socketio_postgres.events.filter import Filter
from socketio_postgres.events.options import EventStoreKeywords

__all__ = ["AsyncEventStore"]


class AsyncEventStore(AsyncEventFeed):
    """An event store on one table, shared with go-sync-kit if it made the table.

    Nothing connects before the first call, or `async with`. Any number of tasks may use it at once.

        async with AsyncEventStore(dsn) as store:
            result = await store.store(Event("OrderPlaced", "order-1", {"total": 5}), expected=NO_STREAM)
            async for event in store.subscribe(after=START):
                ...

    Args:
        dsn: Connection string or URL as libpq reads it.
        options: As in `EventStoreOptions`.

    Raises:
        OptionsError: The DSN or an option is wrong.
    """

    def __init__(self, dsn: str = "", **options: Unpack[EventStoreKeywords]) -> None:
        super().__init__(dsn, **options)
        self._callbacks: list[AsyncCallbackSubscription] = []

    # ---------------------------------------------------------------- writing, reading: async_event_log.py
    # ----------------------------------------------- subscriptions, durable or not: async_event_feed.py
    # --------------------------------------------------------------------------- callbacks, as go-sync-kit has them

    async def subscribe_to_all(self, handler: Handler) -> AsyncCallbackSubscription:
        """Call `handler` with each event that is stored from now on. `SubscribeToAll` in Go.

        Args:
            handler: Receives a `NotificationPayload`; may be a coroutine function. Exceptions that it raises are logged
                and passed to `error_handler`; then the next event follows.
        """
        return await self._call_back(handler, "events_global", [])

    async def subscribe_to_stream(self, aggregate_id: str, handler: Handler) -> AsyncCallbackSubscription:
        """Call `handler` with each event of an aggregate that is stored from now on. `SubscribeToStream` in Go."""
        return await self._call_back(handler, f"stream_{aggregate_id}", [Filter("aggregate_id", aggregate_id)])

    async def subscribe_to_event_type(self, event_type: str, handler: Handler) -> AsyncCallbackSubscription:
        """Call `handler` with each event of a type that is stored from now on. `SubscribeToEventType` in Go."""
        return await self._call_back(handler, "events_global", [Filter("type", event_type)])

    async def _call_back(self, handler: Handler, channel: str, filters: list[Filter]) -> AsyncCallbackSubscription:
        AsyncHook.check("handler", handler)
        subscription = self.subscribe(END, filters)
        await subscription.__aenter__()
        # Callbacks of an event loop that was closed without ending them are still in the list.
        self._callbacks = [each for each in self._callbacks if each.is_active]
        callback = AsyncCallbackSubscription(subscription, handler, channel, self._report, self._forget_callback)
        self._callbacks.append(callback)
        return callback

    def _forget_callback(self, callback: AsyncCallbackSubscription) -> None:
        with contextlib.suppress(ValueError):  # it had ended at once
            self._callbacks.remove(callback)

    async def unsubscribe_from_stream(self, aggregate_id: str) -> None:
        """End all callbacks of an aggregate. `UnsubscribeFromStream` in Go."""
        await self._cancel_channel(f"stream_{aggregate_id}")

    async def unsubscribe_from_all(self) -> None:
        """End all callbacks for all events and for event types. `UnsubscribeFromAll` in Go."""
        await self._cancel_channel("events_global")

    async def _cancel_channel(self, channel: str) -> None:
        for callback in [callback for callback in self._callbacks if callback.channel == channel]:
            await callback.cancel()

    def active_subscriptions(self) -> list[str]:
        """Channels of the callbacks. `GetActiveSubscriptions` in Go."""
        return sorted({callback.channel for callback in self._callbacks if callback.is_active})

    @property
    def is_listener_connected(self) -> bool:
        """Whether the listening connection is open. Without subscriptions there is none."""
        return bool(self._core.stats()["is_listening"])

    async def close(self) -> None:
        """Finish the running calls, end the subscriptions, and disconnect."""
        for callback in list(self._callbacks):
            await callback.cancel()
        await super().close()
