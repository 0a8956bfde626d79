"""Who else serves which namespaces, and what that takes: joining and leaving, heartbeats, the mirror of our rooms."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
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
from socketio_postgres._cluster.callbacks import Callbacks
from socketio_postgres._cluster.local_sockets import LocalSockets
from socketio_postgres._cluster.rooms import checked_namespace, chosen_namespace

__all__ = ["Membership"]

TICK_INTERVAL: Final = 1.0
"""Seconds between two ticks at most: a namespace, or a peer that expects heartbeats, may join meanwhile."""

UNLISTEN_TOKEN: Final = 0
"""Under which nobody waits."""


class Membership(LocalSockets):
    """The part of a cluster member that keeps it one. `ClusterMember` publishes, and does what messages say."""

    json: Any
    _bus: Bus
    _heartbeat: HeartbeatOptions
    _log: logging.Logger
    _handlers: dict[tuple[str, str], Callable[..., Any]]

    def _prepare_membership(self) -> None:
        """Of this process; nothing of it belongs to the application."""
        self._adapters: dict[str, ClusterAdapter] = {}
        self._callbacks = Callbacks()
        self._used_at: dict[str, float] = {}  # when each of them was needed last
        # Threads of a sync server share the adapters; nothing waits while it holds this.
        self._lock = threading.RLock()
        self._members: list[int] | None = None  # locks held, as our listening session last read them
        self._tick_due = math.inf
        self._sent_elsewhere = 0  # messages to namespaces that we do not serve
        self._seen_attachments = ((0, 0), (0, 0))  # at the last two calls of _must_clean_up
        self._has_left_attachments = False
        self._is_mirroring = False

    def _uid(self) -> str:
        """Who we are to the cluster."""
        raise NotImplementedError

    def _require_server(self, what: str) -> None:
        """Refuse what only a server of the cluster can do."""
        raise NotImplementedError

    def _publish_soon(self, *messages: Message) -> None:
        """Append messages that nobody waits for, to one transaction."""
        raise NotImplementedError

    def _in_background(self, function: Callable[..., Any], *args: Any) -> None:
        """Run a function of ours in a task or thread of its own, to its end."""
        raise NotImplementedError

    def _end_connections(self, eio_sids: list[str]) -> Any:
        """Come to the namespaces that python-socketio did not come to when these connections were lost."""
        raise NotImplementedError

    def _complete(self, request: Request) -> None:
        """A request has all its answers: wake who waits for it."""
        raise NotImplementedError

    def server_count(self, namespace: str = "/") -> int:
        """Servers that serve a namespace, this one included, as far as this one knows. Node's `serverCount()`.

        Raises:
            NotAServerError: This manager has no server, or is `write_only`: it knows nobody and is not counted.
        """
        self._require_server("server_count")
        adapter = self._adapters.get(chosen_namespace(namespace))
        return 1 if adapter is None else adapter.server_count

    def is_serving(self, namespace: str) -> bool:
        """Whether this server is a member of the cluster in a namespace, and hears what is sent there."""
        return namespace in self._adapters

    def _served_namespaces(self) -> list[str]:
        """Namespaces that clients may connect to, as far as they are known beforehand, or that have handlers."""
        namespaces: set[Any] = {"/", *(namespace for namespace, _ in list(self._handlers))}
        if self.server is not None:
            namespaces.update(self.server.handlers, self.server.namespace_handlers)
            if self.server.namespaces != "*":
                namespaces.update(self.server.namespaces)
        namespaces.discard("*")
        # What is no namespace is not the timers' mistake to fail for, but that of who registered a handler there.
        return sorted({checked_namespace(each) for each in namespaces if isinstance(each, str) and each})

    def _new_adapter(self, namespace: str) -> ClusterAdapter:
        return ClusterAdapter(
            namespace,
            uid=self._uid(),
            lock_of=_core.member_lock,
            heartbeat_interval=self._heartbeat.heartbeat_interval,
            heartbeat_timeout=self._heartbeat.heartbeat_timeout,
            loads=self.json.loads,
        )

    def _serve(self, namespace: str) -> None:
        """LISTEN is active: be a member."""
        self._mirror_rooms()
        adapter = self._new_adapter(namespace)
        adapter.see_locks(self._members, time.monotonic())
        self._used_at[namespace] = time.monotonic()
        self._adapters[namespace] = adapter
        self._run(adapter, adapter.announce, time.monotonic())

    def _is_joined(self, namespace: str) -> bool:
        """Whether LISTEN is active for a namespace that is needed now."""
        with self._lock:
            if namespace not in self._adapters:
                return False
            self._used_at[namespace] = time.monotonic()
            return True

    def _leave_unused(self, now: float) -> None:
        """Leave namespaces that are not served and that nobody has used for a while: clients name what they like.

        As Socket.IO's `cleanupEmptyChildNamespaces`, which is always on here: without it a client could make this
        server, and all its peers, listen to ever more channels.
        """
        served: list[str] | None = None
        for namespace, adapter in list(self._adapters.items()):
            if namespace in self.rooms or adapter.is_asking or self._callbacks.is_waiting_in(namespace):
                self._used_at[namespace] = now
            elif now - self._used_at[namespace] > self._heartbeat.heartbeat_timeout:
                served = self._served_namespaces() if served is None else served
                if namespace not in served:
                    self._leave_namespace(namespace, adapter)

    def _leave_namespace(self, namespace: str, adapter: ClusterAdapter) -> None:
        with self._lock:  # who joins again, in another thread, comes after all of it
            if namespace in self.rooms:
                return  # a client came just now
            del self._adapters[namespace], self._used_at[namespace]
            self._forget_join(namespace)
            self._run(adapter, adapter.leave)
            self._bus.core.unlisten(_core.channel_name(self.channel, namespace), self._bus.inbox, UNLISTEN_TOKEN)

    def _forget_join(self, namespace: str) -> None:
        """Whoever needs a namespace again has to ask for LISTEN again."""

    def _announce_again(self) -> None:
        self._publish_soon(*self._step_all(ClusterAdapter.announce, time.monotonic()))

    def _see_members(self, held: list[int] | None) -> None:
        """The locks of the cluster that are held now; None while our listening session is lost."""
        self._members = held
        self._publish_soon(*self._step_all(ClusterAdapter.see_locks, held, time.monotonic()))

    def _see_peer(self, namespace: str, uid: str) -> None:
        """A server sent what concerns nobody here, so only that it lives reached us."""
        adapter = self._adapters.get(namespace)
        if adapter is not None:
            self._run(adapter, adapter.see, uid, time.monotonic())

    def _leave(self) -> None:
        self._is_mirroring = False
        self._publish_soon(*self._step_all(ClusterAdapter.leave))
        self._adapters.clear()

    # ----------------------------------------------------------------------------------------- steps

    def _note_sent(self, message: Message) -> None:
        adapter = self._adapters.get(message.nsp)
        if adapter is not None:
            adapter.sent(time.monotonic())
        else:
            self._sent_elsewhere += 1

    def _run(self, adapter: ClusterAdapter, step: Callable[..., list[Effect]], *args: Any) -> list[Message]:
        """Take a step of the adapter and do what it asks for; returns the messages to be applied here."""
        to_send, to_apply = self._step(adapter, step, *args)
        self._publish_soon(*to_send)
        return to_apply

    def _step_all(self, step: Callable[..., list[Effect]], *args: Any) -> list[Message]:
        """The same step of all adapters; returns the messages to be sent, which belong into one transaction."""
        to_send = []
        for adapter in list(self._adapters.values()):
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
                    self._log.info("server %s joined namespace %s", uid, adapter.nsp)
                case PeerLeft(uid, said_goodbye):
                    how = "left" if said_goodbye else "fell silent and is no longer counted in"
                    self._log.info("server %s %s namespace %s", uid, how, adapter.nsp)
        return to_send, to_apply

    def _tick_now(self, now: float) -> float:
        """Drive the adapters' timers; returns when to do so again."""
        interval = self._heartbeat.heartbeat_interval
        to_send = []
        self._expire_callbacks(now)
        late = now - self._tick_due
        if late > interval / 2:  # the event loop or the thread was blocked
            to_send += self._step_all(ClusterAdapter.wake, late, now)
        to_send += self._step_all(ClusterAdapter.tick, now)
        if to_send:
            to_send += self._step_all(ClusterAdapter.tick_along, now)
        self._publish_soon(*to_send)
        self._leave_unused(now)
        if self.server is not None and (ended := self.forget_ghosts(now)):
            self._in_background(self._end_connections, ended)
        latest = now + min(TICK_INTERVAL, interval)
        self._tick_due = min([latest, *(adapter.next_tick() for adapter in list(self._adapters.values()))])
        return self._tick_due

    def _expire_callbacks(self, now: float) -> None:
        with self._lock:
            self._callbacks.expire(now)
            forgotten = self._callbacks.take_forgotten()
        if forgotten:
            limit = self._callbacks.limit
            self._log.error("%d callbacks are forgotten: %d of younger emits wait already", forgotten, limit)

    def _must_clean_up(self) -> bool:
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
        common = [adapter.peer_locks for adapter in list(self._adapters.values())]
        own = _core.member_lock(self._uid())
        return bool(common) and any(lock < own for lock in frozenset.intersection(*common))

    # ----------------------------------------------------------------------------------------- rooms

    def _mirror_room(self, namespace: str, room: Any) -> None:
        """Tell the core whether a room has members here: it drops what is for nobody before Python is woken."""
        if not self._is_mirroring:
            return
        name = None if room is None else str(room)
        with self._lock:  # of two threads the later one must have the last word
            if name is None:
                is_occupied = None in self.rooms.get(namespace, {})
            else:
                is_occupied = bool(self.local_rooms(namespace, [name]))
            core = self._bus.core
            (core.enter_room if is_occupied else core.leave_room)(namespace, name)

    def _mirror_rooms(self) -> None:
        """From now on the core knows the rooms."""
        with self._lock:
            if not self._is_mirroring:
                self._is_mirroring = True
                self._bus.core.mirror_rooms()
                for namespace, rooms in list(self.rooms.items()):
                    for room in list(rooms):
                        self._mirror_room(namespace, room)
