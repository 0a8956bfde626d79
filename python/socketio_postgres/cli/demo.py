"""`socketio-postgres demo`: chat on two servers."""

from __future__ import annotations

import sys

import click

__all__ = ["demo"]


@click.command()
@click.option("--check", is_flag=True, help="Verify delivery between the servers and report; exit with 0 or 1.")
@click.option("--dsn", metavar="DSN", help="Use this PostgreSQL. Default: start one.")
def demo(*, check: bool, dsn: str | None) -> int:
    """Start PostgreSQL, two chat servers and an emitter.

    Prints the addresses for a browser. Needs the extra `demo`.
    """
    # Here and not above, because the packages that it needs belong to another extra.
    from socketio_postgres.demo.embedded import EmbeddedPostgresError  # noqa: PLC0415
    from socketio_postgres.demo.run import DemoError, run_demo  # noqa: PLC0415

    try:
        return run_demo(dsn=dsn, check=check)
    except (DemoError, EmbeddedPostgresError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
