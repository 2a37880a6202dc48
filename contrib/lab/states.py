"""Booted hosts, saved: what every use of the lab starts from."""

from __future__ import annotations

import time
from pathlib import Path

import attrs

from contrib.lab import cache, machine
from contrib.lab.channel import Channel
from contrib.lab.image import HERE, Image
from contrib.lab.machine import DISKS, Machine, Mode, Start
from contrib.lab.proc import need, run, say

BOOTS_WITHIN = 900.0
"""Seconds; a minute where nothing else runs."""


@attrs.frozen
class State:
    """A saved host: its disks, never written to, and its memory."""

    folder: Path

    @property
    def memory(self) -> Path:
        """What a machine resumes from."""
        return self.folder / "memory"

    def disks(self) -> dict[str, Path]:
        """Return the disks by name."""
        return {name: self.folder / f"{name}.qcow2" for name in DISKS}


def state(mode: Mode, image: Image) -> State:
    """Return the saved host of a mode; booted and provisioned if it isn't in the cache."""
    need(machine.QEMU, "qemu-img", "ssh", "timeout", "setpriv")
    own = [HERE / name for name in ("machine.py", "states.py", "make-pool", "provision")]
    key = cache.digest(
        cache.digest_files(own, HERE),
        image.folder.name,
        machine.version(),
        *machine.hardware(mode),
    )
    return State(cache.entry(f"state-{mode.name}", key, lambda folder: _save(mode, image, folder)))


def _save(mode: Mode, image: Image, folder: Path) -> None:
    say(f"booting the {mode.name} host, to save its state (about 2 min, once)")
    machine.make_overlays(folder, {"root": image.disk})
    supplies = folder / "supplies.raw"
    supplies.touch()
    run(["truncate", "-s", "512M", supplies])  # stands in for the real ones
    begun = time.monotonic()
    start = Start(mode=mode, image=image, folder=folder, supplies=supplies, seconds=3600)
    with Machine(start) as host:
        host.wait_for_console("LAB-READY", BOOTS_WITHIN)
        say(f"booted in {time.monotonic() - begun:.0f} s")
        channel = Channel(image, folder, host.port)
        for script, argument in (("make-pool", "/dev/vdb"), ("provision", mode.name)):
            channel.call(f"sh -s {argument}", (HERE / script).read_bytes(), timeout=BOOTS_WITHIN)
        channel.close()
        host.save(folder / "memory")
    supplies.unlink()
