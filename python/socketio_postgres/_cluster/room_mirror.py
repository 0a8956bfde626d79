"""The core's copy of the rooms that have clients here. It drops other messages before they reach Python."""

from __future__ import annotations

import threading

from socketio_postgres._bus.bus import Bus
from socketio_postgres._cluster.local_sockets import Sockets

__all__ = ["RoomMirror"]


class RoomMirror:
    """Keeps the copy."""

    def __init__(self, bus: Bus, sockets: Sockets) -> None:
        self.is_kept = False
        self._bus = bus
        self._sockets = sockets
        self._lock = threading.RLock()

    def start(self) -> None:
        """From now on the core knows the rooms."""
        with self._lock:
            if not self.is_kept:
                self.is_kept = True
                self._bus.core.mirror_rooms()
                for namespace, name in self._sockets.occupied_rooms():
                    self.update(namespace, name)

    def stop(self) -> None:
        """Nobody needs it any more."""
        self.is_kept = False

    def update(self, namespace: str, name: str | None) -> None:
        """A client entered or left a room; None is the namespace itself."""
        if not self.is_kept:
            return
        with self._lock:  # of two threads the later one must have the last word
            core = self._bus.core
            change = core.enter_room if self._sockets.is_occupied(namespace, name) else core.leave_room
            change(namespace, name)
