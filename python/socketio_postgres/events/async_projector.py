"""`AsyncProjector`: runs a projection, one transaction a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from socketio_postgres._bus.drivers import is_passing, is_unavailable, was_too_long
from socketio_postgres._bus.primitives import AsyncBackground, afinished, asleep
from socketio_postgres.events.async_durable_subscription import AsyncDurableSubscription
from socketio_postgres.events.async_switch import AsyncSwitch
from socketio_postgres.events.async_transaction import transaction_from
from socketio_postgres.events.event import StoredEvent
from socketio_postgres.events.failure_policy import FailurePolicy, Park, Skip
from socketio_postgres.events.projection import Projection
from socketio_postgres.exceptions import SubscriptionFencedError, SubscriptionRetiredError

__all__ = ["AsyncProjector"]

RETRY_FIRST: Final = 0.05
RETRY_LAST: Final = 5.0
"""Shortest and longest pause before a transaction is tried again that another one, or an outage, has ended."""


class AsyncProjector:
    """Hands batches of a durable subscription to a projection, and decides about failures."""

    def __init__(
        self,
        durable: AsyncDurableSubscription,
        projection: Projection,
        connect: Any,
        policy: FailurePolicy,
        switch: AsyncSwitch,
        report: Callable[[Exception, str], None],
    ) -> None:
        self._durable = durable
        self._projection = projection
        self._connect = connect
        self._policy = policy
        self._switch = switch
        self._report = report
        self._is_handling = False
        # No transaction is open here when an event is parked, so a lock is somebody else's, and ends.
        durable.serve_projection()

    async def run(self, max_count: int, max_wait: float, max_bytes: int) -> None:
        """Run until a newer version is served."""
        is_new = await self._switch.is_wanted()
        async with self._durable:
            if not is_new:
                await self._run(max_count, max_wait, max_bytes)
                return
            switching = AsyncBackground(self._switch.run, f"switch {self._durable.name}")
            try:
                await self._run(max_count, max_wait, max_bytes)
            finally:
                self._switch.end()
                await switching.stop()

    async def _run(self, max_count: int, max_wait: float, max_bytes: int) -> None:
        async for batch in self._durable.batches(max_count, max_wait, max_bytes):
            try:
                await self._handle_all(list(batch))
            except SubscriptionRetiredError:
                raise
            except SubscriptionFencedError as error:
                # Partitions, and their events with them, are somebody else's. The others come again.
                self._report(error, f"{self._durable.name}: events are left to another consumer")
                await self._durable.come_back()

    async def _handle_all(self, events: list[StoredEvent]) -> None:
        """Handle a batch; events that are to be set aside, or that are suspicious, one by one, in their place."""
        together: list[StoredEvent] = []
        for event in events:
            if not await self._durable.is_to_be_handled_alone(event, self._policy):
                together.append(event)
                continue
            if together:
                await self._handle(together)
                together = []
            await self._handle_each([event])
        if together:
            await self._handle(together)

    async def _handle(self, events: list[StoredEvent]) -> None:
        attempts, delay = 0, RETRY_FIRST
        while True:
            try:
                await self._apply(events)
            except SubscriptionFencedError:
                raise
            except Exception as error:
                if not self._is_handling and not is_unavailable(error):
                    raise  # whatever the policy: it is not the event's fault
                if is_passing(error) or not self._is_handling:
                    self._report(error, f"{self._durable.name}: trying again")
                    if was_too_long(error) and len(events) > 1:
                        await self._handle_each(events)
                        return
                    await asleep(delay)
                    delay = min(delay * 2, RETRY_LAST)
                    continue
                if len(events) > 1:
                    await self._handle_each(events)
                    return
                attempts += 1
                if attempts < self._policy.after:
                    await asleep(self._policy.pause(attempts))
                    continue
                await self._decide(events[0], error, attempts)
            return

    async def _handle_each(self, events: list[StoredEvent]) -> None:
        for event in events:
            if not isinstance(self._policy, Park) or await self._durable.is_fit(event, self._policy):
                await self._handle([event])

    async def _decide(self, event: StoredEvent, error: Exception, attempts: int) -> None:
        """Do what the policy says about an event that has failed for good."""
        if isinstance(self._policy, Park):
            await self._durable.set_aside(event, error, attempts)
        elif isinstance(self._policy, Skip):
            await self._durable.ack(event)
        else:
            raise error
        self._report(error, f"{self._durable.name}: event {event.version} failed {attempts} times")

    async def _apply(self, events: list[StoredEvent]) -> None:
        """Apply events and move the position, in one transaction."""
        self._is_handling = False
        async with transaction_from(self._connect) as conn:
            fresh, transaction = await self._durable.fence_in(conn, events)
            self._is_handling = True
            if fresh:
                await afinished(self._projection.handle(conn, fresh))
                await self._durable.move_in(conn, fresh, transaction)
        self._durable.has_committed(events)
