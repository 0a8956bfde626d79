"""FastAPI and Socket.IO in the same processes; each route of each process can emit to all clients.

pip install socketio-postgres fastapi 'uvicorn[standard]'
export DATABASE_URL=postgresql://app@localhost/app
uvicorn examples.fastapi_app:app --ws websockets-sansio --workers 2
curl -X POST 'localhost:8000/announce?text=hello'
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import socketio
from fastapi import FastAPI

from socketio_postgres import AsyncPostgresManager

mgr = AsyncPostgresManager(os.environ["DATABASE_URL"])
sio = socketio.AsyncServer(client_manager=mgr, async_mode="asgi", cors_allowed_origins=[])


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    await mgr.start()  # raises at once if the database cannot be used
    yield
    await mgr.close()  # tells the other servers that this server leaves


api = FastAPI(lifespan=lifespan)


@api.post("/announce")
async def announce(text: str) -> dict[str, int]:
    await sio.emit("announcement", text)
    return {"servers": mgr.server_count()}


@api.get("/clients")
async def clients() -> list[str]:
    return [socket.id for socket in await mgr.fetch_sockets()]


@sio.event
async def chat(sid: str, text: str) -> None:
    await sio.emit("chat", text, skip_sid=sid)


# Socket.IO serves /socket.io; FastAPI receives everything else, including the lifespan events.
app = socketio.ASGIApp(sio, api)
