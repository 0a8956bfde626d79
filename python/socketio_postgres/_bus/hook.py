"""`AsyncHook` and `Hook`: a function of the application that is called with background events.

There is one way for all of them, `error_handler`, `on_gap` and `on_stall`, of managers, emitters, clients and event
stores: what the function raises is logged, and whoever tells it goes on at once, however long it takes.
"""

from __future__ import annotations

import asyncio
import collections
import inspect
import logging
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

from socketio_postgres._bus.green import resolve
from socketio_postgres._bus.options import bad_option

__all__ = ["AsyncHook", "Hook"]

WAITING_MAX: Final = 1000
"""Maximum number of calls that run or wait. Further ones are only logged."""

Function = Callable[[Any], object]


def _is_coroutine_function(function: object) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004  (not whether it can be called, but how)
    )


def _report(logger: logging.Logger, name: str, error: Exception, failed: Callable[[Exception], None] | None) -> None:
    logger.error("%s raised: %r", name, error, exc_info=error)
    if failed is not None:
        failed(error)


class AsyncHook:
    """For event loops: a coroutine function becomes a task, any other is called right there and must not block.

    Args:
        name: The option that it was given as.
        function: The function, or None.
        logger: Logs the exceptions that it raises.
        failed: Receives these exceptions, too.

    Raises:
        OptionsError: It is no function.
    """

    def __init__(
        self,
        name: str,
        function: Function | None,
        logger: logging.Logger,
        failed: Callable[[Exception], None] | None = None,
    ) -> None:
        if function is not None:
            self.check(name, function)
        self._name = name
        self._function = function
        self._log = logger
        self._failed = failed
        self._tasks: set[asyncio.Task[None]] = set()  # the loop alone would not keep them

    @staticmethod
    def check(name: str, function: object) -> None:
        """Refuse a value that is not a function.

        Raises:
            OptionsError: It cannot be called.
        """
        if not callable(function):
            raise bad_option(name, function, "must be callable")

    def __call__(self, value: object) -> None:
        """Tell it, on the running loop."""
        if self._function is None:
            return
        try:
            result = self._function(value)
        except Exception as error:  # noqa: BLE001  (a user's function may raise anything)
            _report(self._log, self._name, error, self._failed)
            return
        except asyncio.CancelledError:  # of a future that it awaited; the caller of the hook is not cancelled
            self._log.error("%s raised a CancelledError", self._name)
            return
        if inspect.isawaitable(result):
            self._go_on(result)

    def _go_on(self, result: Awaitable[object]) -> None:
        # What a loop left behind that was closed without being ended will never be done.
        self._tasks = {task for task in self._tasks if not task.get_loop().is_closed()}
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # as when the process ends
            self._give_up(result, "no event loop runs")
            return
        if len(self._tasks) >= WAITING_MAX:
            self._give_up(result, f"{WAITING_MAX} calls of it are under way")
            return
        task = loop.create_task(self._run(result), name=f"socketio-postgres {self._name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _give_up(self, result: Awaitable[object], reason: str) -> None:
        self._log.error("%s is not told: %s", self._name, reason)
        if isinstance(result, Coroutine):
            result.close()

    async def _run(self, result: Awaitable[object]) -> None:
        try:
            await result
        except Exception as error:  # noqa: BLE001  (a user's function may raise anything)
            _report(self._log, self._name, error, self._failed)


class Hook:
    """For threads: the function is called in one of its own, which is there while there is something to tell.

    What a coroutine function returns is awaited there, under an event loop for this one call.

    Args:
        name: The option that it was given as.
        function: The function, or None.
        logger: Logs the exceptions that it raises.
        failed: Receives these exceptions, too.
        start: Runs a function in the background. Default: in a thread.

    Raises:
        OptionsError: It is no function.
    """

    def __init__(
        self,
        name: str,
        function: Function | None,
        logger: logging.Logger,
        failed: Callable[[Exception], None] | None = None,
        start: Callable[[Callable[[], None]], object] | None = None,
    ) -> None:
        if function is not None:
            AsyncHook.check(name, function)
        self._name = name
        self._function = function
        self._log = logger
        self._failed = failed
        self._start = start or self._start_thread
        self._prepare()

    @staticmethod
    def check(name: str, function: object) -> None:
        """Refuse a value that is not a function, or is a coroutine function: a handler of a blocking class.

        Raises:
            OptionsError: It cannot be called, or is a coroutine function.
        """
        AsyncHook.check(name, function)
        if _is_coroutine_function(function):
            raise bad_option(name, function, "must not be a coroutine function, which only the Async classes await")

    def _prepare(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._values: collections.deque[object] = collections.deque()
        self._is_running = False

    def _start_thread(self, run: Callable[[], None]) -> None:
        threading.Thread(target=run, name=f"socketio-postgres {self._name}", daemon=True).start()

    def __call__(self, value: object) -> None:
        """Tell it soon."""
        if self._function is None:
            return
        if self._pid != os.getpid():
            self._prepare()  # the thread stayed with the parent
        with self._lock:
            has_room = len(self._values) < WAITING_MAX
            if has_room:
                self._values.append(value)
            is_first, self._is_running = not self._is_running, True
        if not has_room:
            self._log.error("%s is not told: %d calls of it wait", self._name, WAITING_MAX)
        if is_first:
            self._begin()

    def _begin(self) -> None:
        try:
            self._start(self._run)
        except RuntimeError:  # the interpreter is ending, and starts no thread any more
            self._run()

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._values:
                    self._is_running = False
                    return
                value = self._values.popleft()
            try:
                self._tell(value)
            except BaseException:  # SystemExit, a Timeout of gevent's: it ends this thread, and not those to come
                with self._lock:
                    self._is_running = bool(self._values)
                if self._is_running:
                    self._begin()
                raise

    def _tell(self, value: object) -> None:
        if self._function is None:
            return
        try:
            result = self._function(value)
            if inspect.isawaitable(result):
                resolve(result)
        except Exception as error:  # noqa: BLE001  (a user's function may raise anything)
            _report(self._log, self._name, error, self._failed)
        except asyncio.CancelledError:  # it must not end this thread
            self._log.error("%s raised a CancelledError", self._name)
