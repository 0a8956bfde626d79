"""Messages as SQL: what publishes them in a transaction of the user's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from socketio_postgres import _core
from socketio_postgres._bus.drivers import literal, numbered, percent, question
from socketio_postgres._bus.messages import Message
from socketio_postgres._bus.options import BusOptions
from socketio_postgres._cluster.rooms import bad

__all__ = ["LONGEST", "Frame", "Framer", "checked_longest", "notify_sql", "stored_sql"]

LONGEST: Final = 60.0
"""Seconds that a transaction may stay open after it has sent an attachment."""

DAY: Final = 86_400.0

_STYLES: Final[dict[str, Callable[[str], str]]] = {
    "format": percent,
    "qmark": question,
    "numeric_dollar": numbered,
}

notify_sql: Final = "SELECT pg_catalog.pg_notify(%s, %s)"


class Frame(NamedTuple):
    """A message ready to be sent; everything is ASCII.

    Attributes:
        channel: Channel.
        text: Notification; with a body, all of it but the row's id and its end.
        body: Attachment in base64, if there is one.
    """

    channel: str
    text: str
    body: str | None


def stored_sql(table: str, longest: float) -> str:
    """The statement that stores a body and notifies; its parameters are body, channel and text.

    Servers delete rows by their age, and see this one only after the commit. So it comes from the future. `RETURNING id`
    would need the right to read the table, so the sequence is asked.
    """
    sequence = f"pg_catalog.pg_get_serial_sequence({literal(table)}, 'id')"
    return (
        f"WITH body AS (INSERT INTO {table} (created_at, payload)"
        f" VALUES (pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => {longest!r}),"
        " pg_catalog.decode(%s, 'base64')) RETURNING 1)"
        " SELECT pg_catalog.pg_notify(%s, pg_catalog.concat(CAST(%s AS pg_catalog.text),"
        f" coalesce(pg_catalog.currval({sequence}), pg_catalog.lastval()), '\"}}')) FROM body"
    )


def checked_longest(seconds: Any) -> float:
    """The option `longest`.

    Raises:
        OptionsError: It is no number of seconds, or not above 0 and at most a day.
    """
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds <= DAY:
        raise bad("longest", seconds, "must be a number of seconds, above 0 and at most a day")
    return float(seconds)


class Framer:
    """Writes messages with an object's options. Has no connection, so it works in any thread and process."""

    def __init__(self, options: BusOptions) -> None:
        key = options.signing_key
        self._core = _core.Framer(
            channel=options.channel,
            table_name=options.table_name,
            payload_threshold=options.payload_threshold,
            max_payload=options.max_payload,
            signing_key=key.encode() if isinstance(key, str) else key,
        )

    def frame(self, message: Message) -> Frame:
        """The message as it is sent; two frames of equal messages differ.

        Raises:
            EncodeError, PayloadTooLargeError: The message cannot be sent.
        """
        return Frame(*self._core.frame(message))

    def statement(self, message: Message | None, paramstyle: str, longest: float) -> tuple[str, list[str]]:
        """An SQL statement that sends a message, and its parameters; None is sent to nobody.

        Raises:
            OptionsError: The style is unknown, or `longest` is no number of seconds.
        """
        styled = _STYLES.get(paramstyle)
        if styled is None:
            raise bad("paramstyle", paramstyle, f"must be one of {', '.join(_STYLES)}")
        longest = checked_longest(longest)
        if message is None:
            return "SELECT NULL WHERE false", []
        channel, text, body = self.frame(message)
        if body is None:
            return styled(notify_sql), [channel, text]
        return styled(stored_sql(self._core.table_name, longest)), [body, channel, text]
