# Generated from async_server_operator.py by scripts/async_to_sync.py; edit that file.
"""The chain of a server: what an emitter's chain does, and waiting for answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, TypeAlias

from socketio_postgres._bus.messages import Message
from socketio_postgres._cluster._sync.node import Node
from socketio_postgres._cluster.broadcast_operator import (
    Chain,
    EmitActions,
    SocketActions,
    Target,
    checked_event,
    checked_timeout,
)
from socketio_postgres._cluster.rooms import checked_namespace
from socketio_postgres.exceptions import RequestTimeoutError

__all__ = ["RemoteSocket", "ServerNamespace", "ServerOperator"]

Done: TypeAlias = None


class ServerChain(Chain["ServerOperator"], SocketActions[Done]):
    """What every chain of a server offers, the manager itself included."""

    _node: Node[Any]

    def _with(self, target: Target) -> ServerOperator:
        return ServerOperator(self._node, target)

    def _send(self, message: Message, target: Target) -> Done:
        return self._node.act(message, target)

    @property
    def local(self) -> ServerOperator:
        """Only the sockets of this process; nothing is published."""
        return self._changed(is_local=True)

    def timeout(self, seconds: float) -> ServerOperator:
        """Wait so many seconds for answers. Default 5. Socket.IO's own `timeout` takes milliseconds."""
        return self._changed(timeout=checked_timeout(seconds))

    def fetch_sockets(self, *, partial: bool = False) -> list[RemoteSocket]:
        """The matching sockets of all servers.

        Within a second after this server has joined the namespace it also waits for servers that it knows by their
        locks alone; for those of Node.js and Go, which hold none, within a quarter of a second.

        Args:
            partial: When a server does not answer in time, return the sockets of the others.

        Raises:
            NotAServerError: This manager is `write_only` or has no server: answers would not reach it.
            RequestTimeoutError: A server did not answer in time; it carries the sockets of the others.
        """
        found = self._node.requests.fetch_sockets(self._target, partial=partial)
        return [RemoteSocket.make(self._node, self._target.nsp, each) for each in found]

    def emit_with_ack(self, event: str, *args: Any, partial: bool = False) -> list[Any]:
        """Emit to the matching clients of all servers and wait for the acknowledgement of each.

        Args:
            event: Name of the event.
            args: As in `emit` of a chain: a tuple is one of them, a list to clients.
            partial: When clients do not answer in time, return the answers of the others.

        Returns:
            One entry for each client, in no particular order: None, a value, or a tuple of several values. Clients
            of Node.js and Go servers give one value at most, that is all their servers pass on.

        Raises:
            NotAServerError: As in `fetch_sockets`.
            RequestTimeoutError: A client or server did not answer in time; it carries the answers of the others. A
                server that has fallen silent counts as missing, one that has left does not.
            EncodeError, OptionsError, PayloadTooLargeError: As in `emit`.
        """
        packet = [checked_event(event), *args]
        return self._node.requests.emit_with_ack(self._target, packet, partial=partial)


class ServerOperator(ServerChain, EmitActions[Done]):
    """Some sockets of a namespace, on all servers."""

    def __init__(self, node: Node[Any], target: Target) -> None:
        self._node = node
        self._target = target

    def _send_many(self, messages: Iterator[Message], target: Target) -> None:
        for message in messages:
            self._node.act(message, target)


class ServerSideActions:
    """Events for the servers themselves."""

    _node: Node[Any]
    _target: Target

    def of(self, nsp: str) -> ServerNamespace:
        """Another namespace; a missing leading slash is added, as in Socket.IO."""
        return ServerNamespace(self._node, Target(checked_namespace(nsp, "nsp")))

    def server_side_emit(self, event: str, *args: Any) -> None:
        """Emit an event to the other servers of the cluster; see `on_server_side`.

        Raises:
            As `emit`.
        """
        self._node.server_side_emit(self._target.nsp, [checked_event(event), *args])

    def server_side_emit_with_ack(
        self, event: str, *args: Any, timeout: float = 5.0, partial: bool = False
    ) -> list[Any]:
        """Emit an event to the other servers and wait for the answer of each.

        Args:
            event: Name of the event.
            args: As in `emit`.
            timeout: Seconds to wait.
            partial: When a server does not answer in time, return the answers of the others.

        Returns:
            One value for each other server; None where it has nothing to say, or nothing that can travel.

        Raises:
            NotAServerError: As in `fetch_sockets`.
            RequestTimeoutError: A server did not answer in time; it carries the answers of the others.
        """
        packet = [checked_event(event), *args]
        target = self._target._replace(timeout=checked_timeout(timeout))
        return self._node.requests.server_side_emit_with_ack(target, packet, partial=partial)


class ServerNamespace(ServerSideActions, ServerOperator):
    """All sockets of one namespace, on all servers; the start of a chain."""


@dataclasses.dataclass(frozen=True)
class RemoteSocket:
    """A socket of any server of the cluster, as it was when it was fetched.

    Attributes:
        id: Its sid.
        nsp: Its namespace.
        handshake: `headers`, `query`, `address`, `issued` and so on, as in Socket.IO.
        rooms: Rooms it was in, the one named by its sid included.
        data: What its server shares about it: `socket.data` in Node.js, the session in Python if `share_session`.
    """

    id: str
    nsp: str
    handshake: dict[str, Any]
    rooms: frozenset[str]
    data: dict[str, Any]
    _node: Node[Any] = dataclasses.field(repr=False, compare=False)

    @classmethod
    def make(cls, node: Node[Any], nsp: str, details: dict[str, Any]) -> RemoteSocket:
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
        """Its namespace, by python-socketio's word for it."""
        return self.nsp

    @property
    def _operator(self) -> ServerOperator:
        return ServerOperator(self._node, Target(self.nsp, rooms=(self.id,)))

    def emit(self, event: str, *args: Any) -> None:
        """Emit to this socket."""
        self._operator.emit(event, *args)

    def emit_with_ack(self, event: str, *args: Any, timeout: float = 5.0) -> Any:
        """Emit to this socket and return its acknowledgement.

        Raises:
            RequestTimeoutError: It did not come in time, or the socket is gone.
        """
        responses = self._operator.timeout(timeout).emit_with_ack(event, *args)
        if not responses:
            raise RequestTimeoutError(f"socket {self.id} is gone", missing_servers=[], responses=[])
        return responses[0]

    def join(self, rooms: Any) -> None:
        """Make it join one room or several."""
        self._operator.sockets_join(rooms)

    def leave(self, rooms: Any) -> None:
        """Make it leave one room or several."""
        self._operator.sockets_leave(rooms)

    def disconnect(self, close: bool = False) -> None:
        """Disconnect it."""
        self._operator.disconnect_sockets(close)
