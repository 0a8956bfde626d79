"""One server and many clients: every broadcast to all of them."""

from __future__ import annotations

import importlib.util
from contextlib import AsyncExitStack
from dataclasses import dataclass

from benches.load.rounds import Turn, alternate
from benches.load.stage import NAMES, ROOM, Cluster, Stage
from benches.results import Row, Table, Target


@dataclass(frozen=True)
class Candidate:
    """A server: what joins it to others, and the ASGI server under it."""

    kind: str
    host: str = "default"
    needs: str = ""
    """Package."""


MANAGERS = {NAMES[kind]: Candidate(kind) for kind in ("ours", "stock", "redis", "node")}
ASGI_SERVERS = {
    "uvicorn, websockets": Candidate("ours", "websockets"),
    "uvicorn, websockets-sansio, uvloop": Candidate("ours", "sansio", "uvloop"),
    "uvicorn, wsproto": Candidate("ours", "wsproto", "wsproto"),
    "granian, uvloop": Candidate("ours", "granian", "granian"),
    NAMES["node"]: Candidate("node"),
}
CROWDS = (300, 1000, 3000)
PACKETS = 30_000
"""Of one round, over all clients."""


async def fan_out(stage: Stage) -> list[Table]:
    """python-socketio's managers and Node.js, with 300 clients and 3,000."""
    ours, stock = NAMES["ours"], NAMES["stock"]
    tables = []
    for clients in stage.scale.clients:
        titles = (
            f"One server, {clients:,} clients, every broadcast to all",
            f"CPU of that server for one packet to one of {clients:,} clients",
        )
        rates, cpu = await _measure(stage, clients, MANAGERS, f"fan-out-{clients}", titles)
        rates.targets.append(Target(ours, stock, 2.5))
        tables += [rates, cpu]
    return tables


async def asgi_servers(stage: Stage) -> list[Table]:
    """This package under each ASGI server."""
    tables = []
    for clients in CROWDS if stage.scale.effort >= 1 else stage.scale.clients:
        titles = (
            f"Which ASGI server: {clients:,} clients, every broadcast to all",
            f"CPU of each ASGI server for one packet to one of {clients:,} clients",
        )
        tables += await _measure(stage, clients, ASGI_SERVERS, f"asgi-{clients}", titles)
    return tables


async def _measure(
    stage: Stage, clients: int, candidates: dict[str, Candidate], table: str, titles: tuple[str, str]
) -> tuple[Table, Table]:
    """Packets per second, and CPU time of one."""
    cpu: dict[str, list[float]] = {}

    def turn(name: str, cluster: Cluster) -> Turn:
        async def run() -> float:
            broadcasts = max(PACKETS // clients if stage.scale.effort >= 1 else 2, 2)
            before = await cluster.servers[0].call("usage")
            delivered = await cluster.deliver("burst", broadcasts)
            after = await cluster.servers[0].call("usage")
            packets = broadcasts * clients
            used = (after["cpu_s"] - before["cpu_s"]) / packets * 1e6
            cpu.setdefault(name, []).append(used)
            return packets / delivered.seconds

        return run

    missing = {name: _missing(stage, candidate) for name, candidate in candidates.items()}
    async with AsyncExitStack() as stack:
        turns = {}
        for name, candidate in candidates.items():
            if not missing[name]:
                cluster = await stack.enter_async_context(stage.cluster(candidate.kind, 1, candidate.host))
                await cluster.connect(clients, ROOM)
                await cluster.until_heard()
                turns[name] = turn(name, cluster)
        values = await alternate(stage.scale, turns)
    ours = {name for name, candidate in candidates.items() if candidate.kind == "ours"}
    absent = [Row(name, [], note=reason) for name, reason in missing.items() if reason]
    return (
        Table(
            id=table,
            title=titles[0],
            unit="packets/s",
            rows=[Row(name, found, is_ours=name in ours) for name, found in values.items()] + absent,
            notes=["From the first emit to the last packet at the last client. One process holds all clients."],
        ),
        Table(
            id=f"{table}-cpu",
            title=titles[1],
            unit="µs",
            # The first one of each was the unmeasured round.
            rows=[Row(name, cpu[name][1:], is_ours=name in ours) for name in values] + absent,
            is_more_better=False,
            notes=["The same rounds, all threads."],
        ),
    )


def _missing(stage: Stage, candidate: Candidate) -> str:
    """Why it cannot be measured here; empty when it can."""
    if candidate.needs and importlib.util.find_spec(candidate.needs) is None:
        return f"not measured: {candidate.needs} is not installed"
    return stage.missing(candidate.kind)
