"""The group of all commands, and what becomes of their errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from socketio_postgres import _core
from socketio_postgres.cli.demo import demo
from socketio_postgres.cli.doctor import doctor
from socketio_postgres.cli.emit import emit
from socketio_postgres.cli.events import events
from socketio_postgres.cli.output import errors
from socketio_postgres.cli.sql import sql
from socketio_postgres.cli.tail import tail
from socketio_postgres.cli.top import top
from socketio_postgres.exceptions import SocketIOPostgresError

__all__ = ["program", "run"]

INTERRUPTED = 130
"""Exit status after Ctrl-C, as a shell has it."""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
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
    try:
        status = program.main(args=list(argv), prog_name="socketio-postgres", standalone_mode=False)
    except click.exceptions.Abort:
        return INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except SocketIOPostgresError as error:
        errors.print(f"[bold red]Error:[/] {errors.plain(str(error))}")
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader, such as `head`, has ended. Python would report that again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return int(status or 0)
