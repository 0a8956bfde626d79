"""Who needs heartbeats and who does not, driven by a clock that is a number and by lists of locks."""

from __future__ import annotations

import math
from collections.abc import Iterable

from socketio_postgres._bus.messages import Message, MessageType
from socketio_postgres._cluster.adapter import ClusterAdapter, Effect, PeerJoined, PeerLeft, Send

T = MessageType
LOCKS = {"us": -7, "a": 1, "b": 2, "elsewhere": 3, "node": 4, "go": 5}
"""All that ever exist; only servers of ours hold theirs."""


class Cluster:
    """One adapter with an interval of 5 and a time-out of 10, and what the others do."""

    def __init__(self, *members: str) -> None:
        self.adapter = ClusterAdapter(
            "/", uid="us", lock_of=LOCKS.__getitem__, heartbeat_interval=5.0, heartbeat_timeout=10.0
        )
        self.holders = {"us", *members}
        """Whose lock is held."""
        self.effects: list[Effect] = []
        self.now = 0.0
        self._take(self.adapter.announce(0.0))
        for member in members:
            self.say(member)

    def _take(self, effects: list[Effect]) -> list[MessageType]:
        self.effects += effects
        return kinds(effects)

    def say(self, uid: str, kind: MessageType = T.HEARTBEAT) -> list[MessageType]:
        """A message of a peer; gives what we send in answer."""
        packet = ["e"] if kind == T.BROADCAST else None
        return self._take(self.adapter.receive(Message(kind, "/", uid=uid, packet=packet), self.now))

    def look(self) -> list[MessageType]:
        """A list of the locks held; gives what we send."""
        return self._take(self.adapter.see_locks([LOCKS[uid] for uid in self.holders], self.now))

    def lose_locks(self) -> list[MessageType]:
        """Our listening session is gone."""
        return self._take(self.adapter.see_locks(None, self.now))

    def run(self, until: float, every: float = 5.0, speakers: Iterable[str] = ()) -> list[tuple[float, MessageType]]:
        """Let time pass, looking every 5 s, with foreigners who speak as often; gives what we send, and when."""
        sent = []
        while self.now < until:
            look_at = (self.now // every + 1) * every
            self.now = min(max(self.adapter.next_tick(), self.now + 0.01), look_at, until)
            found = self._take(self.adapter.tick(self.now))
            if self.now == look_at:
                found += self.look()
                found += [kind for uid in speakers for kind in self.say(uid)]
            sent += [(round(self.now, 1), kind) for kind in found]
        return sent

    @property
    def left(self) -> list[str]:
        """Who was dropped for silence."""
        return [effect.uid for effect in self.effects if effect == PeerLeft(getattr(effect, "uid", ""), False)]


def kinds(effects: list[Effect]) -> list[MessageType]:
    return [MessageType(effect.message.type) for effect in effects if isinstance(effect, Send)]


# ---------------------------------------------------------------------------------------------------------- silence


def test_servers_that_see_each_others_locks_are_silent() -> None:
    it = Cluster("a", "b")
    assert it.look() == []
    assert it.run(1000.0) == []
    assert it.adapter.peers == ["a", "b"]
    assert it.left == []


def test_alone_it_is_silent_once_its_own_lock_is_seen() -> None:
    it = Cluster()
    assert it.run(4.0) == []
    it.look()
    assert it.run(1000.0) == []
    assert it.adapter.next_tick() == math.inf


def test_without_lists_nothing_changes() -> None:
    adapter = Cluster("a").adapter
    assert kinds(adapter.tick(5.0)) == [T.HEARTBEAT]
    assert kinds(adapter.tick(10.0)) == [T.HEARTBEAT]
    assert PeerLeft("a", said_goodbye=False) in adapter.tick(10.1)
    assert kinds(adapter.tick(15.0)) == [T.HEARTBEAT]


def test_while_others_cannot_see_our_lock_it_speaks() -> None:
    """Whatever keeps us from taking it, the others hear us instead."""
    it = Cluster("a")
    it.holders.remove("us")
    it.look()
    assert it.run(20.0) == [(5.0, T.HEARTBEAT), (10.0, T.HEARTBEAT), (15.0, T.HEARTBEAT), (20.0, T.HEARTBEAT)]
    assert it.adapter.peers == ["a"]  # we see theirs


def test_a_lock_keeps_its_server_alive_wherever_it_is_known() -> None:
    it = Cluster("a")
    it.look()
    it.now = 9.0
    it.look()
    it.adapter.tick(19.0)
    assert it.adapter.peers == ["a"]
    assert it.adapter.next_tick() == 19.0
    it.adapter.tick(19.1)
    assert it.adapter.peers == []


# --------------------------------------------------------------------------------------------------------- newcomers


def test_a_newcomer_is_told_twice_and_then_nothing() -> None:
    it = Cluster()
    it.look()
    assert it.run(11.0) == []
    it.holders.add("a")
    assert it.say("a", T.INITIAL_HEARTBEAT) == [T.HEARTBEAT]
    assert it.run(1000.0) == [(12.0, T.HEARTBEAT)]
    assert it.adapter.peers == ["a"]


def test_a_newcomer_whose_lock_is_seen_before_the_repetition_is_told_once() -> None:
    it = Cluster()
    it.run(14.5)
    it.holders.add("a")
    assert it.say("a", T.INITIAL_HEARTBEAT) == [T.HEARTBEAT]
    assert it.run(1000.0) == []


def test_a_server_known_by_its_lock_listens_before_it_announces_itself() -> None:
    """So the answer is not repeated: a server that comes back after a gap, or serves one more namespace."""
    it = Cluster("a")
    it.look()
    assert it.say("a", T.INITIAL_HEARTBEAT) == [T.HEARTBEAT]
    assert it.run(100.0) == []


def test_a_server_that_is_seen_by_its_lock_first_is_not_greeted() -> None:
    it = Cluster()
    it.holders.add("a")
    it.look()
    assert it.say("a") == []
    assert it.adapter.peers == ["a"]
    assert it.run(100.0) == []


# -------------------------------------------------------------------------------------------------------- foreigners


def test_a_foreigner_hears_heartbeats_as_long_as_it_is_there() -> None:
    it = Cluster("a")
    it.look()
    it.run(100.0)
    it.now = 101.0
    assert it.say("node", T.INITIAL_HEARTBEAT) == [T.HEARTBEAT]
    sent = it.run(121.0, speakers=["node"])
    assert sent == [(102.0, T.HEARTBEAT), (107.0, T.HEARTBEAT), (112.0, T.HEARTBEAT), (117.0, T.HEARTBEAT)]
    assert it.say("node", T.ADAPTER_CLOSE) == []
    assert it.run(1000.0) == []
    assert it.adapter.peers == ["a"]


def test_a_foreigner_that_falls_silent_is_dropped_and_then_it_is_quiet() -> None:
    it = Cluster("a")
    it.look()
    it.now = 1.0
    it.say("node", T.INITIAL_HEARTBEAT)
    assert [at for at, _ in it.run(1000.0)] == [2.0, 7.0]
    assert it.left == ["node"]
    assert it.adapter.peers == ["a"]


def test_a_foreigner_is_greeted_at_its_first_message_of_any_kind() -> None:
    """It may have dropped us while we were silent."""
    for kind in (T.HEARTBEAT, T.BROADCAST, T.SOCKETS_LEAVE):
        it = Cluster("a")
        it.look()
        it.run(100.0)
        assert it.say("node", kind) == [T.HEARTBEAT]
        assert it.run(101.0) == [(101.0, T.HEARTBEAT)]
        assert it.say("node", kind) == []


def test_a_second_foreigner_hears_what_the_first_hears() -> None:
    it = Cluster()
    it.look()
    it.say("node")
    it.run(2.0)
    assert it.say("go") == []
    assert it.say("go", T.INITIAL_HEARTBEAT) == [T.HEARTBEAT]
    it.say("node", T.ADAPTER_CLOSE)
    assert it.run(9.0) == [(3.0, T.HEARTBEAT), (8.0, T.HEARTBEAT)]


def test_real_traffic_postpones_the_heartbeat() -> None:
    it = Cluster()
    it.look()
    it.say("node")
    assert [at for at, _ in it.run(4.0)] == [1.0]
    it.adapter.sent(4.0)
    assert [at for at, _ in it.run(9.5, speakers=["node"])] == [9.0]


def test_all_namespaces_of_a_server_speak_at_once() -> None:
    it = Cluster()
    it.look()
    it.say("node")
    it.run(1.0)
    for now in (1.0, 2.0, 3.4):
        assert it.adapter.tick_along(now) == []
    assert kinds(it.adapter.tick_along(3.5)) == [T.HEARTBEAT]
    assert it.adapter.next_tick() == 8.5
    silent = Cluster("a")
    silent.look()
    assert silent.adapter.tick_along(1000.0) == []
    silent.adapter.leave()
    silent.adapter.see_locks(None, 1000.0)
    assert silent.adapter.tick_along(2000.0) == []


def test_going_along_does_not_replace_the_repetition_for_a_newcomer() -> None:
    it = Cluster()
    it.adapter = ClusterAdapter(
        "/", uid="us", lock_of=LOCKS.__getitem__, heartbeat_interval=0.5, heartbeat_timeout=10.0
    )
    it.adapter.announce(0.0)
    it.say("node", T.INITIAL_HEARTBEAT)
    assert kinds(it.adapter.tick_along(0.3)) == [T.HEARTBEAT]
    assert kinds(it.adapter.tick(0.8)) == [T.HEARTBEAT]
    assert kinds(it.adapter.tick(0.9)) == []
    assert kinds(it.adapter.tick(1.0)) == [T.HEARTBEAT]
    assert kinds(it.adapter.tick(1.1)) == []


# ------------------------------------------------------------------------------------------------- locks that vanish


def test_a_crashed_server_is_dropped_as_fast_as_by_node() -> None:
    it = Cluster("a", "b")
    it.look()
    it.run(101.0)
    it.holders.remove("a")  # its last look was at 100
    assert it.run(110.0) == []
    assert it.left == []
    assert it.run(110.1) == []
    assert it.left == ["a"]
    assert it.run(1000.0) == []
    assert it.adapter.peers == ["b"]


def test_a_server_that_listens_again_in_time_is_kept() -> None:
    it = Cluster("a")
    it.look()
    it.run(101.0)
    it.holders.remove("a")
    it.run(109.0)
    it.holders.add("a")
    assert it.run(1000.0) == []
    assert it.left == []


def test_a_server_that_speaks_while_its_lock_is_gone_is_kept() -> None:
    """It does not hear us before it listens again, so we still need not answer."""
    it = Cluster("a")
    it.look()
    it.run(101.0)
    it.holders.remove("a")
    assert it.run(200.0, speakers=["a"]) == []
    assert it.left == []
    assert it.adapter.peers == ["a"]


def test_without_our_own_session_we_speak_at_once() -> None:
    it = Cluster("a")
    it.look()
    it.run(100.0)
    it.now = 101.0
    assert it.lose_locks() == [T.HEARTBEAT]
    assert kinds(it.adapter.tick(105.9)) == []
    assert kinds(it.adapter.tick(106.0)) == [T.HEARTBEAT]
    it.now = 107.0
    assert it.adapter.peers == ["a"]
    assert it.look() == []
    assert it.run(1000.0) == []
    assert it.left == []


def test_without_our_own_session_what_was_just_said_is_not_repeated() -> None:
    it = Cluster("a")
    it.look()
    it.run(100.0)
    it.adapter.sent(98.0)
    assert it.lose_locks() == []
    assert kinds(it.adapter.tick(103.0)) == [T.HEARTBEAT]


def test_without_lists_for_too_long_all_are_dropped() -> None:
    """They cannot answer us either."""
    it = Cluster("a", "b")
    it.look()
    it.lose_locks()
    it.adapter.tick(10.1)
    assert it.adapter.peers == []


def test_time_in_which_we_did_not_run_is_nobodys_silence() -> None:
    it = Cluster("a", "b")
    it.now = 3.0
    it.say("b")
    # The silence of "a" was 6 s, that of "b" 3.
    assert kinds(it.adapter.wake(30.0, 36.0)) == [T.HEARTBEAT]
    it.adapter.tick(40.0)
    assert it.adapter.peers == ["a", "b"]
    it.adapter.tick(40.1)
    assert it.adapter.peers == ["b"]
    it.now = 50.0
    it.say("b")
    assert kinds(it.adapter.wake(4.9, 50.0)) == []  # too short to be missed
    it.adapter.wake(30.0, 50.0)  # what is read already is not excused once more
    it.adapter.tick(60.1)
    assert it.adapter.peers == []
    it.adapter.leave()
    assert it.adapter.wake(30.0, 100.0) == []


# --------------------------------------------------------------------------------------------- locks without a peer


def test_a_lock_without_a_peer_makes_us_ask_once() -> None:
    it = Cluster()
    it.look()
    it.holders.add("a")  # whose announcement was lost
    it.now = 5.0
    assert it.look() == []  # it may be under way
    it.now = 10.0
    assert it.look() == [T.INITIAL_HEARTBEAT]
    it.say("a")
    assert PeerJoined("a") in it.effects
    assert it.run(1000.0) == []


def test_a_server_of_other_namespaces_is_asked_once() -> None:
    it = Cluster("a")
    it.look()
    it.holders.add("elsewhere")
    assert it.run(1000.0) == [(10.0, T.INITIAL_HEARTBEAT)]
    it.holders.add("b")
    assert it.run(2000.0) == [(1010.0, T.INITIAL_HEARTBEAT)]


def test_one_question_is_enough_for_all() -> None:
    """Whoever serves this namespace answers it, and everybody hears the answer."""
    it = Cluster("a")
    it.holders.add("elsewhere")
    it.now = 5.0
    assert it.look() == []
    it.now = 7.0
    it.say("a", T.INITIAL_HEARTBEAT)
    assert it.run(1000.0) == []
    it.holders.add("b")
    it.run(1006.0)
    it.adapter.announce(1006.0)  # ours counts as well
    assert it.run(2000.0) == []


def test_a_lock_that_comes_again_is_asked_again() -> None:
    it = Cluster()
    it.look()
    it.holders.add("a")
    assert it.run(20.0) == [(10.0, T.INITIAL_HEARTBEAT)]
    it.holders.remove("a")
    assert it.run(30.0) == []
    it.holders.add("a")
    assert it.run(1000.0) == [(40.0, T.INITIAL_HEARTBEAT)]


def test_a_lock_seen_only_once_is_not_asked() -> None:
    """Who says goodbye may hold it a moment longer."""
    it = Cluster("a")
    it.look()
    it.say("a", T.ADAPTER_CLOSE)
    it.now = 5.0
    assert it.look() == []
    it.holders.remove("a")
    assert it.run(100.0) == []


def test_what_is_remembered_of_locks_is_what_is_held() -> None:
    adapter = Cluster().adapter
    for now in range(1, 1000):
        adapter.see_locks([LOCKS["us"], 1000 + now], float(now))
    assert len(adapter._held | adapter._strangers | adapter._unasked) == 2


def test_after_leaving_it_does_not_ask() -> None:
    it = Cluster()
    it.holders.add("a")
    it.look()
    it.adapter.leave()
    it.now = 5.0
    assert it.look() == []
    assert it.lose_locks() == []


def test_locks_seen_before_it_has_joined() -> None:
    """A namespace served later knows the list already: the announcement asks all of them."""
    adapter = ClusterAdapter("/", uid="us", lock_of=LOCKS.__getitem__, heartbeat_interval=5.0, heartbeat_timeout=10.0)
    held = [LOCKS["us"], LOCKS["a"], LOCKS["elsewhere"]]
    assert adapter.see_locks(held, 0.0) == []
    assert kinds(adapter.announce(0.0)) == [T.INITIAL_HEARTBEAT]
    assert adapter.receive(Message(T.HEARTBEAT, "/", uid="a"), 0.1) == [PeerJoined("a")]
    assert adapter.see_locks(held, 5.0) == []
    assert adapter.see_locks(held, 10.0) == []
    assert adapter.tick(10.0) == []
    assert adapter.peer_locks == {LOCKS["a"]}
    assert adapter.see_locks([LOCKS["us"]], 15.0) == []
    assert adapter.peer_locks == set()
