"""`AsyncReceiver`: what a node does about messages of other servers and of emitters."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from socketio_postgres import _core
from socketio_postgres._bus.gap import GapInfo
from socketio_postgres._bus.messages import Message, MessageType
from socketio_postgres._bus.primitives import IS_ASYNC
from socketio_postgres._cluster import payload
from socketio_postgres._cluster.adapter import answer_arguments
from socketio_postgres._cluster.rooms import chosen_namespace

if TYPE_CHECKING:
    from socketio_postgres._cluster.async_node import AsyncNode

__all__ = ["AsyncReceiver"]

Handler: TypeAlias = Callable[..., Any]
F = TypeVar("F", bound=Handler)


class AsyncReceiver:
    """Applies messages to local sockets, calls the application, and has others answered."""

    def __init__(self, node: AsyncNode[Any]) -> None:
        self._node = node
        self._handlers: dict[tuple[str, str], Handler] = {}

    @property
    def handled_namespaces(self) -> set[str]:
        """Namespaces with a handler of server-side events."""
        return {namespace for namespace, _ in list(self._handlers)}

    def take_item(self, kind: int, value: Any) -> None:
        """What the core hands over, other than messages and the ends of operations. Nothing of it stops the reader."""
        try:
            match kind:
                case _core.FAILURE:
                    self._node.reports.failure(value)
                case _core.GAP:
                    self._node.reports.gap(GapInfo(*value))
                case _core.MEMBERS:
                    self._node.peers.see_locks(value)
                case _core.SEEN:
                    self._node.peers.see(*value)
                case _core.LISTENING if value:
                    self._node.peers.announce_again()
        except Exception as error:  # noqa: BLE001  (a reader that has ended would leave this server deaf)
            self._node.reports.raised("taking over from the core", error)

    async def receive(self, message: Message) -> None:
        """A message of another server or of an emitter."""
        adapter = self._node.peers.adapters.get(message.nsp)
        if adapter is None:
            return
        try:
            for each in self._node.peers.run(adapter, adapter.receive, message, time.monotonic()):
                await self.apply(each)
        except Exception as error:  # noqa: BLE001  (one bad message must not stop the reader)
            self._node.reports.bad_message(message, error)

    async def apply(self, message: Message) -> None:
        """Do to local sockets, or to the application, what a message says."""
        match message.type:
            case MessageType.BROADCAST:
                await self._deliver(message)
            case MessageType.SOCKETS_JOIN:
                self._join_sockets(message)
            case MessageType.SOCKETS_LEAVE:
                self._leave_sockets(message)
            case MessageType.DISCONNECT_SOCKETS:
                await self._disconnect_sockets(message)
            case MessageType.FETCH_SOCKETS:
                self._node.answers.sockets(message)
            case MessageType.BROADCAST_ACK:
                self.fire(message.request_id, answer_arguments(message, self._node.sockets.json.loads))
            case MessageType.SERVER_SIDE_EMIT:
                self._node.runner.spawn(self._handle_server_side, message)

    async def _deliver(self, message: Message) -> None:
        namespace = message.nsp
        rooms: list[Any] | None = None
        left_out: set[str] = set()
        acknowledged: Callable[..., Any] | None = None
        if message.request_id is not None:
            rooms = self._node.answers.alive_sids(namespace, message.to, message.except_)
            self._node.answers.client_count(message, len(rooms))

            def acknowledged(*args: Any) -> None:
                self._node.answers.acknowledgement(message, args)
        else:
            if message.to:
                rooms = self._node.sockets.rooms_here(namespace, message.to)
            left_out = self._node.sockets.sids_in(namespace, message.except_)
        if rooms != [] and self._node.sockets.has_clients(namespace):
            # The reader lets others run after each batch that it takes from the core.
            await self._node.sockets.deliver(message, namespace, rooms, left_out, acknowledged, is_in_batch=True)

    def _join_sockets(self, message: Message) -> None:
        try:
            for sid in self._node.sockets.matching(message.nsp, message.to, message.except_):
                for room in message.rooms:
                    try:
                        self._node.sockets.enter_room(sid, message.nsp, room)
                    except (ValueError, KeyError) as error:  # a sid's own room; or it has left meanwhile
                        self._node.reports.log.warning(
                            "client %s does not enter %r of %s: %s", sid, room, message.nsp, error
                        )
        finally:
            if message.uid:  # of another server, so the core let it pass
                self._node.core.rooms_joined(message.nsp, message.rooms)

    def _leave_sockets(self, message: Message) -> None:
        for sid in self._node.sockets.matching(message.nsp, message.to, message.except_):
            for name in message.rooms:
                if not self._node.is_own_room(sid, name, message.nsp):
                    self._node.sockets.leave_room(sid, message.nsp, name)

    async def _disconnect_sockets(self, message: Message) -> None:
        sids = self._node.sockets.matching(message.nsp, message.to, message.except_)
        if not sids:
            return
        for sid in sids:
            self._node.runner.spawn(
                self._node.sockets.disconnect, sid, message.nsp, message.close, self.disconnect_raised
            )
        # Later messages must not reach them, but the disconnect handlers of the application need not have ended.
        await self._node.runner.until_begun(
            lambda: not any(self._node.sockets.is_connected(sid, message.nsp) for sid in sids)
        )

    def disconnect_raised(self, error: Exception) -> None:
        """A disconnect handler of the application's raised, and its client is disconnected all the same."""
        self._node.reports.raised("a disconnect handler", error)

    # ------------------------------------------------------------------------------------ server-side events

    def on_server_side(self, event: str, handler: F | None, namespace: str) -> Callable[[F], F] | F:
        """Handle an event that another server, or an emitter, sends to the servers themselves."""
        if self._node.write_only:
            self._node.require_server("a handler of server-side events")
        namespace = chosen_namespace(namespace)
        _core.channel_name(self._node.channel, namespace)

        def register(function: F) -> F:
            self._node.runner.check_function("handler", function)
            self._handlers[namespace, event] = function
            self._node.runner.join_soon(namespace)
            return function

        return register if handler is None else register(handler)

    async def _handle_server_side(self, message: Message) -> None:
        result = None
        try:
            event, *args = payload.event_of(message, self._node.sockets.json)
            handler = self._handlers.get((message.nsp, event))
            if handler is not None:
                result = await self._call(handler, *args)
        except Exception as error:  # noqa: BLE001  (a user's handler may raise anything)
            self._node.reports.bad_message(message, error)
        except BaseException:
            # Its own await was cancelled, or gevent raised a Timeout. Or this server ends, which it says itself.
            if not self._node.is_closed:
                self._node.answers.of_handler(message, None)
            raise
        self._node.answers.of_handler(message, result)

    # --------------------------------------------------------------------------------------------- callbacks

    def fire(self, request: str | None, args: Sequence[Any]) -> None:
        """Run the callback of a request, the first time that it is acknowledged."""
        callback = None if request is None else self._node.callbacks.take(request)
        if callback is not None:
            self._node.runner.spawn(self.call_back, callback, *args)

    async def call_back(self, callback: Callable[..., Any], *args: Any) -> None:
        try:
            await self._call(callback, *args)
        except Exception as error:  # noqa: BLE001  (a user's function may raise anything)
            self._node.reports.raised("an acknowledgement callback", error)

    @staticmethod
    async def _call(function: Handler, *args: Any) -> Any:
        if IS_ASYNC:
            result = function(*args)
            return await result if inspect.isawaitable(result) else result
        return function(*args)
