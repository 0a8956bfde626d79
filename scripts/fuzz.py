"""Fuzz the decoders, each target for so many seconds: `python scripts/fuzz.py 20`.

The targets are in rust/fuzz, made for cargo-fuzz; `cargo fuzz run --fuzz-dir rust/fuzz notification` on a nightly
toolchain adds AddressSanitizer. This script does the same with the stable one, and begins with the frames recorded from
other implementations. What it finds is kept in .cache/fuzz, so that the next run goes on from there; an input that
crashes, or takes more than a few seconds, is written to .cache/fuzz/crashes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".cache/fuzz"
TARGETS = {"notification": 7999, "attachment": 65536, "round_trip": 16384}  # with the longest input to try

# Those of cargo-fuzz: count every edge, and tell libFuzzer what was compared.
COVERAGE = [
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
]


def seeds() -> Iterator[tuple[str, bytes]]:
    """Inputs to begin with: the target, and one message."""
    for recording in ("node.json", "go.json"):
        for scene in json.loads((ROOT / "tests/vectors" / recording).read_text())["recorded"]:
            for frame in scene["frames"]:
                payload, body = frame["payload"].encode(), bytes.fromhex(frame.get("attachment_msgpack_hex", ""))
                yield "notification", payload
                yield "round_trip", b"\x00\x02\x1f\x40" + payload  # JSON, three digits, a threshold of 8000
                if body:
                    yield "attachment", body
                    yield "round_trip", b"\x01\x02\x1f\x40" + body


def build() -> Path:
    """Build the targets; returns the folder they are in."""
    # Fuzz the versions that are shipped; cargo adds libFuzzer's.
    shutil.copy(ROOT / "Cargo.lock", ROOT / "rust/fuzz/Cargo.lock")
    version = subprocess.run(["rustc", "-vV"], check=True, capture_output=True, text=True)  # noqa: S607
    host = version.stdout.partition("host: ")[2].split()[0]
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target/fuzz"))
    # With --target, the flags are not for the build scripts, which have no libFuzzer to link with.
    command = ["cargo", "build", "--release", "--target", host, "--target-dir", str(target)]
    env = {**os.environ, "RUSTFLAGS": " ".join(COVERAGE)}
    subprocess.run(command, check=True, cwd=ROOT / "rust/fuzz", env=env)
    return target / host / "release"


def fuzz(target: str, program: Path, seconds: int) -> bool:
    """Run one target; returns whether it found nothing."""
    options = [
        f"-max_total_time={seconds}",
        f"-max_len={TARGETS[target]}",
        f"-dict={ROOT / 'rust/fuzz/keys.dict'}",
        f"-artifact_prefix={FOLDER / 'crashes'}/{target}-",
        "-timeout=5",  # seconds for one input; they all take less than a millisecond
        "-rss_limit_mb=1024",
        "-print_final_stats=1",
        "-verbosity=0",
    ]
    log = FOLDER / f"{target}.log"
    with log.open("w") as file:
        ended = subprocess.run([program, *options, FOLDER / target], check=False, stderr=file)
    if ended.returncode:
        print(log.read_text())
    statistics = dict(line.rsplit(":", 1) for line in log.read_text().splitlines() if line.startswith("stat::"))
    count, found = (
        statistics.get(f"stat::{name}", "?").strip() for name in ("number_of_executed_units", "new_units_added")
    )
    print(f"{target}: {count} inputs in {seconds} s, {found} of them did something new", flush=True)
    return ended.returncode == 0


def main() -> None:
    """Build, seed and fuzz."""
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    for folder in (*TARGETS, "crashes"):
        (FOLDER / folder).mkdir(parents=True, exist_ok=True)
    for number, (target, seed) in enumerate(seeds()):
        (FOLDER / target / f"seed-{number}").write_bytes(seed)
    programs = build()
    failed = [target for target in TARGETS if not fuzz(target, programs / target, seconds)]
    if failed:
        sys.exit(f"{', '.join(failed)} failed; the inputs are in {FOLDER / 'crashes'}")


if __name__ == "__main__":
    main()
