"""From the arguments of an emit to the packet of a message, with the json module the user chose."""

from __future__ import annotations

import json as stdlib_json
from typing import Any

from socketio.packet import Packet

from socketio_postgres.exceptions import EncodeError

__all__ = ["arguments", "packet_fields"]


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
    packet = [event, *arguments(data)]
    if json is stdlib_json:
        return {"packet": packet}
    if not Packet.data_is_binary(packet):
        return {"packet_json": dump(packet, json)}
    # Bytes travel beside the text: take them out, let the module write and read the rest, put them back.
    template, attachments = Packet.deconstruct_binary(packet)
    return {"packet": Packet.reconstruct_binary(stdlib_json.loads(dump(template, json)), attachments)}


def dump(packet: list[Any], json: Any) -> str:
    """Text of `packet` by a custom json module."""
    try:
        text = json.dumps(packet, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise EncodeError(f"cannot encode data: {error}", path="data", reason=str(error)) from error
    return text.decode() if isinstance(text, bytes) else str(text)
