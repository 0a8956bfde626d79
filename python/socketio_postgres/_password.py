"""Run a coroutine that yields a password; called by the core on a thread of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable


def resolve(password: Awaitable[str]) -> str:
    """Return what `password` yields, in a private event loop."""

    async def wait() -> str:
        return await password

    return asyncio.run(wait())
