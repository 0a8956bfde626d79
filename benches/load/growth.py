"""What more servers, rooms and clients cost."""

from __future__ import annotations

import statistics
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benches.load.rounds import alternate
from benches.load.spreading import missing_rows
from benches.load.stage import FENCE, NAMES, ROOM, Cluster, Stage, check
from benches.results import Row, Table, Target

KINDS = {kind: NAMES[kind] for kind in ("ours", "node")}
MESSAGES = {"ours": 20_000, "node": 4_000}
TICKS_PER_S = 100
"""`/proc` counts CPU time in hundredths of a second, everywhere that Linux runs."""
NOT_SUPERLINEAR = 0.67
"""How good the most servers must be beside the fewest, each for itself: no more than half as expensive again."""


def postgres_cpu_s(pid: int) -> float:
    """CPU seconds of a PostgreSQL server, all its processes."""
    used = 0.0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = path.read_text().rpartition(")")
        except OSError:
            continue  # it has just ended
        fields = rest.split()
        if int(fields[1]) == pid or name.startswith(f"{pid} "):
            used += (int(fields[11]) + int(fields[12])) / TICKS_PER_S
    return used


@dataclass
class _Round:
    """A cluster whose first server emits and whose others receive, and what each needed in every round."""

    stage: Stage
    cluster: Cluster
    servers: list[float] = field(default_factory=list)
    postgres: list[float] = field(default_factory=list)
    publisher: list[float] = field(default_factory=list)

    async def _used(self) -> list[float]:
        """CPU seconds so far: of each server, and last of PostgreSQL."""
        used = [float((await server.call("usage"))["cpu_s"]) for server in self.cluster.servers]
        return [*used, postgres_cpu_s(self.stage.postgres.pid or 0)]

    async def run(self) -> float:
        """CPU of a receiving server for one message that concerns nobody there; notes what the others needed."""
        publisher, clients = self.cluster.servers[0], self.cluster.clients
        count = self.stage.scale.count(MESSAGES[self.cluster.kind])
        await clients.call("expect", count=1)
        arriving = clients.start("collect")
        before = await self._used()
        await publisher.call("burst", room="elsewhere", count=count)
        await publisher.call("flush")
        await publisher.call("burst", room=FENCE, count=1)
        check(self.cluster.kind, await clients.wait(arriving))
        used = [(after - earlier) / count * 1e6 for after, earlier in zip(await self._used(), before, strict=True)]
        self.publisher.append(used[0])
        self.servers.append(statistics.mean(used[1:-1]))
        self.postgres.append(used[-1] / (len(used) - 2))
        return self.servers[-1]


async def servers(stage: Stage) -> list[Table]:
    """From one receiving server to many on one PostgreSQL: CPU for each message."""
    rounds: dict[str, _Round] = {}
    x: dict[str, dict[str, str]] = {}
    for number in stage.scale.servers:
        async with AsyncExitStack() as stack:
            turns = {}
            for kind, name in KINDS.items():
                if stage.missing(kind):
                    continue
                cluster = await stack.enter_async_context(stage.cluster(kind, number + 1))
                for server in range(number):
                    await cluster.connect(1, ROOM, FENCE, server=server + 1)
                await cluster.until_heard()
                who = f"{name}, {number}"
                x.setdefault(name, {})[str(number)] = who
                rounds[who] = _Round(stage, cluster)
                turns[who] = rounds[who].run
            await alternate(stage.scale, turns)

    fewest, most = (f"{NAMES['ours']}, {number}" for number in (stage.scale.servers[0], stage.scale.servers[-1]))

    def table(part: str, title: str, note: str) -> Table:
        rows = [
            Row(who, getattr(found, part)[1:], is_ours=NAMES["ours"] in who)  # the first round was the unmeasured one
            for who, found in rounds.items()
        ]
        return Table(
            id=f"growth-{part}",
            title=title,
            unit="µs",
            rows=rows + missing_rows(stage, KINDS),
            is_more_better=False,
            targets=[Target(most, fewest, NOT_SUPERLINEAR)],
            notes=[note],
            x=x,
            x_label="servers",
        )

    return [
        table(
            "servers",
            "Growth: CPU of each server for a message without a local recipient",
            "Every server receives every message. All servers share two cores, so this is CPU time and not duration.",
        ),
        table(
            "postgres",
            "Growth: CPU of PostgreSQL for a message and each server that receives it",
            "All processes of PostgreSQL, publishing included, divided by the number of receiving servers.",
        ),
        table(
            "publisher",
            "Growth: CPU of the publisher for a message",
            "The server that emits, without clients; the receiving servers need additional CPU.",
        ),
    ]


ROOMS, CLIENTS = 20_000, 1_000
MEMORY_KINDS = {kind: NAMES[kind] for kind in ("ours", "stock", "redis", "node")}


async def memory(stage: Stage) -> list[Table]:
    """Resident memory for rooms and for clients."""
    rooms: dict[str, list[float]] = {}
    clients: dict[str, list[float]] = {}
    for _ in range(min(stage.scale.repetitions, 3)):
        for kind, name in MEMORY_KINDS.items():
            if stage.missing(kind):
                continue
            async with stage.cluster(kind, 1) as cluster:
                server = cluster.servers[0]
                await cluster.connect(1, ROOM)
                await cluster.until_heard()
                begin = (await server.call("usage"))["rss_bytes"]
                await server.call("enter_rooms", count=stage.scale.count(ROOMS))
                middle = (await server.call("usage"))["rss_bytes"]
                connecting = max(int(CLIENTS * min(stage.scale.effort, 1)), 10)
                await cluster.connect(connecting, ROOM)
                await cluster.until_heard()
                end = (await server.call("usage"))["rss_bytes"]
            rooms.setdefault(name, []).append((middle - begin) / stage.scale.count(ROOMS) / 1024 * 1000)
            clients.setdefault(name, []).append((end - middle) / connecting / 1024 * 1000)

    def table(part: str, title: str, found: dict[str, list[float]], note: str) -> Table:
        rows = [Row(name, values, is_ours=name == NAMES["ours"]) for name, values in found.items()]
        return Table(
            id=f"memory-{part}",
            title=title,
            unit="KiB",
            rows=rows + missing_rows(stage, MEMORY_KINDS),
            is_more_better=False,
            notes=[note],
        )

    return [
        table("rooms", "Memory of a server for 1,000 rooms", rooms, "One client enters 20,000 rooms of its own."),
        table("clients", "Memory of a server for 1,000 clients", clients, "Websocket clients in one room."),
    ]
