"""Requests to the cluster, driven by a clock that is a number: who is waited for, and until when."""

from __future__ import annotations

import math
from typing import Any

import pytest

from socketio_postgres._bus.messages import EMITTER_UID, Message, MessageType
from socketio_postgres._cluster.adapter import (
    FOREIGN_ANSWER,
    NATIVE_ANSWER,
    Apply,
    ClusterAdapter,
    Complete,
    Effect,
    Request,
)

T = MessageType

NOW = 2.0
"""When requests are made, unless a test says otherwise: everybody has answered our announcement by then."""


def new_adapter(*peers: str) -> ClusterAdapter:
    adapter = ClusterAdapter("/", uid="us", lock_of=hash, heartbeat_interval=5.0, heartbeat_timeout=10.0)
    adapter.announce(0.0)
    for peer in peers:
        adapter.receive(Message(T.HEARTBEAT, "/", uid=peer), 0.0)
    return adapter


def sockets(request: Request, uid: str, *ids: str) -> Message:
    found = [{"id": each, "handshake": {}, "rooms": [], "data": {}} for each in ids]
    return Message(T.FETCH_SOCKETS_RESPONSE, "/", uid=uid, request_id=request.id, sockets=found)


def value(request: Request, uid: str, packet: Any) -> Message:
    return Message(T.SERVER_SIDE_EMIT_RESPONSE, "/", uid=uid, request_id=request.id, packet=packet)


def count(request: Request, uid: str, clients: int) -> Message:
    return Message(T.BROADCAST_CLIENT_COUNT, "/", uid=uid, request_id=request.id, client_count=clients)


def ack(request: Request, uid: str, packet: Any) -> Message:
    return Message(T.BROADCAST_ACK, "/", uid=uid, request_id=request.id, packet=packet)


def goodbye(uid: str) -> Message:
    return Message(T.ADAPTER_CLOSE, "/", uid=uid)


def completed(effects: list[Effect]) -> list[Request]:
    return [effect.request for effect in effects if isinstance(effect, Complete)]


class Story:
    """Tells an adapter messages and knows when a request was complete."""

    def __init__(self, adapter: ClusterAdapter, request: Request) -> None:
        self.adapter = adapter
        self.request = request

    def incomplete_after(self, *messages: Message, now: float = 1.0) -> None:
        for message in messages:
            assert completed(self.adapter.receive(message, now)) == [], message

    def complete_after(self, message: Message, now: float = 1.0) -> None:
        assert completed(self.adapter.receive(message, now)) == [self.request]
        assert self.adapter._requests == {}


def story(*peers: str) -> Story:
    adapter = new_adapter(*peers)
    return Story(adapter, adapter.request(NOW))


# ------------------------------------------------------------------------------------------------- one answer each


def test_it_waits_for_the_servers_known_when_it_was_made() -> None:
    it = story("a", "b")
    assert it.request.missing_servers == ["a", "b"]
    it.incomplete_after(sockets(it.request, "b", "x", "y"))
    assert it.request.missing_servers == ["a"]
    it.complete_after(sockets(it.request, "a"))
    assert [each["id"] for each in it.request.responses] == ["x", "y"]
    assert it.request.missing_servers == []


def test_ids_differ() -> None:
    adapter = new_adapter("a")
    first, second = adapter.request(NOW), adapter.request(NOW)
    assert first.id != second.id
    assert completed(adapter.receive(value(second, "a", 2), 1.0)) == [second]
    assert completed(adapter.receive(value(first, "a", 1), 1.0)) == [first]
    assert (first.responses, second.responses) == ([1], [2])


def test_a_local_request_waits_for_nobody_else() -> None:
    request = new_adapter("a").request(NOW, is_local=True)
    assert request.is_complete


def test_a_server_that_joins_later_is_not_waited_for_but_heard() -> None:
    it = story("a")
    it.incomplete_after(Message(T.HEARTBEAT, "/", uid="late"), sockets(it.request, "late", "z"))
    it.complete_after(sockets(it.request, "a", "x"))
    assert [each["id"] for each in it.request.responses] == ["z", "x"]


def test_an_answer_is_no_business_of_the_application() -> None:
    it = story("a", "b")
    effects = it.adapter.receive(value(it.request, "a", 1), 1.0)
    assert not any(isinstance(effect, Apply) for effect in effects)


def test_answers_to_others_and_answers_too_late_are_ignored() -> None:
    it = story("a")
    other = new_adapter("a").request(NOW)
    it.incomplete_after(value(other, "a", "not ours"))
    it.complete_after(value(it.request, "a", 1))
    it.incomplete_after(value(it.request, "a", 2), ack(it.request, "a", 3), count(it.request, "a", 4))
    assert it.request.responses == [1]


def test_an_abandoned_request_hears_nothing_more() -> None:
    it = story("a")
    it.adapter.abandon(it.request)
    it.incomplete_after(value(it.request, "a", 1), goodbye("a"))
    assert it.request.responses == []
    it.adapter.abandon(it.request)  # again does no harm


@pytest.mark.parametrize("kind", sorted({T.FETCH_SOCKETS_RESPONSE, T.SERVER_SIDE_EMIT_RESPONSE}))
def test_an_answer_keeps_its_server_alive(kind: MessageType) -> None:
    it = story("a", "b")
    answer = sockets(it.request, "a") if kind == T.FETCH_SOCKETS_RESPONSE else value(it.request, "a", 1)
    it.incomplete_after(answer, now=9.0)
    it.adapter.tick(11.0)
    assert it.adapter.peers == ["a"]


# -------------------------------------------------------------------------------------------- values of an answer


@pytest.mark.parametrize(
    ("fields", "response"),
    [
        ({}, None),
        ({"packet": 0}, 0),
        ({"packet": []}, []),
        ({"packet": [1, 2]}, [1, 2]),
        ({"packet": b"\x00"}, b"\x00"),
        ({"packet_json": "null"}, None),
    ],
)
def test_the_value_of_an_answer(fields: dict[str, Any], response: object) -> None:
    it = story("a")
    it.complete_after(Message(T.SERVER_SIDE_EMIT_RESPONSE, "/", uid="a", request_id=it.request.id, **fields))
    assert it.request.responses == [response]


# --------------------------------------------------------------------------------------------- who leaves meanwhile


def test_who_says_goodbye_is_waited_for_no_longer() -> None:
    it = story("a", "b")
    it.incomplete_after(value(it.request, "a", 1))
    it.complete_after(goodbye("b"))
    assert it.request.responses == [1]


def test_what_one_that_left_had_answered_stays() -> None:
    it = story("a", "b")
    it.incomplete_after(value(it.request, "a", 1), goodbye("a"))
    it.complete_after(value(it.request, "b", 2))
    assert it.request.responses == [1, 2]


def test_a_goodbye_of_a_stranger_changes_nothing() -> None:
    it = story("a")
    it.incomplete_after(goodbye("stranger"), goodbye(""))
    assert it.request.missing_servers == ["a"]


def test_who_falls_silent_is_waited_for_no_longer() -> None:
    it = story("a", "b")
    it.incomplete_after(value(it.request, "a", 1), now=5.0)
    assert completed(it.adapter.tick(10.0)) == []
    assert completed(it.adapter.tick(10.1)) == [it.request]
    assert it.request.responses == [1]


def test_all_requests_hear_of_who_left() -> None:
    adapter = new_adapter("a")
    requests = [adapter.request(NOW) for _ in range(3)]
    assert completed(adapter.receive(goodbye("a"), 1.0)) == requests


# ------------------------------------------------------------------------------------------------ acknowledgements


def test_counts_and_then_as_many_acknowledgements() -> None:
    it = story("a", "b")
    it.incomplete_after(count(it.request, "a", 2), count(it.request, "b", 0), ack(it.request, "a", 1))
    assert it.request.missing_servers == ["a"]
    it.complete_after(ack(it.request, "a", 2))
    assert it.request.responses == [1, 2]


def test_without_clients_the_counts_are_all() -> None:
    it = story("a", "b")
    it.incomplete_after(count(it.request, "a", 0))
    it.complete_after(count(it.request, "b", 0))
    assert it.request.responses == []


def test_an_acknowledgement_may_overtake_its_count() -> None:
    it = story("a")
    it.incomplete_after(ack(it.request, "a", 1))
    assert it.request.missing_servers == ["a"]
    it.incomplete_after(count(it.request, "a", 2))
    it.complete_after(ack(it.request, "a", 2))


def test_the_acknowledgements_of_one_server_do_not_stand_for_those_of_another() -> None:
    it = story("a", "b")
    it.incomplete_after(count(it.request, "a", 1), count(it.request, "b", 1))
    it.incomplete_after(ack(it.request, "a", 1), ack(it.request, "a", "twice"))
    assert it.request.missing_servers == ["b"]
    it.complete_after(ack(it.request, "b", 2))


def test_the_acknowledgements_that_a_server_takes_with_it_are_not_waited_for() -> None:
    it = story("a", "b")
    it.incomplete_after(count(it.request, "a", 5), ack(it.request, "a", 1), count(it.request, "b", 0))
    it.complete_after(goodbye("a"))
    assert it.request.responses == [1]


def test_our_own_clients_are_waited_for() -> None:
    it = story("a")
    assert completed(it.adapter.expect_local(it.request, 2)) == []
    it.incomplete_after(count(it.request, "a", 0))
    assert it.request.missing_servers == [""]
    assert completed(it.adapter.acknowledge_local(it.request, [1])) == []
    assert completed(it.adapter.acknowledge_local(it.request, [])) == [it.request]
    assert it.request.responses == [1, None]
    assert completed(it.adapter.acknowledge_local(it.request, ["too late"])) == []
    assert it.request.responses == [1, None]


def test_alone_and_without_clients_it_is_complete_at_once() -> None:
    it = story()
    assert completed(it.adapter.expect_local(it.request, 0)) == [it.request]


def test_nobodys_answer_does_not_stand_for_one_of_our_own_clients() -> None:
    """A message without a server id would otherwise be taken for ours."""
    it = story("a")
    it.adapter.expect_local(it.request, 1)
    it.incomplete_after(count(it.request, "a", 0), ack(it.request, "", 1))
    assert it.request.missing_servers == [""]
    assert it.request.responses == []


def test_acknowledgements_of_any_shape() -> None:
    adapter = new_adapter("a")
    request = adapter.request(NOW)
    adapter.expect_local(request, 2)
    adapter.receive(count(request, "a", 3), NOW)
    adapter.acknowledge_local(request, [])
    adapter.receive(ack(request, "a", "one"), NOW)
    args = Message(T.BROADCAST_ACK, "/", uid="a", request_id=request.id, packet=1, args=[1, None])
    adapter.receive(args, NOW)
    adapter.receive(Message(T.BROADCAST_ACK, "/", uid="a", request_id=request.id, packet_json="null"), NOW)
    adapter.acknowledge_local(request, [1, 2])
    assert request.responses == [None, "one", (1, None), None, (1, 2)]


def test_an_acknowledgement_of_no_request_may_be_for_a_callback() -> None:
    adapter = new_adapter("a")
    late = Message(T.BROADCAST_ACK, "/", uid="a", request_id="a callback's", packet=1)
    assert adapter.receive(late, NOW) == [Apply(late)]
    assert adapter.receive(Message(T.BROADCAST_ACK, "/", uid="", request_id="a callback's"), NOW) == []


def test_acknowledgements_are_waited_for_through_a_silence_but_not_beyond_a_goodbye() -> None:
    adapter = new_adapter("a", "b")
    request = adapter.request(NOW, is_of_clients=True)
    adapter.receive(count(request, "a", 1), 5.0)
    assert completed(adapter.tick(20.0)) == []
    assert adapter.peers == []
    assert request.missing_servers == ["a", "b"]
    assert completed(adapter.receive(ack(request, "a", "late"), 21.0)) == []
    adapter.receive(count(request, "b", 1), 21.0)
    assert completed(adapter.receive(goodbye("b"), 21.0)) == [request]
    assert request.responses == ["late"]


# -------------------------------------------------------------------------------------------------------- newcomers


class Newcomer:
    """A server that has just announced itself, and the locks that it sees."""

    def __init__(self, *holders: str, now: float = 0.0) -> None:
        self.adapter = ClusterAdapter("/", uid="us", lock_of=hash, heartbeat_interval=5.0, heartbeat_timeout=10.0)
        self.holders = [hash("us"), *map(hash, holders)]
        self.adapter.see_locks(self.holders, now)
        self.adapter.announce(now)
        self.request = self.adapter.request(now)

    def hears(self, message: Message, now: float = 0.1) -> bool:
        """Whether that completes the request."""
        return completed(self.adapter.receive(message, now)) == [self.request]

    def settles(self, now: float) -> bool:
        """The same of the time."""
        return completed(self.adapter.settle(self.request, now)) == [self.request]


def test_alone_a_request_waits_for_a_moment() -> None:
    it = Newcomer()
    assert not it.request.is_complete
    assert it.adapter.settles_at(it.request, 0.0) == FOREIGN_ANSWER
    assert not it.settles(FOREIGN_ANSWER - 0.01)
    assert it.settles(FOREIGN_ANSWER)
    assert it.adapter.request(FOREIGN_ANSWER).is_complete


def test_a_lock_is_waited_for_longer_and_no_longer_than_that() -> None:
    it = Newcomer("a")
    assert not it.settles(FOREIGN_ANSWER)
    assert it.request.missing_servers == [f"advisory lock {hash('a')}"]
    assert it.adapter.settles_at(it.request, FOREIGN_ANSWER) == NATIVE_ANSWER
    assert it.settles(NATIVE_ANSWER)
    later = it.adapter.request(NATIVE_ANSWER)
    assert later.is_complete
    assert it.adapter.settles_at(later, NATIVE_ANSWER) == math.inf


def test_the_answer_of_a_lock_completes() -> None:
    it = Newcomer("a")
    it.settles(FOREIGN_ANSWER)
    assert it.hears(sockets(it.request, "a", "x"), FOREIGN_ANSWER)
    assert [each["id"] for each in it.request.responses] == ["x"]


@pytest.mark.parametrize("holders", [(), ("node",)], ids=["by its heartbeat", "by its lock, too"])
def test_who_answers_the_announcement_is_waited_for_like_everybody(holders: tuple[str, ...]) -> None:
    it = Newcomer(*holders)
    assert not it.hears(Message(T.HEARTBEAT, "/", uid="node"))
    assert not it.settles(NATIVE_ANSWER)
    assert it.request.missing_servers == ["node"]
    assert it.hears(sockets(it.request, "node"), 3.0)


def test_another_newcomer_may_not_have_heard_the_request() -> None:
    it = Newcomer("a")
    assert not it.hears(Message(T.INITIAL_HEARTBEAT, "/", uid="a"))
    assert not it.hears(Message(T.INITIAL_HEARTBEAT, "/", uid="node"))
    assert not it.settles(FOREIGN_ANSWER)
    assert it.request.missing_servers == [f"advisory lock {hash('a')}"]
    assert it.settles(NATIVE_ANSWER)


def test_another_newcomer_that_did_hear_it_answers() -> None:
    it = Newcomer("a")
    it.settles(FOREIGN_ANSWER)
    it.hears(Message(T.INITIAL_HEARTBEAT, "/", uid="a"), FOREIGN_ANSWER)
    assert it.hears(sockets(it.request, "a", "x"), FOREIGN_ANSWER)


def test_locks_that_are_let_go_are_not_waited_for() -> None:
    it = Newcomer("a", "b")
    it.settles(FOREIGN_ANSWER)
    assert completed(it.adapter.see_locks([hash("us"), hash("b")], 0.5)) == []
    assert completed(it.adapter.see_locks([hash("us")], 0.5)) == [it.request]
    other = Newcomer("a")
    other.settles(FOREIGN_ANSWER)
    assert other.hears(goodbye("a"), 0.5)


def test_before_the_first_list_of_locks_a_request_stays_open() -> None:
    adapter = new_adapter()
    request = adapter.request(0.0)
    assert completed(adapter.settle(request, FOREIGN_ANSWER)) == []
    assert completed(adapter.see_locks([hash("us"), hash("a")], 0.5)) == []
    assert request.missing_servers == [f"advisory lock {hash('a')}"]
    assert completed(adapter.receive(sockets(request, "a"), 0.6)) == [request]
    alone = new_adapter()
    request = alone.request(0.0)
    assert completed(alone.see_locks([hash("us")], 0.5)) == [request]


def test_without_any_list_it_ends_as_well() -> None:
    adapter = new_adapter()
    request = adapter.request(0.0)
    assert completed(adapter.settle(request, NATIVE_ANSWER)) == [request]


def test_a_local_request_waits_for_no_newcomer() -> None:
    assert Newcomer("a").adapter.request(0.0, is_local=True).is_complete


def test_our_clients_alone_do_not_complete_it_before_that() -> None:
    it = Newcomer()
    it.adapter.expect_local(it.request, 1)
    assert completed(it.adapter.acknowledge_local(it.request, [1])) == []
    assert it.settles(FOREIGN_ANSWER)
    assert it.request.responses == [1]


def test_an_emitters_message_completes_nothing() -> None:
    it = story("a")
    it.incomplete_after(Message(T.BROADCAST, "/", uid=EMITTER_UID, packet=["e"]))
    assert it.request.missing_servers == ["a"]
