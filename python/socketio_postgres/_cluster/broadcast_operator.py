"""The fluent part of Socket.IO: choose sockets and flags, then act. One implementation for every sender."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

from socketio_postgres._bus.messages import RESERVED_EVENTS, Message, MessageType, Rooms
from socketio_postgres._cluster.rooms import bad, checked_namespace, room_names

__all__ = ["BroadcastOperator", "Chain", "Namespace", "SocketActions", "Target"]

R = TypeVar("R")
"""What sending returns: None, or a coroutine."""

R_co = TypeVar("R_co", covariant=True)

Op = TypeVar("Op")
"""What choosing returns."""

DAY: Final = 86_400.0

REMEMBERED: Final = 256
"""Rooms of a namespace whose chains are kept for the next time."""


class Target(NamedTuple):
    """Which sockets are meant, and how to treat them. A tuple, because every `io.to(room)` makes one.

    Attributes:
        nsp: Namespace.
        rooms: Sockets in any of these; None means all, an empty tuple nobody.
        except_rooms: But not those in any of these.
        is_volatile: Clients that are not ready may miss it.
        compression: Whether transports should compress; None leaves it to them.
        is_local: Only sockets of this process.
        timeout: Seconds to wait for answers.
    """

    nsp: str
    rooms: tuple[str, ...] | None = None
    except_rooms: tuple[str, ...] = ()
    is_volatile: bool = False
    compression: bool | None = None
    is_local: bool = False
    timeout: float = 5.0

    def message(self, kind: MessageType, **fields: Any) -> Message:
        """A message to these sockets. Not for an empty tuple of rooms: on the wire that would mean everybody."""
        return Message(
            kind,
            self.nsp,
            to=list(self.rooms or ()),
            except_=list(self.except_rooms),
            volatile=self.is_volatile,
            compress=self.compression,
            **fields,
        )


def checked_event(event: object) -> str:
    """`event`, if it may be emitted.

    Raises:
        OptionsError: Not a string, empty, or reserved by Socket.IO (clients reject such packets).
    """
    if not isinstance(event, str) or not event:
        raise bad("event", event, "an event is a non-empty string")
    if event in RESERVED_EVENTS:
        raise bad("event", event, "this name is reserved by Socket.IO")
    return event


def checked_call(event: object) -> Sequence[Any]:
    """The name of an event and its arguments; a bare name would otherwise be taken for a sequence of letters."""
    if not isinstance(event, (list, tuple)) or not event:
        raise bad("events", event, "each one is a tuple or list of an event's name and its arguments")
    return event


def checked_timeout(seconds: Any) -> float:
    """A time-out in seconds; Socket.IO's own are in milliseconds."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds <= DAY:
        raise bad("timeout", seconds, "a time-out is a number of seconds, above 0 and at most a day")
    return float(seconds)


class Chain(Generic[Op]):
    """Choosing sockets. Immutable: every call returns a new object.

    Without `to` all sockets of the namespace are meant; `to([])` means none.
    """

    _target: Target

    def _with(self, target: Target) -> Op:
        raise NotImplementedError

    def _changed(self, **changes: Any) -> Op:
        return self._with(self._target._replace(**changes))

    def to(self, room: Rooms) -> Op:
        """Target the sockets in a room, or in any of several; repeated calls add rooms."""
        return self._changed(rooms=_union(self._target.rooms or (), room_names(room)))

    def in_(self, room: Rooms) -> Op:
        """As `to`."""
        return self.to(room)

    def except_(self, room: Rooms) -> Op:
        """Leave out the sockets in a room, or in any of several. A sid is a room of its own."""
        return self._changed(except_rooms=_union(self._target.except_rooms, room_names(room)))

    @property
    def volatile(self) -> Op:
        """Allow servers to drop the event for clients that are not ready to receive."""
        return self._changed(is_volatile=True)

    def compress(self, compress: bool) -> Op:
        """Ask servers whose transport can compress to do so or not. Default: as the server is configured."""
        return self._changed(compression=bool(compress))


class SocketActions(Generic[R]):
    """What can be done to sockets besides emitting to them."""

    _target: Target

    def _send(self, message: Message, target: Target) -> R:
        raise NotImplementedError

    def sockets_join(self, rooms: Rooms) -> R:
        """Make the sockets join one room or several."""
        fields = {"rooms": list(room_names(rooms))}
        return self._send(self._target.message(MessageType.SOCKETS_JOIN, **fields), self._target)

    def sockets_leave(self, rooms: Rooms) -> R:
        """Make the sockets leave one room or several."""
        fields = {"rooms": list(room_names(rooms))}
        return self._send(self._target.message(MessageType.SOCKETS_LEAVE, **fields), self._target)

    def disconnect_sockets(self, close: bool = False) -> R:
        """Disconnect the sockets from the namespace.

        Args:
            close: Close the underlying connection, and so all its namespaces, too.
        """
        message = self._target.message(MessageType.DISCONNECT_SOCKETS, close=bool(close))
        return self._send(message, self._target)


class EmitActions(SocketActions[R]):
    """Everything that can be done to sockets without waiting for answers."""

    _template: Message | None = None

    def emit(self, event: str, *args: Any) -> R:
        """Emit an event to the clients.

        Args:
            event: Name of the event.
            args: Any number of arguments: None, bool, int, float, str, bytes-like, and lists, tuples and dicts
                of these. From 8000 bytes of JSON on, or with bytes inside, it travels as an attachment. A tuple is
                one argument, a list to clients: `emit("e", (1, 2))` calls `e([1, 2])`. To `emit` of a server or a
                manager it is several arguments, as python-socketio has it.

        Raises:
            EncodeError: An argument cannot travel; the path says which.
            OptionsError: The event is no string, empty or reserved.
            PayloadTooLargeError: Larger than `max_payload`, or the channel name exceeds 63 bytes.
        """
        return self._send(self._broadcast((event, *args)), self._target)

    def emit_many(self, events: Iterable[Sequence[Any]]) -> R:
        """Emit many events to the same clients, in order, for less than as many calls of `emit`.

            io.to("prices").emit_many([("price", "EUR", 1.08), ("price", "JPY", 0.0066)])

        Args:
            events: Each one the name of an event and its arguments. A generator is read piece by piece. When one
                cannot be sent, those after it are not, and up to 255 before it may not be, either.

        Raises:
            As `emit`.
        """
        return self._send_many((self._broadcast(checked_call(event)) for event in events), self._target)

    def _broadcast(self, packet: Sequence[Any]) -> Message:
        checked_event(packet[0])
        # Whoever emits to the same sockets again and again spares what is the same each time.
        if self._template is None:
            self._template = self._target.message(MessageType.BROADCAST, packet=[])
        return self._template.with_packet(packet)

    def _send_many(self, messages: Iterator[Message], target: Target) -> R:
        raise NotImplementedError


class Sender(Protocol[R_co]):
    """Whose messages they are: an emitter."""

    def _publish(self, message: Message, target: Target) -> R_co: ...
    def _publish_many(self, messages: Iterator[Message], target: Target) -> R_co: ...


class Sent(EmitActions[R]):
    """Sent by an emitter."""

    _sender: Sender[R]

    def _send(self, message: Message, target: Target) -> R:
        return self._sender._publish(message, target)  # noqa: SLF001  (the two belong together)

    def _send_many(self, messages: Iterator[Message], target: Target) -> R:
        return self._sender._publish_many(messages, target)  # noqa: SLF001


class BroadcastOperator(Chain["BroadcastOperator[R]"], Sent[R]):
    """Some sockets of a namespace, on all servers."""

    def __init__(self, sender: Sender[R], target: Target) -> None:
        self._sender = sender
        self._target = target

    def _with(self, target: Target) -> BroadcastOperator[R]:
        return BroadcastOperator(self._sender, target)


class Namespace(Chain[BroadcastOperator[R]], Sent[R]):
    """All sockets of one namespace, on all servers; the start of a chain."""

    def __init__(self, sender: Sender[R], nsp: str = "/") -> None:
        self._sender = sender
        self._target = Target(nsp)
        self._chosen: dict[str, BroadcastOperator[R]] = {}

    def to(self, room: Rooms) -> BroadcastOperator[R]:
        """Target the sockets in a room, or in any of several; repeated calls add rooms."""
        if type(room) is not str:
            return super().to(room)
        # `io.to(room).emit(...)` again and again would otherwise choose, and make the template, each time.
        chosen = self._chosen.get(room)
        if chosen is None:
            if len(self._chosen) >= REMEMBERED:
                self._chosen.clear()
            chosen = self._chosen[room] = super().to(room)
        return chosen

    def _with(self, target: Target) -> BroadcastOperator[R]:
        return BroadcastOperator(self._sender, target)

    def of(self, nsp: str) -> Namespace[R]:
        """Another namespace; a missing leading slash is added, as in Socket.IO."""
        return Namespace(self._sender, checked_namespace(nsp, "nsp"))

    def server_side_emit(self, event: str, *args: Any) -> R:
        """Emit an event to the servers of the cluster themselves, not to clients.

        Raises:
            As `emit`.
        """
        packet = [checked_event(event), *args]
        return self._send(Message(MessageType.SERVER_SIDE_EMIT, self._target.nsp, packet=packet), self._target)


def _union(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(first + second)) if first or len(second) > 1 else second
