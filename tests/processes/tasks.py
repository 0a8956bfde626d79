"""A Celery worker whose tasks emit through an emitter that the parent has used before it forked."""

# mypy: disable-error-code="untyped-decorator"

import os

from celery import Celery  # type: ignore[import-untyped]

from socketio_postgres import Emitter
from socketio_postgres._bus import bus

bus.EXIT_LIMIT = 30.0  # type: ignore[misc]  # a busy machine may need more than the usual five seconds

FOLDER = os.environ["SIO_PG_TEST_FOLDER"]
app = Celery("tasks", broker="filesystem://")
app.conf.broker_transport_options = {"data_folder_in": FOLDER, "data_folder_out": FOLDER, "control_folder": FOLDER}

emitter = Emitter(os.environ["SIO_PG_TEST_DSN"])
emitter.emit("parent", os.getpid())
emitter.flush()


@app.task
def emit(number: int) -> None:
    """No flush: what a child emitted must arrive although the child ends right after."""
    emitter.emit("task", number, os.getpid())
