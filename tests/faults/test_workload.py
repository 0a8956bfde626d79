"""The workload itself: without a fault nothing is lost, and it sends what it is said to send."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from tests.fixtures.database import Database
from tests.fixtures.history import Verdict
from tests.fixtures.spy import Frame, spying
from tests.fixtures.waiting import eventually
from tests.fixtures.worker import EVENT
from tests.fixtures.workload import Receiver, Workload, at_rest


async def test_without_a_fault_everything_comes(database: Database) -> None:
    async with Receiver(database) as receiver, spying(database) as spy, Workload(database) as work:
        await work.recover(receiver)
        await asyncio.sleep(1)
        verdict = await work.check(receiver)
        assert receiver.gaps == []
        assert receiver.failures == []
        await eventually(lambda: len(spy.broadcasts(EVENT)) == verdict.sent, "the spy has seen all")
    assert verdict == Verdict(sent=verdict.sent, received=verdict.sent, failed=0, in_doubt=0, lost=0)
    await at_rest(database)
    frames = spy.broadcasts(EVENT)
    inline = {frame.payload_bytes for frame in frames if frame.attachment is None}
    assert max(inline) == 7999
    assert 7998 in inline
    attached = [frame.message["data"]["packet"]["data"] for frame in frames if frame.attachment is not None]
    assert any(isinstance(body, bytes) for *_, body in attached)
    for name in work.names:
        sizes = {len(_text([EVENT, name, *rest])) for _, sender, *rest in attached if sender == name}
        envelope = 7999 - max(len(_text(_packet(frame))) for frame in frames if _is_inline(frame, name))
        assert {8000, 8001} <= {size + envelope for size in sizes}
    identical = [frame for frame in frames if _packet(frame)[-1] == "identical"]
    assert len(identical) >= 3 * len(work.names)


def _packet(frame: Frame) -> list[Any]:
    packet: list[Any] = frame.message["data"]["packet"]["data"]
    return packet


def _is_inline(frame: Frame, sender: str) -> bool:
    return frame.attachment is None and _packet(frame)[1] == sender


def _text(packet: list[Any]) -> str:
    return json.dumps([item if isinstance(item, (str, int)) else None for item in packet], separators=(",", ":"))
