"""The wheel and the sdist, each installed alone: what a user has, on the oldest and the newest Python at hand.

SIO_PG_TEST_WHEEL   a wheel that was built already, by `make wheel`; the tests build one of their own otherwise
"""

from __future__ import annotations

import os
import re
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.fixtures.building import CHEAPLY, maturin, run
from tests.fixtures.database import Database
from tests.fixtures.interpreters import interpreters
from tests.fixtures.patient_demo import PATIENTLY
from tests.fixtures.program import ROOT

pytestmark = pytest.mark.timeout(1200)  # a build, and packages that come over the network

ONCE = pytest.mark.xdist_group("wheel of the sdist")
"""One worker builds it."""

STRANGER = Path(__file__).with_name("stranger.py")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = os.environ.get("SIO_PG_TEST_WHEEL")
    return Path(given).resolve() if given else maturin("build", tmp_path_factory.mktemp("wheel"), "--release")


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return maturin("sdist", tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="session")
def wheel_of_sdist(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the sdist alone, as pip does."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(source, filter="data")
    (folder,) = source.iterdir()
    # Cargo compares times, and would take what it made of the checkout: the files of an sdist are old.
    for file in folder.rglob("*.rs"):
        os.utime(file)
    run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", out, folder], **CHEAPLY)
    (made,) = out.iterdir()
    return made


@pytest.fixture(scope="session")
def pythons() -> dict[str, Path]:
    return interpreters()


@pytest.fixture(params=["oldest", "newest"])
def python(request: pytest.FixtureRequest, pythons: dict[str, Path], tmp_path: Path) -> Path:
    """The interpreter of an environment in which there is nothing but the pip that came with that Python."""
    if len(pythons) < 2:
        pytest.skip(f"needs two versions of Python, found {list(pythons)}; SIO_PG_TEST_PYTHONS may name them")
    version = list(pythons)[0 if request.param == "oldest" else -1]
    run([pythons[version], "-m", "venv", tmp_path / "bare"])
    return tmp_path / "bare" / "bin" / "python"


def install(python: Path, what: str | Path) -> None:
    said = run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", what])
    assert "does not provide the extra" not in said


@pytest.mark.parametrize("distribution", ["wheel", pytest.param("wheel_of_sdist", marks=ONCE)])
def test_installed_alone_it_does_everything(
    distribution: str, python: Path, database: Database, request: pytest.FixtureRequest
) -> None:
    file: Path = request.getfixturevalue(distribution)
    strictly: list[str | Path] = [python, "-I", "-W", "error"]

    install(python, file)
    assert run([*strictly, STRANGER, database.dsn]) == "well\n"

    for extra in ("prometheus", "opentelemetry"):
        install(python, f"{file}[{extra}]")
        assert run([*strictly, "-c", f"import socketio_postgres.{extra}"]) == ""

    install(python, f"{file}[demo]")
    run([*strictly, "-c", PATIENTLY, "demo", "--check"])


@ONCE
def test_both_distributions_have_the_same_files(wheel: Path, wheel_of_sdist: Path) -> None:
    def files(path: Path) -> list[str]:
        return sorted(zipfile.ZipFile(path).namelist())

    assert files(wheel) == files(wheel_of_sdist)
    assert "socketio_postgres/py.typed" in files(wheel)
    assert "socketio_postgres/_cluster/sql/functions.sql" in files(wheel)
    assert wheel.name.split("-")[2:4] == ["cp310", "abi3"]  # one for all versions of Python


def test_the_sdist_has_what_building_needs_and_no_more(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    assert {"Cargo.lock", "Cargo.toml", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml"} <= set(names)
    folders = {name.partition("/")[0] for name in names if "/" in name}
    assert folders == {"python", "rust"}
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


def stated_sizes() -> tuple[float, float]:
    """Megabytes of the wheel and of the sdist, as the documents have them."""
    text = (ROOT / "docs" / "installation.md").read_text()
    match = re.search(r"for Linux x86-64 has ([\d.]+) MB, and the source distribution ([\d.]+) MB", text)
    assert match is not None
    return float(match[1]), float(match[2])


def test_the_stated_size_of_the_sdist_is_true(sdist: Path) -> None:
    _, stated = stated_sizes()
    assert sdist.stat().st_size / 1e6 == pytest.approx(stated, abs=0.1)


def test_the_stated_size_of_the_wheel_is_true() -> None:
    given = os.environ.get("SIO_PG_TEST_WHEEL")
    if given is None:
        pytest.skip("needs SIO_PG_TEST_WHEEL: the wheels that the tests build are not optimised")
    stated, _ = stated_sizes()
    assert Path(given).stat().st_size / 1e6 == pytest.approx(stated, rel=0.1)
