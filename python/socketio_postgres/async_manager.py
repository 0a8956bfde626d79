"""`AsyncPostgresManager`: the client manager that makes a `socketio.AsyncServer` a member of the cluster."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any

from socketio.async_manager import AsyncManager
from socketio.async_pubsub_manager import AsyncPubSubManager

from socketio_postgres import _core
from socketio_postgres.adapter import ClusterAdapter, Request
from socketio_postgres.async_server_operator import AsyncServerChain, ServerSideActions
from socketio_postgres.broadcast_operator import Target, room_names
from socketio_postgres.exceptions import ClosedError, PayloadTooLargeError, SocketIOPostgresError
from socketio_postgres.handover import items_of
from socketio_postgres.member import CLOSE_LIMIT, GOODBYE_LIMIT, JOIN_LIMIT, ClusterMember, Delivery, Handler
from socketio_postgres.messages import Message, MessageType

__all__ = ["AsyncPostgresManager"]


class AsyncPostgresManager(ServerSideActions, AsyncServerChain, ClusterMember, AsyncPubSubManager):  # type: ignore[misc]  # python-socketio is not typed
    """Makes a `socketio.AsyncServer` one of the servers of a cluster: Python, Node.js and Go.

        mgr = AsyncPostgresManager("postgresql://app@localhost/app")
        sio = socketio.AsyncServer(client_manager=mgr, async_mode="asgi")

    `emit` and the room methods do what those of python-socketio's other managers do. They return once the message
    stands in a bounded, ordered buffer; `flush` waits for the commit. Messages of one process arrive everywhere in
    call order. Beyond that it offers the chain of Socket.IO: `mgr.to("room").fetch_sockets()` and so on. Nothing is
    started before the first use inside a running event loop.

    Args:
        dsn: Connection string or URL as libpq reads it.
        channel: Channel prefix; the same on all servers of a cluster. Node's `channelPrefix`.
        write_only: Only emit; usable without a server, and not counted as one.
        logger: Logger for this manager's messages. Default: the logger `socketio_postgres`.
        json: Module with `dumps` and `loads`, used without a server; otherwise the server's json is used.
        heartbeat_interval: Seconds of silence after which peers hear that this server lives.
        heartbeat_timeout: Seconds of silence after which a peer is no longer counted.
        cleanup_interval: Seconds after which attachments are deleted.
        share_session: Let other servers see the user session of a client as the `data` of a fetched socket.
        error_handler: Called with every background failure (an exception), after it was logged.
        options: As in `BusOptions`.

    Raises:
        OptionsError: The DSN or an option is wrong.
    """

    def _prepare_waiting(self) -> None:
        self._manager = self
        self._joining: dict[str, tuple[asyncio.Task[None], float]] = {}
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._reader: asyncio.Task[None] | None = None
        self._ticker: asyncio.Task[None] | None = None

    # ------------------------------------------------------------------------------------------- life cycle

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
        self._leave()
        joining = [task for task, _ in self._joining.values()]
        for task in (self._reader, self._ticker, *joining):
            if task is not None and task is not asyncio.current_task():
                task.cancel()
        await self._bus.close(limit)

    async def _thread(self) -> None:
        """The background task that `initialize` starts; lives until the server's loop is torn down."""
        try:
            joins = [self._join(nsp) for nsp in self._served_namespaces()]
            for error in await asyncio.gather(*joins, return_exceptions=True):
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
        self._serve(namespace)

    async def _try_to_join(self, namespace: str) -> None:
        """Join if PostgreSQL answers; without the bus a server still serves its own clients."""
        try:
            await self._join(namespace)
        except (SocketIOPostgresError, asyncio.TimeoutError) as error:
            if isinstance(error, PayloadTooLargeError):
                raise
            why = str(error) or "PostgreSQL does not answer"
            self._log.warning("namespace %s is not connected to other servers yet: %s", namespace, why)

    async def pre_connect(self, eio_sid: str, namespace: str) -> str | None:
        """As in `AsyncManager`, but a client is told that it is connected only once LISTEN is active."""
        try:
            await self._try_to_join(namespace)
        except PayloadTooLargeError as error:
            self._report(error)
            return None
        sid: str | None = await super().pre_connect(eio_sid, namespace)
        return sid

    async def _tick(self) -> None:
        interval = self._heartbeat.cleanup_interval
        cleanup_at = time.monotonic() + interval
        while True:
            due = self._tick_now(time.monotonic())
            if time.monotonic() >= cleanup_at:
                cleanup_at = time.monotonic() + interval
                if self._has_new_attachments():
                    await self._clean_up(interval)
            # Never later than a second from now: a namespace may join meanwhile.
            delay = min(due, cleanup_at) - time.monotonic()
            await asyncio.sleep(min(max(delay, 0.01), 1.0))

    async def _clean_up(self, age: float) -> None:
        try:
            await self._bus.call(lambda inbox, token: self._bus.core.expire_attachments(age, inbox, token))
        except SocketIOPostgresError as error:
            self._report(error)

    # ------------------------------------------------------------------------------------------ publishing

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
        rooms means nobody. Local clients are served at once; other servers get the message in call order. The first
        acknowledgement, of whichever server, fires the callback.

        Raises:
            EncodeError: `data` cannot travel; nothing was emitted.
            PayloadTooLargeError: It is larger than `max_payload`, or the namespace's name is too long.
            RuntimeError: A callback without a server.
            ValueError: A callback without a room.
        """
        room = to or room
        namespace = namespace or "/"
        if isinstance(room, (tuple, set, frozenset)):
            room = list(room)
        if isinstance(skip_sid, (tuple, set, frozenset)):
            skip_sid = list(skip_sid)
        if kwargs.get("ignore_queue"):
            await AsyncManager.emit(self, event, data, namespace, room=room, skip_sid=skip_sid, callback=callback)
            return
        if room == []:
            return
        request = None
        is_local = False
        if callback is not None:
            self._check_callback(room)
            is_local = self._is_local_client(room, namespace)
            await self._try_to_join(namespace)
            request, callback = self._callback_request(namespace, callback, is_local=is_local)
        message = self._emit_message(event, data, namespace, room, skip_sid, request)
        is_published = is_local or self._try_publish(message)
        await AsyncManager.emit(self, event, data, namespace, room=room, skip_sid=skip_sid, callback=callback)
        if not is_published:
            await self._publish(message)

    async def can_disconnect(self, sid: str, namespace: str) -> bool:
        """True when the client is connected here; otherwise its own server is asked to disconnect it."""
        if self._is_here(sid, namespace):
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
        if self._is_here(sid, namespace):
            await AsyncManager.enter_room(self, sid, namespace, room, eio_sid=eio_sid)
            return
        message = Message(MessageType.SOCKETS_JOIN, namespace or "/", to=[sid], rooms=list(room_names(room)))
        await self._publish(message)

    async def leave_room(self, sid: str, namespace: str, room: Any) -> None:
        """Remove a client from a room, wherever it is connected."""
        if self._is_here(sid, namespace):
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

    async def _publish(self, message: Message) -> None:
        if not self._try_publish(message):
            await self._bus.publish(message)

    def _try_publish(self, message: Message) -> bool:
        """Append to the buffer unless it is full; keeps call order even among tasks."""
        self._before_publishing(message)
        return self._bus.try_publish(message)

    async def _act(self, message: Message | None, target: Target) -> None:
        """Carry out a chain: here, and on the other servers."""
        if message is None:
            return
        is_published = target.is_local or self._try_publish(message)
        await self._apply(message)
        if not is_published:
            await self._publish(message)

    # ------------------------------------------------------------------------------------------- receiving

    async def _read(self, inbox: _core.Inbox) -> None:
        async for _, kind, value in items_of(inbox):
            if kind == _core.MESSAGE:
                await self._receive(value)
            elif kind == _core.FAILURE:
                self._report(value)
            elif kind == _core.LISTENING and value:
                self._announce_again()

    async def _receive(self, message: Message) -> None:
        adapter = self._adapters.get(message.nsp)
        if adapter is None:
            return
        try:
            for each in self._run_effects(adapter, adapter.receive(message, time.monotonic())):
                await self._apply(each)
        except Exception as error:  # one bad message must not stop the reader
            self._report_bad(message, error)

    async def _apply(self, message: Message) -> None:
        delivery = self._apply_now(message)
        if delivery is not None:
            await self._deliver(delivery)
        elif message.type == MessageType.DISCONNECT_SOCKETS:
            # The tasks run up to the application's handler now, so that what follows does not reach the client.
            await asyncio.sleep(0)

    async def _deliver(self, delivery: Delivery) -> None:
        await AsyncManager.emit(
            self,
            delivery.event,
            delivery.args,
            delivery.namespace,
            room=delivery.room,
            skip_sid=delivery.skip_sid,
            callback=delivery.callback,
        )

    async def _disconnect_local(self, sid: str, namespace: str, close: bool) -> None:
        if not self.is_connected(sid, namespace):
            return
        eio_sid = self.eio_sid_from_sid(sid, namespace)
        for each in list(self.get_namespaces()) if close else [namespace]:
            local_sid = self.sid_from_eio_sid(eio_sid, each)
            if local_sid is not None:
                await self.server.disconnect(local_sid, namespace=each, ignore_queue=True)
        if close:
            await self.server.eio.disconnect(eio_sid)

    async def _handle_server_side(self, message: Message) -> None:
        result = None
        try:
            handler, args = self._server_side_handler(message)
            if handler is not None:
                result = await self._call(handler, *args)
        except Exception as error:  # a user's handler may raise anything, and nothing may stop us
            self._report_bad(message, error)
        self._answer_server_side(message, result)

    @staticmethod
    async def _call(function: Handler, *args: Any) -> Any:
        result = function(*args)
        return await result if inspect.isawaitable(result) else result

    # -------------------------------------------------------------------------------------------- requests

    def _complete(self, request: Request) -> None:
        waiting = self._waiting.get(request.id)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    async def _wait(self, adapter: ClusterAdapter, request: Request, target: Target, *, partial: bool) -> list[Any]:
        """Wait for a request's answers."""
        try:
            await asyncio.wait_for(self._waiting[request.id], target.timeout)
        except asyncio.TimeoutError:
            return self._timed_out(request, target, partial=partial)
        finally:
            del self._waiting[request.id]
            adapter.abandon(request)
        return request.responses

    def _request(self, adapter: ClusterAdapter, target: Target) -> Request:
        request = adapter.request(is_local=target.is_local)
        self._waiting[request.id] = asyncio.get_running_loop().create_future()
        return request

    async def _member(self, target: Target) -> ClusterAdapter:
        if not target.is_local:
            await self._join(target.nsp)
        return self._adapters.get(target.nsp) or self._new_adapter(target.nsp)

    async def _fetch_sockets(self, target: Target, *, partial: bool) -> list[dict[str, Any]]:
        if target.rooms == ():
            return []
        adapter = await self._member(target)
        local = self._local_details(target.nsp, list(target.rooms or ()), list(target.except_rooms))
        request = self._request(adapter, target)
        request.responses += local
        if request.missing:
            message = target.message(MessageType.FETCH_SOCKETS, request_id=request.id)
            assert message is not None
            await self._publish(message)
        else:
            self._complete(request)
        return await self._wait(adapter, request, target, partial=partial)

    async def _emit_with_ack(self, target: Target, packet: list[Any], *, partial: bool) -> list[Any]:
        if target.rooms == ():
            return []
        adapter = await self._member(target)
        request = self._request(adapter, target)
        sids = self._alive_sids(target.nsp, list(target.rooms or ()), list(target.except_rooms))
        try:
            message = target.message(MessageType.BROADCAST, packet=packet, request_id=request.id)
            assert message is not None
            if request.missing:
                await self._publish(message)
        except BaseException:
            del self._waiting[request.id]
            adapter.abandon(request)
            raise
        self._run_effects(adapter, adapter.expect_local(request, len(sids)))
        if sids:
            callback = self._local_acknowledgement(adapter, request)
            delivery = Delivery(packet[0], tuple(packet[1:]), target.nsp, sids, [], callback)
            await self._deliver(delivery)
        return await self._wait(adapter, request, target, partial=partial)

    async def _server_side_emit(self, nsp: str, packet: list[Any]) -> None:
        await self._publish(Message(MessageType.SERVER_SIDE_EMIT, nsp, packet=packet))

    async def _server_side_emit_with_ack(self, target: Target, packet: list[Any], *, partial: bool) -> list[Any]:
        adapter = await self._member(target)
        request = self._request(adapter, target)
        message = Message(MessageType.SERVER_SIDE_EMIT, target.nsp, packet=packet, request_id=request.id)
        if request.missing:
            await self._publish(message)
        else:
            self._complete(request)
        return await self._wait(adapter, request, target, partial=partial)
