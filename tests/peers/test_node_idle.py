"""Servers of ours are silent among themselves, and send a Node.js server the heartbeats that it lives by."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest
import socketio

from socketio_postgres import AsyncPostgresManager
from tests.fixtures.database import Database
from tests.fixtures.node import NodePeer, NodeServer
from tests.fixtures.spy import Spy, spying
from tests.fixtures.waiting import eventually

INTERVAL_S, TIMEOUT_S = 0.2, 2.0
NODE = {"heartbeatInterval": INTERVAL_S * 1000, "heartbeatTimeout": TIMEOUT_S * 1000}
NAMESPACES = ("/", "/admin")
HEARTBEAT = 2

LIMIT_S = 100.0
"""A starved server is missed by the others, rightly: then what must go on for a while has to begin anew."""

pytestmark = [pytest.mark.usefixtures("node_packages"), pytest.mark.timeout(400)]


@dataclass
class Pair:
    """Two servers of ours, and what is on the wire."""

    database: Database
    spy: Spy
    managers: list[AsyncPostgresManager]

    async def count(self, count: int) -> None:
        """Wait until both count so many servers in all namespaces."""
        await eventually(lambda: self.counts == {count}, f"ours count {count}")

    @property
    def counts(self) -> set[int]:
        return {manager.server_count(namespace) for manager in self.managers for namespace in NAMESPACES}

    async def silence(self, count: int) -> None:
        """Wait until nothing was sent for longer than the time-out, while both go on counting so many servers."""

        async def is_silent() -> bool:
            before = len(self.spy.frames)
            for _ in range(40):
                await asyncio.sleep(1.5 * TIMEOUT_S / 40)
                assert self.counts == {count}
            return len(self.spy.frames) == before

        await eventually(is_silent, "silence", LIMIT_S)


@pytest.fixture
async def pair(database: Database) -> AsyncIterator[Pair]:
    async with AsyncExitStack() as stack:
        spy = await stack.enter_async_context(spying(database))
        managers = []
        for _ in range(2):
            manager = AsyncPostgresManager(database.dsn, heartbeat_interval=INTERVAL_S, heartbeat_timeout=TIMEOUT_S)
            socketio.AsyncServer(client_manager=manager, async_mode="asgi", namespaces=list(NAMESPACES))
            stack.push_async_callback(manager.close)
            await manager.start()
            managers.append(manager)
        pair = Pair(database, spy, managers)
        await pair.count(2)
        await pair.silence(2)
        yield pair


async def is_watched(node: NodeServer, pair: Pair) -> bool:
    """For several of its time-outs Node counts us, and we it; it looks for the silent once a second."""
    pair.spy.frames.clear()
    end = time.monotonic() + 3 * TIMEOUT_S
    while time.monotonic() < end:
        assert await all_met(node)
        assert pair.counts == {3}
    for manager in pair.managers:
        for namespace in NAMESPACES:
            sent = [
                frame.header["type"]
                for frame in pair.spy.frames
                if (frame.header["uid"], frame.header["nsp"]) == (manager.host_id, namespace)
            ]
            assert set(sent) == {HEARTBEAT}
            assert len(sent) <= 3 * TIMEOUT_S / INTERVAL_S * 2
    return True


async def all_met(node: NodeServer) -> bool:
    return [await node.server_count(namespace) for namespace in NAMESPACES] == [3, 3]


async def test_a_node_server_hears_heartbeats_as_long_as_it_is_there(pair: Pair) -> None:
    async with NodePeer() as peer:
        node = await NodeServer.start(peer, pair.database, NAMESPACES, adapter=NODE)
        await eventually(lambda: all_met(node), "Node counts both")
        await pair.count(3)
        await eventually(lambda: is_watched(node, pair), "they live by heartbeats", LIMIT_S)
        await node.close()
        assert peer.errors == []
    await pair.count(2)
    await pair.silence(2)


async def test_a_node_server_that_dies_is_dropped_and_then_it_is_silent(pair: Pair) -> None:
    async with NodePeer() as peer:
        node = await NodeServer.start(peer, pair.database, NAMESPACES, adapter=NODE)
        await eventually(lambda: all_met(node), "Node counts both")
        peer.kill()
        await pair.count(2)
    await pair.silence(2)
