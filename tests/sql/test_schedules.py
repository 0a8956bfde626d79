"""Random transactions: what is committed is delivered, once and in order, and nothing else ever is."""

from __future__ import annotations

import random

import psycopg
import pytest

from tests.fixtures.bus import BusReader
from tests.fixtures.database import Database

SCHEDULES = 10_000
TABLES = """
    CREATE TABLE parent (id int PRIMARY KEY);
    CREATE TABLE child (id int REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
    CREATE TABLE rows (id int);
    CREATE TRIGGER live AFTER INSERT ON rows FOR EACH ROW EXECUTE FUNCTION socketio.emit_row('e', '*')
"""
ENDS = ["COMMIT"] * 6 + ["ROLLBACK", "ROLLBACK", "failed COMMIT", "failed statement", "killed"]


class Schedule:
    """One transaction: the statements, and what they tell if it commits."""

    def __init__(self, choose: random.Random, number: int) -> None:
        self.statements = ["BEGIN"]
        self.told: list[int] = []
        self._next = number * 100
        self._fill(choose, depth=0)
        self.end = choose.choice(ENDS if number % 20 == 0 else ENDS[:-1])  # to kill takes long
        if self.end == "failed COMMIT":
            self.statements += ["INSERT INTO child VALUES (1)", "COMMIT"]
        elif self.end == "failed statement":
            self.statements += ["SELECT 1 / 0", "COMMIT"]
        elif self.end == "killed":
            self.statements += ["SELECT pg_terminate_backend(pg_backend_pid())", "COMMIT"]
        else:
            self.statements.append(self.end)
        if self.end != "COMMIT":
            self.told = []

    def _fill(self, choose: random.Random, depth: int) -> None:
        for _ in range(choose.randint(0, 3)):
            kind = choose.choice(["emit", "emit", "row", "large", "savepoint", "savepoint"])
            if kind == "savepoint":
                if depth == 3:
                    continue
                before, name = len(self.told), f"s{depth}"
                self.statements.append(f"SAVEPOINT {name}")
                self._fill(choose, depth + 1)
                if choose.random() < 0.5:
                    del self.told[before:]
                    self.statements.append(f"ROLLBACK TO {name}")
                else:
                    self.statements.append(f"RELEASE {name}")
                continue
            self._next += 1
            self.told.append(self._next)
            if kind == "row":
                self.statements.append(f"INSERT INTO rows VALUES ({self._next})")
            else:
                more = ", repeat('x', 9000)" if kind == "large" and choose.random() < 0.1 else ""
                self.statements.append(f"SELECT socketio.emit('e', jsonb_build_array({self._next}{more}))")


@pytest.mark.timeout(300)
async def test_random_schedules(installed: Database, psql: psycopg.Connection) -> None:
    seed = random.randrange(2**32)  # noqa: S311
    choose = random.Random(seed)  # noqa: S311
    expected: list[int] = []
    connection = installed.connect()
    psql.execute(TABLES)
    async with BusReader(installed, heartbeat_timeout=60.0) as reader:
        for number in range(SCHEDULES):
            schedule = Schedule(choose, number)
            expected += schedule.told
            try:
                connection.execute("; ".join(schedule.statements))
            except psycopg.Error:
                assert schedule.end in {"failed COMMIT", "failed statement", "killed"}, schedule.statements
                if connection.broken:
                    connection.close()
                    connection = installed.connect()
                else:
                    connection.execute("ROLLBACK")
            if number % 500 == 0:
                await reader.wait_for(len(expected))  # lets it read now and then
        connection.close()
        psql.execute("SELECT socketio.emit('end')")
        packets = await reader.wait_for(len(expected) + 1)
    found = [packet[1] if isinstance(packet[1], int) else packet[1]["new"]["id"] for packet in packets[:-1]]
    assert found == expected, f"seed {seed}"
    assert len(found) > SCHEDULES // 10
    assert packets[-1] == ["end"]
    assert reader.gap_infos == []
    assert reader.failures == []
