"""What is done to one domain, on one connection: small, idempotent, safe to run again.

They raise libvirt's errors, which :meth:`Connections.call` translates, and ours. A domain without
our labels is never changed: its name is a Conflict.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from typing import Any

from vmcloner_core.errors import Conflict, NotFound, WrongState
from vmcloner_core.model import (
    BootConfig,
    Domain,
    DomainInventory,
    DomainSpec,
    HostResources,
    State,
)
from vmcloner_libvirt import booting
from vmcloner_libvirt.binding import libvirt
from vmcloner_libvirt.errors import is_code, is_disconnect
from vmcloner_libvirt.metadata import disks, labels_in, labels_of, macs, memory, networks_of, parse

LOCK_WAITS = 4
"""How often libvirt may say that it waited for a domain's lock in vain, 30 seconds each time."""
Records = Iterator[tuple[Any, int, int]]
"""Domains with their libvirt state and its reason."""


@contextlib.contextmanager
def tolerate(*codes: str) -> Iterator[None]:
    """Go on after libvirt's errors of these codes: somebody else did it at the same moment."""
    try:
        yield
    except libvirt().libvirtError as error:
        if not is_code(error, *codes):
            raise


def state_of(state: int, reason: int) -> State:
    """Return our state for libvirt's (``virDomainState`` and the enumeration of its reasons)."""
    module = libvirt()
    if state == module.VIR_DOMAIN_CRASHED or (
        state == module.VIR_DOMAIN_SHUTOFF and reason == module.VIR_DOMAIN_SHUTOFF_CRASHED
    ):
        return State.CRASHED
    if state == module.VIR_DOMAIN_SHUTOFF:
        return State.STOPPED
    if state in (module.VIR_DOMAIN_PAUSED, module.VIR_DOMAIN_PMSUSPENDED):
        return State.PAUSED
    return State.RUNNING


# --- reading ----------------------------------------------------------------------------------


def inventory(records: Records) -> DomainInventory:
    """Return our domains, and the names and MAC addresses of the others."""
    ours: list[Domain] = []
    names: set[str] = set()
    addresses: set[str] = set()
    for domain, state, reason in records:
        with tolerate("VIR_ERR_NO_DOMAIN"):
            root = parse(domain.XMLDesc(0))
            described = _describe(root, state_of(state, reason))
            if described is not None:
                ours.append(described)
            else:
                names.add(domain.name())
                addresses.update(macs(root))
    return DomainInventory(
        domains=tuple(ours), foreign_names=frozenset(names), foreign_macs=frozenset(addresses)
    )


def resources(connection: Any) -> HostResources:
    """Return the host's memory and processors.

    A driver that can't tell what is free (libvirt's test driver) has all of it free.
    """
    module = libvirt()
    _, megabytes, cpus, *_ = connection.getInfo()
    total = free = megabytes * 1024**2
    with tolerate("VIR_ERR_NO_SUPPORT"):
        # Kibibytes. getInfo and getFreeMemory know less: they count neither caches nor, on
        # hosts whose memory was plugged in later, all of it.
        stats = connection.getMemoryStats(module.VIR_NODE_MEMORY_STATS_ALL_CELLS)
        total = stats["total"] * 1024
        free = sum(stats.get(part, 0) for part in ("free", "buffers", "cached")) * 1024
    return HostResources(memory_total=total, memory_free=min(free, total), cpus=cpus)


# --- defining ---------------------------------------------------------------------------------


def existing(connection: Any, spec: DomainSpec) -> Domain | None:
    """Return the clone's domain where it is defined.

    :raises Conflict: the name is taken, by another clone or by what isn't ours.
    """
    domain = _lookup(connection, spec.name)
    if domain is None:
        return None
    found = _describe(parse(domain.XMLDesc(0)), state_of(*domain.state()))
    if found is None:
        raise _foreign(spec.name)
    if not found.labels.same_clone(spec.labels):
        raise Conflict(
            f"{spec.name}: exists as a clone of template {found.labels.template!r}",
            hint=f"vmcloner delete {spec.name}",
        )
    return found


def make(connection: Any, spec: DomainSpec, xml: str, *, validate: bool) -> Domain:
    """Define a domain that isn't there.

    :raises Conflict: its name was taken meanwhile, or its UUID is.
    """
    module = libvirt()
    try:
        flags = module.VIR_DOMAIN_DEFINE_VALIDATE if validate else 0
        domain = connection.defineXMLFlags(xml, flags)
        if spec.options.autostart:
            domain.setAutostart(1)
    except module.libvirtError as error:
        if is_code(error, "VIR_ERR_OPERATION_FAILED", "VIR_ERR_DOM_EXIST"):
            _check_taken(connection, spec)
        raise
    return Domain(
        name=spec.name,
        uuid=spec.uuid,
        labels=spec.labels,
        state=State.STOPPED,
        memory=spec.memory,
        macs=tuple(nic.mac for nic in spec.nics),
        networks=spec.networks,
        disks=tuple(volume.path for volume in spec.volumes),
    )


def undefine(connection: Any, name: str, flags: int) -> bool:
    """Forget a stopped domain; tell whether there was one.

    :raises WrongState: it runs.
    """
    domain = find(connection, name)
    if domain is None:
        return False
    with tolerate("VIR_ERR_NO_DOMAIN"):
        if domain.isActive():
            raise WrongState(f"{name}: is running", hint=f"vmcloner stop {name}")
        domain.undefineFlags(flags)
        return True
    return False


# --- running ----------------------------------------------------------------------------------


def start(connection: Any, name: str, boot: BootConfig | None = None) -> bool:
    """Start or resume a domain; tell whether that was needed.

    :param boot: what it boots this once; its definition stays as it is.
    """
    module = libvirt()
    domain = find(connection, name)
    if domain is None:
        raise NotFound(f"{name}: no such domain", hint="vmcloner list")
    state, reason = domain.state()
    if state_of(state, reason) is State.RUNNING:
        return False
    try:
        if state == module.VIR_DOMAIN_PAUSED:
            domain.resume()
        elif state == module.VIR_DOMAIN_PMSUSPENDED:
            domain.pMWakeup()
        elif boot is None:
            domain.create()
        else:
            # Given the name and UUID of a domain that is defined, libvirt starts it from this
            # and goes back to the definition when it stops.
            flags = module.VIR_DOMAIN_XML_INACTIVE | module.VIR_DOMAIN_XML_SECURE
            connection.createXML(booting.once(domain.XMLDesc(flags), boot))
    except module.libvirtError as error:
        refused = is_code(error, "VIR_ERR_OPERATION_INVALID")
        if refused and state_of(*domain.state()) is State.RUNNING:
            return False  # somebody else did it at the same moment
        raise
    return True


def ask(connection: Any, name: str) -> bool:
    """Ask a guest to shut down; tell whether there is one to wait for."""
    module = libvirt()
    domain = active(connection, name)
    if domain is None:
        return False
    try:
        if domain.state()[0] == module.VIR_DOMAIN_PAUSED:
            domain.resume()  # a guest that stands still doesn't hear
        domain.shutdown()
    except module.libvirtError as error:
        # One that can't be asked is destroyed when its time is over.
        if is_disconnect(error):
            raise
    return True


def destroy(connection: Any, name: str) -> bool:
    """Stop a domain at once; tell whether it ran.

    Who holds its lock may be libvirt itself, which clears away a guest that has just shut down: for
    a slow host's scripts longer than libvirt waits for the lock. That is waited for.
    """
    for waits in range(LOCK_WAITS + 1):
        domain = active(connection, name)
        if domain is None:
            return waits > 0
        try:
            with tolerate("VIR_ERR_NO_DOMAIN", "VIR_ERR_OPERATION_INVALID"):
                domain.destroy()
                return True
            return False
        except libvirt().libvirtError as error:
            if waits == LOCK_WAITS or not is_code(error, "VIR_ERR_OPERATION_TIMEOUT"):
                raise
    return False


def active(connection: Any, name: str) -> Any:
    """Return our domain of that name if it runs, else None."""
    domain = find(connection, name)
    with tolerate("VIR_ERR_NO_DOMAIN"):
        if domain is not None and domain.isActive():
            return domain
    return None


# --- whose ------------------------------------------------------------------------------------


def _lookup(connection: Any, name: str) -> Any:
    with tolerate("VIR_ERR_NO_DOMAIN"):
        return connection.lookupByName(name)
    return None


def find(connection: Any, name: str) -> Any:
    """Return our domain of that name, or None; a foreign one is a Conflict."""
    domain = _lookup(connection, name)
    with tolerate("VIR_ERR_NO_DOMAIN"):
        if domain is None or labels_of(domain) is not None:
            return domain
        raise _foreign(name)
    return None


def _foreign(name: str) -> Conflict:
    return Conflict(
        f"{name}: a domain of this name exists that vmcloner didn't make",
        hint="use another fleet name; it isn't touched",
    )


def _check_taken(connection: Any, spec: DomainSpec) -> None:
    """Raise the Conflict that a refused definition was about, if it was about one."""
    existing(connection, spec)
    with tolerate("VIR_ERR_NO_DOMAIN"):
        other = connection.lookupByUUIDString(str(spec.uuid)).name()
        raise Conflict(
            f"{spec.name}: its UUID {spec.uuid} is taken by domain {other!r}",
            hint=f"virsh undefine {other}, if it is a copy that isn't needed",
        )


def _describe(root: Any, state: State) -> Domain | None:
    labels = labels_in(root)
    if labels is None:
        return None
    return Domain(
        name=labels.clone,
        uuid=uuid.UUID(root.findtext("uuid")),
        labels=labels,
        state=state,
        memory=memory(root),
        macs=macs(root),
        networks=networks_of(root),
        disks=disks(root),
    )
