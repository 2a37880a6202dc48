"""Check what a pool of files needs of its host."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import attrs

from vmcloner_core.errors import VmclonerError
from vmcloner_core.model import Check, Status
from vmcloner_core.os_errors import translate
from vmcloner_core.process import CommandRunner
from vmcloner_files.features import Features, examine, existing, has_attributes
from vmcloner_files.pool import Pool
from vmcloner_files.sharing import mount_of

QEMU_IMG_FIX = "apt-get install qemu-utils"


def examine_pool(backend: str, pool: Pool, wanted: str, runner: CommandRunner) -> Iterator[Check]:
    """Yield the checks of a pool. Leaves nothing behind, not even its folder.

    :param wanted: the setting ``clone``.
    """

    def check(name: str, status: Status, detail: str = "", fix: str = "") -> Check:
        return Check(backend=backend, name=name, status=status, detail=detail, fix=fix)

    folder = pool.folder
    place = next(existing(folder))
    mount = mount_of(place)
    kind = mount.kind if mount is not None else "unknown"
    try:
        features = examine(place)
    except OSError as error:
        why = translate(error, place)
        own = f"make {folder} writable, or set another path"
        fix = why.hint if os.geteuid() == 0 and why.hint else own
        yield check("pool", Status.FAILED, why.message, fix)
    else:
        made = "" if place == folder else ", will be made when it is needed"
        yield check("pool", Status.OK, f"{folder}{made}")
        yield check("cloning", *_cloning(features, wanted, kind))
        both = has_attributes(place) and not pool.shared
        kept = ", and in extended attributes" if both else ""
        yield check("labels", Status.OK, f"in {folder}/.labels{kept}")
    if pool.shared:
        yield check("sharing", *_sharing(pool, kind))
    yield check("identity", *_identity(pool))
    yield check("ownership", *_ownership(pool))
    yield check("access", *_access(place))
    if runner.which("qemu-img"):
        yield check("qemu-img", Status.OK)
    else:
        failed = check("qemu-img", Status.FAILED, "needed to import qcow2 images", QEMU_IMG_FIX)
        yield attrs.evolve(failed, setup=True)


def _cloning(features: Features, wanted: str, kind: str) -> tuple[Status, str, str]:
    if wanted == "copy":
        return Status.OK, "full copies (as set)", ""
    if features.reflink and wanted != "overlay":
        return Status.OK, f"reflinks on {kind}", ""
    if wanted == "reflink":
        return (
            Status.FAILED,
            f"clone = 'reflink', but {kind} does not support reflinks",
            "set clone = 'auto', or put the pool on XFS or btrfs",
        )
    why = "as set" if wanted == "overlay" else f"{kind} does not support reflinks"
    return Status.OK, f"qcow2 overlays on {kind} ({why})", ""


def _ownership(pool: Pool) -> tuple[Status, str, str]:
    """Check that no other user could have written the pool or a file in it."""
    try:
        pool.check_all()
    except VmclonerError as error:
        return Status.FAILED, error.message, error.hint or ""
    return Status.OK, "no other user can write the pool", ""


def _access(place: Path) -> tuple[Status, str, str]:
    """Check that QEMU can enter the pool: all libvirtds but a user's own run it as another user."""
    for folder in (place, *place.parents):
        if not folder.stat().st_mode & stat.S_IXOTH:
            own = "" if os.geteuid() == 0 else " (except in qemu:///session)"
            return (
                Status.WARNING,
                f"other users cannot enter {folder}, and libvirt runs QEMU as one{own}",
                f"chmod o+x {folder}",
            )
    return Status.OK, "QEMU's user can enter the pool", ""


def _sharing(pool: Pool, kind: str) -> tuple[Status, str, str]:
    """Check that the locks of a pool that several hosts use hold between them."""
    try:
        pool.check_sharing()
    except VmclonerError as error:
        return Status.FAILED, error.message, error.hint or ""
    return Status.OK, f"several hosts may use it: {kind}", ""


def _identity(pool: Pool) -> tuple[Status, str, str]:
    """Check that it is the pool that was used before."""
    try:
        pool.check_identity()
    except VmclonerError as error:
        return Status.FAILED, error.message, error.hint or ""
    if not pool.folder.exists():
        return Status.OK, "none yet: the pool gets an id when it is made", ""
    return Status.OK, "no other pool than before", ""
