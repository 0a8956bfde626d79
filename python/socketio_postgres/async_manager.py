"""`AsyncPostgresManager`: the client manager that makes a `socketio.AsyncServer` a member of the cluster."""

from __future__ import annotations

import asyncio
import functools
import logging
import secrets
import time
import uuid
from typing import TYPE_CHECKING, Any, Final

from socketio.async_manager import AsyncManager
from socketio.async_pubsub_manager import AsyncPubSubManager

from socketio_postgres import _core
from socketio_postgres.adapter import Apply, ClusterAdapter, Effect, PeerJoined, PeerLeft, Send
from socketio_postgres.broadcast_operator import room_names
from socketio_postgres.bus import Bus
from socketio_postgres.exceptions import (
    ClosedError,
    EncodeError,
    OptionsError,
    PayloadTooLargeError,
    SocketIOPostgresError,
)
from socketio_postgres.handover import items_of
from socketio_postgres.local_sockets import LocalSockets
from socketio_postgres.messages import EMITTER_UID, RESERVED_EVENTS, Message, MessageType
from socketio_postgres.options import BusKeywords, BusOptions, HeartbeatOptions
from socketio_postgres.payload import packet_fields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from typing_extensions import Unpack

__all__ = ["AsyncPostgresManager"]

JOIN_LIMIT: Final = 10.0
"""Seconds a connecting client waits for LISTEN; then it is let in, and the log says so."""

GOODBYE_LIMIT: Final = 1.0
"""Seconds that leaving waits for buffered messages when the server is being torn down."""

CLOSE_LIMIT: Final = 5.0
"""The same for an explicit `close`."""

CALLBACK_LIFETIME: Final = 300.0
"""Seconds after which an unanswered callback is forgotten; python-socketio itself never forgets."""

log: Final = logging.getLogger("socketio_postgres")


class AsyncPostgresManager(LocalSockets, AsyncPubSubManager):  # type: ignore[misc]  # python-socketio is not typed
    """Connects a `socketio.AsyncServer` with all other servers on the same PostgreSQL database: Python, Node.js
    (`@socket.io/postgres-adapter`) and Go.

        mgr = AsyncPostgresManager("postgresql://app@localhost/app")
        sio = socketio.AsyncServer(client_manager=mgr, async_mode="asgi")

    `emit` and the room methods do what those of python-socketio's other managers do. They return once the message
    stands in a bounded, ordered buffer; `flush` waits for the commit. Messages of one process arrive everywhere in
    call order. Nothing is started before the first use inside a running event loop.

    Args:
        dsn: Connection string or URL as libpq reads it.
        channel: Channel prefix; the same on all servers of a cluster. Node's `channelPrefix`.
        write_only: Only emit; usable without a server, and not counted as one.
        logger: Logger for this manager's messages. Default: the logger `socketio_postgres`.
        json: Module with `dumps` and `loads`, used without a server; otherwise the server's json is used.
        heartbeat_interval: Seconds of silence after which peers hear that this server lives.
        heartbeat_timeout: Seconds of silence after which a peer is no longer counted.
        cleanup_interval: Seconds after which attachments are deleted.
        error_handler: Called with every background failure (an exception), after it was logged.
        options: As in `BusOptions`.

    Raises:
        OptionsError: The DSN or an option is wrong.
    """

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
        error_handler: Callable[[Exception], object] | None = None,
        **options: Unpack[BusKeywords],
    ) -> None:
        super().__init__(channel=channel, write_only=write_only, logger=logger, json=json)
        if error_handler is not None and not callable(error_handler):
            raise OptionsError(
                f"invalid error_handler: must be callable (got {error_handler!r})",
                option="error_handler",
                value=repr(error_handler),
                reason="must be callable",
            )
        self._heartbeat = HeartbeatOptions(heartbeat_interval, heartbeat_timeout, cleanup_interval)
        self._error_handler = error_handler
        self._log = logger or log
        self._bus = Bus(BusOptions(dsn, channel=channel, **options), uid=self._uid)
        self._adapters: dict[str, ClusterAdapter] = {}
        self._joining: dict[str, tuple[asyncio.Task[None], float]] = {}
        self._callbacks: dict[str, tuple[Callable[..., Any], float]] = {}
        self._reader: asyncio.Task[None] | None = None
        self._ticker: asyncio.Task[None] | None = None
        self._cleaned_up = 0
        self._is_initialized = False

    def _uid(self) -> str:
        """Who we are to the cluster; a new id in every process, as a forked worker is a server of its own."""
        if self.write_only or self.server is None:
            return EMITTER_UID
        self.host_id = uuid.uuid4().hex
        return self.host_id

    # --------------------------------------------------------------------------------- life cycle

    async def start(self) -> None:
        """Join the cluster now instead of with the first client.

        Returns once this server listens and can publish.

        Raises:
            ConnectionLostError: The server cannot be reached.
            DatabaseError: It refuses: password, database, a standby, or no right to the attachment table.
        """
        core = self._bus.core
        await self._bus.call(lambda inbox, token: core.start_publisher(True, inbox, token))
        if not self.write_only:
            self._open()
            await self._bus.call(core.start_listener)
            await asyncio.gather(*(self._join(nsp) for nsp in self._served_namespaces()))

    async def flush(self) -> None:
        """Wait until everything emitted before is committed.

        Raises:
            SocketIOPostgresError: The first failure since the last flush; its `failed_count` says how many messages
                failed. `ConnectionLostError.may_be_sent` marks a commit whose outcome is unknown.
        """
        await self._bus.flush()

    async def close(self) -> None:
        """Leave the cluster: commit what is buffered, say goodbye, disconnect. Clients are not touched."""
        await self._close(CLOSE_LIMIT)

    async def _close(self, limit: float) -> None:
        if self._bus.is_closed:
            return
        for adapter in self._adapters.values():
            self._run_effects(adapter, adapter.leave())
        self._adapters.clear()
        joining = [task for task, _ in self._joining.values()]
        for task in (self._reader, self._ticker, *joining):
            if task is not None and task is not asyncio.current_task():
                task.cancel()
        await self._bus.close(limit)

    def initialize(self) -> None:
        """Called by the server when its first client arrives."""
        if self.write_only or not self._is_initialized:
            self._is_initialized = True
            super().initialize()

    async def _thread(self) -> None:
        """The background task that `initialize` starts; lives until the server's loop is torn down."""
        try:
            joined = await asyncio.gather(
                *(self._join(nsp) for nsp in self._served_namespaces()), return_exceptions=True
            )
            for error in joined:
                if isinstance(error, PayloadTooLargeError):
                    self._report(error)
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            await self._close(GOODBYE_LIMIT)

    def _open(self) -> None:
        """Start reading what the core hands over."""
        inbox = self._bus.inbox
        if self._reader is None or self._reader.done():
            self._reader = asyncio.create_task(self._read(inbox), name="socketio-postgres reader")
            self._ticker = asyncio.create_task(self._tick(), name="socketio-postgres ticker")

    def _served_namespaces(self) -> Iterable[str]:
        """Namespaces that clients may connect to, as far as they are known beforehand."""
        namespaces = {"/"}
        if self.server is not None:
            namespaces.update(self.server.handlers, self.server.namespace_handlers)
            if self.server.namespaces != "*":
                namespaces.update(self.server.namespaces)
        namespaces.discard("*")
        return sorted(namespaces)

    # --------------------------------------------------------------------------------- membership

    def server_count(self, namespace: str = "/") -> int:
        """Servers that serve a namespace, this one included, as far as this one knows. Node's `serverCount()`."""
        adapter = self._adapters.get(namespace)
        return 1 if adapter is None else adapter.server_count

    async def _join(self, namespace: str) -> None:
        """Serve a namespace; returns once LISTEN is active.

        Raises:
            asyncio.TimeoutError: It is not, `JOIN_LIMIT` seconds after it was asked for first. It goes on.
        """
        if namespace in self._adapters:
            return
        task, deadline = self._joining.get(namespace, (None, 0.0))
        if task is None:
            deadline = time.monotonic() + JOIN_LIMIT
            task = asyncio.create_task(self._join_now(namespace), name=f"socketio-postgres join {namespace}")
            self._joining[namespace] = (task, deadline)
            task.add_done_callback(lambda _: self._joining.pop(namespace, None))
        await asyncio.wait_for(asyncio.shield(task), max(deadline - time.monotonic(), 0.0))

    async def _join_now(self, namespace: str) -> None:
        channel = _core.channel_name(self.channel, namespace)
        self._open()
        while True:
            try:
                await self._bus.call(lambda inbox, token: self._bus.core.listen(channel, inbox, token))
                break
            except ClosedError:
                raise
            except SocketIOPostgresError:
                # The listener has reported it already. Operators mend passwords and rights while we run.
                await asyncio.sleep(1.0)
        adapter = ClusterAdapter(
            namespace,
            heartbeat_interval=self._heartbeat.heartbeat_interval,
            heartbeat_timeout=self._heartbeat.heartbeat_timeout,
        )
        self._adapters[namespace] = adapter
        self._run_effects(adapter, adapter.announce(time.monotonic()))

    async def pre_connect(self, eio_sid: str, namespace: str) -> str | None:
        """As in `AsyncManager`, but a client is told that it is connected only once LISTEN is active."""
        try:
            await self._join(namespace)
        except PayloadTooLargeError as error:
            self._report(error)
            return None
        except (SocketIOPostgresError, asyncio.TimeoutError) as error:
            # Without the bus the server still serves its own clients, as with every other manager.
            why = str(error) or "PostgreSQL does not answer"
            self._log.warning("namespace %s is not connected to other servers yet: %s", namespace, why)
        sid: str | None = await super().pre_connect(eio_sid, namespace)
        return sid

    def _run_effects(self, adapter: ClusterAdapter, effects: Iterable[Effect]) -> list[Message]:
        """Do what the adapter asks for; returns the messages to be applied to local sockets."""
        to_apply = []
        for effect in effects:
            if isinstance(effect, Send):
                self._publish_soon(effect.message)
            elif isinstance(effect, Apply):
                to_apply.append(effect.message)
            elif isinstance(effect, PeerJoined):
                self._log.info("server %s joined namespace %s", effect.uid, adapter.nsp)
            elif isinstance(effect, PeerLeft):
                how = "left" if effect.said_goodbye else "fell silent and is no longer counted in"
                self._log.info("server %s %s namespace %s", effect.uid, how, adapter.nsp)
        return to_apply

    async def _tick(self) -> None:
        """Drive the adapters' timers and the clean-up of attachments."""
        cleanup_at = time.monotonic() + self._heartbeat.cleanup_interval
        while True:
            now = time.monotonic()
            for adapter in list(self._adapters.values()):
                self._run_effects(adapter, adapter.tick(now))
            if now >= cleanup_at:
                cleanup_at = now + self._heartbeat.cleanup_interval
                await self._clean_up(now)
            due = min((adapter.next_tick() for adapter in self._adapters.values()), default=cleanup_at)
            # Never later than a second from now: a namespace may join meanwhile.
            await asyncio.sleep(min(max(min(due, cleanup_at) - time.monotonic(), 0.01), 1.0))

    async def _clean_up(self, now: float) -> None:
        self._callbacks = {key: value for key, value in self._callbacks.items() if value[1] > now}
        stats = self._bus.stats()
        seen = stats.get("publish_attachments", 0) + stats.get("attachments", 0)
        if seen == self._cleaned_up:
            return  # no attachment since the last time: whoever saw the newer ones deletes them
        self._cleaned_up = seen
        age = self._heartbeat.cleanup_interval
        try:
            await self._bus.call(lambda inbox, token: self._bus.core.expire_attachments(age, inbox, token))
        except SocketIOPostgresError as error:
            self._report(error)

    # ---------------------------------------------------------------------------------- publishing

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
        rooms means nobody. Local clients are served at once; other servers get the message in call order.

        Raises:
            EncodeError: `data` cannot travel; nothing was emitted.
            PayloadTooLargeError: It is larger than `max_payload`, or the namespace's name is too long.
            RuntimeError: A callback without a server.
            ValueError: A callback without a room.
        """
        room = to or room
        if isinstance(room, (tuple, set, frozenset)):
            room = list(room)
        if isinstance(skip_sid, (tuple, set, frozenset)):
            skip_sid = list(skip_sid)
        deliver = functools.partial(AsyncManager.emit, self, event, data, room=room, skip_sid=skip_sid)
        if kwargs.get("ignore_queue"):
            await deliver(namespace=namespace or "/", callback=callback)
            return
        namespace = namespace or "/"
        if callback is not None:
            if self.server is None or self.write_only:
                raise RuntimeError("Callbacks can only be issued from the context of a server.")
            if room is None:
                raise ValueError("Cannot use callback without a room set.")
        if room == []:
            return
        request_id = None
        if callback is not None:
            request_id = secrets.token_hex(8)
            self._callbacks[request_id] = (callback, time.monotonic() + CALLBACK_LIFETIME)
            callback = functools.partial(self._answer, request_id)
        skipped = [sid for sid in (skip_sid if isinstance(skip_sid, list) else [skip_sid]) if sid is not None]
        message = Message(
            MessageType.BROADCAST,
            namespace,
            to=[] if room is None else list(room_names(room)),
            except_=list(room_names(skipped, "skip_sid")),
            request_id=request_id,
            **packet_fields(self._checked_event(event), data, self.json),
        )
        is_published = self._try_publish(message)
        await deliver(namespace=namespace, callback=callback)
        if not is_published:
            await self._publish(message)

    def _checked_event(self, event: Any) -> Any:
        if not isinstance(event, str) or not event:
            raise OptionsError(
                f"invalid event: an event is a non-empty string (got {event!r})",
                option="event",
                value=repr(event),
                reason="an event is a non-empty string",
            )
        if event in RESERVED_EVENTS:
            self._log.warning("event %r is reserved by Socket.IO; JavaScript clients will reject it", event)
        return event

    async def can_disconnect(self, sid: str, namespace: str) -> bool:
        """True when the client is connected here; otherwise its own server is asked to disconnect it."""
        if self.is_connected(sid, namespace) or self._is_pre_connected(sid, namespace):
            return bool(await AsyncManager.can_disconnect(self, sid, namespace))
        await self._publish(Message(MessageType.DISCONNECT_SOCKETS, namespace or "/", to=[sid]))
        return False

    async def disconnect(self, sid: str, namespace: str, **kwargs: Any) -> None:
        """Disconnect a client, wherever it is connected."""
        if kwargs.get("ignore_queue"):
            await AsyncManager.disconnect(self, sid, namespace)
            return
        if self.server is not None and self.is_connected(sid, namespace or "/"):
            await self.server.disconnect(sid, namespace=namespace or "/", ignore_queue=True)
            return
        await self._publish(Message(MessageType.DISCONNECT_SOCKETS, namespace or "/", to=[sid]))

    async def enter_room(self, sid: str, namespace: str, room: Any, eio_sid: str | None = None) -> None:
        """Add a client to a room, wherever it is connected."""
        if self.is_connected(sid, namespace) or self._is_pre_connected(sid, namespace):
            await AsyncManager.enter_room(self, sid, namespace, room, eio_sid=eio_sid)
            return
        message = Message(MessageType.SOCKETS_JOIN, namespace or "/", to=[sid], rooms=list(room_names(room)))
        await self._publish(message)

    async def leave_room(self, sid: str, namespace: str, room: Any) -> None:
        """Remove a client from a room, wherever it is connected."""
        if self.is_connected(sid, namespace) or self._is_pre_connected(sid, namespace):
            await AsyncManager.leave_room(self, sid, namespace, room)
            return
        message = Message(MessageType.SOCKETS_LEAVE, namespace or "/", to=[sid], rooms=list(room_names(room)))
        await self._publish(message)

    async def close_room(self, room: Any, namespace: str | None = None) -> None:
        """Remove all clients of all servers from a room."""
        namespace = namespace or "/"
        await AsyncManager.close_room(self, room, namespace)
        names = list(room_names(room))
        await self._publish(Message(MessageType.SOCKETS_LEAVE, namespace, to=names, rooms=names))

    def _is_pre_connected(self, sid: str, namespace: str) -> bool:
        check = getattr(self, "is_pre_connected", None)  # absent before python-socketio 5.17
        return bool(check and check(sid, namespace))

    async def _publish(self, message: Message) -> None:
        if not self._try_publish(message):
            await self._bus.publish(message)

    def _try_publish(self, message: Message) -> bool:
        """Append to the buffer unless it is full; keeps call order even among tasks."""
        if not self.write_only and self.server is not None:
            # Peers count whoever publishes as a server, so from the first message on we must listen, too.
            self.initialize()
        self._note_sent(message)
        self._take_failures()
        return self._bus.try_publish(message)

    def _publish_soon(self, message: Message) -> None:
        """Append a message of our own that nobody waits for; when the buffer is full it is given up."""
        try:
            if not self._bus.core.publish(message):
                self._log.warning("the buffer is full, so %r is not sent", message)
        except SocketIOPostgresError as error:
            self._report(error)

    def _note_sent(self, message: Message) -> None:
        adapter = self._adapters.get(message.nsp)
        if adapter is not None:
            adapter.sent(time.monotonic())

    def _take_failures(self) -> None:
        """Without a reader, as in write-only processes, failures are looked for with each call."""
        if self._reader is None:
            for failure in self._bus.take_failures():
                self._report(failure)

    # ----------------------------------------------------------------------------------- receiving

    async def _read(self, inbox: _core.Inbox) -> None:
        async for _, kind, value in items_of(inbox):
            if kind == _core.MESSAGE:
                await self._receive(value)
            elif kind == _core.FAILURE:
                self._report(value)
            elif kind == _core.LISTENING and value:
                self._log.warning(
                    "listening again on %s; messages of other servers may have been missed",
                    self._bus.description,
                )
                for adapter in self._adapters.values():
                    self._run_effects(adapter, adapter.announce(time.monotonic()))

    async def _receive(self, message: Message) -> None:
        adapter = self._adapters.get(message.nsp)
        if adapter is None:
            return
        for apply in self._run_effects(adapter, adapter.receive(message, time.monotonic())):
            try:
                await self._apply(apply)
            except asyncio.CancelledError:
                raise
            except Exception as error:  # one bad message must not stop the reader
                self._log.exception("a message of server %s could not be applied: %r", message.uid, message)
                self._tell(error)

    async def _apply(self, message: Message) -> None:
        if message.type == MessageType.BROADCAST:
            await self._apply_broadcast(message)
        elif message.type == MessageType.SOCKETS_JOIN:
            for sid in self.local_sids(message.nsp, message.to, message.except_):
                for room in message.rooms:
                    self._enter(sid, message.nsp, room)
        elif message.type == MessageType.SOCKETS_LEAVE:
            for sid in self.local_sids(message.nsp, message.to, message.except_):
                for room in self.local_rooms(message.nsp, message.rooms):
                    self.basic_leave_room(sid, message.nsp, room)
        elif message.type == MessageType.DISCONNECT_SOCKETS:
            for sid in self.local_sids(message.nsp, message.to, message.except_):
                self.server.start_background_task(self._disconnect_local, sid, message.nsp, message.close)
            # The tasks run up to the application's handler now, so that what follows does not reach the client.
            await asyncio.sleep(0)
        elif message.type == MessageType.BROADCAST_ACK:
            packet = message.args(self.json.loads)
            if packet is None:
                packet = [message.packet(self.json.loads)] if message.has_packet else []
            if message.request_id is not None:
                self.server.start_background_task(self._answer, message.request_id, *packet)

    def _enter(self, sid: str, namespace: str, room: str) -> None:
        try:
            self.basic_enter_room(sid, namespace, room)
        except ValueError as error:
            self._log.warning("client %s does not enter room %r of %s: %s", sid, room, namespace, error)

    async def _apply_broadcast(self, message: Message) -> None:
        namespace = message.nsp
        sids = None
        if message.request_id is not None:
            sids = [
                sid
                for sid in self.local_sids(namespace, message.to, message.except_)
                if self.is_alive(sid, namespace)
            ]
            self._respond(
                MessageType.BROADCAST_CLIENT_COUNT,
                message,
                client_count=len(sids),
                request_id=message.request_id,
            )
            if not sids:
                return
        room: Any = None
        if message.to:
            room = self.local_rooms(namespace, message.to)
            if not room:
                return
        elif namespace not in self.rooms:
            return
        packet = message.packet(self.json.loads)
        if not packet or not isinstance(packet[0], str):
            raise EncodeError("a broadcast without an event name", path="event", reason="not a string")
        skip = list(self.sids_in(namespace, message.except_))
        callback = None
        if sids is not None:
            room, skip = sids, []
            callback = functools.partial(self._acknowledge, message)
        await AsyncManager.emit(
            self, packet[0], tuple(packet[1:]), namespace, room=room, skip_sid=skip, callback=callback
        )

    def _acknowledge(self, request: Message, *args: Any) -> None:
        """A local client acknowledged a broadcast of another server."""
        fields: dict[str, Any] = {"request_id": request.request_id}
        if args:
            fields["packet"] = args[0]
        if len(args) > 1:
            fields["args"] = list(args)
        try:
            self._respond(MessageType.BROADCAST_ACK, request, **fields)
        except SocketIOPostgresError as error:
            self._report(error)

    def _respond(self, kind: MessageType, request: Message, **fields: Any) -> None:
        message = Message(kind, request.nsp, **fields)
        self._note_sent(message)
        self._publish_soon(message)

    async def _answer(self, request_id: str, *args: Any) -> None:
        """The first acknowledgement, of whichever server, fires the callback; the others come too late."""
        callback, _ = self._callbacks.pop(request_id, (None, 0.0))
        if callback is None:
            return
        result = callback(*args)
        if asyncio.iscoroutine(result):
            await result

    async def _disconnect_local(self, sid: str, namespace: str, close: bool) -> None:
        if not self.is_connected(sid, namespace):
            return
        eio_sid = self.eio_sid_from_sid(sid, namespace)
        namespaces = list(self.get_namespaces()) if close else [namespace]
        for each in namespaces:
            local_sid = self.sid_from_eio_sid(eio_sid, each)
            if local_sid is not None:
                await self.server.disconnect(local_sid, namespace=each, ignore_queue=True)
        if close:
            await self.server.eio.disconnect(eio_sid)

    # ------------------------------------------------------------------------------------ watching

    def _report(self, error: Exception) -> None:
        self._log.error("%s: %s", self._bus.description, error)
        self._tell(error)

    def _tell(self, error: Exception) -> None:
        if self._error_handler is not None:
            try:
                self._error_handler(error)
            except Exception:
                self._log.exception("the error_handler itself failed")

    def stats(self) -> dict[str, Any]:
        """Counters since the first use; see docs/observability in the repository for each."""
        stats = self._bus.stats()
        stats["peers"] = {nsp: adapter.peers for nsp, adapter in self._adapters.items()}
        return stats
