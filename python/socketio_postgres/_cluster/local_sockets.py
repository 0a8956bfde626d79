"""What a node asks of the sockets of its own process, and how it sends to them: the port between cluster and server.

`socketio_sockets` answers from python-socketio's dictionaries. Rooms have their names on the wire: strings.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from socketio_postgres._bus.messages import Message

__all__ = ["AsyncLocalSockets", "LocalSockets", "SocketDetails", "Sockets"]


class SocketDetails(NamedTuple):
    """The details of a socket for other servers.

    Attributes:
        handshake: As in `handshake.handshake`.
        rooms: Names of the rooms it is in, the one named by its sid included.
        session: Its user session, or None.
        admin: What the Admin UI is shown; None when it is not used.
    """

    handshake: dict[str, Any]
    rooms: list[str]
    session: Any
    admin: dict[str, Any] | None


class Sockets(Protocol):
    """The part that waits for nothing. May be called from any thread of a server that has threads."""

    @property
    def has_server(self) -> bool:
        """Whether clients can connect here; otherwise the node only emits."""

    @property
    def json(self) -> Any:
        """The module whose `dumps` and `loads` encode and decode what an application sends."""

    def new_server_id(self) -> str:
        """Make an id for a server that begins: in a new process, or on a new event loop."""

    def namespaces(self) -> Iterable[object]:
        """Namespaces that clients may connect to, as far as they are known beforehand."""

    def watch(self, changed: Callable[[str, str | None], None]) -> None:
        """Call `changed` with namespace and name of a room that a client entered or left, from now on."""

    def has_clients(self, namespace: str | None = None) -> bool:
        """Whether there are clients in a namespace; of None, in any."""

    def occupied_rooms(self) -> list[tuple[str, str | None]]:
        """Namespace and name of each room with clients; the name None is the namespace itself."""

    def is_occupied(self, namespace: str, name: str | None) -> bool:
        """Whether a room has clients."""

    def rooms_here(self, namespace: str, names: Sequence[str] | None) -> list[Any] | None:
        """The rooms that have clients here, out of those named, as `deliver` takes them. None is everybody."""

    def sids_in(self, namespace: str, names: Sequence[str]) -> set[str]:
        """Sids in any of the rooms named."""

    def matching(self, namespace: str, to: Sequence[str], except_: Sequence[str]) -> list[str]:
        """Sids in any of the rooms `to` (everyone when empty) and in none of `except_`, each once."""

    def is_connected(self, sid: str, namespace: str) -> bool:
        """Whether a client is connected here."""

    def is_here(self, sid: str, namespace: str) -> bool:
        """Whether a client is connected here, or about to be."""

    def is_alive(self, sid: str, namespace: str) -> bool:
        """Whether a client is connected here, and its transport is open."""

    def has_hung_up(self, connection: str) -> bool:
        """Whether a connection is gone on which a client is about to connect."""

    def enter_room(self, sid: str, namespace: str, room: Any, eio_sid: str | None = None) -> None:
        """Add a client to a room.

        Raises:
            ValueError: The room is named by the sid of another client.
            KeyError: The client is gone.
        """

    def leave_room(self, sid: str, namespace: str, name: str) -> None:
        """Remove a client from a room."""

    def close_room(self, name: str, namespace: str) -> None:
        """Remove all clients from a room.

        Raises:
            ValueError: The room is named by the sid of a client.
        """

    def details(self, sid: str, namespace: str, failed: Callable[[Exception], None]) -> SocketDetails:
        """The details of a socket. `failed` receives the exceptions of details that are unknown.

        Raises:
            KeyError: It is gone.
        """

    def forget(self) -> None:
        """Forget all clients: they stayed with another process, or event loop."""

    def look_after(self, now: float, spawn: Callable[..., object], failed: Callable[[Exception], None]) -> None:
        """Called every second: forget clients that are gone and were never said goodbye to.

        Args:
            now: Time of the monotonic clock.
            spawn: Runs a function in the background.
            failed: Told what a handler of the application's raises.
        """

    def passage(self, namespace: str, rooms: tuple[str, ...]) -> Callable[[str], None] | None:
        """Sends the text of an event to the clients in `rooms` (everyone when empty), as long as no room changes.

        None when that takes more than putting it into the queues of a few clients.
        """


class AsyncLocalSockets(Sockets, Protocol):
    """The sockets of an event loop."""

    def start(self, run: Callable[[], Coroutine[Any, Any, None]]) -> Any:
        """Let `run` run in the background; returns what `cancel` ends."""

    async def deliver(
        self,
        message: Message | None,
        namespace: str,
        rooms: list[Any] | None,
        left_out: set[str],
        acknowledged: Callable[..., Any] | None,
        call: tuple[str, Any] | None = None,
        *,
        is_in_batch: bool = False,
    ) -> None:
        """Send an event to local clients.

        Args:
            message: The message that holds it; None when it is for local clients alone.
            namespace: Namespace.
            rooms: As `rooms_here` gives them; sids are rooms, too. None is everybody.
            left_out: Sids left out.
            acknowledged: Called with the arguments of each client's acknowledgement.
            call: Event and data as python-socketio's `emit` takes them; None when only the message knows.
            is_in_batch: More is delivered right after it, so there is no need to let other tasks run for a few clients.
        """

    async def disconnect(
        self, sid: str, namespace: str, close: bool = False, failed: Callable[[Exception], None] | None = None
    ) -> None:
        """Disconnect a client from a namespace. Runs the application's handlers.

        Args:
            sid: The client.
            namespace: Namespace.
            close: Close its connection, and so all its namespaces, too.
            failed: Told what a handler raises; then the client is disconnected all the same. Default: it is raised.
        """


class LocalSockets(Sockets, Protocol):
    """Blocking form of `AsyncLocalSockets`."""

    def start(self, run: Callable[[], None]) -> Any:
        """Blocking form of `AsyncLocalSockets.start`."""

    def deliver(
        self,
        message: Message | None,
        namespace: str,
        rooms: list[Any] | None,
        left_out: set[str],
        acknowledged: Callable[..., Any] | None,
        call: tuple[str, Any] | None = None,
        *,
        is_in_batch: bool = False,
    ) -> None:
        """Blocking form of `AsyncLocalSockets.deliver`."""

    def disconnect(
        self, sid: str, namespace: str, close: bool = False, failed: Callable[[Exception], None] | None = None
    ) -> None:
        """Blocking form of `AsyncLocalSockets.disconnect`."""
