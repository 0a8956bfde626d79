"""Three servers of ours that know each other, with real clients, and peers made by hand."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import socketio
from typing_extensions import Self

from socketio_postgres import AsyncPostgresManager, RequestTimeoutError
from tests.fixtures.clients import PythonClient
from tests.fixtures.database import Database
from tests.fixtures.server import PythonServer
from tests.fixtures.spy import Frame, Spy
from tests.fixtures.waiting import asked, eventually

NAMESPACES = ("/", "/chat")

Replies = Mapping[str, Sequence[object] | None]


class Server:
    """One server of the cluster with its manager."""

    def __init__(self, name: str, server: PythonServer, manager: AsyncPostgresManager) -> None:
        self.name = name
        self.url = server.url
        self.sio: socketio.AsyncServer = server.sio
        self.python = server
        self.manager = manager
        self.clients: list[PythonClient] = []

    @property
    def uid(self) -> str:
        """Its server id."""
        return str(self.manager.host_id)

    async def connect(
        self, *rooms: Any, namespace: str = "/", label: str = "", replies: Replies | None = None
    ) -> PythonClient:
        """A new client, in some rooms."""
        client = await PythonClient.connect(
            self.url,
            label=label or f"client {len(self.clients) + 1} of {self.name}",
            namespace=namespace,
            auth={"rooms": rooms},
            replies=replies,
        )
        self.clients.append(client)
        return client

    def rooms(self, client: PythonClient) -> set[Any]:
        """Rooms of a client of this server, apart from its own."""
        if client.sid not in self.python.sids(client.namespace):
            return set()
        return set(self.sio.rooms(client.sid, client.namespace)) - {client.sid}

    async def sees(self, *clients: PythonClient, namespace: str = "/") -> None:
        """Wait until exactly these clients are connected here."""
        sids = {client.sid for client in clients}
        await eventually(lambda: self.python.sids(namespace) == sids, f"{self.name} sees {clients}")

    async def counts(self, count: int, namespace: str = "/") -> None:
        """Wait until it knows of so many servers, itself included."""
        await eventually(
            lambda: self.manager.server_count(namespace) == count, f"{self.name} counts {count} in {namespace}"
        )

    async def knows(self, uid: str, namespace: str) -> None:
        """Wait until it counts a certain server."""
        await eventually(lambda: uid in self.manager.stats()["peers"][namespace], f"{self.name} knows {uid}")

    def expects_nothing(self) -> bool:
        """Whether no request is left behind."""
        adapters = self.manager._node.peers.adapters.values()
        is_asking = self.manager._node.requests.is_asking or any(adapter._requests for adapter in adapters)
        return not is_asking and not self.manager._node.callbacks


class Trio:
    """The three servers, by name."""

    def __init__(self, database: Database, servers: Sequence[Server], failures: list[Exception]) -> None:
        self.database = database
        self.failures = failures
        """What the managers reported; a test that expects some takes them out."""
        self.a, self.b, self.c = self.servers = tuple(servers)

    async def meet(self, count: int = 3, servers: Iterable[Server] = ()) -> None:
        """Wait until everybody counts so many servers, in all namespaces."""
        for server in servers or self.servers:
            for namespace in NAMESPACES:
                await server.counts(count, namespace)


@asynccontextmanager
async def open_trio(database: Database, **options: Any) -> AsyncIterator[Trio]:
    """Start the servers; clients are disconnected and failures reported when the block ends."""
    failures: list[Exception] = []
    servers = []
    # A peer made by hand says that it is there once, and a starved server is none that is lost.
    options = {"heartbeat_timeout": 30.0, **options}
    async with AsyncExitStack() as stack:
        for name in "abc":
            manager = AsyncPostgresManager(database.dsn, error_handler=failures.append, **options)
            stack.push_async_callback(manager.close)
            python = await stack.enter_async_context(PythonServer(manager, NAMESPACES))
            await manager.start()
            servers.append(Server(name, python, manager))
        trio = Trio(database, servers, failures)
        await trio.meet()
        yield trio
        clients = [client for server in servers for client in server.clients]
        await asyncio.gather(*(client.disconnect() for client in clients))
        await eventually(lambda: all(server.expects_nothing() for server in servers), "no request is left behind")
    assert failures == []


async def timed_out(ask: Callable[[float], Awaitable[object]], missing: Sequence[str]) -> RequestTimeoutError:
    """The error of a request as in `asked`, which names nobody but those that never answer."""

    async def error(seconds: float) -> RequestTimeoutError:
        with pytest.raises(RequestTimeoutError) as caught:
            await ask(seconds)
        return caught.value

    found = await asked(error, lambda error: error.missing_servers == missing)
    assert found.missing_servers == missing
    return found


class Took:
    """How long a block took: for what must end early."""

    seconds: float

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.monotonic() - self._began


class FakePeer:
    """A server that says only what the test makes it say."""

    def __init__(self, spy: Spy, uid: str = "fake", namespace: str = "/") -> None:
        self.uid = uid
        self._spy = spy
        self._namespace = namespace

    def say(self, kind: int, **data: object) -> None:
        """Send one message."""
        message = {"type": kind, "uid": self.uid, "nsp": self._namespace, "source": "_sio_adapter"}
        self._spy.notify(f"socket.io#{self._namespace}", {**message, "data": data} if data else message)

    async def join(self, servers: Iterable[Server]) -> None:
        """Be counted by all."""
        self.say(2)
        for server in servers:
            await server.knows(self.uid, self._namespace)

    def fall_silent(self, server: Server) -> None:
        """To this server, as if nothing had been said for `heartbeat_timeout`."""
        server.manager._node.peers.adapters[self._namespace]._peers[self.uid].seen = -math.inf
        server.manager._node.tick(time.monotonic())

    async def request(self, kind: int) -> Frame:
        """Wait for a request of a type; gives the last."""

        def asks(frame: Frame) -> bool:
            return frame.header["type"] == kind and "requestId" in frame.message["data"]

        return (await self._spy.wait_for(asks))[-1]
