"""A Celery worker that tells clients about its progress, without a Socket.IO server of its own.

    pip install socketio-postgres celery
    export DATABASE_URL=postgresql://app@localhost/app CELERY_BROKER_URL=redis://localhost
    celery -A examples.celery_worker worker

Then run, in a program with the same settings: `from examples.celery_worker import work; work.delay("report", "room1")`
"""

import os

from celery import Celery

from socketio_postgres import Emitter

app = Celery("work", broker=os.environ["CELERY_BROKER_URL"])

# Created once, at import. Each child process that Celery forks opens its own connection with its first emit, and
# commits its emits before it ends.
emitter = Emitter(os.environ["DATABASE_URL"])


@app.task
def work(name: str, room: str) -> None:
    for percent in (0, 50, 100):
        emitter.to(room).emit("progress", name, percent)
    emitter.flush()  # raises if an emit was not committed, so that the task fails
