#!/usr/bin/env python3
"""Write the blocking twins of the async modules; with --check, fail when a committed one is stale.

Only names and keywords change, so the async module is the one to read and to edit.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "python" / "socketio_postgres"

TWINS = {
    "_cluster": ["server_operator", "manager"],
    "events": [
        "wait_until",
        "subscription",
        "durable_subscription",
        "competing_subscription",
        "callback_subscription",
        "store_in",
        "event_log",
        "event_feed",
        "event_store",
    ],
}
"""By package, the modules of its `_sync` folder; each is made from `async_…` beside that folder."""

HEADER = "# Generated from {source} by scripts/async_to_sync.py; edit that file.\n"

REPLACEMENTS = [
    (r"\basync (?=def\b|for\b|with\b)", ""),
    (r"\basync with\b", "with"),  # in prose
    (r"__a(enter|exit|iter|next)__", r"__\1__"),
    (r"\bStopAsyncIteration\b", "StopIteration"),
    (r"Callable\[(\[[^\[\]]*\]), Awaitable\[([\w.]+)\]\]", r"Callable[\1, \2]"),
    (r"Callable\[\.\.\., Awaitable\[(.*)\]\]\n", r"Callable[..., \1]\n"),
    (r"Callable\[(\[[^\[\]]*\]), Awaitable\[([\w. |]+)\]\]", r"Callable[\1, \2]"),
    (r"\bAwaitable, ", ""),
    (r"for (\w+) in (\w+):\n\s+yield \1\n", r"yield from \2\n"),
    (r"An asynchronous iterator", "An iterator"),
    (r"One task at a\n", "One thread at a\n"),
    (r"Any number of tasks may", "Any number of threads may"),
    (r"; may be a coroutine function\.", "; it runs in a thread of its own."),
    (r" May be a coroutine function\.\n", " It runs in a thread of its own.\n"),
    (r"\bawait ", ""),
    (r" *@(on_serving_loop|starts_serving)\n", ""),
    (r" *if not self\._is_at_home\(\):.*\n.*\n *return( False)?\n", ""),
    (r"from socketio_postgres\._cluster\.serving_loop import .*\n", ""),
    (r"\n    It serves on the event loop that(.+\n)+", ""),
    (r"Coroutine\[Any, Any, None\]", "None"),
    (r"from collections\.abc import Coroutine\n", ""),
    (r"(from collections\.abc import )Coroutine, ", r"\1"),
    (
        r"socketio\.AsyncServer\(client_manager=mgr, async_mode=\"asgi\"\)",
        'socketio.Server(client_manager=mgr, async_mode="threading")',
    ),
    (r"started before the first use inside a running event loop", "started before the first use"),
    (r"\bsocketio\.async_manager\b", "socketio.manager"),
    (r"\bsocketio\.async_pubsub_manager\b", "socketio.pubsub_manager"),
    (r"\bAsync(?=[A-Z])", ""),
]


def _twin_module(match: re.Match[str]) -> str:
    """The module that a twin imports instead; some are written by hand, beside their originals."""
    package, name = match.groups()
    return f"socketio_postgres.{package}.{'_sync.' if name in TWINS[package] else ''}{name}"


def twin_of(source: Path) -> str:
    """The blocking form of a module."""
    text = source.read_text()
    text = re.sub(rf"\bsocketio_postgres\.({'|'.join(TWINS)})\.async_(\w+)", _twin_module, text)
    for pattern, replacement in REPLACEMENTS:
        text = re.sub(pattern, replacement, text)
    text = HEADER.format(source=source.name) + text
    command = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--quiet",
        "--fix",
        "--select",
        "I,RUF022",
        "--stdin-filename",
        "x.py",
        "-",
    ]
    text = subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout
    command = [sys.executable, "-m", "ruff", "format", "--stdin-filename", "x.py", "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout


def main() -> int:
    """Write or check every twin."""
    stale = []
    for package, name in ((package, name) for package, names in TWINS.items() for name in names):
        text = twin_of(PACKAGE / package / f"async_{name}.py")
        path = PACKAGE / package / "_sync" / f"{name}.py"
        if path.exists() and path.read_text() == text:
            continue
        stale.append(path.relative_to(PACKAGE))
        if "--check" not in sys.argv:
            path.write_text(text)
    for target in stale:
        print(f"{target}: {'stale, run make twins' if '--check' in sys.argv else 'written'}")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
