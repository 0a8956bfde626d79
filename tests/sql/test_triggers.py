"""Rows become events: for each row, and for each statement."""

from __future__ import annotations

import re
from typing import Any

import psycopg
import pytest

from tests.fixtures.bus import BusReader
from tests.fixtures.database import Database
from tests.fixtures.waiting import eventually

EVERY_ROW = (
    "CREATE TRIGGER live AFTER INSERT OR UPDATE OR DELETE ON orders FOR EACH ROW"
    " EXECUTE FUNCTION socketio.emit_row('order', 'customer:{customer_id}', '/', 'id,status')"
)


@pytest.fixture
def orders(psql: psycopg.Connection) -> psycopg.Connection:
    """A connection to a database with a table of orders."""
    psql.execute("CREATE TABLE orders (id int PRIMARY KEY, customer_id int, status text DEFAULT 'new', note text)")
    return psql


def statement_triggers(arguments: str = "'orders', 'customer:{customer_id}', '/', 'id, status'") -> str:
    return ";".join(
        f"CREATE TRIGGER live_{operation} AFTER {operation} ON orders REFERENCING {tables}"
        f" FOR EACH STATEMENT EXECUTE FUNCTION socketio.emit_rows({arguments})"
        for operation, tables in (
            ("INSERT", "NEW TABLE AS n"),
            ("UPDATE", "OLD TABLE AS before NEW TABLE AS after"),
            ("DELETE", 'OLD TABLE AS "the old"'),
        )
    )


async def told(reader: BusReader, connection: psycopg.Connection) -> list[tuple[list[str], list[str], dict[str, Any]]]:
    """Rooms, rooms left out, and the argument of every event so far."""
    connection.execute("SELECT socketio.emit('end')")

    def is_over() -> bool:
        return ["end"] in reader.packets

    await eventually(is_over, "the last event")
    assert reader.failures == []
    found = [
        (message.to, message.except_, message.packet()[1]) for message in reader.messages if message.packet() != ["end"]
    ]
    reader.items.clear()
    return found


def row(op: str, new: Any, old: Any) -> dict[str, Any]:
    return {"op": op, "schema": "public", "table": "orders", "new": new, "old": old}


async def test_each_row(installed: Database, orders: psycopg.Connection) -> None:
    orders.execute(EVERY_ROW)
    new, paid = {"id": 1, "status": "new"}, {"id": 1, "status": "paid"}
    async with BusReader(installed) as reader:
        orders.execute("INSERT INTO orders VALUES (1, 7)")
        assert await told(reader, orders) == [(["customer:7"], [], row("INSERT", new, None))]
        orders.execute("UPDATE orders SET status = 'paid'")
        assert await told(reader, orders) == [(["customer:7"], [], row("UPDATE", paid, new))]
        orders.execute("UPDATE orders SET note = 'secret'")
        assert await told(reader, orders) == [], "nothing that is told has changed"
        orders.execute("DELETE FROM orders")
        assert await told(reader, orders) == [(["customer:7"], [], row("DELETE", None, paid))]
        orders.execute("INSERT INTO orders VALUES (1, 7) ON CONFLICT DO NOTHING")
        orders.execute("INSERT INTO orders VALUES (1, 7) ON CONFLICT (id) DO UPDATE SET status = 'paid'")
        assert [argument["op"] for _, _, argument in await told(reader, orders)] == ["INSERT", "UPDATE"]


async def test_a_row_that_moves_is_gone_for_some_and_new_for_others(
    installed: Database, orders: psycopg.Connection
) -> None:
    orders.execute(EVERY_ROW.replace("'customer:{customer_id}'", "'customer:{customer_id}, status:{status}, all'"))
    async with BusReader(installed) as reader:
        orders.execute("INSERT INTO orders VALUES (1, NULL)")
        new, paid = {"id": 1, "status": "new"}, {"id": 1, "status": "paid"}
        assert await told(reader, orders) == [(["status:new", "all"], [], row("INSERT", new, None))]
        orders.execute("UPDATE orders SET customer_id = 7, status = 'paid'")
        rooms = ["customer:7", "status:paid", "all"]
        assert await told(reader, orders) == [
            (["status:new"], rooms, row("DELETE", None, new)),
            (["all"], [], row("UPDATE", paid, new)),
            (["customer:7", "status:paid"], ["all"], row("INSERT", paid, None)),
        ]
        orders.execute("UPDATE orders SET customer_id = NULL")
        assert await told(reader, orders) == [(["customer:7"], ["status:paid", "all"], row("DELETE", None, paid))]


async def test_rooms_and_columns(installed: Database, orders: psycopg.Connection) -> None:
    orders.execute('CREATE TABLE "T t" ("the id" int, a text, at timestamptz)')
    orders.execute(
        'CREATE TRIGGER x AFTER INSERT ON "T t" FOR EACH ROW'
        " EXECUTE FUNCTION socketio.emit_row('t', '{a}/{the id} in {a}', 'chat')"
    )
    orders.execute("CREATE TRIGGER y AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION socketio.emit_row('t', '*')")
    async with BusReader(installed, ("/", "/chat")) as reader:
        orders.execute("""INSERT INTO "T t" VALUES (5, '{a}, é', '2026-01-02 03:04+00')""")
        orders.execute("INSERT INTO orders VALUES (1, 7)")
        [(rooms, _, value), (everybody, _, whole)] = await told(reader, orders)
    assert rooms == ["{a}, é/5 in {a}, é"], "a value is never taken for a template, nor for several rooms"
    assert value["new"].keys() == {"the id", "a", "at"}
    assert everybody == []
    assert whole["new"] == {"id": 1, "customer_id": 7, "status": "new", "note": None}


async def test_each_statement(installed: Database, orders: psycopg.Connection) -> None:
    orders.execute(statement_triggers())
    async with BusReader(installed) as reader:
        orders.execute("INSERT INTO orders SELECT i, i % 2 FROM generate_series(1, 10) i")
        found = {rooms[0]: argument for rooms, _, argument in await told(reader, orders)}
        assert found.keys() == {"customer:0", "customer:1"}
        assert found["customer:1"] == row("INSERT", [{"id": i, "status": "new"} for i in (1, 3, 5, 7, 9)], []) | {
            "count": 5
        }
        orders.execute("UPDATE orders SET customer_id = 1, status = 'paid' WHERE id <= 2")
        found = {rooms[0]: argument for rooms, _, argument in await told(reader, orders)}
        assert found["customer:0"] == row("UPDATE", [], [{"id": 2, "status": "new"}]) | {"count": 1}
        assert found["customer:1"]["old"] == [{"id": 1, "status": "new"}]
        assert sorted(each["id"] for each in found["customer:1"]["new"]) == [1, 2]
        orders.execute("UPDATE orders SET note = 'x' WHERE false")
        assert await told(reader, orders) == []
        orders.execute("DELETE FROM orders WHERE id > 3")
        found = {rooms[0]: argument for rooms, _, argument in await told(reader, orders)}
        assert [each["id"] for each in found["customer:0"]["old"]] == [4, 6, 8, 10]
        assert found["customer:0"]["new"] == []


async def test_copy(installed: Database, orders: psycopg.Connection) -> None:
    orders.execute(EVERY_ROW)
    orders.execute(statement_triggers())
    async with BusReader(installed) as reader:
        with orders.cursor().copy("COPY orders FROM STDIN") as copy:
            for number in range(100):
                copy.write_row((number, 7, "copied", None))
        found = await told(reader, orders)
    assert len(found) == 101
    [statement] = [argument for _, _, argument in found if "count" in argument]
    assert statement["count"] == 100
    assert {rooms[0] for rooms, _, _ in found} == {"customer:7"}


async def test_a_bulk_update_that_is_too_large_says_so(installed: Database, orders: psycopg.Connection) -> None:
    orders.execute("INSERT INTO orders SELECT i, 7 FROM generate_series(1, 20000) i")
    orders.execute("INSERT INTO orders VALUES (0, 8)")
    orders.execute(statement_triggers())
    async with BusReader(installed) as reader:
        orders.execute("UPDATE orders SET status = 'paid'")
        found = {rooms[0]: argument for rooms, _, argument in await told(reader, orders)}
    assert found["customer:7"] == row("UPDATE", None, None) | {"count": 40000}
    assert found["customer:8"]["new"] == [{"id": 0, "status": "paid"}]


async def test_partitions_have_the_name_of_their_table(installed: Database, psql: psycopg.Connection) -> None:
    psql.execute("CREATE TABLE orders (id int, customer_id int, status text) PARTITION BY RANGE (id)")
    psql.execute("CREATE TABLE orders_1 PARTITION OF orders FOR VALUES FROM (0) TO (10)")
    psql.execute("CREATE TABLE orders_2 PARTITION OF orders FOR VALUES FROM (10) TO (20)")
    psql.execute(EVERY_ROW)
    psql.execute(statement_triggers())
    async with BusReader(installed) as reader:
        psql.execute("INSERT INTO orders VALUES (1, 7, 'new'), (11, 7, 'new')")
        found = [argument for _, _, argument in await told(reader, psql)]
        assert {argument["table"] for argument in found} == {"orders"}
        assert [argument.get("count") for argument in found] == [None, None, 2]
        psql.execute("UPDATE orders SET id = 12 WHERE id = 1")  # to the other partition
        found = [argument for _, _, argument in await told(reader, psql)]
    assert [argument["op"] for argument in found] == ["DELETE", "INSERT", "UPDATE"]


async def test_a_rollback_tells_nothing(installed: Database, orders: psycopg.Connection) -> None:
    orders.execute(EVERY_ROW)
    orders.execute(statement_triggers())
    async with BusReader(installed) as reader:
        with orders.transaction(force_rollback=True):
            orders.execute("INSERT INTO orders SELECT i, i FROM generate_series(1, 50) i")
        with pytest.raises(psycopg.errors.UniqueViolation):
            orders.execute("INSERT INTO orders VALUES (1, 1), (1, 1)")
        assert await told(reader, orders) == []


REFUSED = [
    ("AFTER INSERT", "ROW", "emit_row('e')", "takes the event, the rooms"),
    ("AFTER INSERT", "ROW", "emit_row('e', '*', '/', 'id', 'more')", "takes the event, the rooms"),
    ("AFTER INSERT", "ROW", "emit_row('e', '')", "empty text"),
    ("AFTER INSERT", "ROW", "emit_row('e', 'a,,b')", "empty text"),
    ("AFTER INSERT", "ROW", "emit_row('e', 'r:{nothing}')", "names a column that there is not"),
    ("AFTER INSERT", "ROW", "emit_row('e', 'r:{id')", "names a column that there is not"),
    ("AFTER INSERT", "ROW", "emit_row('e', '*', '/', 'nothing')", "no column 'nothing'"),
    ("AFTER INSERT", "ROW", "emit_row('e', '{note}')", "rooms contains an empty text"),
    ("AFTER INSERT", "ROW", "emit_row('connect', '*')", "reserved"),
    ("BEFORE INSERT", "ROW", "emit_row('e', '*')", "triggers AFTER, FOR EACH ROW"),
    ("AFTER INSERT", "STATEMENT", "emit_row('e', '*')", "triggers AFTER, FOR EACH ROW"),
    ("AFTER INSERT", "STATEMENT", "emit_rows('e', '*')", "transition table"),
    ("AFTER INSERT", "ROW", "emit_rows('e', '*')", "transition table"),
]


@pytest.mark.parametrize(("when", "level", "function", "text"), REFUSED, ids=[f"{a} {b} {c}" for a, b, c, _ in REFUSED])
def test_refused(orders: psycopg.Connection, when: str, level: str, function: str, text: str) -> None:
    """The statement fails: nothing is lost without a word."""
    orders.execute(f"CREATE TRIGGER x {when} ON orders FOR EACH {level} EXECUTE FUNCTION socketio.{function}")
    with pytest.raises(psycopg.Error, match=re.escape(text)):
        orders.execute("INSERT INTO orders VALUES (1, 1, 'new', '')")
    assert orders.execute("SELECT count(*) FROM orders").fetchone() == (0,)


async def test_nobody_hears_of_a_row_without_a_room(installed: Database, orders: psycopg.Connection) -> None:
    """A room whose column is NULL is none: never everybody."""
    orders.execute(EVERY_ROW)
    orders.execute(statement_triggers())
    async with BusReader(installed) as reader:
        orders.execute("INSERT INTO orders VALUES (1, NULL)")
        orders.execute("UPDATE orders SET status = 'paid'")
        orders.execute("DELETE FROM orders")
        assert await told(reader, orders) == []
