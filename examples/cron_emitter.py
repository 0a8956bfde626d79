"""A script that cron runs: it tells all clients something, and ends.

pip install socketio-postgres
*/5 * * * *  DATABASE_URL=postgresql://app@localhost/app python examples/cron_emitter.py "It is time."
"""

import os
import sys

from socketio_postgres import Emitter

if __name__ == "__main__":
    with Emitter(os.environ["DATABASE_URL"]) as io:
        io.emit("announcement", sys.argv[1])
        io.flush()  # raises if the emit was not committed, so that cron reports the failure
