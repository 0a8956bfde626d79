"""What a node answers to the requests of other servers, as fully as it can travel."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any

from socketio_postgres._bus.messages import Message, MessageType
from socketio_postgres._cluster import payload
from socketio_postgres._cluster.handshake import handshake
from socketio_postgres._cluster.local_sockets import Sockets
from socketio_postgres._cluster.peers import Peers
from socketio_postgres._cluster.reports import Reports, explained
from socketio_postgres.exceptions import EncodeError, PayloadTooLargeError, SocketIOPostgresError

__all__ = ["Answers"]


class Answers:
    """Answers of one server.

    Args:
        sockets: The clients that are asked about.
        peers: Where answers go.
        reports: Hears why something cannot travel.
        share_session: Whether other servers see the user sessions.
    """

    def __init__(self, sockets: Sockets, peers: Peers, reports: Reports, *, share_session: bool) -> None:
        self._sockets = sockets
        self._peers = peers
        self._reports = reports
        self._share_session = share_session

    # ----------------------------------------------------------------------------------------- values

    def client_count(self, request: Message, count: int) -> None:
        """Tell how many clients will acknowledge a broadcast."""
        kind = MessageType.BROADCAST_CLIENT_COUNT
        self._peers.publish_soon(Message(kind, request.nsp, request_id=request.request_id, client_count=count))

    def acknowledgement(self, request: Message, args: tuple[Any, ...]) -> None:
        """A local client acknowledged a broadcast of another server."""
        self._value(MessageType.BROADCAST_ACK, request, args, f"an acknowledgement in {request.nsp}")

    def of_handler(self, request: Message, result: Any) -> None:
        """A handler of server-side events returned, if its sender wants to know."""
        if request.request_id is not None:
            args = () if result is None else (result,)
            what = f"what a handler of {request.nsp} returned"
            self._value(MessageType.SERVER_SIDE_EMIT_RESPONSE, request, args, what)

    def _value(self, kind: MessageType, request: Message, args: tuple[Any, ...], what: str) -> None:
        """Answer with some values; with none if they cannot travel."""

        def make(values: tuple[Any, ...]) -> Message:
            fields = self._fields(request, values)
            return Message(kind, request.nsp, request_id=request.request_id, **fields)

        def tell(error: Exception) -> None:
            self._reports.failure(explained(what, error))

        self._answer(tell, lambda: make(args), lambda: make(()))

    def _fields(self, request: Message, args: tuple[Any, ...]) -> dict[str, Any]:
        """The value of an answer as its receiver expects it: Node takes the first argument, Go an array of one.

        Go v3.0.2 counts the elements of the array as answers of as many clients, and drops an answer without one.
        """
        if request.is_from_go:
            fields = payload.value_fields([args[0] if args else None], self._sockets.json)
        else:
            fields = payload.value_fields(args[0], self._sockets.json) if args else {}
        if len(args) > 1:
            fields["args"] = list(args)  # only servers of this package look at it
        return fields

    def _answer(self, tell: Callable[[Exception], None], *answers: Callable[[], Message]) -> None:
        """Publish the first of several answers, each poorer than the one before, that can travel.

        Otherwise the asking server would wait in vain. The reasons of failures are reported here.
        """
        for make in answers:
            try:
                self._peers.publish(make())
            except (EncodeError, PayloadTooLargeError) as error:
                tell(error)
            except SocketIOPostgresError as error:
                self._reports.failure(error)
                return
            else:
                return

    # ----------------------------------------------------------------------------------------- sockets

    def alive_sids(self, namespace: str, to: Collection[str], except_: Collection[str]) -> list[str]:
        """Sids of the clients that can acknowledge."""
        sids = self._sockets.matching(namespace, list(to), list(except_))
        return [sid for sid in sids if self._sockets.is_alive(sid, namespace)]

    def sockets(self, request: Message) -> None:
        """Tell another server about our sockets, as fully as can travel.

        When that is less than which sockets there are and in which rooms, we say nothing and are named as missing: an
        empty list would say that there are none.
        """

        def answer(share: Callable[[Any, str], dict[str, Any]], *, is_bare: bool = False) -> Message:
            found = self.local_details(request.nsp, request.to, request.except_, share)
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
                return answer(self._sendable_session)  # which reports the values that it leaves out

        def tell(error: Exception) -> None:
            self._reports.failure_once(f"an answer with the sockets of {request.nsp}", error)

        self._answer(tell, full, lambda: answer(nothing), lambda: answer(nothing, is_bare=True))

    def local_details(
        self,
        namespace: str,
        to: list[str],
        except_: list[str],
        share: Callable[[Any, str], dict[str, Any]] | None = None,
    ) -> list[dict[str, Any]]:
        """Local sockets as FETCH_SOCKETS_RESPONSE describes them; `share` says what their sessions show."""
        found = []
        failed = functools.partial(self._reports.failure_once, f"the handshake of a client of {namespace}")
        for sid in self.alive_sids(namespace, to, except_):
            try:
                details = self._sockets.details(sid, namespace, failed)
            except KeyError:
                if self._sockets.is_alive(sid, namespace):
                    raise
                continue  # it has left just now, in another thread
            data: dict[str, Any] = {}
            if self._share_session and details.session is not None:
                data.update((share or self._own_session)(details.session, namespace))
            if details.admin is not None:
                data["_admin"] = details.admin
            found.append({"id": sid, "handshake": details.handshake, "rooms": details.rooms, "data": data})
        return found

    def _own_session(self, session: Any, namespace: str) -> dict[str, Any]:
        """A user session as this process sees it."""
        if isinstance(session, Mapping):
            return dict(session)
        error = EncodeError(f"a session must be a dict to be shared, not {type(session).__name__}", path="data")
        self._reports.failure_once(f"the session of a client of {namespace}", error)
        return {}

    def _shared_session(self, session: Any, namespace: str) -> dict[str, Any]:
        """A user session as other servers see it.

        Raises:
            EncodeError: Something in it cannot travel.
        """
        shared: dict[str, Any] = payload.plain(self._own_session(session, namespace), self._sockets.json)
        return shared

    def _sendable_session(self, session: Any, namespace: str) -> dict[str, Any]:
        """The values of a user session that can be encoded. Others are reported."""
        sendable: dict[str, Any] = {}
        for key, value in self._own_session(session, namespace).items():
            try:
                part = payload.plain({key: value}, self._sockets.json)
                Message(MessageType.SERVER_SIDE_EMIT_RESPONSE, namespace, request_id="", packet=part)
                sendable |= part
            except EncodeError as error:
                self._reports.failure_once(f"{key!r} of the session of a client of {namespace}", error)
        return sendable
