"""The names of rooms, sids and namespaces; docs/rooms.md has the table, and tests/test_docs.py reads it."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socketio_postgres import OptionsError
from socketio_postgres._cluster.rooms import (
    bad,
    checked_namespace,
    checked_sid,
    chosen_namespace,
    chosen_rooms,
    room_key,
    room_name,
    room_names,
    skipped_names,
)


class Room(str, enum.Enum):
    LOBBY = "lobby"


class Level(int, enum.Enum):
    """Shows itself as `Level.TOP`, in every version of Python."""

    TOP = 7


class Careless(str):
    """Compares and hashes as it likes."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return False

    def __hash__(self) -> int:
        return 5


class Unshowable:
    """What an error should show, and cannot."""

    def __repr__(self) -> str:
        raise RuntimeError("not today")


@given(st.text(min_size=1), st.integers())
def test_a_room_is_its_name(text: str, number: int) -> None:
    assert room_name(text) == text
    assert room_name(number) == str(number)
    assert room_names([text, number, text]) == (text, str(number), text)
    assert room_key(text) is text
    assert room_key(number) == number


def test_subclasses_are_what_they_hold() -> None:
    for value, name in ((Room.LOBBY, "lobby"), (Careless("x"), "x"), (Level.TOP, "7")):
        assert room_name(value) == name
        assert type(room_name(value)) is str
    assert type(room_key(Room.LOBBY)) is str
    assert type(room_key(Careless("x"))) is str
    assert type(room_key(Level.TOP)) is int
    assert room_key(None) is None


def test_to_goes_before_room() -> None:
    assert chosen_rooms(None, None) is None
    assert chosen_rooms(None, "a") == ("a",)
    assert chosen_rooms("b", "a") == ("b",)
    assert chosen_rooms([], "a") == ()
    assert chosen_rooms(0, "a") == ("0",)


def test_nobody_among_the_skipped() -> None:
    assert skipped_names(None) == ()
    assert skipped_names([]) == ()
    assert skipped_names((None, "a", None)) == ("a",)


def test_very_many() -> None:
    names = [str(number) for number in range(100_000)]
    assert room_names(range_of := list(range(100_000))) == tuple(names)
    assert len(range_of) == len(set(room_names(set(names))))


def test_namespaces() -> None:
    assert chosen_namespace(None) == chosen_namespace("") == chosen_namespace("/") == "/"
    assert checked_namespace("chat") == checked_namespace("/chat") == "/chat"
    assert checked_namespace("/é") == "/é"
    assert type(checked_namespace(Careless("/x"))) is str


SURROGATE = "\ud800"

NOTHING: list[Any] = [True, 1.5, object(), {}, {"a": 1}, [["a"]], ["a", None], iter("a"), Unshowable(), 10**5000]

REFUSED: list[tuple[Callable[[Any], Any], str, list[Any], str]] = [
    (room_name, "room", [None, "", [], *NOTHING], "non-empty str or an int"),
    (room_names, "room", [None, "", [""], *NOTHING], "non-empty str or an int"),
    (room_key, "room", ["", [], *NOTHING], "non-empty str or an int"),
    (room_name, "room", [b"a", bytearray(b"a"), memoryview(b"a")], "decode bytes first"),
    (room_name, "room", [["a"], ("a",), {"a"}], "takes one of them"),
    (room_name, "room", [SURROGATE], "surrogate"),
    (room_names, "room", [["a", SURROGATE]], "surrogate"),
    (lambda value: chosen_rooms(value, None), "to", [[1.5]], "pass the name that you mean as a str"),
    (skipped_names, "skip_sid", ["", NOTHING], "non-empty str or an int"),
    (checked_sid, "sid", [None, "", 5, b"a", ["a"], *NOTHING], "non-empty str"),
    (checked_sid, "sid", [SURROGATE], "surrogate"),
    (checked_namespace, "namespace", [None, 5, b"/a", ["/a"], *NOTHING], "is a string"),
    (checked_namespace, "namespace", [f"/{SURROGATE}"], "surrogate"),
    (room_name, "room", [Unshowable()], "got <Unshowable>"),
    (room_name, "room", [10**5000], "got <int>"),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))  # the values themselves could not be shown
def test_what_is_refused(number: int) -> None:
    function, option, values, text = REFUSED[number]
    for value in values:
        with pytest.raises(OptionsError, match=text) as caught:
            function(value)
        assert caught.value.option == option


def test_a_long_value_is_not_shown_whole() -> None:
    error = bad("room", "x" * 10_000, "too long")
    assert len(str(error)) < 300
    assert error.value.endswith("…")
