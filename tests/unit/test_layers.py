"""Imports run one way, in Python and in Rust: a room imports from those before it, and from nobody else."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import socketio_postgres

PACKAGE = Path(socketio_postgres.__file__).parent
CRATE = Path(__file__).parents[2] / "rust" / "src"

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

CRATE_LAYERS = (
    {"error", "lock"},
    {"connect", "wire"},
    {"table_name"},
    {"handover"},
    {"receive", "store"},
    {"publish"},
    {"py"},
    {"lib"},
)
"""The same of the crate."""

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


def module_of(path: Path) -> str:
    """The module in a file, such as `wire::codec`; `lib` is the crate itself."""
    parts = path.relative_to(CRATE).with_suffix("").parts
    return "::".join(parts[:-1] if parts[-1] == "mod" else parts)


def members(tree: str) -> Iterator[str]:
    """The paths of a use tree: `a::{b, c::{d, e}}` gives `a::b`, `a::c::d` and `a::c::e`."""
    head, brace, inner = tree.partition("{")
    if not brace:
        yield head.strip()
        return
    depth, begin = 0, 0
    inner = inner.rstrip().removesuffix("}") + ","
    for end, letter in enumerate(inner):
        depth += (letter == "{") - (letter == "}")
        if letter == "," and depth == 0:
            yield from (head.strip() + path for path in members(inner[begin:end].strip()) if path)
            begin = end + 1


def crate_imports() -> dict[str, set[str]]:
    """The modules of the crate, and which others each names; without tests and comments."""
    files = {module_of(path): path for path in CRATE.rglob("*.rs") if path.name != "tests.rs"}
    graph: dict[str, set[str]] = {}
    for module, path in files.items():
        text = path.read_text().partition("#[cfg(test)]\nmod tests {")[0]
        text = re.sub(r"//.*", "", text)
        uses = re.findall(r"\buse\s+((?:crate|super|self)::[^;]+);", text)
        paths = {member for use in uses for member in members(use)}
        paths.update(re.findall(r"\b(?:crate|super)(?:::\w+)+", re.sub(r"\buse\s[^;]+;", "", text)))
        graph[module] = set()
        for name in paths:
            root, *parts = name.split("::")
            here = module.split("::")
            parts = {"crate": [], "super": here[:-1], "self": here}[root] + parts
            while parts and "::".join(parts) not in files:
                parts.pop()
            graph[module] |= {"::".join(parts)} - {"", module}
    return graph


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


def test_every_room_of_the_crate_has_its_place() -> None:
    assert {module.partition("::")[0] for module in crate_imports()} == set().union(*CRATE_LAYERS)


def test_imports_of_the_crate_run_one_way() -> None:
    height = {room: number for number, layer in enumerate(CRATE_LAYERS) for room in layer}
    arrows = {
        (module.partition("::")[0], module, name.partition("::")[0], name)
        for module, names in crate_imports().items()
        for name in names
    }
    assert ("store", "store::table", "wire", "wire::protocol") in arrows, "or the test sees nothing"
    wrong = {(module, name) for room, module, other, name in arrows if room != other and height[other] >= height[room]}
    assert not wrong


def test_no_modules_of_the_crate_import_each_other_in_a_circle() -> None:
    TopologicalSorter(crate_imports()).prepare()  # raises CycleError
