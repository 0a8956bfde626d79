"""The group of all commands, and what becomes of their errors."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from socketio_postgres import _core
from socketio_postgres.cli.demo import demo
from socketio_postgres.cli.doctor import doctor
from socketio_postgres.cli.emit import emit
from socketio_postgres.cli.events import events
from socketio_postgres.cli.output import LogHandler, errors
from socketio_postgres.cli.sql import sql
from socketio_postgres.cli.tail import tail
from socketio_postgres.cli.top import top
from socketio_postgres.exceptions import SocketIOPostgresError

__all__ = ["program", "run"]

INTERRUPTED = 130
"""Exit status after Ctrl-C, as a shell has it."""


class _ReaderHasEnded(Exception):  # noqa: N818 - no error: it has what it wanted
    """What is printed goes to a pipe whose reader, such as `head`, has ended."""


class _Program(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; click itself would make an error of the pipe."""
        try:
            result = super().invoke(ctx)
            if sys.stdout is not None:
                sys.stdout.flush()
        except BrokenPipeError:
            raise _ReaderHasEnded from None
        return result


@click.group(cls=_Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(_core.__version__, prog_name="socketio-postgres")
def program() -> None:
    """Socket.IO servers in one cluster over PostgreSQL.

    Every command connects as the manager does. `--dsn` is a connection string as psql takes it; without it the
    environment variables PGHOST, PGUSER and so on apply.
    """


for command in (demo, doctor, emit, events, sql, tail, top):
    program.add_command(command)


def run(argv: Sequence[str]) -> int:
    """Run one command and return its exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a character that it lacks is no reason to end
    # Closed ones: there is nothing to read, and nobody wants what is printed.
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: PTH123, SIM115 - for as long as the process runs
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - likewise
    log, handler = logging.getLogger("socketio_postgres"), LogHandler()
    log.addHandler(handler)
    try:
        return _run(argv)
    finally:
        log.removeHandler(handler)


def _run(argv: Sequence[str]) -> int:
    try:
        status = program.main(args=list(argv), prog_name="socketio-postgres", standalone_mode=False)
    except click.exceptions.Abort as abort:
        # click aborts for Ctrl-C, for the end of the input, and for a question that was answered with no.
        return INTERRUPTED if isinstance(abort.__cause__ or abort.__context__, KeyboardInterrupt) else 1
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except _ReaderHasEnded:
        # Python would report it again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (SocketIOPostgresError, OSError) as error:
        errors.print(f"[bold red]Error:[/] {errors.plain(str(error))}")
        return 1
    return int(status or 0)
