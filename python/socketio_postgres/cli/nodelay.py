"""What `doctor` says about Nagle's algorithm, which holds small packets to browsers back."""

from __future__ import annotations

import asyncio
import importlib
import socket
from collections.abc import AsyncGenerator, Callable
from typing import Final

from socketio_postgres.cli.finding import Finding, note, ok

__all__ = ["nodelay"]

ABOUT: Final = "TCP_NODELAY"

LIMIT: Final = 5.0
"""Seconds for a connection within this machine."""

NewLoop = Callable[[], asyncio.AbstractEventLoop]


async def nodelay() -> AsyncGenerator[Finding, None]:
    """Whether the event loop that uvicorn would choose turns the algorithm off for a socket that it did not bind.

    `uvicorn --workers` and `--reload` hand such a socket to their processes. This tries it, in this environment.
    """
    name, new_loop = _loop()
    try:
        is_set = await asyncio.to_thread(_is_set, new_loop)
    except (OSError, asyncio.TimeoutError) as error:  # a machine without the address 127.0.0.1, for example
        yield note(ABOUT, f"could not be tried: {error}")
        return
    if is_set:
        yield ok(ABOUT, f"{name} sets it, also with `uvicorn --workers`; on connections to PostgreSQL it is always set")
    else:
        yield note(
            ABOUT,
            f"{name} does not set it with `uvicorn --workers` and `--reload`: a second small packet to a browser waits"
            " for an acknowledgement, up to 40 ms; connections to PostgreSQL are not affected",
            "Install uvloop where the servers run, or start one uvicorn for each port behind a proxy.",
        )


def _loop() -> tuple[str, NewLoop]:
    """The event loop of `uvicorn --loop auto`."""
    try:
        new_loop: NewLoop = importlib.import_module("uvloop").new_event_loop
    except ImportError:
        return "asyncio", asyncio.new_event_loop
    return "uvloop", new_loop


def _is_set(new_loop: NewLoop) -> bool:
    loop = new_loop()
    try:
        return loop.run_until_complete(asyncio.wait_for(_ask(loop), LIMIT))
    finally:
        loop.close()


async def _ask(loop: asyncio.AbstractEventLoop) -> bool:
    accepted: asyncio.Future[asyncio.BaseTransport] = loop.create_future()

    class Protocol(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            accepted.set_result(transport)

    with socket.socket(socket.AF_INET) as listening:  # as uvicorn makes it for several processes
        listening.bind(("127.0.0.1", 0))
        server = await loop.create_server(Protocol, sock=listening)
        try:
            with socket.create_connection(listening.getsockname(), timeout=LIMIT):
                transport = await accepted
                option = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                transport.close()
                return bool(option)
        finally:
            server.close()
            await server.wait_closed()
