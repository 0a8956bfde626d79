"""Write benches/REPORT.md from what the bench programs saved: `python -m benches.report`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benches import plots
from benches.results import Row, Section, Table, Target, load

REPORT = Path(__file__).parent / "REPORT.md"
FINDINGS = Path(__file__).parent / "findings"
"""What was found out about a table, by hand: `<table id>.md`."""
HUNDRED = 100
TIE = 0.98
"""Ratios above it are no losses."""

HEAD = """# What was measured

This file is written by `python -m benches.report`; do not edit it. `make bench` measures again in about ten minutes,
`make bench-full` takes longer. [README.md](README.md) describes what each program does, and what it leaves out.

Values are medians of the repetitions, with the smallest and the largest value beside them. "Ours ÷ theirs" says how
many times as good as that row this package is, whichever direction is good: above 1, this package is better. Compare
ratios rather than the values of different machines: the candidates took turns in one run, so disturbances affected all.
"""


def number(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if abs(value) >= HUNDRED else f"{value:.3g}"


def times_as_good(table: Table, ours: Row, theirs: Row) -> float:
    """How many times as good as `theirs` a row is."""
    better, worse = (ours, theirs) if table.is_more_better else (theirs, ours)
    return better.median / worse.median if worse.median else float("inf")


def _rival(table: Table, ours: Row, row: Row) -> str:
    if not row.values or row.is_ours:
        return ""
    return f"{times_as_good(table, ours, row):.2f}"


def _base(table: Table, row: Row) -> Row | None:
    """The row of ours that one of a rival is compared with: the one that did the same job."""
    ours = [each for each in table.rows if each.is_ours and each.values]
    for target in table.targets:
        if target.than == row.who:
            return table.row(target.who)
    same = [each for each in ours if each.who.rpartition(", ")[2] == row.who.rpartition(", ")[2]]
    return next(iter(same or ours), None)


def results(table: Table) -> list[str]:
    """The rows."""
    lines = [f"| | {table.unit}: median | least | most | ours ÷ theirs |", "|---|--:|--:|--:|--:|"]
    for row in table.rows:
        name = f"**{row.who}**" if row.is_ours else row.who
        if not row.values:
            lines.append(f"| {name} | {row.note} | | | |")
            continue
        base = _base(table, row)
        ratio = "" if base is None or row.is_ours else _rival(table, base, row)
        least, most = number(min(row.values)), number(max(row.values))
        lines.append(f"| {name} | {number(row.median)} | {least} | {most} | {ratio} |")
    return lines


def verdict(table: Table, target: Target) -> tuple[str, str, bool | None]:
    """What was promised, what was measured, and whether it was kept; None when it could not be measured."""
    ours = table.row(target.who)
    if target.than is None:
        limit = target.limit or 0.0
        text = f"{'≥' if table.is_more_better else '≤'} {number(limit)} {table.unit}"
        if ours is None:
            return text, "not measured", None
        is_kept = ours.median >= limit if table.is_more_better else ours.median <= limit
        return text, f"{number(ours.median)} {table.unit}", is_kept
    text = f"≥ {target.factor:.3g} times as good as {target.than}"
    theirs = table.row(target.than)
    if ours is None or theirs is None:
        return text, "not measured", None
    ratio = times_as_good(table, ours, theirs)
    return text, f"{ratio:.2f}", ratio >= target.factor


WORDS = {True: "reached", False: "**not reached**", None: "not measured"}


def _targets(table: Table) -> list[str]:
    if not table.targets:
        return []
    lines = ["", "| Target | measured | |", "|---|--:|---|"]
    for target in table.targets:
        text, measured, is_kept = verdict(table, target)
        lines.append(f"| {target.who}: {text} | {measured} | {WORDS[is_kept]} |")
    return lines


def _table(table: Table) -> list[str]:
    lines = [f"### {table.title}", "", *results(table), *_targets(table), ""]
    lines += [f"- {note}" for note in table.notes]
    path = plots.plot(table)
    if path is not None:
        lines += ["", f"![{table.title}](plots/{path.name})"]
    finding = FINDINGS / f"{table.id}.md"
    if finding.exists():
        lines += ["", finding.read_text().strip()]
    return [*lines, ""]


def _section(section: Section) -> list[str]:
    machine = section.machine
    settings = ", ".join(f"{name} {value}" for name, value in section.settings.items())
    packages = ", ".join(f"{name} {version}" for name, version in machine.packages.items())
    lines = [
        f"## {section.title}",
        "",
        f"`{section.command}` on {machine.day}, commit {machine.commit}.",
        f"{machine.processor}, {machine.cores} cores, {machine.memory_gb} GB; {machine.system}.",
        f"Python {machine.python}.",
        f"Load average when it began: {machine.load}. Settings: {settings}. Versions: {packages}.",
        "",
    ]
    for table in section.tables:
        lines += _table(table)
    return lines


def _summary(sections: list[Section]) -> list[str]:
    lines = ["## Targets", "", "| | Target | measured | |", "|---|---|--:|---|"]
    for section in sections:
        for table in section.tables:
            for target in table.targets:
                text, measured, is_kept = verdict(table, target)
                lines.append(f"| {table.title} | {target.who}: {text} | {measured} | {WORDS[is_kept]} |")
    return [*lines, ""]


def _losses(sections: list[Section]) -> list[str]:
    lines = ["## Cases we lose", "", "These rows of alternatives have a better median than this package.", ""]
    for section in sections:
        for table in section.tables:
            for row in table.rows:
                base = _base(table, row)
                if row.is_ours or not row.values or base is None:
                    continue
                ratio = times_as_good(table, base, row)
                if ratio < TIE:
                    lines.append(f"- {table.title}: {row.who} is {1 / ratio:.2f} times as good as {base.who}.")
    return [*lines, ""]


def write(sections: list[Section]) -> str:
    """The whole report."""
    lines = [HEAD, *_summary(sections), *_losses(sections)]
    for section in sections:
        lines += _section(section)
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """The command line."""
    argparse.ArgumentParser(prog="python -m benches.report", description=__doc__).parse_args()
    sections = load()
    if not sections:
        sys.exit("nothing was measured yet: run `make bench`")
    REPORT.write_text(write(sections))
    sys.stderr.write(f"wrote {REPORT}\n")


if __name__ == "__main__":
    main()
