"""What a task waits for, and the work beside it, end when they are told to."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from socketio_postgres._bus.primitives import AsyncBackground, awithin


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


async def test_a_cancellation_that_comes_with_the_result_is_not_lost() -> None:
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(awithin(future, 20))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    future.set_result(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_what_is_awaited_for_too_long_is_cancelled() -> None:
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    with pytest.raises(asyncio.TimeoutError):
        await awithin(future, 0.01)
    assert future.cancelled()


async def test_what_was_awaited_in_time_gives_its_result_or_its_exception() -> None:
    async def fails() -> int:
        raise ValueError("no")

    assert await awithin(asyncio.sleep(0, 7), 20) == 7
    with pytest.raises(ValueError, match="no"):
        await awithin(fails(), None)


@pytest.mark.parametrize("timeout", [0, -1])
async def test_what_is_there_counts_however_short_the_time(timeout: float) -> None:
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    future.set_result(7)
    assert await awithin(future, timeout) == 7
    task = asyncio.create_task(awithin(asyncio.Event().wait(), timeout))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
