"""Measure full copies: N volumes of a half-empty template, by vmcloner and by dd; see README.md.

In a folder, or in a volume group, whose volumes are made and removed here::

    sudo .venv/bin/python benchmarks/copies.py --folder /var/tmp -n 10 --size 1GiB
    sudo .venv/bin/python benchmarks/copies.py --vg vg -n 10 --size 1GiB

Each way ends with its bytes on the device (fsync), and starts with none of its template cached.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from vmcloner_core.drivers import ImageFile
from vmcloner_core.model import CloneMode, CloneRequest, Copying, Origin
from vmcloner_core.testing.samples import make_context, make_labels
from vmcloner_core.units import format_size, parse_size
from vmcloner_dd.plugin import vmcloner_storage_backend
from vmcloner_dd.settings import DdSettings

MIB = 1024**2
RUN = 8 * MIB
"""Data and holes take turns in the template, so many bytes each."""


def half_full(path: Path, size: int) -> ImageFile:
    """Write a template of random data and holes, half of each."""
    with path.open("wb") as stream:
        stream.truncate(size)
        for offset in range(0, size, 2 * RUN):
            stream.seek(offset)
            stream.write(os.urandom(min(RUN, size - offset)))
        os.fsync(stream.fileno())
    return ImageFile(path=path, format="raw", size=size, digest=f"sha256:bench-{size}")


def run(*argv: str | Path) -> None:
    subprocess.run(argv, check=True, timeout=3600, capture_output=True)


def timed(work: Callable[[], object]) -> float:
    os.sync()
    with Path("/proc/sys/vm/drop_caches").open("w") as caches:
        caches.write("3")
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


class Bench:
    """One pool, and the ways to fill it."""

    def __init__(self, folder: Path, vg: str | None, count: int, size: int) -> None:
        self.folder, self.vg, self.count, self.size = folder, vg, count, size
        context = make_context(folder, "bench")
        settings = DdSettings(vg=vg) if vg is not None else DdSettings(path=folder / "pool")
        self.driver = vmcloner_storage_backend().factory(context, settings)
        self.image = half_full(folder / "template.raw", size)

    def ways(self) -> Iterator[tuple[str, float]]:
        """Yield each way with its seconds; what it made is gone afterwards."""
        imported = self.driver.import_image("bench", self.image, lambda _done, _total: None)
        origin = imported.unwrap()
        yield "vmcloner dd", self.copied(origin, verify=False)
        source = self.image.path
        if self.vg is not None:
            run("lvchange", "-ay", "-K", f"{self.vg}/image.bench")
            source = Path(f"/dev/{self.vg}/image.bench")
        for way, options in (
            ("loop of dd bs=10M", ("conv=fsync",)),
            ("loop of dd bs=10M conv=sparse", ("conv=sparse,fsync",)),
            ("loop of dd bs=10M oflag=direct", ("oflag=direct", "conv=fsync")),
        ):
            if self.vg is not None and "sparse" in way:
                continue  # it would leave old bytes where zeros belong
            yield way, timed(lambda options=options: self.loop(source, options))
            self.clear()
        yield "writing the data alone, to one volume", timed(self.floor)
        self.clear()
        if self.vg is not None:
            run("lvchange", "-an", f"{self.vg}/image.bench")
        yield "vmcloner dd --verify", self.copied(origin, verify=True)
        self.driver.delete_origin("bench")

    def copied(self, origin: Origin, *, verify: bool) -> float:
        seconds = timed(lambda: self.copies(origin, verify))
        for outcome in self.driver.delete(self.driver.volumes()):
            assert outcome.ok, outcome.error
        return seconds

    def copies(self, origin: Origin, verify: bool) -> None:
        requests = [
            CloneRequest(
                labels=make_labels("bench", index),
                origin=origin,
                mode=CloneMode.FULL,
                copying=Copying(verify=verify),
            )
            for index in range(1, self.count + 1)
        ]
        batch = self.driver.clone_lane.batch
        for start in range(0, self.count, batch):
            for outcome in self.driver.clone(requests[start : start + batch]):
                assert outcome.ok, outcome.error

    def volume(self, name: str, size: int) -> Path:
        if self.vg is None:
            return self.folder / name
        run("lvcreate", "-y", "-Wn", "-Zn", "-n", name, "-L", f"{size}b", self.vg)
        return Path(f"/dev/{self.vg}/{name}")

    def loop(self, source: Path, options: tuple[str, ...]) -> None:
        for index in range(self.count):
            target = self.volume(f"loop-{index}", self.size)
            run("dd", f"if={source}", f"of={target}", "bs=10M", "status=none", *options)

    def floor(self) -> None:
        """Write as many bytes as all copies have data, in sequence: what the device can do."""
        total = self.count * self.size // 2
        target = self.volume("loop-0", total)
        buffer = mmap.mmap(-1, 4 * MIB)
        buffer.write(os.urandom(4 * MIB))
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
        for offset in range(0, total, len(buffer)):
            os.pwrite(fd, buffer, offset)
        os.fsync(fd)
        os.close(fd)

    def clear(self) -> None:
        if self.vg is None:
            for path in self.folder.glob("loop-*"):
                path.unlink()
            return
        run("lvremove", "-y", "-S", "lv_name=~^loop-", self.vg)


def main() -> int:
    """Measure; prints a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--folder", type=Path, default=Path("/var/tmp"), help="Where files go.")
    place.add_argument("--vg", help="A volume group with room, in the place of a folder.")
    parser.add_argument("-n", "--count", type=int, default=10)
    parser.add_argument("--size", type=parse_size, default=parse_size("1GiB"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="vmcloner-copies-", dir=options.folder))
    try:
        bench = Bench(folder, options.vg, options.count, options.size)
        data = options.count * options.size // 2
        rows = []
        print(f"{options.count} copies of {format_size(options.size)}, half of it data")
        for way, seconds in bench.ways():
            rows.append({"way": way, "seconds": round(seconds, 2)})
            ratio = seconds / rows[0]["seconds"]
            speed = format_size(int(data / seconds))
            print(f"{way:40} {seconds:8.2f} s {ratio:6.2f} x {speed:>12}/s", flush=True)
        if options.json:
            print(json.dumps({"count": options.count, "size": options.size, "rows": rows}))
    finally:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
