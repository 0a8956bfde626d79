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


async def test_a_column_may_have_any_name(installed: Database, psql: psycopg.Connection) -> None:
    """Also those which the functions use for themselves."""
    names = ["r", "line", "rooms", "is_new", "n", "given", "op", "new", "old"]
    psql.execute(f"CREATE TABLE t ({', '.join(f'{name} text' for name in names)})")
    psql.execute("CREATE TRIGGER x AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION socketio.emit_row('t', 'r:{r}')")
    psql.execute(
        "CREATE TRIGGER y AFTER INSERT ON t REFERENCING NEW TABLE AS r FOR EACH STATEMENT"
        " EXECUTE FUNCTION socketio.emit_rows('t', 'r:{r}')"
    )
    async with BusReader(installed) as reader:
        psql.execute(f"INSERT INTO t VALUES ({', '.join(['%s'] * len(names))})", names)
        line = {name: name for name in names}
        found = await told(reader, psql)
    assert [(rooms, argument["new"]) for rooms, _, argument in found] == [(["r:r"], line), (["r:r"], [line])]


@pytest.mark.parametrize("rooms", ["c:{customer_id}", "all, s:{status}, c:{customer_id}"])
@pytest.mark.parametrize("kind", ["plain", "partitioned"])
async def test_a_statement_that_moves_rows_hides_before_it_shows(
    installed: Database, orders: psycopg.Connection, rooms: str, kind: str
) -> None:
    """A client in both rooms does what the document says, and ends with the rows that there are."""
    if kind == "partitioned":
        orders.execute("DROP TABLE orders")
        orders.execute("CREATE TABLE orders (id int, customer_id int, status text) PARTITION BY LIST (customer_id)")
        orders.execute("CREATE TABLE orders_1 PARTITION OF orders FOR VALUES IN (1, 3)")
        orders.execute("CREATE TABLE orders_2 (status text, gone int, id int, customer_id int)")
        orders.execute("ALTER TABLE orders_2 DROP COLUMN gone")
        orders.execute("ALTER TABLE orders ATTACH PARTITION orders_2 DEFAULT")
    orders.execute(statement_triggers(f"'orders', '{rooms}', '/', 'id, status, customer_id'"))
    shown: dict[int, Any] = {}
    async with BusReader(installed) as reader:
        for change in (
            "INSERT INTO orders SELECT i, i % 3, 'even' FROM generate_series(1, 12) i",
            "UPDATE orders SET customer_id = 2 - customer_id",  # some rows change places
            "UPDATE orders SET customer_id = customer_id + 1, status = 'odd'",
            "UPDATE orders SET customer_id = customer_id - 1 WHERE id > 6",
            "UPDATE orders SET status = 'new'",
            "DELETE FROM orders WHERE id > 9",
        ):
            orders.execute(change)
            for _, _, argument in await told(reader, orders):
                kept = {line["id"] for line in argument["new"]}
                for line in argument["old"]:
                    if line["id"] not in kept:
                        shown.pop(line["id"], None)
                shown.update({line["id"]: line for line in argument["new"]})
            rows = orders.execute("SELECT id, customer_id, status FROM orders").fetchall()
            assert shown == {i: {"id": i, "customer_id": c, "status": s} for i, c, s in rows}, change


async def test_rows_that_stay_are_told_in_one_event(installed: Database, orders: psycopg.Connection) -> None:
    orders.execute(statement_triggers())
    async with BusReader(installed) as reader:
        orders.execute("INSERT INTO orders SELECT i, i % 2 FROM generate_series(1, 6) i")
        await told(reader, orders)
        orders.execute("UPDATE orders SET status = 'paid'")
        found = await told(reader, orders)
    assert [argument["count"] for _, _, argument in found] == [6, 6]
    for _, _, argument in found:
        ids = [line["id"] for line in argument["new"]]
        assert ids == sorted(ids) == [line["id"] for line in argument["old"]]


@pytest.mark.parametrize("level", ["row", "statement"])
async def test_a_row_from_before_the_trigger_can_be_mended_and_deleted(
    installed: Database, orders: psycopg.Connection, level: str
) -> None:
    """It has an empty text where a room should be: nobody is in that room."""
    orders.execute("INSERT INTO orders VALUES (1, 7, ''), (2, 7, '')")
    if level == "row":
        orders.execute(EVERY_ROW.replace("customer:{customer_id}", "{status}"))
    else:
        orders.execute(statement_triggers("'orders', '{status}', '/', 'id'"))
    async with BusReader(installed) as reader:
        orders.execute("DELETE FROM orders WHERE id = 1")
        assert await told(reader, orders) == []
        orders.execute("UPDATE orders SET status = 'paid'")
        assert [rooms for rooms, _, _ in await told(reader, orders)] == [["paid"]]
        with pytest.raises(psycopg.Error, match="rooms contains an empty text"):
            orders.execute("UPDATE orders SET status = ''")


async def test_values_are_what_postgresql_makes_of_them(installed: Database, psql: psycopg.Connection) -> None:
    """Dropped columns are gone, and what JSON has no number for is a text."""
    psql.execute(
        "CREATE TABLE t (id int, double int GENERATED ALWAYS AS (id * 2) STORED, gone int, part numeric, f float8,"
        " at timestamptz, bytes bytea, list int[], pair int4range)"
    )
    psql.execute("ALTER TABLE t DROP COLUMN gone")
    psql.execute(
        "CREATE TRIGGER x AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION socketio.emit_row('t', 'd:{double}')"
    )
    async with BusReader(installed) as reader:
        psql.execute(
            "INSERT INTO t VALUES (1, DEFAULT, 'NaN', '-Infinity', 'infinity', '\\x00ff', '{1,NULL}', '[1,3)');"
            "SET TimeZone = 'Asia/Kolkata';"
            "INSERT INTO t (id, part, at) VALUES (2, 1.10, '2026-01-02 03:04+00')"
        )
        found = await told(reader, psql)
    assert [rooms for rooms, _, _ in found] == [["d:2"], ["d:4"]]
    first, second = (argument["new"] for _, _, argument in found)
    assert first == {
        "id": 1, "double": 2, "part": "NaN", "f": "-Infinity", "at": "infinity", "bytes": "\\x00ff", "list": [1, None],
        "pair": "[1,3)",
    }  # fmt: skip
    assert (second["part"], second["at"]) == (1.1, "2026-01-02T08:34:00+05:30")


async def test_virtual_columns_are_null(installed: Database, psql: psycopg.Connection) -> None:
    """PostgreSQL's doing, which the document tells; should it change, the document must, too."""
    table = "CREATE TABLE t (id int, double int GENERATED ALWAYS AS (id * 2) VIRTUAL)"
    if psql.info.server_version < 180000:
        with pytest.raises(psycopg.errors.SyntaxError):  # there are none
            psql.execute(table.encode())
        return
    psql.execute(table.encode())
    psql.execute("CREATE TRIGGER x AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION socketio.emit_row('t', '*')")
    async with BusReader(installed) as reader:
        psql.execute("INSERT INTO t VALUES (1)")
        assert [argument["new"] for _, _, argument in await told(reader, psql)] == [{"id": 1, "double": None}]


async def test_foreign_keys_and_deferred_triggers(installed: Database, psql: psycopg.Connection) -> None:
    psql.execute("CREATE TABLE p (id int PRIMARY KEY)")
    psql.execute("CREATE TABLE c (p int REFERENCES p ON UPDATE CASCADE ON DELETE CASCADE)")
    psql.execute(
        "CREATE TRIGGER x AFTER UPDATE OR DELETE ON c FOR EACH ROW EXECUTE FUNCTION socketio.emit_row('c', '*')"
    )
    psql.execute(
        "CREATE CONSTRAINT TRIGGER y AFTER INSERT ON c DEFERRABLE INITIALLY DEFERRED FOR EACH ROW"
        " EXECUTE FUNCTION socketio.emit_row('last', '*')"
    )
    async with BusReader(installed) as reader:
        psql.execute("INSERT INTO p VALUES (1); INSERT INTO c VALUES (1); UPDATE p SET id = 2; DELETE FROM p")
        found = await told(reader, psql)
    assert [argument["op"] for _, _, argument in found] == ["UPDATE", "DELETE", "INSERT"], (
        "the deferred one at the commit"
    )
