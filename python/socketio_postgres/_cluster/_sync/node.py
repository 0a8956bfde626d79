# Generated from async_node.py by scripts/async_to_sync.py; edit that file.
"""`Node`: one server of a cluster, or a sender that is none, around the sockets of its process.

It knows nothing of python-socketio: `sockets` answers for the clients. What does not wait is in its parts.
"""

from __future__ import annotations

import functools
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Generic, TypeAlias, TypeVar, cast

from socketio_postgres import _core
from socketio_postgres._bus.bus import Bus
from socketio_postgres._bus.gap import GapInfo
from socketio_postgres._bus.handover import Operation
from socketio_postgres._bus.messages import EMITTER_UID, RESERVED_EVENTS, Message, MessageType
from socketio_postgres._bus.options import BusOptions, HeartbeatOptions
from socketio_postgres._bus.stats import ManagerStats
from socketio_postgres._cluster import payload
from socketio_postgres._cluster._sync.in_transaction import Place, Transactions
from socketio_postgres._cluster._sync.receiver import Receiver
from socketio_postgres._cluster._sync.requests import Requests
from socketio_postgres._cluster.answers import Answers
from socketio_postgres._cluster.broadcast_operator import Target
from socketio_postgres._cluster.callbacks import Callbacks
from socketio_postgres._cluster.local_sockets import LocalSockets
from socketio_postgres._cluster.peers import Peers
from socketio_postgres._cluster.reports import Reports
from socketio_postgres._cluster.room_mirror import RoomMirror
from socketio_postgres._cluster.rooms import bad, checked_namespace, chosen_namespace
from socketio_postgres._cluster.runner import Runner
from socketio_postgres._cluster.sql_script import install_script, remove_script
from socketio_postgres.exceptions import (
    NotAServerError,
    PayloadTooLargeError,
    SocketIOPostgresError,
)

if TYPE_CHECKING:
    import asyncio

__all__ = ["Node"]

CLOSE_LIMIT: Final = 5.0
"""Seconds that closing waits for buffered messages."""

CALLBACK_LIFETIME: Final = 3600.0
"""Seconds after which the callback of an emit to other servers' clients is forgotten. A person may have to answer.
That of an emit to a client of this server is kept until that client leaves, as python-socketio does it."""

Handler: TypeAlias = Callable[..., Any]
F = TypeVar("F", bound=Handler)
S = TypeVar("S", bound=LocalSockets)


class Node(Generic[S]):
    """One server of a cluster.

    Args:
        options: Options of its bus.
        heartbeat: The intervals of heartbeats.
        sockets: The clients of this process.
        write_only: Only emit. Other servers do not count this node.
        logger: Hears what fails.
        share_session: Let other servers see user sessions.
        error_handler: Told what fails in the background.
        on_gap: Told when messages will not come.
    """

    def __init__(
        self,
        options: BusOptions,
        heartbeat: HeartbeatOptions,
        sockets: S,
        *,
        logger: logging.Logger,
        write_only: bool = False,
        share_session: bool = False,
        error_handler: Callable[[Exception], object] | None = None,
        on_gap: Callable[[GapInfo], object] | None = None,
    ) -> None:
        self.sockets = sockets
        self.channel = options.channel
        self.heartbeat = heartbeat
        self.write_only = write_only
        self._log = logger
        self._share_session = share_session
        self._server_id, self._id_pid = sockets.new_server_id(), os.getpid()
        self.runner = Runner(self)
        self._error_handler = self.runner.hook("error_handler", error_handler, logger)
        self._on_gap = self.runner.hook("on_gap", on_gap, logger, self._error_handler)
        self._bus = Bus(
            options,
            uid=self._uid,
            # Asked once in this time and given as much to answer: a deaf session is noticed within the time-out.
            probe_interval=heartbeat.heartbeat_timeout / 2,
            before_exit=self._before_exit,
        )
        self.receiver = Receiver(self)
        self.transactions = Transactions(self._bus, self._find_place)
        self._prepare()

    # -------------------------------------------------------------------------------------- processes, loops

    def _prepare(self) -> None:
        """Everything that belongs to this process and nothing that belongs to the application."""
        self._pid = os.getpid()
        self._is_started = False
        self._start_lock = threading.Lock()
        self.callbacks = Callbacks()
        self.requests = Requests(self)
        self.reports = Reports(self._log, self._bus.description, self._error_handler, self._on_gap)
        self.mirror = RoomMirror(self._bus, self.sockets)
        self.sockets.watch(self.mirror.update)
        self.peers = Peers(
            self._bus, self.heartbeat, self.reports, uid=self._uid, loads=self._loads, complete=self.requests.complete
        )
        self.answers = Answers(self.sockets, self.peers, self.reports, share_session=self._share_session)
        self.runner.reset()

    def check_process(self) -> None:
        """Start over in a forked child, because threads, tasks and connections belong to the parent."""
        if self._pid != os.getpid():
            self.runner.forked()
            self._prepare()
            self.sockets.forget()

    def begin_anew(self, *, has_left: bool) -> None:
        """Begin as in a new process, whether or not this one has left the cluster before."""
        is_closed = self._bus.is_closed
        if not is_closed:
            self._leave()
        if has_left or not is_closed:
            self._bus.begin_anew()
        self._prepare()
        self.sockets.forget()
        self._renew_id()

    def _loads(self, text: str) -> Any:
        return self.sockets.json.loads(text)

    def _uid(self) -> str:
        """Who we are to the cluster; a new id in every process, as a forked worker is a server of its own."""
        if self.write_only or not self.sockets.has_server:
            return EMITTER_UID
        if self._id_pid != os.getpid():
            self._renew_id()
        return self._server_id

    def _renew_id(self) -> None:
        self._server_id, self._id_pid = self.sockets.new_server_id(), os.getpid()

    @property
    def is_of_this_process(self) -> bool:
        """Whether it has been used in this process before, or was made in it."""
        return self._pid == os.getpid()

    @property
    def is_closed(self) -> bool:
        """Whether it has left the cluster."""
        return self._bus.is_closed

    # --------------------------------------------------------------------------------------------- the core

    @property
    def core(self) -> _core.Bus:
        """As `Bus.core`."""
        return self._bus.core

    @property
    def inbox(self) -> _core.Inbox:
        """As `Bus.inbox`."""
        return self._bus.inbox

    def run_core(self, operation: Operation) -> Any:
        """Run an operation of the core to its end."""
        return self._bus.call_blocking(operation)

    def use_threads_of(self, server: Any) -> None:
        """Wait, and run what goes on in the background, as a python-socketio server does: by its `async_mode`."""
        self._bus.blocking.async_mode = server.eio.async_mode
        self.runner.use(server)

    def wait(self, inbox: _core.Inbox, seconds: float) -> None:
        """Block, as this server does, until an inbox holds something or the time is over."""
        self._bus.blocking.wait(inbox, seconds)

    def used_on(self, loop: asyncio.AbstractEventLoop) -> None:
        """As `Bus.used_on`."""
        self._bus.used_on(loop)

    # ------------------------------------------------------------------------------------------- life cycle

    def initialize(self) -> None:
        """Begin to be a server: in the background, once, where clients are going to connect."""
        self.check_process()
        self.runner.start(serves=True)

    def is_first_start(self) -> bool:
        """Whether this is asked for the first time since the node began."""
        with self._start_lock:
            is_first, self._is_started = not self._is_started, True
        return is_first

    def start(self) -> None:
        """Connect; of a server, join the cluster, too."""
        core = self._bus.core
        self._bus.call_blocking(lambda inbox, token: core.start_publisher(True, inbox, token))
        if not self.write_only and self.sockets.has_server:
            self.runner.start()
            self._bus.call_blocking(core.start_listener)
            for namespace in self.served_namespaces():
                self.join(namespace)
            self._bus.call_blocking(core.flush)
            self._bus.call_blocking(core.self_test)

    def flush(self, timeout: float | None = None) -> None:
        """Wait until everything published before is committed."""
        self._bus.flush_blocking(timeout)

    def install_sql(self, schema: str) -> None:
        """Install the SQL functions, with the settings of this server."""
        core = self._bus.core
        script = install_script(self._bus.options, core.table_name, schema)
        self._bus.call_blocking(core.ensure_table)
        self._bus.call_blocking(lambda inbox, token: core.migrate(script, inbox, token))

    def uninstall_sql(self, schema: str) -> None:
        """Remove them."""
        core, script = self._bus.core, remove_script(schema)
        self._bus.call_blocking(lambda inbox, token: core.migrate(script, inbox, token))

    def close(self) -> None:
        """Leave the cluster and disconnect."""
        self.close_within(CLOSE_LIMIT)

    def close_within(self, limit: float, *, ends_with_loop: bool = False) -> None:
        """The same, and wait so long for the commits; `ends_with_loop` when the event loop is being torn down."""
        self.runner.has_ended_with_loop = ends_with_loop
        if self._bus.is_closed:
            return
        self.runner.end()
        self._leave()
        self._bus.close_blocking(limit)

    def _leave(self) -> None:
        self.mirror.stop()
        self.peers.leave()

    def _before_exit(self) -> None:
        """The process ends without a call of `close`."""
        self.runner.at_exit()
        self._leave()

    # ------------------------------------------------------------------------------------------- namespaces

    def server_count(self, namespace: str) -> int:
        """Servers that serve a namespace, this one included, as far as this one knows."""
        self.require_server("server_count")
        adapter = self.peers.adapters.get(chosen_namespace(namespace))
        return 1 if adapter is None else adapter.server_count

    def served_namespaces(self) -> list[str]:
        """Namespaces that clients may connect to, as far as they are known beforehand, or that have handlers."""
        namespaces: set[Any] = {"/", *self.receiver.handled_namespaces, *self.sockets.namespaces()}
        namespaces.discard("*")
        # An invalid namespace is the mistake of the code that registered a handler, so the timers must not fail.
        return sorted({checked_namespace(each) for each in namespaces if isinstance(each, str) and each})

    def join(self, namespace: str) -> None:
        """Serve a namespace; returns once LISTEN is active.

        Raises:
            OperationTimeoutError: It is not, a while after it was asked for first. It goes on.
        """
        self.check_process()
        if self.peers.use(namespace):
            return
        if self.sockets.has_server:
            self.runner.start()  # whose task takes leave when the loop ends
        self.runner.join(namespace)

    def try_to_join(self, namespace: str) -> None:
        """Join if PostgreSQL answers; without the bus a server still serves its own clients.

        Raises:
            PayloadTooLargeError: It never can be joined: the channel's name would be too long.
        """
        try:
            self.join(namespace)
        except PayloadTooLargeError:
            raise
        except SocketIOPostgresError as error:
            self.reports.not_joined(namespace, error)

    def joined(self, namespace: str) -> None:
        """LISTEN is active."""
        self.mirror.start()
        self.peers.join(namespace)

    def may_connect(self, connection: str, namespace: str) -> bool:
        """Whether a client may be told that it is connected: LISTEN is active, and it is still there."""
        try:
            self.try_to_join(namespace)
        except PayloadTooLargeError as error:
            self.reports.failure(error)
            return False
        # The client may have disconnected meanwhile, and would stay in its rooms.
        return not self.sockets.has_hung_up(connection)

    def serve(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function where clients connect."""
        return function(*args)

    def carry_out(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function where clients are connected."""
        return function(*args)

    # ----------------------------------------------------------------------------------------------- timers

    def tick(self, now: float) -> float:
        """Do the work that is due; returns when to do so again."""
        self.expire_callbacks(now)
        latest = self.peers.tick(now)
        self.peers.leave_unused(
            now,
            is_used=self.callbacks.is_waiting_in,
            has_clients=self.sockets.has_clients,
            served=self.served_namespaces,
            forget_join=self.runner.forget_join,
        )
        self.sockets.look_after(now, self.runner.spawn, self.receiver.disconnect_raised)
        return self.peers.next_tick(latest)

    def expire_callbacks(self, now: float) -> None:
        """Forget callbacks that received no answer in time."""
        self.callbacks.expire(now)
        forgotten = self.callbacks.take_forgotten()
        if forgotten:
            limit = self.callbacks.limit
            self._log.error("%d callbacks are forgotten: %d of younger emits wait already", forgotten, limit)

    def must_clean_up(self) -> bool:
        """As `Peers.must_clean_up`."""
        return self.peers.must_clean_up()

    def clean_up(self, age: float) -> None:
        """Delete attachments that are older than so many seconds."""
        try:
            core = self._bus.core
            self._bus.call_blocking(lambda inbox, token: core.expire_attachments(age, inbox, token))
        except Exception as error:  # noqa: BLE001  (the next one may succeed)
            self.reports.failure(error)

    # ------------------------------------------------------------------------------------------- publishing

    def require_server(self, what: str) -> None:
        """Refuse what only a server of the cluster can do.

        Raises:
            NotAServerError: This node hears no answers.
        """
        if self.write_only:
            why = "is write_only; ask from a server, or from a manager that is not write_only and has one"
        elif not self.sockets.has_server:
            why = "has none; give it to a socketio server as its client_manager"
        else:
            return
        raise NotAServerError(f"{what} needs a server of the cluster, and this manager {why}")

    def append(self, message: Message) -> bool:
        """Append to the buffer, in call order; False when the caller is to wait for room once it is done here."""
        self.check_process()
        if not self._is_started and not self.write_only and self.sockets.has_server:
            # Peers count every publisher as a server, so this node must listen from its first message on.
            self.runner.start()
        self.peers.note_sent(message)
        if not self._is_started or self.write_only:
            # No background task looks at failures, so each call does.
            for failure in self._bus.take_failures():
                self.reports.failure(failure)
        return self._bus.append(message)

    def wait_for_room(self) -> None:
        """Wait until the buffer has room."""
        self._bus.wait_for_room_blocking()

    def publish(self, message: Message) -> None:
        """Append to the buffer, and wait when it is full."""
        if not self.append(message):
            self.wait_for_room()

    def event_message(
        self,
        event: Any,
        data: Any,
        namespace: str,
        rooms: tuple[str, ...] | None,
        skipped: tuple[str, ...],
        request: str | None,
    ) -> Message:
        """The message of python-socketio's `emit`.

        Raises:
            OptionsError: The event is none.
            EncodeError: `data` cannot travel.
        """
        if not isinstance(event, str) or not event:
            raise bad("event", event, "an event is a non-empty string")
        if event in RESERVED_EVENTS:
            self._log.warning("event %r is reserved by Socket.IO; JavaScript clients will reject it", event)
        return Message(
            MessageType.BROADCAST,
            namespace,
            to=list(rooms or ()),
            except_=list(skipped),
            request_id=request,
            **payload.packet_fields(event, data, self.sockets.json),
        )

    def emit(
        self,
        event: str,
        data: Any,
        namespace: str = "/",
        rooms: tuple[str, ...] | None = None,
        skipped: tuple[str, ...] = (),
        callback: Callable[..., Any] | None = None,
        *,
        is_for_others: bool = True,
    ) -> None:
        """Emit to the clients of all servers, or of this one only. As in python-socketio, a tuple is several arguments.

        Args:
            event: Name of the event.
            data: Its argument; None is none, a tuple several.
            namespace: Namespace.
            rooms: Names of rooms; None is everybody.
            skipped: Names of rooms and sids that are left out.
            callback: Called with the first acknowledgement.
            is_for_others: Whether other servers are to hear it.
        """
        is_at_home = True
        if rooms == ():
            return
        request = None
        is_local = False
        if callback is not None and is_for_others:
            self.require_server("a callback")
            if rooms is None:
                raise ValueError("Cannot use callback without a room set.")
            # The private room of one client of this process, which is its only member.
            is_local = len(rooms) == 1 and self.sockets.is_connected(rooms[0], namespace)
            self.try_to_join(namespace)
            request, callback = self._callback_request(namespace, callback, is_local=is_local)
        try:
            message = self.event_message(event, data, namespace, rooms, skipped, request) if is_for_others else None
            has_room = message is None or is_local or self.append(message)
        except BaseException:
            if request is not None:
                self.callbacks.take(request)
            raise
        if is_at_home:
            # Here it reaches those whom other servers choose by the same names.
            here = self.sockets.rooms_here(namespace, rooms)
            left_out = self.sockets.sids_in(namespace, skipped)
            self.sockets.deliver(message, namespace, here, left_out, callback, (event, data))
        if not has_room:
            self.wait_for_room()

    def _callback_request(
        self, namespace: str, callback: Callable[..., Any], *, is_local: bool
    ) -> tuple[str | None, Callable[..., None]]:
        """A request whose first acknowledgement fires a callback, and what our own clients are to acknowledge to."""
        if is_local:
            return None, functools.partial(self.runner.spawn, self.receiver.call_back, callback)
        request = secrets.token_hex(8)
        self.callbacks.add(request, namespace, callback, time.monotonic() + CALLBACK_LIFETIME)

        def fire(*args: Any) -> None:
            self.receiver.fire(request, args)

        return request, fire

    def act(self, message: Message, target: Target) -> None:
        """Carry out a chain: here, and on the other servers."""
        if target.is_local:
            self.require_server("a chain of local sockets")
        if target.rooms == ():
            return
        has_room = target.is_local or self.append(message)
        self.receiver.apply(message)
        if not has_room:
            self.wait_for_room()

    def _find_place(self, needs_table: bool) -> Place:
        core = self._bus.core
        place: Place = self._bus.call_blocking(lambda inbox, token: core.find_place(needs_table, inbox, token))
        return place

    # ----------------------------------------------------------------------------------- clients, by their sid

    def disconnect(self, sid: str, namespace: str) -> None:
        """Disconnect a client, wherever it is connected."""
        if self.sockets.is_connected(sid, namespace):
            self.sockets.disconnect(sid, namespace)
        else:
            self.publish(Message(MessageType.DISCONNECT_SOCKETS, namespace, to=[sid]))

    def enter_room(self, sid: str, namespace: str, name: str, room: Any, eio_sid: str | None = None) -> None:
        """Add a client to a room, wherever it is connected; `room` is what its own server calls the room."""
        if self.sockets.is_here(sid, namespace):
            self.sockets.enter_room(sid, namespace, room, eio_sid)
        else:
            self.publish(Message(MessageType.SOCKETS_JOIN, namespace, to=[sid], rooms=[name]))

    def leave_room(self, sid: str, namespace: str, name: str) -> None:
        """Remove a client from a room, wherever it is connected. It never leaves the one named by its own sid."""
        if self.is_own_room(sid, name, namespace):
            return
        if self.sockets.is_here(sid, namespace):
            self.sockets.leave_room(sid, namespace, name)
        else:
            self.publish(Message(MessageType.SOCKETS_LEAVE, namespace, to=[sid], rooms=[name]))

    def close_room(self, name: str, namespace: str) -> None:
        """Remove all clients of all servers from a room."""
        self.sockets.close_room(name, namespace)
        self.publish(Message(MessageType.SOCKETS_LEAVE, namespace, to=[name], rooms=[name]))

    def is_own_room(self, sid: str, name: str, namespace: str) -> bool:
        """Whether a client is asked to leave the room named by its sid, after which it could not be reached."""
        if sid != name:
            return False
        self._log.warning("client %s of %s does not leave the room of its own", sid, namespace)
        return True

    def server_side_emit(self, namespace: str, packet: list[Any]) -> None:
        """Emit an event to the other servers."""
        self.publish(
            Message(MessageType.SERVER_SIDE_EMIT, namespace, **payload.value_fields(packet, self.sockets.json))
        )

    # --------------------------------------------------------------------------------------------- watching

    def stats(self) -> ManagerStats:
        """Counters since the first use, and `peers`: the server ids known in each namespace."""
        stats = self._bus.stats()
        stats["peers"] = {nsp: adapter.peers for nsp, adapter in list(self.peers.adapters.items())}
        return cast("ManagerStats", stats)
