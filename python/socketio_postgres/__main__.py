"""`python -m socketio_postgres`."""

import sys

from socketio_postgres.cli import main

if __name__ == "__main__":
    sys.exit(main())
