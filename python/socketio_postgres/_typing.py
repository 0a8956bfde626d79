"""`Self` and `Unpack`, which `typing` has from Python 3.11 on. No dependency for what only type checkers need."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Generic, TypeVar

__all__ = ["Self", "Unpack"]

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack
elif sys.version_info >= (3, 11):
    from typing import Self, Unpack
else:
    # The names must be there, or typing.get_type_hints() fails for every function that has them in its signature.
    Self = TypeVar("Self")
    Keywords = TypeVar("Keywords")

    class Unpack(Generic[Keywords]):
        """Stands in an annotation, as `Unpack[BusKeywords]`, and does nothing."""
