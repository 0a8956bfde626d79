"""Options: Node's defaults, and one clear error for each mistake."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from typing import Any

import pytest

from socketio_postgres import (
    AsyncEmitter,
    AsyncPostgresClient,
    AsyncPostgresManager,
    BusOptions,
    Emitter,
    EventStoreOptions,
    HeartbeatOptions,
    OptionsError,
    PayloadTooLargeError,
    PostgresClient,
    PostgresManager,
)
from socketio_postgres._bus.options import BusSettings
from socketio_postgres.events.options import EventStoreKeywords
from socketio_postgres.options import BusKeywords, ManagerKeywords
from tests.fixtures.program import ROOT

DSN = "postgresql://app@db/app"
CLASSES = [AsyncPostgresManager, AsyncEmitter, Emitter, AsyncPostgresClient, PostgresClient]


def test_defaults_are_those_of_the_node_adapter() -> None:
    options, heartbeat = BusOptions(DSN), HeartbeatOptions()
    assert options.channel == "socket.io"  # channelPrefix
    assert options.table_name == "socket_io_attachments"
    assert options.payload_threshold == 8000
    assert heartbeat.cleanup_interval == 30.0
    assert heartbeat.heartbeat_interval == 5.0
    assert heartbeat.heartbeat_timeout == 10.0


@pytest.mark.parametrize("make", CLASSES, ids=lambda make: make.__name__)
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("dsn", None),
        ("dsn", b"postgresql://app@db/app"),
        ("dsn", 5432),
        ("listen_dsn", 1),
        ("password", "secret"),
        ("channel", None),
        ("channel", 1),
        ("table_name", None),
        ("table_name", ""),
        ("table_name", "a.b.c"),
        ("table_name", "events; drop table users"),
        ("table_name", "x" * 64),
        ("create_table", 1),
        ("create_table", "no"),
        ("payload_threshold", 0),
        ("payload_threshold", 8001),
        ("payload_threshold", 100.0),
        ("payload_threshold", True),
        ("payload_threshold", "8000"),
        ("payload_threshold", None),
        ("max_payload", 0),
        ("max_payload", -1),
        ("max_payload", 1 << 30),
        ("buffer_count", 0),
        ("buffer_bytes", 0),
        ("buffer_age", -0.1),
        ("buffer_age", "30"),
        ("buffer_age", float("nan")),
        ("buffer_age", float("inf")),
    ],
)
def test_a_bad_option_is_named(make: Any, option: str, value: object) -> None:
    options = {"dsn": DSN} | {option: value}
    with pytest.raises(OptionsError, match=rf"invalid {option}: ") as caught:
        make(**options)
    assert isinstance(caught.value, ValueError)
    assert caught.value.option == option
    assert caught.value.reason


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("heartbeat_interval", 0),
        ("heartbeat_interval", -5.0),
        ("heartbeat_interval", "5"),
        ("heartbeat_interval", True),
        ("heartbeat_interval", float("nan")),
        ("heartbeat_timeout", 0),
        ("heartbeat_timeout", 5.0),  # not above the interval
        ("heartbeat_timeout", None),
        ("cleanup_interval", 0),
        ("cleanup_interval", 100_000),
        ("error_handler", "print"),
        ("error_handler", 5),
    ],
)
def test_a_bad_option_of_the_manager_is_named(option: str, value: Any) -> None:
    with pytest.raises(OptionsError, match=rf"invalid {option}: ") as caught:
        AsyncPostgresManager(DSN, **{option: value})
    assert caught.value.option == option


@pytest.mark.parametrize("make", CLASSES, ids=lambda make: make.__name__)
@pytest.mark.parametrize("option", ["channelPrefix", "tableName", "pool", "url", "heartbeatInterval"])
def test_an_unknown_option_is_named(make: Any, option: str) -> None:
    with pytest.raises(TypeError, match=rf"'{option}'") as caught:
        make(DSN, **{option: 1})
    assert isinstance(caught.value, OptionsError)
    assert caught.value.option == option


@pytest.mark.parametrize("make", CLASSES, ids=lambda make: make.__name__)
@pytest.mark.parametrize(
    "dsn",
    [
        "host=db nonsense",
        "postgresql://app@db:port/app",
        "postgresql://app:hunter2@db/app?sslmode=sometimes",
        "host=db password=hunter2 unknown_keyword=1",
        "mysql://app:hunter2@db/app",
        "host=db password='hunter2",
    ],
)
def test_a_bad_dsn_is_refused_without_its_password(make: Any, dsn: str) -> None:
    with pytest.raises(OptionsError) as caught:
        make(dsn)
    error = caught.value
    assert error.option
    assert error.reason
    for text in (str(error), repr(error), error.value, error.reason):
        assert "hunter2" not in text


@pytest.mark.parametrize("make", CLASSES, ids=lambda make: make.__name__)
def test_a_channel_prefix_leaves_room_for_the_namespace(make: Any) -> None:
    make(DSN, channel="x" * 61)
    with pytest.raises(PayloadTooLargeError, match="channel name") as caught:
        make(DSN, channel="é" * 31)
    assert (caught.value.size_bytes, caught.value.limit_bytes) == (64, 63)


@pytest.mark.parametrize("table_name", ["events", "chat.events", '"Chat"."my events"', "_x$1"])
def test_table_names_that_postgresql_takes(table_name: str) -> None:
    Emitter(DSN, table_name=table_name)


def test_nothing_is_connected_or_started_by_the_constructor() -> None:
    # No loop runs here and no such host exists: were anything tried, it would fail.
    for make in CLASSES:
        make("postgresql://app@does-not-exist.invalid/app")


def test_options_cannot_change_later() -> None:
    options = BusOptions(DSN)
    with pytest.raises(AttributeError):
        options.channel = "other"  # type: ignore[misc]


def test_numbers_are_taken_to_their_limits() -> None:
    Emitter(DSN, payload_threshold=1, max_payload=1, buffer_count=1, buffer_bytes=1, buffer_age=0)
    Emitter(DSN, payload_threshold=8000, max_payload=(1 << 30) - 1, buffer_age=86_400)
    AsyncPostgresManager(DSN, heartbeat_interval=0.01, heartbeat_timeout=0.02, cleanup_interval=0.1)


def test_the_message_says_what_is_allowed() -> None:
    with pytest.raises(OptionsError, match=re.escape("must be an integer from 1 to 8000 (got 9000)")):
        Emitter(DSN, payload_threshold=9000)


# ------------------------------------------------- what is declared once, and follows from it elsewhere


def names_of(options: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(options)]


@pytest.mark.parametrize(
    ("keywords", "options", "others"),
    [
        (BusKeywords, BusOptions, {"dsn"}),
        (ManagerKeywords, BusOptions, {"dsn", "channel"}),
        (EventStoreKeywords, EventStoreOptions, {"dsn"}),
    ],
)
def test_keywords_are_the_fields(keywords: Any, options: Any, others: set[str]) -> None:
    declared = typing.get_type_hints(options)
    assert typing.get_type_hints(keywords) == {name: declared[name] for name in names_of(options) if name not in others}


@pytest.mark.parametrize("manager", [AsyncPostgresManager, PostgresManager])
def test_a_manager_has_the_heartbeat_s_defaults(manager: Any) -> None:
    parameters = inspect.signature(manager).parameters
    for field in dataclasses.fields(HeartbeatOptions):
        assert parameters[field.name].default == field.default
    assert parameters["channel"].default == BusOptions.channel


@pytest.mark.parametrize(
    ("source", "options", "of_python"),
    [
        ("bus.rs", BusSettings, set()),
        ("store.rs", EventStoreOptions, {"stall_warning", "on_stall", "logger", "error_handler"}),
    ],
)
def test_the_core_takes_every_setting(source: str, options: Any, of_python: set[str]) -> None:
    text = (ROOT / "rust" / "src" / "py" / source).read_text()
    found = re.search(r"#\[derive\(FromPyObject\)\]\nstruct \w*Settings \{\n(.*?)\n\}", text, re.DOTALL)
    assert found
    assert set(re.findall(r"^    (\w+): ", found[1], re.MULTILINE)) == set(names_of(options)) - of_python


def documented(options: Any) -> dict[str, str]:
    """What a docstring says of each field."""
    _, _, section = inspect.getdoc(options).partition("Attributes:\n")  # type: ignore[union-attr]
    entries = re.findall(r"^    (\w+): (.*?)(?=^    \w|\Z)", section, re.MULTILINE | re.DOTALL)
    return {name: " ".join(text.split()) for name, text in entries}


def value_of(text: str) -> object:
    """A default as docstrings write it."""
    number = re.fullmatch(r"([\d ]+)( MiB)?", text)
    if number:
        return int(number[1].replace(" ", "")) * (1024 * 1024 if number[2] else 1)
    text = text.strip('`"')
    return {"True": True, "None": None}.get(text, text)


@pytest.mark.parametrize("options", [BusOptions, HeartbeatOptions, EventStoreOptions])
def test_docstrings_name_every_field_and_its_default(options: Any) -> None:
    said = documented(options)
    assert list(said) == names_of(options)
    for field in dataclasses.fields(options):
        found = re.search(r"Default ([^:;,.]+(?:\.\w+)?)", said[field.name])
        if found:
            assert value_of(found[1]) == field.default, field.name
        else:
            assert not field.default or "Default:" in said[field.name] or field.default is dataclasses.MISSING


@pytest.mark.parametrize("options", [BusOptions, EventStoreOptions])
def test_options_show_no_secret(options: Any) -> None:
    assert "hunter2" not in repr(options("postgresql://app:hunter2@db/app", listen_dsn="password=hunter2"))
    for option in ("dsn", "listen_dsn", "password"):
        with pytest.raises(OptionsError) as caught:
            options(**{option: ["hunter2"]})
        assert "hunter2" not in f"{caught.value} {caught.value.value}"
