"""Callbacks that wait: once each, oldest first, no more than so many."""

from __future__ import annotations

from socketio_postgres._cluster.callbacks import CALLBACK_COUNT, Callbacks


def test_who_asks_first_gets_it() -> None:
    callbacks = Callbacks()
    callbacks.add("r", "/", print, 10.0)
    assert callbacks.take("other") is None
    assert callbacks.take("r") is print
    assert callbacks.take("r") is None
    assert len(callbacks) == 0


def test_they_expire_in_order() -> None:
    callbacks = Callbacks()
    for number in range(5):
        callbacks.add(f"r{number}", "/", print, 10.0 + number)
    callbacks.expire(9.9)
    assert len(callbacks) == 5
    callbacks.expire(12.0)
    assert [callbacks.take(f"r{number}") for number in range(5)] == [None, None, None, print, print]
    callbacks.expire(100.0)
    assert callbacks.take_forgotten() == 0


def test_beyond_the_limit_the_oldest_are_forgotten_and_counted() -> None:
    callbacks = Callbacks(limit=2)
    for number in range(5):
        callbacks.add(f"r{number}", "/", print, 10.0)
    assert [callbacks.take(f"r{number}") for number in range(5)] == [None, None, None, print, print]
    assert (callbacks.take_forgotten(), callbacks.take_forgotten()) == (3, 0)
    assert Callbacks().limit == CALLBACK_COUNT


def test_namespaces_that_somebody_waits_in() -> None:
    callbacks = Callbacks()
    callbacks.add("r1", "/a", print, 10.0)
    callbacks.add("r2", "/a", print, 10.0)
    callbacks.add("r3", "/b", print, 20.0)
    callbacks.take("r1")
    assert [callbacks.is_waiting_in(namespace) for namespace in ("/a", "/b", "/c")] == [True, True, False]
    callbacks.expire(10.0)
    assert [callbacks.is_waiting_in(namespace) for namespace in ("/a", "/b")] == [False, True]
