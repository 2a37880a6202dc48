"""Check what a pool of files needs of its host."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from vmcloner_core.model import Check, Status
from vmcloner_core.os_errors import translate
from vmcloner_core.process import CommandRunner
from vmcloner_files.features import Features, examine, existing, file_system, has_attributes

QEMU_IMG_FIX = "apt-get install qemu-utils"


def examine_pool(backend: str, folder: Path, wanted: str, runner: CommandRunner) -> Iterator[Check]:
    """Yield the checks of the pool in ``folder``. Leaves nothing behind, not even the folder.

    :param wanted: the setting ``clone``.
    """

    def check(name: str, status: Status, detail: str = "", fix: str = "") -> Check:
        return Check(backend=backend, name=name, status=status, detail=detail, fix=fix)

    place = next(existing(folder))
    try:
        features = examine(place)
    except OSError as error:
        reason = translate(error, place).message
        yield check("pool", Status.FAILED, reason, f"make {folder} writable, or set another path")
    else:
        made = "" if place == folder else ", will be made when it is needed"
        yield check("pool", Status.OK, f"{folder}{made}")
        yield check("cloning", *_cloning(features, wanted, file_system(place)))
        kept = "in extended attributes" if has_attributes(place) else "in sidecar files"
        yield check("labels", Status.OK, kept)
    yield check("access", *_access(place))
    if runner.which("qemu-img"):
        yield check("qemu-img", Status.OK)
    else:
        yield check("qemu-img", Status.FAILED, "needed to import qcow2 images", QEMU_IMG_FIX)


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


def _access(place: Path) -> tuple[Status, str, str]:
    """Check that QEMU can enter the pool: under root, libvirt runs it as another user."""
    if os.geteuid() != 0:
        return Status.OK, "QEMU runs as this user", ""
    for folder in (place, *place.parents):
        if not folder.stat().st_mode & stat.S_IXOTH:
            return (
                Status.WARNING,
                f"other users cannot enter {folder}, and libvirt runs QEMU as one",
                f"chmod o+x {folder}",
            )
    return Status.OK, "QEMU's user can enter the pool", ""
