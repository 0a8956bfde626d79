"""`Finding`: what `doctor` says about one thing."""

from __future__ import annotations

import dataclasses
import enum

__all__ = ["Finding", "Level", "fault", "note", "ok", "warning"]


class Level(str, enum.Enum):
    """How bad it is."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    FAULT = "fault"


@dataclasses.dataclass(frozen=True)
class Finding:
    """What was found out about one thing.

    Attributes:
        level: How bad it is; `FAULT` makes the exit status 1.
        about: What was looked at.
        text: What was found.
        remedy: What to do; empty when nothing is to be done.
    """

    level: Level
    about: str
    text: str
    remedy: str = ""


def ok(about: str, text: str) -> Finding:
    """Nothing is wrong."""
    return Finding(Level.OK, about, text)


def note(about: str, text: str, remedy: str = "") -> Finding:
    """Nothing is wrong, but it is good to know."""
    return Finding(Level.NOTE, about, text, remedy)


def warning(about: str, text: str, remedy: str) -> Finding:
    """It works, with a risk."""
    return Finding(Level.WARNING, about, text, remedy)


def fault(about: str, text: str, remedy: str) -> Finding:
    """It does not work."""
    return Finding(Level.FAULT, about, text, remedy)
