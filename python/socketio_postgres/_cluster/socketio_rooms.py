"""The sockets of this process as python-socketio keeps them, under the names that rooms have on the wire.

This and `async_socketio_sockets.py` are where the insides of python-socketio are touched.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Final

from socketio.base_manager import BaseManager

from socketio_postgres._bus.messages import Message
from socketio_postgres._cluster.handshake import handshake
from socketio_postgres._cluster.local_sockets import SocketDetails
from socketio_postgres._cluster.rooms import room_key, room_names
from socketio_postgres._cluster.socketio_delivery import (
    FEW,
    ClientPackets,
    event_maker,
    event_packets,
    has_stock_packets,
    passage_to,
)

__all__ = ["SocketioRooms"]

GHOST_AGE: Final = 60.0
"""Seconds after which a client whose connection is gone is forgotten, although its handler has not ended, or failed."""


class SocketioRooms:
    """Selects and describes local sockets; needs the room dictionaries and the server of a manager.

    Args:
        manager: A client manager of python-socketio. Its methods, which others may have replaced, are called; the
            original ones are called by `add` and the like, which those of our managers call.
    """

    def __init__(self, manager: Any) -> None:
        self._manager = manager
        # Peers know room names as strings only: where an application uses room 42, the wire says "42".
        self._aliases: dict[str, dict[str, Any]] = {}
        self._connected_at: dict[tuple[str, str], float] = {}
        self._gone_since: dict[tuple[str, str], float] = {}
        self._changed: Callable[[str, str | None], None] = lambda *_: None

    @property
    def has_server(self) -> bool:
        """As in `Sockets`."""
        return self._manager.server is not None

    @property
    def json(self) -> Any:
        """As in `Sockets`."""
        return self._manager.json

    def new_server_id(self) -> str:
        """As in `Sockets`; python-socketio calls it `host_id`."""
        self._manager.host_id = uuid.uuid4().hex
        return str(self._manager.host_id)

    def namespaces(self) -> Iterable[object]:
        """As in `Sockets`."""
        server = self._manager.server
        if server is None:
            return ()
        named = server.namespaces if server.namespaces != "*" else ()
        return [*server.handlers, *server.namespace_handlers, *named]

    def watch(self, changed: Callable[[str, str | None], None]) -> None:
        """As in `Sockets`."""
        self._changed = changed

    # -------------------------------------------------------------------------------------------- who is in which room

    def has_clients(self, namespace: str | None = None) -> bool:
        """As in `Sockets`."""
        return bool(self._manager.rooms) if namespace is None else namespace in self._manager.rooms

    def occupied_rooms(self) -> list[tuple[str, str | None]]:
        """As in `Sockets`."""
        rooms = self._manager.rooms
        return [(nsp, None if room is None else str(room)) for nsp in list(rooms) for room in list(rooms.get(nsp, ()))]

    def is_occupied(self, namespace: str, name: str | None) -> bool:
        """As in `Sockets`."""
        if name is None:
            return None in self._manager.rooms.get(namespace, {})
        return bool(self.local_rooms(namespace, [name]))

    def participants(self, namespace: str, room: Any) -> Iterable[tuple[str, str]]:
        """As `BaseManager.get_participants`, by the name of a room: 42 and `"42"` are one, and an empty list is nobody.

        Raises:
            OptionsError: It is no room.
        """
        names = None if room is None else room_names(room)
        return self._participants_in(namespace, self.rooms_here(namespace, names))

    def _participants_in(self, namespace: str, rooms: list[Any] | None) -> Iterable[tuple[str, str]]:
        """Sids and connections of the clients in these `rooms_here`, each once."""
        if rooms == []:
            return ()
        return BaseManager.get_participants(self._manager, namespace, rooms)  # type: ignore[no-any-return]

    def local_rooms(self, namespace: str, names: Iterable[str]) -> list[Any]:
        """The rooms that have clients here, out of those named on the wire."""
        rooms = self._manager.rooms.get(namespace, {})
        aliases = self._aliases.get(namespace, {})
        found = []
        for name in names:
            if name in rooms:
                found.append(name)
            if name in aliases:
                found.append(aliases[name])
        return found

    def rooms_here(self, namespace: str, names: Sequence[str] | None) -> list[Any] | None:
        """As in `Sockets`."""
        return None if names is None else self.local_rooms(namespace, names)

    def matching(self, namespace: str, to: Sequence[str], except_: Sequence[str]) -> list[str]:
        """As in `Sockets`."""
        left_out = self.sids_in(namespace, except_)
        rooms = self.local_rooms(namespace, to) if to else None
        return [sid for sid, _ in self._participants_in(namespace, rooms) if sid not in left_out]

    def sids_in(self, namespace: str, names: Sequence[str]) -> set[str]:
        """As in `Sockets`."""
        if not names:
            return set()
        if len(names) == 1 and names[0] in self._manager.rooms.get(namespace, {}).get(None, ()):
            return set(names)  # who emits to all others leaves out one sid
        return {sid for sid, _ in self._participants_in(namespace, self.local_rooms(namespace, names))}

    # -------------------------------------------------------------------------------------------- one client

    def is_connected(self, sid: str, namespace: str) -> bool:
        """As in `Sockets`."""
        return bool(self._manager.is_connected(sid, namespace))

    def is_here(self, sid: str, namespace: str) -> bool:
        """As in `Sockets`."""
        check = getattr(self._manager, "is_pre_connected", None)  # absent before python-socketio 5.17
        return self.is_connected(sid, namespace) or bool(check and check(sid, namespace))

    def is_alive(self, sid: str, namespace: str) -> bool:
        """As in `Sockets`.

        A client that vanishes while its connect handler runs stays in python-socketio's rooms until that has ended;
        peers that count it would wait for its acknowledgement.
        """
        if not self.has_server or not self.is_connected(sid, namespace):
            return False
        return not self.is_gone(self._manager.eio_sid_from_sid(sid, namespace))

    def has_hung_up(self, connection: str) -> bool:
        """As in `Sockets`."""
        return self.is_gone(connection)

    def is_gone(self, eio_sid: str | None) -> bool:
        """Whether a transport is closed, or about to tell the namespaces of its clients so."""
        # Engine.IO keeps a closed socket for up to its `ping_timeout`.
        eio_socket = self._manager.server.eio.sockets.get(eio_sid)
        return eio_socket is None or eio_socket.closed is True or getattr(eio_socket, "closing", False) is True

    def details(self, sid: str, namespace: str, failed: Callable[[Exception], None]) -> SocketDetails:
        """As in `Sockets`."""
        manager = self._manager
        server = manager.server
        eio_sid = manager.eio_sid_from_sid(sid, namespace)
        issued = self._connected_at.get((namespace, sid), 0.0)
        try:
            shake = handshake(server.environ.get(eio_sid, {}), issued)
        except Exception as error:  # noqa: BLE001  (whatever serves the application may put anything there)
            failed(error)
            shake = handshake({}, issued)
        rooms = list(manager.rooms.get(namespace, {}).items())  # at once: other threads change it
        eio_socket = server.eio.sockets.get(eio_sid)
        admin = None
        if hasattr(manager, "_timestamps"):  # python-socketio's admin instrumentation is on
            admin = {"clientId": eio_sid[:12], "transport": server.eio.transport(eio_sid)}
        return SocketDetails(
            handshake=shake,
            rooms=[str(room) for room, sids in rooms if room is not None and sid in sids],
            session=None if eio_socket is None else eio_socket.session.get(namespace, {}),
            admin=admin,
        )

    # -------------------------------------------------------------------------------------------- changes

    def enter_room(self, sid: str, namespace: str, room: Any, eio_sid: str | None = None) -> None:
        """As in `Sockets`."""
        self._manager.basic_enter_room(sid, namespace, room, eio_sid=eio_sid)

    def leave_room(self, sid: str, namespace: str, name: str) -> None:
        """As in `Sockets`."""
        for room in self.local_rooms(namespace, [name]):
            self._manager.basic_leave_room(sid, namespace, room)

    def close_room(self, name: str, namespace: str) -> None:
        """As in `Sockets`."""
        for room in self.local_rooms(namespace, [name]):
            self._manager.basic_close_room(room, namespace)

    def add(self, sid: str, namespace: str, room: Any, eio_sid: str | None) -> None:
        """As `BaseManager.basic_enter_room`, with the check of python-socketio 5.17 whatever its version.

        Raises:
            ValueError: The room is named by the sid of another client, whose messages would be heard there.
        """
        room = room_key(room)
        if room not in {None, sid} and room in self._manager.rooms.get(namespace, {}).get(None, {}):
            raise ValueError("cannot enter a sid room")
        BaseManager.basic_enter_room(self._manager, sid, namespace, room, eio_sid=eio_sid)
        if isinstance(room, int):
            self._aliases.setdefault(namespace, {})[str(room)] = room
        if room is None:
            self._connected_at[namespace, sid] = time.time()
        self._changed(namespace, None if room is None else str(room))

    def remove(self, sid: str, namespace: str, room: Any) -> None:
        """As `BaseManager.basic_leave_room`."""
        room = room_key(room)
        BaseManager.basic_leave_room(self._manager, sid, namespace, room)
        if isinstance(room, int) and room not in self._manager.rooms.get(namespace, {}):
            aliases = self._aliases.get(namespace, {})
            aliases.pop(str(room), None)
            if not aliases:
                self._aliases.pop(namespace, None)
        if room is None:
            self._connected_at.pop((namespace, sid), None)
        self._changed(namespace, None if room is None else str(room))

    def forget(self) -> None:
        """As in `Sockets`."""
        manager = self._manager
        for inherited in (
            manager.rooms,
            self._aliases,
            self._connected_at,
            manager.callbacks,
            getattr(manager, "pending_connect", {}),  # absent before python-socketio 5.17
            manager.pending_disconnect,
            self._gone_since,
        ):
            inherited.clear()

    # -------------------------------------------------------------------------------------------- ghosts

    def look_after(self, now: float, spawn: Callable[..., object], failed: Callable[[Exception], None]) -> None:
        """As in `Sockets`."""
        if self.has_server and (ended := self.forget_ghosts(now)):
            spawn(self.end_connections, ended, failed)

    def end_connections(
        self, eio_sids: list[str], failed: Callable[[Exception], None]
    ) -> Coroutine[Any, Any, None] | None:
        """Come to the namespaces that python-socketio did not come to when these connections were lost."""
        raise NotImplementedError

    def forget_ghosts(self, now: float) -> list[str]:
        """Forget clients that are gone and that python-socketio would keep for ever; returns their connections.

        It passes over a client that hangs up while its connect handler runs, and comes to no end with one whose connect
        or disconnect handler raises. A handler that is still running is given `GHOST_AGE` seconds.
        """
        manager = self._manager
        since, self._gone_since = self._gone_since, {}
        connections = []
        for pending in (getattr(manager, "pending_connect", {}), manager.pending_disconnect):
            for namespace, sids in list(pending.items()):
                clients = manager.rooms.get(namespace, {}).get(None, {})
                for sid in list(sids):
                    eio_sid = clients.get(sid)
                    if not self.is_gone(eio_sid):
                        continue
                    gone_at = since.get((namespace, sid), now)
                    if now - gone_at < GHOST_AGE:
                        self._gone_since[namespace, sid] = gone_at
                    else:
                        manager.basic_disconnect(sid, namespace)
                        _discard(pending, namespace, sid)  # python-socketio does not if the namespace is empty
                        if eio_sid is not None:
                            connections.append(eio_sid)
        return connections

    # -------------------------------------------------------------------------------------------- packets

    def packets(
        self,
        message: Message,
        rooms: list[Any] | None,
        left_out: set[str],
        acknowledged: Callable[..., Any] | None,
    ) -> list[ClientPackets] | None:
        """What an emit sends to which local clients, as in `AsyncManager.emit`; None when that has to do it."""
        manager = self._manager
        if message.nsp not in manager.rooms:
            return None
        chosen = (pair for pair in self._participants_in(message.nsp, rooms) if pair[0] not in left_out)
        if acknowledged is None:
            packets = event_packets(manager.server, message)
            return None if packets is None else [(eio_sid, packets) for _, eio_sid in chosen]
        make = event_maker(manager.server, message)
        if make is None:
            return None
        new_id = manager._generate_ack_id  # noqa: SLF001  (as AsyncManager.emit does)
        return [(eio_sid, (make(new_id(sid, acknowledged)),)) for sid, eio_sid in chosen]

    def passage(self, namespace: str, rooms: tuple[str, ...]) -> Callable[[str], None] | None:
        """As in `Sockets`."""
        manager = self._manager
        if not has_stock_packets(manager.server) or self.has_crowd(namespace, rooms, FEW):
            return None  # to look all of them up would be in vain
        sids = self.matching(namespace, rooms, ())
        return passage_to(manager.server, [manager.eio_sid_from_sid(sid, namespace) for sid in sids])

    def has_crowd(self, namespace: str, to: Sequence[str], most: int) -> bool:
        """Whether one of the rooms `to` (the namespace when empty) alone has more clients than that."""
        rooms = self._manager.rooms.get(namespace, {})
        names = self.local_rooms(namespace, to) if to else [None]
        return any(len(rooms.get(name, ())) > most for name in names)


def _discard(pending: dict[str, list[str]], namespace: str, sid: str) -> None:
    left = [each for each in pending.get(namespace, []) if each != sid]
    if left:
        pending[namespace] = left
    else:
        pending.pop(namespace, None)
