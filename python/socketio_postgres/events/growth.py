"""`Growth`: says in the text of a statement by how much the table has grown."""

from __future__ import annotations

from typing import Final

__all__ = ["Growth"]

_FEW_ROWS: Final = 100
"""Among so many rows it hardly matters how a row is found."""


class Growth:
    """By how much the table has grown since the first event.

    A library that prepares statements knows them by their text, and PostgreSQL keeps the plan of a prepared one, which
    may read a whole table of a few rows. So the text has a mark that changes whenever the growth has doubled.
    """

    def __init__(self) -> None:
        self._first: int | None = None
        self._size = 0

    @property
    def mark(self) -> str:
        """A comment for the text of a statement."""
        return f"/* {self._size} */"

    def has_seen(self, version: int) -> None:
        """The table has this version."""
        if self._first is None:
            self._first = version
        self._size = (abs(version - self._first) // _FEW_ROWS).bit_length()
