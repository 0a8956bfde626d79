"""The wheel for musl, such as Alpine's, is cross-built by zig: it links against musl's library and nothing else.

`make musl` installs what this needs. There is no musl interpreter here, so the wheel is looked at and not run.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import zipfile
from pathlib import Path

import pytest

from tests.fixtures.building import maturin, run
from tests.fixtures.program import ROOT

TARGET = "x86_64-unknown-linux-musl"
MUSLLINUX = "musllinux_1_2"

pytestmark = [pytest.mark.timeout(1200), pytest.mark.xdist_group("musl")]  # one build of everything


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The wheel's name, and the core of it."""
    sysroot = run(["rustc", "--print", "sysroot"]).strip()
    if not Path(sysroot, "lib", "rustlib", TARGET).exists() or importlib.util.find_spec("ziglang") is None:
        pytest.skip("needs Rust's library for musl, and zig: `make musl` installs them")
    options = ["--release", "--locked", "--zig", "--target", TARGET, "--compatibility", MUSLLINUX]
    # A folder of its own, because cargo lets one build at a time into a folder; zig is beside this Python.
    env = {
        "CARGO_TARGET_DIR": str(ROOT / "target" / "musl"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    wheel = maturin("build", tmp_path_factory.mktemp("musl"), *options, **env)
    return wheel.name, Path(zipfile.ZipFile(wheel).extract("socketio_postgres/_core.abi3.so", wheel.parent))


def test_it_is_one_wheel_for_all_versions_of_python(library: tuple[str, Path]) -> None:
    name, _ = library
    assert name.removesuffix(".whl").split("-")[2:] == ["cp310", "abi3", f"{MUSLLINUX}_x86_64"]


def test_it_needs_musl_and_nothing_else(library: tuple[str, Path]) -> None:
    _, core = library
    told = run(["readelf", "--wide", "--dynamic", "--version-info", "--dyn-syms", core])
    assert re.findall(r"\(NEEDED\).*\[(.*)\]", told) == ["libc.so"]
    assert "GLIBC" not in told
    assert re.search(r"GLOBAL +DEFAULT +\d+ PyInit__core$", told, re.MULTILINE)
