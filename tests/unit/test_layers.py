"""Imports run one way: a package imports from those before it, and from nobody else."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import socketio_postgres

PACKAGE = Path(socketio_postgres.__file__).parent

LAYERS = (
    {"_core", "_typing", "exceptions"},
    {"_bus"},
    {"_cluster", "events"},  # side by side: neither knows the other
    {"client", "codec", "emitter", "health", "manager", "opentelemetry", "options", "prometheus", "stats"},
    {"demo"},
    {"cli"},
    {"__main__"},
)
"""From the ground up."""

NEEDS_SOCKETIO = {"_cluster", "demo"}


def room_of(module: str) -> str:
    """The part of the package that a module is in."""
    return module.removeprefix("socketio_postgres").lstrip(".").partition(".")[0] or "__init__"


def imports() -> Iterator[tuple[str, str]]:
    """What is in which room, and which module it imports."""
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                modules = [node.module]
                if node.module == "socketio_postgres":
                    modules = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            else:
                continue
            for module in modules:
                yield parts[0], module


def test_every_room_has_its_place() -> None:
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert rooms == set().union(*LAYERS) - {"_core"} | {"__init__"}


def test_imports_run_one_way() -> None:
    height = {room: number for number, layer in enumerate(LAYERS) for room in layer}
    wrong = {
        (room, module)
        for room, module in imports()
        if module.startswith("socketio_postgres") and room != "__init__" and room != room_of(module)
        if room_of(module) != "__init__" and height.get(room_of(module), -1) >= height[room]
    }
    assert not wrong


def test_only_managers_and_the_demo_import_python_socketio() -> None:
    found = {room for room, module in imports() if module.partition(".")[0] in {"socketio", "engineio"}}
    assert found <= NEEDS_SOCKETIO


def test_the_node_knows_nothing_of_python_socketio() -> None:
    found = {
        path.stem.removeprefix("async_")
        for path in (PACKAGE / "_cluster").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for module in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names])
        if module.partition(".")[0] in {"socketio", "engineio"}
    }
    assert found == {"empty_rooms", "manager", "socketio_delivery", "socketio_rooms", "socketio_sockets"}
