"""The other servers of each namespace: joining and leaving, heartbeats, and the messages to them."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from socketio_postgres import _core
from socketio_postgres._bus.bus import Bus
from socketio_postgres._bus.messages import Message
from socketio_postgres._bus.options import HeartbeatOptions
from socketio_postgres._cluster.adapter import (
    Apply,
    ClusterAdapter,
    Complete,
    Effect,
    PeerJoined,
    PeerLeft,
    Request,
    Send,
)
from socketio_postgres._cluster.reports import Reports
from socketio_postgres.exceptions import SocketIOPostgresError

__all__ = ["Peers"]

TICK_INTERVAL: Final = 1.0
"""Seconds between two ticks at most: a namespace, or a peer that expects heartbeats, may join meanwhile."""

UNLISTEN_TOKEN: Final = 0
"""The id of operations that no caller waits for."""


class Peers:
    """The other servers, as far as this one knows them. Threads share it; nothing waits while it holds its lock.

    Args:
        bus: Where messages go.
        heartbeat: The intervals of heartbeats, and after which silence a peer is no longer counted.
        reports: Hears what fails.
        uid: Gives our server id.
        loads: Decodes JSON of the answers.
        complete: Called with each request that has all its answers.

    Attributes:
        adapters: By namespace, what the cluster agrees on there. The namespaces are those that this server serves.
    """

    def __init__(
        self,
        bus: Bus,
        heartbeat: HeartbeatOptions,
        reports: Reports,
        *,
        uid: Callable[[], str],
        loads: Callable[[str], Any],
        complete: Callable[[Request], None],
    ) -> None:
        self.adapters: dict[str, ClusterAdapter] = {}
        self.heartbeat = heartbeat
        self._bus = bus
        self._reports = reports
        self._uid = uid
        self._loads = loads
        self._complete = complete
        self._used_at: dict[str, float] = {}  # when each namespace was needed last
        self._lock = threading.RLock()
        self._held: list[int] | None = None  # locks, as our listening session last read them
        self._tick_due = math.inf
        self._sent_elsewhere = 0  # messages to namespaces that we do not serve
        self._seen_attachments = ((0, 0), (0, 0))  # at the last two calls of must_clean_up
        self._has_left_attachments = False

    # ----------------------------------------------------------------------------------------- namespaces

    def is_serving(self, namespace: str) -> bool:
        """Whether this server has joined a namespace, and receives its messages."""
        return namespace in self.adapters

    def use(self, namespace: str) -> bool:
        """Note that a namespace is needed now; returns whether it is served."""
        with self._lock:
            if namespace not in self.adapters:
                return False
            self._used_at[namespace] = time.monotonic()
            return True

    def new_adapter(self, namespace: str) -> ClusterAdapter:
        """What a namespace begins with."""
        return ClusterAdapter(
            namespace,
            uid=self._uid(),
            lock_of=_core.member_lock,
            heartbeat_interval=self.heartbeat.heartbeat_interval,
            heartbeat_timeout=self.heartbeat.heartbeat_timeout,
            loads=self._loads,
        )

    def join(self, namespace: str) -> None:
        """LISTEN is active: announce this server."""
        adapter = self.new_adapter(namespace)
        adapter.see_locks(self._held, time.monotonic())
        self._used_at[namespace] = time.monotonic()
        self.adapters[namespace] = adapter
        self.run(adapter, adapter.announce, time.monotonic())

    def leave_unused(
        self,
        now: float,
        *,
        is_used: Callable[[str], bool],
        has_clients: Callable[[str], bool],
        served: Callable[[], Iterable[str]],
        forget_join: Callable[[str], None],
    ) -> None:
        """Leave namespaces that are not served and were not used for a while, because clients may name any namespace.

        As Socket.IO's `cleanupEmptyChildNamespaces`, which is always on here: without it a client could make this
        server, and all its peers, listen to ever more channels.

        Args:
            now: Time of the monotonic clock.
            is_used: Whether somebody waits for something in a namespace.
            has_clients: Whether a namespace has clients here.
            served: The namespaces that are served with or without clients.
            forget_join: Called with each namespace that is left, so that its next use sends LISTEN again.
        """
        kept: Iterable[str] | None = None
        for namespace, adapter in list(self.adapters.items()):
            if has_clients(namespace) or adapter.is_asking or is_used(namespace):
                self._used_at[namespace] = now
            elif now - self._used_at[namespace] > self.heartbeat.heartbeat_timeout:
                kept = served() if kept is None else kept
                if namespace in kept:
                    continue
                with self._lock:  # who joins again, in another thread, comes after all of it
                    if has_clients(namespace):
                        continue  # a client came just now
                    del self.adapters[namespace], self._used_at[namespace]
                    forget_join(namespace)
                    self.run(adapter, adapter.leave)
                    channel = _core.channel_name(self._bus.options.channel, namespace)
                    self._bus.core.unlisten(channel, self._bus.inbox, UNLISTEN_TOKEN)

    def leave(self) -> None:
        """Say goodbye."""
        self.publish_soon(*self._step_all(ClusterAdapter.leave))
        self.adapters.clear()

    # ----------------------------------------------------------------------------------------- signs of life

    def announce_again(self) -> None:
        """We listen again, and may have missed who came and went."""
        self.publish_soon(*self._step_all(ClusterAdapter.announce, time.monotonic()))

    def see_locks(self, held: list[int] | None) -> None:
        """The locks of the cluster that are held now; None while our listening session is lost."""
        self._held = held
        self.publish_soon(*self._step_all(ClusterAdapter.see_locks, held, time.monotonic()))

    def see(self, namespace: str, uid: str) -> None:
        """A server sent a message for no client here, which shows only that the server is alive."""
        adapter = self.adapters.get(namespace)
        if adapter is not None:
            self.run(adapter, adapter.see, uid, time.monotonic())

    def tick(self, now: float) -> float:
        """Drive the adapters' timers; returns when to do so again."""
        interval = self.heartbeat.heartbeat_interval
        to_send = []
        late = now - self._tick_due
        if late > interval / 2:  # the event loop or the thread was blocked
            to_send += self._step_all(ClusterAdapter.wake, late, now)
        to_send += self._step_all(ClusterAdapter.tick, now)
        if to_send:
            to_send += self._step_all(ClusterAdapter.tick_along, now)
        self.publish_soon(*to_send)
        return now + min(TICK_INTERVAL, interval)

    def next_tick(self, latest: float) -> float:
        """When the next tick is due; `latest` when none of the timers is earlier."""
        self._tick_due = min([latest, *(adapter.next_tick() for adapter in list(self.adapters.values()))])
        return self._tick_due

    # ----------------------------------------------------------------------------------------- steps

    def run(self, adapter: ClusterAdapter, step: Callable[..., list[Effect]], *args: Any) -> list[Message]:
        """Take a step of an adapter and perform its effects; returns the messages to be applied here."""
        to_send, to_apply = self._step(adapter, step, *args)
        self.publish_soon(*to_send)
        return to_apply

    def request(self, adapter: ClusterAdapter, *, is_local: bool, is_of_clients: bool) -> Request:
        """Start a request, as `ClusterAdapter.request`."""
        with self._lock:
            return adapter.request(time.monotonic(), is_local=is_local, is_of_clients=is_of_clients)

    def abandon(self, adapter: ClusterAdapter, request: Request) -> None:
        """Nobody waits for a request any more."""
        with self._lock:
            adapter.abandon(request)

    def _step_all(self, step: Callable[..., list[Effect]], *args: Any) -> list[Message]:
        """The same step of all adapters; returns the messages to be sent, which belong into one transaction."""
        to_send = []
        for adapter in list(self.adapters.values()):
            to_send += self._step(adapter, step, adapter, *args)[0]
        return to_send

    def _step(
        self, adapter: ClusterAdapter, step: Callable[..., list[Effect]], *args: Any
    ) -> tuple[list[Message], list[Message]]:
        """Take a step of an adapter; returns the messages to be sent and those to be applied here."""
        with self._lock:
            effects = step(*args)
        to_send, to_apply = [], []
        for effect in effects:
            match effect:
                case Send(message):
                    to_send.append(message)
                case Apply(message):
                    to_apply.append(message)
                case Complete(request):
                    self._complete(request)
                case PeerJoined(uid):
                    self._reports.log.info("server %s joined namespace %s", uid, adapter.nsp)
                case PeerLeft(uid, said_goodbye):
                    how = "left" if said_goodbye else "fell silent and is no longer counted in"
                    self._reports.log.info("server %s %s namespace %s", uid, how, adapter.nsp)
        return to_send, to_apply

    # ----------------------------------------------------------------------------------------- publishing

    def note_sent(self, message: Message) -> None:
        """A message is about to be published: whatever we send postpones our own heartbeat."""
        adapter = self.adapters.get(message.nsp)
        if adapter is not None:
            adapter.sent(time.monotonic())
        else:
            self._sent_elsewhere += 1

    def publish_soon(self, *messages: Message) -> None:
        """Append messages without waiting, to one transaction. Messages that a full buffer refuses are dropped."""
        if not messages:
            return
        try:
            self.publish(*messages)
        except SocketIOPostgresError as error:
            self._reports.failure(error)

    def publish(self, *messages: Message) -> None:
        """The same, but raises why a message cannot be sent."""
        for message in messages:
            self.note_sent(message)
        accepted = self._bus.core.publish_many(list(messages))
        for message in messages[accepted:]:
            self._reports.log.warning("the buffer is full, so %r is not sent", message)

    # ----------------------------------------------------------------------------------------- attachments

    def must_clean_up(self) -> bool:
        """Whether to delete old attachments; to be asked every `cleanup_interval`.

        Whoever has seen attachments, written, read or skipped, deletes, but leaves it to a server of this package that
        has a smaller lock and serves all namespaces that we serve: it sees whatever we see. So of servers that serve
        the same namespaces one deletes. If it crashes first, we do so one interval later. Others may find nothing left
        to delete, which writes nothing. What was new at the last call is old enough only now, so calls are compared
        with the call before the last.
        """
        stats = self._bus.stats()
        before_last, last = self._seen_attachments
        seen = sum(stats.get(key, 0) for key in ("publish_attachments", "attachments", "attachments_skipped"))
        now = (seen, self._sent_elsewhere)
        self._seen_attachments = (last, now)
        has_new = now[0] != before_last[0]
        is_left = now[1] == before_last[1] and self._has_deputy()
        must = (has_new or self._has_left_attachments) and not is_left
        self._has_left_attachments = has_new and is_left
        return must

    def _has_deputy(self) -> bool:
        """Whether a server of this package with a smaller lock serves all namespaces that we serve."""
        common = [adapter.peer_locks for adapter in list(self.adapters.values())]
        own = _core.member_lock(self._uid())
        return bool(common) and any(lock < own for lock in frozenset.intersection(*common))
