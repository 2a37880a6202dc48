"""Measure lvm-thin's transactions against loops of LVM's commands, on the thin pool vg/pool.

Runs by itself, as root, wherever that pool is: ``make bench-lvm`` runs it in the lab.
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import attrs

from vmcloner_core.drivers import DriverContext, ImageFile, StorageDriver
from vmcloner_core.model import (
    CloneRequest,
    Host,
    Labels,
    Origin,
    Outcome,
    SnapshotLabels,
    SnapshotRequest,
    Volume,
)
from vmcloner_core.process import LocalRunner
from vmcloner_lvm.commands import Lvm
from vmcloner_lvm.devmapper import KernelDeviceMapper, device_name
from vmcloner_lvm.driver import LvmThinDriver
from vmcloner_lvm.settings import LvmThinSettings

MIB = 1024**2
SAMPLE = 10
RAW = 200
FIRST_RAW = 8_000_000  # device ids that no volume has


@attrs.frozen(kw_only=True)
class Row:
    """What one volume cost in one way of the work. ``ratio``: to the transaction's cost."""

    work: str
    volumes: int
    way: str
    ms_each: float
    ratio: float = 1.0
    note: str = ""


class Bench:
    """A template in the pool, and the ways to clone it."""

    def __init__(self, vg: str, pool: str, folder: Path) -> None:
        self.vg, self.pool = vg, pool
        host = Host(name="local", state=folder)
        context = DriverContext(host=host, name="pool", runner=LocalRunner())
        settings = LvmThinSettings(vg=vg, thinpool=pool, strategy="transaction")
        self.mapper = KernelDeviceMapper()
        self.driver = LvmThinDriver(context, settings, self.mapper)
        image = folder / "bench.raw"
        with image.open("wb") as stream:
            stream.truncate(64 * MIB)
            stream.write(b"data" * (2 * MIB))
        source = ImageFile(path=image, format="raw", size=64 * MIB, digest="sha256:bench")
        self.origin: Origin = self.driver.import_image(
            "bench", source, lambda _done, _total: None
        ).unwrap()
        self.template = f"{vg}/template.bench"

    def requests(self, count: int, fleet: str = "bench") -> list[CloneRequest]:
        return [
            CloneRequest(
                origin=self.origin,
                labels=Labels(
                    fleet=fleet,
                    index=index,
                    template="bench",
                    run="20260101-000000-abcd",
                    owner="root",
                    created="2026-01-01T00:00:00Z",
                    storage="lvm-thin",
                    hypervisor="kvm",
                ),
            )
            for index in range(1, count + 1)
        ]

    def clone(self, count: int, batch: int, fleet: str = "bench") -> float:
        """Clone by transactions; returns seconds for each."""
        wanted = self.requests(count, fleet)

        def work() -> None:
            for start in range(0, count, batch):
                for outcome in self.driver.clone(wanted[start : start + batch]):
                    outcome.unwrap()

        return timed(work) / count

    def reset(self, count: int, reset: Callable[..., Iterable[Outcome[Volume]]]) -> float:
        """Reset all clones; returns seconds for each."""
        wanted = self.requests(count)

        def work() -> None:
            for outcome in reset(wanted):
                outcome.unwrap()

        return timed(work) / count

    def snapshots(self, count: int) -> tuple[float, float, float]:
        """Take snapshots of all clones, revert to them, remove them; seconds for each."""
        kept = self.driver.snapshots
        volumes = sorted(self.driver.volumes(), key=lambda volume: volume.labels.index)
        wanted = [
            SnapshotRequest(
                volume=volume,
                labels=SnapshotLabels(
                    labels=volume.labels, name="ready", taken="2026-01-01", disk=0, disks=1
                ),
            )
            for volume in volumes[:count]
        ]

        def each(outcomes: Iterable[Outcome[object]]) -> None:
            for outcome in outcomes:
                assert outcome.ok, outcome.error

        made = timed(lambda: each(kept.create(wanted)))
        found = kept.found()
        back = timed(lambda: each(kept.revert(found)))
        gone = timed(lambda: each(kept.delete(found)))
        return made / count, back / count, gone / count

    def delete(self, fleet: str = "bench") -> float:
        """Delete a fleet by one transaction; returns seconds for each clone."""
        volumes = [each for each in self.driver.volumes() if each.labels.fleet == fleet]

        def work() -> None:
            for outcome in self.driver.delete(volumes):
                outcome.unwrap()

        return timed(work) / len(volumes)

    def lvcreate(self, *options: str) -> list[float]:
        """Make some snapshots one by one and leave them; returns the seconds of each."""
        argv = ["lvcreate", "-q", "-s", *options, self.template]
        return [timed_run([*argv, "-n", f"sample{n}"]) for n in range(SAMPLE)]

    def lvremove(self) -> list[float]:
        """Remove those snapshots one by one; returns the seconds of each."""
        return [timed_run(["lvremove", "-q", "-f", f"{self.vg}/sample{n}"]) for n in range(SAMPLE)]

    def raw(self) -> tuple[float, float]:
        """Create and delete snapshots by bare messages to the kernel; seconds for each."""
        device = device_name(self.vg, self.pool, "tpool")
        ids = range(FIRST_RAW, FIRST_RAW + RAW)
        source = Lvm(self.vg, LocalRunner()).read().thin["template.bench"].device_id
        made = timed(lambda: self._send(device, (f"create_snap {i} {source}" for i in ids)))
        gone = timed(lambda: self._send(device, (f"delete {i}" for i in ids)))
        return made / RAW, gone / RAW

    def _send(self, device: str, messages: Iterable[str]) -> None:
        for message in messages:
            self.mapper.message(device, message)

    def close(self) -> None:
        for outcome in self.driver.delete(self.driver.volumes()):
            outcome.unwrap()
        self.driver.delete_origin("bench")


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def run(argv: list[str]) -> None:
    subprocess.run(argv, check=True, timeout=600, stdin=subprocess.DEVNULL, capture_output=True)


def timed_run(argv: list[str]) -> float:
    return timed(lambda: run(argv))


def measure(bench: Bench, count: int) -> list[Row]:
    """Return what clones and deletes cost at ``count`` volumes."""
    say(f"{count}: loops at 0")
    plain = bench.lvcreate("-kn", "-ay")
    removed = bench.lvremove()
    tuned = bench.lvcreate("-ky", "-an", "--noudevsync", "-An")
    bench.lvremove()
    say(f"{count}: lvcreate {shown(*plain)}, {shown(*tuned)}, lvremove {shown(*removed)}")
    batched = bench.clone(count, bench.driver.clone_lane.batch)
    bench.delete()
    made, gone = bench.raw()  # close to what it is compared with: other guests load a machine
    whole = bench.clone(count, count)
    say(f"{count}: transaction {shown(whole)}, messages {shown(made)}")
    # LVM writes the metadata of all volumes: a snapshot is compared with a clone beside as many.
    beside = bench.clone(count, count, "beside")
    gone_beside = bench.delete("beside")
    taken, back, dropped = bench.snapshots(count)
    say(f"{count}: snapshots {shown(taken)}, reverts {shown(back)}, removals {shown(dropped)}")
    reset = bench.reset(count, bench.driver.reset)
    stepwise = bench.reset(count, functools.partial(StorageDriver.reset, bench.driver))
    run(["vgck", bench.vg])
    say(f"{count}: reset {shown(reset)}, {shown(stepwise)}; loops at {count}")
    plain += bench.lvcreate("-kn", "-ay")
    removed += bench.lvremove()
    tuned += bench.lvcreate("-ky", "-an", "--noudevsync", "-An")
    bench.lvremove()
    deleted = bench.delete()
    run(["vgck", bench.vg])
    sampled = f"{SAMPLE} at 0, {SAMPLE} at {count}"
    return [
        row("clone", count, "one transaction", whole, whole),
        row("clone", count, f"transactions of {bench.driver.clone_lane.batch}", batched, whole),
        row("clone", count, "loop of lvcreate -s", statistics.mean(plain), whole, sampled),
        row("clone", count, "the same, -an -An, no udev", statistics.mean(tuned), whole, sampled),
        row("clone", count, "bare create_snap messages", made, whole, f"{RAW}, no volumes of LVM"),
        row("clone", count, f"one transaction, beside {count} others", beside, whole),
        row("snapshot", count, "one transaction", taken, beside, "times: to a clone beside others"),
        row("revert", count, "one transaction", back, reset, "times: to a reset"),
        row(
            "delete a snapshot",
            count,
            "one transaction",
            dropped,
            gone_beside,
            "times: to a clone beside others",
        ),
        row("reset", count, "one transaction", reset, reset),
        row("reset", count, "delete, then clone", stepwise, reset),
        row("delete", count, "one transaction", deleted, deleted),
        row("delete", count, "loop of lvremove", statistics.mean(removed), deleted, sampled),
        row("delete", count, "bare delete messages", gone, deleted, f"{RAW}, no volumes of LVM"),
    ]


def row(work: str, volumes: int, way: str, seconds: float, reference: float, note: str = "") -> Row:
    return Row(
        work=work,
        volumes=volumes,
        way=way,
        ms_each=round(seconds * 1000, 3),
        ratio=round(seconds / reference, 2),
        note=note,
    )


def shown(*seconds: float) -> str:
    return f"{1000 * statistics.mean(seconds):.2f} ms"


def say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def show(rows: Sequence[Row]) -> None:
    """Print rows as a table that Markdown reads too."""
    print("| work | volumes | way | ms each | times | |\n|---|--:|---|--:|--:|---|")
    for each in rows:
        cells = (each.work, each.volumes, each.way, f"{each.ms_each:.2f}", each.ratio, each.note)
        print(f"| {' | '.join(map(str, cells))} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("counts", type=int, nargs="*", default=[100, 1000], metavar="N")
    parser.add_argument("--vg", default="vg")
    parser.add_argument("--pool", default="pool")
    parser.add_argument("--json", type=Path, help="write the results there too (- for here)")
    options = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options.vg, options.pool, Path(folder))
        try:
            for count in options.counts:
                rows += measure(bench, count)
        finally:
            bench.close()
    show(rows)
    if options.json is not None:
        found = {"machine": platform.platform(), "rows": [attrs.asdict(each) for each in rows]}
        text = json.dumps(found, indent=2) + "\n"
        if str(options.json) == "-":
            sys.stdout.write(text)
        else:
            options.json.write_text(text)


if __name__ == "__main__":
    main()
