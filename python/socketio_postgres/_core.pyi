"""The compiled core. Private: use the classes of `socketio_postgres`, which document it for users."""

from collections.abc import Callable
from typing import Any, Final, final

from socketio_postgres.exceptions import SocketIOPostgresError

__version__: str
IS_DEBUG_BUILD: bool
"""True when built without optimisation; then it is several times slower."""

NOTIFY_LIMIT_BYTES: int
"""Longest payload of a notification: 7999."""
CHANNEL_LIMIT_BYTES: int
"""Longest channel name: 63."""
MAX_DEPTH: int
"""Deepest nesting of arrays and maps in user data: 100."""
EMITTER_UID: str
SOURCE: str
MESSAGE_TYPES: list[tuple[str, int]]

FINISHED: Final[int]
"""Item: an operation ended; the value is its result."""
FAILED: Final[int]
"""Item: an operation failed; the value is the exception."""
MESSAGE: Final[int]
"""Item: a `Message` of another sender."""
NOTIFICATION: Final[int]
"""Item: `(channel, payload, pid)`, only from a raw bus."""
LISTENING: Final[int]
"""Item: the listening session is active; True when an earlier one had been lost."""
FAILURE: Final[int]
"""Item: an exception that happened in the background."""

@final
class Message:
    """One message of the cluster protocol. Immutable, compared by value.

    User data stays encoded, as it was sent or received, until `packet`, `args` or `sockets` is called.
    """

    def __new__(
        cls,
        type: int,  # noqa: A002  (the name on the wire)
        nsp: str,
        *,
        uid: str = "",
        to: list[str] = ...,
        except_: list[str] = ...,
        volatile: bool = False,
        compress: bool | None = None,
        rooms: list[str] = ...,
        close: bool = False,
        request_id: str | None = None,
        packet: Any = None,
        packet_json: str | None = None,
        sockets: Any = None,
        client_count: int = 0,
        args: Any = None,
    ) -> Message:
        """A message from its fields; those that its type has no use for are ignored.

        Args:
            type: 1 to 13, see `MessageType`.
            nsp: Namespace, with its leading slash.
            uid: Server id of the sender; a publisher writes its own instead.
            to: Rooms whose sockets are meant; none means all.
            except_: Rooms whose sockets are left out.
            volatile: Clients that are not ready may miss it.
            compress: Whether transports should compress; None leaves it to them.
            rooms: Rooms to join or leave.
            close: Close the connections of the sockets, too.
            request_id: Under which answers are expected, or which request this answers.
            packet: `[event, *args]`, or the value of an answer.
            packet_json: The same as JSON text, from a custom json module.
            sockets: List of `{"id", "handshake", "rooms", "data"}`.
            client_count: Clients that a broadcast reached.
            args: All arguments of an acknowledgement, where they are not exactly one.

        Raises:
            EncodeError: User data cannot travel; the path says which.
            TypeError: A field that the type needs is missing.
            ValueError: No such type.
        """

    @property
    def type(self) -> int: ...
    @property
    def uid(self) -> str: ...
    @property
    def nsp(self) -> str: ...
    @property
    def is_from_go(self) -> bool:
        """Whether a Go server wrote it: Go wraps the value of an answer in an array, and expects the same."""

    @property
    def to(self) -> list[str]: ...
    @property
    def except_(self) -> list[str]: ...
    @property
    def volatile(self) -> bool: ...
    @property
    def compress(self) -> bool | None: ...
    @property
    def rooms(self) -> list[str]: ...
    @property
    def close(self) -> bool: ...
    @property
    def request_id(self) -> str | None: ...
    @property
    def client_count(self) -> int: ...
    @property
    def has_packet(self) -> bool:
        """Whether there is a packet at all; an answer without one has no value, not even None."""

    @property
    def is_binary(self) -> bool:
        """Whether user data is held as MessagePack: binary is inside, or it came as an attachment."""

    def packet(self, loads: Callable[[str], Any] | None = None) -> Any:
        """The decoded packet, None when there is none.

        Args:
            loads: Reads JSON; default `json.loads`.
        """

    def args(self, loads: Callable[[str], Any] | None = None) -> list[Any] | None: ...
    def sockets(self, loads: Callable[[str], Any] | None = None) -> list[Any] | None: ...
    def data(self) -> dict[str, Any]:
        """The field `data` as it is on the wire, decoded."""

    def __hash__(self) -> int: ...

def encode_json(message: Message) -> str: ...
def encode_msgpack(message: Message) -> bytes: ...
def is_attachment(message: Message, *, payload_threshold_bytes: int, max_payload_bytes: int) -> bool: ...
def decode_json(payload: str, nsp: str = "/") -> Message | tuple[str, str, int]: ...
def decode_msgpack(body: bytes, uid: str = "", nsp: str = "/") -> Message: ...
def channel_name(prefix: str, nsp: str) -> str: ...

@final
class Inbox:
    """A queue filled by the background thread, and a descriptor that is readable while it is not empty."""

    def __new__(cls, limit_bytes: int) -> Inbox: ...
    def fileno(self) -> int: ...
    @property
    def dropped(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    def wait(self, seconds: float) -> bool:
        """Block, with the GIL released, until an item waits or the time is over; True when one waits."""

    def drain(self, max_count: int) -> list[tuple[int, int, Any]]:
        """Take up to `max_count` items: `(token, kind, value)`."""

@final
class Bus:
    """Publisher, listener and attachment table of one database. Nothing connects before the first operation.

    Every operation reports its end to `inbox` under `token`.
    """

    def __new__(cls, settings: Any, inbox: Inbox, token: int) -> Bus:
        """From a `BusSettings`; background items go to `inbox` under `token`."""

    @property
    def description(self) -> str:
        """What it connects to, without secrets."""

    @property
    def table_ddl(self) -> str:
        """The statements that create the attachment table."""

    def start_publisher(self, check_table: bool, inbox: Inbox, token: int) -> None: ...
    def start_listener(self, inbox: Inbox, token: int) -> None: ...
    def publish(self, message: Message, inbox: Inbox | None = None, token: int = 0) -> bool:
        """Append to the buffer; False when it is full. With an inbox the commit is reported there."""

    def notify(self, channel: str, payload: str, inbox: Inbox | None = None, token: int = 0) -> bool: ...
    def when_space(self, inbox: Inbox, token: int) -> None: ...
    def flush(self, inbox: Inbox, token: int) -> None:
        """Ends when all that was appended before is committed or failed."""

    def take_unreported(self) -> tuple[int, SocketIOPostgresError | None]:
        """Messages that failed, with nobody told of each, since this was asked last: how many, and why the first."""

    def listen(self, channel: str, inbox: Inbox, token: int) -> None: ...
    def unlisten(self, channel: str, inbox: Inbox, token: int) -> None: ...
    def ensure_table(self, inbox: Inbox, token: int) -> None: ...
    def insert_attachment(self, body: bytes, inbox: Inbox, token: int) -> None: ...
    def get_attachment(self, attachment_id: int, inbox: Inbox, token: int) -> None: ...
    def expire_attachments(self, age_seconds: float, inbox: Inbox, token: int) -> None: ...
    def close_listener(self, inbox: Inbox, token: int) -> None: ...
    def close_publisher(self, limit_seconds: float, inbox: Inbox, token: int) -> None: ...
    def stats(self) -> dict[str, Any]: ...
