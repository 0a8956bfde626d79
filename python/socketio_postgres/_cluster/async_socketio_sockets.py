"""`AsyncSocketioSockets`: the sockets of a `socketio.AsyncServer`, for the node of its manager."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

from socketio.async_manager import AsyncManager
from socketio.async_pubsub_manager import AsyncPubSubManager

from socketio_postgres._bus.messages import Message
from socketio_postgres._bus.primitives import IS_ASYNC, asleep
from socketio_postgres._cluster.payload import event_of
from socketio_postgres._cluster.socketio_delivery import FEW, queue_for
from socketio_postgres._cluster.socketio_rooms import SocketioRooms

__all__ = ["AsyncSocketioSockets"]

HAS_PRE_CONNECT: Final = hasattr(AsyncManager, "pre_connect")
"""Whether the server calls `connect` once the connect handler has ended. Before python-socketio 5.17 it calls it first,
with the id of the connection instead of the client's, and has no `pre_connect`."""

TURN_INTERVAL: Final = 0.002
"""Seconds for which a loop of emits may go on without a turn for others. What it may queue for clients meanwhile takes
them some ten times as long to send, no more than one broadcast to a thousand clients does."""


class AsyncSocketioSockets(SocketioRooms):
    """As `AsyncLocalSockets`."""

    def __init__(self, manager: Any, *, guards_empty_rooms: bool = True) -> None:
        super().__init__(manager)
        self.guards_empty_rooms = guards_empty_rooms
        if IS_ASYNC:
            self._turn_at = -math.inf

    def start(self, run: Callable[[], Coroutine[Any, Any, None]]) -> Any:  # noqa: ARG002
        """As in `AsyncLocalSockets`; python-socketio runs the manager's `_thread`, which calls `run`."""
        AsyncPubSubManager.initialize(self._manager)
        return getattr(self._manager, "thread", None)

    # -------------------------------------------------------------------------------------------- sending

    async def deliver(
        self,
        message: Message | None,
        namespace: str,
        rooms: list[Any] | None,
        left_out: set[str],
        acknowledged: Callable[..., Any] | None,
        call: tuple[str, Any] | None = None,
        *,
        is_in_batch: bool = False,  # noqa: ARG002, RUF100  (threads have their turn anyway)
    ) -> None:
        """As in `AsyncLocalSockets`."""
        manager = self._manager
        packets = None if message is None else self.packets(message, rooms, left_out, acknowledged)
        if packets is None:
            event, data = call or self._call_of(message)
            options = {"room": rooms, "skip_sid": list(left_out), "callback": acknowledged}
            await AsyncManager.emit(manager, event, data, namespace, **options)
            return
        if IS_ASYNC:
            await queue_for(manager.server, packets)
            if not is_in_batch or len(packets) > FEW:
                await self._give_turn()
        else:
            for eio_sid, each in packets:
                for packet in each:
                    manager.server._send_eio_packet(eio_sid, packet)  # noqa: SLF001  (as Manager.emit does)

    def _call_of(self, message: Any) -> tuple[str, Any]:
        event, *args = event_of(message, self._manager.json)
        return event, tuple(args)

    if IS_ASYNC:

        async def _give_turn(self) -> None:
            """Let others run, unless they had their turn just now.

            As with python-socketio, whoever emits in a loop lets others run, but not after each emit: the writers of
            all clients would have to be woken up for a single packet each, which costs as much as sending it.
            """
            if time.monotonic() - self._turn_at >= TURN_INTERVAL:
                await asleep(0)
                self._turn_at = time.monotonic()

    # -------------------------------------------------------------------------------------------- connecting

    async def pre_connect(
        self, eio_sid: str, namespace: str, may_connect: Callable[[str, str], Coroutine[Any, Any, bool]]
    ) -> str | None:
        """As `AsyncManager.pre_connect`, if the client may."""
        if not await may_connect(eio_sid, namespace):
            return None
        sid: str | None = await AsyncManager.pre_connect(self._manager, eio_sid, namespace)
        return sid

    async def connect(
        self,
        sid: str,
        namespace: str,
        may_connect: Callable[[str, str], Coroutine[Any, Any, bool]],
        failed: Callable[[Exception], None],
    ) -> str | None:
        """As `AsyncManager.connect`. A client that hung up while its connect handler ran, is disconnected at once."""
        manager = self._manager
        if not HAS_PRE_CONNECT:
            is_allowed = await may_connect(sid, namespace)
            return await AsyncManager.connect(manager, sid, namespace) if is_allowed else None
        if not self.is_here(sid, namespace) and self.is_gone(sid):
            return sid  # its handler ran for so long after it hung up that it is forgotten already
        connected: str = await AsyncManager.connect(manager, sid, namespace)
        eio_sid = manager.eio_sid_from_sid(connected, namespace)
        if self.is_gone(eio_sid):
            # python-socketio passed over it when it hung up, because it was not connected yet.
            await self._disconnect_gone(connected, eio_sid, namespace, failed)
        return connected

    async def _disconnect_gone(
        self, sid: str, eio_sid: str | None, namespace: str, failed: Callable[[Exception], None]
    ) -> None:
        server = self._manager.server
        try:
            await server._handle_disconnect(eio_sid, namespace, server.reason.TRANSPORT_CLOSE)  # noqa: SLF001
        except Exception as error:  # noqa: BLE001  (a user's handler may raise anything)
            failed(error)
        await AsyncManager.disconnect(self._manager, sid, namespace)

    async def end_connections(self, eio_sids: list[str], failed: Callable[[Exception], None]) -> None:
        """As in `SocketioRooms`."""
        manager = self._manager
        for eio_sid in eio_sids:
            for namespace in list(manager.get_namespaces()):
                sid = manager.sid_from_eio_sid(eio_sid, namespace)
                if manager.is_connected(sid, namespace):
                    await self._disconnect_gone(sid, eio_sid, namespace, failed)
            manager.server.environ.pop(eio_sid, None)

    # -------------------------------------------------------------------------------------------- disconnecting

    async def disconnect(
        self, sid: str, namespace: str, close: bool = False, failed: Callable[[Exception], None] | None = None
    ) -> None:
        """As in `AsyncLocalSockets`."""
        manager = self._manager
        if failed is None:
            await manager.server.disconnect(sid, namespace=namespace, ignore_queue=True)
            return
        if not manager.is_connected(sid, namespace):
            return
        eio_sid = manager.eio_sid_from_sid(sid, namespace)
        for each in list(manager.get_namespaces()) if close else [namespace]:
            local_sid = manager.sid_from_eio_sid(eio_sid, each)
            if local_sid is None:
                continue
            try:
                await manager.server.disconnect(local_sid, namespace=each, ignore_queue=True)
            except Exception as error:  # noqa: BLE001  (a user's handler may raise anything)
                failed(error)
                # python-socketio has not come to this, and would keep the client in its rooms for ever.
                await AsyncManager.disconnect(manager, local_sid, each)
        if close:
            await manager.server.eio.disconnect(eio_sid)
