"""An empty list of rooms means nobody in `sio.emit`, too; python-socketio itself sends to everybody.

python-socketio's server makes `to or room` of its arguments before it asks the manager. So `sio.emit(..., to=[])`, for
the clients of nobody, came to us as an emit to everybody, and what was private went to all.
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, Final

from socketio.base_server import BaseServer

from socketio_postgres._cluster.rooms import room_names

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["guard"]

TO: Final = 2
"""Place of `to` among the arguments of `emit`; `room` comes after it."""


def guard(server: Any) -> None:
    """Make a server's `emit` treat a false `to` correctly: nobody, the room 0, or an error.

    `send`, and the `emit` and `send` of class-based namespaces, go through it. `call` refuses a false `to` by itself.
    Any other argument passes as it is, to whatever `emit` the server's class has.
    """
    if not isinstance(server, BaseServer) or "emit" in vars(server):
        return  # no server of python-socketio, or somebody's own way to emit, or ours
    server.emit = _guarded(server.emit)


def _guarded(emit: Callable[..., Any]) -> Callable[..., Any]:
    # Two functions, because mocks, and others, ask whether `emit` is a coroutine function.
    if inspect.iscoroutinefunction(emit):

        @functools.wraps(emit)
        async def emit_async(*args: Any, **kwargs: Any) -> Any:
            to = args[TO] if len(args) > TO else kwargs.get("to")
            if not to and to is not None:
                args, kwargs = _plain(args, kwargs)
            return await emit(*args, **kwargs)

        return emit_async

    @functools.wraps(emit)
    def emit_blocking(*args: Any, **kwargs: Any) -> Any:
        to = args[TO] if len(args) > TO else kwargs.get("to")
        if not to and to is not None:
            args, kwargs = _plain(args, kwargs)
        return emit(*args, **kwargs)

    return emit_blocking


def _plain(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same arguments with `to` as `room`: of two false values python-socketio passes the second on.

    Raises:
        OptionsError: `to` is no room.
    """
    if len(args) <= TO:
        return args, {**kwargs, "to": None, "room": list(room_names(kwargs["to"], "to"))}
    names = list(room_names(args[TO], "to"))
    if len(args) == TO + 1:
        return (*args[:TO], None), {**kwargs, "room": names}
    return (*args[:TO], None, names, *args[TO + 2 :]), kwargs
