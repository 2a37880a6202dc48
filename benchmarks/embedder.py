"""Measure whether a process that embeds the engine grows; see README.md beside this file.

One engine makes and deletes fleets, one after another and several at a time, with the reference
drivers. Memory, threads and descriptors are read after each hundred. Run it as a module:
``.venv/bin/python -m benchmarks.embedder 1000``.
"""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs
from rich.console import Console
from rich.table import Table

from benchmarks.hosts import SETTINGS, settle
from vmcloner_core.engine import Engine
from vmcloner_core.local_host import LocalHost
from vmcloner_core.plugins import PluginHost
from vmcloner_core.testing.reference import BootPlugin, HypervisorPlugin, StoragePlugin

AT_ONCE = 4
CLONES = 3


@attrs.frozen(kw_only=True)
class Row:
    """What the process has after so many fleets."""

    fleets: int
    resident_kib: int
    threads: int
    descriptors: int
    objects: int


def now(fleets: int) -> Row:
    """Return what this process has now."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return Row(
        fleets=fleets,
        resident_kib=pages * os.sysconf("SC_PAGE_SIZE") // 1024,
        threads=threading.active_count(),
        descriptors=len(os.listdir("/proc/self/fd")),  # noqa: PTH208
        objects=len(gc.get_objects()),
    )


def rows(count: int, folder: Path) -> list[Row]:
    """Make and delete fleets; return what the process had on the way."""
    pool = StoragePlugin()
    plugins = PluginHost([pool, HypervisorPlugin(), BootPlugin()])
    host = attrs.evolve(SETTINGS.host("local"), state=folder / "state", seed="embedder")
    found = []
    with (
        Engine(SETTINGS, plugins, LocalHost(host, plugins)) as engine,
        ThreadPoolExecutor(AT_ONCE) as threads,
    ):

        def one(number: int) -> None:
            name = f"fleet{number}"
            engine.create(name, "sim", count=CLONES)
            engine.delete(name)

        for done in range(0, count, 100):
            list(threads.map(one, range(done, done + 100)))
            pool.driver.copyings.clear()  # what this pool was asked for, which tests look at
            found.append(now(done + 100))
        assert engine.list() == ()
    return found


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("fleets", nargs="?", type=int, default=1000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settle(folder)
        table = Table(*(field.name for field in attrs.fields(Row)))
        for row in rows(arguments.fleets, folder):
            table.add_row(*map(str, attrs.astuple(row)))
        Console().print(table)


if __name__ == "__main__":
    main()
