"""A real Socket.IO client of the chat, for the check and for showing what crosses."""

from __future__ import annotations

import asyncio
import itertools
import os
from typing import TYPE_CHECKING, Any

import socketio

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from socketio_postgres._typing import Self

TIMEOUT = 5.0
"""Seconds any single answer or message may take."""

Argument = dict[str, Any]
"""What each of the chat's events carries."""


class ChatClient:
    """Connects on entering the `with` block; keeps every packet it receives.

    Args:
        url: Address of a chat server.
        name: Shown with its messages.
        on_packet: Called with each packet as it arrives.
    """

    def __init__(self, url: str, name: str, on_packet: Callable[[str, Argument], None] | None = None) -> None:
        self.name = name
        self.received: list[tuple[str, Argument]] = []
        self._url = url
        self._on_packet = on_packet
        self._arrived = asyncio.Condition()
        self._numbers = itertools.count(1)
        # Its own handling of Ctrl-C would cancel every task of the loop, ours included.
        self._sio = socketio.AsyncClient(handle_sigint=False)
        self._sio.on("*", self._keep)

    async def __aenter__(self) -> Self:
        await self._sio.connect(self._url, transports=["websocket"], wait_timeout=TIMEOUT)
        self.welcome = await self.wait_for("welcome", lambda _: True)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._sio.disconnect()

    @property
    def sid(self) -> str:
        """Where private messages for this client go."""
        return str(self.welcome["sid"])

    async def join(self, room: str) -> None:
        """Enter a room; returns when the server has done so."""
        await self._sio.call("join", room, timeout=TIMEOUT)

    async def say(self, **message: object) -> str:
        """Send a message; returns its id when the server has accepted it."""
        # Unique over all runs: another demo may use the same database.
        message_id = f"{self.sid}-{os.getpid()}-{next(self._numbers)}"
        answer = await self._sio.call("message", {"id": message_id, "name": self.name, **message}, timeout=TIMEOUT)
        if "error" in answer:
            raise ValueError(answer["error"])
        return message_id

    async def message(self, message_id: str) -> Argument:
        """Wait for one message."""
        return await self.wait_for("message", lambda message: message["id"] == message_id)

    async def wait_for(self, event: str, condition: Callable[[Argument], bool]) -> Argument:
        """Wait until a packet has arrived and give its argument; those kept from earlier count.

        Raises:
            TimeoutError: Nothing fitting within five seconds.
        """

        def matches() -> list[Argument]:
            return [argument for name, argument in self.received if name == event and condition(argument)]

        async with self._arrived:
            try:
                found = await asyncio.wait_for(self._arrived.wait_for(matches), TIMEOUT)
            except asyncio.TimeoutError:
                raise TimeoutError(f"no such {event!r} reached {self.name} within {TIMEOUT:g} s") from None
        return found[0]

    async def _keep(self, event: str, argument: Argument) -> None:
        async with self._arrived:
            self.received.append((event, argument))
            self._arrived.notify_all()
        if self._on_packet is not None:
            self._on_packet(event, argument)
