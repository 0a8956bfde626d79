"""Listens in a process of its own, to be stopped and killed; answers each line on stdin with its statistics."""

import asyncio
import json
import os
import sys

from tests.fixtures.database import Database
from tests.fixtures.workload import Receiver

PROBE_INTERVAL_S = 3.0
"""PostgreSQL gives the session up after three times as long."""


async def main() -> None:
    async with Receiver(Database(os.environ["SIO_PG_TEST_DSN"]), probe_interval=PROBE_INTERVAL_S) as receiver:
        while True:
            stats = {**receiver.stats, "reconnects": receiver.reconnects()}
            print(json.dumps(stats), flush=True)  # noqa: T201 - for the test
            if not await asyncio.to_thread(sys.stdin.readline):
                return


if __name__ == "__main__":
    asyncio.run(main())
