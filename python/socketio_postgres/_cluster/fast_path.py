"""Messages that arrived together, on their way to local clients: what many of them have in common is looked up once."""

from __future__ import annotations

from collections.abc import Callable

from socketio_postgres._bus.messages import Message
from socketio_postgres._cluster.local_sockets import Sockets
from socketio_postgres._cluster.peers import Peers

__all__ = ["FastPath"]


class FastPath:
    """Passes events on, as long as nothing else is done: no other task may run, and no room may change meanwhile.

    In a flood each message looking for the same clients again was half of what the server had to do.
    """

    def __init__(self, sockets: Sockets, peers: Peers) -> None:
        self._sockets = sockets
        self._peers = peers
        self._passages: dict[tuple[str, tuple[str, ...]], Callable[[str], None] | None] = {}
        self._seen: set[tuple[str, str]] = set()

    def take(self, message: Message) -> bool:
        """Queue an event for the clients that it is for. False when it takes more than that; then nothing was done."""
        event = message.plain_event
        if event is None:
            return False
        target, uid, text = event
        try:
            if target in self._passages:
                passage = self._passages[target]
            else:
                passage = self._passages[target] = self._look_up(*target)
            if passage is None:
                return False
            sender = (target[0], uid)
            if sender not in self._seen:
                self._peers.see(*sender)
                self._seen.add(sender)
        except Exception:  # noqa: BLE001  (a user's logger, for example; the longer way meets it, too, and tells)
            return False
        passage(text)
        return True

    def _look_up(self, namespace: str, rooms: tuple[str, ...]) -> Callable[[str], None] | None:
        return self._sockets.passage(namespace, rooms) if self._peers.is_serving(namespace) else None
