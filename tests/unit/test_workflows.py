"""The workflows name the jobs that the documents promise, with pinned actions and the least rights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".github" / "workflows"
FILES = sorted(FOLDER.glob("*.yml"))


def workflow(file: Path) -> dict[str, Any]:
    """Its content."""
    content: dict[str, Any] = yaml.safe_load(file.read_text())
    return content


def test_they_are_there() -> None:
    assert [file.name for file in FILES] == ["tests.yml", "wheels.yml"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.name))
def test_actions_are_pinned_and_rights_are_least(file: Path) -> None:
    content = workflow(file)
    assert content["permissions"] == {"contents": "read"}
    for job in content["jobs"].values():
        for step in job["steps"]:
            if "uses" in step:
                assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", step["uses"]), step["uses"]
                assert re.search(rf"{step['uses']}  # v\d+\.\d+\.\d+\n", file.read_text()), (
                    "the comment says the version"
                )
            else:
                # What an outsider can name, such as a branch, must not become part of a script.
                assert "${{" not in step["run"]


def test_tests_run_what_ci_runs() -> None:
    (job,) = workflow(FOLDER / "tests.yml")["jobs"].values()
    assert ".ci/run" in [step.get("run") for step in job["steps"]]
    assert (ROOT / ".ci" / "run").exists()


def test_screenshots_are_kept() -> None:
    (job,) = workflow(FOLDER / "tests.yml")["jobs"].values()
    kept = [
        step["with"]["path"] for step in job["steps"] if step.get("uses", "").startswith("actions/upload-artifact@")
    ]
    assert kept == [".cache/screenshots"]


def test_every_promised_wheel_is_built_and_published() -> None:
    jobs = workflow(FOLDER / "wheels.yml")["jobs"]
    assert set(jobs) == {"linux", "macos", "sdist", "publish"}
    linux = jobs["linux"]["strategy"]["matrix"]
    linux_arches = [platform["arch"] for platform in linux["platform"]]
    built = dict.fromkeys(linux["libc"], linux_arches) | {"macos": jobs["macos"]["strategy"]["matrix"]["target"]}
    told = (ROOT / "docs" / "installation.md").read_text()
    section = told.partition("| It builds |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)`[^|]*\| ([^|]*) \|", section, re.MULTILINE)
    assert {name: re.findall(r"`(\w+)`", arches) for name, arches in rows} == built | {"sdist": []}
    publish = jobs["publish"]
    assert set(publish["needs"]) == set(jobs) - {"publish"}
    assert publish["permissions"]["id-token"] == publish["permissions"]["attestations"] == "write"
    assert publish["if"] == "startsWith(github.ref, 'refs/tags/v')"
    used = [step.get("uses", "") for step in publish["steps"]]
    assert any(name.startswith("pypa/gh-action-pypi-publish@") for name in used)
    assert any(name.startswith("actions/attest-build-provenance@") for name in used)
    assert "password" not in (FOLDER / "wheels.yml").read_text(), "trusted publishing needs no secret"


def test_what_is_installed_is_installed_with_a_python_of_its_own() -> None:
    """The one of the system refuses pip on Ubuntu 24.04."""
    for name, job in workflow(FOLDER / "wheels.yml")["jobs"].items():
        for number, step in enumerate(job["steps"]):
            if re.match(r"pip install", step.get("run", "")):
                before = [each.get("uses", "") for each in job["steps"][:number]]
                assert any(each.startswith("actions/setup-python@") for each in before), name


def test_the_documents_name_every_extra_and_what_it_needs() -> None:
    told = (ROOT / "docs" / "installation.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| .* \| (.*) \|$", told.partition("## Wheels")[0], re.MULTILINE))
    # tomllib is new in Python 3.11.
    section = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1].split("\n[")[0]
    extras = dict(re.findall(r"^(\w+) = (\[.*?\]$|\[.*?^\])", section, re.MULTILINE | re.DOTALL))
    assert rows.keys() == extras.keys()
    for extra, requirements in extras.items():
        lines = [line.partition("#")[0] for line in requirements.splitlines()]
        needed = set(re.findall(r'"([\w-]+)', "\n".join(lines)))
        # One extra of this package brings another, and one of python-socketio's brings aiohttp.
        names = {
            {"socketio-postgres": "the extra `cli`", "python-socketio": "aiohttp"}.get(name, name) for name in needed
        }
        assert set(rows[extra].split(", ")) == names
