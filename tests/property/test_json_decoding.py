"""JSON that the core decodes itself means what it means to Python's own `json`, to the type and the sign of a zero."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socketio_postgres import StoredEvent

VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(st.characters())),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(st.characters()), inner)),
    max_leaves=20,
)


def decoded(text: str) -> Any:
    """What an event with this data gives."""
    return StoredEvent(1, "id", "aggregate", "type", text).data


@given(value=VALUES, is_ascii=st.booleans(), indent=st.sampled_from([None, 1]))
def test_what_python_wrote(value: Any, is_ascii: bool, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=is_ascii, indent=indent)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(value)  # half a surrogate pair only escaped
    assert repr(decoded(text)) == repr(json.loads(text))


ODD = [
    "",
    " ",
    "nul",
    "nulll",
    "[1,]",
    "[1 2]",
    '{"a":1,}',
    '{"a" 1}',
    "{a:1}",
    "{1:2}",
    '"a',
    '"a\\',
    '"\\x"',
    '"\\u12"',
    '"\\ud800"',
    '"\\ud83d\\ude00"',
    '"\t"',
    '"\x7f\u2028"',
    "01",
    "-01",
    "-",
    "-0",
    "-0.0",
    "1.",
    ".5",
    "+1",
    "1e",
    "1e+",
    "1E5",
    "1e400",
    "-1e-400",
    "0.1e1",
    "999999999999999999",
    "9999999999999999999",
    "-9223372036854775809",
    "1" * 4000,
    "NaN",
    "-Infinity",
    "1 1",
    "[] x",
    " \n\r\t[ ] ",
    '{"a": 1, "a": 2}',
    "\ufeff1",
    "[" * 60 + "]" * 60,
    "[" * 300 + "]" * 300,
    "[" * 300,
    '{"' + "k" * 100 + '": {"\\u006b": 1}}',
]


@pytest.mark.parametrize("text", ODD)
def test_what_is_odd(text: str) -> None:
    try:
        expected = repr(json.loads(text))
    except ValueError:
        with pytest.raises(ValueError, match=r".*"):
            decoded(text)
    else:
        assert repr(decoded(text)) == expected


def test_many_different_keys() -> None:
    """More than are remembered, again and again, so that places are taken over."""
    documents = [{f"key{i}-{j}": j for j in range(200)} for i in range(20)]
    for _ in range(3):
        for document in documents:
            assert decoded(json.dumps(document)) == document
