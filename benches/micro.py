"""Make a section of the report of what pytest-benchmark measured: `python -m benches.micro RESULTS.json`."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from benches.results import Row, Section, Table, save

OURS = ("ours", "test_emitter", "test_async_emitter", "test_manager")
"""How the names of our own benches begin, or what stands in their brackets."""
MICROSECONDS = 1e6


def _is_ours(name: str) -> bool:
    return name.startswith(OURS) or "[ours" in name


def _row(found: dict[str, Any]) -> Row:
    times = [found["stats"][part] * MICROSECONDS for part in ("q1", "median", "q3")]  # of up to 100,000 rounds
    name = found["name"].removeprefix("test_").replace("_", " ")
    return Row(name, times, is_ours=_is_ours(found["name"]))


def tables(results: dict[str, Any]) -> list[Table]:
    """A table for every group of benches, by name; least and most are quartiles."""
    groups: dict[str, list[Row]] = {}
    for found in sorted(results["benchmarks"], key=lambda found: str(found["group"])):
        groups.setdefault(found["group"] or found["name"], []).append(_row(found))
    return [
        Table(id=re.sub(r"\W+", "-", group), title=group.capitalize(), unit="µs", rows=rows, is_more_better=False)
        for group, rows in groups.items()
    ]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benches.micro", description=__doc__)
    parser.add_argument("results", type=Path, help="written by pytest --benchmark-json")
    results = json.loads(parser.parse_args().results.read_text())
    path = save(
        Section(
            name="micro",
            title="Small pieces",
            order=30,
            command="pytest benches --benchmark-enable",
            settings={"fsync": "off", "events of one round": "10,000"},
            tables=tables(results),
        )
    )
    sys.stderr.write(f"saved {path}\n")


if __name__ == "__main__":
    main()
