"""`AsyncPostgresManager`: the client manager that makes a `socketio.AsyncServer` one of the servers of a cluster."""

from __future__ import annotations

import json as stdlib_json
import logging
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Final, TypeVar, overload

from socketio.async_manager import AsyncManager
from socketio.async_pubsub_manager import AsyncPubSubManager

from socketio_postgres._bus.gap import GapHandler
from socketio_postgres._bus.options import BusOptions, HeartbeatOptions, ManagerKeywords
from socketio_postgres._bus.stats import ManagerStats
from socketio_postgres._cluster.async_node import AsyncNode
from socketio_postgres._cluster.async_server_operator import AsyncServerChain, AsyncServerSideActions
from socketio_postgres._cluster.async_socketio_sockets import AsyncSocketioSockets
from socketio_postgres._cluster.broadcast_operator import Target
from socketio_postgres._cluster.empty_rooms import guard
from socketio_postgres._cluster.rooms import (
    bad,
    checked_sid,
    chosen_namespace,
    chosen_rooms,
    room_name,
    skipped_names,
)
from socketio_postgres._typing import Self, Unpack

__all__ = ["AsyncPostgresManager"]

log: Final = logging.getLogger("socketio_postgres")

F = TypeVar("F", bound=Callable[..., Any])


class AsyncPostgresManager(AsyncServerSideActions, AsyncServerChain, AsyncPubSubManager):  # type: ignore[misc]  # python-socketio is not typed
    """Makes a `socketio.AsyncServer` one of the servers of a cluster: Python, Node.js and Go.

        mgr = AsyncPostgresManager("postgresql://app@localhost/app")
        sio = socketio.AsyncServer(client_manager=mgr, async_mode="asgi")

    `emit` and the room methods do what those of python-socketio's other managers do. They return once the message
    stands in a bounded, ordered buffer; `flush` waits for the commit. Messages of one process arrive everywhere in
    call order. Beyond that it offers the chain of Socket.IO: `mgr.to("room").fetch_sockets()` and so on. Nothing is
    started before the first use inside a running event loop.

    It serves on the event loop that its clients connect on, or that called `start`; before that, on the first that
    uses it. Other loops may call it, too, also in other threads: the serving loop carries that out. A loop that ends
    takes only its own along: the next one that uses the manager begins anew, as a new server of the cluster.

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
            logged, too. May be a coroutine function.
        on_gap: Called with a `GapInfo` when messages will not come. It runs once this server listens again, so what it
            reads is not older than what comes next. May be a coroutine function.
        guard_empty_rooms: Let `sio.emit(..., to=[])` of the server be for nobody, and not, as python-socketio has it,
            for everybody.
        options: As in `BusOptions`.

    Raises:
        OptionsError: The DSN or an option is wrong.
    """

    name = "postgres"

    _node: AsyncNode[AsyncSocketioSockets]
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
        self._node = AsyncNode(
            BusOptions.of(dsn, {"channel": channel, **options}),
            HeartbeatOptions(heartbeat_interval, heartbeat_timeout, cleanup_interval),
            AsyncSocketioSockets(self, guards_empty_rooms=guard_empty_rooms),
            write_only=write_only,
            logger=logger or log,
            share_session=share_session,
            error_handler=error_handler,
            on_gap=on_gap,
        )

    # ------------------------------------------------------------------------------------------- life cycle

    async def start(self) -> None:
        """Join the cluster now instead of with the first client.

        Returns once this server listens, can publish, and has heard itself. Who else is there it may know a moment
        later; a request that is made at once waits for them.

        Raises:
            ConnectionLostError: The server cannot be reached.
            DatabaseError: It refuses: password, database, a standby, or no right to the attachment table.
            SelfTestError: What it publishes does not come back: a transaction pooler, or different databases behind
                `dsn` and `listen_dsn`.
        """
        await self._node.start()

    async def flush(self, timeout: float | None = None) -> None:
        """Wait until everything emitted before is committed.

        Args:
            timeout: Seconds to wait at most; None waits as long as `buffer_age` allows.

        Raises:
            SocketIOPostgresError: The first failure since the last flush; its `failed_count` says how many messages
                failed. `ConnectionLostError.may_be_sent` marks a commit whose outcome is unknown.
            OperationTimeoutError: Not all was committed in time; it still may be.
        """
        await self._node.flush(timeout)

    async def close(self) -> None:
        """Leave the cluster: commit what is buffered, say goodbye, disconnect. Clients are not touched."""
        await self._node.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def set_server(self, server: Any) -> None:
        """As in `BaseManager`; from now on the server's json module is used, and its `emit` knows empty lists."""
        super().set_server(server)
        self.json = server.packet_class.json
        self._node.use_threads_of(server)
        if self._node.sockets.guards_empty_rooms:
            guard(server)

    def initialize(self) -> None:
        """Called by the server when its first client arrives."""
        self._node.initialize()

    async def _thread(self) -> None:
        """Runs in the background, from `initialize` on."""
        await self._node.runner.run()

    # -------------------------------------------------------------------------------------------- clients

    async def pre_connect(self, eio_sid: str, namespace: str) -> str | None:
        """As in `AsyncManager`, but a client is told that it is connected only once LISTEN is active."""
        node = self._node
        sid: str | None = await node.serve(node.sockets.pre_connect, eio_sid, namespace, node.may_connect)
        return sid

    async def connect(self, sid: str, namespace: str) -> str | None:
        """As in `AsyncManager`. A client that hung up while its connect handler ran, is disconnected right away."""
        node = self._node
        connected: str | None = await node.serve(
            node.sockets.connect, sid, namespace, node.may_connect, node.receiver.disconnect_raised
        )
        return connected

    async def can_disconnect(self, sid: str, namespace: str | None) -> bool:
        """True when the client is connected here; otherwise its own server is asked to disconnect it."""
        if not self._node.runner.is_at_home():  # the server would go on here with what belongs to the loop that serves
            await self.disconnect(sid, namespace)
            return False
        sid = checked_sid(sid)
        meant = chosen_namespace(namespace)
        if self._node.sockets.is_here(sid, meant) and meant == (namespace or "/"):
            return bool(await AsyncManager.can_disconnect(self, sid, meant))
        # The server would go on with the name as it was given, under which it finds nobody.
        await self._node.disconnect(sid, meant)
        return False

    async def disconnect(self, sid: str, namespace: str | None = None, **kwargs: Any) -> None:
        """Disconnect a client, wherever it is connected."""
        sid = checked_sid(sid)
        namespace = chosen_namespace(namespace)
        if kwargs.get("ignore_queue"):
            await self._node.carry_out(AsyncManager.disconnect, self, sid, namespace)
        else:
            await self._node.disconnect(sid, namespace)

    def get_participants(self, namespace: str, room: Any) -> Iterable[tuple[str, str]]:
        """As in `BaseManager`, by any room's name: 42 and `"42"` are one, and an empty list of rooms is nobody.

        Raises:
            OptionsError: It is no room.
        """
        return self._node.sockets.participants(namespace, room)

    # -------------------------------------------------------------------------------------------- emitting

    async def emit(
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

        As in `AsyncManager.emit`, and: `room` and `skip_sid` also take tuples and sets, and an empty collection of
        rooms means nobody; a room in `skip_sid` leaves out all its clients. Local clients are served at once; other
        servers get the message in call order. The first acknowledgement, of whichever server, fires the callback; from
        other servers within an hour.

        Args:
            event: Name of the event.
            data: One argument. A tuple is several, None is none: `emit("e", (1, 2))` calls `e(1, 2)`. In a chain,
                `mgr.to("room").emit("e", 1, 2)` does that, and a tuple there is one argument, a list.
            namespace: Namespace; None is the default one.
            room: As `to`, which goes first.
            skip_sid: Sids and rooms left out.
            callback: Called with the arguments of the first acknowledgement.
            to: A sid, a room, or a list, tuple or set of them; None is everybody.
            kwargs: `ignore_queue=True` emits to the clients of this server alone.

        Raises:
            OptionsError: A room, a sid or the namespace is none (`docs/rooms.md`); nothing was emitted.
            EncodeError: `data` cannot travel; nothing was emitted.
            PayloadTooLargeError: It is larger than `max_payload`, or the namespace's name is too long.
            NotAServerError: A callback without a server.
            ValueError: A callback without a room.
        """
        await self._node.emit(
            event,
            data,
            chosen_namespace(namespace),
            chosen_rooms(to, room),
            skipped_names(skip_sid),
            callback,
            is_for_others=not kwargs.get("ignore_queue"),
        )

    # -------------------------------------------------------------------------------------------- rooms

    async def enter_room(self, sid: str, namespace: str | None, room: Any, eio_sid: str | None = None) -> None:
        """Add a client to a room, wherever it is connected.

        Raises:
            OptionsError: The sid, the namespace or the room is none.
            ValueError: The room is named by the sid of another client.
        """
        await self._node.enter_room(checked_sid(sid), chosen_namespace(namespace), room_name(room), room, eio_sid)

    async def leave_room(self, sid: str, namespace: str | None, room: Any) -> None:
        """Remove a client from a room, wherever it is connected. It never leaves the one named by its own sid.

        Raises:
            OptionsError: The sid, the namespace or the room is none.
        """
        await self._node.leave_room(checked_sid(sid), chosen_namespace(namespace), room_name(room))

    async def close_room(self, room: Any, namespace: str | None = None) -> None:
        """Remove all clients of all servers from a room.

        Raises:
            OptionsError: The room or the namespace is none.
            ValueError: The room is named by the sid of a client of this server.
        """
        await self._node.close_room(room_name(room), chosen_namespace(namespace))

    def basic_enter_room(self, sid: str, namespace: str, room: Any, eio_sid: str | None = None) -> None:
        """As in `BaseManager`, with the check of python-socketio 5.17 whatever its version.

        Raises:
            ValueError: The room is named by the sid of another client, whose messages would be heard there.
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
        return self._node.receiver.on_server_side(event, handler, namespace)

    def server_count(self, namespace: str = "/") -> int:
        """Servers that serve a namespace, this one included, as far as this one knows. Node's `serverCount()`.

        Raises:
            NotAServerError: This manager has no server, or is `write_only`: it knows nobody and is not counted.
        """
        return self._node.server_count(namespace)

    def stats(self) -> ManagerStats:
        """Counters since the first use, and `peers`: the server ids known in each namespace."""
        return self._node.stats()
