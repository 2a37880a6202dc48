"""Compare clones that are forked from a guest that has booted with clones that boot.

    sudo .venv/bin/python -m benchmarks.warm                # 20 of tiny: cold, then warm
    sudo .venv/bin/python -m benchmarks.warm -n 20 50 100   # and how it grows
    sudo .venv/bin/python -m benchmarks.warm -t debian-12-built

Both ways are the command itself, in one run on one machine, in a scratch state folder: create with
--start and --wait, until every clone has said its own name. Then idle guests' memory is read:
PSS counts a shared page by its share (proc_pid_smaps(5)). More than COLD clones are only forked.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs

VMCLONER = Path(sys.executable).with_name("vmcloner")
COLD = 20
"""Most clones that boot: more would take an hour."""
LIMIT = 3000.0
SETTLE = 3.0
"""Seconds after which guests that are ready are taken to be idle."""


@attrs.frozen(kw_only=True)
class Row:
    """One way of having so many clones ready. ``seconds`` for all; bytes of ``pss`` for each."""

    way: str
    clones: int
    seconds: float
    pss: float


@attrs.frozen
class Site:
    """A state folder that QEMU's user can read."""

    folder: Path
    template: str

    def run(self, *words: str) -> float:
        """Run a command; return its seconds."""
        began = time.monotonic()
        argv = [str(VMCLONER), "--config", str(self.folder / "vmcloner.toml"), "-q", *words]
        done = subprocess.run(
            argv, check=False, cwd=self.folder, capture_output=True, text=True, timeout=LIMIT
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(words)}: {done.stderr.strip()[-500:]}")
        return time.monotonic() - began

    def measure(self, way: str, count: int) -> Row:
        """Have a fleet ready, look at its memory, and delete it."""
        fleet = f"bench{way}{os.getpid()}"
        warm = ["--warm"] if way == "warm" else []
        words = ["create", fleet, "-t", self.template, "-n", str(count), *warm, "--start", "--wait"]
        seconds = self.run(*words, "--timeout", str(LIMIT))
        time.sleep(SETTLE)
        sizes = list(pss(fleet))
        self.run("delete", fleet, "--yes")
        return Row(way=way, clones=count, seconds=seconds, pss=sum(sizes) / len(sizes))


def pss(fleet: str) -> Iterator[int]:
    """Yield the bytes of memory of each of a fleet's guests."""
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and f"guest={fleet}-" in (process / "cmdline").read_text():
                text = (process / "smaps_rollup").read_text()
                yield int(re.findall(r"(?m)^Pss: +(\d+) kB", text)[0]) * 1024
        except (OSError, IndexError):
            continue


def measured(site: Site, counts: Sequence[int]) -> Iterator[Row]:
    """Yield the rows: cold and warm beside each other."""
    for count in counts:
        if count <= COLD:
            yield site.measure("cold", count)
        yield site.measure("warm", count)


def main() -> None:
    """Measure, print a table, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-t", "--template", default="tiny")
    parser.add_argument("-n", "--clones", type=int, nargs="+", default=[1, COLD])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="vmcloner-warm-", dir="/var/tmp"))
    folder.chmod(0o755)
    (folder / "vmcloner.toml").write_text(f'[hosts.local]\nstate = "{folder}/state"\n')
    site = Site(folder, options.template)
    try:
        print(f"origin made in {site.run('template', 'warm', site.template):.1f} s")
        rows: list[Row] = []
        print("way   clones  seconds  each   PSS each")
        for row in measured(site, options.clones):
            rows.append(row)
            each, mib = row.seconds / row.clones, row.pss / 1024**2
            print(f"{row.way}  {row.clones:6}  {row.seconds:7.1f}  {each:5.2f}  {mib:5.0f} MiB")
        if options.json:
            options.json.write_text(json.dumps([attrs.asdict(row) for row in rows]))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
