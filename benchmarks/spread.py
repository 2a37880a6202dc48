"""Measure thirty clones over three hosts beside ten on one of them; see README.md.

Three machines in namespaces (those of the tests) on the same processors, reached by ssh. Every
figure is that of a whole command, the median of several; the template's image is in the pools.
Run it as root: ``.venv/bin/python -m benchmarks.spread``.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.hosts import machines

TEXT = 'hypervisors = ["kvm"]\nmemory = "32MiB"\n[image]\npath = "FOLDER/plain.raw"\n'
PROGRAM = str(Path(sys.executable).parent / "vmcloner")


def median(times: int, work: Callable[[], object], undo: Callable[[], object]) -> float:
    """Return the median of the seconds that work takes; each time, it is undone."""
    found = []
    for _ in range(times + 1):
        begun = time.monotonic()
        work()
        found.append(time.monotonic() - begun)
        undo()
    return statistics.median(found[1:])  # the first one fills caches


def measured(lab: machines.Lab, times: int) -> dict[str, float]:
    """Return the seconds of each way, by name."""
    one = lab.machines["h1"]
    words = ("create", "web", "-t", "plain")
    found = {
        "10 clones, by the host itself": median(
            times,
            lambda: one.run(PROGRAM, *words, "-n", "10"),
            lambda: one.run(PROGRAM, "delete", "web", "--yes"),
        )
    }
    for carrier in ("mitogen", "dask"):
        lab.carrier = carrier
        for count, hosts in ((10, "h1"), (30, "h[1-3]")):
            found[f"{count} clones on {hosts}, by {carrier}"] = median(
                times,
                lambda n=str(count), where=hosts: lab.run(*words, "-n", n, "--hosts", where),
                lambda: lab.run("delete", "web", "--yes"),
            )
    return found


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--times", type=int, default=5)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="vmcloner-test-", dir="/var/tmp"))
    folder.chmod(0o755)
    try:
        (folder / "plain.raw").write_bytes(bytes(range(256)) * 4096)
        text = TEXT.replace("FOLDER", str(folder))
        lab = machines.make(folder, ("h1", "h2", "h3"), {"plain": text})
        try:
            found = measured(lab, args.times)
        finally:
            lab.close()
    finally:
        shutil.rmtree(folder)
    base = next(iter(found.values()))
    table = Table("what", "seconds", "times ten by the host itself")
    for what, seconds in found.items():
        table.add_row(what, f"{seconds:.2f}", f"{seconds / base:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
