# Generated from async_manager.py by scripts/async_to_sync.py; edit that file.
"""`PostgresManager`: the client manager that makes a `socketio.Server` a member of the cluster."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from socketio.manager import Manager
from socketio.pubsub_manager import PubSubManager

from socketio_postgres._bus.messages import Message, MessageType
from socketio_postgres._cluster._sync.server_operator import ServerChain, ServerSideActions
from socketio_postgres._cluster.broadcast_operator import Target
from socketio_postgres._cluster.member import CLOSE_LIMIT, Delivery
from socketio_postgres._cluster.payload import value_fields
from socketio_postgres._cluster.rooms import checked_sid, chosen_namespace, chosen_rooms, room_name, skipped_names
from socketio_postgres._cluster.waiting import Waiting
from socketio_postgres.exceptions import PayloadTooLargeError

__all__ = ["PostgresManager"]

HAS_PRE_CONNECT: Final = hasattr(Manager, "pre_connect")
"""Whether the server calls `connect` once the connect handler has ended. Before python-socketio 5.17 it calls it first,
with the id of the connection instead of the client's, and has no `pre_connect`."""


class PostgresManager(ServerSideActions, ServerChain, Waiting, PubSubManager):  # type: ignore[misc]  # python-socketio is not typed
    """Makes a `socketio.Server` one of the servers of a cluster: Python, Node.js and Go.

        mgr = PostgresManager("postgresql://app@localhost/app")
        sio = socketio.Server(client_manager=mgr, async_mode="threading")

    `emit` and the room methods do what those of python-socketio's other managers do. They return once the message
    stands in a bounded, ordered buffer; `flush` waits for the commit. Messages of one process arrive everywhere in
    call order. Beyond that it offers the chain of Socket.IO: `mgr.to("room").fetch_sockets()` and so on. Nothing is
    started before the first use.

    Args:
        dsn: Connection string or URL as libpq reads it.
        channel: Channel prefix; the same on all servers of a cluster. Node's `channelPrefix`.
        write_only: Only emit; usable without a server, and not counted as one. What needs answers raises
            `NotAServerError`.
        logger: Logger for this manager's messages. Default: the logger `socketio_postgres`.
        json: Module with `dumps` and `loads`, used without a server; otherwise the server's json is used.
        heartbeat_interval: Seconds of silence after which peers hear that this server lives.
        heartbeat_timeout: Seconds of silence after which a peer is no longer counted.
        cleanup_interval: Seconds after which attachments are deleted.
        share_session: Let other servers see the user session of a client as the `data` of a fetched socket.
        error_handler: Called with every background failure (an exception), after it was logged. What it raises is
            logged, too. May be a coroutine function; it runs in a thread of its own.
        on_gap: Called with a `GapInfo` when messages will not come. It runs once this server listens again, so what it
            reads is not older than what comes next. May be a coroutine function; it runs in a thread of its own.
        guard_empty_rooms: Let `sio.emit(..., to=[])` of the server be for nobody, and not, as python-socketio has it,
            for everybody.
        options: As in `BusOptions`.

    Raises:
        OptionsError: The DSN or an option is wrong.
    """

    # ------------------------------------------------------------------------------------------- life cycle

    def start(self) -> None:
        """Join the cluster now instead of with the first client.

        Returns once this server listens, can publish, and has heard itself. Who else is there it may know a moment
        later; a request that is made at once waits for them.

        Raises:
            ConnectionLostError: The server cannot be reached.
            DatabaseError: It refuses: password, database, a standby, or no right to the attachment table.
            SelfTestError: What it publishes does not come back: a transaction pooler, or different databases behind
                `dsn` and `listen_dsn`.
        """
        core = self._bus.core
        self._run_core(lambda inbox, token: core.start_publisher(True, inbox, token))
        if not self.write_only and self.server is not None:
            self._open()
            self._run_core(core.start_listener)
            self._join_served()
            self._run_core(core.flush)
            self._run_core(core.self_test)

    def flush(self) -> None:
        """Wait until everything emitted before is committed.

        Raises:
            SocketIOPostgresError: The first failure since the last flush; its `failed_count` says how many messages
                failed. `ConnectionLostError.may_be_sent` marks a commit whose outcome is unknown.
        """
        self._flush()

    def close(self) -> None:
        """Leave the cluster: commit what is buffered, say goodbye, disconnect. Clients are not touched."""
        self._close(CLOSE_LIMIT)

    def pre_connect(self, eio_sid: str, namespace: str) -> str | None:
        """As in `Manager`, but a client is told that it is connected only once LISTEN is active."""
        if not self._may_connect(eio_sid, namespace):
            return None
        sid: str | None = super().pre_connect(eio_sid, namespace)
        return sid

    def _may_connect(self, eio_sid: str, namespace: str) -> bool:
        try:
            self._try_to_join(namespace)
        except PayloadTooLargeError as error:
            self._report(error)
            return False
        return not self._is_gone(eio_sid)  # it hung up meanwhile, and nobody would take it from its rooms again

    def connect(self, sid: str, namespace: str) -> str | None:
        """As in `Manager`. A client that hung up while its connect handler ran, is disconnected right away."""
        if not HAS_PRE_CONNECT:
            is_allowed = self._may_connect(sid, namespace)
            return super().connect(sid, namespace) if is_allowed else None
        if not self._is_here(sid, namespace) and self._is_gone(sid):
            return sid  # its handler ran for so long after it hung up that it is forgotten already
        connected: str = super().connect(sid, namespace)
        eio_sid = self.eio_sid_from_sid(connected, namespace)
        if self._is_gone(eio_sid):
            # python-socketio passed over it when it hung up, because it was not connected yet.
            self._disconnect_gone(connected, eio_sid, namespace)
        return connected

    def _disconnect_gone(self, sid: str, eio_sid: str | None, namespace: str) -> None:
        try:
            self.server._handle_disconnect(eio_sid, namespace, self.server.reason.TRANSPORT_CLOSE)  # noqa: SLF001
        except Exception as error:  # noqa: BLE001  (a user's handler may raise anything)
            self._report_raised("a disconnect handler", error)
        Manager.disconnect(self, sid, namespace)

    def _end_connections(self, eio_sids: list[str]) -> None:
        for eio_sid in eio_sids:
            for namespace in list(self.get_namespaces()):
                sid = self.sid_from_eio_sid(eio_sid, namespace)
                if self.is_connected(sid, namespace):
                    self._disconnect_gone(sid, eio_sid, namespace)
            self.server.environ.pop(eio_sid, None)

    # ------------------------------------------------------------------------------------------ publishing

    def emit(
        self,
        event: str,
        data: Any,
        namespace: str | None = None,
        room: Any = None,
        skip_sid: Any = None,
        callback: Callable[..., Any] | None = None,
        to: Any = None,
        **kwargs: Any,
    ) -> None:
        """Emit to a client, a room, several rooms, or all clients of a namespace, on all servers.

        As in `Manager.emit`, and: `room` and `skip_sid` also take tuples and sets, and an empty collection of
        rooms means nobody; a room in `skip_sid` leaves out all its clients. Local clients are served at once; other
        servers get the message in call order. The first acknowledgement, of whichever server, fires the callback; from
        other servers within an hour.

        Raises:
            OptionsError: A room, a sid or the namespace is none (`docs/rooms.md`); nothing was emitted.
            EncodeError: `data` cannot travel; nothing was emitted.
            PayloadTooLargeError: It is larger than `max_payload`, or the namespace's name is too long.
            NotAServerError: A callback without a server.
            ValueError: A callback without a room.
        """
        rooms = chosen_rooms(to, room)
        namespace = chosen_namespace(namespace)
        skipped = skipped_names(skip_sid)
        if rooms == ():
            return
        is_for_others = not kwargs.get("ignore_queue")
        request = None
        is_local = False
        if callback is not None and is_for_others:
            self._check_callback(rooms)
            is_local = self._is_local_client(rooms or (), namespace)
            self._try_to_join(namespace)
            request, callback = self._callback_request(namespace, callback, is_local=is_local)
        try:
            message = self._emit_message(event, data, namespace, rooms, skipped, request) if is_for_others else None
            has_room = message is None or is_local or self._append(message)
        except BaseException:
            self._take_back(request)
            raise
        # Here it reaches those whom other servers choose by the same names.
        here = self.rooms_here(namespace, rooms)
        left_out = self.sids_in(namespace, skipped)
        parcels = None if message is None else self._parcels(message, here, left_out, callback)
        if parcels is None:
            skip_sid = list(left_out)
            Manager.emit(self, event, data, namespace, room=here, skip_sid=skip_sid, callback=callback)
        else:
            self._send_packets(parcels)
        if not has_room:
            self._wait_for_room()

    def can_disconnect(self, sid: str, namespace: str | None) -> bool:
        """True when the client is connected here; otherwise its own server is asked to disconnect it."""
        sid = checked_sid(sid)
        meant = chosen_namespace(namespace)
        if not self._is_here(sid, meant):
            self._publish(Message(MessageType.DISCONNECT_SOCKETS, meant, to=[sid]))
            return False
        if meant == (namespace or "/"):
            return bool(Manager.can_disconnect(self, sid, meant))
        # The server would go on with the name as it was given, under which it finds nobody.
        self.disconnect(sid, meant)
        return False

    def disconnect(self, sid: str, namespace: str | None = None, **kwargs: Any) -> None:
        """Disconnect a client, wherever it is connected."""
        sid = checked_sid(sid)
        namespace = chosen_namespace(namespace)
        if kwargs.get("ignore_queue"):
            Manager.disconnect(self, sid, namespace)
            return
        if self.server is not None and self.is_connected(sid, namespace):
            self.server.disconnect(sid, namespace=namespace, ignore_queue=True)
            return
        self._publish(Message(MessageType.DISCONNECT_SOCKETS, namespace, to=[sid]))

    def enter_room(self, sid: str, namespace: str | None, room: Any, eio_sid: str | None = None) -> None:
        """Add a client to a room, wherever it is connected.

        Raises:
            OptionsError: The sid, the namespace or the room is none.
            ValueError: The room is named by the sid of another client.
        """
        sid, name, namespace = checked_sid(sid), room_name(room), chosen_namespace(namespace)
        if self._is_here(sid, namespace):
            Manager.enter_room(self, sid, namespace, room, eio_sid=eio_sid)
            return
        self._publish(Message(MessageType.SOCKETS_JOIN, namespace, to=[sid], rooms=[name]))

    def leave_room(self, sid: str, namespace: str | None, room: Any) -> None:
        """Remove a client from a room, wherever it is connected. It never leaves the one named by its own sid.

        Raises:
            OptionsError: The sid, the namespace or the room is none.
        """
        sid, name, namespace = checked_sid(sid), room_name(room), chosen_namespace(namespace)
        if self._is_own_room(sid, name, namespace):
            return
        if self._is_here(sid, namespace):
            for same in self.local_rooms(namespace, [name]):
                Manager.leave_room(self, sid, namespace, same)
            return
        self._publish(Message(MessageType.SOCKETS_LEAVE, namespace, to=[sid], rooms=[name]))

    def close_room(self, room: Any, namespace: str | None = None) -> None:
        """Remove all clients of all servers from a room.

        Raises:
            OptionsError: The room or the namespace is none.
            ValueError: The room is named by the sid of a client of this server.
        """
        name, namespace = room_name(room), chosen_namespace(namespace)
        for same in self.local_rooms(namespace, [name]):
            Manager.close_room(self, same, namespace)
        self._publish(Message(MessageType.SOCKETS_LEAVE, namespace, to=[name], rooms=[name]))

    def _publish(self, message: Message) -> None:
        if not self._append(message):
            self._wait_for_room()

    def _act(self, message: Message, target: Target) -> None:
        """Carry out a chain: here, and on the other servers."""
        if target.is_local:
            self._require_server("a chain of local sockets")
        if target.rooms == ():
            return
        has_room = target.is_local or self._append(message)
        self._apply(message)
        if not has_room:
            self._wait_for_room()

    # ------------------------------------------------------------------------------------------- receiving

    def _receive(self, message: Message) -> None:
        adapter = self._adapters.get(message.nsp)
        if adapter is None:
            return
        try:
            for each in self._run(adapter, adapter.receive, message, time.monotonic()):
                self._apply(each)
        except Exception as error:  # noqa: BLE001  (one bad message must not stop the reader)
            self._report_bad(message, error)

    def _apply(self, message: Message) -> None:
        sids = self._disconnected_by(message)
        delivery = self._apply_now(message)
        if delivery is not None:
            self._deliver(delivery)
        elif sids:
            # What follows must not reach them any more, but nobody waits for the application's handlers.
            self._until_disconnecting(sids, message.nsp)

    def _deliver(self, delivery: Delivery) -> None:
        if delivery.parcels is not None:
            # The reader lets others run after each batch that it takes from the core.
            self._send_packets(delivery.parcels, is_in_batch=True)
            return
        Manager.emit(
            self,
            delivery.event,
            delivery.args,
            delivery.namespace,
            room=delivery.room,
            skip_sid=delivery.skip_sid,
            callback=delivery.callback,
        )

    def _disconnect_local(self, sid: str, namespace: str, close: bool) -> None:
        if not self.is_connected(sid, namespace):
            return
        eio_sid = self.eio_sid_from_sid(sid, namespace)
        for each in list(self.get_namespaces()) if close else [namespace]:
            local_sid = self.sid_from_eio_sid(eio_sid, each)
            if local_sid is not None:
                self._disconnect_from(local_sid, each)
        if close:
            self.server.eio.disconnect(eio_sid)

    def _disconnect_from(self, sid: str, namespace: str) -> None:
        try:
            self.server.disconnect(sid, namespace=namespace, ignore_queue=True)
        except Exception as error:  # noqa: BLE001  (a user's handler may raise anything)
            self._report_raised("a disconnect handler", error)
            # python-socketio has not come to this, and would keep the client in its rooms for ever.
            Manager.disconnect(self, sid, namespace)

    def _call_back(self, callback: Callable[..., Any], *args: Any) -> None:
        try:
            self._call(callback, *args)
        except Exception as error:  # noqa: BLE001  (a user's function may raise anything)
            self._report_raised("an acknowledgement callback", error)

    def _handle_server_side(self, message: Message) -> None:
        result = None
        try:
            handler, args = self._server_side_handler(message)
            if handler is not None:
                result = self._call(handler, *args)
        except Exception as error:  # noqa: BLE001  (a user's handler may raise anything)
            self._report_bad(message, error)
        except BaseException:
            # What it waited for was cancelled, or a Timeout of gevent's. Or this server ends, and says that itself.
            if not self._bus.is_closed:
                self._answer_server_side(message, None)
            raise
        self._answer_server_side(message, result)

    # -------------------------------------------------------------------------------------------- requests

    def _fetch_sockets(self, target: Target, *, partial: bool) -> list[dict[str, Any]]:
        self._require_server("fetch_sockets")
        if target.rooms == ():
            return []
        adapter = self._member(target)
        request = self._start_request(adapter, target)
        try:
            message = target.message(MessageType.FETCH_SOCKETS, request_id=request.id)
            request.responses += self._local_details(target.nsp, message.to, message.except_)
            if not request.is_complete:
                self._publish(message)
            return self._answers(adapter, request, target, partial=partial)
        finally:
            self._end_request(adapter, request)

    def _emit_with_ack(self, target: Target, packet: list[Any], *, partial: bool) -> list[Any]:
        self._require_server("emit_with_ack")
        if target.rooms == ():
            return []
        adapter = self._member(target)
        request = self._start_request(adapter, target, is_of_clients=True)
        try:
            fields = value_fields(packet, self.json)
            message = target.message(MessageType.BROADCAST, request_id=request.id, **fields)
            sids = self._alive_sids(target.nsp, message.to, message.except_)
            # First: with the other servers' answers alone the request would seem complete.
            self._run(adapter, adapter.expect_local, request, len(sids))
            if not target.is_local:
                self._publish(message)  # also when nobody is known: it is an event first of all
            if sids:
                callback = self._local_acknowledgement(adapter, request)
                parcels = self._parcels(message, sids, [], callback)
                self._deliver(Delivery(packet[0], tuple(packet[1:]), target.nsp, sids, [], callback, parcels))
            return self._answers(adapter, request, target, partial=partial)
        finally:
            self._end_request(adapter, request)

    def _server_side_emit(self, nsp: str, packet: list[Any]) -> None:
        self._publish(Message(MessageType.SERVER_SIDE_EMIT, nsp, **value_fields(packet, self.json)))

    def _server_side_emit_with_ack(self, target: Target, packet: list[Any], *, partial: bool) -> list[Any]:
        self._require_server("server_side_emit_with_ack")
        adapter = self._member(target)
        request = self._start_request(adapter, target)
        try:
            fields = value_fields(packet, self.json)
            message = Message(MessageType.SERVER_SIDE_EMIT, target.nsp, request_id=request.id, **fields)
            self._publish(message)
            return self._answers(adapter, request, target, partial=partial)
        finally:
            self._end_request(adapter, request)
