"""Make a domain as it was defined: without what belongs to disks that are replaced."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lxml import etree

from vmcloner_core.errors import HostCommandError, WrongState
from vmcloner_core.model import Volume
from vmcloner_libvirt import firmware, memory, operations
from vmcloner_libvirt.binding import libvirt
from vmcloner_libvirt.disk_sources import source_of
from vmcloner_libvirt.metadata import parse, path_of


def renew(
    connection: Any, name: str, disks: Mapping[Path, Volume], is_own: Callable[[Path], bool]
) -> bool:
    """Remove what a domain that is off keeps of its old disks; tell whether there was anything.

    Each part is removed by itself: after a crash at any moment, the same call does the rest.

    :param disks: the volumes that are to be its disks again, by the files that these use now.
    :param is_own: tells whether a file with firmware variables is the clone's own.
    """
    domain = operations.find(connection, name)
    if domain is None:
        return False
    if domain.isActive():
        raise WrongState(f"{name}: still running", hint=f"vmcloner stop {name}")
    changed = memory.discard(connection, name)
    for kept in _descriptions(domain):
        with operations.tolerate("VIR_ERR_NO_DOMAIN_SNAPSHOT", "VIR_ERR_NO_DOMAIN_CHECKPOINT"):
            kept()
            changed = True
    root = parse(operations.definition(domain))
    if _switch(root, disks):
        connection.defineXML(etree.tostring(root, encoding="unicode"))
        changed = True
    uri = connection.getURI()
    for variables in filter(is_own, firmware.variables(root, uri)):
        changed = removed(name, variables) or changed
    tpm = firmware.tpm(str(root.findtext("uuid")), uri)
    if tpm is not None and root.find("devices/tpm/backend[@type='emulator']") is not None:
        changed = removed(name, tpm) or changed
    return changed


def _descriptions(domain: Any) -> Iterator[Callable[[], object]]:
    """Yield what removes each of a domain's snapshots and checkpoints from libvirt's memory."""
    module = libvirt()
    with operations.tolerate("VIR_ERR_NO_SUPPORT"):
        only = module.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY
        for snapshot in domain.listAllSnapshots():
            yield functools.partial(snapshot.delete, only)
    with operations.tolerate("VIR_ERR_NO_SUPPORT"):
        only = module.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY
        for checkpoint in domain.listAllCheckpoints():
            yield functools.partial(checkpoint.delete, only)


def _switch(root: Any, disks: Mapping[Path, Volume]) -> bool:
    """Put volumes into a definition in place of other files; tell whether there was one."""
    changed = False
    for disk in root.iterfind("devices/disk"):
        source, driver = disk.find("source"), disk.find("driver")
        path = path_of(source)
        volume = None if path is None else disks.get(path)
        if volume is None or driver is None:
            continue
        disk.set("type", volume.kind)
        for below in disk.findall("backingStore"):
            disk.remove(below)
        driver.set("type", volume.format)
        new = source_of(volume)
        disk.replace(source, new)
        _add_backing(new, volume)
        changed = True
    return changed


def _add_backing(source: Any, volume: Volume) -> None:
    """Name what is below a volume, and end there, as its first definition did."""
    if volume.backing is None:
        return
    below = etree.Element("backingStore", type="file")
    etree.SubElement(below, "format", type="raw")
    etree.SubElement(below, "source", file=str(volume.backing))
    etree.SubElement(below, "backingStore")
    source.addnext(below)


def removed(name: str, path: Path) -> bool:
    """Remove a file or folder of a clone's; tell whether it was there."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise HostCommandError(
            f"{name}: can't remove {path}: {error.strerror}", hint="run as root (sudo)"
        ) from error
    return True
