"""Measure how long a template's image takes to get to hosts, beside scp and rsync; see README.md.

Three machines in namespaces (those of the tests), reached by ssh. The image is a sparse file: half
of its data can be compressed. The step ``send`` includes the checksums and the import into the
pools; scp and rsync only copy the file, and read its holes. Run it as root:
``.venv/bin/python -m benchmarks.sending``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.hosts import machines
from vmcloner_core.hooks import hookimpl
from vmcloner_core.hosts.controller import Controller
from vmcloner_core.hosts.opening import open_hosts
from vmcloner_core.placing import Where
from vmcloner_core.plan import StepEvent
from vmcloner_core.request import CreateRequest

MIB = 1024**2
TEXT = 'hypervisors = ["kvm"]\nmemory = "32MiB"\n[image]\npath = "big.raw"\n'


def write_image(file: Path, data: int, size: int) -> None:
    """Write a sparse image: runs of 8 MiB, in turn random and text, with holes between them."""
    chance = random.Random(1)
    text = " ".join(str(chance.random()) for _ in range(500_000)).encode()[: 8 * MIB]
    runs = data // (8 * MIB)
    with file.open("wb") as stream:
        for number in range(runs):
            stream.seek(number * (size // runs))
            stream.write(chance.randbytes(8 * MIB) if number % 2 else text)
        stream.truncate(size)


class Watch:
    """Notes how long the transfer alone takes."""

    seconds = 0.0

    @hookimpl
    def vmcloner_step_changed(self, event: StepEvent) -> None:
        """Note the end of it."""
        if event.step == "send":
            self.seconds = event.seconds or 0.0


def send(config: Path, hosts: Sequence[str], watch: Watch) -> None:
    """Make clones whose image has to be sent first, and delete them."""
    with open_hosts(config=config, plugins=[watch]) as controller:
        assert isinstance(controller, Controller)
        where = Where(hosts=tuple(hosts))
        result = controller.run(
            CreateRequest(fleet="web", template="big", count=len(hosts), where=where)
        )
        assert result.ok, result
        controller.delete("web")


def copied(argv: Sequence[str], file: Path, lab: machines.Lab, hosts: Sequence[str]) -> None:
    """Copy the image by a program of the host, to all hosts at the same time."""
    running = [
        subprocess.Popen(
            [*argv, str(file), f"{host}:{lab.machines[host].folder}/copy.raw"],
            env=lab.environment,
        )
        for host in hosts
    ]
    for process in running:
        assert process.wait(600) == 0


def timed(work: Callable[[], None], lab: machines.Lab) -> float:
    """Return the seconds that work takes; what it made is removed."""
    begun = time.monotonic()
    work()
    spent = time.monotonic() - begun
    for machine in lab.machines.values():
        (machine.folder / "copy.raw").unlink(missing_ok=True)
        for file in machine.folder.glob("state/pool/images/*"):
            file.unlink()
        shutil.rmtree(machine.folder / "state/received", ignore_errors=True)
    return spent


def main() -> None:
    """Measure, and print a table; with ``--json`` also to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=int, default=256, help="MiB of data in the image.")
    parser.add_argument("--size", type=int, default=2048, help="MiB of the image.")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="vmcloner-test-", dir="/var/tmp"))
    folder.chmod(0o755)
    names = ("h1", "h2", "h3")
    try:
        lab = machines.make(folder, names, {})
        try:
            figures = measured(lab, folder, args.data * MIB, args.size * MIB)
        finally:
            lab.close()
    finally:
        shutil.rmtree(folder)
    table = Table("hosts", "way", "seconds", "times send")
    for row in figures:
        table.add_row(*(str(value) for value in row.values()))
    Console().print(table)
    if args.json:
        args.json.write_text(json.dumps(figures))


def measured(lab: machines.Lab, folder: Path, data: int, size: int) -> list[dict[str, object]]:
    """Return how long each way takes, to one host and to all."""
    own = folder / "config/vmcloner/templates"
    own.mkdir(parents=True)
    (own / "big.toml").write_text(TEXT)
    write_image(own / "big.raw", data, size)
    os.environ.update(lab.environment)
    ways = {"scp": ["scp", "-q", "-S", str(folder / "bin/ssh")]}
    if shutil.which("rsync"):
        ways |= {"rsync -S": ["rsync", "-S"], "rsync -Sz": ["rsync", "-Sz"]}
    found: list[dict[str, object]] = []
    for count in (1, len(lab.machines)):
        hosts = list(lab.machines)[:count]
        watch = Watch()
        all_of_it = timed(lambda: send(folder / "vmcloner.toml", hosts, watch), lab)  # noqa: B023
        mine = watch.seconds
        for way, spent in (("send", mine), ("create and delete", all_of_it)):
            ratio = round(spent / mine, 2)
            found.append({"hosts": count, "way": way, "seconds": round(spent, 2), "ratio": ratio})
        for way, argv in ways.items():
            spent = timed(lambda: copied(argv, own / "big.raw", lab, hosts), lab)  # noqa: B023
            ratio = round(spent / mine, 2)
            found.append({"hosts": count, "way": way, "seconds": round(spent, 2), "ratio": ratio})
    return found


if __name__ == "__main__":
    main()
