"""Sockets that are nothing but sets, to run a node without python-socketio."""

# ruff: noqa: ARG002 - the port gives more than sets need

from __future__ import annotations

import asyncio
import json
import threading
import uuid
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

from socketio_postgres._bus.messages import Message
from socketio_postgres._cluster.handshake import handshake
from socketio_postgres._cluster.local_sockets import SocketDetails


class MemorySockets:
    """Clients by namespace and room, and what each was sent. A client answers an event by echoing its arguments."""

    has_server = True
    json: Any = json

    def __init__(self) -> None:
        self.received: dict[str, list[list[Any]]] = {}
        self._rooms: dict[str, dict[str, dict[str, None]]] = {}  # sids in the order in which they came
        self._changed: Callable[[str, str | None], None] = lambda *_: None

    def connect(self, sid: str, *rooms: str, namespace: str = "/") -> None:
        """A client comes."""
        self.received[sid] = []
        for name in ("", sid, *rooms):
            self._rooms.setdefault(namespace, {}).setdefault(name, {})[sid] = None
            self._changed(namespace, name or None)

    def rooms_of(self, sid: str, namespace: str = "/") -> set[str]:
        """The rooms that a client is in."""
        return {name for name, sids in self._rooms.get(namespace, {}).items() if name and sid in sids}

    # What follows is the port.

    def new_server_id(self) -> str:
        return uuid.uuid4().hex

    def namespaces(self) -> Iterable[object]:
        return ["/"]

    def watch(self, changed: Callable[[str, str | None], None]) -> None:
        self._changed = changed

    def has_clients(self, namespace: str | None = None) -> bool:
        return bool(self._rooms) if namespace is None else namespace in self._rooms

    def occupied_rooms(self) -> list[tuple[str, str | None]]:
        return [(namespace, name or None) for namespace, rooms in self._rooms.items() for name in rooms]

    def is_occupied(self, namespace: str, name: str | None) -> bool:
        return (name or "") in self._rooms.get(namespace, {})

    def rooms_here(self, namespace: str, names: Sequence[str] | None) -> list[Any] | None:
        return None if names is None else [name for name in names if self.is_occupied(namespace, name)]

    def sids_in(self, namespace: str, names: Sequence[str]) -> set[str]:
        rooms = self._rooms.get(namespace, {})
        return {sid for name in names for sid in rooms.get(name, ())}

    def matching(self, namespace: str, to: Sequence[str], except_: Sequence[str]) -> list[str]:
        chosen = self.sids_in(namespace, to or [""])
        return [
            sid
            for sid in self._rooms.get(namespace, {}).get("", ())
            if sid in chosen - self.sids_in(namespace, except_)
        ]

    def is_connected(self, sid: str, namespace: str) -> bool:
        return sid in self._rooms.get(namespace, {}).get("", ())

    is_here = is_alive = is_connected

    def has_hung_up(self, connection: str) -> bool:
        return False

    def enter_room(self, sid: str, namespace: str, room: Any, eio_sid: str | None = None) -> None:
        self._rooms[namespace].setdefault(room, {})[sid] = None
        self._changed(namespace, room)

    def leave_room(self, sid: str, namespace: str, name: str) -> None:
        sids = self._rooms.get(namespace, {}).get(name, {})
        sids.pop(sid, None)
        if not sids:
            self._rooms.get(namespace, {}).pop(name, None)
        if not self._rooms.get(namespace, {"": None}):
            del self._rooms[namespace]
        self._changed(namespace, name or None)

    def close_room(self, name: str, namespace: str) -> None:
        for sid in self.sids_in(namespace, [name]):
            self.leave_room(sid, namespace, name)

    def details(self, sid: str, namespace: str, failed: Callable[[Exception], None]) -> SocketDetails:
        return SocketDetails(handshake({}, 0.0), sorted(self.rooms_of(sid, namespace)), {"name": sid}, None)

    def forget(self) -> None:
        self._rooms.clear()

    def look_after(self, now: float, spawn: Callable[..., object], failed: Callable[[Exception], None]) -> None:
        pass

    def passage(self, namespace: str, rooms: tuple[str, ...]) -> Callable[[str], None] | None:
        return None

    def _deliver(
        self,
        message: Message | None,
        namespace: str,
        rooms: list[Any] | None,
        left_out: set[str],
        acknowledged: Callable[..., Any] | None,
        call: tuple[str, Any] | None,
    ) -> None:
        if message is not None:
            event = message.packet()
        else:
            assert call is not None
            event = [call[0], call[1]]
        for sid in [] if rooms == [] else self.matching(namespace, rooms or [], list(left_out)):
            self.received[sid].append(event)
            if acknowledged is not None:
                acknowledged(*event[1:])

    def _disconnect(self, sid: str, namespace: str) -> None:
        for name in (*self.rooms_of(sid, namespace), ""):
            self.leave_room(sid, namespace, name)


class AsyncMemorySockets(MemorySockets):
    """As `AsyncLocalSockets`."""

    def start(self, run: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Task[None]:
        return asyncio.create_task(run())

    async def deliver(
        self,
        message: Message | None,
        namespace: str,
        rooms: list[Any] | None,
        left_out: set[str],
        acknowledged: Callable[..., Any] | None,
        call: tuple[str, Any] | None = None,
        *,
        is_in_batch: bool = False,
    ) -> None:
        self._deliver(message, namespace, rooms, left_out, acknowledged, call)

    async def disconnect(
        self, sid: str, namespace: str, close: bool = False, failed: Callable[[Exception], None] | None = None
    ) -> None:
        self._disconnect(sid, namespace)


class BlockingMemorySockets(MemorySockets):
    """As `LocalSockets`."""

    def start(self, run: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    def deliver(
        self,
        message: Message | None,
        namespace: str,
        rooms: list[Any] | None,
        left_out: set[str],
        acknowledged: Callable[..., Any] | None,
        call: tuple[str, Any] | None = None,
        *,
        is_in_batch: bool = False,
    ) -> None:
        self._deliver(message, namespace, rooms, left_out, acknowledged, call)

    def disconnect(
        self, sid: str, namespace: str, close: bool = False, failed: Callable[[Exception], None] | None = None
    ) -> None:
        self._disconnect(sid, namespace)
