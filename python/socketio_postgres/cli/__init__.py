"""The command line `socketio-postgres`, which is also `python -m socketio_postgres`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status: 0 success, 1 failure, 2 wrong usage, 130 interrupted.

    Args:
        argv: Arguments without the program's name. Default: those of this process.
    """
    try:
        from socketio_postgres.cli.program import run  # noqa: PLC0415 - its libraries belong to an extra
    except ModuleNotFoundError as error:
        if error.name not in {"click", "rich"}:
            raise
        print("the command line needs its extra: pip install 'socketio-postgres[cli]'", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # importing takes a moment
        return 130
    return run(sys.argv[1:] if argv is None else argv)
