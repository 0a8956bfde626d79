"""From a process without a server: how many events are committed a second, and how long one takes."""

from __future__ import annotations

from contextlib import AsyncExitStack

from benches.load.rounds import Turn, alternate
from benches.load.spreading import missing_rows
from benches.load.stage import NAMES, ROOM, Stage, WrongResultError
from benches.load.worker import Worker
from benches.results import Row, Table, Target

OURS, NODE, REDIS = "this package: Emitter", "Node.js emitter 0.1.1", "python-socketio: RedisManager"
OURS_MANY = "this package: Emitter.emit_many"
OURS_TASKS, REDIS_TASKS = "this package: AsyncEmitter, 100 tasks", "python-socketio: AsyncRedisManager, 100 tasks"
OURS_AWAITED, ASYNCPG = "this package: AsyncEmitter, 1 task", "asyncpg: SELECT pg_notify"
REDIS_AWAITED = "python-socketio: AsyncRedisManager, 1 task"

RATES = {
    OURS: ("ours", 200_000),
    OURS_MANY: ("ours, many", 200_000),
    OURS_TASKS: ("ours, 100 tasks", 40_000),
    NODE: ("node", 10_000),
    REDIS: ("redis", 8_000),
    REDIS_TASKS: ("redis, 100 tasks", 8_000),
}
TIMES = {OURS_AWAITED: ("ours, 1 task", 5_000), ASYNCPG: ("asyncpg", 5_000), REDIS_AWAITED: ("redis, 1 task", 5_000)}
"""Kind of `emitter.py` and messages of one round, by the name in the report."""


def bus_of(kind: str) -> str:
    """The kind of the stage whose address an emitter uses."""
    return kind.partition(",")[0] if kind != "asyncpg" else "ours"


async def emitting(stage: Stage, stack: AsyncExitStack, kind: str) -> tuple[Worker, Worker]:
    """An emitting process, and one that reads all that reaches a server and throws it away."""
    bus = bus_of(kind)
    address = stage.address(bus)
    worker = await stack.enter_async_context(Worker("peer.js" if kind == "node" else "emitter"))
    await worker.call("open", kind=kind, address=address)
    listener = await stack.enter_async_context(Worker("listener"))
    await listener.call("listen", address=address["dsn"] if kind == "node" else address)
    return worker, listener


def turn(emitter: Worker, listener: Worker, count: int, *, is_rate: bool) -> Turn:
    """One round: messages a second, or microseconds of each."""

    async def run() -> float:
        await listener.call("expect", count=count)
        arriving = listener.start("collect")
        seconds = float((await emitter.call("emit", room=ROOM, count=count))["seconds"])
        arrived = await listener.wait(arriving)
        if arrived != count:
            raise WrongResultError(f"{count} were emitted and {arrived} arrived")
        return count / seconds if is_rate else seconds / count * 1e6

    return run


async def measure(stage: Stage, who: dict[str, tuple[str, int]], *, is_rate: bool) -> list[Row]:
    """Rows of all of them, in turns."""
    async with AsyncExitStack() as stack:
        turns = {}
        for name, (kind, count) in who.items():
            if not stage.missing(bus_of(kind)):
                workers = await emitting(stage, stack, kind)
                turns[name] = turn(*workers, stage.scale.count(count), is_rate=is_rate)
        values = await alternate(stage.scale, turns)
    rows = [Row(name, found, is_ours=name.startswith(NAMES["ours"])) for name, found in values.items()]
    return rows + missing_rows(stage, {bus_of(kind): name for name, (kind, _) in who.items()})


async def rates(stage: Stage) -> Table:
    """Emits of one process, all of them committed."""
    return Table(
        id="emitter",
        title="Emits of a process without a server, committed",
        unit="messages/s",
        rows=await measure(stage, RATES, is_rate=True),
        targets=[
            Target(OURS, NODE, 20.0),
            Target(OURS, REDIS, 25.0),
            Target(OURS_MANY, OURS, 1.0),
            Target(OURS_TASKS, REDIS_TASKS, 10.0),
        ],
        notes=[
            (
                "From the first call to the last commit, for Redis to its last answer. Another process listens and "
                "reads everything; a round counts only when everything has arrived there."
            ),
            (
                "`Emitter` emits in a loop, or by one call of `emit_many`, and flushes once. The Node.js emitter "
                "cannot be awaited: it emits all in one turn of its event loop, through its pool of ten connections, "
                "until the pool has nothing under way."
            ),
        ],
    )


async def times(stage: Stage) -> Table:
    """One awaited emit after the other."""
    return Table(
        id="awaited",
        title="One awaited emit after the other",
        unit="µs",
        rows=await measure(stage, TIMES, is_rate=False),
        is_more_better=False,
        targets=[Target(OURS_AWAITED, ASYNCPG, 1 / 1.3)],
        notes=["Mean of the emits of a round; asyncpg sends the same message, encoded by `json.dumps`."],
    )
