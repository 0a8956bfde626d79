"""The chain of a server: that of an emitter, and requests that wait for answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Coroutine, Iterator
from typing import Any, TypeAlias

from socketio_postgres._bus.messages import Message
from socketio_postgres._cluster.async_node import AsyncNode
from socketio_postgres._cluster.broadcast_operator import (
    Chain,
    EmitActions,
    SocketActions,
    Target,
    checked_event,
    checked_timeout,
)
from socketio_postgres._cluster.framer import Framer
from socketio_postgres._cluster.rooms import checked_namespace
from socketio_postgres.exceptions import RequestTimeoutError

__all__ = ["AsyncRemoteSocket", "AsyncServerNamespace", "AsyncServerOperator"]

Done: TypeAlias = Coroutine[Any, Any, None]


class AsyncServerChain(Chain["AsyncServerOperator"], SocketActions[Done]):
    """The methods of every chain of a server, and of the manager itself."""

    _node: AsyncNode[Any]

    def _with(self, target: Target) -> AsyncServerOperator:
        return AsyncServerOperator(self._node, target)

    def _send(self, message: Message, target: Target) -> Done:
        return self._node.act(message, target)

    @property
    def local(self) -> AsyncServerOperator:
        """Only the sockets of this process. Nothing is published."""
        return self._changed(is_local=True)

    def timeout(self, seconds: float) -> AsyncServerOperator:
        """How many seconds to wait for answers. Default 5. Socket.IO's own `timeout` takes milliseconds."""
        return self._changed(timeout=checked_timeout(seconds))

    async def fetch_sockets(self, *, partial: bool = False) -> list[AsyncRemoteSocket]:
        """The matching sockets of all servers.

        In the first second after this server has joined the namespace, the call also waits for Python servers whose
        first message has not arrived yet; in the first quarter of a second also for servers of Node.js and Go.

        Args:
            partial: If a server does not answer in time, return the sockets of the others. Default False.

        Raises:
            NotAServerError: This manager is `write_only` or has no server, so answers would not reach it.
            RequestTimeoutError: A server did not answer in time. The exception carries the sockets of the others.
        """
        found = await self._node.requests.fetch_sockets(self._target, partial=partial)
        return [AsyncRemoteSocket.make(self._node, self._target.nsp, each) for each in found]

    async def emit_with_ack(self, event: str, *args: Any, partial: bool = False) -> list[Any]:
        """Emit to the matching clients of all servers and wait for the acknowledgement of each.

        Args:
            event: Name of the event.
            args: Any number of arguments. A tuple is one argument, which arrives as a list.
            partial: If clients do not answer in time, return the answers of the others. Default False.

        Returns:
            One entry for each client, in no particular order: None, a value, or a tuple of several values. For clients
            of Node.js and Go servers it is at most one value, because their servers pass on the first one only.

        Raises:
            NotAServerError: As in `fetch_sockets`.
            RequestTimeoutError: A client or server did not answer in time. The exception carries the answers of the
                others. A server that fell silent counts as missing; a server that left the cluster does not.
            EncodeError, OptionsError, PayloadTooLargeError: As in `emit`.
        """
        packet = [checked_event(event), *args]
        return await self._node.requests.emit_with_ack(self._target, packet, partial=partial)


class AsyncServerOperator(AsyncServerChain, EmitActions[Done]):
    """Some sockets of a namespace, on all servers."""

    def __init__(self, node: AsyncNode[Any], target: Target) -> None:
        self._node = node
        self._target = target

    @property
    def _framer(self) -> Framer:
        return self._node.transactions.framer

    async def _send_many(self, messages: Iterator[Message], target: Target) -> None:
        for message in messages:
            await self._node.act(message, target)


class AsyncServerSideActions:
    """Events for the servers themselves."""

    _node: AsyncNode[Any]
    _target: Target

    def of(self, nsp: str) -> AsyncServerNamespace:
        """Another namespace. A missing leading slash is added, as in Socket.IO."""
        return AsyncServerNamespace(self._node, Target(checked_namespace(nsp, "nsp")))

    async def server_side_emit(self, event: str, *args: Any) -> None:
        """Emit an event to the other servers of the cluster; see `on_server_side`.

        Raises:
            As `emit`.
        """
        await self._node.server_side_emit(self._target.nsp, [checked_event(event), *args])

    async def server_side_emit_with_ack(
        self, event: str, *args: Any, timeout: float = 5.0, partial: bool = False
    ) -> list[Any]:
        """Emit an event to the other servers and wait for the answer of each.

        Args:
            event: Name of the event.
            args: As in `emit`.
            timeout: Maximum number of seconds to wait. Default 5.
            partial: If a server does not answer in time, return the answers of the others. Default False.

        Returns:
            One value for each other server; None if its handler returned None or a value that cannot be encoded.

        Raises:
            NotAServerError: As in `fetch_sockets`.
            RequestTimeoutError: A server did not answer in time. The exception carries the answers of the others.
        """
        packet = [checked_event(event), *args]
        target = self._target._replace(timeout=checked_timeout(timeout))
        return await self._node.requests.server_side_emit_with_ack(target, packet, partial=partial)


class AsyncServerNamespace(AsyncServerSideActions, AsyncServerOperator):
    """All sockets of one namespace, on all servers. The start of a chain."""


@dataclasses.dataclass(frozen=True)
class AsyncRemoteSocket:
    """A socket of any server of the cluster, in its state when it was fetched.

    Attributes:
        id: Its sid.
        nsp: Its namespace.
        handshake: `headers`, `query`, `address`, `issued` and so on, as in Socket.IO.
        rooms: Rooms that it was in, including the room named by its sid.
        data: `socket.data` in Node.js; in Python the user session, if its server has `share_session`.
    """

    id: str
    nsp: str
    handshake: dict[str, Any]
    rooms: frozenset[str]
    data: dict[str, Any]
    _node: AsyncNode[Any] = dataclasses.field(repr=False, compare=False)

    @classmethod
    def make(cls, node: AsyncNode[Any], nsp: str, details: dict[str, Any]) -> AsyncRemoteSocket:
        """From its description on the wire."""
        return cls(
            id=str(details.get("id", "")),
            nsp=nsp,
            handshake=details.get("handshake") or {},
            rooms=frozenset(str(room) for room in details.get("rooms") or ()),
            data=details.get("data") or {},
            _node=node,
        )

    @property
    def namespace(self) -> str:
        """Its namespace, under python-socketio's name."""
        return self.nsp

    @property
    def _operator(self) -> AsyncServerOperator:
        return AsyncServerOperator(self._node, Target(self.nsp, rooms=(self.id,)))

    async def emit(self, event: str, *args: Any) -> None:
        """Emit to this socket."""
        await self._operator.emit(event, *args)

    async def emit_with_ack(self, event: str, *args: Any, timeout: float = 5.0) -> Any:
        """Emit to this socket and return its acknowledgement.

        Raises:
            RequestTimeoutError: The acknowledgement did not arrive in time, or the socket is gone.
        """
        responses = await self._operator.timeout(timeout).emit_with_ack(event, *args)
        if not responses:
            raise RequestTimeoutError(f"socket {self.id} is gone", missing_servers=[], responses=[])
        return responses[0]

    async def join(self, rooms: Any) -> None:
        """Make this socket join one room or several."""
        await self._operator.sockets_join(rooms)

    async def leave(self, rooms: Any) -> None:
        """Make this socket leave one room or several."""
        await self._operator.sockets_leave(rooms)

    async def disconnect(self, close: bool = False) -> None:
        """Disconnect this socket from its namespace; with `close`, close its connection."""
        await self._operator.disconnect_sockets(close)
