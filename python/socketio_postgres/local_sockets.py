"""The sockets of this process as the cluster sees them: rooms by their names on the wire.

Mixed into both managers; needs nothing but the room dictionaries that python-socketio keeps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from socketio.base_manager import BaseManager

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

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
        """As in `BaseManager`."""
        super().basic_enter_room(sid, namespace, room, eio_sid=eio_sid)
        if room is not None and not isinstance(room, str):
            self._room_aliases.setdefault(namespace, {})[str(room)] = room

    def basic_leave_room(self, sid: str, namespace: str, room: Any) -> None:
        """As in `BaseManager`."""
        super().basic_leave_room(sid, namespace, room)
        if room is not None and not isinstance(room, str) and room not in self.rooms.get(namespace, {}):
            aliases = self._room_aliases.get(namespace, {})
            aliases.pop(str(room), None)
            if not aliases:
                self._room_aliases.pop(namespace, None)

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

    def same_rooms(self, namespace: str, room: Any) -> list[Any]:
        """The rooms here that are `room` to the cluster, which takes 42 and "42" for one; `room` if there are none."""
        return self.local_rooms(namespace, [str(room)]) or [room]

    def delivery_room(self, namespace: str, room: Any) -> Any:
        """The `room` of an emit to local clients, so that it reaches here whom it would reach elsewhere."""
        if room is None:
            return None
        several = room if isinstance(room, list) else [room]
        rooms = [same for each in several for same in self.same_rooms(namespace, each)]
        return rooms[0] if len(rooms) == 1 else rooms

    def recipient_count(self, namespace: str, room: Any, skip_sid: Any) -> int:
        """How many local clients an emit reaches."""
        skipped = skip_sid if isinstance(skip_sid, list) else [skip_sid]
        participants = self.get_participants(namespace, self.delivery_room(namespace, room))
        return sum(sid not in skipped for sid, _ in participants)

    def local_sids(self, namespace: str, to: Sequence[str], except_: Sequence[str]) -> list[str]:
        """Sids in any of the rooms `to` (everyone when empty) and in none of `except_`, each once."""
        if to:
            rooms = self.local_rooms(namespace, to)
            if not rooms:
                return []
        else:
            rooms = [None]
        left_out = self.sids_in(namespace, except_)
        return [sid for sid, _ in self.get_participants(namespace, rooms) if sid not in left_out]

    def has_crowd(self, namespace: str, to: Sequence[str], most: int) -> bool:
        """Whether one of the rooms `to` (the namespace when empty) alone has more clients than that."""
        rooms = self.rooms.get(namespace, {})
        names = self.local_rooms(namespace, to) if to else [None]
        return any(len(rooms.get(name, ())) > most for name in names)

    def sids_in(self, namespace: str, names: Sequence[str]) -> set[str]:
        """Sids in any of the rooms named."""
        rooms = self.local_rooms(namespace, names) if names else []
        return {sid for sid, _ in self.get_participants(namespace, rooms)} if rooms else set()

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

    def forget_ghosts(self, now: float) -> None:
        """Forget clients that are gone and that python-socketio would keep for ever.

        It passes over a client that hangs up while its connect handler runs, and comes to no end with one whose connect
        or disconnect handler raises. A handler that is still running is given `GHOST_AGE` seconds.
        """
        since, self._gone_since = self._gone_since, {}
        for pending in (getattr(self, "pending_connect", {}), self.pending_disconnect):
            for namespace, sids in list(pending.items()):
                clients = self.rooms.get(namespace, {}).get(None, {})
                for sid in list(sids):
                    if not self._is_gone(clients.get(sid)):
                        continue
                    gone_at = since.get((namespace, sid), now)
                    if now - gone_at < GHOST_AGE:
                        self._gone_since[namespace, sid] = gone_at
                    else:
                        self.basic_disconnect(sid, namespace)
                        _discard(pending, namespace, sid)  # it does not, when nobody is left in the namespace


def _discard(pending: dict[str, list[str]], namespace: str, sid: str) -> None:
    left = [each for each in pending.get(namespace, []) if each != sid]
    if left:
        pending[namespace] = left
    else:
        pending.pop(namespace, None)
