"""From a server to a client of another one: bursts, steady rates, large events."""

from __future__ import annotations

import statistics
from contextlib import AsyncExitStack

from benches.load.rounds import Turn, alternate
from benches.load.stage import NAMES, ROOM, Cluster, Stage
from benches.results import Row, Table, Target

BURSTS = {"ours": 20_000, "node": 5_000, "redis": 5_000, "pg-manager": 2_000, "stock": 20_000}
"""Messages of one round: about a second for each."""


async def connected(stage: Stage, stack: AsyncExitStack, kind: str, servers: int = 2) -> Cluster:
    """A cluster whose last server has one client."""
    cluster = await stack.enter_async_context(stage.cluster(kind, servers))
    await cluster.connect(1, ROOM)
    await cluster.until_heard()
    return cluster


def missing_rows(stage: Stage, kinds: dict[str, str]) -> list[Row]:
    """Rows of those that are not there."""
    return [Row(name, [], note=stage.missing(kind)) for kind, name in kinds.items() if stage.missing(kind)]


async def bursts(stage: Stage) -> Table:
    """One server emits and awaits each, one client of another server receives."""
    disorder: set[str] = set()

    def turn(cluster: Cluster) -> Turn:
        async def run() -> float:
            count = stage.scale.count(BURSTS[cluster.kind])
            delivered = await cluster.deliver("burst", count)
            if not delivered.is_in_order:
                disorder.add(NAMES[cluster.kind])
            return count / delivered.seconds

        return run

    async with AsyncExitStack() as stack:
        turns = {}
        for kind in BURSTS:
            if not stage.missing(kind):
                turns[NAMES[kind]] = turn(await connected(stage, stack, kind, 1 if kind == "stock" else 2))
        values = await alternate(stage.scale, turns)
    ours = NAMES["ours"]
    notes = [
        (
            "From the first call of `emit` to the last arrival. Python awaits every emit, which for this package means "
            "that it stands in the buffer, and for Redis and socketio-pg-manager that the server has answered; the "
            "Node.js adapter cannot be awaited and emits 100 in a turn of its event loop."
        ),
        "python-socketio without a cluster is one server with one client: the cost without any bus.",
    ]
    notes += [f"{name} did not deliver in the order of the calls." for name in sorted(disorder)]
    return Table(
        id="across",
        title="One server bursts, a client of another receives",
        unit="messages/s",
        rows=[Row(name, found, is_ours=name == ours) for name, found in values.items()] + missing_rows(stage, NAMES),
        targets=[
            Target(ours, NAMES["node"], 3.0),
            Target(ours, NAMES["redis"], 3.0),
            Target(ours, NAMES["stock"], 0.8),
        ],
        notes=notes,
    )


def percentile(values: list[int], part: float) -> float:
    """The value that so large a part of them does not exceed."""
    return float(sorted(values)[min(int(len(values) * part), len(values) - 1)])


RATE = 200.0
PACED_S = 2.0


async def latencies(stage: Stage) -> list[Table]:
    """200 events a second, from the call of `emit` to the arrival at the other server's client."""
    kinds = {kind: name for kind, name in NAMES.items() if kind != "stock"}
    tails: dict[str, list[float]] = {name: [] for name in kinds.values()}

    def turn(cluster: Cluster) -> Turn:
        async def run() -> float:
            delivered = await cluster.deliver("pace", stage.scale.count(int(RATE * PACED_S)), rate=RATE)
            tails[NAMES[cluster.kind]].append(percentile(delivered.latencies_us, 0.99) / 1000)
            return statistics.median(delivered.latencies_us) / 1000

        return run

    async with AsyncExitStack() as stack:
        turns = {}
        for kind, name in kinds.items():
            if not stage.missing(kind):
                turns[name] = turn(await connected(stage, stack, kind))
        values = await alternate(stage.scale, turns)
    ours = NAMES["ours"]
    rivals = [Target(ours, NAMES[kind], 1.0) for kind in ("redis", "node")]

    def table(part: str, found: dict[str, list[float]], note: str) -> Table:
        return Table(
            id=f"latency-{part}",
            title=f"Latency at 200 messages/s, {part}",
            unit="ms",
            rows=[Row(name, values, is_ours=name == ours) for name, values in found.items() if values]
            + missing_rows(stage, kinds),
            is_more_better=False,
            targets=rivals,
            notes=[note],
        )

    return [
        table("p50", values, "From the call of `emit` in one server to the arrival at the client of another."),
        # The first one of each was the unmeasured round.
        table("p99", {name: found[1:] for name, found in tails.items()}, "The same rounds, one value for each round."),
    ]


SIZES = {"64 KiB": (64 * 1024, 300), "1 MiB": (1024 * 1024, 30)}


async def large_events(stage: Stage) -> Table:
    """Events of 64 KiB and 1 MiB, text and binary, across servers."""

    def turn(cluster: Cluster, size: int, count: int, *, binary: bool) -> Turn:
        async def run() -> float:
            messages = max(stage.scale.count(count), 5)
            delivered = await cluster.deliver("burst", messages, size=size, binary=binary)
            return messages * size / delivered.seconds / 2**20

        return run

    rows: list[Row] = []
    targets = []
    async with AsyncExitStack() as stack:
        kinds = [kind for kind in ("ours", "node", "redis") if not stage.missing(kind)]
        clusters = {kind: await connected(stage, stack, kind) for kind in kinds}
        for label, (size, count) in SIZES.items():
            for what in ("text", "binary"):
                turns = {
                    f"{NAMES[kind]}, {label} {what}": turn(cluster, size, count, binary=what == "binary")
                    for kind, cluster in clusters.items()
                }
                values = await alternate(stage.scale, turns)
                rows += [Row(name, found, is_ours=NAMES["ours"] in name) for name, found in values.items()]
                targets.append(Target(f"{NAMES['ours']}, {label} {what}", f"{NAMES['node']}, {label} {what}", 2.0))
    return Table(
        id="large",
        title="Large and binary events, from one server to a client of another",
        unit="MiB/s",
        rows=rows + missing_rows(stage, {"node": NAMES["node"], "redis": NAMES["redis"]}),
        targets=targets,
        notes=["As in the bursts above. The servers' own clean-up deletes the rows later."],
    )
