"""Membership, driven by a clock that is a number."""

from __future__ import annotations

import math

from socketio_postgres._bus.messages import EMITTER_UID, Message, MessageType
from socketio_postgres._cluster.adapter import Apply, ClusterAdapter, Effect, PeerJoined, PeerLeft, Send


def new_adapter() -> ClusterAdapter:
    return ClusterAdapter("/chat", uid="us", lock_of=hash, heartbeat_interval=5.0, heartbeat_timeout=10.0)


def heartbeat(uid: str) -> Message:
    return Message(MessageType.HEARTBEAT, "/chat", uid=uid)


def broadcast(uid: str) -> Message:
    return Message(MessageType.BROADCAST, "/chat", uid=uid, packet=["e"])


def sent(effects: list[Effect]) -> list[MessageType]:
    assert all(effect.message.nsp == "/chat" for effect in effects if isinstance(effect, Send))
    return [MessageType(effect.message.type) for effect in effects if isinstance(effect, Send)]


def test_it_joins_with_an_initial_heartbeat() -> None:
    adapter = new_adapter()
    assert adapter.server_count == 1
    assert adapter.peers == []
    assert sent(adapter.announce(0.0)) == [MessageType.INITIAL_HEARTBEAT]
    assert adapter.next_tick() == 5.0


def test_it_says_nothing_before_it_has_joined() -> None:
    adapter = new_adapter()
    assert adapter.tick(1000.0) == []
    assert adapter.next_tick() == math.inf
    adapter.sent(1000.0)  # what an application emits before LISTEN is active does not make it a member
    assert adapter.tick(2000.0) == []


def test_it_answers_who_joins() -> None:
    adapter = new_adapter()
    adapter.announce(0.0)
    effects = adapter.receive(Message(MessageType.INITIAL_HEARTBEAT, "/chat", uid="a"), 1.0)
    assert PeerJoined("a") in effects
    assert sent(effects) == [MessageType.HEARTBEAT]
    assert adapter.peers == ["a"]
    # Node announces itself before it listens, so the answer may be lost: it is repeated, once
    assert adapter.next_tick() == 2.0
    assert sent(adapter.tick(2.0)) == [MessageType.HEARTBEAT]
    assert adapter.next_tick() == 7.0


def test_heartbeats_come_at_the_interval() -> None:
    adapter = new_adapter()
    adapter.announce(0.0)
    assert adapter.tick(4.9) == []
    assert sent(adapter.tick(5.0)) == [MessageType.HEARTBEAT]
    assert adapter.tick(5.1) == []
    assert sent(adapter.tick(10.0)) == [MessageType.HEARTBEAT]


def test_whatever_we_send_postpones_our_heartbeat() -> None:
    adapter = new_adapter()
    adapter.announce(0.0)
    adapter.sent(4.0)
    assert adapter.tick(8.9) == []
    assert adapter.next_tick() == 9.0
    assert sent(adapter.tick(9.0)) == [MessageType.HEARTBEAT]


def test_a_heartbeat_makes_a_peer_and_nothing_else() -> None:
    adapter = new_adapter()
    adapter.announce(0.0)
    assert adapter.receive(heartbeat("a"), 1.0) == [PeerJoined("a")]
    assert adapter.receive(heartbeat("a"), 2.0) == []
    assert adapter.receive(heartbeat("b"), 2.0) == [PeerJoined("b")]
    assert adapter.server_count == 3


def test_any_message_of_a_server_makes_it_a_peer_and_keeps_it() -> None:
    adapter = new_adapter()
    adapter.announce(0.0)
    message = broadcast("a")
    assert adapter.receive(message, 1.0) == [PeerJoined("a"), Apply(message)]
    assert adapter.receive(message, 9.0) == [Apply(message)]
    adapter.tick(19.0)
    assert adapter.peers == ["a"]


def test_an_emitter_is_no_server() -> None:
    adapter = new_adapter()
    adapter.announce(0.0)
    for uid in (EMITTER_UID, ""):
        message = broadcast(uid)
        assert adapter.receive(message, 1.0) == [Apply(message)]
    assert adapter.server_count == 1


def test_a_goodbye_is_believed_at_once() -> None:
    adapter = new_adapter()
    adapter.announce(0.0)
    adapter.receive(heartbeat("a"), 1.0)
    goodbye = Message(MessageType.ADAPTER_CLOSE, "/chat", uid="a")
    assert adapter.receive(goodbye, 2.0) == [PeerLeft("a", said_goodbye=True)]
    assert adapter.server_count == 1
    assert adapter.receive(goodbye, 3.0) == []  # and a stranger's is not worth a word


def test_a_silent_peer_is_dropped() -> None:
    adapter = new_adapter()
    adapter.announce(0.0)
    adapter.receive(heartbeat("a"), 1.0)
    adapter.receive(heartbeat("b"), 4.0)
    assert PeerLeft("a", said_goodbye=False) not in adapter.tick(11.0)  # Node's bound is inclusive, too
    assert [effect for effect in adapter.tick(11.1) if isinstance(effect, PeerLeft)] == [
        PeerLeft("a", said_goodbye=False)
    ]
    assert adapter.peers == ["b"]
    assert adapter.receive(heartbeat("a"), 12.0) == [PeerJoined("a")]


def test_the_next_tick_is_when_there_is_something_to_do() -> None:
    adapter = new_adapter()
    adapter.announce(0.0)
    adapter.receive(heartbeat("a"), 1.0)
    now = 0.0
    sent_at, lost_at = [], []
    while now < 30.0:
        now = max(adapter.next_tick(), now + 0.01)
        effects = adapter.tick(now)
        if sent(effects):
            sent_at.append(round(now))
        if any(isinstance(effect, PeerLeft) for effect in effects):
            lost_at.append(round(now))
    assert sent_at == [5, 10, 15, 20, 25, 30]
    assert lost_at == [11]


def test_after_leaving_it_is_silent() -> None:
    adapter = new_adapter()
    adapter.announce(0.0)
    assert sent(adapter.leave()) == [MessageType.ADAPTER_CLOSE]
    assert adapter.tick(1000.0) == []
    adapter.sent(1000.0)
    assert adapter.tick(2000.0) == []


def test_it_can_announce_again_after_a_gap() -> None:
    adapter = new_adapter()
    adapter.announce(0.0)
    adapter.receive(heartbeat("a"), 1.0)
    assert sent(adapter.announce(8.0)) == [MessageType.INITIAL_HEARTBEAT]
    assert adapter.peers == ["a"]  # nobody is forgotten for our own gap
    assert adapter.next_tick() == 11.0
