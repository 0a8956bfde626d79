"""`events parked`, `park`, `replay` and `trim`, on a real event store."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from socketio_postgres import Event, EventStore, Filter
from socketio_postgres.cli import main
from tests.fixtures.database import Database

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def store(database: Database) -> Iterator[EventStore]:
    """A store with ten events of two aggregates in turn."""
    with EventStore(database.dsn) as store:
        store.store_batch(Event(f"T{n % 2}", f"a-{n % 2}", {"n": n}) for n in range(10))
        yield store


def consume(store: EventStore, last: int, failing: int = 0, **options: Any) -> None:
    """Handle events up to a version; one fails, and is parked with what follows of its aggregate."""
    with store.durable("billing", **options) as durable:
        for event in durable:
            if failing and event.version >= failing and event.aggregate_id == f"a-{(failing - 1) % 2}":
                durable.park(event, ValueError("no [bold]\x1b[31m") if event.version == failing else None)
            else:
                durable.ack(event)
            if event.version == last:
                return


def position(store: EventStore) -> int:
    """Where it is."""
    (state,) = store.durable_subscriptions()
    return state.position


def marked(database: Database) -> set[int]:
    """The version of the settled mark, if there is one: it stays, too."""
    return {int(str(database.value("SELECT coalesce(max(version), 10) FROM events_settled")))}


def versions(store: EventStore) -> list[int]:
    """Of all events."""
    return [event.version for event in store.read()]


def test_parked(store: EventStore, database: Database, capsys: Capture) -> None:
    consume(store, 10, failing=8)
    assert main(["events", "parked", "billing", "--dsn", database.dsn]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == r"8 a-1 after 1 attempts ValueError: no [bold]\x1b[31m"
    assert second.startswith("10 a-1")
    assert main(["events", "parked", "billing", "--json", "--dsn", database.dsn]) == 0
    assert [json.loads(line)["version"] for line in capsys.readouterr().out.splitlines()] == [8, 10]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"partitions": 4},
        {"types": ["T1", "T0"]},
        {"filters": [Filter("type_prefix", "T"), Filter("metadata", {"a": 1, "b": [2]}), Filter("data", {"n": 3})]},
        {"filters": [Filter("tenant", ["x", "y"]), Filter("stream_prefix", "a")]},
        {"filters": [Filter("tenant", "x"), Filter("stream", ["a-1", "a-0"])]},
    ],
    ids=str,
)
def test_every_kind_of_subscription_is_found_as_it_was_made(
    store: EventStore, database: Database, capsys: Capture, options: dict[str, Any]
) -> None:
    with store.durable("billing", **options):
        pass
    assert main(["events", "replay", "billing", "--dsn", database.dsn, "--", "true"]) == 0
    assert "0 events are handled, 0 are still parked" in capsys.readouterr().err


def test_park(store: EventStore, database: Database, capsys: Capture) -> None:
    consume(store, 4)
    options = ["--dsn", database.dsn]
    for wrong, text in (("7", "the next event of billing is 5, not 7"), ("4", "no event 4"), ("99", "no event 99")):
        assert main(["events", "park", "billing", wrong, *options]) == 1
        assert text in capsys.readouterr().err
        assert position(store) == 4
    assert main(["events", "park", "billing", "5", "--reason", "too [odd]", *options]) == 0
    assert position(store) == 5
    assert main(["events", "parked", "billing", *options]) == 0
    assert "too [odd]" in capsys.readouterr().out


def test_park_and_replay_need_it_for_themselves(store: EventStore, database: Database, capsys: Capture) -> None:
    options = ["--dsn", database.dsn]
    with store.durable("billing"):
        for arguments in (["park", "billing", "1", *options], ["replay", "billing", *options, "true"]):
            assert main(["events", *arguments]) == 1
            assert "is owned by" in capsys.readouterr().err
    store.pause_durable("billing")
    assert main(["events", "replay", "billing", *options, "true"]) == 1
    assert "is paused" in capsys.readouterr().err


def test_replay(store: EventStore, database: Database, capfd: pytest.CaptureFixture[str]) -> None:
    consume(store, 10, failing=6)
    script = "import json, sys; event = json.load(sys.stdin); print(event['version']); sys.exit(event['version'] == 8)"
    arguments = ["events", "replay", "billing", "--dsn", database.dsn, "--", sys.executable, "-c", script]
    assert main(arguments) == 1
    told = capfd.readouterr()
    assert told.out.split() == ["6", "8"], "10 waits behind 8"
    assert "1 events are handled, 2 are still parked" in told.err
    assert "ended with 1" in str(store.durable("billing").parked()[0].last_error)
    assert main([*arguments[:-1], "import sys"]) == 0
    assert store.durable("billing").parked() == []
    assert main(["events", "replay", "billing", "--dsn", database.dsn, "--", "/no/such/program"]) == 0


def test_replay_with_a_program_that_is_not_there(store: EventStore, database: Database, capsys: Capture) -> None:
    consume(store, 10, failing=10)
    assert main(["events", "replay", "billing", "--dsn", database.dsn, "--", "/no/such/program"]) == 1
    assert "0 events are handled, 1 are still parked" in capsys.readouterr().err


def test_on_a_store_without_durable_subscriptions(database: Database, capsys: Capture) -> None:
    with EventStore(database.dsn) as store:
        store.store(Event("T", "a"))
    assert main(["events", "subscriptions", "--dsn", database.dsn]) == 0
    assert capsys.readouterr().out == ""
    for arguments in (["parked", "billing"], ["pause", "billing"], ["delete", "billing", "--yes"]):
        assert main(["events", *arguments, "--dsn", database.dsn]) == 1
        assert "no durable subscription" in capsys.readouterr().err
    assert database.value("SELECT to_regclass('events_subscriptions')") is None, "nothing is created"


def test_what_was_replaced(store: EventStore, database: Database, capsys: Capture) -> None:
    """A version of a projection that is served no more: nothing can be done with it, and it holds nothing up."""
    consume(store, 1)
    with store.durable("billing@2") as durable:
        durable.ack(list(zip(durable, range(9), strict=False))[-1][0])
    with database.connect() as admin:
        admin.execute("UPDATE events_subscriptions SET replaced_by = 'billing@2' WHERE name = 'billing'")
    assert main(["events", "subscriptions", "--dsn", database.dsn]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == "billing was replaced by billing@2"
    assert second.startswith("billing@2 at 9, 1 behind (")
    for arguments in (
        ["parked", "billing"],
        ["park", "billing", "2"],
        ["replay", "billing", "true"],
        ["rewind", "billing", "2"],
        ["pause", "billing"],
        ["resume", "billing"],
        ["delete", "billing", "--yes"],
    ):
        assert main(["events", *arguments, "--dsn", database.dsn]) == 1
        assert "replaced by" in capsys.readouterr().err
    assert main(["events", "trim", "8", "--yes", "--dsn", database.dsn]) == 0
    assert {*versions(store)} == {1, 9, 10} | marked(database)


def test_unknown_names(store: EventStore, database: Database, capsys: Capture) -> None:
    consume(store, 1)
    commands = (["parked", "x"], ["park", "x", "1"], ["replay", "x", "true"], ["pause", "x"], ["delete", "x", "--yes"])
    for arguments in commands:
        assert main(["events", *arguments, "--dsn", database.dsn]) == 1
        assert "'x'" in capsys.readouterr().err


def test_trim(store: EventStore, database: Database, capsys: Capture) -> None:
    consume(store, 7, failing=3)
    trim = ["events", "trim", "--yes", "--dsn", database.dsn]
    assert main([*trim, "8"]) == 1
    assert "billing is at 7" in capsys.readouterr().err
    assert main([*trim, "10"]) == 1
    assert "the newest event, 10, must stay" in capsys.readouterr().err
    assert versions(store) == list(range(1, 11))
    assert main([*trim, "7"]) == 0
    kept = {3, 5, 7} | marked(database)
    assert "events are deleted" in capsys.readouterr().err
    assert versions(store) == sorted(kept | {8, 9, 10}), "parked events stay, and those where readers are"
    consume(store, 10)  # it goes on
    assert main([*trim, "9", "--force"]) == 0


def test_trim_by_force(store: EventStore, database: Database) -> None:
    consume(store, 2)
    assert main(["events", "trim", "6", "--yes", "--force", "--dsn", database.dsn]) == 0
    assert versions(store) == sorted({2, 7, 8, 9, 10} | marked(database))
    with store.durable("billing") as durable:
        assert next(iter(durable)).version > 2


def test_trim_asks(store: EventStore, database: Database, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda _: "n")
    assert main(["events", "trim", "5", "--dsn", database.dsn]) == 1
    assert len(versions(store)) == 10


def test_trim_in_chunks(database: Database, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr("socketio_postgres.cli.trim.CHUNK", 7)
    with EventStore(database.dsn) as store:
        store.store_batch(Event("T", "a", n) for n in range(100))
        assert main(["events", "trim", "90", "--yes", "--dsn", database.dsn]) == 0
        assert "90 events are deleted" in capsys.readouterr().err
        assert versions(store)[-10:] == list(range(91, 101))


def test_trim_without_the_right(store: EventStore, database: Database, capsys: Capture) -> None:
    with database.connect() as admin:
        admin.execute("CREATE ROLE trimmer LOGIN")
        admin.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO trimmer")
        admin.execute("GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA public TO trimmer")
    try:
        assert main(["events", "trim", "5", "--yes", "--dsn", f"{database.dsn} user=trimmer"]) == 1
        assert "permission denied" in capsys.readouterr().err
        assert len(versions(store)) == 10
    finally:
        with database.connect() as admin:
            admin.execute("DROP OWNED BY trimmer")
            admin.execute("DROP ROLE trimmer")
