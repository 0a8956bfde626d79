"""Plots of the report: bars for each repetition's median with its spread, curves where something grows."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from benches.results import Row, Table

FOLDER = Path(__file__).parent / "plots"
OURS, OTHERS = "#336791", "#b8bec5"
# The same SVG for the same numbers: text stays text, and nothing depends on the hour.
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "socketio-postgres", "font.size": 9}


def _ends(rows: list[Row]) -> list[list[float]]:
    """Distances from the medians to the smallest and the largest values."""
    return [[row.median - min(row.values) for row in rows], [max(row.values) - row.median for row in rows]]


def _bars(table: Table, rows: list[Row]) -> Figure:
    figure = Figure(figsize=(7.5, 0.7 + 0.32 * len(rows)), layout="constrained")
    axes = figure.subplots()
    upwards = rows[::-1]  # the first one on top
    colours = [OURS if row.is_ours else OTHERS for row in upwards]
    medians = [row.median for row in upwards]
    axes.barh([row.who for row in upwards], medians, xerr=_ends(upwards), color=colours, capsize=2)
    axes.set_xlabel(f"{table.unit}, {'more' if table.is_more_better else 'less'} is better")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _curves(table: Table) -> Figure:
    figure = Figure(figsize=(7.5, 3), layout="constrained")
    axes = figure.subplots()
    for name, positions in table.x.items():
        points = [(float(x), row) for x, who in positions.items() if (row := table.row(who)) is not None]
        rows = [row for _, row in points]
        colour = OURS if rows and rows[0].is_ours else OTHERS
        axes.errorbar(
            [x for x, _ in points], [row.median for row in rows], _ends(rows), label=name, color=colour, marker="o"
        )
    axes.set_xlabel(table.x_label)
    axes.set_ylabel(table.unit)
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def plot(table: Table) -> Path | None:
    """Draw a table; None when nothing in it was measured."""
    rows = [row for row in table.rows if row.values]
    if not rows:
        return None
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{table.id}.svg"
    with mpl.rc_context(STYLE):
        figure = _curves(table) if table.x else _bars(table, rows)
        figure.savefig(path, metadata={"Date": None})
    return path
