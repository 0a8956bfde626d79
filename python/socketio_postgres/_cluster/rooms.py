"""What may be a room, a sid or a namespace, and the name that each has on the wire. Every method asks here first.

Servers of other languages know rooms by strings only, so a room is its name: 42 and `"42"` are one room. What has no
name on which all servers agree is refused by the call, before anything changes. `docs/rooms.md` has the table.
"""

from __future__ import annotations

from typing import Any, Final

from socketio_postgres.exceptions import OptionsError

__all__ = [
    "bad",
    "checked_namespace",
    "checked_sid",
    "chosen_namespace",
    "chosen_rooms",
    "room_key",
    "room_name",
    "room_names",
    "skipped_names",
]

SHOWN: Final = 200
"""Letters of an offending value that an error shows."""

SEVERAL: Final = (list, tuple, set, frozenset)
"""What holds several rooms. Others are refused: a dict says more than rooms, a generator can be read only once."""


def bad(option: str, value: object, reason: str) -> OptionsError:
    """The error for an argument."""
    try:
        shown = repr(value)
    except Exception:  # noqa: BLE001  (an integer of too many digits, or an application's own repr)
        shown = f"<{type(value).__name__}>"
    if len(shown) > SHOWN:
        shown = f"{shown[:SHOWN]}…"
    return OptionsError(f"invalid {option}: {reason} (got {shown})", option=option, value=shown, reason=reason)


def _bad_room(option: str, room: object) -> OptionsError:
    if isinstance(room, (bytes, bytearray, memoryview)):
        advice = "; decode bytes first"
    elif isinstance(room, SEVERAL):
        advice = ", and this takes one of them" if option == "room" else ""
    elif room is None or isinstance(room, str):
        advice = ""
    else:
        advice = "; pass the name that you mean as a str"
    return bad(option, room, f"a room is a non-empty str or an int{advice}")


def _text(value: str, option: str) -> str:
    """The text of a str, also of one that shows itself otherwise, as the members of `class Room(str, Enum)` do.

    Raises:
        OptionsError: It has half of a surrogate pair, which no encoding can carry.
    """
    text = str.__str__(value)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise bad(option, text, "half of a surrogate pair is no text") from None
    return text


def room_name(room: object, option: str = "room") -> str:
    """The name of one room on the wire.

    Raises:
        OptionsError: It is no room.
    """
    if type(room) is str and room and room.isascii():
        return room
    if isinstance(room, str) and room:
        return _text(room, option)
    if isinstance(room, int) and not isinstance(room, bool):
        try:
            return int.__repr__(room)  # str() of an enum is its member's name
        except ValueError:
            pass  # more digits than Python is willing to write
    raise _bad_room(option, room)


def room_names(rooms: object, option: str = "room") -> tuple[str, ...]:
    """The names of one room, or of those in a list, tuple or set; of an empty one there are none.

    Raises:
        OptionsError: One of them is no room.
    """
    if type(rooms) is str and rooms and rooms.isascii():
        return (rooms,)
    if not isinstance(rooms, SEVERAL):
        return (room_name(rooms, option),)
    return tuple([room_name(room, option) for room in rooms])


def chosen_rooms(to: object, room: object) -> tuple[str, ...] | None:
    """The names of the rooms of an emit: `to`, or else `room`. None means everybody, an empty tuple nobody.

    Raises:
        OptionsError: One of them is no room.
    """
    if to is not None:
        return room_names(to, "to")
    return None if room is None else room_names(room)


def skipped_names(skip_sid: object) -> tuple[str, ...]:
    """The names of the rooms that an emit leaves out. None among them is ignored.

    Raises:
        OptionsError: One of them is neither a sid nor a room.
    """
    if skip_sid is None:
        return ()
    if isinstance(skip_sid, SEVERAL):
        skip_sid = [sid for sid in skip_sid if sid is not None]
    return room_names(skip_sid, "skip_sid")


def room_key(room: Any) -> str | int | None:
    """What python-socketio is to keep a room under, so that applications find it again; None is the namespace itself.

    Raises:
        OptionsError: It is no room.
    """
    if room is None:
        return None
    if isinstance(room, int) and not isinstance(room, bool):
        room_name(room)
        return int.__index__(room)
    return room_name(room)


def checked_sid(sid: object) -> str:
    """A sid.

    Raises:
        OptionsError: It is no text, or empty.
    """
    if not isinstance(sid, str) or not sid:
        raise bad("sid", sid, "a sid is a non-empty str")
    return sid if type(sid) is str and sid.isascii() else _text(sid, "sid")


def checked_namespace(namespace: object, option: str = "namespace") -> str:
    """A namespace; a missing leading slash is added, as in Socket.IO.

    Raises:
        OptionsError: It is no text.
    """
    if type(namespace) is str and namespace[:1] == "/" and namespace.isascii():
        return namespace
    if not isinstance(namespace, str):
        raise bad(option, namespace, "a namespace is a string")
    text = _text(namespace, option)
    return text if text.startswith("/") else f"/{text}"


def chosen_namespace(namespace: object) -> str:
    """A namespace where None stands for the default one.

    Raises:
        OptionsError: It is no text.
    """
    return "/" if namespace is None else checked_namespace(namespace)
