"""Objects that do harm while they are encoded: the answer is an `EncodeError` or a message, never a panic."""

from __future__ import annotations

import collections
import contextlib
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socketio_postgres import EncodeError, Message, MessageType, _core

HALF_A_PAIR = "\ud800"
"""JSON for it is made by Python code, during which others may run."""


def encoded(value: object) -> Any:
    """What arrives."""
    message = Message(MessageType.SERVER_SIDE_EMIT, "/", packet=["event", value])
    if message.is_binary:
        return _core.decode_msgpack(_core.encode_msgpack(message)).packet()[1]
    return message.packet()[1]


class Nasty:
    """Makes values whose code changes what they stand in."""

    def __init__(self) -> None:
        self.dicts: list[dict[Any, Any]] = []
        self.lists: list[list[Any]] = []

    def harm(self) -> None:
        """Change the size of everything."""
        for entries in self.dicts:
            for key in list(entries)[::2]:
                del entries[key]
        for items in self.lists:
            del items[::2]

    def float_key(self) -> float:
        """A key with a `repr` of its own."""
        nasty = self

        class Key(float):
            def __repr__(self) -> str:
                nasty.harm()
                return "1.5"

        return Key(1.5)

    def integer(self) -> int:
        """An integer too large for MessagePack, with a float of its own."""
        nasty = self

        class Integer(int):
            def __float__(self) -> float:
                nasty.harm()
                raise KeyboardInterrupt

            def __repr__(self) -> str:
                raise KeyboardInterrupt

        return Integer(2**70)

    def binary(self) -> bytearray:
        """Bytes with bytes of their own."""
        nasty = self

        class Binary(bytearray):
            def __bytes__(self) -> bytes:
                nasty.harm()
                return b"other"

        return Binary(b"bytes")

    def text(self) -> str:
        """A string with an encoding of its own."""

        class Text(str):
            __slots__ = ()

            def encode(self, *_: Any) -> bytes:
                raise KeyboardInterrupt

            def __str__(self) -> str:
                raise KeyboardInterrupt

        return Text("text" + HALF_A_PAIR)

    def container(self) -> object:
        """A dict and a list that look different to Python code."""

        class Dict(dict[Any, Any]):
            def items(self) -> Any:
                raise KeyboardInterrupt

            def __len__(self) -> int:
                return sys.maxsize

            def __iter__(self) -> Iterator[Any]:
                raise KeyboardInterrupt

        class List(list[Any]):
            def __len__(self) -> int:
                return sys.maxsize

            def __getitem__(self, _: Any) -> Any:
                raise KeyboardInterrupt

            def __iter__(self) -> Iterator[Any]:
                raise KeyboardInterrupt

        return Dict(a=List([1, 2]))

    def unknown(self) -> object:
        """An object of a kind with a name of its own."""
        nasty = self

        class Meta(type):
            def __getattribute__(cls, name: str) -> Any:
                nasty.harm()
                raise ValueError(name)

        class Unknown(metaclass=Meta):
            pass

        return Unknown()


def test_what_runs_no_code_of_the_values_own() -> None:
    nasty = Nasty()
    floats = {nasty.float_key(): 1, "b": 2, "c": 3}
    nasty.dicts.append(floats)
    assert encoded(floats) == {"1.5": 1, "b": 2, "c": 3}
    numbers = [nasty.integer(), b"x", 2]
    nasty.lists.append(numbers)
    assert encoded(numbers) == [2.0**70, b"x", 2]
    assert encoded([nasty.integer()]) == [2**70]
    binaries = [nasty.binary(), 1, 2]
    nasty.lists.append(binaries)
    assert encoded(binaries) == [b"bytes", 1, 2]
    assert encoded(nasty.container()) == {"a": [1, 2]}
    assert encoded(nasty.text()) == "text" + HALF_A_PAIR


class Unjust(Mapping[str, int]):
    """A mapping that is no dict."""

    def __getitem__(self, key: str) -> int:
        raise KeyboardInterrupt

    def __iter__(self) -> Iterator[str]:
        raise KeyboardInterrupt

    def __len__(self) -> int:
        return sys.maxsize


def _deep() -> list[Any]:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    return value


def _own_child() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["self"] = [value]
    return value


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Unjust, "Unjust is not JSON serializable"),
        (lambda: (number for number in range(3)), "generator is not JSON serializable"),
        (lambda: {1, 2}, "set is not JSON serializable"),
        (Nasty().unknown, "unknown is not JSON serializable"),
        (lambda: collections.UserDict(a=1), "UserDict is not JSON serializable"),
        (_deep, "nested deeper"),
        (lambda: [_deep(), b"binary"], "nested deeper"),
        (_own_child, "nested deeper"),
        (lambda: {(1, 2): 3}, "keys must be str"),
    ],
)
def test_what_cannot_travel_is_refused(make: Callable[[], object], reason: str) -> None:
    with pytest.raises(EncodeError, match=reason):
        encoded(make())


@pytest.mark.parametrize("is_binary", [False, True])
def test_a_dict_or_list_that_changes_meanwhile_is_refused(is_binary: bool) -> None:
    """Code of others runs while the JSON of half a surrogate pair is made."""
    tail = [b"x"] if is_binary else []
    for harmed in ({f"k{n}": HALF_A_PAIR for n in range(8)}, [HALF_A_PAIR] * 8):

        def harm(frame: FrameType, what: str, _: object, harmed: Any = harmed) -> None:
            if (what, frame.f_code.co_name) != ("call", "dumps"):
                return
            if isinstance(harmed, dict):
                harmed[f"new{len(harmed)}"] = 1
            else:
                harmed.clear()

        sys.setprofile(harm)
        try:
            with pytest.raises(EncodeError, match=r"changed while it was being encoded"):
                Message(MessageType.SERVER_SIDE_EMIT, "/", packet=["event", harmed, *tail])
        finally:
            sys.setprofile(None)


def _leaves() -> st.SearchStrategy[Callable[[Nasty], Any]]:
    plain = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(max_size=8))
    nasty = st.sampled_from([Nasty.integer, Nasty.binary, Nasty.text, Nasty.container, Nasty.unknown])
    return nasty | plain.map(lambda value: lambda _: value)


def _containers(inner: st.SearchStrategy[Callable[[Nasty], Any]]) -> st.SearchStrategy[Callable[[Nasty], Any]]:
    def a_list(makers: list[Callable[[Nasty], Any]]) -> Callable[[Nasty], Any]:
        def make(nasty: Nasty) -> list[Any]:
            nasty.lists.append([make(nasty) for make in makers])
            return nasty.lists[-1]

        return make

    def a_dict(makers: dict[str, Callable[[Nasty], Any]]) -> Callable[[Nasty], Any]:
        def make(nasty: Nasty) -> dict[Any, Any]:
            value = {key: make(nasty) for key, make in makers.items()}
            nasty.dicts.append({nasty.float_key(): None, **value})
            return nasty.dicts[-1]

        return make

    return st.lists(inner, max_size=4).map(a_list) | st.dictionaries(st.text(max_size=3), inner, max_size=4).map(a_dict)


@given(st.recursive(_leaves(), _containers, max_leaves=12))
def test_anything_is_encoded_or_refused(make: Callable[[Nasty], Any]) -> None:
    with contextlib.suppress(EncodeError):
        encoded(make(Nasty()))


def _change(shared: dict[str, Any], values: list[Any], is_over: threading.Event) -> None:
    while not is_over.is_set():
        for number in range(20):
            shared[f"new{number}"] = number
            values.append(number)
        for number in range(20):
            del shared[f"new{number}"]
            values.pop()


def _send(shared: dict[str, Any], values: list[Any], wrong: list[BaseException]) -> None:
    try:
        for number in range(300):
            try:
                encoded([shared, values, b"x"] if number % 2 else [shared, values])
            except EncodeError as error:
                if "changed while it was being encoded" not in str(error):
                    raise
    except BaseException as error:  # noqa: BLE001 - a panic is none of Exception's
        wrong.append(error)


def test_a_thread_that_changes_what_others_send() -> None:
    """Each gets a message, or an error that says what is wrong."""
    shared: dict[str, Any] = {f"k{number}": HALF_A_PAIR for number in range(20)}
    values: list[Any] = [HALF_A_PAIR] * 20
    wrong: list[BaseException] = []
    is_over = threading.Event()
    changing = threading.Thread(target=_change, args=(shared, values, is_over))
    senders = [threading.Thread(target=_send, args=(shared, values, wrong)) for _ in range(3)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in (changing, *senders):
            thread.start()
        for thread in senders:
            thread.join(60)
    finally:
        sys.setswitchinterval(before)
        is_over.set()
        changing.join(60)
    assert wrong == []
