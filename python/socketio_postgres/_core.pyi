"""The compiled core. Private: use the classes of `socketio_postgres`, which document it for users."""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from types import GenericAlias
from typing import Any, Final, Generic, final

from socketio_postgres._typing import Data_co
from socketio_postgres.exceptions import SocketIOPostgresError

__version__: str
IS_DEBUG_BUILD: bool
"""True when built without optimisation; then it is several times slower."""

PLACE_SQL: str
"""An SQL expression, a text, that tells servers and databases apart."""
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
GAP: Final[int]
"""Item: messages will not come; the fields of `GapInfo`."""
MEMBERS: Final[int]
"""Item: the locks of the cluster's members that are held now; None once the listening session is lost."""
SEEN: Final[int]
"""Item: `(namespace, server id)`, a server that sent what concerns nobody here, told now and then."""

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

    def with_packet(self, packet: Sequence[Any]) -> Message:
        """The same broadcast with another packet.

        Raises:
            EncodeError: User data cannot travel; the path says which.
            TypeError: This is no broadcast.
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

    @property
    def packet_json(self) -> str | None:
        """JSON text of the packet of a broadcast, as it came or will go; None when it holds binary."""

    @property
    def plain_event(self) -> tuple[tuple[str, tuple[str, ...]], str, str] | None:
        """What passing a broadcast on takes, if it holds JSON, leaves nobody out and wants no answer; else None.

        Namespace and rooms, the sender, and the packet as it goes to clients: `2["event"]` or `2/nsp,["event"]`.
        """

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
def member_lock(uid: str) -> int:
    """Id of the advisory lock that the server with this id holds while its listening session lives."""

def new_event_id() -> str:
    """A UUID of version 7: unique, and later than the ones before in this process."""

def wait_for_dropped(seconds: float) -> int:
    """Block until no bus that was dropped without `close` has messages to commit; returns how many still have some."""

@final
class Inbox:
    """A queue filled by the background thread, and a descriptor that is readable while it is not empty."""

    def __new__(cls, limit_bytes: int) -> Inbox: ...
    def fileno(self) -> int: ...
    @property
    def is_empty(self) -> bool: ...
    def close(self) -> None:
        """Wake whoever waits, now and later; what it holds may still be taken."""

    @property
    def is_closed(self) -> bool: ...
    @property
    def dropped(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    def wait(self, seconds: float) -> bool:
        """Block, with the GIL released, until an item waits, it is closed or the time is over; True when one waits."""

    def drain(self, max_count: int, into: list[tuple[int, int, Any]] | None = None) -> list[tuple[int, int, Any]]:
        """Take up to `max_count` items: `(token, kind, value)`. An overflow becomes one item for each sender.

        They are appended to `into`, or to a new list, which is returned. When an exception comes meanwhile (Ctrl-C, no
        memory), `into` has those that were handed over by then, and the inbox still has the others. A value that cannot
        be made is replaced by the exception, as a failure, and counted in `dropped`.
        """

@final
class Session:
    """One connection for statements, opened on first use as the manager opens its connections."""

    def __new__(cls, dsn: str, answer_limit: float) -> Session:
        """`answer_limit`: seconds without an answer after which a statement is cancelled and the connection closed.

        Raises:
            OptionsError: The DSN is wrong.
        """

    @property
    def description(self) -> str:
        """What it connects to, without secrets."""

    def query(self, sql: str, inbox: Inbox, token: int) -> None:
        """Run statements without parameters; ends with the rows of the last one, as lists of texts."""

    def close(self, inbox: Inbox, token: int) -> None: ...

@final
class Framer:
    """Writes messages for transactions of somebody else. Needs no connection."""

    def __new__(
        cls,
        *,
        channel: str,
        table_name: str,
        payload_threshold: int,
        max_payload: int,
        signing_key: bytes | None,
    ) -> Framer: ...
    @property
    def table_name(self) -> str:
        """The attachment table, quoted."""

    def frame(self, message: Message) -> tuple[str, str, str | None]:
        """Channel, notification, and the attachment in base64 if there is one; all are ASCII.

        With an attachment, its id and `"}` must be appended to the notification. Two frames of equal messages differ.

        Raises:
            EncodeError, PayloadTooLargeError: The message cannot be sent.
        """

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
    def is_used(self) -> bool:
        """Whether anything was asked of it that may have opened a connection."""

    @property
    def table_name(self) -> str:
        """The attachment table, quoted."""

    @property
    def table_ddl(self) -> str:
        """The statements that create the attachment table."""

    def start_publisher(self, check_table: bool, inbox: Inbox, token: int) -> None: ...
    def start_listener(self, inbox: Inbox, token: int) -> None: ...
    def publish(self, message: Message, inbox: Inbox | None = None, token: int = 0) -> bool:
        """Append to the buffer; False when there was no room, so wait for it before the next one.

        With an inbox the commit is reported there.

        Raises:
            BufferFullError: There is no room, `on_full` is `raise`, or `drop` and the commit was to be reported.
        """

    def publish_many(self, messages: list[Message]) -> int:
        """Append messages to one transaction; returns how many the buffer had room for."""

    def find_place(self, needs_table: bool, inbox: Inbox, token: int) -> None:
        """Ask where the publisher's connection leads; the result is the value of `PLACE_SQL` there.

        It is a tuple with the full name of the attachment table, None unless it is needed.
        """

    def notify(self, channel: str, payload: str, inbox: Inbox, token: int) -> None:
        """Append a notification of the caller's own; its commit is reported to the inbox.

        Raises:
            BufferFullError: There is no room, and `on_full` is not `wait`.
        """

    def when_space(self, inbox: Inbox, token: int) -> None: ...
    def flush(self, inbox: Inbox, token: int) -> None:
        """Ends when all that was appended before is committed or failed."""

    def take_unreported(self) -> SocketIOPostgresError | None:
        """The first failure that nobody was told of since this was asked last, with the counts of all of them."""

    def self_test(self, inbox: Inbox, token: int) -> None:
        """Ends when all that was committed before has come back; fails with `SelfTestError`."""

    def mirror_rooms(self) -> None:
        """From now on messages for rooms without members here are dropped; there are none yet."""

    def enter_room(self, nsp: str, room: str | None) -> None:
        """A room, or with None the namespace, has members. Harmless when it is known."""

    def leave_room(self, nsp: str, room: str | None) -> None:
        """A room, or the namespace, has no more members."""

    def rooms_joined(self, nsp: str, rooms: list[str]) -> None:
        """A message that makes sockets join these rooms has been applied."""

    def listen(self, channel: str, inbox: Inbox, token: int) -> None: ...
    def unlisten(self, channel: str, inbox: Inbox, token: int) -> None: ...
    def ensure_table(self, inbox: Inbox, token: int) -> None: ...
    def insert_attachment(self, body: bytes, inbox: Inbox, token: int) -> None: ...
    def get_attachment(self, attachment_id: int, inbox: Inbox, token: int) -> None: ...
    def expire_attachments(self, age_seconds: float, inbox: Inbox, token: int) -> None: ...
    def migrate(self, sql: str, inbox: Inbox, token: int) -> None:
        """Run statements without parameters in one transaction, while no other process does so."""

    def close_listener(self, inbox: Inbox, token: int) -> None: ...
    def close_publisher(self, limit_seconds: float, inbox: Inbox, token: int) -> None: ...
    def release(self) -> None:
        """After closing: the background thread ends when no other object of the process needs it."""

    def stats(self) -> dict[str, Any]:
        """Counters, and how things are now.

        `publisher_outage` and `listener_outage` say why there is no connection: `kind` (name of the exception),
        `sqlstate` (None when it is not the server's), `text` and `since` (seconds as `time.time()` has it); None while
        there is one.
        """

@final
class StoredEvent(Generic[Data_co]):
    """An event as it is in the table. Immutable, compared by value; can be pickled.

    `data` and `metadata` are decoded when they are first asked for.
    """

    def __new__(
        cls,
        version: int,
        id: str,  # noqa: A002  (the column's name)
        aggregate_id: str,
        event_type: str,
        data_json: str | None = None,
        metadata_json: str | None = None,
        created_at_us: int | None = None,
    ) -> StoredEvent[Any]:
        """An event from its columns; `created_at_us` counts microseconds from 1970."""

    @property
    def version(self) -> int:
        """Its position among all events of the table."""

    @property
    def id(self) -> str:
        """Unique in the table."""

    @property
    def aggregate_id(self) -> str:
        """The aggregate, or stream, that it belongs to."""

    @property
    def event_type(self) -> str:
        """Its type."""

    @property
    def stream_name(self) -> str:
        """`stream_` and the aggregate id: go-sync-kit's channel."""

    @property
    def size_bytes(self) -> int:
        """About the memory that it takes before `data` and `metadata` are decoded."""

    @property
    def data(self) -> Data_co:
        """The data, decoded; None for `NULL` and for JSON `null`. Do not change it."""

    @property
    def metadata(self) -> Any:
        """The metadata, decoded: a dict or None, if its writer kept to that. Do not change it."""

    @property
    def data_json(self) -> str | None:
        """The data as JSON text; None for `NULL`."""

    @property
    def metadata_json(self) -> str | None:
        """The metadata as JSON text; None for `NULL`."""

    @property
    def created_at(self) -> datetime | None:
        """When its transaction began, by the server's clock, in UTC. Not in the order of versions."""

    def __eq__(self, other: object, /) -> bool: ...
    def __ne__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...
    def __reduce__(self) -> tuple[Any, ...]: ...
    def __class_getitem__(cls, key: Any) -> GenericAlias: ...

@final
class EventStore:
    """One event table. Nothing connects before the first operation; each reports its end to `inbox` under `token`."""

    def __new__(cls, settings: Any) -> EventStore:
        """From `EventStoreOptions`."""

    @property
    def description(self) -> str:
        """What it connects to, without secrets."""

    def table(self, suffix: str) -> str:
        """The table's name with something appended to it, quoted."""

    def ddl(self, parts: list[str]) -> str:
        """The script that creates parts of the schema, each unless it is there: those of `migrate`, and `settled`.

        Raises:
            OptionsError: The table's name is too long for side tables to be named after it.
        """

    def open(self, inbox: Inbox, token: int) -> None: ...
    def layout(self) -> dict[str, Any] | None:
        """What was found out about the table when it was last looked at."""

    def store(self, events: Iterable[Any], expected: dict[str, int], ticket: int, inbox: Inbox, token: int) -> int:
        """Store events; ends with a list of `(version, created_at, is_duplicate)`, or with `BufferFullError`.

        Returns:
            The call's ticket, to come again with after `BufferFullError`. At first it is 0.
        """

    def wait_for_room(self, ticket: int, inbox: Inbox, token: int) -> int:
        """Ends once the call of `store` with this ticket can be accepted; returns the ticket."""

    def give_up(self, ticket: int) -> None:
        """Let others go before a call that found no room and will not come again."""

    def add_index(self, kind: str, partitions: int, inbox: Inbox, token: int) -> None:
        """Make the index by "type", "category" or "partition", if it is not there; ends when it is valid."""

    def look_again(self, inbox: Inbox, token: int) -> None:
        """Read the layout of the table again."""

    def version_of(self, event_id: str, inbox: Inbox, token: int) -> None:
        """Ends with the version of the event with this id; 0 when there is none."""

    def checked(self, events: Iterable[Any]) -> list[tuple[str, str, str, str | None, str | None]]:
        """Id, aggregate id, type, data and metadata of events as they would be stored, once they were checked."""

    def importing(self, skips_existing: bool) -> Import:
        """To store very many events by COPY; those that are there are an error, or are left out."""

    def read(
        self, since: int, page_size: int, is_backwards: bool, conditions: list[tuple[str, str, list[str]]]
    ) -> Reading:
        """Begin to read all events, page by page."""

    def load(
        self,
        since: int,
        until: int,
        limit: int,
        is_backwards: bool,
        conditions: list[tuple[str, str, list[str]]],
        may_look: bool,
        max_bytes: int | None,
        inbox: Inbox,
        token: int,
    ) -> None:
        """Read events; ends with `(events, safe_since)`. Locks of writers are read if `may_look` and needed.

        With `max_bytes`, the page ends before an event that would exceed it, unless that is its first one.
        """

    def latest_version(self, is_settled: bool, inbox: Inbox, token: int) -> None: ...
    def settled_version(self, inbox: Inbox, token: int) -> None:
        """One look; ends with the version up to which all are final."""

    def migrate(self, part: str, inbox: Inbox, token: int) -> None:
        """Apply migrations, unless they are: of `events`, `subscriptions`, `guard`, `serial` or `go_notify`."""

    def query(self, sql: str, texts: list[str | None], inbox: Inbox, token: int) -> None:
        """Run a statement whose parameters and results are texts; ends with a list of rows."""

    def subscribe(self, conditions: list[tuple[str, str, list[str]]]) -> Subscription: ...
    def durable_changes(self) -> int:
        """How often durable subscriptions may have been changed by others, as far as was heard by this process."""

    def close(self, limit_seconds: float, inbox: Inbox, token: int) -> None: ...
    def take_failures(self) -> list[SocketIOPostgresError]:
        """Why subscriptions had to wait for a connection, each reason once, since this was asked last."""

    def stats(self) -> dict[str, Any]:
        """Counters, and how things are now; `listener_outage` and `reader_outage` as in `Bus.stats`."""

@final
class Import:
    """Chunks of events stored by COPY, each a transaction of its own; the next is made while one is stored."""

    def add(self, events: Iterable[Any], inbox: Inbox, token: int) -> None:
        """Store a chunk once the one before is stored; ends with the number of that one. No events: only wait."""

@final
class Reading:
    """Pages of events, read ahead by two. Without its last reference it stops."""

    def next(self, inbox: Inbox, token: int) -> None:
        """The next page, as `(events, 0)`; no events: the end."""

@final
class Subscription:
    """One reader of the store's feed. It has no position of its own: every question names one."""

    def begin(self, after: int | None, after_id: str | None, inbox: Inbox, token: int) -> None:
        """Check a start, None for the end of the table; ends with `(position, id)`, to ask from.

        With an id, the event at the start must have it. The id returned is None when it is not known.
        """

    def next(
        self,
        position: int,
        limit: int,
        reports_progress: bool,
        tells_caught_up: bool,
        patience_seconds: float,
        heeded: int | None,
        inbox: Inbox,
        token: int,
    ) -> None:
        """What comes after a position; ends with `(events, position, position_id, is_caught_up, reconnects)`.

        The id is that of the event at the position, or None if the position is the one that was asked from. Without
        events it ends after `patience_seconds`; earlier if it is to report progress, and there was some, or to tell
        that the subscription has caught up, or, with `heeded`, as soon as `durable_changes` of the store is another.

        A new question takes the place of one under way, which then ends with `ClosedError`.
        """

    def nudge(self) -> None:
        """Answer the question under way, or the next one, with what is known, even if it is nothing."""

    def close(self) -> None: ...
