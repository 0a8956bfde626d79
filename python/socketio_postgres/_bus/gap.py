"""`GapInfo`: what the application is told when messages will not come."""

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
    """Messages that will not come.

    Servers and emitters of this package number their messages, so what they sent is accounted for one by one. Those of
    Node.js and Go carry no numbers: what is lost of theirs is only covered by "reconnect".

    Attributes:
        reason: `hole`: numbers of one sender were skipped. `reconnect`: the listening session was lost and is active
            again; LISTEN comes first, so what the application reads now is not older than what it hears from now on.
            The holes that the outage made follow one by one, with each sender's next message. `overflow`: the process
            did not keep up, and `receive_buffer_bytes` were full. `attachment`: the body of a message was gone,
            unreadable or larger than `max_payload`.
        namespace: Namespace they were sent in; None for all.
        sender: Server id of their sender, or `emitter/` and the emitter's own id; None for anybody.
        missing: How many; None when nobody can know.
        since: When the last one before them came, in seconds as `time.time()` has it: resync from here.
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
