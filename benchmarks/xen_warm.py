"""Measure guests that continue from one saved memory against guests that boot, on a Xen host.

Runs by itself, as root, where the lab's small guest is: ``make bench-xen-warm`` runs it in the lab.
A guest counts as ready when it answers a command on its console with its own MAC.

``xl`` reads a guest's memory and its devices apart, so one file serves all. libvirt's images have
the definition in front of the memory: each guest is given one of its own by a pipe.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import struct
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs

GUEST = Path("/opt/lab/guest")
CONSOLES = Path("/var/log/xen/console")
MIB = 32
SECONDS = 300.0
MAGIC = b"libvirt-xml\n \0 \r"
VIRSH = ("virsh", "-q", "-c", "xen:///system")


@attrs.frozen(kw_only=True)
class Row:
    """What some guests cost, made in one way.

    Seconds of all of them: until the last was made, until the last was ready, and of processor, in
    dom0 and in the guests. ``mib_each``: taken from Xen's free memory.
    """

    way: str
    guests: int
    at_once: int
    made: float
    ready: float
    processor: float
    ratio: float = 1.0
    mib_each: float = 0.0


def call(*words: str | Path) -> str:
    """Run a command of the host; return what it prints."""
    argv = list(map(str, words))
    done = subprocess.run(argv, capture_output=True, text=True, timeout=SECONDS, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(argv)}: {done.stderr.strip()}")
    return done.stdout


def free() -> int:
    """Return Xen's free memory, MiB."""
    lines = dict(line.split(":", 1) for line in call("xl", "info").splitlines() if ":" in line)
    return int({key.strip(): value for key, value in lines.items()}["free_memory"])


def used() -> float:
    """Return the seconds of processor that dom0 and all guests have had."""
    return sum(float(line.split()[-1]) for line in call("xl", "list").splitlines()[1:])


@attrs.frozen
class Guest:
    """A guest of the benchmark, on a disk of its own."""

    name: str
    folder: Path
    mac: str

    @property
    def config(self) -> Path:
        """Its description for xl; made anew."""
        disk = self.folder / f"{self.name}.raw"
        values: dict[str, object] = {
            "name": self.name,
            "uuid": str(uuid.uuid4()),
            "type": "pv",
            "memory": MIB,
            "vcpus": 1,
            "kernel": str(GUEST / "vmlinuz"),
            "ramdisk": str(GUEST / "initrd.img"),
            "extra": "console=hvc0",
            "disk": [f"{disk},raw,xvda,w"],
            "vif": [f"mac={self.mac},bridge=xenbr0"],
        }
        path = self.folder / f"{self.name}.cfg"
        path.write_text("".join(f"{key} = {value!r}\n" for key, value in values.items()))
        return path

    def give_disk(self) -> None:
        """Give it a disk: the template's bytes."""
        call("cp", "--sparse=always", GUEST / "disk.raw", self.folder / f"{self.name}.raw")

    def definition(self) -> str:
        """Return its description for libvirt."""
        return f"""<domain type='xen'><name>{self.name}</name><uuid>{uuid.uuid4()}</uuid>
<memory unit='MiB'>{MIB}</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='xenpv'>linux</type><kernel>{GUEST}/vmlinuz</kernel>
<initrd>{GUEST}/initrd.img</initrd><cmdline>console=hvc0</cmdline></os>
<devices><disk type='file' device='disk'><driver name='qemu' type='raw'/>
<source file='{self.folder}/{self.name}.raw'/><target dev='xvda' bus='xen'/></disk>
<interface type='bridge'><mac address='{self.mac}'/><source bridge='xenbr0'/></interface>
<console type='pty'><target type='xen' port='0'/></console></devices></domain>"""

    def create(self) -> None:
        """Boot it."""
        call("xl", "create", self.config)

    def restore(self, memory: Path) -> None:
        """Continue from the memory of another guest."""
        call("xl", "restore", self.config, memory)

    def libvirt_create(self) -> None:
        """Boot it through libvirt."""
        path = self.folder / f"{self.name}.xml"
        path.write_text(self.definition())
        call(*VIRSH, "create", path)

    def libvirt_restore(self, image: Path) -> None:
        """Continue from the image that libvirt saved of another guest."""
        pipe = self.folder / f"{self.name}.pipe"
        os.mkfifo(pipe)
        writer = threading.Thread(target=self._write, args=(image, pipe), daemon=True)
        writer.start()
        call(*VIRSH, "restore", pipe)
        writer.join()
        pipe.unlink()

    def _write(self, image: Path, pipe: Path) -> None:
        """Write an image with this guest's definition: libvirt's libxlSavefileHeader."""
        xml = self.definition().encode() + b"\0"
        with image.open("rb") as stream, pipe.open("wb") as target:
            header = bytearray(stream.read(16 + 12 * 4))
            [length] = struct.unpack_from("<I", header, 20)
            struct.pack_into("<I", header, 20, len(xml))
            target.write(header + xml)
            stream.seek(length, os.SEEK_CUR)
            while chunk := stream.read(1024**2):
                target.write(chunk)

    def answer(self) -> None:
        """Return once it says its MAC on its console."""
        tty = call("xenstore-read", f"/local/domain/{self._id()}/console/tty").strip()
        log, deadline = CONSOLES / f"guest-{self.name}.log", time.monotonic() + SECONDS
        asked = 0.0
        while f"here {self.mac}" not in (log.read_text(errors="replace") if log.exists() else ""):
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} does not answer")
            if time.monotonic() - asked > 2:
                Path(tty).write_text("\necho here $(cat /sys/class/net/eth0/address)\n")
                asked = time.monotonic()
            time.sleep(0.1)

    def _id(self) -> str:
        return call("xl", "domid", self.name).strip()

    def destroy(self) -> None:
        """End it, if it runs."""
        words = ["xl", "destroy", self.name]
        subprocess.run(words, capture_output=True, timeout=SECONDS, check=False)


@contextlib.contextmanager
def guests(folder: Path, way: str, count: int) -> Iterator[list[Guest]]:
    """Yield guests that have disks; they are ended after the block."""
    made = [
        Guest(f"{way}-{number}", folder, f"00:16:3e:00:00:{number:02x}")
        for number in range(1, count + 1)
    ]
    try:
        for guest in made:
            guest.give_disk()
        yield made
    finally:
        for guest in made:
            guest.destroy()


def each(work: Callable[[Guest], None], some: Sequence[Guest], at_once: int) -> None:
    """Do something with each guest, some at once."""
    with ThreadPoolExecutor(at_once) as pool:
        for _ in pool.map(work, some):
            pass


def measure(
    folder: Path, way: str, count: int, at_once: int, start: Callable[[Guest], None]
) -> Row:
    """Start guests in one way, and wait for their answers."""
    with guests(folder, way, count) as some:
        before, worked, begun = free(), used(), time.monotonic()
        each(start, some, at_once)
        made = time.monotonic() - begun
        each(Guest.answer, some, at_once)
        ready = time.monotonic() - begun
        taken, worked = (before - free()) / count, used() - worked
    return Row(
        way=way,
        guests=count,
        at_once=at_once,
        made=round(made, 1),
        ready=round(ready, 1),
        processor=round(worked, 1),
        mib_each=round(taken, 1),
    )


@attrs.frozen
class Toolstack:
    """How guests are booted, saved and restored."""

    name: str
    create: Callable[[Guest], None]
    save: Callable[[Guest, Path], object]
    restore: Callable[[Guest, Path], None]


TOOLSTACKS = (
    Toolstack(
        "xl",
        Guest.create,
        lambda guest, image: call("xl", "save", guest.name, image),
        Guest.restore,
    ),
    Toolstack(
        "libvirt",
        Guest.libvirt_create,
        lambda guest, image: call(*VIRSH, "save", guest.name, image),
        Guest.libvirt_restore,
    ),
)


@contextlib.contextmanager
def saved(folder: Path, by: Toolstack) -> Iterator[Path]:
    """Yield what is saved of a guest that has booted."""
    image = folder / f"{by.name}.save"
    with guests(folder, f"{by.name}-parent", 1) as [parent]:
        by.create(parent)
        parent.answer()
        begun = time.monotonic()
        by.save(parent, image)
        print(f"{by.name}: saved in {time.monotonic() - begun:.1f} s, {image.stat().st_size} bytes")
    yield image
    image.unlink()


def compare(folder: Path, by: Toolstack, count: int, at_once: int) -> Iterator[Row]:
    """Yield a row for guests that boot, and one for guests that continue."""
    cold = measure(folder, f"{by.name}-cold", count, at_once, by.create)
    yield cold
    with saved(folder, by) as image:
        row = measure(
            folder, f"{by.name}-warm", count, at_once, lambda guest: by.restore(guest, image)
        )
    yield attrs.evolve(row, ratio=round(cold.ready / row.ready, 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("count", type=int, nargs="?", default=5)
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--by", choices=[by.name for by in TOOLSTACKS])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        for by in TOOLSTACKS:
            if options.by in (None, by.name):
                for row in compare(Path(folder), by, options.count, options.at_once):
                    print(json.dumps(attrs.asdict(row)) if options.json else row, flush=True)


if __name__ == "__main__":
    main()
