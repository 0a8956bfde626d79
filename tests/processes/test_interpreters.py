"""A second interpreter of the process, as mod_wsgi makes them, is refused: it would get the classes of the first."""

from __future__ import annotations

import pytest

from tests.fixtures.program import Program

USE = """
import socketio_postgres
try:
    socketio_postgres.Emitter("port=nonsense")
except socketio_postgres.OptionsError:
    print("caught")
"""

TRY = f"""
try:
    exec({USE!r})
except ImportError as error:
    print("refused:", error)
"""

SCRIPT = f'''
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
import sys

def in_another(code):
    """Run it in an interpreter that shares the GIL, as those of mod_wsgi do."""
    if sys.version_info >= (3, 13):
        made = interpreters.create("legacy")
    elif sys.version_info >= (3, 12):
        made = interpreters.create(isolated=False)
    else:
        made = interpreters.create()
    code = f"import sys; sys.path[:] = {{sys.path!r}}\\n" + code
    failed = getattr(interpreters, "exec", interpreters.run_string)(made, code)
    assert failed is None, failed
    sys.stdout.flush()

TRY = {TRY!r}
'''


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ("exec(TRY); in_another(TRY); exec(TRY)", ["caught", "refused", "caught"]),
        ("in_another(TRY); in_another(TRY); exec(TRY)", ["caught", "refused", "refused"]),
    ],
)
async def test_only_one_interpreter_has_it(steps: str, expected: list[str]) -> None:
    with Program(["-W", "ignore", "-c", SCRIPT + steps]) as program:
        assert await program.wait() == 0, program.output
        lines = program.output.splitlines()
    assert [line.partition(":")[0] for line in lines] == expected
    advice = "another interpreter of this process"
    assert all(advice in line and "WSGIApplicationGroup" in line for line in lines if line.startswith("refused"))
