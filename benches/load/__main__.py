"""Measure the cluster bus beside its peers: `python -m benches.load [--full | --check] [--only NAME ...]`."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Awaitable, Callable

from benches.load import disturbance, emitting, fan_out, growth, receiving, spreading
from benches.load.stage import CHECK, FULL, POSTGRES, SHORT, Scale, Stage, open_stage
from benches.machine import read_machine
from benches.results import Section, Table, save

SCENARIOS: dict[str, Callable[[Stage], Awaitable[Table | list[Table]]]] = {
    "emitter": emitting.rates,
    "awaited": emitting.times,
    "received": receiving.somebody_here,
    "nobody": receiving.nobody_here,
    "across": spreading.bursts,
    "latency": spreading.latencies,
    "fan-out": fan_out.fan_out,
    "asgi-servers": fan_out.asgi_servers,
    "large": spreading.large_events,
    "growth": growth.servers,
    "memory": growth.memory,
    "disturbance": disturbance.disturbance,
}


async def measure(scale: Scale, names: list[str]) -> Section:
    """Run scenarios one after the other."""
    tables: list[Table] = []
    machine = read_machine()  # before we are what it is busy with
    with open_stage(scale) as stage:
        for name in names:
            sys.stderr.write(f"{name}\n")
            began = time.monotonic()
            found = await SCENARIOS[name](stage)
            tables += found if isinstance(found, list) else [found]
            sys.stderr.write(f"  {time.monotonic() - began:.0f} s\n")
        settings = {"PostgreSQL": stage.postgres.version, "repetitions": str(scale.repetitions), **POSTGRES}
    return Section(
        name="load",
        title="Cluster bus",
        order=10,
        command="python -m benches.load" + (" --full" if scale is FULL else ""),
        settings=settings,
        tables=tables,
        machine=machine,
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benches.load", description=__doc__)
    scale = parser.add_mutually_exclusive_group()
    scale.add_argument("--full", action="store_const", const=FULL, dest="scale", help="more of everything")
    scale.add_argument(
        "--check", action="store_const", const=CHECK, dest="scale", help="each once and short, nothing is saved"
    )
    parser.add_argument(
        "--only", nargs="+", choices=SCENARIOS, default=list(SCENARIOS), metavar="NAME", help="print, save nothing"
    )
    arguments = parser.parse_args()
    section = asyncio.run(measure(arguments.scale or SHORT, arguments.only))
    # A part of the rows must not take the place of all of them.
    if arguments.scale is not CHECK and len(arguments.only) == len(SCENARIOS):
        sys.stderr.write(f"saved {save(section)}; python -m benches.report writes the report\n")


if __name__ == "__main__":
    main()
