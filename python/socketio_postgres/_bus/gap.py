"""`GapInfo`: which messages are lost, for the application."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Final, Literal, TypeAlias

__all__ = ["GapHandler", "GapInfo", "Reason"]

Reason: TypeAlias = Literal["hole", "reconnect", "overflow", "attachment"]

EXPLANATIONS: Final[dict[str, str]] = {
    "hole": "their numbers never came: their sender failed to commit them, or they were lost on the way",
    "reconnect": "the listening session was lost; it is active again",
    "overflow": "this process did not take them in time, see receive_buffer_bytes",
    "attachment": "their attachment was gone, unreadable or too large",
}


@dataclasses.dataclass(frozen=True)
class GapInfo:
    """Messages that are lost for this process.

    Servers and emitters of this package number their messages, so each lost message is known. Messages of Node.js and
    Go servers have no numbers; only `reconnect` covers those.

    Attributes:
        reason: `hole`: numbers of one sender are missing. `reconnect`: the listening session was lost and is active
            again. LISTEN is active before this is reported, so data that the application reads now is not older than
            the next message. Holes from the outage follow, with the next message of each sender. `overflow`: the
            process did not keep up, and `receive_buffer_bytes` of messages were waiting. `attachment`: the body of a
            message was deleted, unreadable or larger than `max_payload`.
        namespace: Namespace of the messages; None for all namespaces.
        sender: Server id of the sender, or `emitter/` and the emitter's own id; None for all senders.
        missing: Number of messages; None if it is unknown.
        since: When the last message before the gap arrived, in seconds as returned by `time.time()`. Catch up from
            here.
    """

    reason: Reason
    namespace: str | None
    sender: str | None
    missing: int | None
    since: float

    def __str__(self) -> str:
        count = "an unknown number of" if self.missing is None else self.missing
        where = "all namespaces" if self.namespace is None else f"namespace {self.namespace}"
        who = "" if self.sender is None else f" from {self.sender}"
        return f"{count} messages{who} in {where} are missing: {EXPLANATIONS[self.reason]}"


GapHandler: TypeAlias = Callable[[GapInfo], object]
