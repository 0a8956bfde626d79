"""The command line: parses arguments; each command calls one public function."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and give the process's exit status.

    Args:
        argv: Arguments without the program's name; those of this process when absent.
    """
    arguments = _parser().parse_args(argv)
    status: int = arguments.command(arguments)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m socketio_postgres", description="Socket.IO servers in one cluster over PostgreSQL."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    demo = commands.add_parser(
        "demo",
        help="chat on two servers joined by PostgreSQL",
        description="Start PostgreSQL, two chat servers and an emitter; print where to point a browser.",
    )
    demo.add_argument(
        "--check", action="store_true", help="verify delivery between the servers, report, exit 0 (good) or 1"
    )
    demo.add_argument(
        "--dsn",
        help="use this PostgreSQL, for example postgresql://app@localhost/app, and not one of its own",
    )
    demo.set_defaults(command=_demo)
    return parser


def _demo(arguments: argparse.Namespace) -> int:
    # Here and not above: a command must not need the packages of another.
    from socketio_postgres.demo.embedded import EmbeddedPostgresError  # noqa: PLC0415
    from socketio_postgres.demo.run import DemoError, run_demo  # noqa: PLC0415

    try:
        return run_demo(dsn=arguments.dsn, check=arguments.check)
    except (DemoError, EmbeddedPostgresError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before there was anything to stop
        return 130
