"""The documents are true: their snippets run, their links lead somewhere, and their tables match the code.

Every block marked `python` is executed as it stands, against a real database: any `"postgresql://…"` in it becomes the
DSN of this test. Blocks may await at top level. An invisible comment in the line before a block changes that:

    <!-- test: continues -->         it goes on where the previous block of the document ended
    <!-- test: not run, because … --> it is only compiled
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

from socketio_postgres import (
    AsyncPostgresManager,
    DatabaseError,
    Emitter,
    EncodeError,
    MessageType,
    OptionsError,
    PayloadTooLargeError,
    SocketIOPostgresError,
)
from socketio_postgres.options import BusOptions
from tests.fixtures.database import Database

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benches/*.md")])

_BLOCK = re.compile(r"^(?:<!-- test: (?P<mark>.*?) -->\n)?```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
_DSN = re.compile(r'"postgres(?:ql)?://[^"]*"')
_LINK = re.compile(r"(?<!\!)\[[^\]]+\]\((?P<target>[^)\s]+)\)")
_ROW = re.compile(r"^\| `(?P<name>\w+)` \| (?P<cells>.*) \|$", re.MULTILINE)
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Snippet:
    """A block of Python, with those it continues."""

    document: Path
    line: int
    blocks: tuple[str, ...]
    is_run: bool

    def __str__(self) -> str:
        return f"{self.document.relative_to(ROOT)}:{self.line}"


def snippets() -> Iterator[Snippet]:
    """All of all documents."""
    for document in DOCUMENTS:
        text = document.read_text()
        before: tuple[str, ...] = ()
        for match in _BLOCK.finditer(text):
            mark = match["mark"] or ""
            assert mark in {"", "continues"} or mark.startswith("not run, because "), f"{document}: {mark!r}"
            blocks = (*(before if mark == "continues" else ()), match["code"])
            line = text.count("\n", 0, match.start("code")) + 1
            is_run = not mark.startswith("not run")
            yield Snippet(document, line, blocks, is_run)
            before = blocks


def compiled(code: str, name: str) -> CodeType:
    return compile(code, name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)


@pytest.mark.parametrize("snippet", snippets(), ids=str)
def test_snippet_runs(snippet: Snippet, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = [
        compiled(_DSN.sub(repr(database.url), block), f"{snippet} (block {number})")
        for number, block in enumerate(snippet.blocks, 1)
    ]
    if not snippet.is_run:
        return
    monkeypatch.setenv("DATABASE_URL", database.url)

    async def run() -> None:
        variables: dict[str, Any] = {"__name__": "snippet"}
        for code in codes:
            result = eval(code, variables)  # noqa: S307 - our own documents
            if inspect.isawaitable(result):
                await result
        for value in variables.values():
            if isinstance(value, AsyncPostgresManager):
                await value.close()

    asyncio.run(run())


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


def rows(document: str, heading: str) -> dict[str, list[str]]:
    """Rows of the first table below a heading: the name in its first column, and the other cells."""
    text = (ROOT / document).read_text()
    _, found, section = text.partition(f"\n## {heading}\n")
    assert found, heading
    section = re.split(r"\n## ", section)[0]
    return {match["name"]: match["cells"].split(" | ") for match in _ROW.finditer(section)}


def test_options_table() -> None:
    documented = {name: cells[0] for name, cells in rows("README.md", "Options").items()}
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


def test_statistics_table(database: Database) -> None:
    async def keys() -> set[str]:
        manager = AsyncPostgresManager(database.dsn)
        await manager.start()
        try:
            return set(manager.stats())
        finally:
            await manager.close()

    assert rows("docs/operations.md", "Statistics").keys() == asyncio.run(keys())


def test_message_types_table() -> None:
    text = (ROOT / "docs/wire-protocol.md").read_text()
    documented = dict(re.findall(r"^\| (\d+) \| `([A-Z_]+)` \|", text, re.MULTILINE))
    assert documented == {str(int(kind)): kind.name for kind in MessageType}


def test_table_ddl(database: Database) -> None:
    emitter = Emitter(database.dsn, create_table=False)
    emitter.emit("upload", b"bytes")
    with pytest.raises(DatabaseError) as caught:
        emitter.close()
    _, ddl = str(caught.value.hint).split("\n", 1)
    assert ddl.strip() in (ROOT / "docs/operations.md").read_text()


# ------------------------------------------------------------------------- error messages, quoted word for word


def emitting(*args: Any, **options: Any) -> Any:
    """A function that emits `args` through an Emitter made with `options`."""

    def call(dsn: str) -> None:
        with Emitter(dsn, **options) as io:
            io.emit("event", *args)

    return call


def starting(**options: Any) -> Any:
    """A function that starts a manager made with `options`."""

    def call(dsn: str) -> None:
        async def start() -> None:
            manager = AsyncPostgresManager(dsn, **options)
            try:
                await manager.start()
            finally:
                await manager.close()

        asyncio.run(start())

    return call


QUOTED: dict[str, tuple[type[SocketIOPostgresError], str, Any]] = {
    "nothing listens": (SocketIOPostgresError, "postgresql://app@127.0.0.1:1/app", starting()),
    "no such database": (DatabaseError, "other database", starting()),
    "no table": (DatabaseError, "", starting(create_table=False)),
    "datetime": (EncodeError, "", emitting({"user": {"born": asyncio}})),
    "too large": (PayloadTooLargeError, "", emitting("x" * 20_000_000)),
    "slash in password": (OptionsError, "postgresql://app:se/cret@localhost/app", emitting()),
}


@pytest.mark.parametrize("case", QUOTED)
def test_quoted_errors(case: str, database: Database) -> None:
    kind, dsn, call = QUOTED[case]
    if dsn == "other database":
        dsn = database.dsn.replace(database.name, "missing")
    with pytest.raises(kind) as caught:
        call(dsn or database.dsn)
    first_line = str(caught.value).split("\n", 1)[0]
    # What differs from machine to machine is `…` in the documents.
    shown = re.sub(r"127\.0\.0\.1:\d+|\[local\]:\d+|/\S+:\d+|(?<=os error )\d+", "…", first_line)
    quoted = f"{type(caught.value).__name__}: {shown}"
    text = re.sub(r"db\.example\.com:\d+|(?<=os error )\d+", "…", (ROOT / "README.md").read_text())
    assert quoted in text
