"""What both managers share: everything of a cluster member that does not wait.

`AsyncPostgresManager` and `PostgresManager` add the waiting, each in its own way.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json as stdlib_json
import logging
import os
import secrets
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, TypeAlias, TypeVar, overload

from socketio_postgres import _core
from socketio_postgres._bus.bus import Bus
from socketio_postgres._bus.gap import GapHandler, GapInfo
from socketio_postgres._bus.messages import EMITTER_UID, RESERVED_EVENTS, Message, MessageType
from socketio_postgres._bus.options import BusOptions, HeartbeatOptions, ManagerKeywords
from socketio_postgres._cluster import payload
from socketio_postgres._cluster.adapter import ClusterAdapter, Request, answer_arguments
from socketio_postgres._cluster.broadcast_operator import Target
from socketio_postgres._cluster.empty_rooms import guard
from socketio_postgres._cluster.handshake import handshake
from socketio_postgres._cluster.local_delivery import Parcel, event_maker, event_packets
from socketio_postgres._cluster.membership import Membership
from socketio_postgres._cluster.rooms import bad, chosen_namespace, room_key
from socketio_postgres._typing import Unpack
from socketio_postgres.exceptions import (
    ClosedError,
    CommitInDoubtError,
    ConnectionLostError,
    DatabaseError,
    DecodeError,
    EncodeError,
    ForkedProcessError,
    NotAServerError,
    OperationTimeoutError,
    PayloadTooLargeError,
    RequestTimeoutError,
    SelfTestError,
    SocketIOPostgresError,
)

__all__ = ["ClusterMember", "Delivery"]

JOIN_LIMIT: Final = 10.0
"""Seconds a connecting client waits for LISTEN; then it is let in, and the log says so."""

GOODBYE_LIMIT: Final = 1.0
"""Seconds that leaving waits for buffered messages when the server is being torn down."""

CLOSE_LIMIT: Final = 5.0
"""The same for an explicit `close`."""

CALLBACK_LIFETIME: Final = 3600.0
"""Seconds after which the callback of an emit to other servers' clients is forgotten. Whoever answers may be a person.
That of an emit to a client of this server is kept until that client leaves, as python-socketio does it."""

TOLD_COUNT: Final = 256
"""Kinds of failures that are remembered, to tell them once."""

log: Final = logging.getLogger("socketio_postgres")

Handler: TypeAlias = Callable[..., Any]
F = TypeVar("F", bound=Handler)
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Delivery:
    """Arguments for the local `emit` of python-socketio's own manager.

    Attributes:
        event: Name of the event.
        args: Its arguments.
        namespace: Namespace.
        room: None for everyone, or a list of rooms.
        skip_sid: Sids left out.
        callback: Called with each client's acknowledgement.
        parcels: What reaches each client, where it is known already; then event and args need not be.
    """

    event: str
    args: tuple[Any, ...]
    namespace: str
    room: Any
    skip_sid: list[str]
    callback: Callable[..., Any] | None
    parcels: list[Parcel] | None = None


def _is_passing(error: Exception) -> bool:
    """Whether it is about a connection that is opened again until it works, so that nothing is lost yet."""
    if isinstance(error, DatabaseError) and not isinstance(error, ConnectionLostError):
        # Connection exception, insufficient resources, operator intervention; a standby may be promoted.
        return error.sqlstate[:2] in {"08", "53", "57"} or error.sqlstate == "25006"
    return isinstance(error, (ConnectionLostError, OperationTimeoutError, SelfTestError)) and not isinstance(
        error, CommitInDoubtError
    )


def _explained(what: str, error: Exception) -> Exception:
    """An error of the core that also says what it is about."""
    return type(error)(f"{what} cannot travel: {error}", **vars(error))


class ClusterMember(Membership):
    """What is published, the effects of messages on local sockets, and answers."""

    name = "postgres"

    def __init__(
        self,
        dsn: str = "",
        channel: str = "socket.io",
        write_only: bool = False,
        *,
        logger: logging.Logger | None = None,
        json: Any = None,
        heartbeat_interval: float = 5.0,
        heartbeat_timeout: float = 10.0,
        cleanup_interval: float = 30.0,
        share_session: bool = False,
        error_handler: Callable[[Exception], object] | None = None,
        on_gap: GapHandler | None = None,
        guard_empty_rooms: bool = True,
        **options: Unpack[ManagerKeywords],
    ) -> None:
        super().__init__(channel=channel, write_only=write_only, logger=logger)
        self.json = json or stdlib_json  # python-socketio before 5.16 has no such attribute
        if not isinstance(guard_empty_rooms, bool):
            raise bad("guard_empty_rooms", guard_empty_rooms, "must be True or False")
        self._guards_empty_rooms = guard_empty_rooms
        self._host_pid = os.getpid()  # whose id `host_id` is
        self._target = Target("/")  # the manager is the start of every chain
        self._manager: Any = self
        self._heartbeat = HeartbeatOptions(heartbeat_interval, heartbeat_timeout, cleanup_interval)
        self._share_session = share_session
        self._log = logger or log
        self._error_handler = self._hook("error_handler", error_handler)
        self._on_gap = self._hook("on_gap", on_gap, self._error_handler)
        self._bus = Bus(
            BusOptions.of(dsn, {"channel": channel, **options}),
            uid=self._uid,
            # Asked once in this time and given as much to answer: a deaf session is noticed within the time-out.
            probe_interval=heartbeat_timeout / 2,
            before_exit=self._before_exit,
        )
        self._handlers: dict[tuple[str, str], Handler] = {}
        self._told: set[tuple[object, ...]] = set()
        self._connected_at: dict[tuple[str, str], float] = {}
        self._prepare()

    def _prepare(self) -> None:
        """Everything that belongs to this process and nothing that belongs to the application."""
        self._pid = os.getpid()
        self._prepare_membership()
        self._is_initialized = False
        self._prepare_waiting()

    def _check_process(self) -> None:
        """In a forked child begin anew: threads, tasks and connections stayed with the parent."""
        if self._pid != os.getpid():
            self._prepare()
            self._forget_clients()

    def _forget_clients(self) -> None:
        """Clients stayed with another process, or loop: counting them here, we would owe their acknowledgements."""
        for inherited in (
            self.rooms,
            self._room_aliases,
            self._connected_at,
            self.callbacks,
            getattr(self, "pending_connect", {}),  # absent before python-socketio 5.17
            self.pending_disconnect,
            self._gone_since,
        ):
            inherited.clear()

    def _hook(
        self,
        name: str,
        function: Callable[[Any], object] | None,
        failed: Callable[[Exception], None] | None = None,
    ) -> Callable[[Any], None]:
        """What tells a function of the application's of something."""
        raise NotImplementedError

    @staticmethod
    def _check_function(name: str, function: object) -> None:
        """Refuse a function that this manager cannot call."""
        raise NotImplementedError

    def _prepare_waiting(self) -> None:
        """Attributes of the half that waits."""
        raise NotImplementedError

    def _uid(self) -> str:
        """Who we are to the cluster; a new id in every process, as a forked worker is a server of its own."""
        if self.write_only or self.server is None:
            return EMITTER_UID
        if self._host_pid != os.getpid():
            self._renew_uid()
        return str(self.host_id)

    def _renew_uid(self) -> None:
        self._host_pid, self.host_id = os.getpid(), uuid.uuid4().hex

    def set_server(self, server: Any) -> None:
        """As in `BaseManager`; from now on the server's json module is used, and its `emit` knows empty lists."""
        super().set_server(server)
        self.json = server.packet_class.json
        if self._guards_empty_rooms:
            guard(server)

    def initialize(self) -> None:
        """Called by the server when its first client arrives."""
        self._check_process()
        with self._lock:
            is_first, self._is_initialized = not self._is_initialized, True
        if is_first or self.write_only:
            super().initialize()

    def basic_enter_room(self, sid: str, namespace: str, room: Any, eio_sid: str | None = None) -> None:
        """As in `BaseManager`, noting when a client came."""
        room = room_key(room)
        super().basic_enter_room(sid, namespace, room, eio_sid=eio_sid)
        if room is None:
            self._connected_at[namespace, sid] = time.time()
        self._mirror_room(namespace, room)

    def basic_leave_room(self, sid: str, namespace: str, room: Any) -> None:
        """As in `BaseManager`."""
        room = room_key(room)
        super().basic_leave_room(sid, namespace, room)
        if room is None:
            self._connected_at.pop((namespace, sid), None)
        self._mirror_room(namespace, room)

    # ----------------------------------------------------------------------------------------- from the core

    def _take_item(self, kind: int, value: Any) -> None:
        """What the core hands over, other than messages and the ends of operations. Nothing of it stops the reader."""
        try:
            self._take_item_now(kind, value)
        except Exception as error:  # noqa: BLE001  (a reader that has ended would leave this server deaf)
            self._report_raised("taking over from the core", error)

    def _take_item_now(self, kind: int, value: Any) -> None:
        match kind:
            case _core.FAILURE:
                self._report(value)
            case _core.GAP:
                self._report_gap(GapInfo(*value))
            case _core.MEMBERS:
                self._see_members(value)
            case _core.SEEN:
                self._see_peer(*value)
            case _core.LISTENING if value:
                self._announce_again()

    def _before_exit(self) -> None:
        """The process ends, and nobody has called `close`."""
        self._leave()

    # ----------------------------------------------------------------------------------------- publishing

    def _emit_message(
        self,
        event: Any,
        data: Any,
        namespace: str,
        rooms: tuple[str, ...] | None,
        skipped: tuple[str, ...],
        request: str | None,
    ) -> Message:
        """The message of python-socketio's `emit`."""
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
            **payload.packet_fields(event, data, self.json),
        )

    def _require_server(self, what: str) -> None:
        """Refuse what only a server of the cluster can do.

        Raises:
            NotAServerError: This manager hears no answers.
        """
        if self.write_only:
            why = "is write_only; ask from a server, or from a manager that is not write_only and has one"
        elif self.server is None:
            why = "has none; give it to a socketio server as its client_manager"
        else:
            return
        raise NotAServerError(f"{what} needs a server of the cluster, and this manager {why}")

    def _check_callback(self, rooms: tuple[str, ...] | None) -> None:
        self._require_server("a callback")
        if rooms is None:
            raise ValueError("Cannot use callback without a room set.")

    def _callback_request(
        self, namespace: str, callback: Callable[..., Any], *, is_local: bool
    ) -> tuple[str | None, Callable[..., None]]:
        """A request whose first acknowledgement fires a callback, and what our own clients are to acknowledge to."""
        if is_local:

            def run(*args: Any) -> None:
                self._in_background(self._call_back, callback, *args)

            return None, run
        request = secrets.token_hex(8)
        with self._lock:
            self._callbacks.add(request, namespace, callback, time.monotonic() + CALLBACK_LIFETIME)

        def fire(*args: Any) -> None:
            self._fire(request, args)

        return request, fire

    def _fire(self, request: str | None, args: Sequence[Any]) -> None:
        """Run the callback of a request, the first time that it is acknowledged."""
        with self._lock:
            callback = None if request is None else self._callbacks.take(request)
        if callback is not None:
            self._in_background(self._call_back, callback, *args)

    def _take_back(self, request: str | None) -> None:
        """Forget the callback of a request that was not sent."""
        if request is not None:
            with self._lock:
                self._callbacks.take(request)

    def _local_acknowledgement(self, adapter: ClusterAdapter, request: Request) -> Callable[..., None]:
        """The callback given to python-socketio for our own clients."""

        def acknowledge(*args: Any) -> None:
            self._run(adapter, adapter.acknowledge_local, request, list(args))

        return acknowledge

    def _is_local_client(self, rooms: tuple[str, ...], namespace: str) -> bool:
        """Whether it is the private room of one client of this process; nobody else can be in it."""
        return len(rooms) == 1 and self.is_connected(rooms[0], namespace)

    def _is_here(self, sid: str, namespace: str) -> bool:
        check = getattr(self, "is_pre_connected", None)  # absent before python-socketio 5.17
        return self.is_connected(sid, namespace) or bool(check and check(sid, namespace))

    def _publish_soon(self, *messages: Message) -> None:
        """Append messages that nobody waits for, to one transaction; what a full buffer refuses is given up."""
        if not messages:
            return
        try:
            self._publish_now(*messages)
        except SocketIOPostgresError as error:
            self._report(error)

    def _publish_now(self, *messages: Message) -> None:
        for message in messages:
            self._note_sent(message)
        accepted = self._bus.core.publish_many(list(messages))
        for message in messages[accepted:]:
            self._log.warning("the buffer is full, so %r is not sent", message)

    def _answer(self, tell: Callable[[Exception], None], *answers: Callable[[], Message]) -> None:
        """Publish the first of several answers, each poorer than the one before, that can travel.

        Otherwise whoever asked would wait for us in vain. Why the others cannot is told here.
        """
        for make in answers:
            try:
                self._publish_now(make())
            except (EncodeError, PayloadTooLargeError) as error:
                tell(error)
            except SocketIOPostgresError as error:
                self._report(error)
                return
            else:
                return

    def _append(self, message: Message) -> bool:
        """Append to the buffer, in call order; False when the caller is to wait for room once it is done here."""
        self._before_publishing(message)
        return self._bus.append(message)

    def _before_publishing(self, message: Message) -> None:
        self._check_process()
        if not self._is_initialized and not self.write_only and self.server is not None:
            # Peers count whoever publishes as a server, so from the first message on we must listen, too.
            self.initialize()
        self._note_sent(message)
        if not self._is_initialized or self.write_only:
            # No background task looks at failures, so each call does.
            for failure in self._bus.take_failures():
                self._report(failure)

    # ------------------------------------------------------------------------------------------ receiving

    def _apply_now(self, message: Message) -> Delivery | None:
        """Do to local sockets what a message says; a broadcast is returned, to be delivered by the caller."""
        match message.type:
            case MessageType.BROADCAST:
                return self._delivery(message)
            case MessageType.SOCKETS_JOIN:
                self._join_sockets(message)
            case MessageType.SOCKETS_LEAVE:
                self._leave_sockets(message)
            case MessageType.DISCONNECT_SOCKETS:
                for sid in self._disconnected_by(message):
                    self._in_background(self._disconnect_local, sid, message.nsp, message.close)
            case MessageType.FETCH_SOCKETS:
                self._answer_fetch(message)
            case MessageType.BROADCAST_ACK:
                self._fire(message.request_id, answer_arguments(message, self.json.loads))
            case MessageType.SERVER_SIDE_EMIT:
                self._in_background(self._handle_server_side, message)
        return None

    def _join_sockets(self, message: Message) -> None:
        try:
            for sid in self.local_sids(message.nsp, message.to, message.except_):
                for room in message.rooms:
                    try:
                        self.basic_enter_room(sid, message.nsp, room)
                    except (ValueError, KeyError) as error:  # a sid's own room; or it has left meanwhile
                        self._log.warning("client %s does not enter %r of %s: %s", sid, room, message.nsp, error)
        finally:
            if message.uid:  # of another server, so the core let it pass
                self._bus.core.rooms_joined(message.nsp, message.rooms)

    def _leave_sockets(self, message: Message) -> None:
        for sid in self.local_sids(message.nsp, message.to, message.except_):
            for room in self.local_rooms(message.nsp, message.rooms):
                if not self._is_own_room(sid, room, message.nsp):
                    self.basic_leave_room(sid, message.nsp, room)

    def _is_own_room(self, sid: str, room: Any, namespace: str) -> bool:
        """Whether a client is asked to leave the room named by its sid: nobody could reach it any more."""
        if sid != room:
            return False
        self._log.warning("client %s of %s does not leave the room of its own", sid, namespace)
        return True

    def _disconnected_by(self, message: Message) -> list[str]:
        """Local clients that a message disconnects."""
        if message.type != MessageType.DISCONNECT_SOCKETS:
            return []
        return self.local_sids(message.nsp, message.to, message.except_)

    def _packet(self, message: Message) -> list[Any]:
        packet = message.packet(self.json.loads)
        if not isinstance(packet, list) or not packet or not isinstance(packet[0], str):
            reason = "its packet does not begin with the name of an event"
            raise DecodeError(f"undecodable {message!r}: {reason}", reason=reason)
        return packet

    def _delivery(self, message: Message) -> Delivery | None:
        namespace = message.nsp
        room: Any = None
        left_out: set[str] = set()
        callback: Callable[..., Any] | None = None
        if message.request_id is not None:
            room = self._alive_sids(namespace, message.to, message.except_)
            answer = MessageType.BROADCAST_CLIENT_COUNT
            self._publish_soon(Message(answer, namespace, request_id=message.request_id, client_count=len(room)))

            def callback(*args: Any) -> None:
                self._acknowledge(message, args)
        else:
            if message.to:
                room = self.local_rooms(namespace, message.to)
            left_out = self.sids_in(namespace, message.except_)
        if room == [] or namespace not in self.rooms:
            return None
        parcels = self._parcels(message, room, left_out, callback)
        event, *args = self._packet(message) if parcels is None else ("",)
        return Delivery(event, tuple(args), namespace, room, list(left_out), callback, parcels)

    def _parcels(
        self, message: Message, rooms: list[Any] | None, left_out: Collection[str], callback: Callable[..., Any] | None
    ) -> list[Parcel] | None:
        """What an emit sends to which local clients, as in `AsyncManager.emit`; None when that has to do it."""
        if message.nsp not in self.rooms:
            return None
        chosen = (pair for pair in self.participants_in(message.nsp, rooms) if pair[0] not in left_out)
        if callback is None:
            packets = event_packets(self.server, message)
            return None if packets is None else [(eio_sid, packets) for _, eio_sid in chosen]
        make = event_maker(self.server, message)
        if make is None:
            return None
        return [(eio_sid, (make(self._generate_ack_id(sid, callback)),)) for sid, eio_sid in chosen]

    def _alive_sids(self, namespace: str, to: list[str], except_: list[str]) -> list[str]:
        return [sid for sid in self.local_sids(namespace, to, except_) if self.is_alive(sid, namespace)]

    def _acknowledge(self, request: Message, args: tuple[Any, ...]) -> None:
        """A local client acknowledged a broadcast of another server."""
        self._answer_with(MessageType.BROADCAST_ACK, request, args, f"an acknowledgement in {request.nsp}")

    def _answer_with(self, kind: MessageType, request: Message, args: tuple[Any, ...], what: str) -> None:
        """Answer with some values; with none if they cannot travel."""

        def make(values: tuple[Any, ...]) -> Message:
            fields = self._answer_fields(request, values)
            return Message(kind, request.nsp, request_id=request.request_id, **fields)

        def tell(error: Exception) -> None:
            self._report(_explained(what, error))

        self._answer(tell, lambda: make(args), lambda: make(()))

    def _answer_fields(self, request: Message, args: tuple[Any, ...]) -> dict[str, Any]:
        """The value of an answer as its receiver expects it: Node takes the first argument, Go an array of one.

        Go v3.0.2 counts the elements of the array as answers of as many clients, and drops an answer without one.
        """
        if request.is_from_go:
            fields = payload.value_fields([args[0] if args else None], self.json)
        else:
            fields = payload.value_fields(args[0], self.json) if args else {}
        if len(args) > 1:
            fields["args"] = list(args)  # only servers of this package look at it
        return fields

    def _answer_fetch(self, request: Message) -> None:
        """Tell another server about our sockets, as fully as can travel.

        When that is less than which sockets there are and in which rooms, we say nothing and are named as missing: an
        empty list would say that there are none.
        """

        def answer(share: Callable[[Any, str], dict[str, Any]], *, is_bare: bool = False) -> Message:
            found = self._local_details(request.nsp, request.to, request.except_, share)
            if is_bare:
                found = [each | {"handshake": handshake({}, each["handshake"]["issued"] / 1000)} for each in found]
            return Message(
                MessageType.FETCH_SOCKETS_RESPONSE, request.nsp, request_id=request.request_id, sockets=found
            )

        def nothing(session: Any, namespace: str) -> dict[str, Any]:  # noqa: ARG001
            return {}

        def full() -> Message:
            try:
                return answer(self._shared_session)
            except EncodeError:
                return answer(self._sendable_session)  # which tells what it leaves out

        def tell(error: Exception) -> None:
            self._report_once(f"an answer with the sockets of {request.nsp}", error)

        self._answer(tell, full, lambda: answer(nothing), lambda: answer(nothing, is_bare=True))

    def _local_details(
        self,
        namespace: str,
        to: list[str],
        except_: list[str],
        share: Callable[[Any, str], dict[str, Any]] | None = None,
    ) -> list[dict[str, Any]]:
        """Local sockets as FETCH_SOCKETS_RESPONSE describes them; `share` says what their sessions show."""
        found = []
        for sid in self._alive_sids(namespace, to, except_):
            try:
                found.append(self._details(sid, namespace, share or self._own_session))
            except KeyError:
                if self.is_alive(sid, namespace):
                    raise
                # It has left just now, in another thread.
        return found

    def _details(self, sid: str, namespace: str, share: Callable[[Any, str], dict[str, Any]]) -> dict[str, Any]:
        eio_sid = self.eio_sid_from_sid(sid, namespace)
        issued = self._connected_at.get((namespace, sid), 0.0)
        try:
            shake = handshake(self.server.environ.get(eio_sid, {}), issued)
        except Exception as error:  # noqa: BLE001  (whatever serves the application may put anything there)
            self._report_once(f"the handshake of a client of {namespace}", error)
            shake = handshake({}, issued)
        rooms = list(self.rooms.get(namespace, {}).items())  # at once: other threads change it
        data: dict[str, Any] = {}
        eio_socket = self.server.eio.sockets.get(eio_sid)
        if self._share_session and eio_socket is not None:
            data.update(share(eio_socket.session.get(namespace, {}), namespace))
        if hasattr(self, "_timestamps"):  # python-socketio's admin instrumentation is on
            data["_admin"] = {"clientId": eio_sid[:12], "transport": self.server.eio.transport(eio_sid)}
        return {
            "id": sid,
            "handshake": shake,
            "rooms": [str(room) for room, sids in rooms if room is not None and sid in sids],
            "data": data,
        }

    def _own_session(self, session: Any, namespace: str) -> dict[str, Any]:
        """A user session as this process sees it."""
        if isinstance(session, Mapping):
            return dict(session)
        error = EncodeError(f"a session must be a dict to be shared, not {type(session).__name__}", path="data")
        self._report_once(f"the session of a client of {namespace}", error)
        return {}

    def _shared_session(self, session: Any, namespace: str) -> dict[str, Any]:
        """A user session as other servers see it.

        Raises:
            EncodeError: Something in it cannot travel.
        """
        shared: dict[str, Any] = payload.plain(self._own_session(session, namespace), self.json)
        return shared

    def _sendable_session(self, session: Any, namespace: str) -> dict[str, Any]:
        """What of a user session can travel; what cannot is told."""
        sendable: dict[str, Any] = {}
        for key, value in self._own_session(session, namespace).items():
            try:
                part = payload.plain({key: value}, self.json)
                Message(MessageType.SERVER_SIDE_EMIT_RESPONSE, namespace, request_id="", packet=part)
                sendable |= part
            except EncodeError as error:
                self._report_once(f"{key!r} of the session of a client of {namespace}", error)
        return sendable

    # ---------------------------------------------------------------------------------- server-side events

    @overload
    def on_server_side(self, event: str, handler: None = None, *, namespace: str = "/") -> Callable[[F], F]: ...

    @overload
    def on_server_side(self, event: str, handler: F, *, namespace: str = "/") -> F: ...

    def on_server_side(self, event: str, handler: F | None = None, *, namespace: str = "/") -> Callable[[F], F] | F:
        """Handle an event that another server, or an emitter, sends to the servers themselves.

        Use it as a decorator or call it with the handler. The handler gets the event's arguments and runs as a task
        of its own, so it may itself wait for other servers. What it returns is the answer, when one is expected. When
        there is no handler, or it raises, the answer is empty, so that nobody waits for us in vain; nor does anybody
        when what it returns cannot travel, which is reported here.

        The namespace is served from then on, with or without clients; from the start of this server on, if it has not
        started yet. May be called from any thread.

        Args:
            event: Name of the event.
            handler: Function or coroutine function.
            namespace: Namespace it is sent in; a missing leading slash is added.

        Raises:
            NotAServerError: This manager is `write_only` and hears nothing.
            PayloadTooLargeError: The name of the namespace is too long for a channel.
            OptionsError: It is no string.
        """
        if self.write_only:
            self._require_server("a handler of server-side events")
        namespace = chosen_namespace(namespace)
        _core.channel_name(self.channel, namespace)

        def register(function: F) -> F:
            self._check_function("handler", function)
            self._handlers[namespace, event] = function
            self._join_soon(namespace)
            return function

        return register if handler is None else register(handler)

    def _server_side_handler(self, message: Message) -> tuple[Handler | None, list[Any]]:
        event, *args = self._packet(message)
        return self._handlers.get((message.nsp, event)), args

    def _answer_server_side(self, message: Message, result: Any) -> None:
        if message.request_id is not None:
            what = f"what a handler of {message.nsp} returned"
            self._answer_with(MessageType.SERVER_SIDE_EMIT_RESPONSE, message, () if result is None else (result,), what)

    # -------------------------------------------------------------------------------------------- requests

    def _join_soon(self, namespace: str) -> None:
        """Serve a namespace, if this server runs; otherwise it is among those that it begins with."""
        raise NotImplementedError

    def _request(self, adapter: ClusterAdapter, *, is_local: bool, is_of_clients: bool) -> Request:
        with self._lock:
            return adapter.request(time.monotonic(), is_local=is_local, is_of_clients=is_of_clients)

    def _abandon(self, adapter: ClusterAdapter, request: Request) -> None:
        with self._lock:
            adapter.abandon(request)

    def _call_back(self, callback: Callable[..., Any], *args: Any) -> Any:
        """Run an application's callback; what it raises is logged."""
        raise NotImplementedError

    @staticmethod
    def _timed_out(request: Request, target: Target, *, partial: bool) -> list[Any]:
        if partial or not request.missing_servers:
            return request.responses
        missing = ", ".join(uid or "this server's own clients" for uid in request.missing_servers)
        raise RequestTimeoutError(
            f"no answer within {target.timeout} s from: {missing}; {len(request.responses)} responses are in",
            missing_servers=request.missing_servers,
            responses=request.responses,
        )

    # -------------------------------------------------------------------------------------------- watching

    def _warn_not_joined(self, namespace: str, error: Exception) -> None:
        why = str(error) or "PostgreSQL does not answer"
        self._log.warning("namespace %s is not connected to other servers yet: %s", namespace, why)

    def _guarded(self, what: str, function: Callable[..., T], *args: Any) -> T | None:
        """Call what must not end the loop it is called from; what it raises is reported, and the answer is None."""
        try:
            return function(*args)
        except (ClosedError, ForkedProcessError):
            raise  # the loop is to end
        except Exception as error:  # noqa: BLE001  (a user's logger, for example)
            self._report_raised(what, error)
            return None

    def _say(self, level: int, text: str, *args: object, exc_info: Exception | None = None) -> None:
        """Log a failure. A logger of the application's that raises must not make two of one, or end what reports."""
        with contextlib.suppress(Exception):
            self._log.log(level, text, *args, exc_info=exc_info)

    def _report(self, error: Exception) -> None:
        self._say(logging.WARNING if _is_passing(error) else logging.ERROR, "%s: %s", self._bus.description, error)
        self._tell(error)

    def _report_once(self, what: str, error: Exception) -> None:
        """Report what would otherwise be told again with every request."""
        kind = (what, type(error))
        with self._lock:
            if kind in self._told:
                return
            if len(self._told) >= TOLD_COUNT:
                self._told.clear()
            self._told.add(kind)
        if isinstance(error, SocketIOPostgresError):
            self._report(_explained(what, error))
        else:
            self._report_raised(what, error)

    def _report_gap(self, gap: GapInfo) -> None:
        self._say(logging.WARNING, "%s: %s", self._bus.description, gap)
        self._on_gap(gap)

    def _report_bad(self, message: Message, error: Exception) -> None:
        what = "a message of server %s could not be applied: %r"
        self._say(logging.ERROR, what, message.uid, message, exc_info=error)
        self._tell(error)

    def _report_raised(self, what: str, error: Exception) -> None:
        self._say(logging.ERROR, "%s raised: %r", what, error, exc_info=error)
        self._tell(error)

    def _tell(self, error: Exception) -> None:
        self._error_handler(error)

    def stats(self) -> dict[str, Any]:
        """Counters since the first use, and `peers`: the server ids known in each namespace."""
        stats = self._bus.stats()
        stats["peers"] = {nsp: adapter.peers for nsp, adapter in list(self._adapters.items())}
        return stats
