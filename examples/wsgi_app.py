"""Plain WSGI with gevent; other greenlets keep running while this package waits, with or without monkey-patching.

    pip install socketio-postgres gevent simple-websocket
    export DATABASE_URL=postgresql://app@localhost/app
    PORT=5000 python examples/wsgi_app.py & PORT=5001 python examples/wsgi_app.py

or, with two processes on one port: gunicorn -k gevent -w 2 examples.wsgi_app:app
"""

import os
from collections.abc import Callable, Iterable
from typing import Any

import socketio

from socketio_postgres import PostgresManager

mgr = PostgresManager(os.environ["DATABASE_URL"])
sio = socketio.Server(client_manager=mgr, async_mode="gevent", cors_allowed_origins=[])


def announce(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    """Serve requests that are not for Socket.IO: announce a POST to all clients."""
    if environ["REQUEST_METHOD"] == "POST":
        sio.emit("announcement", environ["PATH_INFO"].removeprefix("/"))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{mgr.server_count()} servers\n".encode()]


app = socketio.WSGIApp(sio, announce)


@sio.event
def chat(sid: str, text: str) -> None:
    sio.emit("chat", text, skip_sid=sid)


@sio.event
def ask(sid: str, other: str, question: str) -> Any:
    # The other client may be connected to any server; the call waits for its acknowledgement.
    return sio.call("question", question, to=other, timeout=5)


if __name__ == "__main__":
    from gevent import pywsgi

    mgr.start()  # raises at once if the database cannot be used
    pywsgi.WSGIServer(("127.0.0.1", int(os.environ.get("PORT", "5000"))), app, log=None).serve_forever()
