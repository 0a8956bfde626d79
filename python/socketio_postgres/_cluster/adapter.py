"""Cluster logic of one namespace, without I/O and without a clock: message, list of locks or time in, effects out.

Semantics of `ClusterAdapterWithHeartbeat` in socket.io-adapter 2.5: any message of a server keeps it alive,
silence beyond the time-out or a goodbye drops it, whatever we send postpones our own heartbeat, and a request
waits for the servers that were known when it was made, but not for those that leave meanwhile. Two things are ours:
what clients are to acknowledge is not given up for a silence, only for a goodbye; and a request that is made before
our own announcement can have been answered waits for those who have not answered it yet.

Servers of this package need no heartbeats of each other. The listening session of each holds an advisory lock for as
long as it lives and reads now and then which locks are held, so a lock is as good as a message. A peer whose lock was
never seen is a foreigner (Node.js, Go): while one is there, heartbeats flow as it expects. They also flow while our
own lock is not in the list, or there is no list, because then nobody can be expected to see it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import secrets
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeAlias

from socketio_postgres._bus.messages import EMITTER_UID, Message, MessageType

__all__ = [
    "Apply",
    "ClusterAdapter",
    "Complete",
    "Effect",
    "PeerJoined",
    "PeerLeft",
    "Request",
    "Send",
    "answer_arguments",
]

REPEAT_DELAY: Final = 1.0
"""Seconds after which the answer to a newcomer is repeated: Node announces itself before its LISTEN is active, and
without the repetition it would not count us before our next regular heartbeat. Left out when all are native by then."""

NATIVE_ANSWER: Final = 1.0
"""Seconds from our announcement for which a request waits for servers of this package that are known by their locks
alone. Those that serve the namespace answer within milliseconds; one whose event loop hangs for longer is missed."""

FOREIGN_ANSWER: Final = 0.25
"""Seconds from our announcement for which a request waits for servers that nothing tells of until they speak: Node.js
and Go hold no lock. They, too, answer within milliseconds, and a server that is alone waits in vain."""

OURSELVES = ""
"""Stands for this server among those that owe acknowledgements."""


@dataclasses.dataclass(frozen=True)
class Send:
    """Publish a message."""

    message: Message


@dataclasses.dataclass(frozen=True)
class Apply:
    """Do to the local sockets, or to the application, what a message says."""

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


@dataclasses.dataclass(frozen=True)
class Complete:
    """A request has all its answers."""

    request: Request


@dataclasses.dataclass(eq=False)
class Request:
    """A request to all servers, and the answers so far.

    Attributes:
        id: Its `requestId` on the wire.
        missing: Servers that owe their answer: the list of sockets, the value, or the number of clients reached.
        is_of_clients: Clients are to acknowledge it. They may well do so after their server was silent for a while.
        is_open: Unknown servers may still answer our announcement, and then become missing.
        unknown: Locks of servers that are known by nothing else yet.
        responses: Answers in the order of their arrival; of a fetch the sockets of all servers.
        owed: Of a broadcast: acknowledgements still due, by server.
    """

    id: str
    missing: set[str]
    is_of_clients: bool = False
    is_open: bool = False
    unknown: set[int] = dataclasses.field(default_factory=set)
    responses: list[Any] = dataclasses.field(default_factory=list)
    owed: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        """Whether nothing more can come."""
        # Lists, made at once: threads that wait ask while another one takes the answers.
        is_acknowledged = all(count <= 0 for count in list(self.owed.values()))
        return is_acknowledged and not (self.missing or self.is_open or self.unknown)

    @property
    def missing_servers(self) -> list[str]:
        """Servers that have not answered, or not in full; empty names this server itself."""
        locks = {f"advisory lock {lock}" for lock in list(self.unknown)}
        return sorted(self.missing | locks | {uid for uid, count in list(self.owed.items()) if count > 0})


@dataclasses.dataclass
class Peer:
    """Another server.

    Attributes:
        lock: Its lock id, if it is a server of this package.
        seen: Time of its last sign of life: a message, or its lock in a list.
        is_native: Its lock was in a list once: it looks for our lock and not for our heartbeats.
    """

    lock: int
    seen: float
    is_native: bool


Effect: TypeAlias = Send | Apply | PeerJoined | PeerLeft | Complete


class ClusterAdapter:
    """Who else serves a namespace, when to say that we do, and the requests under way.

    Args:
        nsp: Namespace.
        uid: Our server id.
        lock_of: Gives the lock id of a server id.
        heartbeat_interval: Seconds of our silence before a heartbeat.
        heartbeat_timeout: Seconds of a peer's silence before it is dropped.
        loads: Decodes JSON in answers.
    """

    def __init__(
        self,
        nsp: str,
        *,
        uid: str,
        lock_of: Callable[[str], int],
        heartbeat_interval: float,
        heartbeat_timeout: float,
        loads: Callable[[str], Any] = json.loads,
    ) -> None:
        self.nsp = nsp
        self._interval = heartbeat_interval
        self._timeout = heartbeat_timeout
        self._loads = loads
        self._lock_of = lock_of
        self._own_lock = lock_of(uid)
        self._peers: dict[str, Peer] = {}
        self._last_sent: float | None = None
        self._announced_at = -math.inf
        self._repeat_at = math.inf
        self._has_list = False
        # Of the last list of locks; bounded by the connections that PostgreSQL allows.
        self._held: frozenset[int] = frozenset()
        self._strangers: frozenset[int] = frozenset()
        self._unasked: frozenset[int] = frozenset()
        self._requests: dict[str, Request] = {}

    # ------------------------------------------------------------------------------------------- membership

    @property
    def peers(self) -> list[str]:
        """Server ids of the other servers."""
        return list(self._peers)

    @property
    def server_count(self) -> int:
        """Servers of the cluster, this one included."""
        return 1 + len(self._peers)

    @property
    def peer_locks(self) -> frozenset[int]:
        """Locks of peers that were held at the last look."""
        return self._held.intersection(peer.lock for peer in self._peers.values())

    @property
    def _is_silent(self) -> bool:
        """Whether all peers see our lock, so that a heartbeat would tell them nothing."""
        return self._own_lock in self._held and all(peer.is_native for peer in self._peers.values())

    def announce(self, now: float) -> list[Effect]:
        """Join, or join again after a gap. To be called once LISTEN is active: the answers come at once."""
        self._last_sent = self._announced_at = now
        self._unasked = frozenset()
        return [Send(Message(MessageType.INITIAL_HEARTBEAT, self.nsp))]

    def leave(self) -> list[Effect]:
        """Say goodbye."""
        self._last_sent = None
        self._repeat_at = math.inf
        return [Send(Message(MessageType.ADAPTER_CLOSE, self.nsp))]

    def sent(self, now: float) -> None:
        """Something of ours was published in this namespace: peers know that we live."""
        if self._last_sent is not None:
            self._last_sent = now

    def tick(self, now: float) -> list[Effect]:
        """Time passed: drop silent peers, send a heartbeat that is due."""
        effects: list[Effect] = []
        for uid, peer in list(self._peers.items()):
            if now - peer.seen > self._timeout:
                effects += self._forget(uid, said_goodbye=False)
        is_due = self._next_heartbeat() <= now
        if now >= self._repeat_at:
            self._repeat_at = math.inf
        return effects + self._heartbeat(now) if is_due else effects

    def tick_along(self, now: float) -> list[Effect]:
        """Another namespace sends a heartbeat: ours goes with it, in one transaction, if half its time is over."""
        if self._last_sent is None or self._is_silent or now - self._last_sent < self._interval / 2:
            return []
        return self._heartbeat(now)

    def next_tick(self) -> float:
        """When `tick` has something to do at the earliest, on the clock of the other calls."""
        return min([self._next_heartbeat(), *(peer.seen + self._timeout for peer in self._peers.values())])

    def wake(self, slept: float, now: float) -> list[Effect]:
        """This process did not run for a while. Peers were not silent; their messages are still unread.

        If it was long, they may have dropped us, and our silence would not bring us back.
        """
        for peer in self._peers.values():
            peer.seen = min(peer.seen + slept, now)
        return [] if self._last_sent is None or slept < self._timeout / 2 else self._heartbeat(now)

    def _next_heartbeat(self) -> float:
        if self._last_sent is None or self._is_silent:
            return math.inf
        return min(self._last_sent + self._interval, self._repeat_at)

    def _heartbeat(self, now: float) -> list[Effect]:
        self._last_sent = now
        return [Send(Message(MessageType.HEARTBEAT, self.nsp))]

    def _forget(self, uid: str, *, said_goodbye: bool) -> list[Effect]:
        if self._peers.pop(uid, None) is None:
            return []
        effects: list[Effect] = [PeerLeft(uid, said_goodbye=said_goodbye)]
        for request in list(self._requests.values()):
            if said_goodbye or not request.is_of_clients:
                request.missing.discard(uid)
                request.owed.pop(uid, None)
                effects += self._completed(request)
        return effects

    # ------------------------------------------------------------------------------------------- locks

    def see_locks(self, held: Iterable[int] | None, now: float) -> list[Effect]:
        """The lock ids of the cluster that are held now; None when nobody can tell, as without a listening session.

        A lock that is no peer's belongs to a server of other namespaces, or to one that we should know: its
        announcement was lost. If it is still there at the next look and nobody has announced itself since, which it
        would have answered, we do, once.
        """
        self._held = frozenset(held or ())
        self._has_list = held is not None
        for peer in self._peers.values():
            if peer.lock in self._held:
                peer.seen = now
                peer.is_native = True
        strangers = self._unknown
        is_overdue = not self._unasked.isdisjoint(strangers)
        self._unasked = strangers - self._strangers
        self._strangers = strangers
        effects = self._see_locks_of_requests(now) if self._has_list else []
        if self._last_sent is None:
            return effects
        if is_overdue:
            return effects + self.announce(now)
        # Those that saw our lock until now begin to count our silence.
        return effects + self._heartbeat(now) if self._next_heartbeat() <= now else effects

    @property
    def _unknown(self) -> frozenset[int]:
        """Locks of servers of the cluster that are not known here."""
        return self._held - self.peer_locks - {self._own_lock}

    def _see_locks_of_requests(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for request in list(self._requests.values()):
            if request.is_open:
                request.unknown.update(self._strangers)  # a request may be made before the first list comes
            request.unknown.intersection_update(self._held)
            effects += self.settle(request, now)
        return effects

    # ------------------------------------------------------------------------------------------- receiving

    def see(self, uid: str, now: float) -> list[Effect]:
        """Another sender gave a sign of life."""
        return self._see(uid, now, must_greet=False)

    def _see(self, uid: str, now: float, *, must_greet: bool) -> list[Effect]:
        effects: list[Effect] = []
        if uid and uid != EMITTER_UID:
            peer = self._peers.get(uid)
            if peer is None:
                effects.append(PeerJoined(uid))
                lock = self._lock_of(uid)
                peer = Peer(lock, now, is_native=lock in self._held)
                self._expect(uid, lock, is_newcomer=must_greet)
                # The first foreigner may have known us before, and dropped us because we were silent.
                must_greet |= self._is_silent and not peer.is_native
                self._peers[uid] = peer
            peer.seen = now
        if must_greet:
            self._repeat_at = now + REPEAT_DELAY
            effects += self._heartbeat(now)
        return effects

    def receive(self, message: Message, now: float) -> list[Effect]:
        """A message of another sender arrived."""
        if message.type == MessageType.ADAPTER_CLOSE:
            return self._goodbye(message.uid)
        is_newcomer = message.type == MessageType.INITIAL_HEARTBEAT
        effects = self._see(message.uid, now, must_greet=is_newcomer)
        if is_newcomer:
            self._unasked = frozenset()
        if message.type in ANSWERS:
            effects += self._receive_answer(message)
        elif message.type not in {MessageType.INITIAL_HEARTBEAT, MessageType.HEARTBEAT}:
            effects.append(Apply(message))
        return effects

    def _goodbye(self, uid: str) -> list[Effect]:
        effects: list[Effect] = []
        for request in list(self._requests.values()):
            if request.unknown:
                request.unknown.discard(self._lock_of(uid))  # which it may hold for a moment longer
                effects += self._completed(request)
        return effects + self._forget(uid, said_goodbye=True)

    def _receive_answer(self, message: Message) -> list[Effect]:
        if message.uid == OURSELVES:
            return []  # unknown request
        request = self._requests.get(message.request_id or "")
        if request is None:
            # Too late, another server's, or for a callback, which is not kept here.
            return [Apply(message)] if message.type == MessageType.BROADCAST_ACK else []
        if message.type != MessageType.BROADCAST_ACK and (peer := self._peers.get(message.uid)) is not None:
            request.unknown.discard(peer.lock)
        if message.type == MessageType.FETCH_SOCKETS_RESPONSE:
            request.missing.discard(message.uid)
            request.responses += message.sockets(self._loads) or []
        elif message.type == MessageType.SERVER_SIDE_EMIT_RESPONSE:
            request.missing.discard(message.uid)
            request.responses.append(_value(answer_arguments(message, self._loads)))
        elif message.type == MessageType.BROADCAST_CLIENT_COUNT:
            request.missing.discard(message.uid)
            request.owed[message.uid] = request.owed.get(message.uid, 0) + message.client_count
        else:
            self._add_acknowledgement(request, message.uid, answer_arguments(message, self._loads))
        return self._completed(request)

    @staticmethod
    def _add_acknowledgement(request: Request, uid: str, args: list[Any]) -> None:
        # An acknowledgement can overtake its server's count; the sum is right once both are in.
        request.owed[uid] = request.owed.get(uid, 0) - 1
        request.responses.append(_value(args))

    # ------------------------------------------------------------------------------------------- requesting

    @property
    def is_asking(self) -> bool:
        """Whether a request is under way."""
        return bool(self._requests)

    def request(self, now: float, *, is_local: bool = False, is_of_clients: bool = False) -> Request:
        """Start a request to all servers known now, and to those that our announcement may still find.

        Args:
            now: Time on the clock of the other calls.
            is_local: To none of them.
            is_of_clients: Clients are to acknowledge it.
        """
        request = Request(secrets.token_hex(8), set(), is_of_clients=is_of_clients)
        if not is_local:
            request.missing.update(self._peers)
            request.is_open = not self._is_answered(now)
            request.unknown.update(self._unknown if now < self._announced_at + NATIVE_ANSWER else ())
        self._requests[request.id] = request
        return request

    def _is_answered(self, now: float) -> bool:
        """Whether all that nothing tells of have had the time to answer our announcement."""
        return now >= self._announced_at + (FOREIGN_ANSWER if self._has_list else NATIVE_ANSWER)

    def settles_at(self, request: Request, now: float) -> float:
        """When to `settle` a request, at the earliest."""
        if not request.is_open and not request.unknown:
            return math.inf
        return min(
            (at for at in (self._announced_at + limit for limit in (FOREIGN_ANSWER, NATIVE_ANSWER)) if at > now),
            default=now,
        )

    def settle(self, request: Request, now: float) -> list[Effect]:
        """Time passed: those that have not answered our announcement by now do not serve the namespace."""
        request.is_open = request.is_open and not self._is_answered(now)
        if now >= self._announced_at + NATIVE_ANSWER:
            request.unknown.clear()
        return self._completed(request)

    def _expect(self, uid: str, lock: int, *, is_newcomer: bool) -> None:
        """A server becomes known. Requests that wait for such now wait for its answer."""
        for request in self._requests.values():
            # A newcomer may have come too late to hear the request; if it has heard it, it answers, too.
            if not is_newcomer and (request.is_open or lock in request.unknown):
                request.missing.add(uid)
                request.unknown.discard(lock)

    def expect_local(self, request: Request, client_count: int) -> list[Effect]:
        """So many of our own clients will acknowledge a broadcast."""
        request.owed[OURSELVES] = request.owed.get(OURSELVES, 0) + client_count
        return self._completed(request)

    def acknowledge_local(self, request: Request, args: list[Any]) -> list[Effect]:
        """One of our own clients acknowledged."""
        if request.id not in self._requests:
            return []
        self._add_acknowledgement(request, OURSELVES, args)
        return self._completed(request)

    def abandon(self, request: Request) -> None:
        """Nobody waits for it any more."""
        self._requests.pop(request.id, None)

    def _completed(self, request: Request) -> list[Effect]:
        if request.is_complete and self._requests.pop(request.id, None) is not None:
            return [Complete(request)]
        return []


ANSWERS: Final = frozenset(
    {
        MessageType.FETCH_SOCKETS_RESPONSE,
        MessageType.SERVER_SIDE_EMIT_RESPONSE,
        MessageType.BROADCAST_CLIENT_COUNT,
        MessageType.BROADCAST_ACK,
    }
)


def answer_arguments(message: Message, loads: Callable[[str], Any]) -> list[Any]:
    """Arguments of an answer: ours has all, Node's the first, Go's an array."""
    args = message.args(loads)
    if args is not None:
        return args
    if not message.has_packet:
        return []
    packet = message.packet(loads)
    return packet if message.is_from_go and isinstance(packet, list) else [packet]


def _value(args: list[Any]) -> Any:
    """python-socketio's rule for `call`: no argument is None, one is itself, several are a tuple."""
    return (args[0] if len(args) == 1 else tuple(args)) if args else None
