"""The sockets of this process as the cluster sees them: rooms by their names on the wire.

Mixed into both managers; needs nothing but the room dictionaries that python-socketio keeps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from socketio.base_manager import BaseManager

from socketio_postgres._cluster.rooms import room_key, room_names

__all__ = ["LocalSockets"]

GHOST_AGE: Final = 60.0
"""Seconds after which a client whose connection is gone is forgotten, although its handler has not ended, or failed."""


class LocalSockets(BaseManager):  # type: ignore[misc]  # python-socketio is not typed
    """Selects local sockets by room names."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Peers know room names as strings only: where an application uses room 42, the wire says "42".
        self._room_aliases: dict[str, dict[str, Any]] = {}
        self._gone_since: dict[tuple[str, str], float] = {}

    def basic_enter_room(self, sid: str, namespace: str, room: Any, eio_sid: str | None = None) -> None:
        """As in `BaseManager`, with the check of python-socketio 5.17 whatever its version.

        Raises:
            ValueError: The room is named by the sid of another client, whose messages would be heard there.
        """
        room = room_key(room)
        if room not in {None, sid} and room in self.rooms.get(namespace, {}).get(None, {}):
            raise ValueError("cannot enter a sid room")
        super().basic_enter_room(sid, namespace, room, eio_sid=eio_sid)
        if isinstance(room, int):
            self._room_aliases.setdefault(namespace, {})[str(room)] = room

    def basic_leave_room(self, sid: str, namespace: str, room: Any) -> None:
        """As in `BaseManager`."""
        room = room_key(room)
        super().basic_leave_room(sid, namespace, room)
        if isinstance(room, int) and room not in self.rooms.get(namespace, {}):
            aliases = self._room_aliases.get(namespace, {})
            aliases.pop(str(room), None)
            if not aliases:
                self._room_aliases.pop(namespace, None)

    def get_participants(self, namespace: str, room: Any) -> Iterable[tuple[str, str]]:
        """As in `BaseManager`, by any room's name: 42 and `"42"` are one, and an empty list of rooms is nobody.

        Raises:
            OptionsError: It is no room.
        """
        names = None if room is None else room_names(room)
        return self.participants_in(namespace, self.rooms_here(namespace, names))

    def participants_in(self, namespace: str, rooms: list[Any] | None) -> Iterable[tuple[str, str]]:
        """Sids and connections of the clients in these `rooms_here`, each once."""
        if rooms == []:
            return ()
        return super().get_participants(namespace, rooms)  # type: ignore[no-any-return]

    def local_rooms(self, namespace: str, names: Iterable[str]) -> list[Any]:
        """The rooms that have members here, out of those named on the wire."""
        rooms = self.rooms.get(namespace, {})
        aliases = self._room_aliases.get(namespace, {})
        found = []
        for name in names:
            if name in rooms:
                found.append(name)
            if name in aliases:
                found.append(aliases[name])
        return found

    def rooms_here(self, namespace: str, names: Sequence[str] | None) -> list[Any] | None:
        """As `local_rooms`, where None is everybody."""
        return None if names is None else self.local_rooms(namespace, names)

    def local_sids(self, namespace: str, to: Sequence[str], except_: Sequence[str]) -> list[str]:
        """Sids in any of the rooms `to` (everyone when empty) and in none of `except_`, each once."""
        left_out = self.sids_in(namespace, except_)
        rooms = self.local_rooms(namespace, to) if to else None
        return [sid for sid, _ in self.participants_in(namespace, rooms) if sid not in left_out]

    def has_crowd(self, namespace: str, to: Sequence[str], most: int) -> bool:
        """Whether one of the rooms `to` (the namespace when empty) alone has more clients than that."""
        rooms = self.rooms.get(namespace, {})
        names = self.local_rooms(namespace, to) if to else [None]
        return any(len(rooms.get(name, ())) > most for name in names)

    def sids_in(self, namespace: str, names: Sequence[str]) -> set[str]:
        """Sids in any of the rooms named."""
        if not names:
            return set()
        if len(names) == 1 and names[0] in self.rooms.get(namespace, {}).get(None, ()):
            return set(names)  # who emits to all others leaves out one sid
        return {sid for sid, _ in self.participants_in(namespace, self.local_rooms(namespace, names))}

    def is_alive(self, sid: str, namespace: str) -> bool:
        """Whether a client is connected and its transport is open.

        A client that vanishes while its connect handler runs stays in python-socketio's rooms until that has ended;
        peers that count it would wait for its acknowledgement.
        """
        if self.server is None or not self.is_connected(sid, namespace):
            return False
        return not self._is_gone(self.eio_sid_from_sid(sid, namespace))

    def _is_gone(self, eio_sid: str | None) -> bool:
        """Whether a transport is closed, or about to tell the namespaces of its clients so."""
        # Engine.IO keeps a closed socket for up to its `ping_timeout`.
        eio_socket = self.server.eio.sockets.get(eio_sid)
        return eio_socket is None or eio_socket.closed is True or getattr(eio_socket, "closing", False) is True

    def forget_ghosts(self, now: float) -> list[str]:
        """Forget clients that are gone and that python-socketio would keep for ever; returns their connections.

        It passes over a client that hangs up while its connect handler runs, and comes to no end with one whose connect
        or disconnect handler raises. A handler that is still running is given `GHOST_AGE` seconds.
        """
        since, self._gone_since = self._gone_since, {}
        connections = []
        for pending in (getattr(self, "pending_connect", {}), self.pending_disconnect):
            for namespace, sids in list(pending.items()):
                clients = self.rooms.get(namespace, {}).get(None, {})
                for sid in list(sids):
                    eio_sid = clients.get(sid)
                    if not self._is_gone(eio_sid):
                        continue
                    gone_at = since.get((namespace, sid), now)
                    if now - gone_at < GHOST_AGE:
                        self._gone_since[namespace, sid] = gone_at
                    else:
                        self.basic_disconnect(sid, namespace)
                        _discard(pending, namespace, sid)  # it does not, when nobody is left in the namespace
                        if eio_sid is not None:
                            connections.append(eio_sid)
        return connections


def _discard(pending: dict[str, list[str]], namespace: str, sid: str) -> None:
    left = [each for each in pending.get(namespace, []) if each != sid]
    if left:
        pending[namespace] = left
    else:
        pending.pop(namespace, None)
