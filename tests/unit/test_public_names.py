"""The names of the package: imported when asked for, and otherwise as if they had been imported at once."""

from __future__ import annotations

import ast
import importlib
import inspect
import pickle
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

import socketio_postgres
from tests.fixtures.program import ROOT, environment
from tests.fixtures.waiting import TIMEOUT_S

NAMES = socketio_postgres.__all__
CLASSES = [name for name in NAMES if inspect.isclass(getattr(socketio_postgres, name))]

WITHOUT_A_SERVER = [
    "AsyncEmitter",
    "AsyncEventStore",
    "AsyncPostgresClient",
    "Emitter",
    "EventStore",
    "OptionsError",
    "PostgresClient",
]


def run(script: str) -> str:
    """What a fresh interpreter prints, which shows no warning either."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("name", WITHOUT_A_SERVER)
def test_only_the_managers_import_python_socketio(name: str) -> None:
    script = f"import sys; from socketio_postgres import {name}; print(*sys.modules)"
    packages = {module.partition(".")[0] for module in run(script).split()}
    assert "socketio_postgres" in packages
    assert packages.isdisjoint({"socketio", "engineio", "aiohttp", "requests"})


def test_the_package_itself_loads_next_to_nothing() -> None:
    """So that the time which docs/installation.md states stays true; a test of time would depend on the machine."""
    modules = run("import sys; import socketio_postgres; print(*sys.modules)").split()
    ours = {module for module in modules if module.startswith("socketio_postgres")}
    assert ours == {"socketio_postgres", "socketio_postgres._core", "socketio_postgres.exceptions"}
    assert {"asyncio", "dataclasses", "inspect", "json", "logging"}.isdisjoint(modules)


def test_an_error_of_the_core_finds_its_class_in_a_fresh_process() -> None:
    assert "1 to 65535" in run(
        "import socketio_postgres\n"
        "try: socketio_postgres.Emitter('port=0')\n"
        "except socketio_postgres.OptionsError as error: print(error)"
    )


def test_type_checkers_and_python_find_the_same_names_in_the_same_modules() -> None:
    tree = ast.parse(Path(inspect.getfile(socketio_postgres)).read_text())
    found = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.startswith("socketio_postgres.")
        for alias in node.names
    }
    assert sorted(found) == sorted(NAMES)
    for name, module in found.items():
        assert getattr(socketio_postgres, name) is getattr(importlib.import_module(module), name)


def test_a_star_imports_every_name_and_dir_lists_them() -> None:
    assert run(
        "import socketio_postgres; names = dir(socketio_postgres); from socketio_postgres import *\n"
        "print(all(name in globals() and name in names for name in socketio_postgres.__all__))"
    ).split() == ["True"]


def test_modules_of_public_names_are_attributes() -> None:
    assert run("import socketio_postgres; print(socketio_postgres.manager.PostgresManager.__name__)").split() == [
        "PostgresManager"
    ]


def test_a_name_that_is_not_there_is_an_error() -> None:
    with pytest.raises(AttributeError, match="module 'socketio_postgres' has no attribute 'Emiter'"):
        getattr(socketio_postgres, "Emiter")  # noqa: B009 - no type checker lets it pass otherwise
    with pytest.raises(ImportError, match="Emiter"):
        exec("from socketio_postgres import Emiter")  # noqa: S102 - likewise


@pytest.mark.parametrize("name", CLASSES)
def test_classes_are_pickled_by_name(name: str) -> None:
    cls = getattr(socketio_postgres, name)
    assert pickle.loads(pickle.dumps(cls)) is cls  # noqa: S301 - our own


def functions(cls: type) -> Iterator[object]:
    """Functions of a class that are ours: what python-socketio's say of themselves is not up to us."""
    for _, member in inspect.getmembers(cls):
        function = member.fget if isinstance(member, property) else member
        if (getattr(function, "__module__", None) or "").startswith("socketio_postgres"):
            yield function


@pytest.mark.parametrize("name", CLASSES)
def test_annotations_can_be_read_while_the_program_runs(name: str) -> None:
    cls = getattr(socketio_postgres, name)
    typing.get_type_hints(cls)
    for function in functions(cls):
        if inspect.isfunction(function):
            typing.get_type_hints(function)
