"""Check what a pool in Ceph needs of its host."""

from __future__ import annotations

from collections.abc import Iterator

from vmcloner_core.errors import VmclonerError
from vmcloner_core.model import Check, Status
from vmcloner_core.process import CommandRunner
from vmcloner_core.units import format_size
from vmcloner_rbd.cluster import Cluster
from vmcloner_rbd.library import library

WARNING = 80
"""Per cent in use above which there is a warning."""


def examine_pool(backend: str, cluster: Cluster, runner: CommandRunner) -> Iterator[Check]:
    """Yield the checks of a pool. Changes nothing in it."""

    def check(name: str, status: Status, detail: str = "", fix: str = "") -> Check:
        return Check(backend=backend, name=name, status=status, detail=detail, fix=fix)

    try:
        library()
    except VmclonerError as error:
        yield check("librbd", Status.FAILED, error.message, error.hint or "")
        return
    if runner.which("qemu-img") is None:
        yield check("qemu-img", Status.FAILED, "not installed", "apt-get install qemu-utils")
    elif not _has_rbd(runner):
        fix = "apt-get install qemu-block-extra"
        yield check("qemu", Status.FAILED, "QEMU has no driver for RBD", fix)
    try:
        total, free = cluster.space()
    except VmclonerError as error:
        yield check("pool", Status.FAILED, error.message, error.hint or "")
        return
    percent = 100 * (total - free) // max(1, total)
    status = Status.WARNING if percent >= WARNING else Status.OK
    fix = "delete clones, or add OSDs; ceph df" if percent >= WARNING else ""
    yield check("pool", status, f"{cluster}, {format_size(free)} free, {percent} % used", fix)


def _has_rbd(runner: CommandRunner) -> bool:
    """Tell whether QEMU's driver can be loaded; distributions have it in a package of its own."""
    try:
        runner.run(["qemu-img", "create", "-f", "rbd", "-o", "help"])
    except VmclonerError:
        return False
    return True
