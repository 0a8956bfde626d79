"""Flask-SocketIO with threads: the manager goes in as `client_manager`, and the rest stays as it was.

    pip install socketio-postgres flask-socketio simple-websocket
    export DATABASE_URL=postgresql://app@localhost/app
    PORT=5000 python examples/flask_app.py & PORT=5001 python examples/flask_app.py

`docs/flask-socketio.md` tells what to know about Flask-SocketIO.
"""

import os

from flask import Flask, request
from flask_socketio import SocketIO, emit, join_room

from socketio_postgres import PostgresManager

app = Flask(__name__)
mgr = PostgresManager(os.environ["DATABASE_URL"])
# Not `message_queue=`: Flask-SocketIO would give that URL to Kombu.
socketio = SocketIO(app, client_manager=mgr, async_mode="threading")


@socketio.on("join")
def join(room: str) -> None:
    join_room(room)


@socketio.on("chat")
def chat(room: str, text: str) -> None:
    # Everybody in the room, on whichever server, except who said it.
    emit("chat", text, to=room, include_self=False)


@app.post("/announce")
def announce() -> dict[str, int]:
    # Outside of Socket.IO handlers use the object, whose `emit` goes to everybody.
    socketio.emit("announcement", request.args["text"])
    return {"servers": mgr.server_count()}


@app.get("/clients")
def clients() -> list[str]:
    return [socket.id for socket in mgr.fetch_sockets()]


if __name__ == "__main__":
    mgr.start()  # fails at once when the database is wrong
    # The development server; see docs/flask-socketio.md for gunicorn.
    socketio.run(app, port=int(os.environ.get("PORT", "5000")), allow_unsafe_werkzeug=True)
