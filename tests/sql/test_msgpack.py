"""Large messages are MessagePack, made in PL/pgSQL; our decoder and a third one read what was meant."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.types.json import Json

from socketio_postgres import Message
from socketio_postgres.codec import decode, encode_msgpack
from tests.fixtures.database import Database

ENCODE = "SELECT socketio._msgpack(%s::jsonb)"
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
NUMBERS = st.one_of(
    st.integers(-(2**70), 2**70),
    st.sampled_from([sign * 2**power + step for power in range(66) for step in (-1, 0, 1) for sign in (1, -1)]),
    st.floats(allow_nan=False, allow_infinity=False),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=20), st.dictionaries(TEXT, inner, max_size=20)),
    max_leaves=40,
)


def encoded(connection: psycopg.Connection, value: Any) -> bytes:
    """A value as the database encodes it."""
    row = connection.execute(ENCODE, [Json(value)]).fetchone()
    assert row is not None
    return bytes(row[0])


def as_jsonb(connection: psycopg.Connection, value: Any) -> Any:
    """The value as jsonb keeps it: numbers are numerics."""
    row = connection.execute("SELECT %s::jsonb::text", [Json(value)]).fetchone()
    assert row is not None
    return json.loads(row[0], parse_int=_of_64_bits)


def _of_64_bits(text: str) -> int | float:
    number = int(text)
    return number if -(2**63) <= number < 2**64 else float(number)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(value=VALUES)
def test_any_json(psql: psycopg.Connection, value: Any) -> None:
    body = encoded(psql, value)
    expected = as_jsonb(psql, value)
    assert repr(msgpack.unpackb(body, strict_map_key=False)) == repr(expected)
    # The shortest form of everything, as every encoder writes it.
    message = Message(3, "/", packet=["e", expected])
    assert encode_msgpack(message).endswith(body)


SIZES = (0, 1, 15, 16, 31, 32, 255, 256, 65535, 65536)


@pytest.mark.parametrize("size", SIZES)
def test_every_class_of_length(psql: psycopg.Connection, size: int) -> None:
    texts = ["x" * size, "é" * (size // 2) + "x" * (size % 2)]
    for value in [*texts, [7] * size, {str(number): number for number in range(size)}]:
        body = encoded(psql, value)
        assert msgpack.unpackb(body) == value
        assert len(body) == len(msgpack.packb(value))
    packet = ["e", *texts]
    frame = b"\x81\xa4data\x81\xa6packet\x83\xa4type\x02\xa3nsp\xa1/\xa4data" + encoded(psql, packet)
    whole = b"\x82\xa4type\x03" + frame[1:]
    assert decode(whole).packet() == packet  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "body"),
    [
        ("18446744073709551615", b"\xcf" + b"\xff" * 8),
        ("18446744073709551616", msgpack.packb(2.0**64)),
        ("-9223372036854775808", b"\xd3\x80" + b"\0" * 7),
        ("-9223372036854775809", msgpack.packb(-(2.0**63))),
        ("1.0", msgpack.packb(1.0)),
        ("1e2", b"\x64"),
        ("0.1", msgpack.packb(0.1)),
        ("3.14159265358979323846264338327950288", msgpack.packb(3.141592653589793)),
        ("5e-324", msgpack.packb(5e-324)),
        ("1e-400", msgpack.packb(0.0)),
        ("-1e-400", msgpack.packb(0.0)),
        ("0.000", msgpack.packb(0.0)),
    ],
)
def test_numbers(psql: psycopg.Connection, text: str, body: bytes) -> None:
    row = psql.execute(ENCODE, [text]).fetchone()
    assert row is not None
    assert bytes(row[0]) == body


def test_a_number_that_no_double_holds(psql: psycopg.Connection) -> None:
    with pytest.raises(psycopg.errors.NumericValueOutOfRange):
        psql.execute(ENCODE, ["1e400"])


def test_the_session_does_not_matter(installed: Database, psql: psycopg.Connection) -> None:
    """Not how it reads backslashes, nor how it shows bytes and numbers."""
    for setting in (
        "standard_conforming_strings = off", "escape_string_warning = off", "bytea_output = escape",
        "extra_float_digits = -15", "search_path = ''", "lc_numeric = 'C'", "array_nulls = off",
        "transform_null_equals = on",
    ):  # fmt: skip
        psql.execute(f"SET {setting}")
    psql.execute("SELECT socketio.emit('e', pg_catalog.jsonb_build_array(pg_catalog.repeat('x', 9000), 0.1, 300))")
    body = installed.value("SELECT payload FROM public.socket_io_attachments")
    assert isinstance(body, bytes)
    assert decode(body).packet() == ["e", "x" * 9000, 0.1, 300]  # type: ignore[union-attr]
