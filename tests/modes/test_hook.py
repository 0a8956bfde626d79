"""`error_handler` and its like under gevent and eventlet."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.fixtures.program import ROOT, environment
from tests.fixtures.waiting import TIMEOUT_S


@pytest.mark.parametrize("library", ["gevent", "eventlet"])
@pytest.mark.parametrize("is_patched", [False, True], ids=["", "patched"])
def test_a_greenlet_awaits_coroutines_while_others_run(library: str, is_patched: bool) -> None:
    """Two of them at once, although their thread can run but one event loop."""
    patch = {"gevent": "from gevent import monkey; monkey.patch_all()", "eventlet": "eventlet.monkey_patch()"}[library]
    script = f"""
import warnings; warnings.simplefilter("ignore")
import {library}, asyncio, logging
{patch if is_patched else ""}
from socketio_postgres._bus.hook import Hook
started, ended, failed, ticks = [], [], [], 0
async def slow(value):
    started.append(value)
    while len(started) < 2 or ticks < 3:  # for ever, if others did not run
        await asyncio.sleep(0.001)
    ended.append(value)
    raise LookupError
log = logging.getLogger("silent"); log.addHandler(logging.NullHandler()); log.propagate = False
hooks = [Hook(name, slow, log, failed.append, {library}.spawn) for name in ("one", "two")]
def tick():
    global ticks
    while True:
        ticks += 1
        {library}.sleep(0.001)
{library}.spawn(tick)
for hook in hooks:
    hook(1)
while len(failed) < 2:
    {library}.sleep(0.001)
assert ended == [1, 1]
print("done")
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("done\n", "")
