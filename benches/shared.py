"""Names and sizes that the benches share."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

Run = Callable[[Coroutine[Any, Any, Any]], Any]
"""Runs a coroutine to its end in the bench's own event loop."""

Committed = Callable[[Callable[[], object], int], list[str]]
"""Calls a function that publishes and gives the payloads that listeners got."""

CHANNEL = "socket.io#/"
MESSAGES = 10_000
"""In one round."""

MESSAGES_OF_CHECK = 200
"""The same where nothing is measured, in the pass that only shows that the benches run."""

ROUNDS = 5
