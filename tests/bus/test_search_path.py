"""A schema that stands before PostgreSQL's own in the `search_path` changes nothing, whatever it holds."""

from __future__ import annotations

import ast
import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import socketio

from socketio_postgres import (
    AsyncEmitter,
    AsyncEventStore,
    AsyncPostgresClient,
    AsyncPostgresManager,
    Event,
    Filter,
    StoredEvent,
)
from tests.fixtures.bus import BusReader
from tests.fixtures.database import Database
from tests.fixtures.waiting import eventually

ROOT = Path(__file__).parents[2]
KEYWORD = re.compile(
    r"\b(SELECT|INSERT INTO|UPDATE|DELETE FROM|FROM|WHERE|CREATE|PERFORM|VALUES|RETURNING|SET|EXISTS|UNION|LOCK|CAST)\b"
)
CALLED = re.compile(r"(?<![.\w:{])(?!unnest\([^()]*,)([a-z_][a-z_0-9]*)\(")
"""Calls by the bare name, but for `unnest` of several arrays, which the grammar knows by no other."""
CAST = re.compile(r"::([a-z_][a-z_0-9]*)|\bAS ([a-z_][a-z_0-9]*)\)")
RELATION = re.compile(r"\b(?:FROM|JOIN) (pg_[a-z_]+)\b(?!\.)")
GRAMMAR = {
    "bigint",
    "bit",
    "boolean",
    "double",
    "int",
    "integer",
    "numeric",
    "extract",
    "coalesce",
    "greatest",
    "least",
}
"""What SQL's grammar itself resolves; it has the types' names for PostgreSQL's own."""


def _fragments(path: Path) -> Iterator[str]:
    """The pieces of SQL in a file of ours."""
    text = path.read_text()
    if path.suffix == ".sql":
        yield re.sub(r"--.*", "", text)
    elif path.suffix == ".rs":
        code = re.sub(r"(?m)^\s*//.*", "", text.partition("#[cfg(test)]")[0])
        yield from (
            literal for literal in re.findall(r'"((?:[^"\\]|\\.)*)"', code, re.DOTALL) if KEYWORD.search(literal)
        )
    else:
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and KEYWORD.search(node.value):
                yield node.value


def _sources() -> list[Path]:
    rust, python = ROOT / "rust" / "src", ROOT / "python" / "socketio_postgres"
    modules = [path for path in python.rglob("*.py") if "demo" not in path.parts]
    return sorted([*rust.rglob("*.sql"), *rust.rglob("*.rs"), *python.rglob("*.sql"), *modules])


def test_all_that_is_postgresqls_is_called_by_its_full_name(database: Database) -> None:
    with database.connect() as connection:
        functions = {name for (name,) in connection.execute("SELECT proname FROM pg_catalog.pg_proc")}
        types = {name for (name,) in connection.execute("SELECT typname FROM pg_catalog.pg_type")}
    found, qualified = [], set()
    for path in _sources():
        for fragment in _fragments(path):
            called = {name for name in CALLED.findall(fragment) if name in functions}
            cast = {one or other for one, other in CAST.findall(fragment)} & types
            found += [(path.name, name) for name in (called | cast | set(RELATION.findall(fragment))) - GRAMMAR]
            qualified |= set(re.findall(r"pg_catalog\.([a-z_0-9]+)\(", fragment))
    assert found == []
    assert {"pg_notify", "hashtext", "json_build_object", "make_interval", "pg_is_in_recovery"} <= qualified


@pytest.fixture
def ambushed(database: Database) -> Database:
    """A database whose sessions find, before anything of PostgreSQL's own, something useless of the same name."""
    texts = "\n".join(path.read_text() for path in _sources())
    names = sorted(set(re.findall(r"pg_catalog\.([a-z_0-9]+)", texts)))
    made = set()
    with database.connect() as connection:
        connection.execute("CREATE SCHEMA ambush")
        signatures = connection.execute(
            "SELECT oid::regprocedure::text, proname, pg_get_function_arguments(oid), pg_get_function_result(oid)"
            " FROM pg_proc WHERE proname = ANY(%s) AND pronamespace = 'pg_catalog'::regnamespace",
            [names],
        ).fetchall()
        for signature, name, arguments, result in signatures:
            try:
                connection.execute(
                    f"CREATE FUNCTION ambush.{name}({arguments}) RETURNS {result} LANGUAGE plpgsql"
                    f" AS $ambush$ BEGIN RAISE EXCEPTION 'ambushed by {signature}'; END $ambush$"
                )
                made.add(name)
            except psycopg.errors.Error:  # a pseudo-type that PL/pgSQL does not take
                continue
        kinds = connection.execute(
            "SELECT typname FROM pg_type t LEFT JOIN pg_class c ON c.oid = t.typrelid WHERE typname = ANY(%s)"
            " AND typnamespace = 'pg_catalog'::regnamespace AND c.oid IS NULL AND typtype <> 'p'",
            [names],
        ).fetchall()
        for (kind,) in kinds:
            connection.execute(f"CREATE DOMAIN ambush.{kind} AS pg_catalog.{kind} CHECK (VALUE IS NULL)")
        relations = connection.execute(
            "SELECT relname FROM pg_class WHERE relname = ANY(%s) AND relnamespace = 'pg_catalog'::regnamespace",
            [names],
        ).fetchall()
        for (relation,) in relations:
            connection.execute(f"CREATE TABLE ambush.{relation} (nothing int)")
        connection.execute(f"ALTER DATABASE {database.name} SET search_path = ambush, pg_catalog, public")
    assert {"pg_notify", "hashtext", "nextval", "unnest", "max", "to_regclass", "now", "clock_timestamp"} <= made
    with database.connect() as connection, pytest.raises(psycopg.errors.RaiseException, match="ambushed by"):
        connection.execute("SELECT current_setting('search_path')")
    return database


async def test_the_bus_works_under_a_hostile_search_path(ambushed: Database) -> None:
    async with (
        BusReader(ambushed) as reader,
        AsyncEmitter(ambushed.dsn) as io,
        AsyncPostgresClient(ambushed.dsn) as raw,
    ):
        await io.emit("small", 1)
        await asyncio.gather(*(io.emit("group", number) for number in range(20)))
        await io.emit("binary", b"x" * 10_000)
        await eventually(lambda: len(reader.messages) == 22, "all arrive")
        assert reader.failures == []
        identity = await raw.insert_attachment(b"body")
        assert await raw.get_attachment(identity) == b"body"
        assert await raw.cleanup_attachments(0.0) >= 1


async def test_the_sql_functions_work_under_a_hostile_search_path(ambushed: Database) -> None:
    async with BusReader(ambushed) as reader, AsyncEmitter(ambushed.dsn, signing_key="k" * 100) as io:
        with ambushed.connect() as connection:
            connection.execute("CREATE TABLE public.orders (id int, room pg_catalog.text)")
            await io.install_sql()
            await io.install_sql()
            await io.uninstall_sql()
        async with AsyncEmitter(ambushed.dsn) as unsigned:
            await unsigned.install_sql()
        with ambushed.connect() as connection:
            connection.execute("SELECT socketio.emit('small', '[1]', ARRAY['r'])")
            connection.execute(
                "SELECT socketio.emit('large', ('[\"' || pg_catalog.repeat('x', 9000) || '\"]')::pg_catalog.jsonb)"
            )
            connection.execute("SELECT socketio.join('{a}', '{b}'), socketio.leave('{a}', '{b}')")
            connection.execute(
                "CREATE TRIGGER one AFTER INSERT ON public.orders FOR EACH ROW"
                " EXECUTE FUNCTION socketio.emit_row('row', '{room}')"
            )
            connection.execute(
                "CREATE TRIGGER all_ AFTER INSERT ON public.orders REFERENCING NEW TABLE AS n FOR EACH STATEMENT"
                " EXECUTE FUNCTION socketio.emit_rows('rows', '{room}', '/', 'id')"
            )
            connection.execute("INSERT INTO public.orders VALUES (1, 'r')")
        assert [packet[0] for packet in await reader.wait_for(4)] == ["small", "large", "row", "rows"]
        assert reader.failures == []


async def test_servers_know_each_other_under_a_hostile_search_path(ambushed: Database) -> None:
    errors: list[Exception] = []
    managers = [AsyncPostgresManager(ambushed.dsn, error_handler=errors.append) for _ in range(2)]
    try:
        servers = [socketio.AsyncServer(client_manager=manager, async_mode="asgi") for manager in managers]
        for manager in managers:
            await manager.start()
        await eventually(lambda: all(manager.server_count() == 2 for manager in managers), "they know each other")
        assert len(servers) == 2
    finally:
        for manager in managers:
            await manager.close()
    assert errors == []


async def test_the_event_store_works_under_a_hostile_search_path(ambushed: Database) -> None:
    async with AsyncEventStore(ambushed.dsn) as store:
        await store.store(Event("A", "one", {"n": 1}, {"k": "v"}, id="e1"))
        await asyncio.gather(*(store.store(Event("A", f"x{number}", number)) for number in range(20)))
        await store.store(Event("A", "one", 2), expected=1)
        assert (await store.store(Event("A", "one", {"n": 1}, {"k": "v"}, id="e1"))).version == 1
        assert await store.import_events([Event("I", "two", number) for number in range(3)]) == 3
        filters = [Filter("type_prefix", "A"), Filter("aggregate_prefix", "o"), Filter("data", {"n": 1})]
        assert [event.id for event in await store.load(filters=[*filters, Filter("metadata", {"k": "v"})])] == ["e1"]
        assert await store.latest_version() == 25
        async with await psycopg.AsyncConnection.connect(ambushed.dsn) as connection:
            await store.store_in(connection, Event("T", "one", 3), expected=22)
        assert await store.latest_version() == 26
        assert await store.blockers() == []
        await store.enable_guard()
        await store.enable_go_notifications()
        await store.store(Event("A", "four"))


@pytest.mark.parametrize("partitions", [1, 2])
async def test_durable_subscriptions_work_under_a_hostile_search_path(ambushed: Database, partitions: int) -> None:
    handled: list[int] = []
    async with AsyncEventStore(ambushed.dsn, notification_timeout=1.0) as store:

        async def read(count: int) -> None:
            async with store.durable("d", partitions=partitions) as durable:
                for _ in range(count):
                    event = await asyncio.wait_for(anext(durable), 30)
                    handled.append(event.data)
                    if event.data == 4:
                        await durable.park(event, ValueError("on purpose"))
                    elif event.data % 2:
                        await durable.ack(event)
                    else:
                        async with await psycopg.AsyncConnection.connect(ambushed.dsn) as connection:
                            await durable.ack_in(connection, event)

        reading = asyncio.create_task(read(5))
        await store.store_batch([Event("A", f"a{number}", number) for number in range(10)])
        await reading
        await read(5)
        assert handled == list(range(10))
        (state,) = await store.durable_subscriptions()
        assert (state.name, state.position, state.parked) == ("d", 10, 1)
        replayed: list[StoredEvent] = []
        async with store.durable("d", partitions=partitions) as durable:
            assert [parked.version for parked in await durable.parked()] == [5]
            assert await durable.replay_parked(replayed.append) == 1
        await store.repartition_durable("d", 3)
        await store.rewind_durable("d", 0)
        await store.delete_durable("d")
