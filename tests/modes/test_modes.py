"""Every operation between a sync server of each mode and an async one, in both directions."""

from __future__ import annotations

import asyncio

import pytest

from socketio_postgres import AsyncEmitter
from tests.fixtures.waiting import eventually
from tests.modes.conftest import Pair, Served

LARGE = "é" * 6000
"""12000 bytes on the wire: travels as an attachment."""


async def test_a_client_gets_what_both_servers_emit(pair: Pair) -> None:
    await pair.there.ask("sio.emit('there', ('text', 1, None, {'a': [b'bytes']}))")
    await pair.mgr.emit("here", ("text", 1, None, {"a": [b"bytes"]}))
    for client in (pair.client_there, pair.client_here):
        for name in ("there", "here"):
            assert await client.wait_for(name) == [("text", 1, None, {"a": [b"bytes"]})]


@pytest.mark.parametrize("transport", ["polling"])
async def test_a_client_that_polls(pair: Pair) -> None:
    await pair.there.ask("sio.emit('there', (b'bytes', 'text'))")
    await pair.mgr.emit("here", (b"bytes", "text"))
    for client in (pair.client_there, pair.client_here):
        for name in ("there", "here"):
            assert await client.wait_for(name) == [(b"bytes", "text")]
    # A polling client that leaves by itself waits for its last poll.
    await pair.mgr.disconnect_sockets(close=True)
    await pair.client_there.wait_for_disconnect()
    await pair.client_here.wait_for_disconnect()


async def test_large_messages_in_order(pair: Pair) -> None:
    await pair.there.ask(f"[sio.emit('there', (number, 'é' * {len(LARGE)} * (number % 3))) for number in range(10)]")
    for number in range(10):
        await pair.mgr.emit("here", (number, LARGE * (number % 3)))
    expected = [(number, LARGE * (number % 3)) for number in range(10)]
    for client in (pair.client_there, pair.client_here):
        for name in ("there", "here"):
            assert await client.wait_for(name, 10) == expected


async def test_rooms(pair: Pair) -> None:
    await pair.there.ask("sio.emit('one', 1, room='here')")
    await pair.there.ask(f"sio.emit('one', 2, room=['here', 'there'], skip_sid='{pair.client_there.sid}')")
    await pair.there.ask("mgr.to('both').except_('there').emit('one', 3)")
    await pair.mgr.emit("one", 4, room="there")
    await pair.mgr.to("both").except_("here").emit("one", 5)
    await pair.mgr.emit("end", None)
    await pair.there.ask("sio.emit('end')")
    await pair.client_there.wait_for("end", 2)
    await pair.client_here.wait_for("end", 2)
    assert pair.client_here.received("one") == [(1,), (2,), (3,)]
    assert pair.client_there.received("one") == [(4,), (5,)]


async def test_calls(pair: Pair) -> None:
    # Engine.IO under uWSGI takes binary that begins like text for text, so this begins with a control character.
    for client in (pair.client_there, pair.client_here):
        assert await pair.there.ask(rf"sio.call('question', (1, b'\2'), to='{client.sid}')") == (1, b"\2")
        assert await pair.here.sio.call("question", (1, b"\2"), to=client.sid) == (1, b"\2")
        assert await pair.there.ask(rf"called('question', '{client.sid}', 'a', b'\2')") == ["a", b"\2", 2]


async def test_acknowledgements_of_everybody(pair: Pair) -> None:
    assert await pair.there.ask("mgr.to('both').timeout(30).emit_with_ack('question', 7)") == [7, 7]
    assert await pair.mgr.to("both").timeout(30).emit_with_ack("question", 7) == [7, 7]


async def test_an_acknowledgement_that_does_not_come(pair: Pair) -> None:
    with pytest.raises(AssertionError, match="TimeoutError"):
        await pair.there.ask("sio.call('question', to='nobody', timeout=0.2)")
    assert await pair.there.ask("mgr.to('nobody').timeout(30).emit_with_ack('question')") == []
    assert await pair.there.ask(f"sio.call('question', 1, to='{pair.client_here.sid}')") == 1


async def test_fetched_sockets(pair: Pair) -> None:
    sids = {pair.client_here.sid, pair.client_there.sid}
    assert await pair.there.ask("{socket.id for socket in mgr.timeout(30).fetch_sockets()}") == sids
    assert {socket.id for socket in await pair.mgr.timeout(30).fetch_sockets()} == sids
    [socket] = await pair.mgr.to("there").timeout(30).fetch_sockets()
    assert socket.rooms == {"both", "there", pair.client_there.sid}
    rooms = await pair.there.ask("[sorted(socket.rooms) for socket in mgr.to('here').timeout(30).fetch_sockets()]")
    assert rooms == [sorted(["both", "here", pair.client_here.sid])]


async def test_remote_rooms(pair: Pair) -> None:
    await pair.there.ask(f"sio.enter_room('{pair.client_here.sid}', 'new')")
    await pair.here.sio.enter_room(pair.client_there.sid, "new")

    async def rooms_there() -> object:
        return await pair.there.ask(f"sorted(sio.rooms('{pair.client_there.sid}'))")

    await eventually(lambda: "new" in pair.here.sio.rooms(pair.client_here.sid), "entered here")
    expected = sorted(["both", "new", "there", pair.client_there.sid])
    await eventually(lambda: _equals(rooms_there, expected), "entered there")
    await pair.there.ask(f"sio.leave_room('{pair.client_here.sid}', 'new')")
    await pair.here.sio.leave_room(pair.client_there.sid, "new")
    await eventually(lambda: "new" not in pair.here.sio.rooms(pair.client_here.sid), "left here")
    await eventually(lambda: _equals(rooms_there, sorted(["both", "there", pair.client_there.sid])), "left there")
    await pair.there.ask("sio.close_room('both')")
    await eventually(lambda: "both" not in pair.here.sio.rooms(pair.client_here.sid), "closed here")
    await eventually(lambda: _equals(rooms_there, sorted(["there", pair.client_there.sid])), "closed there")


async def _equals(ask: object, expected: object) -> bool:
    assert callable(ask)
    found: object = await ask()
    return found == expected


async def test_remote_disconnection(pair: Pair) -> None:
    await pair.there.ask(f"sio.disconnect('{pair.client_here.sid}')")
    await pair.client_here.wait_for_disconnect()
    await pair.here.sio.disconnect(pair.client_there.sid)
    await pair.client_there.wait_for_disconnect()
    count = "len(mgr.timeout(30).fetch_sockets())"
    await eventually(lambda: _equals(lambda: pair.there.ask(count), 0), "nobody is left")


async def test_server_side_events(pair: Pair) -> None:
    pair.mgr.on_server_side("multiply", lambda first, second: first * second)

    async def count() -> int:
        return len(await pair.mgr.timeout(30).fetch_sockets())

    pair.mgr.on_server_side("count", count)
    assert await pair.mgr.server_side_emit_with_ack("add", 3, 4, timeout=30) == [7]
    assert await pair.there.ask("mgr.server_side_emit_with_ack('multiply', 3, 4, timeout=30)") == [12]
    # Both handlers ask the cluster themselves.
    assert await pair.mgr.server_side_emit_with_ack("clients", timeout=30) == [2]
    assert await pair.there.ask("mgr.server_side_emit_with_ack('count', timeout=30)") == [2]


async def test_a_handler_that_raises_stops_nothing(pair: Pair) -> None:
    await pair.there.ask("errors.clear()")
    assert await pair.mgr.server_side_emit_with_ack("fail", timeout=30) == [None]
    await eventually(lambda: _equals(lambda: pair.there.ask("errors"), ["LookupError"]), "reported, in a thread")
    assert "on purpose" in pair.there.output
    await pair.there.ask(f"sio.emit('question', to='{pair.client_here.sid}', callback=lambda *values: 1 / 0)")
    await eventually(lambda: _equals(lambda: pair.there.ask("errors[1:]"), ["ZeroDivisionError"]), "reported")
    assert await pair.mgr.server_side_emit_with_ack("add", 3, 4, timeout=30) == [7]


async def test_a_handler_that_blocks_stops_nothing(pair: Pair) -> None:
    await pair.there.ask("gate.clear()")
    blocked = asyncio.create_task(pair.mgr.server_side_emit_with_ack("block", timeout=60))
    try:
        await pair.mgr.emit("here", "meanwhile")
        await pair.client_there.wait_for("here")
        assert await pair.mgr.server_side_emit_with_ack("add", 3, 4, timeout=30) == [7]
        assert not blocked.done()
    finally:
        await pair.there.ask("gate.set()")
    assert await blocked == ["unblocked"]


@pytest.mark.parametrize("what", ["asks", "raises", "blocks"])
async def test_a_disconnect_handler_may(pair: Pair, what: str) -> None:
    step = {"asks": "mgr.timeout(30).fetch_sockets", "raises": "fail", "blocks": "block"}[what]
    await pair.there.ask("(gate.clear(), happenings.clear(), errors.clear())")
    await pair.there.ask(f"on_disconnect.append({step})")
    try:
        await pair.here.sio.disconnect(pair.client_there.sid)
        await pair.client_there.wait_for_disconnect()
        assert await pair.mgr.server_side_emit_with_ack("add", 3, 4, timeout=30) == [7]
        [socket] = await pair.mgr.timeout(30).fetch_sockets()
        assert socket.id == pair.client_here.sid
    finally:
        await pair.there.ask("(gate.set(), on_disconnect.clear())")
    done = "errors == ['LookupError']" if what == "raises" else "happenings[-1][0] == 'left'"
    await eventually(lambda: pair.there.ask(done), "the handler is through")
    gone = f"'{pair.client_there.sid}' not in mgr.rooms.get('/', {{None: {{}}}})[None]"
    await eventually(lambda: pair.there.ask(gone), "the client is forgotten")


async def test_many_at_once_get_their_own_answers(pair: Pair) -> None:
    sid = pair.client_here.sid
    calls = f"*[lambda n=n: sio.call('question', n, to='{sid}') for n in range(30)]"
    assert await pair.there.ask(f"in_background({calls})") == list(range(30))


async def test_an_emitter_in_the_same_process(pair: Pair) -> None:
    emit = "*[lambda n=n: (emitter.emit('from emitter', n), emitter.flush(), n)[2] for n in range(30)]"
    assert await pair.there.ask(f"in_background({emit})") == list(range(30))
    for client in (pair.client_there, pair.client_here):
        assert sorted(await client.wait_for("from emitter", 30)) == [(n,) for n in range(30)]


async def test_a_client_in_the_same_process(served: Served) -> None:
    """`PostgresClient` waits without stopping the hub: what it waits for is sent by the same process."""
    expression = (
        "(lambda client: (client.listen('raw'), in_background("
        "lambda: client.wait_for_notification(30).payload,"
        "lambda: (sio.sleep(0.1), client.notify('raw', 'hello'))[0]), client.close())[1])(PostgresClient(DSN))"
    )
    assert await served.program.ask(expression) == ["hello", None]


async def test_an_emitter_elsewhere(pair: Pair, served: Served) -> None:
    async with AsyncEmitter(served.dsn) as emitter:
        await emitter.emit("outside", LARGE)
    for client in (pair.client_there, pair.client_here):
        assert await client.wait_for("outside") == [(LARGE,)]


async def test_a_server_that_leaves_is_not_waited_for(pair: Pair) -> None:
    await pair.mgr.close()
    await eventually(lambda: _equals(lambda: pair.there.ask("mgr.server_count()"), 1), "the goodbye was heard")
    assert await pair.there.ask("len(mgr.timeout(30).fetch_sockets())") == 1
