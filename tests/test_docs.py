"""The documents are true: their snippets run, their links lead somewhere, and their tables match the code.

Every block marked `python` stands alone and is executed as it is, against a real database: any `"postgresql://…"` in it
becomes the DSN of this test, and any `timeout=…` is long enough for a busy machine. Blocks may await at top level.
"""

from __future__ import annotations

import ast
import asyncio
import dataclasses
import importlib
import inspect
import json
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import socketio
from django.db import connections
from psycopg.conninfo import make_conninfo

import socketio_postgres
from socketio_postgres import (
    NO_STREAM,
    AsyncEmitter,
    AsyncPostgresManager,
    BusOptions,
    DatabaseError,
    Emitter,
    Event,
    EventStore,
    EventStoreOptions,
    MessageType,
    OptionsError,
    SocketIOPostgresError,
    _core,
    exceptions,
)
from socketio_postgres._cluster import rooms
from tests.fixtures.database import Database
from tests.fixtures.user_transactions import django_connection
from tests.fixtures.waiting import TIMEOUT_S, eventually

ROOT = Path(__file__).parents[1]
EPOCH = datetime.fromtimestamp(0, tz=timezone.utc)
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benches/**/*.md")])

_BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
_DSN = re.compile(r'"postgres(?:ql)?://[^"]*"')
_TIMEOUT = re.compile(r"\btimeout=[\d.]+")
_LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")
_ROW = re.compile(r"^\| `(?P<name>\w+)` \| (?P<cells>.*) \|$", re.MULTILINE)
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Snippet:
    """A block of Python."""

    document: Path
    line: int
    code: str

    def __str__(self) -> str:
        return f"{self.document.relative_to(ROOT)}:{self.line}"


def snippets() -> list[Snippet]:
    """All of all documents."""
    return [
        Snippet(document, text.count("\n", 0, match.start("code")) + 1, match["code"])
        for document in DOCUMENTS
        for text in [document.read_text()]
        for match in _BLOCK.finditer(text)
    ]


@pytest.mark.parametrize("snippet", snippets(), ids=str)
def test_snippet_runs(snippet: Snippet, database: Database) -> None:
    source = _TIMEOUT.sub(f"timeout={TIMEOUT_S}", _DSN.sub(repr(database.url), snippet.code))
    code = compile(source, str(snippet), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    variables: dict[str, Any] = {"__name__": "snippet"}

    async def run() -> None:
        result = eval(code, variables)  # noqa: S307 - our own documents
        if inspect.isawaitable(result):
            await result
        for value in variables.values():
            if isinstance(value, AsyncPostgresManager):
                await value.close()

    asyncio.run(run())


def test_the_snippet_of_django_runs(database: Database) -> None:
    """The one block that needs names from around it."""
    [code] = re.findall(
        r"^```py\n(.*?)^```$", (ROOT / "docs/emit-with-your-data.md").read_text(), re.MULTILINE | re.DOTALL
    )
    ours = django_connection(database)
    order = SimpleNamespace(id=7, save=lambda: ours.cursor().execute("CREATE TABLE orders ()"))
    connections["default"] = ours
    try:
        with database.connect() as admin, Emitter(database.dsn) as io:
            admin.execute('LISTEN "socket.io#/"')
            exec(code, {"io": io, "order": order})  # noqa: S102 - our own documents
            [notified] = admin.notifies(timeout=TIMEOUT_S, stop_after=1)
    finally:
        ours.close()
        del connections["default"]
    assert '"order-7"' in notified.payload
    assert database.value("SELECT pg_catalog.to_regclass('orders')::text") == "orders"


def test_the_reference_has_every_public_name() -> None:
    described = set()
    for page in (ROOT / "docs/api").glob("*.md"):
        for module in re.findall(r"automodule:: (\S+)", page.read_text()):
            described |= set(importlib.import_module(module).__all__)
    assert described >= set(socketio_postgres.__all__)
    public = {module.name for module in pkgutil.iter_modules(socketio_postgres.__path__) if module.name[0] != "_"}
    pages = {page.stem for page in (ROOT / "docs/api").glob("*.md")} - {"index"}
    assert pages == public - {"cli", "demo"}, "commands have pages of their own"


def test_there_are_snippets() -> None:
    assert sum(snippet.document.name == "README.md" for snippet in snippets()) >= 3


def slugs(document: Path) -> set[str]:
    """Anchors that GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.*)$", _FENCED.sub("", document.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for match in _LINK.finditer(_FENCED.sub("", document.read_text())):
        path, _, anchor = match["target"].partition("#")
        if re.match(r"[a-z]+:", path):
            continue  # the network's business
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), match["target"]
        if anchor:
            assert anchor in slugs(target), match["target"]


def test_each_promise_names_its_test() -> None:
    text = (ROOT / "docs/reliability.md").read_text()
    sections = re.findall(r"^## Promises of the (?:cluster|event store)\n(.*?)(?=^## )", text, re.MULTILINE | re.DOTALL)
    promises = [line for section in sections for line in section.splitlines()[3:] if line.startswith("| ")]
    assert len(sections) == 2
    assert len(promises) > 30
    for promise in promises:
        proof = promise.split(" | ")[-1]
        assert re.search(r"\]\(\.\./(tests|rust/fuzz)/", proof) or "(operations.md" in promise, promise


STORE_PAGES = ["event-store", "event-store-waits", "event-store-reference", "event-store-and-go", "running-the-store"]


@pytest.mark.parametrize("page", STORE_PAGES)
def test_each_section_about_the_store_names_its_tests(page: str) -> None:
    sections = re.split(r"^## ", (ROOT / f"docs/{page}.md").read_text(), flags=re.MULTILINE)[1:]
    assert sections
    for heading, _, section in (section.partition("\n") for section in sections):
        if heading != "Where to read on":
            assert re.match(r"Proven by \[.*\]\(\.\./tests/", section.rstrip("\n").splitlines()[-1]), heading


def rows(document: str, heading: str) -> dict[str, list[str]]:
    """Rows of the first table below a heading: the name in its first column, and the other cells."""
    text = (ROOT / document).read_text()
    _, found, section = text.partition(f"\n## {heading}\n")
    assert found, heading
    section = re.split(r"\n## ", section)[0]
    return {match["name"]: match["cells"].split(" | ") for match in _ROW.finditer(section)}


def test_options_table() -> None:
    documented = {name: cells[0] for name, cells in rows("docs/options.md", "Options").items()}
    actual = {}
    for parameters in (
        inspect.signature(AsyncPostgresManager).parameters.values(),
        inspect.signature(BusOptions).parameters.values(),
    ):
        for parameter in parameters:
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
                actual[parameter.name] = parameter.default
    assert documented.keys() == actual.keys()
    for name, default in actual.items():
        value = ast.literal_eval(documented[name].strip("`")) if documented[name] != "required" else None
        if default is not inspect.Parameter.empty:
            assert value == default, name


def test_options_table_of_the_store() -> None:
    documented = {
        name: ast.literal_eval(cells[0].strip("`"))
        for name, cells in rows("docs/event-store-reference.md", "Options").items()
    }
    assert documented == {
        field.name: None if field.default is dataclasses.MISSING else field.default
        for field in dataclasses.fields(EventStoreOptions)
    }


def test_statistics_table(database: Database) -> None:
    async def keys() -> set[str]:
        manager = AsyncPostgresManager(database.dsn)
        await manager.start()
        try:
            return set(manager.stats())
        finally:
            await manager.close()

    assert rows("docs/operations.md", "Statistics").keys() == asyncio.run(keys())


def test_statistics_of_the_store(database: Database) -> None:
    with EventStore(database.dsn) as store:
        assert rows("docs/event-store-reference.md", "Statistics").keys() == store.stats().keys()


def test_tables_of_the_store() -> None:
    """The reference shows the event table as it is created, and names every side table."""
    page = (ROOT / "docs/event-store-reference.md").read_text()
    [shown] = re.findall(r"^```sql\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    created = _core.EventStore(EventStoreOptions()).ddl(["events", "settled", "subscriptions"])
    plain = re.sub(r'pg_catalog\.|"', "", created)
    assert set(shown.replace('"', "").splitlines()) <= set(plain.splitlines())
    _, _, section = page.partition("\n## Tables\n")
    assert set(re.findall(r"CREATE TABLE (?:IF NOT EXISTS )?(\w+)", plain)) - {"events"} == set(
        re.findall(r"`(events_\w+)`", section.partition("| Side table |")[2].partition("\n\n")[0])
    )


def test_compatibility_table() -> None:
    text = (ROOT / "docs/compatibility.md").read_text()
    project = (ROOT / "pyproject.toml").read_text()
    packages = json.loads((ROOT / "tests/peers/node/package.json").read_text())["dependencies"]
    for name in ("@socket.io/postgres-adapter", "@socket.io/postgres-emitter"):
        assert f"`{name}` {packages[name]}" in text
    assert packages["socket.io"] == packages["socket.io-client"]
    assert f"`socket.io` and `socket.io-client` {packages['socket.io']}" in text
    python, socketio_ = (
        re.search(pattern, project) for pattern in (r'requires-python = ">=([\d.]+)"', r"python-socketio>=([\d.]+)")
    )
    assert python is not None
    assert socketio_ is not None
    assert f"| Python | {python[1]} and newer" in text
    assert f"| python-socketio | {socketio_[1]} to" in text


def test_each_row_of_the_compatibility_names_its_test() -> None:
    _, _, section = (ROOT / "docs/compatibility.md").read_text().partition("\n## Compatibility\n")
    lines = [line for line in section.splitlines() if line.startswith("| ")][1:]
    assert len(lines) > 10
    for line in lines:
        assert re.search(r"\]\(\.\./(tests/|\.ci/)", line.removesuffix(" |").split(" | ")[-1]), line


def described(function: Callable[[Any], Any], value: Any) -> str:
    """What a function of `socketio_postgres._cluster.rooms` makes of a value, in the words of docs/rooms.md."""
    try:
        meaning = function(value)
    except OptionsError:
        return "refused"
    if meaning is None:
        return "everybody"
    names = [meaning] if isinstance(meaning, str) else meaning
    return ", ".join("`{}`".format(name.replace("\0", "\\0")) for name in names) or "nobody"


def test_rooms_table() -> None:
    _, _, section = (ROOT / "docs/rooms.md").read_text().partition("## What a value means")
    section, _, _ = section.partition("\n## ")
    variables: dict[str, Any] = {}
    [enums] = [match["code"] for match in _BLOCK.finditer(section)]
    exec(enums, variables)  # noqa: S102 - our own documents
    table = re.findall(r"^\| `(.*?)` \| (.*) \|$", section, re.MULTILINE)
    assert len(table) > 20
    for expression, cells in table:
        meanings = [
            described(function, eval(expression, variables))  # noqa: S307 - our own documents
            for function in (
                rooms.room_name,
                lambda value: rooms.chosen_rooms(None, value),
                rooms.skipped_names,
                rooms.checked_sid,
                # The channel has the last word, on a NUL for example.
                lambda value: _core.channel_name("", rooms.chosen_namespace(value)).removeprefix("#"),
            )
        ]
        assert " | ".join(meanings) == cells, expression


def test_message_types_table() -> None:
    text = (ROOT / "docs/wire-protocol.md").read_text()
    documented = dict(re.findall(r"^\| (\d+) \| `([A-Z_]+)` \|", text, re.MULTILINE))
    assert documented == {str(int(kind)): kind.name for kind in MessageType}


def test_table_ddl(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socketio_postgres._cluster._sync.emitter.CLOSE_LIMIT", TIMEOUT_S)
    emitter = Emitter(database.dsn, create_table=False)
    emitter.emit("upload", b"bytes")
    with pytest.raises(DatabaseError) as caught:
        emitter.close()
    _, ddl = str(caught.value.hint).split("\n", 1)
    assert ddl.strip() in (ROOT / "docs/operations.md").read_text()


def sql_block(beginning: str) -> str:
    """The block of SQL in docs/operations.md that begins with this."""
    blocks = re.findall(r"^```sql\n(.*?)^```$", (ROOT / "docs/operations.md").read_text(), re.MULTILINE | re.DOTALL)
    return str(next(block for block in blocks if block.startswith(beginning)))


def test_rights_suffice(database: Database) -> None:
    """A role with the rights that operations.md grants, and no others, can do all that a server does."""
    grants = sql_block("CREATE ROLE").replace(" app ", f" {database.name} ").replace("chat", f"{database.name}_chat")
    restricted = make_conninfo(database.dsn, user=f"{database.name}_chat", password="…")

    async def send_and_receive() -> None:
        async with AsyncEmitter(restricted, create_table=False) as io:
            # The second one deletes attachments so soon that nobody might have read them before.
            reading, deleting = (
                AsyncPostgresManager(restricted, create_table=False, cleanup_interval=interval)
                for interval in (3600, 0.1)
            )
            for server in (reading, deleting):
                socketio.AsyncServer(client_manager=server, async_mode="asgi")
            try:
                await reading.start()
                await io.server_side_emit("upload", b"bytes")  # for the server itself, which has no clients
                await eventually(lambda: reading.stats()["attachments"] == 1, "the attachment is read")
                assert reading.stats()["attachments_missing"] == 0
                await reading.close()
                await deleting.start()
                await deleting.server_side_emit("upload", b"bytes")
                await eventually(
                    lambda: database.value("SELECT count(*) FROM socket_io_attachments") == 0, "both are deleted"
                )
            finally:
                await reading.close()
                await deleting.close()

    with database.connect() as superuser:
        superuser.execute(sql_block("CREATE UNLOGGED TABLE"))
        superuser.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
        superuser.execute(grants)
        try:
            asyncio.run(send_and_receive())
        finally:
            role = f"{database.name}_chat"
            superuser.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


# ------------------------------------------------------------------------- error messages, quoted word for word


def emit(dsn: str, *args: object) -> None:
    with Emitter(dsn) as io:
        io.emit("event", *args)


def store(dsn: str, *events: Event, **options: Any) -> None:
    with EventStore(dsn) as events_of_it:
        for event in events:
            events_of_it.store(event, **options)


def restore_rows_alone(database: Database) -> None:
    store(database.dsn, *(Event("OrderPlaced", f"order-{i}") for i in range(3)))
    with database.connect() as admin:
        admin.execute("SELECT pg_catalog.setval('events_version_seq', 1)")
    store(database.dsn)


def read_after_truncate(dsn: str) -> None:
    with EventStore(dsn) as events:
        events.load(10)


def lose_a_subscription(dsn: str) -> None:
    with EventStore(dsn) as events:
        events.store(Event("OrderPlaced", "order-1"))
        with events.durable("billing") as durable:
            event = next(iter(durable))
            events.rewind_durable("billing", 0)
            durable.ack(event)


def start(dsn: str, **options: Any) -> None:
    async def start_and_close() -> None:
        manager = AsyncPostgresManager(dsn, **options)
        socketio.AsyncServer(client_manager=manager, async_mode="asgi")
        try:
            await manager.start()
        finally:
            await manager.close()

    asyncio.run(start_and_close())


def without_places(text: str) -> str:
    """Text without what differs between machines: the server's address, the system's error number."""
    return re.sub(r"connect to .*?: (?=\w)|\(os error \d+\)", "…", text)


MISTAKES: dict[str, Callable[[Database], None]] = {
    "nothing listens": lambda _: start("postgresql://app@127.0.0.1:1/app"),
    "no such database": lambda database: start(make_conninfo(database.dsn, dbname="missing")),
    "no table": lambda database: start(database.dsn, create_table=False),
    "two databases": lambda database: start(database.dsn, listen_dsn=make_conninfo(database.dsn, dbname="postgres")),
    "not JSON": lambda database: emit(database.dsn, {"user": {"born": EPOCH}}),
    "too large": lambda database: emit(database.dsn, "x" * 20_000_000),
    "unescaped password": lambda _: emit("postgresql://app:se/cret@localhost/app"),
    "another writer": lambda database: store(
        database.dsn, *(Event("OrderPlaced", "order-1") for _ in range(2)), expected=NO_STREAM
    ),
    "an id twice": lambda database: store(database.dsn, Event("A", "order-1", id="a"), Event("B", "order-1", id="a")),
    "rows restored": restore_rows_alone,
    "truncated": lambda database: read_after_truncate(database.dsn),
    "fenced": lambda database: lose_a_subscription(database.dsn),
}


def test_troubleshooting_explains_every_exception() -> None:
    page = (ROOT / "docs/troubleshooting.md").read_text()
    _, _, section = page.partition("\n## Every exception\n")
    explained = re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\| (.*?) \|", section.split("\n## ")[0], re.MULTILINE)))
    assert sorted(explained) == sorted(exceptions.__all__)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_quoted_errors(mistake: str, database: Database) -> None:
    with pytest.raises(SocketIOPostgresError) as caught:
        MISTAKES[mistake](database)
    first_line = str(caught.value).split("\n", 1)[0]
    shown = f"    {type(caught.value).__name__}: {first_line}\n"
    assert without_places(shown) in without_places((ROOT / "docs/troubleshooting.md").read_text())
