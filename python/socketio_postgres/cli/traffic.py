"""`Traffic`: what messages say about the servers of a cluster. Notifications in, snapshots out; no I/O, no clock."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Final

from socketio_postgres import _core
from socketio_postgres._bus.messages import EMITTER_UID, MessageType
from socketio_postgres.codec import AttachmentHeader, decode
from socketio_postgres.exceptions import DecodeError

__all__ = ["Session", "Snapshot", "Traffic", "lock_class"]

SILENCE: Final = 15.0
"""Seconds without a message after which a sender without a lock is forgotten: heartbeats come more often."""

SENDER_LIMIT: Final = 1000
"""Senders that are told apart; messages of further ones still count for their namespaces."""

ROOM_LIMIT: Final = 10_000
"""Rooms that are counted in one interval."""

ROOMS_SHOWN: Final = 10
"""Rooms of a snapshot: those that most messages name."""

_END: Final = r'(?:,"b":"[^"]*")?(?:,"h":"[^"]*")?(?:,"attachmentId":"\d+")?\}$'

_NUMBER: Final = re.compile(r'(?:,"p":"(?P<emitter>[^"]*)")?,"n":(?P<number>\d+)' + _END)
"""The end of a message of this package: its number and, of an emitter, the emitter's own id before it."""

_IN_TRANSACTION: Final = re.compile(r',"k":"[^"]*"' + _END)
"""The end of a message that PostgreSQL sends with a transaction. It has no number."""


def lock_class(prefix: str) -> int:
    """First key of the advisory locks that the Python servers with a channel prefix hold."""
    return int.from_bytes(hashlib.sha256(f"socketio-postgres cluster {prefix}".encode()).digest()[:4], "big")


@dataclasses.dataclass(frozen=True)
class Session:
    """The listening session of a Python server, as PostgreSQL shows it.

    Attributes:
        lock: Second key of its advisory lock, which is made of the server's id.
        pid: Process id of the session on the database server.
        address: Where the server connects from; None on a Unix socket, and where the role may not see it.
    """

    lock: int
    pid: int
    address: str | None


@dataclasses.dataclass
class _Count:
    messages: int = 0
    bytes: int = 0

    def add(self, size: int) -> None:
        self.messages += 1
        self.bytes += size


@dataclasses.dataclass
class _Sender:
    language: str
    last_heard: float
    namespaces: set[str] = dataclasses.field(default_factory=set)
    numbers: dict[str, int] = dataclasses.field(default_factory=dict)
    count: _Count = dataclasses.field(default_factory=_Count)


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """One interval.

    Attributes:
        seconds: Its length.
        messages_per_second: Messages of all namespaces that are listened to.
        bytes_per_second: Bytes of their notifications and attachments.
        attachments_per_second: Of the messages, those that are attachments.
        servers: For each server `uid` (None: it is only known by its lock), `language` (`python`, `node`, `go`),
            `namespaces` in which it was heard, `messages_per_second`, `bytes_per_second`, `silent_seconds` since its
            last message (None: none was heard), `pid` and `address` of its listening session, if it holds a lock.
        emitters: The same of processes that only emit, without `pid` and `address`. What transactions send is one of
            them, with the language `sql`.
        namespaces: `namespace`, `servers` heard in it, `messages_per_second`, `bytes_per_second`.
        rooms: `namespace`, `room`, `messages_per_second` of the rooms that most messages name.
        gaps: Holes in the numbers of a sender, and connections that were lost, since the start.
        missing: Messages known to be missing since the start.
        undecodable: Notifications that are no messages, since the start.
    """

    seconds: float
    messages_per_second: float
    bytes_per_second: float
    attachments_per_second: float
    servers: list[dict[str, Any]]
    emitters: list[dict[str, Any]]
    namespaces: list[dict[str, Any]]
    rooms: list[dict[str, Any]]
    gaps: int
    missing: int
    undecodable: int


class Traffic:
    """Counts messages; `snapshot` ends an interval and begins the next one."""

    def __init__(self, namespaces: Iterable[str]) -> None:
        self.gaps = 0
        self.missing = 0
        self.undecodable = 0
        self.attachments: list[int] = []
        """Ids of the attachments of this interval, whose size only the table knows."""
        self._senders: dict[str, _Sender] = {}
        self._namespaces = {nsp: _Count() for nsp in namespaces}
        self._rooms: Counter[tuple[str, str]] = Counter()
        self._attachment_count = 0

    def take(self, payload: str, nsp: str, now: float) -> None:
        """Count a notification of a namespace's channel."""
        size = len(payload.encode())
        self._namespaces[nsp].add(size)
        try:
            message = decode(payload, nsp=nsp)
        except DecodeError:
            self.undecodable += 1
            return
        if isinstance(message, AttachmentHeader):
            self.attachments.append(message.attachment_id)
            self._attachment_count += 1
            header = json.loads(payload)
            kind, rooms = header.get("type"), header.get("rooms") or []
        else:
            kind, rooms = message.type, message.to
        for room in rooms:
            if len(self._rooms) < ROOM_LIMIT or (nsp, room) in self._rooms:
                self._rooms[nsp, room] += 1
        self._heard(payload, message.uid or EMITTER_UID, nsp, size, now, is_leaving=kind == MessageType.ADAPTER_CLOSE)

    def _heard(self, payload: str, uid: str, nsp: str, size: int, now: float, *, is_leaving: bool) -> None:
        found = _NUMBER.search(payload)
        if found is not None and found["emitter"]:
            uid = f"{uid}/{found['emitter']}"
        is_in_transaction = found is None and _IN_TRANSACTION.search(payload) is not None
        if is_in_transaction:
            uid = f"{uid}/sql"
        sender = self._senders.get(uid)
        if sender is None:
            if len(self._senders) >= SENDER_LIMIT:
                return
            if is_in_transaction:
                language = "sql"
            else:
                language = "python" if found is not None else "go" if payload.startswith('{"uid"') else "node"
            sender = self._senders[uid] = _Sender(language, now)
        sender.last_heard = now
        sender.count.add(size)
        sender.namespaces.add(nsp)
        if found is not None:
            number = int(found["number"])
            skipped = number - sender.numbers.get(nsp, number - 1) - 1
            if skipped > 0:
                self.lost(skipped)
            sender.numbers[nsp] = number
        if is_leaving:
            sender.namespaces.discard(nsp)
            sender.numbers.pop(nsp, None)
            if not sender.namespaces:
                del self._senders[uid]

    def lost(self, missing: int | None) -> None:
        """Count a gap."""
        self.gaps += 1
        self.missing += missing or 0

    def snapshot(self, seconds: float, now: float, sessions: Iterable[Session], attachment_bytes: int) -> Snapshot:
        """End the interval.

        Args:
            seconds: Its length.
            now: In the clock of `take`.
            sessions: The listening sessions of Python servers at this moment.
            attachment_bytes: Together of `attachments`, which is emptied.
        """
        by_lock = {session.lock: session for session in sessions}
        self._forget(now, by_lock)
        total = _Count(
            sum(each.messages for each in self._namespaces.values()),
            sum(each.bytes for each in self._namespaces.values()) + attachment_bytes,
        )
        result = Snapshot(
            seconds=round(seconds, 3),
            **_rates(total, seconds),
            attachments_per_second=_rate(self._attachment_count, seconds),
            servers=list(self._servers(seconds, now, by_lock)),
            emitters=[_told(uid, sender, seconds, now) for uid, sender in self._senders.items() if _is_emitter(uid)],
            namespaces=[
                {
                    "namespace": nsp,
                    "servers": sum(nsp in each.namespaces and not _is_emitter(u) for u, each in self._senders.items()),
                    **_rates(count, seconds),
                }
                for nsp, count in self._namespaces.items()
            ],
            rooms=[
                {"namespace": nsp, "room": room, "messages_per_second": _rate(count, seconds)}
                for (nsp, room), count in self._rooms.most_common(ROOMS_SHOWN)
            ],
            gaps=self.gaps,
            missing=self.missing,
            undecodable=self.undecodable,
        )
        self._begin()
        return result

    def _begin(self) -> None:
        self.attachments = []
        self._attachment_count = 0
        self._rooms.clear()
        for count in (*self._namespaces.values(), *(each.count for each in self._senders.values())):
            count.messages = count.bytes = 0

    def _forget(self, now: float, by_lock: dict[int, Session]) -> None:
        self._senders = {
            uid: sender
            for uid, sender in self._senders.items()
            if now - sender.last_heard < SILENCE or _core.member_lock(uid) in by_lock
        }

    def _servers(self, seconds: float, now: float, by_lock: dict[int, Session]) -> Iterator[dict[str, Any]]:
        unheard = dict(by_lock)
        for uid, sender in self._senders.items():
            if not _is_emitter(uid):
                session = unheard.pop(_core.member_lock(uid), None)
                yield _told(uid, sender, seconds, now) | _place(session)
        for session in unheard.values():
            nothing = _Sender("python", now)
            yield _told(None, nothing, seconds, now) | {"silent_seconds": None} | _place(session)


def _is_emitter(uid: str) -> bool:
    return uid == EMITTER_UID or uid.startswith(f"{EMITTER_UID}/")


def _told(uid: str | None, sender: _Sender, seconds: float, now: float) -> dict[str, Any]:
    return {
        "uid": uid,
        "language": sender.language,
        "namespaces": sorted(sender.namespaces),
        **_rates(sender.count, seconds),
        "silent_seconds": round(now - sender.last_heard, 3),
    }


def _place(session: Session | None) -> dict[str, Any]:
    return {"pid": session and session.pid, "address": session and session.address}


def _rates(count: _Count, seconds: float) -> dict[str, float]:
    return {
        "messages_per_second": _rate(count.messages, seconds),
        "bytes_per_second": _rate(count.bytes, seconds),
    }


def _rate(count: int, seconds: float) -> float:
    return round(count / seconds, 3)
