"""`AsyncCallbackSubscription`: a function called with each event, in the manner of go-sync-kit."""

from __future__ import annotations

from collections.abc import Callable

from socketio_postgres._bus.primitives import AsyncBackground, acall
from socketio_postgres.events.async_subscription import AsyncSubscription
from socketio_postgres.events.event import Handler, NotificationPayload, StoreResult
from socketio_postgres.exceptions import ClosedError

__all__ = ["AsyncCallbackSubscription"]


class AsyncCallbackSubscription:
    """A handler that is being called with events.

    Attributes:
        channel: The channel that go-sync-kit would listen on for it.
    """

    def __init__(
        self,
        subscription: AsyncSubscription,
        handler: Handler,
        channel: str,
        report: Callable[[Exception, str], None],
        forget: Callable[[AsyncCallbackSubscription], None],
    ) -> None:
        self.channel = channel
        self._subscription = subscription
        self._handler = handler
        self._report = report
        self._forget = forget
        self._is_cancelled = False
        self._background = AsyncBackground(self._run, f"event-store {channel}")

    @property
    def is_active(self) -> bool:
        """Whether it is still being called."""
        return not self._is_cancelled and self._background.is_running

    async def wait_for(self, version: StoreResult | int, timeout: float | None = None) -> None:
        """Wait until the handler has returned from everything up to a version; see `AsyncSubscription.wait_for`."""
        await self._subscription.wait_for(version, timeout)

    async def _run(self) -> None:
        try:
            async for event in self._subscription:
                try:
                    await acall(self._handler, NotificationPayload.of(event))
                except Exception as error:  # noqa: BLE001 - the user's; one failure must not end the subscription
                    self._report(error, f"the handler of {self.channel} failed for event {event.id!r}")
        except ClosedError:
            return
        except Exception as error:  # noqa: BLE001 - it would be lost otherwise
            self._report(error, f"the subscription to {self.channel} ended")
        finally:
            self._end()  # in any case, even if the event loop ends

    def _end(self) -> None:
        if not self._is_cancelled:
            self._is_cancelled = True
            self._subscription.close()
            self._forget(self)

    async def cancel(self) -> None:
        """Stop calling the handler; other subscriptions go on. After it returns no call is under way."""
        self._end()
        await self._background.stop()
