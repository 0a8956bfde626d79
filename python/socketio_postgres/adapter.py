"""Cluster logic of one namespace, without I/O and without a clock: message or time in, list of effects out.

Semantics of `ClusterAdapterWithHeartbeat` in socket.io-adapter 2.5: any message of a server keeps it alive, silence
beyond the time-out or a goodbye drops it, and whatever we send postpones our own heartbeat.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TypeAlias

from socketio_postgres.messages import EMITTER_UID, Message, MessageType

__all__ = ["Apply", "ClusterAdapter", "Effect", "PeerJoined", "PeerLeft", "Send"]


@dataclasses.dataclass(frozen=True)
class Send:
    """Publish a message."""

    message: Message


@dataclasses.dataclass(frozen=True)
class Apply:
    """Do to the local sockets what a message says."""

    message: Message


@dataclasses.dataclass(frozen=True)
class PeerJoined:
    """A server is now counted."""

    uid: str


@dataclasses.dataclass(frozen=True)
class PeerLeft:
    """A server is no longer counted.

    Attributes:
        uid: Its server id.
        said_goodbye: It left by itself; otherwise it fell silent.
    """

    uid: str
    said_goodbye: bool


Effect: TypeAlias = Send | Apply | PeerJoined | PeerLeft


class ClusterAdapter:
    """Who else serves a namespace, and when to say that we do.

    Args:
        nsp: Namespace.
        heartbeat_interval: Seconds of our silence before a heartbeat.
        heartbeat_timeout: Seconds of a peer's silence before it is dropped.
    """

    def __init__(self, nsp: str, *, heartbeat_interval: float, heartbeat_timeout: float) -> None:
        self.nsp = nsp
        self._interval = heartbeat_interval
        self._timeout = heartbeat_timeout
        self._last_seen: dict[str, float] = {}
        self._last_sent: float | None = None

    @property
    def peers(self) -> list[str]:
        """Server ids of the other servers."""
        return list(self._last_seen)

    @property
    def server_count(self) -> int:
        """Servers of the cluster, this one included."""
        return 1 + len(self._last_seen)

    def announce(self, now: float) -> list[Effect]:
        """Join, or join again after a gap. To be called once LISTEN is active: the answers come at once."""
        self._last_sent = now
        return [Send(Message(MessageType.INITIAL_HEARTBEAT, self.nsp))]

    def leave(self) -> list[Effect]:
        """Say goodbye."""
        self._last_sent = None
        return [Send(Message(MessageType.ADAPTER_CLOSE, self.nsp))]

    def sent(self, now: float) -> None:
        """Something of ours was published in this namespace: peers know that we live."""
        if self._last_sent is not None:
            self._last_sent = now

    def receive(self, message: Message, now: float) -> list[Effect]:
        """A message of another sender arrived."""
        effects: list[Effect] = []
        uid = message.uid
        if message.type == MessageType.ADAPTER_CLOSE:
            if self._last_seen.pop(uid, None) is not None:
                effects.append(PeerLeft(uid, said_goodbye=True))
            return effects
        if uid and uid != EMITTER_UID:
            if uid not in self._last_seen:
                effects.append(PeerJoined(uid))
            self._last_seen[uid] = now
        if message.type == MessageType.INITIAL_HEARTBEAT:
            self._last_sent = now
            effects.append(Send(Message(MessageType.HEARTBEAT, self.nsp)))
        elif message.type != MessageType.HEARTBEAT:
            effects.append(Apply(message))
        return effects

    def tick(self, now: float) -> list[Effect]:
        """Time passed: drop silent peers, send a heartbeat that is due."""
        effects: list[Effect] = []
        for uid, seen in list(self._last_seen.items()):
            if now - seen > self._timeout:
                del self._last_seen[uid]
                effects.append(PeerLeft(uid, said_goodbye=False))
        if self._last_sent is not None and now - self._last_sent >= self._interval:
            self._last_sent = now
            effects.append(Send(Message(MessageType.HEARTBEAT, self.nsp)))
        return effects

    def next_tick(self) -> float:
        """When `tick` has something to do at the earliest, on the clock of the other calls."""
        due = [seen + self._timeout for seen in self._last_seen.values()]
        if self._last_sent is not None:
            due.append(self._last_sent + self._interval)
        return min(due, default=math.inf)
