"""What the domains of a host use of its files and devices: ours, foreign and renamed ones."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from vmcloner_core.errors import VmclonerError
from vmcloner_core.model import DiskFile, DomainUse
from vmcloner_libvirt.binding import libvirt
from vmcloner_libvirt.metadata import RBD, parse, path_of
from vmcloner_libvirt.operations import tolerate

_STATUS = Path("/run/libvirt/qemu")


def uses(connection: Any, names: Collection[str]) -> Iterator[DomainUse]:
    """Yield what each domain uses, now and by its definition.

    :param names: our domains for which snapshots and block jobs are wanted.
    """
    module = libvirt()
    flag = module.VIR_CONNECT_LIST_DOMAINS_HAS_SNAPSHOT
    with_snapshots = {domain.UUIDString() for domain in connection.listAllDomains(flag)}
    for domain in connection.listAllDomains():
        with tolerate("VIR_ERR_NO_DOMAIN"):
            ours = domain.name() in names
            there = ours and domain.UUIDString() in with_snapshots
            yield _use(domain, ours=ours, snapshots=_snapshots(domain) if there else ())


def _use(domain: Any, *, ours: bool, snapshots: tuple[Path, ...]) -> DomainUse:
    module = libvirt()
    roots = [parse(domain.XMLDesc(0))]
    active = domain.isActive()
    if active and domain.isPersistent():
        roots.append(parse(domain.XMLDesc(module.VIR_DOMAIN_XML_INACTIVE)))
    connection = domain.connect()
    disks: dict[DiskFile, None] = {}
    files: dict[DiskFile, None] = {}
    for root in roots:
        for disk in root.iterfind("devices/disk"):
            top = _source(connection, disk, disk.find("driver"))
            writable = disk.get("device", "disk") == "disk" and disk.find("readonly") is None
            if top is not None and writable:
                disks[top] = None
            files |= dict.fromkeys(_below(connection, disk))
        files |= dict.fromkeys(_devices(root))
    return DomainUse(
        name=domain.name(),
        uuid=uuid.UUID(domain.UUIDString()),
        disks=tuple(disks),
        files=tuple(disks | files),
        snapshots=snapshots,
        job=_job(domain.name(), roots[0]) if ours and active else "",
    )


def _source(connection: Any, element: Any, form: Any) -> DiskFile | None:
    """Return the file or device of a disk, of a layer below it or of a copy that is being made.

    :param form: the child that has its format in the attribute ``type``.
    """
    source = element.find("source")
    if source is None:
        return None
    path = path_of(source)
    if path is None and source.get("pool") and source.get("volume"):
        path = _in_pool(connection, source.get("pool"), source.get("volume"))
    kind = form.get("type", "") if form is not None else ""
    return DiskFile(path=path, format=kind) if path is not None else None


def _in_pool(connection: Any, pool: str, volume: str) -> Path | None:
    with tolerate("VIR_ERR_NO_STORAGE_POOL", "VIR_ERR_NO_STORAGE_VOL", "VIR_ERR_OPERATION_INVALID"):
        found = connection.storagePoolLookupByName(pool).storageVolLookupByName(volume)
        return RBD / str(found.path())  # in a pool of RBD it is POOL/IMAGE, in others absolute
    return None


def _below(connection: Any, disk: Any) -> Iterator[DiskFile]:
    """Yield the source of a disk, the layers below it, and the copies that jobs make of it."""
    for element in (disk, *disk.iter("backingStore", "mirror")):
        form = element.find("driver" if element is disk else "format")
        found = _source(connection, element, form)
        if found is not None:
            yield found


def _devices(root: Any) -> Iterator[DiskFile]:
    """Yield other devices' files: block devices that are handed through, persistent memory."""
    for place in ("devices/hostdev/source/block", "devices/memory/source/path"):
        for element in root.iterfind(place):
            if element.text:
                yield DiskFile(path=Path(element.text))


def _snapshots(domain: Any) -> tuple[Path, ...]:
    """Return the files that the descriptions of a domain's external snapshots name."""
    found = []
    for snapshot in domain.listAllSnapshots():
        with tolerate("VIR_ERR_NO_DOMAIN_SNAPSHOT"):
            root = parse(snapshot.getXMLDesc())
            memory = root.find("memory")
            places = [path_of(memory), *map(path_of, root.iterfind("disks/disk/source"))]
            found += [place for place in places if place is not None]
    return tuple(found)


def _job(name: str, root: Any) -> str:
    """Return the block job on one of a running domain's disks, "" if none is known.

    Without a question to QEMU's monitor, which might hang: the definition tells of copies and of
    commits that wait to be ended; of the others, the file in which libvirtd keeps its state.
    """
    for disk in root.iterfind("devices/disk"):
        mirror, target = disk.find("mirror"), disk.find("target")
        if mirror is not None and target is not None:
            return f"{mirror.get('job', 'copy')} of {target.get('dev', '')}"
    with contextlib.suppress(OSError, VmclonerError):
        status = parse((_STATUS / f"{name}.xml").read_text(encoding="utf-8"))
        for job in status.iterfind("blockjobs/blockjob"):
            disk = job.find("disk")
            on = f" of {disk.get('dst')}" if disk is not None else ""
            return f"{job.get('type', 'job')}{on}"
    return ""
