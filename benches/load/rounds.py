"""Taking turns: everybody once, checked and not measured; then repetitions, in another order each time."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable

from benches.load.stage import Scale

Turn = Callable[[], Awaitable[float]]
"""Does the job once, checks what came of it, and gives the measured value."""


async def alternate(scale: Scale, turns: dict[str, Turn]) -> dict[str, list[float]]:
    """Values by name. Whatever disturbs the machine for a while disturbs them all."""
    names = list(turns)
    for name in names:
        await turns[name]()
    values: dict[str, list[float]] = {name: [] for name in names}
    for repetition in range(scale.repetitions):
        first = repetition % len(names)
        for name in names[first:] + names[:first]:
            values[name].append(await turns[name]())
    for name in names:
        shown = ", ".join(f"{value:,.3g}" for value in values[name])
        sys.stderr.write(f"  {name}: {shown}\n")
    return values
