"""Exceptions: their family, their details, and that they survive being pickled."""

from __future__ import annotations

import pickle

import pytest

import socketio_postgres
from socketio_postgres import (
    AsyncEmitter,
    ConnectionLostError,
    DatabaseError,
    DecodeError,
    Emitter,
    EncodeError,
    Message,
    OptionsError,
    PayloadTooLargeError,
    ProtocolError,
    SocketIOPostgresError,
    exceptions,
)
from socketio_postgres.codec import decode

ALL = [getattr(exceptions, name) for name in exceptions.__all__]


def test_all_are_public_and_of_one_family() -> None:
    for name in exceptions.__all__:
        assert getattr(socketio_postgres, name) is getattr(exceptions, name)
        assert issubclass(getattr(exceptions, name), SocketIOPostgresError)
    assert {
        name for name, item in vars(exceptions).items() if isinstance(item, type) and issubclass(item, BaseException)
    } == set(exceptions.__all__)


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (OptionsError, ValueError),
        (EncodeError, TypeError),
        (EncodeError, ValueError),
        (DecodeError, ValueError),
        (PayloadTooLargeError, ValueError),
        (PayloadTooLargeError, ProtocolError),
        (exceptions.AttachmentMissingError, ProtocolError),
        (ConnectionLostError, ConnectionError),
        (ConnectionLostError, OSError),
        (ConnectionLostError, DatabaseError),
        (exceptions.OperationTimeoutError, TimeoutError),
        (exceptions.RequestTimeoutError, TimeoutError),
    ],
)
def test_existing_except_clauses_catch_them(kind: type[Exception], builtin: type[Exception]) -> None:
    assert issubclass(kind, builtin)


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_they_can_be_pickled_with_their_details(kind: type[SocketIOPostgresError]) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        error = kind("what happened", sqlstate="42501", hint=None, size_bytes=5)
        error.failed_count = 7
        copy = pickle.loads(pickle.dumps(error, protocol))  # noqa: S301 - our own bytes
        assert type(copy) is kind
        assert str(copy) == "what happened"
        assert vars(copy) == vars(error)


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_detail_has_a_value_from_the_start(kind: type[SocketIOPostgresError]) -> None:
    error = kind()
    assert str(error) == ""
    for ancestor in kind.__mro__:
        for name in vars(ancestor).get("__annotations__", {}):
            assert hasattr(error, name)


def raised(call: object, *args: object, **kwargs: object) -> SocketIOPostgresError:
    with pytest.raises(SocketIOPostgresError) as caught:
        call(*args, **kwargs)  # type: ignore[operator]
    # Whatever the core raises can cross a process boundary, too.
    copy = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - our own bytes
    assert (type(copy), str(copy), vars(copy)) == (type(caught.value), str(caught.value), vars(caught.value))
    return caught.value


def test_the_core_fills_in_options_errors() -> None:
    error = raised(Emitter, "postgresql://app@db/app", table_name="a.b.c")
    assert isinstance(error, OptionsError)
    assert (error.option, error.value) == ("table_name", "a.b.c")
    assert "schema.table" in error.reason
    assert 'got "a.b.c"' in str(error)


def test_the_core_fills_in_encode_errors() -> None:
    error = raised(Message, 3, "/", packet=["e", {"user": [1, object()]}])
    assert isinstance(error, EncodeError)
    assert error.path == 'args[0]["user"][1]'
    assert "object" in error.reason
    assert error.path in str(error)


def test_the_core_fills_in_decode_errors() -> None:
    error = raised(decode, '{"type":99}')
    assert isinstance(error, DecodeError)
    assert (error.channel, error.size_bytes, error.reason) == ("", 11, "unknown message type 99")


def test_the_core_fills_in_size_errors() -> None:
    io = Emitter("host=db", max_payload=100)
    error = raised(io.emit, "e", "x" * 200)
    io.close()
    assert isinstance(error, PayloadTooLargeError)
    assert error.limit_bytes == 100
    assert error.size_bytes > 200


async def test_the_core_fills_in_connection_errors() -> None:
    emitter = AsyncEmitter("postgresql://app:hunter2@127.0.0.1:1/app?connect_timeout=60")
    with pytest.raises(ConnectionLostError) as caught:
        await emitter.start()
    error = caught.value
    assert error.may_be_sent is False
    assert "127.0.0.1" in str(error)
    assert "hunter2" not in str(error) + repr(error) + repr(vars(error))
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert vars(copy) == vars(error)
    await emitter.close()
