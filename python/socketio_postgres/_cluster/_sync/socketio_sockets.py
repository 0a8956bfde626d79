# Generated from async_socketio_sockets.py by scripts/async_to_sync.py; edit that file.
"""`SocketioSockets`: the sockets of a `socketio.Server`, for the node of its manager."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from socketio.manager import Manager
from socketio.pubsub_manager import PubSubManager

from socketio_postgres._bus.messages import Message
from socketio_postgres._cluster.payload import event_of
from socketio_postgres._cluster.socketio_rooms import SocketioRooms

__all__ = ["SocketioSockets"]

HAS_PRE_CONNECT: Final = hasattr(Manager, "pre_connect")
"""Whether the server calls `connect` once the connect handler has ended. Before python-socketio 5.17 it calls it first,
with the id of the connection instead of the client's, and has no `pre_connect`."""

TURN_INTERVAL: Final = 0.002
"""Seconds for which a loop of emits may go on without a turn for others. What it may queue for clients meanwhile takes
them some ten times as long to send, no more than one broadcast to a thousand clients does."""


class SocketioSockets(SocketioRooms):
    """As `LocalSockets`."""

    def __init__(self, manager: Any, *, guards_empty_rooms: bool = True) -> None:
        super().__init__(manager)
        self.guards_empty_rooms = guards_empty_rooms

    def start(self, run: Callable[[], None]) -> Any:  # noqa: ARG002
        """As in `LocalSockets`; python-socketio runs the manager's `_thread`, which calls `run`."""
        PubSubManager.initialize(self._manager)
        return getattr(self._manager, "thread", None)

    # -------------------------------------------------------------------------------------------- sending

    def deliver(
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
        """As in `LocalSockets`."""
        manager = self._manager
        packets = None if message is None else self.packets(message, rooms, left_out, acknowledged)
        if packets is None:
            event, data = call or self._call_of(message)
            options = {"room": rooms, "skip_sid": list(left_out), "callback": acknowledged}
            Manager.emit(manager, event, data, namespace, **options)
            return
        for eio_sid, each in packets:
            for packet in each:
                manager.server._send_eio_packet(eio_sid, packet)  # noqa: SLF001  (as Manager.emit does)

    def _call_of(self, message: Any) -> tuple[str, Any]:
        event, *args = event_of(message, self._manager.json)
        return event, tuple(args)

    # -------------------------------------------------------------------------------------------- connecting

    def pre_connect(self, eio_sid: str, namespace: str, may_connect: Callable[[str, str], bool]) -> str | None:
        """As `Manager.pre_connect`, if the client may."""
        if not may_connect(eio_sid, namespace):
            return None
        sid: str | None = Manager.pre_connect(self._manager, eio_sid, namespace)
        return sid

    def connect(
        self,
        sid: str,
        namespace: str,
        may_connect: Callable[[str, str], bool],
        failed: Callable[[Exception], None],
    ) -> str | None:
        """As `Manager.connect`. A client that hung up while its connect handler ran, is disconnected at once."""
        manager = self._manager
        if not HAS_PRE_CONNECT:
            is_allowed = may_connect(sid, namespace)
            return Manager.connect(manager, sid, namespace) if is_allowed else None
        if not self.is_here(sid, namespace) and self.is_gone(sid):
            return sid  # its handler ran for so long after it hung up that it is forgotten already
        connected: str = Manager.connect(manager, sid, namespace)
        eio_sid = manager.eio_sid_from_sid(connected, namespace)
        if self.is_gone(eio_sid):
            # python-socketio passed over it when it hung up, because it was not connected yet.
            self._disconnect_gone(connected, eio_sid, namespace, failed)
        return connected

    def _disconnect_gone(
        self, sid: str, eio_sid: str | None, namespace: str, failed: Callable[[Exception], None]
    ) -> None:
        server = self._manager.server
        try:
            server._handle_disconnect(eio_sid, namespace, server.reason.TRANSPORT_CLOSE)  # noqa: SLF001
        except Exception as error:  # noqa: BLE001  (a user's handler may raise anything)
            failed(error)
        Manager.disconnect(self._manager, sid, namespace)

    def end_connections(self, eio_sids: list[str], failed: Callable[[Exception], None]) -> None:
        """As in `SocketioRooms`."""
        manager = self._manager
        for eio_sid in eio_sids:
            for namespace in list(manager.get_namespaces()):
                sid = manager.sid_from_eio_sid(eio_sid, namespace)
                if manager.is_connected(sid, namespace):
                    self._disconnect_gone(sid, eio_sid, namespace, failed)
            manager.server.environ.pop(eio_sid, None)

    # -------------------------------------------------------------------------------------------- disconnecting

    def disconnect(
        self, sid: str, namespace: str, close: bool = False, failed: Callable[[Exception], None] | None = None
    ) -> None:
        """As in `LocalSockets`."""
        manager = self._manager
        if failed is None:
            manager.server.disconnect(sid, namespace=namespace, ignore_queue=True)
            return
        if not manager.is_connected(sid, namespace):
            return
        eio_sid = manager.eio_sid_from_sid(sid, namespace)
        for each in list(manager.get_namespaces()) if close else [namespace]:
            local_sid = manager.sid_from_eio_sid(eio_sid, each)
            if local_sid is None:
                continue
            try:
                manager.server.disconnect(local_sid, namespace=each, ignore_queue=True)
            except Exception as error:  # noqa: BLE001  (a user's handler may raise anything)
                failed(error)
                # python-socketio has not come to this, and would keep the client in its rooms for ever.
                Manager.disconnect(manager, local_sid, each)
        if close:
            manager.server.eio.disconnect(eio_sid)
