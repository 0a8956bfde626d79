"""What a server makes of a flood from outside: for a client of its own, and for nobody here."""

from __future__ import annotations

from contextlib import AsyncExitStack

from benches.load.emitter import CHANNEL
from benches.load.flood import Flood, NotifyFlood, PublishFlood, bus_frames, pubsub_frames
from benches.load.rounds import Turn, alternate
from benches.load.spreading import missing_rows
from benches.load.stage import FENCE, NAMES, ROOM, Cluster, Stage, check
from benches.results import Row, Table, Target

KINDS = {kind: name for kind, name in NAMES.items() if kind != "stock"}
HERE = {"ours": 30_000, "node": 30_000, "redis": 8_000, "pg-manager": 8_000}
ELSEWHERE = {"ours": 100_000, "node": 50_000, "redis": 20_000, "pg-manager": 10_000}
"""Messages of one round. Redis is not given more than its subscribers may leave unread: 8 MB."""


async def flood(stage: Stage, cluster: Cluster, room: str, count: int) -> Flood:
    """Frames for a room of that cluster's servers."""
    if cluster.kind in {"ours", "node"}:
        # The frames of our own emitter for both: Node.js ignores the numbers that ours checks.
        source = stage.database()
        frames = bus_frames(source, room, count, FENCE)
        dsn = cluster.address if cluster.kind == "ours" else cluster.address["dsn"]
        return NotifyFlood(dsn, CHANNEL, frames)
    frames = await pubsub_frames(room, count, FENCE)
    if cluster.kind == "redis":
        return PublishFlood(cluster.address, "socketio", frames)
    return NotifyFlood(cluster.address, "socketio", frames)


async def member(stage: Stage, stack: AsyncExitStack, kind: str, room: str) -> Cluster:
    """One server with one client."""
    cluster = await stack.enter_async_context(stage.cluster(kind, 1))
    await cluster.connect(1, ROOM, room)
    await cluster.until_heard()
    return cluster


async def somebody_here(stage: Stage) -> Table:
    """A flood for the room of one client."""

    def turn(cluster: Cluster, source: Flood, count: int) -> Turn:
        async def run() -> float:
            await cluster.clients.call("expect", count=count)
            arriving = cluster.clients.start("collect")
            began = await source.send()
            arrived = await cluster.clients.wait(arriving)
            check(cluster.kind, arrived)
            return count / (arrived["last_us"] - began) * 1e6

        return run

    async with AsyncExitStack() as stack:
        turns = {}
        for kind, name in KINDS.items():
            if not stage.missing(kind):
                count = stage.scale.count(HERE[kind])
                cluster = await member(stage, stack, kind, ROOM)
                turns[name] = turn(cluster, await flood(stage, cluster, ROOM, count), count)
        values = await alternate(stage.scale, turns)
    ours = NAMES["ours"]
    return Table(
        id="received",
        title="A flood from outside, one client in the room",
        unit="messages/s",
        rows=[Row(name, found, is_ours=name == ours) for name, found in values.items()] + missing_rows(stage, KINDS),
        targets=[Target(ours, NAMES["redis"], 5.0), Target(ours, NAMES["node"], 1.0)],
        notes=[
            (
                "From the commit of one transaction (Redis: from the first byte of one pipeline) to the last packet at "
                "the client. The frames are made before the clock starts, and PostgreSQL's sender is not written in "
                "Python."
            ),
        ],
    )


async def nobody_here(stage: Stage) -> Table:
    """CPU of a server for messages to a room in which it has nobody."""

    def turn(cluster: Cluster, source: Flood, count: int) -> Turn:
        server = cluster.servers[0]

        async def run() -> float:
            await cluster.clients.call("expect", count=1)
            arriving = cluster.clients.start("collect")
            before = await server.call("usage")
            await source.send()
            check(cluster.kind, await cluster.clients.wait(arriving))
            after = await server.call("usage")
            return (after["cpu_s"] - before["cpu_s"]) / count * 1e6

        return run

    async with AsyncExitStack() as stack:
        turns = {}
        for kind, name in KINDS.items():
            if not stage.missing(kind):
                count = stage.scale.count(ELSEWHERE[kind])
                cluster = await member(stage, stack, kind, FENCE)
                turns[name] = turn(cluster, await flood(stage, cluster, "elsewhere", count), count)
        values = await alternate(stage.scale, turns)
    ours = NAMES["ours"]
    return Table(
        id="nobody",
        title="CPU of a server for a message to a room without a local client",
        unit="µs",
        rows=[Row(name, found, is_ours=name == ours) for name, found in values.items()] + missing_rows(stage, KINDS),
        is_more_better=False,
        targets=[
            Target(ours, None, limit=1.0),
            Target(ours, NAMES["node"], 5.0),
            Target(ours, NAMES["redis"], 25.0),
        ],
        notes=[
            (
                "User and system time of the server's process, all threads, from before the flood until the one "
                "message after it that is for a client has arrived."
            ),
        ],
    )
