"""Compare clones that are forked from a guest that has booted with clones that boot.

    sudo .venv/bin/python -m benchmarks.warm                # 20 of tiny: cold, then warm
    sudo .venv/bin/python -m benchmarks.warm -n 20 50 100   # and how it grows
    sudo .venv/bin/python -m benchmarks.warm -t debian-12-built --ssh -n 20

Both ways are the command itself, in one run on one machine, in a scratch state folder: create with
--start and --wait, until every clone has said its own name; with --ssh, until one can log in to
every clone, by a network that is made for it. Then idle guests' memory is read: PSS counts a shared
page by its share (proc_pid_smaps(5)). More than COLD clones are only forked. "fork" is the command
that starts one clone that waits to be forked, until it runs as itself.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs

from benchmarks.run import ENVIRONMENT, VMCLONER

COLD = 20
"""Most clones that boot: more would take an hour."""
LIMIT = 3000.0
SETTINGS = """
[hosts.local]
state = "{folder}/state"
[limits]
memory_overcommit = 8  # idle guests take a fraction of their memory, and forks share that
"""
SSH = """
extends = "{template}"
ready = "ssh"
[[nics]]
kind = "network"
source = "{network}"
[ssh]
key = "{folder}/key"
[identity]
authorized_keys = ["{folder}/key.pub"]
"""
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
            argv,
            check=False,
            cwd=self.folder,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(words)}: {done.stderr.strip()[-500:]}")
        return time.monotonic() - began

    @contextlib.contextmanager
    def reached(self) -> Iterator[Site]:
        """Have a site whose clones are reached by ssh, by a network of its own."""
        network = f"bench{os.getpid()}"
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / "key")]
        subprocess.run(argv, check=True)
        text = SSH.format(template=self.template, network=network, folder=self.folder)
        (self.folder / "templates").mkdir()
        (self.folder / "templates" / "reached.toml").write_text(text)
        try:
            self.run("host", "prepare", "network", "--name", network)
            yield attrs.evolve(self, template="reached")
        finally:
            self.run("host", "remove", "network", "--name", network)

    def fork(self) -> Row:
        """Start one clone that waits to be forked."""
        fleet = f"benchfork{os.getpid()}"
        self.run("create", fleet, "-t", self.template, "--warm")
        seconds = self.run("start", fleet)
        time.sleep(SETTLE)
        sizes = list(pss(fleet))
        self.run("delete", fleet, "--yes")
        return Row(way="fork", clones=1, seconds=seconds, pss=sum(sizes))

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
    yield site.fork()
    for count in counts:
        if count <= COLD:
            yield site.measure("cold", count)
        yield site.measure("warm", count)


def report(site: Site, counts: Sequence[int]) -> Sequence[Row]:
    """Make an origin, measure, and print the rows; returns them."""
    print(f"origin made in {site.run('template', 'warm', site.template):.1f} s")
    rows: list[Row] = []
    print("way   clones  seconds  each   PSS each")
    for row in measured(site, counts):
        rows.append(row)
        each, mib = row.seconds / row.clones, row.pss / 1024**2
        line = f"{row.way}  {row.clones:6}  {row.seconds:7.1f}  {each:5.2f}  {mib:5.0f} MiB"
        print(line, flush=True)
    return rows


def main() -> None:
    """Measure, print a table, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-t", "--template", default="tiny")
    parser.add_argument("-n", "--clones", type=int, nargs="+", default=[1, COLD])
    parser.add_argument("--ssh", action="store_true", help="until one can log in to every clone")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="vmcloner-warm-", dir="/var/tmp"))
    folder.chmod(0o755)
    (folder / "vmcloner.toml").write_text(SETTINGS.format(folder=folder))
    site = Site(folder, options.template)
    try:
        with site.reached() if options.ssh else contextlib.nullcontext(site) as own:
            rows = report(own, options.clones)
        if options.json:
            options.json.write_text(json.dumps([attrs.asdict(row) for row in rows]))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
