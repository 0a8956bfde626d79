"""The blocking twins are made from the async modules, by few rules that know a name from a text."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from scripts import async_to_sync
from scripts.async_to_sync import PACKAGE, blocking, sources, twin_path

RULES = [
    ("async def f() -> int:\n    return await g()", "def f() -> int:\n    return g()"),
    ("async def f():\n    async with a as b:\n        pass", "def f():\n    with a as b:\n        pass"),
    (
        "async def f():\n    async for a in b:  # one by one\n        pass",
        "def f():\n    for a in b:  # one by one\n        pass",
    ),
    ("async def f():\n    return [a async for a in b if await c(a)]", "def f():\n    return [a for a in b if c(a)]"),
    ("async def f():\n    return (await g()).a", "def f():\n    return g().a"),
    ("async def f():\n    await g(await h())", "def f():\n    g(h())"),
    ("async def f(self):\n    await self._bus.call(x)", "def f(self):\n    self._bus.call_blocking(x)"),
    ("def f(self):\n    self._bus.append(x)", "def f(self):\n    self._bus.append(x)"),
    ("class AsyncA(AsyncB):\n    pass", "class A(B):\n    pass"),
    ("async def __aenter__(self):\n    raise StopAsyncIteration", "def __enter__(self):\n    raise StopIteration"),
    ("async def f():\n    await asleep(1)\n    appended = after", "def f():\n    sleep(1)\n    appended = after"),
    ('__all__ = ["AsyncA", "b"]', '__all__ = ["A", "b"]'),
    ('a = "AsyncA is a word here"', 'a = "AsyncA is a word here"'),
    ('a = "socketio_postgres.store_in"  # of AsyncA', 'a = "socketio_postgres.store_in"  # of A'),
    ("a: Callable[[int], Awaitable[list[str]]]", "a: Callable[[int], list[str]]"),
    ("A: TypeAlias = Coroutine[Any, Any, None]", "A: TypeAlias = None"),
    ("def f(a: Iterable[T] | AsyncIterable[T]): ...", "def f(a: Iterable[T]): ..."),
    ("def f() -> AsyncIterator[int]: ...", "def f() -> Iterator[int]: ..."),
    (
        "from socketio_postgres.events.async_store_in import store_in",
        "from socketio_postgres.events._sync.store_in import store_in",
    ),
    ("from socketio.async_manager import AsyncManager", "from socketio.manager import Manager"),
    ("from socketio_postgres.events.event import Event", "from socketio_postgres.events.event import Event"),
    ("@on_serving_loop\nasync def f(): ...", "def f(): ..."),
    ("def f():\n    if IS_ASYNC:\n        a()\n    b()", "def f():\n    b()"),
    ("def f():\n    if not IS_ASYNC:\n        a()\n    b()", "def f():\n    a()\n    b()"),
    ("def f():\n    if IS_ASYNC:\n        a()\n    else:\n        b()", "def f():\n    b()"),
    ("def f():\n    if IS_ASYNC:\n        a()\n    elif c:\n        b()", "def f():\n    if c:\n        b()"),
    ("def f():\n    if a and IS_ASYNC_NOT:\n        b()", "def f():\n    if a and IS_ASYNC_NOT:\n        b()"),
    ('def f():\n    """As `AsyncA`: await it."""', 'def f():\n    """As `A`: await it."""'),
    (
        'def f():\n    """E.g.\n\n        async with a: await b()\n    """',
        'def f():\n    """E.g.\n\n        with a: b()\n    """',
    ),
]


@pytest.mark.parametrize(("source", "twin"), RULES)
def test_rule(source: str, twin: str) -> None:
    assert blocking(source + "\n") == twin + "\n"


@pytest.mark.parametrize("source", [*sources()], ids=lambda path: path.stem)
def test_a_twin_is_its_own_twin(source: Path) -> None:
    twin = twin_path(source).read_text()
    assert blocking(twin) == twin


def test_prose_changes_in_docstrings_only_and_lines_stay_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(async_to_sync.PROSE, "m.py", [("One task waits.", "One thread waits, " + "and waits, " * 12)])
    source = textwrap.dedent('''
        def f():
            """Say it.

            Args:
                a: One
                    task waits. Then
                    it goes on.
            """
            return "One task waits."
    ''')
    twin = blocking(source, "m.py")
    assert "One thread waits, and waits," in twin
    assert 'return "One task waits."' in twin
    lines = twin.splitlines()
    assert all(len(line) <= 120 for line in lines)
    assert all(line.startswith(" " * 12) for line in lines[lines.index("    Args:") + 2 : -3])
    assert " ".join(twin.split()).count("Then it goes on.") == 1


def test_prose_that_no_docstring_has_any_more_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(async_to_sync.PROSE, "m.py", [("One task waits.", "One thread waits.")])
    with pytest.raises(ValueError, match=r"no docstring of m\.py says \['One task waits\.'\]"):
        blocking('"""Many tasks wait."""\n', "m.py")


def test_every_pair_is_generated() -> None:
    """And generated files are in folders of their own."""
    for source in sources():
        assert twin_path(source).read_text().startswith(f"# Generated from {source.name} by scripts/async_to_sync.py")
    generated = {path for path in PACKAGE.rglob("_sync/*.py") if path.name != "__init__.py"}
    assert generated == {twin_path(source) for source in sources()}
    marked = {path for path in PACKAGE.rglob("*.py") if path.read_text().startswith("# Generated from")}
    assert marked == generated
