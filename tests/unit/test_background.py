"""Work beside a task ends when it is told to."""

from __future__ import annotations

import asyncio
import contextlib

from socketio_postgres._bus.primitives import AsyncBackground


async def test_a_cancellation_that_was_lost_is_asked_for_again() -> None:
    """As by `asyncio.wait_for` before Python 3.12, when it comes together with the result."""

    async def work() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await asyncio.Event().wait()

    background = AsyncBackground(work, "work")
    await asyncio.sleep(0)
    await asyncio.wait_for(background.stop(), 20)
    assert not background.is_running
