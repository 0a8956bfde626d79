"""What commands print: coloured lines for people, JSON for scripts."""

from __future__ import annotations

import base64
import json
from typing import Any

import rich.console
import rich.markup
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

__all__ = ["Console", "errors", "lines", "progress", "to_json"]


class Console(rich.console.Console):
    """A console that neither wraps lines nor interprets what comes from outside."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, soft_wrap=True, emoji=False)

    @staticmethod
    def plain(text: str) -> str:
        """The text with nothing in it that the console would take for markup, or a terminal for a command."""
        return rich.markup.escape("".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text))


_CONTROLS = {code: f"\\u{code:04x}" for code in range(0x7F, 0xA0)}
"""Controls that JSON lets through, and a terminal might obey."""

lines = Console()
"""Standard output."""

errors = Console(stderr=True)
"""Standard error."""


def to_json(value: Any) -> str:
    """One line of JSON; bytes become `{"base64": "…"}`."""
    text = json.dumps(value, ensure_ascii=False, default=_of_bytes)
    return text.translate(_CONTROLS)


def _of_bytes(value: object) -> object:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {"base64": base64.b64encode(value).decode()}
    return str(value)


def progress() -> Progress:
    """A bar on standard error for work that takes long; nothing where that is no terminal."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=errors,
        disable=not errors.is_terminal,
        transient=True,
    )
