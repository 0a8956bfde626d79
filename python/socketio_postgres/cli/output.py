"""What commands print: coloured lines for people, JSON for scripts."""

from __future__ import annotations

import asyncio
import base64
import codecs
import contextlib
import json
import logging
import os
import stat
import sys
from collections.abc import AsyncGenerator
from typing import IO, Any

import rich.console
import rich.markup
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

__all__ = [
    "Console",
    "LogHandler",
    "errors",
    "events_are",
    "from_json",
    "lines",
    "progress",
    "to_json",
    "until_reader_ends",
]


class Console(rich.console.Console):
    """A console that neither wraps lines nor interprets what comes from outside."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, soft_wrap=True, emoji=False)

    def on_broken_pipe(self) -> None:
        """Let `program` deal with it, which it does for everything that is printed."""
        raise BrokenPipeError

    @staticmethod
    def plain(text: str) -> str:
        """The text with nothing in it that the console would take for markup, or a terminal for a command."""
        return rich.markup.escape("".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text))


_ESCAPES = {code: f"\\u{code:04x}" for code in (*range(0x7F, 0xA0), *range(0xD800, 0xE000))}
"""Controls that JSON lets through, and a terminal might obey; surrogates without a partner, which cannot be encoded."""

lines = Console()
"""Standard output."""

errors = Console(stderr=True)
"""Standard error."""


def to_json(value: Any) -> str:
    """One line of JSON; bytes become `{"base64": "…"}`. ASCII, unless standard output takes all characters."""
    encoding = codecs.lookup(getattr(sys.stdout, "encoding", None) or "utf-8").name
    text = json.dumps(value, ensure_ascii=not encoding.startswith("utf"), default=_of_bytes)
    return text.translate(_ESCAPES)


def _of_bytes(value: object) -> object:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {"base64": base64.b64encode(value).decode()}
    return str(value)


class LogHandler(logging.Handler):
    """The package's log on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        """As any other line."""
        errors.print(f"[yellow]{errors.plain(record.getMessage())}[/]")


def events_are(count: int) -> str:
    """The beginning of a sentence about so many events."""
    return "1 event is" if count == 1 else f"{count} events are"


def progress(source: IO[Any] | None = None) -> Progress:
    """A bar on standard error for work that takes long; nothing where that is no terminal.

    Args:
        source: What the work reads. Nothing is shown either while somebody types it on a terminal.
    """
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=errors,
        disable=not errors.is_terminal or (source is not None and source.isatty()),
        transient=True,
    )


@contextlib.asynccontextmanager
async def until_reader_ends() -> AsyncGenerator[None, None]:
    """End the block when the reader of standard output, such as `head`, has ended.

    A command that follows something prints nothing while nothing happens, so it would not notice.

    Raises:
        BrokenPipeError: The reader has ended.
    """
    pipe = _pipe()
    if pipe is None:
        yield
        return
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    has_ended = False

    def on_end() -> None:
        nonlocal has_ended
        has_ended = True
        loop.remove_reader(pipe)
        if task is not None:
            task.cancel()

    loop.add_reader(pipe, on_end)  # nothing can be read from this end, so this is only called for an error
    try:
        yield
    except asyncio.CancelledError:
        if has_ended:
            raise BrokenPipeError from None
        raise
    finally:
        loop.remove_reader(pipe)


def _pipe() -> int | None:
    """The descriptor of standard output, if it is a pipe."""
    try:
        descriptor = sys.stdout.fileno()
        return descriptor if stat.S_ISFIFO(os.fstat(descriptor).st_mode) else None
    except (AttributeError, OSError, ValueError):  # there is none, or something else takes what is printed
        return None


def from_json(text: str | bytes) -> Any:
    """A value from JSON in UTF-8.

    Raises:
        ValueError: It is none, for example because of NaN or infinity, or nests too deep.
    """
    try:
        return json.loads(text.decode() if isinstance(text, bytes) else text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("it nests too deep") from None


def _refuse(name: str) -> None:
    raise ValueError(f"JSON has no {name}")
