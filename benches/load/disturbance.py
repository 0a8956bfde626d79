"""What a cluster's messages do to somebody else's writes on the same PostgreSQL.

PostgreSQL commits transactions that notify one at a time, those of all its databases. An application that notifies in
each of its transactions therefore queues up all its commits; ours takes that lock once for a group of messages.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

from benches.load.rounds import Turn, alternate
from benches.load.stage import NAMES, ROOM, Stage
from benches.load.worker import Worker
from benches.results import Row, Table, Target
from socketio_postgres.demo.embedded import EmbeddedPostgres

SETTINGS = {"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on", "max_connections": "100"}
CLIENTS = 8
ALONE, INSIDE = "pgbench alone", "NOTIFY inside each of its transactions"
BESIDE = f"{NAMES['ours']} beside it, as many messages"
UPDATE = """\\set id random(1, 100000)
\\set delta random(-5000, 5000)
BEGIN;
UPDATE pgbench_accounts SET abalance = abalance + :delta WHERE aid = :id;
{notify}END;
"""
NOTIFY = "SELECT pg_notify('socket.io#/', repeat('x', 250) || :id || ' ' || :delta || random());\n"


def find_pgbench() -> str | None:
    """The program: of the PATH, or where Debian puts it."""
    found = shutil.which("pgbench")
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/pgbench"))
    return found or (str(debian[-1]) if debian else None)


@contextmanager
def scripts() -> Iterator[dict[str, str]]:
    """Pgbench's transaction, with a notification inside and without."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for name, notify in ((ALONE, ""), (INSIDE, NOTIFY)):
            path = Path(folder) / f"{len(paths)}.sql"
            path.write_text(UPDATE.format(notify=notify))
            paths[name] = str(path)
        yield paths


async def disturbance(stage: Stage) -> Table:
    """Transactions a second of pgbench, alone, with our bus beside it, and with NOTIFY inside."""
    program = find_pgbench()
    table = Table(
        id="disturbance",
        title="An unrelated write workload on the same PostgreSQL",
        unit="transactions/s",
        rows=[Row(name, [], note="not measured: no pgbench") for name in (ALONE, BESIDE, INSIDE)],
        targets=[Target(BESIDE, INSIDE, 1.0)],
        notes=[
            (
                f"{CLIENTS} connections of pgbench update one row in each transaction, fsync on. Beside it `Emitter` "
                "sends as many messages a second as pgbench commits alone, and a server of this package listens; "
                "inside, every transaction calls `pg_notify` with a message of that size, and a session listens."
            ),
        ],
    )
    if program is None:
        return table
    with EmbeddedPostgres(settings=SETTINGS) as postgres, scripts() as paths:
        dsn = postgres.dsn("postgres")
        await asyncio.to_thread(subprocess.run, [program, "-i", "-q", "-s", "1", dsn], check=True, capture_output=True)

        async def pgbench(script: str) -> float:
            command = [
                program,
                "-n",
                "-c",
                str(CLIENTS),
                "-j",
                "1",
                "-T",
                str(stage.scale.pgbench_s),
                "-f",
                script,
                dsn,
            ]
            process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
            output, _ = await process.communicate()
            found = re.search(r"tps = ([\d.]+)", output.decode())
            if found is None:
                raise RuntimeError(output.decode())
            return float(found[1])

        async with AsyncExitStack() as stack:
            emitter = await stack.enter_async_context(Worker("emitter"))
            await emitter.call("open", kind="ours", address=dsn)
            listener = await stack.enter_async_context(Worker("listener"))
            await listener.call("listen", address=dsn)
            alone = [await pgbench(paths[ALONE])]

            async def beside() -> float:
                rate = alone[-1]
                emitting = emitter.start("pace", room=ROOM, rate=rate, seconds=stage.scale.pgbench_s)
                tps = await pgbench(paths[ALONE])
                await emitter.wait(emitting)
                return tps

            async def by_itself() -> float:
                alone.append(await pgbench(paths[ALONE]))
                return alone[-1]

            turns: dict[str, Turn] = {ALONE: by_itself, BESIDE: beside, INSIDE: lambda: pgbench(paths[INSIDE])}
            values = await alternate(stage.scale, turns)
    table.rows[:] = [Row(name, found, is_ours=name == BESIDE) for name, found in values.items()]
    return table
