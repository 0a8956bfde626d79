"""`Filter`: which events a reader wants."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from socketio_postgres.events.event import is_storable
from socketio_postgres.exceptions import FilterError

__all__ = ["Filter", "conditions_of"]

Condition = tuple[str, str, list[str]]

_TEXTS: Final = {
    "type": "types",
    "event_type": "types",
    "type_prefix": "type_prefixes",
    "aggregate_id": "aggregates",
    "stream": "aggregates",
    "aggregate_prefix": "aggregate_prefixes",
    "stream_prefix": "aggregate_prefixes",
}
_DEPTH_MAX: Final = 100
"""As the core parses it."""

_CONDITIONS_MAX: Final = 1000
"""Each needs parameters, of which a statement has 65,535 at most."""

_KEYS: Final = (*_TEXTS, "tenant", "metadata", "data")


@dataclasses.dataclass(frozen=True)
class Filter:
    """A condition on events. An event must match all filters, and any of the values of one filter.

        Filter("type", "OrderPlaced")
        Filter("type", ["OrderPlaced", "OrderPaid"])
        Filter("type_prefix", "Order")
        Filter("aggregate_id", "order-1")             # also: "stream"
        Filter("aggregate_prefix", "order-")          # also: "stream_prefix"
        Filter("tenant", "t1")                        # metadata["tenant"] == "t1"
        Filter("metadata", {"tenant": "t1", "n": 1})  # each key has this value
        Filter("data", {"items": [{"sku": "A"}]})     # contained, as with PostgreSQL's jsonb @>

    Args:
        key: Which condition.
        value: A string, several strings, or JSON, as above.

    Raises:
        FilterError: The condition does not exist, or the value does not fit it.
    """

    key: str
    value: Any

    def __post_init__(self) -> None:
        if self.key not in _KEYS:
            close = difflib.get_close_matches(str(self.key), _KEYS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(_KEYS)}"
            raise FilterError(f"unknown filter {self.key!r}: {hint}", key=str(self.key))
        self.conditions()

    def conditions(self) -> list[Condition]:
        """As the core takes them."""
        if self.key in _TEXTS:
            return [(_TEXTS[self.key], "", _texts(self.key, self.value))]
        if self.key == "tenant":
            return [("metadata", "tenant", [_json(self.key, text) for text in _texts(self.key, self.value)])]
        if self.key == "metadata":
            if not isinstance(self.value, Mapping) or not all(isinstance(key, str) for key in self.value):
                raise FilterError(f"filter 'metadata' takes a dict with string keys, not {self.value!r}", key=self.key)
            return [("metadata", _text(self.key, key), [_json(self.key, value)]) for key, value in self.value.items()]
        return [("data", "", [_json(self.key, self.value)])]


def _text(key: str, value: object) -> str:
    if not isinstance(value, str) or not is_storable(value):
        raise FilterError(f"filter {key!r} takes strings without NUL or half a surrogate pair, not {value!r}", key=key)
    return value


def _texts(key: str, value: object) -> list[str]:
    if isinstance(value, str):
        return [_text(key, value)]
    if not isinstance(value, Iterable) or isinstance(value, (bytes, Mapping)):
        raise FilterError(f"filter {key!r} takes a string or several, not {value!r}", key=key)
    # The order makes no difference to what matches, and sorted it makes none to a stored filter either.
    return sorted(_text(key, item) for item in value)


def _json(key: str, value: object) -> str:
    try:
        text = json.dumps(value, allow_nan=False, sort_keys=True, ensure_ascii=False)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise FilterError(f"filter {key!r} takes JSON: {error}", key=key) from error
    if "\\u0000" in text.replace("\\\\", ""):
        raise FilterError(f"filter {key!r} holds a NUL, which jsonb cannot store", key=key)
    if _nests_too_deep(value):
        raise FilterError(f"filter {key!r} nests deeper than {_DEPTH_MAX} levels", key=key)
    return text


def _nests_too_deep(value: object) -> bool:
    level = [value]
    for _ in range(_DEPTH_MAX):
        containers = [item for item in level if isinstance(item, (Mapping, list, tuple))]
        level = [inner for item in containers for inner in (item.values() if isinstance(item, Mapping) else item)]
    return any(isinstance(item, (Mapping, list, tuple)) for item in level)


def conditions_of(filters: Iterable[Filter], types: Iterable[str] | str | None = None) -> list[Condition]:
    """Of all filters together.

    Raises:
        FilterError: One of them is no `Filter`, or they have more than 1,000 conditions.
    """
    conditions: list[Condition] = []
    for item in filters:
        if not isinstance(item, Filter):
            raise FilterError(f"filters must be Filter objects, not {item!r}", key="")
        conditions += item.conditions()
    if types is not None:
        conditions += Filter("type", types).conditions()
    if len(conditions) > _CONDITIONS_MAX:
        raise FilterError(f"{len(conditions)} conditions are too many: at most {_CONDITIONS_MAX}", key="")
    return conditions
