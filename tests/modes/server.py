"""A `socketio.Server` in one of its async modes; a test asks it things by POSTing expressions to /do.

SIO_PG_TEST_MODE   `threading`, `gevent`, `gevent patched`, `eventlet`, `eventlet patched`, `gevent_uwsgi`
SIO_PG_TEST_DSN    database
SIO_PG_TEST_PORT   port of the loopback interface; not for uWSGI, which opens its own
SIO_PG_TEST_HEARTBEAT_TIMEOUT   of the manager
"""

from __future__ import annotations

import os

MODE, _, PATCHED = os.environ["SIO_PG_TEST_MODE"].partition(" ")
if PATCHED and MODE == "gevent":
    import gevent.monkey

    gevent.monkey.patch_all()
elif PATCHED:
    import eventlet

    eventlet.monkey_patch()

# ruff: noqa: E402, PLC0415 - patching comes first, and only one of these libraries is wanted
# mypy: disable-error-code="untyped-decorator"
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import psycopg
import socketio

from socketio_postgres import Emitter, PostgresClient, PostgresManager  # noqa: F401 - tests use all of them
from socketio_postgres._bus import bus
from socketio_postgres._cluster import runner
from socketio_postgres._cluster._sync import node

# A busy machine may need more than the usual seconds.
bus.EXIT_LIMIT = 30.0  # type: ignore[misc]
node.CLOSE_LIMIT = 30.0  # type: ignore[misc]
runner.JOIN_LIMIT = 60.0  # type: ignore[misc]
# A session that does not answer for a while is not given up; that of the manager has its own interval.
(bus.Bus.__init__.__kwdefaults__ or {})["probe_interval"] = 60.0

DSN = os.environ["SIO_PG_TEST_DSN"]
PARENT = os.getpid()
LIMIT_S = 60.0
"""What is awaited for longer does not come."""
PORT = int(os.environ.get("SIO_PG_TEST_PORT", "0"))

logging.basicConfig(level=logging.INFO)
logging.getLogger("werkzeug").setLevel(logging.WARNING)

errors: list[str] = []
mgr = PostgresManager(
    DSN,
    error_handler=lambda error: errors.append(type(error).__name__),
    heartbeat_timeout=float(os.environ["SIO_PG_TEST_HEARTBEAT_TIMEOUT"]),
)
sio = socketio.Server(client_manager=mgr, async_mode=MODE)
emitter = Emitter(DSN)
happenings: list[tuple[Any, ...]] = []
ticks = itertools.count()
tick_count = 0
gate = sio.eio.create_event()
another: PostgresManager


@sio.event
def connect(sid: str, environ: object, auth: dict[str, Any] | None = None) -> None:
    for room in (auth or {}).get("rooms", []):
        sio.enter_room(sid, room)


@sio.event
def disconnect(sid: str, reason: str) -> None:
    """What the test asked for with `on_disconnect`, then a note."""
    happenings.append(("leaving", sid))
    for step in on_disconnect:
        step()
    happenings.append(("left", sid, reason))


on_disconnect: list[Callable[[], object]] = []


@sio.on("*")
def echo(event: str, sid: str, *args: Any) -> tuple[Any, ...]:
    happenings.append((event, sid, *args))
    return args


@mgr.on_server_side("add")
def add(first: int, second: int) -> int:
    return first + second


@mgr.on_server_side("clients")
def clients() -> int:
    return len(mgr.timeout(30).fetch_sockets())


@mgr.on_server_side("fail")
def fail() -> None:
    raise LookupError("on purpose")


@mgr.on_server_side("block")
def block() -> str:
    gate.wait(LIMIT_S)
    return "unblocked"


@mgr.on_server_side("speak")
def speak() -> None:
    """Asked of all; only a forked child does."""
    if os.getpid() != PARENT:
        sio.emit("child", os.getpid())


@mgr.on_server_side("end")
def end(pid: int) -> None:
    if os.getpid() == pid:
        gate.set()


def backend_pids() -> list[int]:
    """Connections of this package, in this database."""
    query = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE %s"
    with psycopg.connect(DSN) as connection:
        return sorted(pid for (pid,) in connection.execute(query, ["socketio-postgres%"]))


def fork_server() -> int:
    """Fork a child that is a server of its own until it is told to end."""
    pid = os.fork()
    if pid == 0:
        try:
            mgr.start()
            gate.wait(LIMIT_S)
            mgr.close()
        except BaseException as error:  # noqa: BLE001 - there is nobody to raise it to
            os.write(2, repr(error).encode())
            os._exit(1)
        os._exit(0)
    return pid


def fork_green() -> int:
    """Fork a child that emits three times, in a second, and ends."""
    pid = os.fork()
    if pid == 0:
        try:
            for _ in range(3):
                emitter.emit("child", os.getpid())
                emitter.flush()
                sio.sleep(0.3)
        finally:
            os._exit(0)
    return pid


def open_another() -> None:
    """Start a second server of the cluster in this process."""
    global another  # noqa: PLW0603
    another = PostgresManager(DSN)
    socketio.Server(client_manager=another, async_mode=MODE)
    another.start()


def close_another() -> list[str]:
    """Close it, twice; gives the names of threads that it leaves behind."""
    another.close()
    another.close()
    thread: Any = another.thread
    if MODE == "threading":
        thread.join(LIMIT_S)
        return [thread.name] if thread.is_alive() else []
    greenlet = getattr(thread, "g", thread)
    deadline = time.monotonic() + LIMIT_S
    while not greenlet.dead and time.monotonic() < deadline:
        sio.sleep(0.01)
    return [] if greenlet.dead else ["greenlet"]


def tick() -> None:
    global tick_count  # noqa: PLW0603 - the one thing that is read from outside
    while True:
        tick_count = next(ticks)
        sio.sleep(0.01)


results: dict[str, object] = {}


def start(name: str, function: Callable[[], object]) -> None:
    """Run a function in the background; its result or exception appears in `results`."""

    def run() -> None:
        try:
            results[name] = function()
        except Exception as error:  # noqa: BLE001 - the test looks at it
            results[name] = repr(error)

    sio.start_background_task(run)


def in_background(*functions: Callable[[], object]) -> list[object]:
    """Run functions at the same time; gives their results or exceptions as text, in order."""
    results: dict[int, object] = {}
    done = sio.eio.create_event()

    def run(number: int, function: Callable[[], object]) -> None:
        try:
            results[number] = function()
        except Exception as error:  # noqa: BLE001 - the test looks at it
            results[number] = repr(error)
        if len(results) == len(functions):
            done.set()

    for number, function in enumerate(functions):
        sio.start_background_task(run, number, function)
    done.wait(LIMIT_S)
    return [results.get(number, "not done") for number in range(len(functions))]


def called(event: str, to: str, *args: object) -> list[object]:
    """Emit with a callback and wait until it ran; gives its arguments."""
    answers: list[object] = []
    done = sio.eio.create_event()

    def answer(*values: object) -> None:
        # A callback may itself ask the cluster.
        answers.extend([*values, len(mgr.timeout(30).fetch_sockets())])
        done.set()

    sio.emit(event, args, to=to, callback=answer)
    done.wait(LIMIT_S)
    return answers


def application(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    """Everything but Socket.IO."""
    status, answer = "200 OK", str(tick_count)
    if environ["PATH_INFO"] == "/do":
        expression = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])).decode()
        try:
            answer = repr(eval(expression, globals()))  # noqa: S307 - that is what it is for
        except Exception as error:  # noqa: BLE001 - reported to the test
            status, answer = "500 Internal Server Error", repr(error)
    start_response(status, [("Content-Type", "text/plain"), ("Connection", "close")])
    return [answer.encode()]


app = socketio.WSGIApp(sio, application)


def serve() -> None:
    """Serve until interrupted."""
    if MODE == "threading":
        from werkzeug.serving import make_server

        make_server("127.0.0.1", PORT, app, threaded=True).serve_forever()
    elif MODE == "gevent":
        from gevent import pywsgi

        pywsgi.WSGIServer(("127.0.0.1", PORT), app, log=None).serve_forever()
    else:
        import eventlet
        import eventlet.wsgi

        eventlet.wsgi.server(eventlet.listen(("127.0.0.1", PORT)), app, log_output=False)


if MODE == "gevent_uwsgi":
    # With --gevent, uWSGI does not end the interpreter, and this is its own way to say that it goes.
    import uwsgi  # type: ignore[import-untyped]

    uwsgi.atexit = mgr.close

sio.start_background_task(tick)
if __name__ == "__main__":
    try:
        serve()
    except KeyboardInterrupt:
        names = sorted(thread.name for thread in threading.enumerate())
        print("interrupted", names)  # noqa: T201 - the test reads it
