"""Forked and spawned children have their own identity and connections, and the parent keeps its own."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from pathlib import Path

import pytest

from socketio_postgres import AsyncPostgresManager
from tests.fixtures.clients import PythonClient
from tests.fixtures.database import Database
from tests.fixtures.program import Program
from tests.fixtures.server import PythonServer
from tests.fixtures.spy import Frame, spying
from tests.fixtures.waiting import eventually
from tests.modes.conftest import sync_server
from tests.processes.children import CHILDREN, EVENTS


def _event(frame: Frame) -> list[object]:
    event: list[object] = frame.message["data"]["packet"]["data"]
    return event


HOWS = ("os.fork", "gevent", "fork", "spawn", "forkserver", "pool", "executor")


@pytest.mark.parametrize("how", HOWS)
async def test_everything_that_children_emit_arrives_once(how: str, database: Database) -> None:
    async with spying(database) as spy:
        arguments = ["-W", "error", "-m", "tests.processes.children", how]
        with Program(arguments, {"SIO_PG_TEST_DSN": database.dsn}) as program:
            assert await program.wait() == 0, program.output
            assert program.output == ""
        await spy.wait_for_broadcast("parent", 2)
        children = [(_event(frame), frame.pid) for frame in spy.broadcasts("child")]
        parents = [(_event(frame), frame.pid) for frame in spy.broadcasts("parent")]
    expected = {(child, number) for child in range(CHILDREN) for number in range(EVENTS)}
    assert sorted((event[1], event[2]) for event, _ in children) == sorted(expected)
    assert [event[1] for event, _ in parents] == ["before", "after"]
    # The parent has kept its connection, and every process has had one of its own.
    assert len({backend for _, backend in parents}) == 1
    processes = {(event[3], backend) for event, backend in children}
    assert len(processes) == len({process for process, _ in processes})
    assert not {backend for _, backend in processes} & {backend for _, backend in parents}


async def test_a_server_forks(database: Database) -> None:
    mgr = AsyncPostgresManager(database.dsn, heartbeat_timeout=120)  # one that goes without a goodbye stays
    async with PythonServer(mgr) as here:
        await mgr.start()
        with sync_server("threading", database.dsn) as program:
            clients = [await PythonClient.connect(url) for url in (program.url, here.url)]
            await eventually(lambda: mgr.server_count() == 2, "the servers know each other")
            host_id = await program.ask("mgr.host_id")
            pids = await program.ask("backend_pids()")
            assert isinstance(pids, list)
            child = await program.ask("fork_server()")
            await eventually(lambda: mgr.server_count() == 3, "the child is a server of its own")

            async def parent_counts() -> bool:
                return await program.ask("mgr.server_count()") == 3

            await eventually(parent_counts, "the parent counts its child")
            assert await program.ask("mgr.host_id") == host_id
            assert len(set(mgr.stats()["peers"]["/"])) == 2
            new_pids = await program.ask("backend_pids()")
            assert isinstance(new_pids, list)
            assert set(pids) < set(new_pids)

            # The child does not answer for clients that are its parent's.
            assert len(await mgr.timeout(30).fetch_sockets()) == 2
            assert await mgr.timeout(30).emit_with_ack("question", 1) == [1, 1]
            await program.ask("sio.emit('parent', 1)")
            await mgr.server_side_emit("speak")
            await mgr.emit("end", None)
            for client in clients:
                assert await client.wait_for("parent") == [(1,)]
                assert await client.wait_for("child") == [(child,)]
                await client.wait_for("end")
                assert len(client.received("child")) == 1
            await mgr.server_side_emit("end", child)
            await eventually(lambda: mgr.server_count() == 2, "the child said goodbye")
            assert await program.ask(f"os.waitpid({child}, 0)[1]") == 0
            assert await program.ask("mgr.server_side_emit_with_ack('nothing', timeout=30)") == [None]

            async def only_its_own_are_left() -> bool:
                return await program.ask("backend_pids()") == pids

            await eventually(only_its_own_are_left, "PostgreSQL has ended the child's sessions")
            for client in clients:
                await client.disconnect()
        await mgr.close()


async def test_a_green_server_forks(database: Database) -> None:
    """Greenlets are copied into the child; those of ours must not take what belongs to the parent."""
    mgr = AsyncPostgresManager(database.dsn, heartbeat_timeout=30)
    async with PythonServer(mgr) as here:
        await mgr.start()
        with sync_server("gevent patched", database.dsn) as program:
            client = await PythonClient.connect(here.url)
            await program.ask("mgr.start()")
            await eventually(lambda: mgr.server_count() == 2, "the servers know each other")
            await program.ask("emitter.start()")
            # It lives through a heartbeat and some messages, so that a copy of the listener would act.
            child = await program.ask("fork_green()")
            for number in range(20):
                assert await mgr.server_side_emit_with_ack("add", number, 1, timeout=30) == [number + 1]
            await program.ask("(emitter.emit('parent', 1), emitter.flush())")
            assert await client.wait_for("child", 3) == [(child,)] * 3
            assert await client.wait_for("parent") == [(1,)]
            assert mgr.server_count() == 2
            await client.disconnect()
        await mgr.close()


async def test_celery_prefork(database: Database, tmp_path: Path) -> None:
    env = {"SIO_PG_TEST_DSN": database.dsn, "SIO_PG_TEST_FOLDER": str(tmp_path)}
    worker = ["-m", "celery", "-A", "tests.processes.tasks", "worker", "--pool", "prefork", "--concurrency", "2"]
    # A child ends after two tasks, right after it emitted.
    worker += ["--max-tasks-per-child", "2", "--without-gossip", "--without-mingle", "--loglevel", "INFO"]
    count = 9
    send = f"from tests.processes.tasks import emit\nfor n in range({count}): emit.delay(n)"
    async with spying(database) as spy:
        with ExitStack() as stack:
            program = stack.enter_context(Program(worker, env))
            sender = stack.enter_context(Program(["-c", send], env))
            assert await sender.wait() == 0, sender.output
            frames = await spy.wait_for_broadcast("task", count)
            program.signal(signal.SIGTERM)
            assert await program.wait() == 0, program.output
    events = [_event(frame) for frame in frames]
    assert sorted(event[1] for event in events) == list(range(count))  # type: ignore[type-var]
    parents = spy.broadcasts("parent")  # the worker, and the process that sent the tasks
    assert len(parents) == 2
    assert {frame.pid for frame in parents}.isdisjoint(frame.pid for frame in frames)
    assert len({event[2] for event in events}) >= 2


SUBSCRIBED = """
import os, time
from socketio_postgres import Event, EventStore

store = EventStore(os.environ["SIO_PG_TEST_DSN"])
store.store(Event("T", "a"))
subscription = store.subscribe()
assert subscription.next(20.0).version == 1
time.sleep(0.2)  # nothing is asked of it any more
if os.fork() == 0:
    del subscription
    # The child's copies of what the parent has: neither told that it is over nor locked.
    os._exit(0 if store._core.stats()["subscriptions"] == 1 else 1)
_, status = os.wait()
assert os.waitstatus_to_exitcode(status) == 0, "the child has ended the subscription"
store.store(Event("T", "a"))
assert subscription.next(20.0).version == 2
store.close()
"""


async def test_a_child_leaves_its_parents_subscription_alone(database: Database) -> None:
    with Program(["-W", "error", "-c", SUBSCRIBED], {"SIO_PG_TEST_DSN": database.dsn}) as program:
        assert await program.wait() == 0, program.output
        assert program.output == ""
