"""Events that many clients of several servers acknowledge."""

from __future__ import annotations

import asyncio

import pytest

from socketio_postgres import RequestTimeoutError
from tests.cluster.servers import FakePeer, Took, Trio, timed_out
from tests.fixtures.cluster import exactly
from tests.fixtures.spy import spying
from tests.fixtures.waiting import asked

ACKNOWLEDGEMENT, CLIENT_COUNT = 12, 11


async def seat(trio: Trio) -> None:
    """One client on each server, with an answer of its own; the one of `c` is in a room, `b` has a second."""
    await trio.a.connect(replies={"ask": ["from a"]})
    await trio.b.connect("red", replies={"ask": ["from b"]})
    await trio.b.connect("red", "blue", replies={"ask": ["from b, too"]})
    await trio.c.connect("red", replies={"ask": ["from c"]})


async def test_every_client_of_every_server_acknowledges_once(trio: Trio) -> None:
    await seat(trio)
    for server in trio.servers:
        replies = await server.manager.emit_with_ack("ask", 1, {"deep": [True, None]})
        assert sorted(replies) == ["from a", "from b", "from b, too", "from c"]
        assert server.expects_nothing()
    for client in (client for server in trio.servers for client in server.clients):
        assert client.received("ask") == [(1, {"deep": [True, None]})] * 3


async def test_only_the_sockets_that_are_meant_acknowledge(trio: Trio) -> None:
    await seat(trio)
    clients = [own, _, both, other] = [client for server in trio.servers for client in server.clients]
    manager = trio.a.manager

    async def ask(chain: object) -> list[str]:
        return sorted(await chain.emit_with_ack("ask"))  # type: ignore[attr-defined]

    assert await ask(manager.to("red")) == ["from b", "from b, too", "from c"]
    assert await ask(manager.to("red").except_("blue")) == ["from b", "from c"]
    assert await ask(manager.except_("red")) == ["from a"]
    assert await ask(manager.to([own.sid, other.sid])) == ["from a", "from c"]
    assert await ask(manager.except_(both.sid)) == ["from a", "from b", "from c"]
    assert await ask(manager.local) == ["from a"]
    assert await ask(trio.b.manager.to("red").local) == ["from b", "from b, too"]
    assert await ask(manager.to([])) == []
    assert [len(client.received("ask")) for client in clients] == [4, 4, 2, 4]


async def test_binary_travels_both_ways(trio: Trio) -> None:
    for server in trio.servers:
        await server.connect()  # sends back what it gets
    sent = (bytes(range(256)), {"nested": [b"", "text"]})
    replies = await trio.b.manager.emit_with_ack("echo", *sent)
    assert [exactly(reply) for reply in replies] == [exactly(sent)] * 3


@pytest.mark.parametrize(
    ("acknowledged", "reply"),
    [
        ((), None),
        ((None,), None),
        ((1,), 1),
        (([1, 2],), [1, 2]),
        ((1, "two", None), (1, "two", None)),
        ((b"\x00\xff",), b"\x00\xff"),
        ((1, b"\x00"), (1, b"\x00")),
        (("x" * 9000,), "x" * 9000),
    ],
    ids=["nothing", "null", "one", "a list", "several", "binary", "several with binary", "large"],
)
async def test_an_acknowledgement_of_any_shape(trio: Trio, acknowledged: tuple[object, ...], reply: object) -> None:
    await trio.a.connect(replies={"ask": acknowledged})
    await trio.b.connect(replies={"ask": acknowledged})
    assert await trio.a.manager.emit_with_ack("ask") == [reply, reply]
    assert await trio.c.manager.emit_with_ack("ask") == [reply, reply]


async def test_without_clients_the_answer_is_empty_at_once(trio: Trio) -> None:
    with Took() as took:
        assert await trio.a.manager.timeout(60).emit_with_ack("ask") == []
        assert await trio.a.manager.of("/chat").to("red").timeout(60).emit_with_ack("ask") == []
    assert took.seconds < 40


async def test_who_stays_silent_is_named_and_the_others_are_kept(trio: Trio) -> None:
    await trio.a.connect(replies={"ask": ["from a"]})
    await trio.b.connect(replies={"ask": None})
    await trio.b.connect(replies={"ask": ["from b"]})
    await trio.c.connect(replies={"ask": ["from c"]})
    manager, others = trio.a.manager, ["from a", "from b", "from c"]

    def is_whole(responses: list[object]) -> bool:
        return sorted(map(str, responses)) == others

    async def error(seconds: float) -> RequestTimeoutError:
        with pytest.raises(RequestTimeoutError) as caught:
            await manager.timeout(seconds).emit_with_ack("ask")
        return caught.value

    found = await asked(error, lambda error: is_whole(error.responses))
    assert is_whole(found.responses)
    assert found.missing_servers == [trio.b.uid]
    assert trio.b.uid in str(found)
    assert trio.a.expects_nothing()

    assert is_whole(await asked(lambda s: manager.timeout(s).emit_with_ack("ask", partial=True), is_whole))


async def test_a_silent_client_of_our_own_is_named_in_words(trio: Trio) -> None:
    await trio.a.connect(replies={"ask": None})
    error = await timed_out(lambda seconds: trio.a.manager.timeout(seconds).emit_with_ack("ask"), [""])
    assert "this server's own clients" in str(error)


async def test_a_server_that_never_answers_is_named(trio: Trio) -> None:
    await trio.b.connect(replies={"ask": ["from b"]})
    async with spying(trio.database) as spy:
        fake = FakePeer(spy)
        await fake.join([trio.a])
        error = await timed_out(lambda seconds: trio.a.manager.timeout(seconds).emit_with_ack("ask"), ["fake"])
        assert error.responses == ["from b"]


async def test_acknowledgements_that_overtake_their_count_are_counted(trio: Trio) -> None:
    async with spying(trio.database) as spy:
        fake = FakePeer(spy)
        await fake.join([trio.a])

        async def answer() -> None:
            request = (await fake.request(3)).message["data"]["requestId"]
            fake.say(ACKNOWLEDGEMENT, requestId=request, packet="first")
            fake.say(CLIENT_COUNT, requestId=request, clientCount=2)
            fake.say(ACKNOWLEDGEMENT, requestId=request, packet="second")

        _, replies = await asyncio.gather(answer(), trio.a.manager.emit_with_ack("ask"))
        assert replies == ["first", "second"]


async def test_a_server_always_answers_even_with_zero(trio: Trio) -> None:
    """Node.js waits for a number from everybody, and for one acknowledgement per client counted."""
    await trio.b.connect()
    async with spying(trio.database) as spy:
        fake = FakePeer(spy)
        opts: dict[str, object] = {"rooms": [], "except": [], "flags": {}}
        packet = {"type": 2, "data": ["ask"], "nsp": "/"}
        fake.say(3, packet=packet, opts=opts, requestId="r1")
        frames = await spy.wait_for(lambda frame: frame.message.get("data", {}).get("requestId") == "r1", count=5)
        answers = [frame.message for frame in frames if frame.header["uid"] != "fake"]
        counts = {each["uid"]: each["data"]["clientCount"] for each in answers if each["type"] == CLIENT_COUNT}
        assert counts == {trio.a.uid: 0, trio.b.uid: 1, trio.c.uid: 0}
        [ack] = [each for each in answers if each["type"] == ACKNOWLEDGEMENT]
        assert ack["uid"] == trio.b.uid
        assert "packet" not in ack["data"]  # a client that acknowledged without a value


async def test_a_fetched_socket_acknowledges_wherever_it_is(trio: Trio) -> None:
    await trio.a.connect(replies={"ask": ["here"]})
    away = await trio.b.connect(replies={"ask": ["away", 2]})
    sockets = {socket.id: socket for socket in await trio.a.manager.fetch_sockets()}
    replies = [await socket.emit_with_ack("ask", 1) for socket in sockets.values()]
    assert sorted(map(str, replies)) == ["('away', 2)", "here"]

    await away.disconnect()
    await trio.b.sees()
    with Took() as took, pytest.raises(RequestTimeoutError, match="is gone"):
        await sockets[away.sid].emit_with_ack("ask", timeout=60)
    assert took.seconds < 40


async def test_a_client_that_leaves_before_it_answers_is_not_waited_for_by_later_requests(trio: Trio) -> None:
    leaving = await trio.b.connect(replies={"ask": None})
    await trio.b.connect(replies={"ask": ["still here"]})
    partial = await asked(lambda seconds: trio.a.manager.timeout(seconds).emit_with_ack("ask", partial=True), bool)
    assert partial == ["still here"]
    await leaving.disconnect()
    await trio.b.sees(trio.b.clients[1])
    assert await trio.a.manager.emit_with_ack("ask") == ["still here"]
