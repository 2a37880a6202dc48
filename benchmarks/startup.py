"""Measure the processor time of commands that do little; see README.md beside this file.

Run it as root, as a module, from the top of the checkout: ``.venv/bin/python -m
benchmarks.startup``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
from rich.console import Console
from rich.table import Table

from benchmarks.run import ENVIRONMENT, URI, VMCLONER, Site, site

CLONES = 1000
BARE = """
import sys
import libvirt
connection = libvirt.openReadOnly(sys.argv[1])
for domain in connection.listAllDomains():
    domain.XMLDesc()
"""
"""The least that a list of domains takes."""


@attrs.frozen(kw_only=True)
class Row:
    """One program's cost: the median of several runs, processor and elapsed seconds."""

    what: str
    cpu: float
    seconds: float


def measure(what: str, argv: list[str], here: Site, runs: int) -> Row:
    """Run a program several times; the first run, which writes bytecode, doesn't count."""
    measured = []
    for _ in range(runs + 1):
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(
            argv, check=True, cwd=here.folder, env=ENVIRONMENT, timeout=300,
            stdin=subprocess.DEVNULL, capture_output=True,
        )  # fmt: skip
        elapsed, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        measured.append((used, elapsed))
    middle = len(measured[1:]) // 2
    return Row(
        what=what,
        cpu=sorted(used for used, _ in measured[1:])[middle],
        seconds=sorted(elapsed for _, elapsed in measured[1:])[middle],
    )


def rows(here: Site, runs: int, clones: int) -> Iterator[Row]:
    """Measure everything, without clones and then with."""
    vmcloner = [str(VMCLONER), "--config", str(here.config)]
    bare = [sys.executable, "-c", BARE, URI]
    yield measure("python -c pass", [sys.executable, "-c", "pass"], here, runs)
    yield measure("vmcloner --help", [str(VMCLONER), "--help"], here, runs)
    yield measure("bare libvirt calls, no domain", bare, here, runs)
    yield measure("vmcloner list, no clone", [*vmcloner, "list"], here, runs)
    here.vmcloner("create", "bench", "-t", "bench", "-n", str(clones))
    yield measure(f"bare libvirt calls, {clones:,} domains", bare, here, runs)
    for form in ("table", "json"):
        argv = [*vmcloner, "list", "-f", form]
        yield measure(f"vmcloner list -f {form}, {clones:,} clones", argv, here, runs)


def show(found: list[Row]) -> None:
    """Print each row with its ratios to bare Python and to bare libvirt calls."""
    table = Table("what", "processor ms", "elapsed ms", "times python", "times bare libvirt")
    python, libvirt = found[0].cpu, None
    for row in found:
        if row.what.startswith("bare"):
            libvirt = row.cpu
        beside = "" if libvirt is None else f"{row.cpu / libvirt:.1f}"
        table.add_row(row.what, f"{row.cpu * 1000:.0f}", f"{row.seconds * 1000:.0f}",
                      f"{row.cpu / python:.1f}", beside)  # fmt: skip
    Console(width=120).print(table)


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=10, help="runs of each program")
    parser.add_argument("--clones", type=int, default=CLONES)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/startup.json"))
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("needs root: it defines machines")
    with site() as here:
        found = list(rows(here, options.n, options.clones))
    show(found)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    host = {
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
    report = {"host": host, "rows": [attrs.asdict(row) for row in found]}
    options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
