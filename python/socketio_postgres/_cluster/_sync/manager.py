# Generated from async_manager.py by scripts/async_to_sync.py; edit that file.
"""`PostgresManager`: the client manager that makes a `socketio.Server` one of the servers of a cluster."""

from __future__ import annotations

import json as stdlib_json
import logging
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Final, TypeVar, overload

from socketio.manager import Manager
from socketio.pubsub_manager import PubSubManager

from socketio_postgres._bus.gap import GapHandler
from socketio_postgres._bus.options import BusOptions, HeartbeatOptions, ManagerKeywords
from socketio_postgres._bus.stats import ManagerStats
from socketio_postgres._cluster._sync.node import Node
from socketio_postgres._cluster._sync.server_operator import ServerChain, ServerSideActions
from socketio_postgres._cluster._sync.socketio_sockets import SocketioSockets
from socketio_postgres._cluster.broadcast_operator import Namespace, Target
from socketio_postgres._cluster.empty_rooms import guard
from socketio_postgres._cluster.framer import LONGEST
from socketio_postgres._cluster.rooms import (
    bad,
    checked_sid,
    chosen_namespace,
    chosen_rooms,
    room_name,
    skipped_names,
)
from socketio_postgres._cluster.sql_script import SCHEMA
from socketio_postgres._typing import Self, Unpack

__all__ = ["PostgresManager"]

log: Final = logging.getLogger("socketio_postgres")

F = TypeVar("F", bound=Callable[..., Any])


class PostgresManager(ServerSideActions, ServerChain, PubSubManager):  # type: ignore[misc]  # python-socketio is not typed
    """The client manager of a `socketio.Server` in a cluster of Python, Node.js and Go servers.

        mgr = PostgresManager("postgresql://app@localhost/app")
        sio = socketio.Server(client_manager=mgr, async_mode="threading")

    `emit` and the room methods work as in python-socketio's other managers. They return once the message is in a
    bounded, ordered buffer; `flush` waits for the commit. Messages of one process arrive everywhere in the order of the
    calls. The manager also offers Socket.IO's chain, for example `mgr.to("room").fetch_sockets()`. Nothing is started
    before the first use.

    Args:
        dsn: Connection string or URL as libpq reads it.
        channel: Channel prefix; the same on all servers of a cluster. Node's `channelPrefix`.
        write_only: Only emit. The manager can be used without a server, and other servers do not count it. Methods that
            need answers raise `NotAServerError`.
        logger: Logger for this manager's messages. Default: the logger `socketio_postgres`.
        json: Module with `dumps` and `loads`, for a manager without a server. With a server, the server's module is
            used.
        heartbeat_interval: Seconds of silence after which this server sends a heartbeat. Default 5.
        heartbeat_timeout: Seconds of silence after which another server is no longer counted. Default 10.
        cleanup_interval: Age in seconds at which attachments are deleted. Default 30.
        share_session: Show a client's user session to other servers, as the `data` of a fetched socket. Default False.
        error_handler: Called with every background failure (an exception) after it is logged. Exceptions that it raises
            are logged, too. May be a coroutine function; it runs in a thread of its own.
        on_gap: Called with a `GapInfo` when messages are lost. It is called once this server listens again, so data
            that it reads is not older than the next message. May be a coroutine function; it runs in a thread of its
            own.
        guard_empty_rooms: Make `sio.emit(..., to=[])` of the server reach nobody. Without this, python-socketio sends
            it to everybody. Default True.
        options: As in `BusOptions`.

    Raises:
        OptionsError: The DSN or an option is wrong.
    """

    name = "postgres"

    _node: Node[SocketioSockets]
    _target = Target("/")  # the manager is the start of every chain

    def __init__(
        self,
        dsn: str = "",
        channel: str = "socket.io",
        write_only: bool = False,
        logger: logging.Logger | None = None,
        json: Any = None,
        *,
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
        self._node = Node(
            BusOptions.of(dsn, {"channel": channel, **options}),
            HeartbeatOptions(heartbeat_interval, heartbeat_timeout, cleanup_interval),
            SocketioSockets(self, guards_empty_rooms=guard_empty_rooms),
            write_only=write_only,
            logger=logger or log,
            share_session=share_session,
            error_handler=error_handler,
            on_gap=on_gap,
        )

    # ------------------------------------------------------------------------------------------- life cycle

    def start(self) -> None:
        """Join the cluster now instead of with the first client.

        Returns once this server listens, can publish, and has received its own message. It may learn of other servers a
        moment later; a request that is sent at once waits for their first messages.

        Raises:
            ConnectionLostError: PostgreSQL cannot be reached.
            DatabaseError: PostgreSQL refuses: a wrong password or database, a standby, or a missing right on the
                attachment table.
            SelfTestError: The message did not come back: a transaction pooler, or `dsn` and `listen_dsn` lead to
                different databases.
        """
        self._node.start()

    def flush(self, timeout: float | None = None) -> None:
        """Wait until everything emitted before is committed.

        Args:
            timeout: Maximum number of seconds to wait. Default: as long as `buffer_age` allows.

        Raises:
            SocketIOPostgresError: The first failure since the last flush. Its `failed_count` is the number of messages
                that failed. A `CommitInDoubtError` means that the outcome is unknown.
            OperationTimeoutError: Some messages were not committed in time. They may still be.
        """
        self._node.flush(timeout)

    def close(self) -> None:
        """Leave the cluster: commit the buffer, tell the other servers, and disconnect. Clients stay connected."""
        self._node.close()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def set_server(self, server: Any) -> None:
        """As in `BaseManager`. From now on the server's json module is used, and its `emit` accepts empty lists."""
        super().set_server(server)
        self.json = server.packet_class.json
        self._node.use_threads_of(server)
        if self._node.sockets.guards_empty_rooms:
            guard(server)

    def initialize(self) -> None:
        """Called by the server when its first client arrives."""
        self._node.initialize()

    def _thread(self) -> None:
        """Runs in the background, from `initialize` on."""
        self._node.runner.run()

    # -------------------------------------------------------------------------------------------- clients

    def pre_connect(self, eio_sid: str, namespace: str) -> str | None:
        """As in `Manager`, but the client is connected only once LISTEN is active."""
        node = self._node
        sid: str | None = node.serve(node.sockets.pre_connect, eio_sid, namespace, node.may_connect)
        return sid

    def connect(self, sid: str, namespace: str) -> str | None:
        """As in `Manager`. A client that disconnected while its connect handler ran is removed at once."""
        node = self._node
        connected: str | None = node.serve(
            node.sockets.connect, sid, namespace, node.may_connect, node.receiver.disconnect_raised
        )
        return connected

    def can_disconnect(self, sid: str, namespace: str | None) -> bool:
        """Whether the client is connected to this server. If not, its own server is asked to disconnect it."""
        sid = checked_sid(sid)
        meant = chosen_namespace(namespace)
        if self._node.sockets.is_here(sid, meant) and meant == (namespace or "/"):
            return bool(Manager.can_disconnect(self, sid, meant))
        # The server would use the name as it was passed, and not find the client.
        self._node.disconnect(sid, meant)
        return False

    def disconnect(self, sid: str, namespace: str | None = None, **kwargs: Any) -> None:
        """Disconnect a client, wherever it is connected."""
        sid = checked_sid(sid)
        namespace = chosen_namespace(namespace)
        if kwargs.get("ignore_queue"):
            self._node.carry_out(Manager.disconnect, self, sid, namespace)
        else:
            self._node.disconnect(sid, namespace)

    def get_participants(self, namespace: str, room: Any) -> Iterable[tuple[str, str]]:
        """As in `BaseManager`. Rooms 42 and `"42"` are the same, and an empty list of rooms has no participants.

        Raises:
            OptionsError: `room` is not a room.
        """
        return self._node.sockets.participants(namespace, room)

    # -------------------------------------------------------------------------------------------- emitting

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

        As `Manager.emit`, with these additions: `to`, `room` and `skip_sid` also take tuples and sets; an empty
        collection of rooms means nobody; a room in `skip_sid` leaves out all its clients. Clients of this server
        receive the event at once. Other servers receive the message in the order of the calls. The first
        acknowledgement calls the callback; those of other servers count for an hour.

        Args:
            event: Name of the event.
            data: One argument. A tuple means several arguments, and None means no argument: `emit("e", (1, 2))` calls
                `e(1, 2)`. A chain takes any number of arguments, `mgr.to("room").emit("e", 1, 2)`, and a tuple among
                them is one argument, a list.
            namespace: Namespace. Default `/`.
            room: As `to`, which takes precedence.
            skip_sid: Sids and rooms to leave out.
            callback: Called with the arguments of the first acknowledgement.
            to: A sid, a room, or a list, tuple or set of them. Default: everybody.
            kwargs: With `ignore_queue=True` only clients of this server receive the event.

        Raises:
            OptionsError: A room, a sid or the namespace is invalid (`docs/rooms.md`). Nothing was emitted.
            EncodeError: `data` cannot be encoded. Nothing was emitted.
            PayloadTooLargeError: The message is larger than `max_payload`, or the namespace's name is too long.
            NotAServerError: A callback was passed, but there is no server.
            ValueError: A callback was passed without a room.
        """
        self._node.emit(
            event,
            data,
            chosen_namespace(namespace),
            chosen_rooms(to, room),
            skipped_names(skip_sid),
            callback,
            is_for_others=not kwargs.get("ignore_queue"),
        )

    def in_transaction(self, conn: Any, *, longest: float = LONGEST) -> Namespace[None]:
        """The start of a chain whose messages are sent on a connection of yours, in the transaction that is open there.

            with conn.transaction():
                conn.execute("UPDATE orders SET paid = true WHERE id = %s", (7,))
                mgr.in_transaction(conn).to("order-7").emit("paid", {"id": 7})

        Clients of all servers, also of this one, receive what was emitted if and only if the transaction commits, in
        the order of the calls and of the commits. What a rollback to a savepoint undoes is not sent. There is no order
        between these messages and others of this manager. The chain is that of an emitter: `emit` takes any number of
        arguments, a `server_side_emit` reaches this server, too, and nothing waits for answers. See
        `docs/emit-with-your-data.md`.

        Args:
            conn: A connection of psycopg or psycopg 2, SQLAlchemy's `Connection` or `Session`, Django's `connection`.
                It must lead to the database of this object's DSN.
            longest: Seconds that the transaction may stay open after it has emitted something large or binary. The
                row that holds it lives that much longer. Default 60.

        Raises:
            OptionsError: `conn` is no such connection, or a pool. The methods of the chain raise it, too, before
                anything is sent: no transaction is open, or the connection leads to another database.
        """
        return self._node.transactions.on(conn, longest)

    # -------------------------------------------------------------------------------------------- rooms

    def enter_room(self, sid: str, namespace: str | None, room: Any, eio_sid: str | None = None) -> None:
        """Add a client to a room, wherever it is connected.

        Raises:
            OptionsError: The sid, the namespace or the room is invalid.
            ValueError: The room has the name of another client's sid.
        """
        self._node.enter_room(checked_sid(sid), chosen_namespace(namespace), room_name(room), room, eio_sid)

    def leave_room(self, sid: str, namespace: str | None, room: Any) -> None:
        """Remove a client from a room, wherever it is connected. A client never leaves the room named by its own sid.

        Raises:
            OptionsError: The sid, the namespace or the room is invalid.
        """
        self._node.leave_room(checked_sid(sid), chosen_namespace(namespace), room_name(room))

    def close_room(self, room: Any, namespace: str | None = None) -> None:
        """Remove all clients of all servers from a room.

        Raises:
            OptionsError: The room or the namespace is invalid.
            ValueError: The room has the name of the sid of a client of this server.
        """
        self._node.close_room(room_name(room), chosen_namespace(namespace))

    def basic_enter_room(self, sid: str, namespace: str, room: Any, eio_sid: str | None = None) -> None:
        """As in `BaseManager`, with the check of python-socketio 5.17 in every version.

        Raises:
            ValueError: The room has the name of another client's sid, whose messages the client would receive.
        """
        self._node.sockets.add(sid, namespace, room, eio_sid)

    def basic_leave_room(self, sid: str, namespace: str, room: Any) -> None:
        """As in `BaseManager`."""
        self._node.sockets.remove(sid, namespace, room)

    # -------------------------------------------------------------------------------------------- the cluster

    @overload
    def on_server_side(self, event: str, handler: None = None, *, namespace: str = "/") -> Callable[[F], F]: ...

    @overload
    def on_server_side(self, event: str, handler: F, *, namespace: str = "/") -> F: ...

    def on_server_side(self, event: str, handler: F | None = None, *, namespace: str = "/") -> Callable[[F], F] | F:
        """Handle an event that another server, or an emitter, sends to the servers themselves.

        Use it as a decorator, or call it with the handler. The handler receives the event's arguments and runs as a
        separate task, so it may itself wait for other servers. Its result is the answer, if the sender expects one. If
        there is no handler, or it raises, or its result cannot be encoded, the answer is empty, so that the sender does
        not wait until its timeout; the failure is reported on this server.

        From then on, or from its start on, this server serves the namespace, with or without clients. May be called
        from any thread.

        Args:
            event: Name of the event.
            handler: Function or coroutine function.
            namespace: Namespace of the event. A missing leading slash is added.

        Raises:
            NotAServerError: This manager is `write_only` and receives nothing.
            PayloadTooLargeError: The namespace's name is too long for a channel.
            OptionsError: The namespace is not a string.
        """
        return self._node.receiver.on_server_side(event, handler, namespace)

    def install_sql(self, schema: str = SCHEMA) -> None:
        """Install the SQL functions, or bring older ones to this version: `SELECT socketio.emit('event', '[1]')`.

        Creates the schema, and the attachment table if it is missing. What the functions send has the channel prefix,
        the attachment table, the payload threshold and the signing key of this manager. The role owns the functions
        afterwards, and others may execute them once they are granted to do so (`docs/emit-from-sql.md`). May be called
        again, also by several processes at once.

        Args:
            schema: Name of letters, digits and `_`. Default `socketio`.

        Raises:
            OptionsError: The schema is no such name.
            DatabaseError: PostgreSQL refuses: the role may not create a schema, or a newer version is installed
                (`sqlstate` 55000). Nothing has changed.
        """
        self._node.install_sql(schema)

    def uninstall_sql(self, schema: str = SCHEMA) -> None:
        """Remove the SQL functions and their schema. Nothing happens if they are not installed.

        Args:
            schema: As in `install_sql`.

        Raises:
            DatabaseError: A trigger uses one of the functions, or the schema holds something else (`sqlstate` 2BP01).
                Nothing has changed.
        """
        self._node.uninstall_sql(schema)

    def server_count(self, namespace: str = "/") -> int:
        """Number of servers that this server knows to serve a namespace, itself included. Node's `serverCount()`.

        Raises:
            NotAServerError: This manager has no server, or is `write_only`, and therefore knows no other servers.
        """
        return self._node.server_count(namespace)

    def stats(self) -> ManagerStats:
        """Counters since the first use, the current state, and `peers`, the known server ids of each namespace."""
        return self._node.stats()
