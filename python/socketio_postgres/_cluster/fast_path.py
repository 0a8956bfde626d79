"""Messages that arrived together, on their way to local clients: what many of them have in common is looked up once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engineio.packet import MESSAGE
from engineio.packet import Packet as EnginePacket

from socketio_postgres._cluster.local_delivery import FEW, has_stock_packets, queues_of

if TYPE_CHECKING:
    import asyncio

    from socketio_postgres._bus.messages import Message
    from socketio_postgres._cluster.member import ClusterMember

__all__ = ["Batch"]


class Batch:
    """Passes events on, as long as nothing else is done: no other task may run, and no room may change meanwhile.

    In a flood each message looking for the same clients again was half of what the server had to do.
    """

    def __init__(self, member: ClusterMember) -> None:
        self._member = member
        self._queues: dict[tuple[str, tuple[str, ...]], list[asyncio.Queue[Any]] | None] = {}
        self._seen: set[tuple[str, str]] = set()

    def pass_on(self, message: Message) -> bool:
        """Queue an event for the clients that it is for. False when it takes more than that; then nothing was done."""
        event = message.plain_event
        if event is None:
            return False
        target, uid, text = event
        try:
            if target in self._queues:
                queues = self._queues[target]
            else:
                queues = self._queues[target] = self._look_up(*target)
            if queues is None:
                return False
            sender = (target[0], uid)
            if sender not in self._seen:
                self._member._see_peer(*sender)  # noqa: SLF001  (a part of it)
                self._seen.add(sender)
        except Exception:  # noqa: BLE001  (a user's logger, for example; the longer way meets it, too, and tells)
            return False
        packet = EnginePacket(MESSAGE, text)
        for queue in queues:
            queue.put_nowait(packet)
        return True

    def _look_up(self, namespace: str, rooms: tuple[str, ...]) -> list[asyncio.Queue[Any]] | None:
        member = self._member
        if not member.is_serving(namespace) or not has_stock_packets(member.server):
            return None
        if member.has_crowd(namespace, rooms, FEW):
            return None  # to look all of them up would be in vain
        sids = member.local_sids(namespace, rooms, ())
        return queues_of(member.server, [member.eio_sid_from_sid(sid, namespace) for sid in sids])
