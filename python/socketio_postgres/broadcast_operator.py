"""The fluent part of Socket.IO's emitter: choose rooms and flags, then emit. One implementation for every sender."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from socketio_postgres.exceptions import OptionsError
from socketio_postgres.messages import RESERVED_EVENTS, Message, MessageType, Rooms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["BroadcastOperator", "Namespace", "room_names"]

R = TypeVar("R")
"""What sending returns: None, or an awaitable."""


def room_names(rooms: Rooms, option: str = "room") -> tuple[str, ...]:
    """Names on the wire of one room or of several; peers know strings only, so `42` travels as `"42"`.

    Raises:
        OptionsError: A room is neither str nor int, or is empty.
    """
    several = rooms if isinstance(rooms, (list, tuple, set, frozenset)) else (rooms,)
    names = []
    for room in several:
        if isinstance(room, bool) or not isinstance(room, (str, int)) or room == "":
            raise OptionsError(
                f"invalid {option}: a room is a non-empty str or an int (got {room!r})",
                option=option,
                value=repr(room),
                reason="a room is a non-empty str or an int",
            )
        names.append(str(room))
    return tuple(names)


def check_event(event: object) -> str:
    """`event`, if it may be emitted.

    Raises:
        OptionsError: Not a string, empty, or reserved by Socket.IO (clients reject such packets).
    """
    if not isinstance(event, str) or not event:
        reason = "an event is a non-empty string"
    elif event in RESERVED_EVENTS:
        reason = "this name is reserved by Socket.IO"
    else:
        return event
    raise OptionsError(
        f"invalid event: {reason} (got {event!r})", option="event", value=repr(event), reason=reason
    )


class BroadcastOperator(Generic[R]):
    """Some sockets of a namespace, on all servers. Immutable: every call returns a new object.

    Without `to` all sockets of the namespace are meant; `to([])` means none.
    """

    def __init__(
        self,
        send: Callable[[Message | None], R],
        nsp: str,
        *,
        rooms: tuple[str, ...] | None = None,
        except_rooms: tuple[str, ...] = (),
        is_volatile: bool = False,
        use_compression: bool | None = None,
    ) -> None:
        self._send = send
        self._nsp = nsp
        self._rooms = rooms
        self._except = except_rooms
        self._is_volatile = is_volatile
        self._compress = use_compression

    def _with(self, **changes: Any) -> BroadcastOperator[R]:
        values: dict[str, Any] = {
            "rooms": self._rooms,
            "except_rooms": self._except,
            "is_volatile": self._is_volatile,
            "use_compression": self._compress,
        }
        return BroadcastOperator(self._send, self._nsp, **(values | changes))

    def to(self, room: Rooms) -> BroadcastOperator[R]:
        """Target the sockets in a room, or in any of several; repeated calls add rooms."""
        return self._with(rooms=_union(self._rooms or (), room_names(room)))

    def in_(self, room: Rooms) -> BroadcastOperator[R]:
        """As `to`."""
        return self.to(room)

    def except_(self, room: Rooms) -> BroadcastOperator[R]:
        """Leave out the sockets in a room, or in any of several. A sid is a room of its own."""
        return self._with(except_rooms=_union(self._except, room_names(room)))

    @property
    def volatile(self) -> BroadcastOperator[R]:
        """Allow servers to drop the event for clients that are not ready to receive."""
        return self._with(is_volatile=True)

    def compress(self, compress: bool) -> BroadcastOperator[R]:
        """Ask servers whose transport can compress to do so or not. Default: as the server is configured."""
        return self._with(use_compression=bool(compress))

    def _message(self, kind: MessageType, **fields: Any) -> Message | None:
        if self._rooms == ():
            return None
        return Message(kind, self._nsp, to=list(self._rooms or ()), except_=list(self._except), **fields)

    def emit(self, event: str, *args: Any) -> R:
        """Emit an event to the clients.

        Args:
            event: Name of the event.
            args: Any number of arguments: None, bool, int, float, str, bytes-like, and lists, tuples and dicts of
                these. From 8000 bytes of JSON on, or with bytes inside, the event travels as an attachment.

        Raises:
            EncodeError: An argument cannot travel; the path says which.
            OptionsError: The event is no string, empty or reserved.
            PayloadTooLargeError: Larger than `max_payload`, or the namespace's channel name exceeds 63 bytes.
        """
        packet = [check_event(event), *args]
        return self._send(
            self._message(
                MessageType.BROADCAST, packet=packet, volatile=self._is_volatile, compress=self._compress
            )
        )

    def sockets_join(self, rooms: Rooms) -> R:
        """Make the sockets join one room or several."""
        return self._send(self._message(MessageType.SOCKETS_JOIN, rooms=list(room_names(rooms))))

    def sockets_leave(self, rooms: Rooms) -> R:
        """Make the sockets leave one room or several."""
        return self._send(self._message(MessageType.SOCKETS_LEAVE, rooms=list(room_names(rooms))))

    def disconnect_sockets(self, close: bool = False) -> R:
        """Disconnect the sockets from the namespace.

        Args:
            close: Close the underlying connection, and so all its namespaces, too.
        """
        return self._send(self._message(MessageType.DISCONNECT_SOCKETS, close=bool(close)))


class Namespace(Generic[R]):
    """All sockets of one namespace, on all servers; the start of a chain."""

    def __init__(self, send: Callable[[Message | None], R], nsp: str = "/") -> None:
        self._send = send
        self._nsp = nsp

    def of(self, nsp: str) -> Namespace[R]:
        """Another namespace; a missing leading slash is added, as in Socket.IO."""
        if not isinstance(nsp, str):
            raise OptionsError(
                f"invalid nsp: a namespace is a string (got {nsp!r})",
                option="nsp",
                value=repr(nsp),
                reason="a namespace is a string",
            )
        return Namespace(self._send, nsp if nsp.startswith("/") else f"/{nsp}")

    @property
    def _all(self) -> BroadcastOperator[R]:
        return BroadcastOperator(self._send, self._nsp)

    def to(self, room: Rooms) -> BroadcastOperator[R]:
        """As `BroadcastOperator.to`."""
        return self._all.to(room)

    def in_(self, room: Rooms) -> BroadcastOperator[R]:
        """As `to`."""
        return self._all.to(room)

    def except_(self, room: Rooms) -> BroadcastOperator[R]:
        """As `BroadcastOperator.except_`."""
        return self._all.except_(room)

    @property
    def volatile(self) -> BroadcastOperator[R]:
        """As `BroadcastOperator.volatile`."""
        return self._all.volatile

    def compress(self, compress: bool) -> BroadcastOperator[R]:
        """As `BroadcastOperator.compress`."""
        return self._all.compress(compress)

    def emit(self, event: str, *args: Any) -> R:
        """As `BroadcastOperator.emit`, to all clients of the namespace."""
        return self._all.emit(event, *args)

    def sockets_join(self, rooms: Rooms) -> R:
        """As `BroadcastOperator.sockets_join`, for all sockets of the namespace."""
        return self._all.sockets_join(rooms)

    def sockets_leave(self, rooms: Rooms) -> R:
        """As `BroadcastOperator.sockets_leave`, for all sockets of the namespace."""
        return self._all.sockets_leave(rooms)

    def disconnect_sockets(self, close: bool = False) -> R:
        """As `BroadcastOperator.disconnect_sockets`, for all sockets of the namespace."""
        return self._all.disconnect_sockets(close)

    def server_side_emit(self, event: str, *args: Any) -> R:
        """Emit an event to the servers of the cluster themselves, not to clients.

        Raises:
            As `BroadcastOperator.emit`.
        """
        packet = [check_event(event), *args]
        return self._send(Message(MessageType.SERVER_SIDE_EMIT, self._nsp, packet=packet))


def _union(first: Iterable[str], second: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*first, *second]))
