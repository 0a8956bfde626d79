"""From emit's `data` to a packet, with json modules of several kinds."""

from __future__ import annotations

import datetime as dt
import decimal
import json
from typing import Any

import pytest
import socketio

from socketio_postgres import EncodeError, Message, MessageType
from socketio_postgres._cluster.payload import arguments, packet_fields


class Fancy:
    """A json module that knows dates and decimals, as applications have them."""

    loads = staticmethod(json.loads)

    @staticmethod
    def dumps(value: object, **options: Any) -> str:
        return json.dumps(value, default=str, **options)


class Bytes:
    """One that writes bytes, as orjson does."""

    loads = staticmethod(json.loads)

    @staticmethod
    def dumps(value: object, **options: Any) -> bytes:
        return json.dumps(value, **options).encode()


def packet(data: Any, module: Any = json) -> object:
    return Message(MessageType.BROADCAST, "/", **packet_fields("e", data, module)).packet()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (None, []),
        ((), []),
        ("x", ["x"]),
        (0, [0]),
        (False, [False]),
        ("", [""]),
        ([], [[]]),
        ([1, 2], [[1, 2]]),
        ((1, 2), [1, 2]),
        ((None,), [None]),
        (([1], (2, 3)), [[1], [2, 3]]),
        ({"a": (1,)}, [{"a": [1]}]),
        (b"\x00", [b"\x00"]),
        ((b"\x00", {"x": bytearray(b"\x01")}), [b"\x00", {"x": b"\x01"}]),
        (memoryview(b"\x02"), [b"\x02"]),
        ([(b"\x03",)], [[[b"\x03"]]]),
    ],
)
def test_arguments(data: Any, expected: list[Any]) -> None:
    assert packet(data) == ["e", *expected]
    assert len(arguments(data)) == len(expected)


def test_a_custom_json_module_decides() -> None:
    day = dt.date(2026, 11, 21)
    data = ({"day": day, "price": decimal.Decimal("1.50")}, "é")
    assert packet(data, Fancy) == ["e", {"day": "2026-11-21", "price": "1.50"}, "é"]
    with pytest.raises(EncodeError, match="date"):
        packet(data)


def test_the_module_that_a_server_uses_by_default_is_none_of_these() -> None:
    module = socketio.AsyncServer(async_mode="asgi").packet_class.json
    assert packet_fields("e", (1, (b"x",)), module) == {"packet": ["e", 1, (b"x",)]}  # left to the core
    with pytest.raises(EncodeError) as caught:
        packet({"a": [object()]}, module)
    assert caught.value.path == 'args[0]["a"][0]'


def test_a_custom_json_module_and_binary() -> None:
    day = dt.date(2026, 11, 21)
    data = (b"\x00", {"day": day, "files": [b"\x01", bytearray(b"\x02")]})
    assert packet(data, Fancy) == ["e", b"\x00", {"day": "2026-11-21", "files": [b"\x01", b"\x02"]}]


def test_a_json_module_may_write_bytes() -> None:
    assert packet(("é", {"a": [1]}), Bytes) == ["e", "é", {"a": [1]}]
    assert packet((b"\x00", 1), Bytes) == ["e", b"\x00", 1]


@pytest.mark.parametrize("module", [json, Fancy, Bytes])
def test_what_no_module_can_write(module: Any) -> None:
    circle: list[object] = []
    circle.append(circle)
    for bad in (circle, float("nan"), {(1, 2): 3}):
        with pytest.raises(EncodeError) as caught:
            packet(bad, module)
        assert isinstance(caught.value, (TypeError, ValueError))
        assert caught.value.path


def test_the_text_of_a_custom_module_travels_as_it_is() -> None:
    class Spaced(Fancy):
        @staticmethod
        def dumps(value: object, **options: Any) -> str:
            del options
            return json.dumps(value, indent=1)

    fields = packet_fields("e", {"a": 1}, Spaced)
    assert fields == {"packet_json": '[\n "e",\n {\n  "a": 1\n }\n]'}
