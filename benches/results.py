"""Results of a bench program: what it measured, for the report that joins them all.

A program saves one `Section` as JSON; `python -m benches.report` reads every one that is there. So programs that take
long need not run together.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benches.machine import Machine, read_machine

FOLDER = Path(__file__).parent.parent / ".cache" / "bench"


@dataclass(frozen=True)
class Row:
    """Somebody who did a job.

    Attributes:
        who: Name, unique in its table.
        values: One for each repetition, in the table's unit; none when it was not measured.
        is_ours: Whether it is this package.
        note: Why there are no values, or what to know about them.
    """

    who: str
    values: list[float]
    is_ours: bool = False
    note: str = ""

    @property
    def median(self) -> float:
        """The middle one of the repetitions."""
        return statistics.median(self.values)


@dataclass(frozen=True)
class Target:
    """What was promised of one row.

    Attributes:
        who: Row of ours.
        than: Row of a rival, or None for an absolute limit.
        factor: How many times as good as the rival, in the direction of the table; 0.8 may be a little worse.
        limit: The absolute limit, in the table's unit.
    """

    who: str
    than: str | None
    factor: float = 1.0
    limit: float | None = None


@dataclass(frozen=True)
class Table:
    """One question, answered by several.

    Attributes:
        id: Short name, also of the plot and of the explanation in `benches/findings/`.
        title: The question.
        unit: Of all values.
        rows: Who was measured.
        is_more_better: Whether more is better: rates, as against times and sizes.
        targets: What was promised.
        notes: How it was measured, and what to know.
        x: For a curve: the rows' positions on the horizontal axis by series, `{"ours": {"1": "ours, 1 server"}}`.
        x_label: What that axis counts.
    """

    id: str
    title: str
    unit: str
    rows: list[Row]
    is_more_better: bool = True
    targets: list[Target] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    x: dict[str, dict[str, str]] = field(default_factory=dict)
    x_label: str = ""

    def row(self, who: str) -> Row | None:
        """The row of that name, if it was measured."""
        return next((row for row in self.rows if row.who == who and row.values), None)


@dataclass(frozen=True)
class Section:
    """All that one program measured in one run.

    Attributes:
        name: Of its file.
        title: Heading.
        order: Place in the report, ascending.
        command: How to measure it again.
        settings: What was configured how, by name.
        tables: The results.
        machine: Where and when; filled in.
    """

    name: str
    title: str
    order: int
    command: str
    settings: dict[str, str]
    tables: list[Table]
    machine: Machine = field(default_factory=read_machine)


def save(section: Section) -> Path:
    """Write `.cache/bench/<name>.json`, in place of an earlier run's."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{section.name}.json"
    path.write_text(json.dumps(dataclasses.asdict(section), indent=1) + "\n")
    return path


def load() -> list[Section]:
    """Every section that was saved, in the order of the report."""
    found = [_section(json.loads(path.read_text())) for path in sorted(FOLDER.glob("*.json"))]
    return sorted(found, key=lambda section: section.order)


def _section(saved: dict[str, Any]) -> Section:
    tables = [
        Table(
            **{
                **table,
                "rows": [Row(**row) for row in table["rows"]],
                "targets": [Target(**target) for target in table["targets"]],
            }
        )
        for table in saved["tables"]
    ]
    return Section(**{**saved, "tables": tables, "machine": Machine(**saved["machine"])})
