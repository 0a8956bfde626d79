"""One server and many clients: every broadcast to all of them."""

from __future__ import annotations

from contextlib import AsyncExitStack

from benches.load.rounds import Turn, alternate
from benches.load.spreading import missing_rows
from benches.load.stage import NAMES, ROOM, Cluster, Stage
from benches.results import Row, Table, Target

KINDS = ("ours", "stock", "redis", "node")
PACKETS = 30_000
"""Of one round, over all clients."""


async def fan_out(stage: Stage) -> list[Table]:
    """300 clients and 3,000."""
    return [table for count in stage.scale.clients for table in await _fan_out(stage, count)]


async def _fan_out(stage: Stage, clients: int) -> list[Table]:
    cpu: dict[str, list[float]] = {}

    def turn(cluster: Cluster) -> Turn:
        async def run() -> float:
            broadcasts = max(PACKETS // clients if stage.scale.effort >= 1 else 2, 2)
            before = await cluster.servers[0].call("usage")
            delivered = await cluster.deliver("burst", broadcasts)
            after = await cluster.servers[0].call("usage")
            packets = broadcasts * clients
            used = (after["cpu_s"] - before["cpu_s"]) / packets * 1e6
            cpu.setdefault(NAMES[cluster.kind], []).append(used)
            return packets / delivered.seconds

        return run

    kinds = {kind: NAMES[kind] for kind in KINDS}
    async with AsyncExitStack() as stack:
        turns = {}
        for kind, name in kinds.items():
            if not stage.missing(kind):
                cluster = await stack.enter_async_context(stage.cluster(kind, 1))
                await cluster.connect(clients, ROOM)
                await cluster.until_heard()
                turns[name] = turn(cluster)
        values = await alternate(stage.scale, turns)
    ours, stock = NAMES["ours"], NAMES["stock"]
    missing = missing_rows(stage, kinds)
    return [
        Table(
            id=f"fan-out-{clients}",
            title=f"One server, {clients:,} clients, every broadcast to all",
            unit="packets/s",
            rows=[Row(name, found, is_ours=name == ours) for name, found in values.items()] + missing,
            targets=[Target(ours, stock, 2.5)],
            notes=["From the first emit to the last packet at the last client. One process holds all clients."],
        ),
        Table(
            id=f"fan-out-{clients}-cpu",
            title=f"CPU of that server for one packet to one of {clients:,} clients",
            unit="µs",
            rows=[Row(name, cpu[name][1:], is_ours=name == ours) for name in values] + missing,
            is_more_better=False,
            notes=["The same rounds, all threads."],
        ),
    ]
