"""What becomes of an event whose handler fails: `Stop`, `Skip` or `Park`, each after some attempts."""

from __future__ import annotations

import dataclasses

from socketio_postgres.events.event import check_positive, check_seconds
from socketio_postgres.exceptions import OptionsError

__all__ = ["FailurePolicy", "Park", "ParkedEvent", "Skip", "Stop", "policy_of"]


@dataclasses.dataclass(frozen=True)
class FailurePolicy:
    """Attempts before it is over, and the pauses between them.

    Attributes:
        after: Attempts in all. Default 1: no retry.
        delay: Seconds before the second attempt; doubled each time, up to `max_delay`. Default 0.1.
        max_delay: Default 10.
    """

    after: int = 1
    delay: float = 0.1
    max_delay: float = 10.0

    def __post_init__(self) -> None:
        check_positive("after", self.after or 0)
        check_seconds("delay", self.delay, 0)
        check_seconds("max_delay", self.max_delay, 0)

    def pause(self, attempts: int) -> float:
        """Seconds to wait after so many attempts."""
        return float(min(self.delay * 2 ** (attempts - 1), self.max_delay))


class Stop(FailurePolicy):
    """Raise the error. The event is not acknowledged, and is delivered again. The default."""


class Skip(FailurePolicy):
    """Log the error and go on; the event is acknowledged."""


@dataclasses.dataclass(frozen=True)
class Park(FailurePolicy):
    """Set the event aside, in a table of its own, and go on; see `replay_parked`.

    Attributes:
        whole_aggregate: Park what follows of the same aggregate, too, so that its order holds. Default True.
    """

    whole_aggregate: bool = True


@dataclasses.dataclass(frozen=True)
class ParkedEvent:
    """An event that was set aside.

    Attributes:
        version: Its version.
        aggregate_id: Its aggregate.
        attempts: How often it was tried; 0: an earlier event of its aggregate had failed.
        last_error: What the last attempt raised.
    """

    version: int
    aggregate_id: str
    attempts: int
    last_error: str | None


def policy_of(on_error: object) -> FailurePolicy:
    """The policy that was asked for; `Stop()` without one.

    Raises:
        OptionsError: It is none, for example a class instead of an object.
    """
    if on_error is None:
        return Stop()
    if not isinstance(on_error, FailurePolicy):
        reason = "must be Stop(), Skip() or Park()"
        raise OptionsError(
            f"invalid on_error: {reason} (got {on_error!r})", option="on_error", value=repr(on_error), reason=reason
        )
    return on_error
