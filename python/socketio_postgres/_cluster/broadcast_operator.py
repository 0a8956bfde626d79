"""The fluent part of Socket.IO: choose sockets and flags, then act. One implementation for every sender."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

from socketio_postgres._bus.messages import RESERVED_EVENTS, Message, MessageType, Rooms
from socketio_postgres._cluster.framer import LONGEST, Framer
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
    """Which sockets a call is for, and its flags. A tuple, because every `io.to(room)` creates one.

    Attributes:
        nsp: Namespace.
        rooms: Sockets in any of these rooms. None means all sockets, an empty tuple none.
        except_rooms: Without the sockets in any of these rooms.
        is_volatile: Clients that are not ready to receive may miss the event.
        compression: Whether transports should compress. None: as the server is configured.
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
        """A message to these sockets. `rooms` must not be an empty tuple, which would mean everybody on the wire."""
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
    """The name of an event and its arguments. A bare name is refused: it would be a sequence of letters."""
    if not isinstance(event, (list, tuple)) or not event:
        raise bad("events", event, "each one is a tuple or list of an event's name and its arguments")
    return event


def checked_timeout(seconds: Any) -> float:
    """A timeout in seconds. Socket.IO's own timeouts are in milliseconds."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds <= DAY:
        raise bad("timeout", seconds, "a time-out is a number of seconds, above 0 and at most a day")
    return float(seconds)


class Chain(Generic[Op]):
    """Selects sockets. Immutable: every call returns a new object.

    Without `to`, a chain selects all sockets of the namespace; `to([])` selects none.
    """

    _target: Target

    def _with(self, target: Target) -> Op:
        raise NotImplementedError

    def _changed(self, **changes: Any) -> Op:
        return self._with(self._target._replace(**changes))

    def to(self, room: Rooms) -> Op:
        """Select the sockets in a room, or in any of several rooms. Repeated calls add rooms."""
        return self._changed(rooms=_union(self._target.rooms or (), room_names(room)))

    def in_(self, room: Rooms) -> Op:
        """As `to`."""
        return self.to(room)

    def except_(self, room: Rooms) -> Op:
        """Leave out the sockets in a room, or in any of several rooms. A sid is a room, too."""
        return self._changed(except_rooms=_union(self._target.except_rooms, room_names(room)))

    @property
    def volatile(self) -> Op:
        """Allow servers to drop the event for clients that are not ready to receive."""
        return self._changed(is_volatile=True)

    def compress(self, compress: bool) -> Op:
        """Whether servers should compress the event, if their transport can. Default: as the server is configured."""
        return self._changed(compression=bool(compress))


class SocketActions(Generic[R]):
    """Actions on sockets other than emitting."""

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
            close: Close the underlying connection, which ends all its namespaces. Default False.
        """
        message = self._target.message(MessageType.DISCONNECT_SOCKETS, close=bool(close))
        return self._send(message, self._target)


class EmitActions(SocketActions[R]):
    """Actions on sockets that do not wait for answers."""

    _template: Message | None = None

    def emit(self, event: str, *args: Any) -> R:
        """Emit an event to the clients.

        Args:
            event: Name of the event.
            args: Any number of arguments: None, bool, int, float, str, bytes-like, and lists, tuples and dicts of
                these. A message that contains bytes, or has 8000 bytes of JSON or more, travels as an attachment. A
                tuple is one argument, which arrives as a list: `emit("e", (1, 2))` calls `e([1, 2])`. In `emit` of a
                server or a manager, a tuple is several arguments, as in python-socketio.

        Raises:
            EncodeError: An argument cannot be encoded. The exception's `path` locates it.
            OptionsError: The event is not a string, is empty, or is reserved.
            PayloadTooLargeError: The message is larger than `max_payload`, or the channel name has over 63 bytes.
        """
        return self._send(self._broadcast((event, *args)), self._target)

    def emit_many(self, events: Iterable[Sequence[Any]]) -> R:
        """Emit many events to the same clients, in order. This is faster than many calls of `emit`.

            io.to("prices").emit_many([("price", "EUR", 1.08), ("price", "JPY", 0.0066)])

        Args:
            events: For each event, a tuple or list of its name and arguments. A generator is read in chunks. If an
                event cannot be sent, the events after it are not sent, and up to 255 before it may not be sent either.

        Raises:
            As `emit`.
        """
        return self._send_many((self._broadcast(checked_call(event)) for event in events), self._target)

    def statement(
        self, event: str, *args: Any, paramstyle: str = "format", longest: float = LONGEST
    ) -> tuple[str, list[str]]:
        """An SQL statement that emits an event, and its parameters: for a transaction on any driver.

            sql, values = io.to("order-7").statement("paid", {"id": 7})
            cursor.execute(sql, values)

        Run it once, inside a transaction. The event is delivered if and only if that commits. Nothing checks that the
        driver's connection leads to the database on which the servers listen; `in_transaction` does.

        Args:
            event: Name of the event.
            args: As in `emit`.
            paramstyle: How parameters are written: `format` (`%s`), `qmark` (`?`) or `numeric_dollar` (`$1`).
            longest: As in `in_transaction`.

        Returns:
            The statement, and its parameters in order, each of them ASCII text. The statement returns one row of no
            interest, or none.

        Raises:
            As `emit`; OptionsError: also an unknown `paramstyle`.
        """
        message = self._broadcast((event, *args))
        return self._framer.statement(None if self._target.rooms == () else message, paramstyle, longest)

    @property
    def _framer(self) -> Framer:
        raise NotImplementedError

    def _broadcast(self, packet: Sequence[Any]) -> Message:
        checked_event(packet[0])
        # Most of the message is the same each time that an event goes to the same sockets.
        if self._template is None:
            self._template = self._target.message(MessageType.BROADCAST, packet=[])
        return self._template.with_packet(packet)

    def _send_many(self, messages: Iterator[Message], target: Target) -> R:
        raise NotImplementedError


class Sender(Protocol[R_co]):
    """Whose messages they are: an emitter, or a transaction."""

    @property
    def _framer(self) -> Framer: ...
    def _publish(self, message: Message, target: Target) -> R_co: ...
    def _publish_many(self, messages: Iterator[Message], target: Target) -> R_co: ...


class Sent(EmitActions[R]):
    """Sent by an emitter."""

    _sender: Sender[R]

    def _send(self, message: Message, target: Target) -> R:
        return self._sender._publish(message, target)  # noqa: SLF001  (the two belong together)

    def _send_many(self, messages: Iterator[Message], target: Target) -> R:
        return self._sender._publish_many(messages, target)  # noqa: SLF001

    @property
    def _framer(self) -> Framer:
        return self._sender._framer  # noqa: SLF001


class BroadcastOperator(Chain["BroadcastOperator[R]"], Sent[R]):
    """Some sockets of a namespace, on all servers."""

    def __init__(self, sender: Sender[R], target: Target) -> None:
        self._sender = sender
        self._target = target

    def _with(self, target: Target) -> BroadcastOperator[R]:
        return BroadcastOperator(self._sender, target)


class Namespace(Chain[BroadcastOperator[R]], Sent[R]):
    """All sockets of one namespace, on all servers. The start of a chain."""

    def __init__(self, sender: Sender[R], nsp: str = "/") -> None:
        self._sender = sender
        self._target = Target(nsp)
        self._chosen: dict[str, BroadcastOperator[R]] = {}

    def to(self, room: Rooms) -> BroadcastOperator[R]:
        """Select the sockets in a room, or in any of several rooms. Repeated calls add rooms."""
        if type(room) is not str:
            return super().to(room)
        # Otherwise each `io.to(room).emit(...)` would create the operator and its template again.
        chosen = self._chosen.get(room)
        if chosen is None:
            if len(self._chosen) >= REMEMBERED:
                self._chosen.clear()
            chosen = self._chosen[room] = super().to(room)
        return chosen

    def _with(self, target: Target) -> BroadcastOperator[R]:
        return BroadcastOperator(self._sender, target)

    def of(self, nsp: str) -> Namespace[R]:
        """Another namespace. A missing leading slash is added, as in Socket.IO."""
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
