"""`Self` and `Unpack`, which `typing` has from Python 3.11 on, and `TypeVar` with a default, which it has from 3.13 on.

No dependency for what only type checkers need.
"""

from __future__ import annotations

import sys
import typing
from typing import TYPE_CHECKING, Any, Generic

__all__ = ["Data_co", "Self", "Unpack"]

if TYPE_CHECKING:
    from typing_extensions import Self, TypeVar, Unpack
else:
    if sys.version_info >= (3, 13):
        from typing import TypeVar
    else:

        def TypeVar(name: str, *bounds: Any, default: Any, **options: Any) -> Any:  # noqa: ARG001, N802
            """As in `typing`, but nobody asks for the default while the program runs."""
            return typing.TypeVar(name, *bounds, **options)

    if sys.version_info >= (3, 11):
        from typing import Self, Unpack
    else:
        # The names must be there, or typing.get_type_hints() fails for every function that has them in its signature.
        Self = typing.TypeVar("Self")
        Keywords = typing.TypeVar("Keywords")

        class Unpack(Generic[Keywords]):
            """Stands in an annotation, as `Unpack[BusKeywords]`, and does nothing."""


Data_co = TypeVar("Data_co", covariant=True, default=Any)
"""What the data of an event are. A store holds events of many kinds, so it gives them out as `StoredEvent[Any]`."""
