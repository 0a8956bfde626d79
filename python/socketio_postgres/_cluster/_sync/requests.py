# Generated from async_requests.py by scripts/async_to_sync.py; edit that file.
"""`Requests`: what a node asks all servers of a cluster, and waits for."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from socketio_postgres._bus.messages import Message, MessageType
from socketio_postgres._cluster import payload
from socketio_postgres._cluster.adapter import ClusterAdapter, Request
from socketio_postgres._cluster.broadcast_operator import Target
from socketio_postgres.exceptions import RequestTimeoutError

if TYPE_CHECKING:
    from socketio_postgres._cluster._sync.node import Node

__all__ = ["Requests"]


class Requests:
    """Requests under way. Each waits for the servers, and clients, that owe it something, for a time."""

    def __init__(self, node: Node[Any]) -> None:
        self.runner = node.runner
        self._node = node
        self._waiting: dict[str, Any] = {}  # events, by the id of the request

    def fetch_sockets(self, target: Target, *, partial: bool) -> list[dict[str, Any]]:
        """The matching sockets of all servers, as they describe them."""
        self._node.require_server("fetch_sockets")
        if target.rooms == ():
            return []
        adapter = self._adapter(target)
        request = self._start_request(adapter, target)
        try:
            message = target.message(MessageType.FETCH_SOCKETS, request_id=request.id)
            request.responses += self._node.answers.local_details(target.nsp, message.to, message.except_)
            if not request.is_complete:
                self._node.publish(message)
            return self._responses(adapter, request, target, partial=partial)
        finally:
            self._end_request(adapter, request)

    def emit_with_ack(self, target: Target, packet: list[Any], *, partial: bool) -> list[Any]:
        """Emit to the matching clients of all servers, and return their acknowledgements."""
        self._node.require_server("emit_with_ack")
        if target.rooms == ():
            return []
        adapter = self._adapter(target)
        request = self._start_request(adapter, target, is_of_clients=True)
        try:
            fields = payload.value_fields(packet, self._node.sockets.json)
            message = target.message(MessageType.BROADCAST, request_id=request.id, **fields)
            sids = self._node.answers.alive_sids(target.nsp, message.to, message.except_)
            # First: with the other servers' answers alone the request would seem complete.
            self._node.peers.run(adapter, adapter.expect_local, request, len(sids))
            if not target.is_local:
                self._node.publish(message)  # even without known servers, because it is an event in the first place
            if sids:

                def acknowledged(*args: Any) -> None:
                    self._node.peers.run(adapter, adapter.acknowledge_local, request, list(args))

                call = (packet[0], tuple(packet[1:]))
                self._node.sockets.deliver(message, target.nsp, sids, set(), acknowledged, call, is_in_batch=True)
            return self._responses(adapter, request, target, partial=partial)
        finally:
            self._end_request(adapter, request)

    def server_side_emit_with_ack(self, target: Target, packet: list[Any], *, partial: bool) -> list[Any]:
        """Emit an event to the other servers; what their handlers return."""
        self._node.require_server("server_side_emit_with_ack")
        adapter = self._adapter(target)
        request = self._start_request(adapter, target)
        try:
            fields = payload.value_fields(packet, self._node.sockets.json)
            message = Message(MessageType.SERVER_SIDE_EMIT, target.nsp, request_id=request.id, **fields)
            self._node.publish(message)
            return self._responses(adapter, request, target, partial=partial)
        finally:
            self._end_request(adapter, request)

    @property
    def is_asking(self) -> bool:
        """Whether somebody waits for the responses of a request."""
        return bool(self._waiting)

    def _adapter(self, target: Target) -> ClusterAdapter:
        if not target.is_local:
            self._node.join(target.nsp)
        return self._node.peers.adapters.get(target.nsp) or self._node.peers.new_adapter(target.nsp)

    def _start_request(self, adapter: ClusterAdapter, target: Target, *, is_of_clients: bool = False) -> Request:
        request = self._node.peers.request(adapter, is_local=target.is_local, is_of_clients=is_of_clients)
        self._waiting[request.id] = self.runner.new_event()
        return request

    def complete(self, request: Request) -> None:
        """A request has all its answers: wake its caller."""
        event = self._waiting.get(request.id)
        if event is not None:
            event.set()

    def _responses(self, adapter: ClusterAdapter, request: Request, target: Target, *, partial: bool) -> list[Any]:
        event = self._waiting[request.id]
        now = time.monotonic()
        deadline = now + target.timeout
        while not request.is_complete and now < deadline:
            event.wait(min(deadline, adapter.settles_at(request, now)) - now)
            now = time.monotonic()
            self._node.peers.run(adapter, adapter.settle, request, now)
        if request.is_complete or partial or not request.missing_servers:
            return request.responses
        missing = ", ".join(uid or "this server's own clients" for uid in request.missing_servers)
        raise RequestTimeoutError(
            f"no answer within {target.timeout} s from: {missing}; {len(request.responses)} responses are in",
            missing_servers=request.missing_servers,
            responses=request.responses,
        )

    def _end_request(self, adapter: ClusterAdapter, request: Request) -> None:
        self._waiting.pop(request.id, None)
        self._node.peers.abandon(adapter, request)
