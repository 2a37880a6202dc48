"""Prepare a host for ``lvm-thin``: make a physical volume, a volume group, and a thin pool.

A plan is made first, as a list of commands; then they are run. Existing parts are not changed, and
a device that holds data is never touched.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs

from vmcloner_core.errors import (
    BackendError,
    Conflict,
    HostCommandError,
    InvalidRequest,
    NotEnoughResources,
    NotFound,
)
from vmcloner_core.process import CommandRunner
from vmcloner_core.units import format_size
from vmcloner_lvm.commands import Lvm
from vmcloner_lvm.settings import check_name

MIB = 1024**2
GIB = 1024**3
AREA = 64 * MIB
"""Bytes of a metadata area: two texts of 10,000 volumes, and to spare."""
POOL_METADATA = 128 * MIB
"""Bytes: 10,000 clones that begin to be written to; a pool can be given more later."""
CHUNK = 64 * 1024
"""Bytes: what a clone's first write into a part of its disk copies."""
MIN_POOL = 256 * MIB
MIN_DEVICE = 2 * GIB
PROFILE = "vmcloner-thin"
PROFILES = Path("/etc/lvm/profile")
GROWTH = """\
# Written by vmcloner: a thin pool grows by a fifth when it is 80 % full (lvmthin(7)).
activation {
\tthin_pool_autoextend_threshold = 80
\tthin_pool_autoextend_percent = 20
}
"""
_TOOLS = {"lsblk": "util-linux", "wipefs": "util-linux", "vgs": "lvm2", "lvcreate": "lvm2",
          "thin_check": "thin-provisioning-tools"}  # fmt: skip


@attrs.frozen(kw_only=True)
class Ground:
    """The wanted pool. Sizes in bytes; ``size`` None for the free space minus a reserve.

    :param device: an empty disk or partition; None if the group exists.
    """

    vg: str
    thinpool: str
    device: Path | None = None
    size: int | None = None
    area: int = AREA

    def __attrs_post_init__(self) -> None:
        check_name(self.vg, "volume group")
        check_name(self.thinpool, "thin pool")
        if self.size is not None and self.size < MIN_POOL:
            raise InvalidRequest(
                f"a thin pool of {format_size(self.size)} is too small",
                hint=f"--size at least {format_size(MIN_POOL)}",
            )
        if not MIB <= self.area <= GIB:
            raise InvalidRequest(
                f"a metadata area of {format_size(self.area)} is not possible",
                hint="--metadatasize 1M to 1G",
            )


@attrs.frozen(kw_only=True)
class Task:
    """A step and its command; ``done`` if nothing is left to do."""

    what: str
    argv: tuple[str, ...]
    done: bool = False
    input: bytes = attrs.field(default=b"", repr=False)


def plan(ground: Ground, runner: CommandRunner) -> tuple[Task, ...]:
    """Return the steps in order; changes nothing.

    :raises Conflict: the device holds data, or a name is taken.
    :raises NotFound: the device does not exist, or neither a device is given nor the group exists.
    """
    _check_host(runner)
    lvm = Lvm(ground.vg, runner)
    groups = [row["vg_name"] for row in lvm.report("vgs", "vg_name")]
    exists = ground.vg in groups
    tasks = []
    if ground.device is not None:
        tasks += _device_tasks(ground, ground.device, lvm, exists=exists)
    elif not exists:
        raise NotFound(
            f"no volume group {ground.vg}",
            hint="give an empty disk for it: --device /dev/…",
        )
    return (*tasks, *_pool_tasks(ground, lvm, exists=exists))


def carry_out(tasks: Sequence[Task], runner: CommandRunner) -> None:
    """Run the commands of the steps that are not done."""
    for task in tasks:
        if not task.done:
            runner.run(
                task.argv, timeout=600, input=task.input, env={"LVM_SUPPRESS_FD_WARNINGS": "1"}
            )


def _check_host(runner: CommandRunner) -> None:
    if os.geteuid() != 0:
        raise BackendError("LVM requires root", hint="run as root")
    for tool, package in _TOOLS.items():
        if runner.which(tool) is None:
            raise BackendError(f"{tool} is not installed", hint=f"apt-get install {package}")


def _device_tasks(ground: Ground, device: Path, lvm: Lvm, *, exists: bool) -> list[Task]:
    found = _physical(device, lvm)
    owner = found["vg_name"] if found else None
    made = owner == ground.vg and exists
    if not made:
        check_empty(device, lvm.runner, owner)
        if found:
            _check_area(ground, device, int(found["pv_mda_size"]))
    joined = ("vgextend" if exists else "vgcreate", "-y", ground.vg, str(device))
    area = f"{ground.area}b"
    copies = ("pvcreate", "-y", "--metadatasize", area, "--dataalignment", "1m", str(device))
    return [
        Task(what=f"physical volume on {device}", argv=copies, done=made or owner == ""),
        Task(what=f"volume group {ground.vg}", argv=joined, done=made),
    ]


def _physical(device: Path, lvm: Lvm) -> dict[str, Any] | None:
    """Return LVM's report of a physical volume, None if the device is none.

    ``vg_name`` is "" if it is in no volume group.
    """
    real = _real(device)
    rows = lvm.report("pvs", "pv_name,vg_name,pv_mda_size")
    return next((row for row in rows if _real(Path(row["pv_name"])) == real), None)


def _check_area(ground: Ground, device: Path, area: int) -> None:
    """Check that the metadata area of an existing physical volume is large enough.

    :raises Conflict: it is smaller, and cannot be enlarged.
    """
    if area + MIB < ground.area:  # LVM rounds it to the start of the data
        raise Conflict(
            f"{device} is a physical volume with a metadata area of {format_size(area)}, not "
            f"{format_size(ground.area)}",
            hint=f"if it is not needed: pvremove {device}; or accept it: --metadatasize 1MiB",
        )


def check_empty(device: Path, runner: CommandRunner, owner: str | None = None) -> None:
    """Check that a block device is empty: no signature, partition, holder or mount.

    :param owner: its volume group; "" for a physical volume without one, left by an earlier run.
    :raises Conflict: it is not empty; says what it holds.
    """
    try:
        if not stat.S_ISBLK(device.stat().st_mode):
            raise InvalidRequest(f"{device} is not a block device")
    except OSError as error:
        raise NotFound(f"no device {device}: {error.strerror}", hint="lsblk") from error
    if owner:
        raise Conflict(f"{device} belongs to volume group {owner}", hint="give another device")
    fields = "NAME,TYPE,FSTYPE,MOUNTPOINTS,RO,SIZE"
    [disk] = _json(runner, "lsblk", "--json", "--bytes", "-o", fields, str(device))["blockdevices"]
    held = [child["name"] for child in disk.get("children", [])]
    mounts = [place for place in disk.get("mountpoints") or [] if place]
    if held or mounts:
        raise Conflict(f"{device} is in use: {', '.join(held + mounts)}", hint="lsblk")
    if disk["ro"]:
        raise Conflict(f"{device} is read-only", hint="blockdev --getro")
    if int(disk["size"]) < MIN_DEVICE:
        raise NotEnoughResources(
            f"{device} has {format_size(int(disk['size']))}, too little for a pool",
            hint=f"give one of at least {format_size(MIN_DEVICE)}",
        )
    if owner == "":
        return
    marks = _json(runner, "wipefs", "--json", "--no-act", str(device)).get("signatures") or []
    if marks:
        kinds = ", ".join(sorted({str(mark["type"]) for mark in marks}))
        raise Conflict(
            f"{device} is not empty: {kinds}",
            hint=f"if it is not needed: wipefs --all {device}",
        )
    _check_unopened(device)


def _check_unopened(device: Path) -> None:
    """Check that nothing has claimed a block device: O_EXCL fails then (open(2))."""
    try:
        os.close(os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        raise Conflict(f"{device} is in use: {error.strerror}", hint="lsblk") from error


def _pool_tasks(ground: Ground, lvm: Lvm, *, exists: bool) -> list[Task]:
    full = f"{ground.vg}/{ground.thinpool}"
    found = _pool(ground, lvm) if exists else {}
    if found and found["segtype"] != "thin-pool":
        raise Conflict(f"{full} exists and is not a thin pool", hint="choose another --thinpool")
    path = PROFILES / f"{PROFILE}.profile"
    tasks = [
        Task(what=f"thin pool {full}", argv=_lvcreate(ground), done=bool(found)),
        Task(
            what=f"profile {PROFILE}: extend a pool before it is full",
            argv=("tee", str(path)),
            done=path.exists(),
            input=GROWTH.encode(),
        ),
        Task(
            what=f"profile of {full}",
            argv=("lvchange", "-y", "--metadataprofile", PROFILE, full),
            done=found.get("lv_profile") == PROFILE,
        ),
    ]
    if lvm.runner.which("dmeventd") is not None:
        monitor = ("lvchange", "--monitor", "y", full)
        done = found.get("seg_monitor") == "monitored"
        tasks.append(Task(what=f"monitoring of {full}", argv=monitor, done=done))
    return tasks


def _pool(ground: Ground, lvm: Lvm) -> dict[str, Any]:
    fields = "lv_name,segtype,lv_profile,seg_monitor"
    rows = lvm.report("lvs", fields, "--select", f"lv_name={ground.thinpool}", ground.vg)
    return rows[0] if rows else {}


def _lvcreate(ground: Ground) -> tuple[str, ...]:
    # A fifth of the group stays free, for the pool's growth and its repair.
    size = ("-l", "80%FREE") if ground.size is None else ("-L", f"{ground.size}b")
    return (
        "lvcreate", "-y", "--type", "thin-pool", *size, "-n", ground.thinpool,
        "--poolmetadatasize", f"{POOL_METADATA}b", "--chunksize", f"{CHUNK}b",
        "--discards", "passdown", "-Zy", ground.vg,
    )  # fmt: skip


def _real(path: Path) -> str:
    return os.path.realpath(path)


def _json(runner: CommandRunner, *argv: str) -> dict[str, Any]:
    output = runner.run(argv).stdout
    try:
        answer: dict[str, Any] = json.loads(output or b"{}")
    except (ValueError, RecursionError) as error:
        raise HostCommandError(f"{argv[0]}: cannot parse its output") from error
    return answer
