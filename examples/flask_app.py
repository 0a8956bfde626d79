"""Flask-SocketIO with threads: pass the manager as `client_manager`; nothing else changes.

    pip install socketio-postgres flask-socketio simple-websocket
    export DATABASE_URL=postgresql://app@localhost/app
    PORT=5000 python examples/flask_app.py & PORT=5001 python examples/flask_app.py

`docs/flask-socketio.md` lists what differs with Flask-SocketIO.
"""

import os

from flask import Flask, request
from flask_socketio import SocketIO, emit, join_room

from socketio_postgres import PostgresManager

app = Flask(__name__)
mgr = PostgresManager(os.environ["DATABASE_URL"])
# Do not use `message_queue=`: Flask-SocketIO passes its URL to Kombu.
socketio = SocketIO(app, client_manager=mgr, async_mode="threading")


@socketio.on("join")
def join(room: str) -> None:
    join_room(room)


@socketio.on("chat")
def chat(room: str, text: str) -> None:
    # To all clients in the room, on all servers, except the sender.
    emit("chat", text, to=room, include_self=False)


@app.post("/announce")
def announce() -> dict[str, int]:
    # Outside Socket.IO handlers use `socketio.emit`, which sends to all clients.
    socketio.emit("announcement", request.args["text"])
    return {"servers": mgr.server_count()}


@app.get("/clients")
def clients() -> list[str]:
    return [socket.id for socket in mgr.fetch_sockets()]


if __name__ == "__main__":
    mgr.start()  # raises at once if the database cannot be used
    # This is the development server; see docs/flask-socketio.md for gunicorn.
    socketio.run(app, port=int(os.environ.get("PORT", "5000")), allow_unsafe_werkzeug=True)
