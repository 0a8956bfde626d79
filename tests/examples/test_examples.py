"""Two processes of each example, and a client on each."""

from __future__ import annotations

import asyncio
import shutil
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, expect

from socketio_postgres import Emitter
from socketio_postgres.demo.embedded import free_port
from tests.fixtures.browser import opened
from tests.fixtures.clients import PythonClient
from tests.fixtures.database import Database
from tests.fixtures.node import FOLDER
from tests.fixtures.program import Program
from tests.fixtures.waiting import TIMEOUT_S, eventually

COUNT = 2
ASGI = {"asgi_app", "fastapi_app", "order_dashboard", "shop_app"}


@asynccontextmanager
async def running(
    example: str, database: Database, auth: Mapping[str, object] | None = None
) -> AsyncIterator[list[PythonClient]]:
    """Clients, each of another process; `client.label` is the process's URL."""
    async with AsyncExitStack() as stack:
        clients = []
        for _ in range(COUNT):
            port = str(free_port())
            env = {"DATABASE_URL": database.url, "PORT": port}
            asgi = ["-m", "uvicorn", f"examples.{example}:app", "--port", port, "--ws", "websockets-sansio"]
            asgi += ["--timeout-graceful-shutdown", "1"]
            wsgi = [f"examples/{example}.py"]
            command = asgi if example in ASGI else wsgi
            program = stack.enter_context(Program(command, env, f"http://127.0.0.1:{port}"))
            client = await PythonClient.connect(program.url, label=program.url, auth=auth)
            stack.push_async_callback(client.disconnect)
            clients.append(client)
        yield clients


async def _fetch(url: str, body: bytes | None = None) -> str:
    """GET a page, or POST to it when there is a body."""

    def fetch() -> str:
        with urllib.request.urlopen(url, body, TIMEOUT_S) as answer:  # noqa: S310 - an http URL of ours
            text: str = answer.read().decode()
            return text

    return await asyncio.to_thread(fetch)


async def _told(client: PythonClient, event: str, *args: object) -> list[Any]:
    """What a server answers; nothing while the others take longer than the example waits for them."""
    try:
        found = await asyncio.wait_for(client.call(event, *args), 10)
    except asyncio.TimeoutError:
        return []
    assert isinstance(found, list)
    return found


async def _announced(clients: list[PythonClient], path: str, text: str) -> None:
    """Announce through each server until it knows the other; everybody hears everything."""
    posts = 0
    for client in clients:

        async def knows_the_other(url: str = client.label + path) -> bool:
            nonlocal posts
            posts += 1
            return str(COUNT) in await _fetch(url, b"")

        await eventually(knows_the_other, "the servers know each other")
    for client in clients:
        # A client that is connected misses nothing: it was told so only when its server listened.
        assert await client.wait_for("announcement", posts) == [(text,)] * posts


async def test_fastapi(database: Database) -> None:
    async with running("fastapi_app", database) as clients:
        first, second = clients
        await _announced(clients, "/announce?text=hello", "hello")
        await first.emit("chat", "hi")
        assert await second.wait_for("chat") == [("hi",)]
        assert first.received("chat") == []

        async def are_found() -> bool:
            try:
                body = await _fetch(second.label + "/clients")
            except urllib.error.HTTPError:
                return False  # the others took longer than the example waits for them
            return first.sid in body and second.sid in body

        await eventually(are_found, "the clients of both servers are found")


async def test_asgi(database: Database) -> None:
    async with running("asgi_app", database, {"room": "kitchen"}) as clients:
        first, second = clients

        async def both() -> bool:
            return set(await _told(first, "who", "kitchen")) == {first.sid, second.sid}

        await eventually(both, "the servers know each other")
        await first.emit("chat", "kitchen", "hi")
        assert await second.wait_for("chat") == [("hi",)]

        async def all_vote() -> bool:
            return await _told(first, "vote", "tea?") == ["tea?", "tea?"]

        async def all_processes() -> bool:
            return len(set(await _told(second, "processes"))) == COUNT

        await eventually(all_vote, "both clients vote")
        await eventually(all_processes, "both processes answer")


@pytest.mark.usefixtures("node_packages")
async def test_node_beside_python(database: Database) -> None:
    node = shutil.which("node")
    assert node is not None
    port = str(free_port())
    env = {"DATABASE_URL": database.url, "PORT": port, "NODE_PATH": str(FOLDER / "node_modules")}
    async with running("asgi_app", database, {"room": "kitchen"}) as (python, _):
        with Program([node, "examples/node_server.js"], env, f"http://127.0.0.1:{port}") as program:
            client = await PythonClient.connect(program.url, label=program.url, auth={"room": "kitchen"})
            try:
                for each in (python, client):

                    async def all_three(each: PythonClient = each) -> bool:
                        return len(await _told(each, "who", "kitchen")) == COUNT + 1

                    await eventually(all_three, "the servers know each other")
                await client.emit("chat", "kitchen", "from Node.js")
                assert await python.wait_for("chat") == [("from Node.js",)]
                await python.emit("chat", "kitchen", "from Python")
                assert await client.wait_for("chat") == [("from Python",)]

                async def is_among_the_processes() -> bool:
                    return program.pid in await _told(python, "processes")

                await eventually(is_among_the_processes, "Node.js answers")
            finally:
                await client.disconnect()


async def test_flask(database: Database) -> None:
    async with running("flask_app", database) as clients:
        first, second = clients
        await _announced(clients, "/announce?text=hello", "hello")
        for client in clients:
            await client.call("join", "kitchen")
        await first.emit("chat", "kitchen", "hi")
        assert await second.wait_for("chat") == [("hi",)]
        assert first.received("chat") == []


async def test_wsgi(database: Database) -> None:
    async with running("wsgi_app", database) as clients:
        first, second = clients
        await _announced(clients, "/hello", "hello")
        await first.emit("chat", "hi")
        assert await second.wait_for("chat") == [("hi",)]
        assert await first.call("ask", second.sid, "why?") == "why?"


async def test_order_dashboard(database: Database) -> None:
    async with running("order_dashboard", database) as clients:
        for client in clients:
            await client.wait_for("totals")
        for number, client in enumerate(clients, 1):
            await client.call("place", f"order-{number}", 10 * number)
        for client in clients:

            def knows_both(client: PythonClient = client) -> bool:
                return client.received("totals")[-1] == (2, 30)

            await eventually(knows_both, f"{client!r} sees both orders")


async def test_cron(database: Database) -> None:
    async with running("asgi_app", database) as clients:
        with Program(["examples/cron_emitter.py", "It is time."], {"DATABASE_URL": database.url}) as script:
            assert await script.wait() == 0, script.output
        for client in clients:
            assert await client.wait_for("announcement") == [("It is time.",)]


async def test_celery(database: Database, tmp_path: Path) -> None:
    env = {"DATABASE_URL": database.url, "CELERY_BROKER_URL": "filesystem://"}
    # A folder instead of a broker; in the settings of Celery and not in the example.
    (tmp_path / "queue").mkdir()
    folders = {"data_folder_in": f"{tmp_path}/queue", "data_folder_out": f"{tmp_path}/queue"}
    folders["control_folder"] = str(tmp_path)
    configure = f"from examples.celery_worker import app, work\napp.conf.broker_transport_options = {folders!r}\n"
    options = "['worker', '--concurrency', '1', '--without-gossip', '--without-mingle', '--loglevel', 'WARNING']"
    async with running("asgi_app", database, {"room": "kitchen"}) as clients:
        with Program(["-W", "ignore", "-c", f"{configure}app.worker_main({options})"], env):
            with Program(["-c", f"{configure}work.delay('report', 'kitchen')"], env) as sender:
                assert await sender.wait() == 0, sender.output
            expected = [("report", percent) for percent in (0, 50, 100)]
            for client in clients:
                assert await client.wait_for("progress", len(expected)) == expected


@pytest.mark.usefixtures("node_packages")
async def test_the_page_of_a_shop_follows_its_table(database: Database, browser: Browser) -> None:
    with Emitter(database.dsn) as io:
        io.install_sql()
    rows = ["tea: new", "biscuits: new"]
    async with AsyncExitStack() as stack:
        psql = stack.enter_context(database.connect())
        psql.execute((Path(__file__).parents[2] / "examples" / "shop.sql").read_text())
        clients = await stack.enter_async_context(running("shop_app", database, {"customer": "7"}))
        urls = [f"{client.label}/?customer={customer}" for client, customer in zip(clients, (7, 8), strict=True)]
        pages = [await opened(browser, url) for url in urls]
        seven, eight = (page.locator("#orders li") for page, _ in pages)
        await expect(seven).to_have_text(rows)
        await expect(eight).to_have_text(["coffee: new"])
        shown = [{"id": 1, "item": "tea", "status": "new"}, {"id": 2, "item": "biscuits", "status": "new"}]
        for client in clients:
            assert await client.wait_for("orders") == [(shown,)]

        psql.execute("UPDATE orders SET status = 'paid' WHERE id = 1")
        await expect(seven).to_have_text(["tea: paid", "biscuits: new"])
        with psql.transaction(force_rollback=True):
            psql.execute("UPDATE orders SET status = 'lost'")
            psql.execute("DELETE FROM orders WHERE id = 2")
        psql.execute("INSERT INTO orders (customer_id, item) VALUES (7, 'milk')")
        await expect(seven).to_have_text(["tea: paid", "biscuits: new", "milk: new"])
        with psql.transaction():
            psql.execute("DELETE FROM orders WHERE id = 2")
            psql.execute("UPDATE orders SET customer_id = 8 WHERE item = 'milk'")
        await expect(seven).to_have_text(["tea: paid"])
        await expect(eight).to_have_text(["coffee: new", "milk: new"])  # new for its other customer
        for client in clients:
            operations = [argument["op"] for (argument,) in await client.wait_for("order", 4)]
            assert operations == ["UPDATE", "INSERT", "DELETE", "DELETE"], "the row that moved is gone"
        assert [failures for _, failures in pages] == [[], []]


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[2].glob("examples/*.py")), ids=lambda path: path.name)
def test_every_example_is_run(path: Path) -> None:
    text = Path(__file__).read_text()
    assert any(name in text for name in (f'"{path.stem}"', f"examples.{path.stem}", f"examples/{path.name}"))
