"""Packets for local clients, without the detours: JSON is passed on as it came, and no task is made for each client.

What arrives in the end is what python-socketio's own `emit` would have sent. Wherever something on the way is not the
original (another packet class or json module, a subclass, a patch, a release we do not know), that is used.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

import engineio.json
import socketio.packet
from engineio.async_server import AsyncServer as EngineServer
from engineio.async_socket import AsyncSocket
from engineio.packet import MESSAGE
from engineio.packet import Packet as EnginePacket
from socketio.async_server import AsyncServer
from socketio.server import Server

from socketio_postgres._bus.messages import Message

__all__ = ["FEW", "ClientPackets", "event_maker", "event_packets", "has_stock_packets", "passage_to", "queue_for"]

KNOWN: Final = {"python-engineio": (4, 15), "python-socketio": (5, 18)}
"""Newest releases whose sending was read, and is tested, line by line."""


def _is_known(package: str, newest: tuple[int, int]) -> bool:
    numbers = re.findall(r"\d+", importlib.metadata.version(package))
    return tuple(map(int, numbers[:2])) <= newest


IS_KNOWN: Final = all(_is_known(package, newest) for package, newest in KNOWN.items())

ORIGINALS: Final[tuple[tuple[type, str, Callable[..., Any]], ...]] = tuple(
    (owner, name, getattr(owner, name))
    for owner, names in (
        (AsyncServer, ("_send_eio_packet",)),
        (EngineServer, ("send_packet", "_get_socket")),
        (AsyncSocket, ("send", "check_ping_timeout")),
    )
    for name in names
    if getattr(getattr(owner, name, None), "__module__", "").partition(".")[0] in {"engineio", "socketio"}
)
"""The functions that `queue_for` stands in for, unless somebody had replaced them before we were imported."""

SHORTENED: Final = 5

SENDERS: Final = [
    function
    for function in (getattr(owner, "_send_packet", None) for owner in (AsyncServer, Server))
    if getattr(function, "__module__", "").partition(".")[0] == "socketio"
]
"""Likewise for `event_maker`."""

ClientPackets: TypeAlias = tuple[str, Sequence[EnginePacket]]
"""An Engine.IO connection, and the packets for it."""

FEW: Final = 16
"""Clients that are served within a batch of messages without a turn for others; a batch takes milliseconds then."""


def has_stock_packets(server: Any) -> bool:
    """Whether packets are python-socketio's own, in JSON of the standard library."""
    return server.packet_class is socketio.packet.Packet and server.packet_class.json is engineio.json


def _head(namespace: str) -> str:
    """How the packet of an event begins."""
    return f"{socketio.packet.EVENT}" if namespace == "/" else f"{socketio.packet.EVENT}{namespace},"


def event_packets(server: Any, message: Message) -> list[EnginePacket] | None:
    """The packets that carry a message's event to any client; None when python-socketio has to make them."""
    if not has_stock_packets(server):
        return None
    text = message.packet_json
    if text is not None and text.startswith('["'):
        return [EnginePacket(MESSAGE, f"{_head(message.nsp)}{text}")]
    data = message.packet()
    if not isinstance(data, list) or not data or not isinstance(data[0], str):
        return None  # no event, which is for others to tell
    # Binary goes the same way as JSON, or one would overtake the other.
    encoded = server.packet_class(socketio.packet.EVENT, data, namespace=message.nsp).encode()
    return [EnginePacket(MESSAGE, part) for part in (encoded if isinstance(encoded, list) else [encoded])]


def event_maker(server: Any, message: Message) -> Callable[[int], EnginePacket] | None:
    """Makes the packet of an event that a client is to acknowledge under an id; None when python-socketio has to.

    The parts before and after the id are the same for all clients.
    """
    text = message.packet_json
    is_plain = IS_KNOWN and has_stock_packets(server) and text is not None and text.startswith('["')
    if not is_plain or "_send_packet" in vars(server) or getattr(type(server), "_send_packet", None) not in SENDERS:
        return None
    head = _head(message.nsp)
    return lambda id_: EnginePacket(MESSAGE, f"{head}{id_}{text}")


def _is_original(server: Any) -> bool:
    """Whether sending goes the way that `queue_for` shortens."""
    if not IS_KNOWN or len(ORIGINALS) != SHORTENED:
        return False
    engine = server.eio
    if "_send_eio_packet" in vars(server) or "send_packet" in vars(engine) or "_get_socket" in vars(engine):
        return False
    own = getattr(type(server), "_send_eio_packet", None)
    if own is not getattr(AsyncServer, "_send_eio_packet") or type(engine) is not EngineServer:  # noqa: B009
        return False
    return all(getattr(owner, name) is function for owner, name, function in ORIGINALS)


def _is_short_way(server: Any) -> bool:
    # Engine.IO tells of each packet at this level; a logger of another kind may want to know, too.
    is_logging = getattr(server.eio.logger, "isEnabledFor", None)
    return _is_original(server) and is_logging is not None and not is_logging(logging.INFO)


def _queue_of(engine: Any, eio_sid: str, now: float) -> asyncio.Queue[Any] | None:
    """The queue of a client that is well."""
    socket = engine.sockets.get(eio_sid)
    if socket is None or socket.closed or (socket.last_ping and now - socket.last_ping > engine.ping_timeout):
        return None
    return socket.queue  # type: ignore[no-any-return]


def passage_to(server: Any, eio_sids: Sequence[str]) -> Callable[[str], None] | None:
    """Puts the text of an event into the queues of a few clients at once; None if that is not all it takes."""
    if len(eio_sids) > FEW or not _is_short_way(server):
        return None
    now = time.time()
    puts = []
    for eio_sid in eio_sids:
        queue = _queue_of(server.eio, eio_sid, now)
        if queue is None:
            return None
        puts.append(queue.put_nowait)

    def pass_on(text: str) -> None:
        packet = EnginePacket(MESSAGE, text)
        for put in puts:
            put(packet)

    return pass_on


async def queue_for(server: Any, clients: Sequence[ClientPackets]) -> None:
    """Queue packets for clients, each client's in order. Others have no turn meanwhile; the caller is to give them one.

    python-socketio makes a task for every client and packet, which costs more than all else it does for them. What the
    tasks would do is done here for all clients that are well; the others get theirs.
    """
    if not _is_short_way(server):
        await _send_to(server, clients)
        return
    engine = server.eio
    now = time.time()
    unwell = []
    for client in clients:
        eio_sid, packets = client
        queue = _queue_of(engine, eio_sid, now)
        if queue is None:
            unwell.append(client)
            continue
        for packet in packets:
            queue.put_nowait(packet)
    if unwell:
        # Not awaited, because it may end in the application's disconnect handler.
        task = asyncio.create_task(_send_to(server, unwell))
        _background.add(task)  # the loop alone would not keep it
        task.add_done_callback(_background.discard)


_background: Final[set[asyncio.Task[None]]] = set()


async def _send_to(server: Any, clients: Sequence[ClientPackets]) -> None:
    sending = [
        asyncio.create_task(server._send_eio_packet(eio_sid, packet))  # noqa: SLF001  (as AsyncManager.emit does)
        for eio_sid, packets in clients
        for packet in packets
    ]
    if sending:
        await asyncio.wait(sending)
