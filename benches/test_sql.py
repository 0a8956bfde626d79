"""What emitting costs inside PostgreSQL: the same statements with and without it, 10,000 rows or messages a round."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benches.shared import ROUNDS, Committed
from socketio_postgres import Emitter
from tests.fixtures.database import Database

MESSAGES = "emit from SQL"
ROWS = "update rows with triggers"

VALUE = "jsonb_build_object('user', 'ada', 'text', 'hello, world', 'number', i)"
CALLS = {
    "by hand: pg_notify": f"SELECT count(pg_notify('socket.io#/', ({VALUE})::text)) FROM generate_series(1, {{}}) AS i",
    "ours: socketio.emit": (
        f"SELECT count(socketio.emit('chat', jsonb_build_array({VALUE}), ARRAY['room']))"
        " FROM generate_series(1, {}) AS i"
    ),
}
TRIGGERS = {
    "no trigger": ("", 0),
    "by hand: pg_notify for each row": (
        (
            "CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN PERFORM pg_notify('socket.io#/', to_jsonb(NEW)::text); RETURN NULL; END $$;"
            "CREATE TRIGGER x AFTER UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION tell()"
        ),
        1,
    ),
    "ours: emit_row": (
        (
            "CREATE TRIGGER x AFTER UPDATE ON orders FOR EACH ROW"
            " EXECUTE FUNCTION socketio.emit_row('order', 'customer:{customer_id}', '/', 'id,status')"
        ),
        1,
    ),
    "ours: emit_rows": (
        (
            "CREATE TRIGGER x AFTER UPDATE ON orders REFERENCING NEW TABLE AS n FOR EACH STATEMENT"
            " EXECUTE FUNCTION socketio.emit_rows('orders', 'customer:{customer_id}', '/', 'id,status')"
        ),
        0.1,
    ),
}
"""And how many messages a row makes."""


@pytest.fixture
def psql(database: Database) -> Iterator[psycopg.Connection]:
    """A plain connection to a database with the functions."""
    with Emitter(database.dsn) as io:
        io.install_sql()
    with database.connect() as connection:
        yield connection


@pytest.mark.parametrize("call", CALLS)
def test_messages(
    benchmark: BenchmarkFixture, psql: psycopg.Connection, committed: Committed, count: int, call: str
) -> None:
    benchmark.group = MESSAGES
    statement = CALLS[call].format(count)
    assert len(committed(lambda: psql.execute(statement), count)) == count
    benchmark.pedantic(lambda: psql.execute(statement), rounds=ROUNDS)


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_rows(
    benchmark: BenchmarkFixture, psql: psycopg.Connection, committed: Committed, count: int, trigger: str
) -> None:
    benchmark.group = ROWS
    definition, share = TRIGGERS[trigger]
    psql.execute("CREATE TABLE orders (id int PRIMARY KEY, customer_id int, status int DEFAULT 0, note text)")
    psql.execute("INSERT INTO orders SELECT i, i / 10 FROM generate_series(0, %s) AS i", [count - 1])
    if definition:
        psql.execute(definition)
    psql.execute("VACUUM ANALYZE orders")

    def update() -> None:
        psql.execute("UPDATE orders SET status = status + 1")

    if share:
        assert len(committed(update, int(count * share))) == count * share
    benchmark.pedantic(update, rounds=ROUNDS)
