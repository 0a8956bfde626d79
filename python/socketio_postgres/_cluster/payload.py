"""From the arguments of an emit to the packet of a message, with the json module the user chose."""

from __future__ import annotations

import json as stdlib_json
from typing import Any

from socketio_postgres._bus.messages import Message
from socketio_postgres.exceptions import DecodeError, EncodeError

__all__ = ["arguments", "event_of", "packet_fields", "plain", "value_fields"]


def event_of(message: Message, json: Any) -> list[Any]:
    """The event of a message: its name and its arguments.

    Raises:
        DecodeError: It has none.
    """
    packet = message.packet(json.loads)
    if not isinstance(packet, list) or not packet or not isinstance(packet[0], str):
        reason = "its packet does not begin with the name of an event"
        raise DecodeError(f"undecodable {message!r}: {reason}", reason=reason)
    return packet


def arguments(data: Any) -> list[Any]:
    """python-socketio's rule: a tuple is several arguments, None is none, anything else is one."""
    if isinstance(data, tuple):
        return list(data)
    return [] if data is None else [data]


def packet_fields(event: str, data: Any, json: Any) -> dict[str, Any]:
    """Keyword arguments for `Message` that hold `[event, *args]`.

    The core encodes it, unless the user chose another json module: that one may know types of its own, so its text
    is sent as it is.

    Raises:
        EncodeError: Something in `data` cannot travel.
    """
    return value_fields([event, *arguments(data)], json)


def value_fields(value: Any, json: Any) -> dict[str, Any]:
    """Keyword arguments for `Message` that hold one value.

    Raises:
        EncodeError: Something in it cannot travel.
    """
    if value is None:
        return {"packet_json": "null"}  # no packet at all would be an answer without a value
    if json.dumps is stdlib_json.dumps:  # a server's default module, engineio.json, writes with the same function
        return {"packet": value}
    try:
        if not _is_binary(value):
            return {"packet_json": dump(value, json)}
    except RecursionError as error:
        raise _too_deep() from error
    return {"packet": plain(value, json)}


def plain(value: Any, json: Any) -> Any:
    """A value in types that the core encodes; those of its own a custom json module has written.

    Raises:
        EncodeError: The module cannot write something in it.
    """
    if json.dumps is stdlib_json.dumps:
        return value
    try:
        # Bytes travel beside the text: take them out, let the module write and read the rest, put them back.
        attachments: list[Any] = []
        template = _taken_out(value, attachments)
        return _put_back(stdlib_json.loads(dump(template, json)), attachments)
    except RecursionError as error:
        raise _too_deep() from error


def _is_binary(value: Any) -> bool:
    """Whether a value has bytes in it. As python-socketio has it, which knows lists and dicts only."""
    if isinstance(value, (list, dict)):
        return any(map(_is_binary, value if isinstance(value, list) else value.values()))
    return isinstance(value, (bytes, bytearray))


def _taken_out(value: Any, attachments: list[Any]) -> Any:
    """The value with a placeholder for everything binary, which is added to `attachments`."""
    if isinstance(value, (bytes, bytearray)):
        attachments.append(value)
        return {"_placeholder": True, "num": len(attachments) - 1}
    if isinstance(value, list):
        return [_taken_out(each, attachments) for each in value]
    if isinstance(value, dict):
        return {key: _taken_out(each, attachments) for key, each in value.items()}
    return value


def _put_back(value: Any, attachments: list[Any]) -> Any:
    if isinstance(value, list):
        return [_put_back(each, attachments) for each in value]
    if isinstance(value, dict):
        if value.get("_placeholder") and "num" in value:
            return attachments[value["num"]]
        return {key: _put_back(each, attachments) for key, each in value.items()}
    return value


def _too_deep() -> EncodeError:
    reason = "nested too deeply (or it contains itself)"
    return EncodeError(f"cannot encode data: {reason}", path="data", reason=reason)


def dump(value: Any, json: Any) -> str:
    """Text of a value by a custom json module."""
    try:
        text = json.dumps(value, separators=(",", ":"))
    except RecursionError:
        raise
    except Exception as error:  # a user's module may raise anything
        raise EncodeError(f"cannot encode data: {error}", path="data", reason=str(error)) from error
    return text.decode() if isinstance(text, bytes) else str(text)
