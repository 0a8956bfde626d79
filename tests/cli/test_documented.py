"""Every command in docs/command-line.md, and in docs/emitting.md, works as it stands there."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from psycopg.conninfo import conninfo_to_dict

from socketio_postgres import Event, EventStore
from socketio_postgres.cli.events import events
from socketio_postgres.cli.program import program
from socketio_postgres.cli.tail import TYPES
from tests.fixtures.database import Database
from tests.fixtures.waiting import TIMEOUT_S

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "command-line.md"
_BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ENDLESS = ("socketio-postgres tail", "socketio-postgres top")


def test_all_commands(database: Database, tmp_path: Path) -> None:
    program_file = tmp_path / "bin" / "socketio-postgres"
    program_file.parent.mkdir()
    program_file.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m socketio_postgres "$@"\n')
    program_file.chmod(0o755)
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / "events.jsonl").write_text('["hello", 1]\n')
    part = conninfo_to_dict(database.dsn)
    env = os.environ | {"PATH": f"{program_file.parent}:{os.environ['PATH']}", "PGUSER": str(part["user"])}
    env |= {"PGHOST": str(part["host"]), "PGPORT": str(part["port"]), "PGDATABASE": database.name}
    with EventStore(database.dsn) as store:
        store.store_batch(Event("OrderPlaced", f"order-{n}", n) for n in range(3))
        with store.durable("billing") as durable:
            durable.ack(next(iter(durable)))
        text = DOCUMENT.read_text() + DOCUMENT.with_name("emitting.md").read_text()
        for line in "".join(_BLOCK.findall(text)).splitlines():
            command = line.replace("dbname=postgres", f"dbname={database.name}")
            if command.startswith(ENDLESS):
                command = command.partition("|")[0] + " --help"
            elif " import " in command and "--skip-existing" not in command:
                _give_other_ids(tmp_path / "events.jsonl")
            ended = subprocess.run(  # noqa: S602 - these lines are for a shell
                command,
                shell=True,
                env=env,
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                check=False,
            )
            assert ended.returncode == 0, f"{command}\n{ended.stdout}{ended.stderr}"
        assert [event.version for event in store.read()][-3:] == [4, 5, 6], "imported, and not trimmed"
        assert store.durable_subscriptions() == []


def _give_other_ids(file: Path) -> None:
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(line | {"id": f"again-{line['id']}"}) + "\n" for line in lines))


@pytest.mark.parametrize("name", [*program.commands, *events.commands, *TYPES])
def test_it_is_complete(name: str) -> None:
    assert f"`{name}`" in DOCUMENT.read_text()


def test_every_option_has_a_help_text() -> None:
    commands: list[click.Command] = list(program.commands.values())
    for command in commands:
        commands += command.commands.values() if isinstance(command, click.Group) else []
        assert command.help
        for parameter in command.params:
            if isinstance(parameter, click.Option) and parameter.name not in {"namespace", "limit"}:
                assert parameter.help, f"{command.name} --{parameter.name}"


MENTION = re.compile(r"socketio-postgres +(?P<words>[^\n]+)")
NOT_COMMANDS = {"cluster", "server"}
"""What docs/operations.md hashes for advisory locks."""


def mentions() -> list[tuple[str, str]]:
    """Everything that a document calls the program with, and where: in code spans, in blocks, and in indented lines."""
    found = []
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]):
        text = path.read_text()
        blocks = re.findall(r"^```.*?^```$", text, re.MULTILINE | re.DOTALL)
        spans = re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))
        lines = [
            line.strip() for line in [*"\n".join(blocks).splitlines(), *re.findall(r"^    .*$", text, re.MULTILINE)]
        ]
        for code in [*(" ".join(span.split()) for span in spans), *lines]:
            match = MENTION.match(code)
            if match is not None and match["words"].split()[0] not in NOT_COMMANDS:
                found.append((path.name, match["words"]))
    return sorted(set(found))


@pytest.mark.parametrize(("page", "words"), mentions(), ids=" ".join)
def test_every_command_of_every_document_exists(page: str, words: str) -> None:
    command: click.Command = program
    for word in shlex.split(words.replace("…", "x"), comments=True):
        if word in {"|", "||", "&", "&&", ">", "<", "--", "-h"}:
            break
        if word.startswith("-") and word != "-":
            known = {name for parameter in command.params for name in parameter.opts}
            assert word.partition("=")[0] in known, f"{page}: {command.name} has no {word}"
        elif isinstance(command, click.Group):
            assert word in command.commands, f"{page}: {command.name} has no command {word}"
            command = command.commands[word]


def test_documents_name_many_commands() -> None:
    assert len(mentions()) > 50
