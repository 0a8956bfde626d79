#!/usr/bin/env python3
"""Write the blocking twin of every async module; with --check, fail when a committed one is stale.

The source of a pair is `package/async_name.py`, its twin `package/_sync/name.py`. The tables below are all the rules,
beside those that need no table: `async` and `await` go, and with `await` the type of what is awaited. They work on the
syntax tree, so that a name is a name, a docstring is prose, and any other text stays what it is.
"""

# ruff: noqa: D102, N802 - libcst gives the methods their names

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import libcst as cst

PACKAGE: Final = Path(__file__).parent.parent / "python" / "socketio_postgres"

HEADER: Final = "# Generated from {source} by scripts/async_to_sync.py; edit that file.\n"

# ------------------------------------------------------------------------------------------------------ the rules

PRIMITIVES: Final = "_bus/primitives.py"
"""What it defines as `name` and `aname` are the two forms of one thing; so are `_bus.name_blocking` and `_bus.name`."""

NAMES: Final = {
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "__aiter__": "__iter__",
    "__anext__": "__next__",
    "asynccontextmanager": "contextmanager",
    "StopAsyncIteration": "StopIteration",
}
"""Names that change, beside `Async…`, which becomes `…`."""

AWAITED: Final = {"Awaitable": 0, "Coroutine": 2}
"""Types of what is awaited: which of their arguments is the type of the result."""

CONSTANTS: Final = {"IS_ASYNC": False, "self._node.runner.is_at_home()": True}
"""Conditions that are known in the twin: of an `if` with one of them it has only the part that remains."""

DECORATORS: Final = {"on_serving_loop", "starts_serving"}
"""Decorators that the twin does without."""

ASYNC_CONNECTIONS: Final = (
    "An asyncio connection of psycopg or asyncpg, an `AsyncConnection` or `AsyncSession` of SQLAlchemy. It must lead",
    "A connection of psycopg or psycopg 2, SQLAlchemy's `Connection` or `Session`, Django's `connection`. It must lead",
)

PROSE: Final[dict[str, list[tuple[str, str]]]] = {
    "_bus/async_client.py": [
        (
            "of several tasks that wait for one, each gets another.",
            "any thread may call this, and one at a time waits for one.",
        ),
        (
            "a function or a coroutine function. Exceptions",
            "a function or a coroutine function. It runs in a thread of its own. Exceptions",
        ),
        ("as `error_handler`.", "in a thread of its own, as `error_handler`."),
    ],
    "_cluster/async_emitter.py": [
        ("emit to the cluster from any asyncio program", "emit to the cluster from any process or thread"),
        (
            """Each call returns when its message is committed.

            Events of one task arrive in the order of its calls. Many tasks may share one emitter: messages that wait
            while a commit is in flight are committed together. An emitter may be used from several event loops, one
            after the other.""",
            """`emit` returns once the message is in a bounded buffer.

    `emit` blocks while the buffer is full. Messages are committed in the order of the calls, many to a transaction;
    `flush` waits for the commit. The end of the `with` block and the normal end of the process flush; `os._exit` and
    signals that kill do not.

    Thread-safe. A forked child has a connection of its own.""",
        ),
        (
            "everything emitted before, by any task, is committed or failed.",
            "everything emitted before, by any thread, is committed.",
        ),
        ("Commit the buffer and disconnect.", "Commit the buffer and disconnect; raises as `flush` does."),
        ASYNC_CONNECTIONS,
    ],
    "_cluster/async_manager.py": [
        (
            'socketio.AsyncServer(client_manager=mgr, async_mode="asgi")',
            'socketio.Server(client_manager=mgr, async_mode="threading")',
        ),
        ("started before the first use inside a running event loop", "started before the first use"),
        (
            """The manager serves on the event loop on which its clients connect, or which called `start`; before that,
            on the first event loop that uses it. Calls from other event loops, also of other threads, run on the
            serving loop. When the serving loop ends, the next event loop that uses the manager makes it a new server of
            the cluster.""",
            "",
        ),
        ("May be a coroutine function.", "May be a coroutine function; it runs in a thread of its own."),
        ASYNC_CONNECTIONS,
    ],
    "events/async_durable_subscription.py": [
        ("; may be a coroutine function.", ". No coroutine function, which nobody would await here."),
        (
            "OptionsError: The handler is no function.",
            "OptionsError: The handler is no function, or a coroutine function.",
        ),
    ],
    "events/async_event_feed.py": [
        ("An asynchronous iterator", "An iterator"),
    ],
    "events/async_event_store.py": [
        ("Any number of tasks may", "Any number of threads may"),
        (
            "; may be a coroutine function. Exceptions",
            "; no coroutine function. It runs in a thread of its own. Exceptions",
        ),
    ],
    "events/async_subscription.py": [
        ("One task at a time iterates.", "One thread at a time iterates."),
        ("For another task than the one that iterates.", "For another thread than the one that iterates."),
    ],
    "_bus/async_statements.py": [
        ("psycopg, asyncpg or SQLAlchemy.", "psycopg or SQLAlchemy."),
    ],
}
"""What docstrings of a module say otherwise in its twin; a space stands for any white space."""

PROSE_EVERYWHERE: Final = [
    (r"\bAsync(?=[A-Z])", ""),
    (r"\basync (?=with\b|for\b|def\b)", ""),
    (r"\bawait (?=[\w.]+\()", ""),
]
"""Regular expressions: what all docstrings say otherwise."""

LINE_LENGTH: Final = 120


def pairs_of_primitives(text: str) -> dict[str, str]:
    """Names that are defined in both forms, by the async one."""
    defined = set()
    for node in ast.parse(text).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            defined.add(node.name)
        elif isinstance(node, ast.Assign):
            defined.update(target.id for target in node.targets if isinstance(target, ast.Name))
    return {f"a{name}": name for name in defined if f"a{name}" in defined}


class Blocking(cst.CSTTransformer):
    """Carries out the rules.

    Args:
        source: The module, from the package on.
        names: As in `NAMES`.
    """

    def __init__(self, source: str, names: dict[str, str]) -> None:
        super().__init__()
        self._names = names
        self._prose = PROSE.get(source, [])
        self._unused = {text for text, _ in self._prose}

    @property
    def unused(self) -> set[str]:
        """Entries of `PROSE` that no docstring has."""
        return self._unused

    # ------------------------------------------------------------------------------------------- async and await

    def leave_FunctionDef(self, _: cst.FunctionDef, node: cst.FunctionDef) -> cst.FunctionDef:
        kept = [each for each in node.decorators if _code(each.decorator) not in DECORATORS]
        return node.with_changes(asynchronous=None, decorators=kept)

    def leave_With(self, _: cst.With, node: cst.With) -> cst.With:
        return node.with_changes(asynchronous=None)

    def leave_For(self, _: cst.For, node: cst.For) -> cst.For:
        return node.with_changes(asynchronous=None)

    def leave_CompFor(self, _: cst.CompFor, node: cst.CompFor) -> cst.CompFor:
        return node.with_changes(asynchronous=None)

    def leave_Await(self, _: cst.Await, node: cst.Await) -> cst.BaseExpression:
        call = node.expression
        if isinstance(call, cst.Call) and isinstance(call.func, cst.Attribute):
            owner = call.func.value
            if isinstance(owner, cst.Attribute) and owner.attr.value == "_bus":
                name = call.func.attr.with_changes(value=f"{call.func.attr.value}_blocking")
                return call.with_changes(func=call.func.with_changes(attr=name))
        return call

    # ------------------------------------------------------------------------------------------------------ types

    def leave_Subscript(self, _: cst.Subscript, node: cst.Subscript) -> cst.BaseExpression:
        place = AWAITED.get(node.value.value) if isinstance(node.value, cst.Name) else None
        if place is None:
            return node
        index = node.slice[place].slice
        return index.value if isinstance(index, cst.Index) else node

    def leave_BinaryOperation(self, _: cst.BinaryOperation, node: cst.BinaryOperation) -> cst.BaseExpression:
        """The two forms of a type may have become one."""
        is_same = isinstance(node.operator, cst.BitOr) and node.left.deep_equals(node.right)
        return node.left if is_same else node

    # ------------------------------------------------------------------------------------------------------ names

    def leave_Name(self, _: cst.Name, node: cst.Name) -> cst.Name:
        return node.with_changes(value=self._renamed(node.value))

    def leave_SimpleString(self, _: cst.SimpleString, node: cst.SimpleString) -> cst.SimpleString:
        """A name in quotes, as in `__all__` and in forward references; any other text stays."""
        is_name = node.value.startswith(('"Async', "'Async")) and node.value[1:-1].isidentifier()
        return node.with_changes(value=node.value[0] + self._renamed(node.value[1:])) if is_name else node

    def leave_Comment(self, _: cst.Comment, node: cst.Comment) -> cst.Comment:
        return node.with_changes(value=re.sub(r"\bAsync(?=[A-Z])", "", node.value))

    def leave_ImportFrom(self, _: cst.ImportFrom, node: cst.ImportFrom) -> cst.ImportFrom:
        if node.module is None:
            return node
        module = _twin_module(_code(node.module))
        return node.with_changes(module=cst.parse_expression(module))

    def _renamed(self, name: str) -> str:
        return self._names.get(name) or re.sub(r"^Async(?=[A-Z])", "", name)

    # ------------------------------------------------------------------------------------------- what is only async

    def leave_If(
        self, original: cst.If, node: cst.If
    ) -> cst.BaseStatement | cst.FlattenSentinel[cst.BaseStatement] | cst.RemovalSentinel:
        test, is_negated = original.test, False
        if isinstance(test, cst.UnaryOperation) and isinstance(test.operator, cst.Not):
            test, is_negated = test.expression, True
        value = CONSTANTS.get(_code(test))
        if value is None:
            return node
        if value is not is_negated:
            return cst.FlattenSentinel(_statements(node.body))
        if isinstance(node.orelse, cst.If):
            return node.orelse
        return cst.RemoveFromParent() if node.orelse is None else cst.FlattenSentinel(_statements(node.orelse.body))

    # ------------------------------------------------------------------------------------------------------ prose

    def leave_Expr(self, original: cst.Expr, node: cst.Expr) -> cst.Expr:
        if not isinstance(original.value, cst.SimpleString):
            return node
        return node.with_changes(value=original.value.with_changes(value=self._said(original.value.value)))

    def _said(self, text: str) -> str:
        before = text
        for old, new in self._prose:
            pattern = r"\s+".join(map(re.escape, old.split()))
            if old.startswith(" "):
                pattern = r"\s+" + pattern
            text, count = re.subn(pattern, lambda _, new=new: new, text)  # type: ignore[misc]
            if count:
                self._unused.discard(old)
        text = re.sub(r"\n(\s*\n){2,}", "\n\n", text)
        for pattern, new in PROSE_EVERYWHERE:
            text = re.sub(pattern, new, text)
        return text if text == before else "\n".join(_wrapped(text.split("\n")))


def _wrapped(lines: list[str]) -> Iterator[str]:
    """The lines of a docstring, none too long: what is over goes to the front of the paragraph's next line."""
    lines = list(lines)
    for number, line in enumerate(lines):
        if len(line) <= LINE_LENGTH or " " not in line.strip():
            yield line
            continue
        head, _, over = line[: LINE_LENGTH + 1].rpartition(" ")
        over += line[LINE_LENGTH + 1 :]
        yield head
        indent = len(line) - len(line.lstrip()) + (4 if re.match(r"\s+\w+: ", line) else 0)
        following = lines[number + 1] if number + 1 < len(lines) else ""
        if following.startswith(" " * indent) and following[indent : indent + 1].strip('" '):
            lines[number + 1] = f"{' ' * indent}{over} {following.lstrip()}"
        else:
            lines.insert(number + 1, " " * indent + over)


def _code(node: cst.CSTNode) -> str:
    return cst.Module([]).code_for_node(node)


def _statements(body: cst.BaseSuite) -> list[cst.BaseStatement]:
    return [each for each in body.body if isinstance(each, cst.BaseStatement)]


def _twin_module(module: str) -> str:
    """Where a twin finds what its source imports from a module."""
    package, _, name = module.rpartition(".")
    if not name.startswith("async_"):
        return module
    name = name.removeprefix("async_")
    own = "socketio_postgres."
    if not package.startswith(own):
        return f"{package}.{name}"
    return f"{package}._sync.{name}"


def blocking(text: str, source: str = "") -> str:
    """The blocking form of a module's text, not yet formatted.

    Raises:
        ValueError: `PROSE` has something for this source that no docstring says.
    """
    names = NAMES | pairs_of_primitives((PACKAGE / PRIMITIVES).read_text())
    rules = Blocking(source, names)
    twin = cst.parse_module(text).visit(rules).code
    if rules.unused:
        raise ValueError(f"no docstring of {source} says {sorted(rules.unused)}")
    return twin


def formatted(text: str) -> str:
    """Imports sorted, those of nobody left out, and what has become shorter put together."""
    for command in (["check", "--quiet", "--fix", "--select", "F401,I,RUF022,UP028"], ["format", "--quiet"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--stdin-filename", "x.py", "-"]
        text = subprocess.run(ruff, input=text, capture_output=True, text=True, check=True).stdout
    return text


def sources(package: Path = PACKAGE) -> Iterator[Path]:
    """Every async module."""
    yield from sorted(package.rglob("async_*.py"))


def twin_path(source: Path) -> Path:
    """Where the twin of a source is."""
    return source.parent / "_sync" / source.name.removeprefix("async_")


def main() -> int:
    """Write or check every twin, and that there is nothing else beside them."""
    is_check = "--check" in sys.argv
    stale = 0
    wanted = {twin_path(source): source for source in sources()}
    for path, source in wanted.items():
        name = source.relative_to(PACKAGE).as_posix()
        text = formatted(HEADER.format(source=source.name) + blocking(source.read_text(), name))
        if not path.exists() or path.read_text() != text:
            stale += 1
            print(f"{path.relative_to(PACKAGE)}: {'stale, run make twins' if is_check else 'written'}")
            if not is_check:
                path.parent.mkdir(exist_ok=True)
                path.write_text(text)
    for path in sorted(PACKAGE.rglob("_sync/*.py")):
        if path.name != "__init__.py" and path not in wanted:
            stale += 1
            print(f"{path.relative_to(PACKAGE)}: {'has no source' if is_check else 'removed, it has no source'}")
            if not is_check:
                path.unlink()
    return 1 if stale and is_check else 0


if __name__ == "__main__":
    sys.exit(main())
