"""`demo --check`: real Socket.IO clients on both servers verify what crosses between them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

from socketio_postgres.demo.client import ChatClient

Check = Callable[["Clients"], Awaitable[None]]

TOTAL_TIMEOUT = 40.0
"""Seconds all checks together may take; each wait within has its own, shorter limit."""


class Clients:
    """The clients of one run: two on north, two on south."""

    def __init__(self, north_url: str, south_url: str) -> None:
        self.north = ChatClient(north_url, "Nora")
        self.north_other = ChatClient(north_url, "Niels")
        self.south = ChatClient(south_url, "Sara")
        self.south_other = ChatClient(south_url, "Silas")

    def all(self) -> list[ChatClient]:
        """All four."""
        return [self.north, self.north_other, self.south, self.south_other]


class CheckError(Exception):
    """Something arrived that should not, or otherwise than it was sent."""


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise CheckError(otherwise)


async def _text(sender: ChatClient, receivers: list[ChatClient], text: str) -> None:
    message_id = await sender.say(text=text)
    for receiver in receivers:
        message = await receiver.message(message_id)
        _require(message["text"] == text, "the text arrived changed")
        _require(message["server"] == sender.welcome["server"], f"it claims to come from {message['server']}")


async def _text_to_south(clients: Clients) -> None:
    await _text(clients.north, clients.all(), "Hello south — ¿qué tal? 👋 \u0000")


async def _text_to_north(clients: Clients) -> None:
    await _text(clients.south, clients.all(), "Hello north")


async def _large_text(clients: Clients) -> None:
    await _text(clients.south, clients.all(), "more than a notification can carry, " * 1000)


async def _binary(clients: Clients) -> None:
    for sender, size in ((clients.north, 256), (clients.south, 256), (clients.north, 200_000)):
        image = bytes(index * index % 251 for index in range(size))
        message_id = await sender.say(image=image, type="image/png")
        for receiver in clients.all():
            received = (await receiver.message(message_id))["image"]
            _require(isinstance(received, bytes), f"bytes arrived as {type(received).__name__}")
            _require(received == image, "the bytes arrived changed")


async def _room(clients: Clients) -> None:
    members = [clients.north, clients.south]
    for member in members:
        await member.join("crew")
    message_id = await clients.north.say(text="only for the crew", room="crew")
    for member in members:
        await member.message(message_id)
    await _not_received(clients, message_id, [clients.north_other, clients.south_other])


async def _private(clients: Clients) -> None:
    message_id = await clients.north.say(text="only for you", to=clients.south_other.sid)
    await clients.south_other.message(message_id)
    await _not_received(clients, message_id, [clients.north_other, clients.south])


async def _not_received(clients: Clients, message_id: str, outsiders: list[ChatClient]) -> None:
    """Send a last message to everybody. Messages that did not arrive before it are lost, because order is kept."""
    later_id = await clients.north.say(text="for everybody")
    for outsider in outsiders:
        await outsider.message(later_id)
        ids = [argument["id"] for event, argument in outsider.received if event == "message"]
        _require(message_id not in ids, f"it reached {outsider.name} too")


async def _order(clients: Clients) -> None:
    sizes = [10, 20_000] * 10  # in the notification, beside it in the table, in turn
    ids = [await clients.north.say(text="x" * size) for size in sizes]
    for receiver in (clients.north_other, clients.south):
        await receiver.message(ids[-1])
        arrived = [argument["id"] for event, argument in receiver.received if event == "message"]
        _require([one for one in arrived if one in ids] == ids, f"{receiver.name} got them in another order")


async def _emitter(clients: Clients) -> None:
    # Another demo on the same database ticks too: one and the same tick must reach all.
    first = await clients.north.wait_for("tick", lambda _: True)
    last = await clients.south.wait_for("tick", lambda tick: tick["count"] > first["count"])
    for receiver in clients.all():
        await receiver.wait_for("tick", lambda tick: (tick["pid"], tick["count"]) == (last["pid"], last["count"]))


CHECKS: dict[str, Check] = {
    "text north → south": _text_to_south,
    "text south → north": _text_to_north,
    "36 000 characters south → north": _large_text,
    "bytes, small and 200 kB, both ways": _binary,
    "room: members on both, nobody else": _room,
    "private: one client of the other": _private,
    "order: small and large in turn": _order,
    "emitter process → clients of both": _emitter,
}


async def run_checks(north_url: str, south_url: str) -> bool:
    """Verify delivery between two running chat servers, print a line per check; true when all is well.

    Args:
        north_url: Address of one server.
        south_url: Address of the other.
    """
    began = time.monotonic()
    clients = Clients(north_url, south_url)
    passed = 0
    try:
        async with contextlib.AsyncExitStack() as stack:
            for client in clients.all():
                await stack.enter_async_context(client)
            for name, check in CHECKS.items():
                left = TOTAL_TIMEOUT - (time.monotonic() - began)
                passed += await _run_check(name, check, clients, left)
    except Exception as error:  # noqa: BLE001 -- whatever it is, it belongs in the report
        print(f"  FAIL  connect: {_reason(error)}")
    print(f"{passed} of {len(CHECKS)} checks passed in {time.monotonic() - began:.1f} s", flush=True)
    return passed == len(CHECKS)


async def _run_check(name: str, check: Check, clients: Clients, timeout: float) -> bool:
    began = time.monotonic()
    reason = ""
    try:
        await asyncio.wait_for(check(clients), max(timeout, 0))
    except Exception as error:  # noqa: BLE001 -- whatever it is, it belongs in the report
        reason = f"  {_reason(error)}"
    elapsed_ms = (time.monotonic() - began) * 1000
    print(f"  {'FAIL' if reason else 'ok':4}  {name:36} {elapsed_ms:7.1f} ms{reason}", flush=True)
    return not reason


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
