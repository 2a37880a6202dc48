"""The size of domains: memory and processors in their definition and live, disks live."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vmcloner_core.drivers import ResizeInterface
from vmcloner_core.errors import NotFound
from vmcloner_core.model import Outcome, Volume
from vmcloner_libvirt import operations
from vmcloner_libvirt.binding import libvirt
from vmcloner_libvirt.connection import Connections
from vmcloner_libvirt.errors import is_disconnect
from vmcloner_libvirt.metadata import parse, path_of

Member = Callable[[str, Callable[[Any], Outcome[bool]]], Outcome[bool]]


class Sizes(ResizeInterface):
    """The sizes of one hypervisor's domains. Thread-safe.

    :param member: runs an operation on one domain, and returns its error as an outcome.
    """

    def __init__(self, connections: Connections, member: Member) -> None:
        self._connections = connections
        self._member = member

    def resize(
        self, names: Sequence[str], memory: int | None, vcpus: int | None
    ) -> Iterator[Outcome[bool]]:
        """See :meth:`ResizeInterface.resize`."""
        for name in names:
            change = functools.partial(_resize, name=name, memory=memory, vcpus=vcpus)
            yield self._member(name, change)

    def grow_disk(self, name: str, volume: Volume, size: int) -> None:
        """See :meth:`ResizeInterface.grow_disk`."""
        self._connections.call(
            lambda connection: _grow(connection, name, volume.path, size), about=name
        )


def _resize(connection: Any, name: str, memory: int | None, vcpus: int | None) -> Outcome[bool]:
    module = libvirt()
    domain = operations.ours(connection, name)
    root = parse(domain.XMLDesc(module.VIR_DOMAIN_XML_INACTIVE))
    changed = False
    parts = (
        (memory and memory // 1024, "memory", domain.setMemoryFlags, module.VIR_DOMAIN_MEM_MAXIMUM),
        (vcpus, "vcpu", domain.setVcpusFlags, module.VIR_DOMAIN_VCPU_MAXIMUM),
    )
    done = True
    for wanted, tag, change, maximum in parts:
        if wanted is None:
            continue
        before = int(root.findtext(tag) or 0)
        if before != wanted:
            # The maximum is never below what the domain has.
            flags = [maximum, 0] if wanted > before else [0, maximum]
            for flag in flags:
                change(wanted, flag | module.VIR_DOMAIN_AFFECT_CONFIG)
            changed = True
        if domain.isActive():
            done = _live(domain, wanted, tag, change) and done
        elif domain.hasManagedSaveImage() == 1 and before != wanted:
            done = False  # its memory continues as it was
    return Outcome(key=name, value=done, changed=changed)


def _live(domain: Any, wanted: int, tag: str, change: Callable[[int, int], int]) -> bool:
    """Change a running domain as far as its limits allow; tell whether it has it now."""
    module = libvirt()
    root = parse(domain.XMLDesc(0))
    here = root.find("currentMemory" if tag == "memory" else "vcpu")
    now = int(here.get("current", here.text) if here is not None else 0)
    if now == wanted:
        return True
    if wanted > int(root.findtext(tag) or 0):
        return False
    if tag == "memory" and root.find("devices/memballoon[@model='none']") is not None:
        return False  # nothing in the guest would give it back
    try:
        change(wanted, module.VIR_DOMAIN_AFFECT_LIVE)
    except module.libvirtError as error:
        if is_disconnect(error):
            raise
        return False
    return True


def _grow(connection: Any, name: str, path: Path, size: int) -> bool:
    module = libvirt()
    domain = operations.ours(connection, name)
    for disk in parse(domain.XMLDesc(0)).iterfind("devices/disk"):
        target = disk.find("target")
        if target is None or path_of(disk.find("source")) != path:
            continue
        if domain.blockInfo(target.get("dev"))[0] < size:
            domain.blockResize(target.get("dev"), size, module.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
            return True
        return False
    raise NotFound(f"{name}: {path} isn't one of its disks now", hint=f"virsh domblklist {name}")
