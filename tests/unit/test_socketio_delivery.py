"""The short way to local clients sends what python-socketio would, and stands aside for what is not the original."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import socketio
import socketio.packet
from engineio.async_socket import AsyncSocket
from hypothesis import given
from hypothesis import strategies as st
from socketio.msgpack_packet import MsgPackPacket

from socketio_postgres import Message, MessageType
from socketio_postgres._cluster import socketio_delivery
from socketio_postgres._cluster.socketio_delivery import ClientPackets, event_maker, event_packets, queue_for

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


def server() -> socketio.AsyncServer:
    return socketio.AsyncServer(async_mode="asgi")


def broadcast(packet: list[Any], nsp: str = "/") -> Message:
    return Message(MessageType.BROADCAST, nsp, packet=packet)


@given(args=st.lists(VALUES, max_size=3), nsp=st.sampled_from(["/", "/admin"]))
def test_a_client_decodes_the_same(args: list[Any], nsp: str) -> None:
    one = server()
    packets = event_packets(one, broadcast(["event", *args], nsp))
    assert packets is not None
    [packet] = packets
    ours = socketio.packet.Packet(encoded_packet=packet.encode()[1:])
    theirs = socketio.packet.Packet(
        encoded_packet=socketio.packet.Packet(socketio.packet.EVENT, ["event", *args], nsp).encode()
    )
    assert packet.encode()[0] == "4"
    assert (ours.packet_type, ours.namespace, ours.id) == (theirs.packet_type, theirs.namespace, theirs.id)
    assert json.dumps(ours.data) == json.dumps(theirs.data)


def test_json_of_others_is_passed_on_untouched() -> None:
    text = '["event" , {"b":1e2,"a":"\\u00e9é"}]'
    message = Message(MessageType.BROADCAST, "/", packet_json=text)
    packets = event_packets(server(), message)
    assert packets is not None
    assert packets[0].encode() == "42" + text


@given(args=st.lists(VALUES, max_size=3), nsp=st.sampled_from(["/", "/admin"]), number=st.integers(1, 2**40))
def test_what_is_to_be_acknowledged_is_decoded_as_the_same(args: list[Any], nsp: str, number: int) -> None:
    make = event_maker(server(), broadcast(["event", *args], nsp))
    assert make is not None
    ours = socketio.packet.Packet(encoded_packet=make(number).encode()[1:])
    theirs = socketio.packet.Packet(
        encoded_packet=socketio.packet.Packet(socketio.packet.EVENT, ["event", *args], nsp, number).encode()
    )
    assert make(number).encode()[0] == "4"
    assert (ours.packet_type, ours.namespace, ours.id) == (theirs.packet_type, theirs.namespace, theirs.id)
    assert ours.id == number
    assert json.dumps(ours.data) == json.dumps(theirs.data)


def test_what_is_to_be_acknowledged_is_made_by_python_socketio_where_it_is_not_plain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = server()
    assert event_maker(one, broadcast(["event", b"binary"])) is None
    assert event_maker(one, broadcast([1])) is None
    assert event_maker(socketio.Server(async_mode="threading"), broadcast(["event"])) is not None
    other = server()
    other._send_packet = nothing
    assert event_maker(other, broadcast(["event"])) is None
    with monkeypatch.context() as patch:
        patch.setattr(socketio.AsyncServer, "_send_packet", nothing)
        assert event_maker(one, broadcast(["event"])) is None
    with monkeypatch.context() as patch:
        patch.setattr(socketio_delivery, "IS_KNOWN", False)
        assert event_maker(one, broadcast(["event"])) is None
    assert event_maker(one, broadcast(["event"])) is not None


class OtherPacket(socketio.packet.Packet):  # type: ignore[misc]
    """Somebody's own."""


@pytest.mark.parametrize(
    "change",
    [
        lambda one: setattr(one, "packet_class", OtherPacket),
        lambda one: setattr(one, "packet_class", MsgPackPacket),
    ],
)
def test_other_packets_are_left_to_python_socketio(change: Callable[[Any], None]) -> None:
    one = server()
    change(one)
    assert event_packets(one, broadcast(["event", 1])) is None
    assert event_maker(one, broadcast(["event", 1])) is None


def test_another_json_module_is_left_to_python_socketio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socketio.packet.Packet, "json", SimpleNamespace(dumps=json.dumps, loads=json.loads))
    assert event_packets(server(), broadcast(["event", 1])) is None
    assert event_maker(server(), broadcast(["event", 1])) is None


def test_binary_is_sent_as_python_socketio_does() -> None:
    packets = event_packets(server(), broadcast(["event", b"\x00", {"a": b"\x01"}], "/admin"))
    assert packets is not None
    packet = socketio.packet.Packet(socketio.packet.EVENT, ["event", b"\x00", {"a": b"\x01"}], "/admin")
    assert [each.data for each in packets] == packet.encode()


def test_what_is_no_event_is_left_to_python_socketio() -> None:
    assert event_packets(server(), broadcast([1, 2])) is None
    assert event_packets(server(), broadcast([])) is None


class FakeSocket:
    """The part of an Engine.IO socket that sending uses."""

    def __init__(self) -> None:
        self.closed = False
        self.last_ping: float | None = None
        self.queue: asyncio.Queue[Any] = asyncio.Queue()


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Eio sids for which python-socketio's own way was gone."""
    sids: list[str] = []

    async def send_to(_: Any, parcels: Any) -> None:
        sids.extend(eio_sid for eio_sid, _ in parcels)

    monkeypatch.setattr(socketio_delivery, "_send_to", send_to)
    return sids


def with_sockets(*names: str) -> tuple[socketio.AsyncServer, dict[str, FakeSocket]]:
    one = server()
    sockets = {name: FakeSocket() for name in names}
    one.eio.sockets = sockets
    return one, sockets


PACKETS: Any = ["first", "second"]


def packets_for(*names: str) -> list[ClientPackets]:
    return [(name, PACKETS) for name in names]


async def test_packets_are_queued_in_order(sent: list[str]) -> None:
    one, sockets = with_sockets("a", "b", "c")
    await queue_for(one, packets_for("a", "c"))
    await queue_for(one, packets_for("a"))
    assert [sockets["a"].queue.get_nowait() for _ in range(4)] == PACKETS * 2
    assert sockets["b"].queue.empty()
    assert sockets["c"].queue.qsize() == 2
    assert sent == []


async def test_clients_that_are_not_well_are_left_to_python_socketio(sent: list[str]) -> None:
    one, sockets = with_sockets("closed", "silent", "well")
    sockets["closed"].closed = True
    sockets["silent"].last_ping = 1.0
    await queue_for(one, packets_for("closed", "gone", "silent", "well"))
    await asyncio.sleep(0)
    assert sent == ["closed", "gone", "silent"]
    assert sockets["well"].queue.qsize() == 2
    assert sockets["closed"].queue.empty()


class OwnServer(socketio.AsyncServer):  # type: ignore[misc]
    """Somebody's own."""

    async def _send_eio_packet(self, eio_sid: str, eio_pkt: Any) -> None:
        """Something else."""


async def nothing(*_: Any) -> None:
    """Stands for any patch."""


def patch_class(one: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AsyncSocket, "send", nothing)


def patch_server(one: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one._send_eio_packet = nothing


def patch_engine(one: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one.eio.send_packet = nothing


def newer_release(one: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socketio_delivery, "IS_KNOWN", False)


def log_everything(one: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one.eio.logger, "isEnabledFor", lambda _: True)


def other_logger(one: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one.eio, "logger", SimpleNamespace(info=print))


@pytest.mark.parametrize(
    "change", [patch_class, patch_server, patch_engine, newer_release, log_everything, other_logger]
)
async def test_whatever_was_replaced_is_used(change: Any, sent: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    one, sockets = with_sockets("a")
    change(one, monkeypatch)
    await queue_for(one, packets_for("a"))
    assert sent == ["a"]
    assert sockets["a"].queue.empty()


async def test_a_subclass_is_used(sent: list[str]) -> None:
    one = OwnServer(async_mode="asgi")
    one.eio.sockets = {"a": FakeSocket()}
    await queue_for(one, packets_for("a"))
    assert sent == ["a"]


def test_the_installed_releases_are_known() -> None:
    """If this fails: read how the new release sends, then raise the numbers."""
    assert socketio_delivery.IS_KNOWN
    assert len(socketio_delivery.ORIGINALS) == socketio_delivery.SHORTENED
    assert len(socketio_delivery.SENDERS) == 2
