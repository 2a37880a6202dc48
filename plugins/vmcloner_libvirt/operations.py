"""Operations on one domain, over one connection: small and idempotent.

They raise libvirt's errors, which :meth:`Connections.call` translates, and ours. A domain without
our labels is never changed: it raises Conflict.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from typing import Any

from vmcloner_core.cancelling import pause
from vmcloner_core.errors import Conflict, NotFound, WrongState
from vmcloner_core.model import (
    BootConfig,
    Domain,
    DomainInventory,
    DomainSpec,
    HostResources,
    State,
)
from vmcloner_libvirt import booting, secrets
from vmcloner_libvirt.ahead import definitions
from vmcloner_libvirt.binding import libvirt
from vmcloner_libvirt.conditions import reason_of, state_of
from vmcloner_libvirt.errors import is_code, is_disconnect
from vmcloner_libvirt.metadata import disks, labels_in, labels_of, macs, networks_of, parse

LOCK_WAITS = 4
"""How often libvirt may time out waiting for a domain's lock, after 30 seconds each."""
SETTLING = 1.5
"""Seconds in which a guest that was paused by an error pauses again, if that is still there."""
_POLL = 0.1
Records = Iterator[tuple[Any, int, int]]
"""Domains with their libvirt state and its reason."""


@contextlib.contextmanager
def tolerate(*codes: str) -> Iterator[None]:
    """Ignore libvirt's errors with these codes: another process did it at the same time."""
    try:
        yield
    except libvirt().libvirtError as error:
        if not is_code(error, *codes):
            raise


# --- reading ----------------------------------------------------------------------------------


def inventory(records: Records, saved: Collection[str]) -> DomainInventory:
    """Return our domains, and the names and MAC addresses of the others.

    :param saved: UUIDs of the domains with a managed save image.
    """
    found: list[Domain] = []
    strays: list[Domain] = []
    names: set[str] = set()
    addresses: set[str] = set()
    listed = list(records)
    texts = definitions([domain for domain, _, _ in listed])
    for (domain, state, reason), text in zip(listed, texts, strict=True):
        if text is None:
            continue  # gone meanwhile
        with tolerate("VIR_ERR_NO_DOMAIN"):
            root = parse(text)
            condition = state_of(state, reason, saved=domain.UUIDString() in saved)
            described = _describe(root, condition, reason_of(domain, state, reason))
            if described is not None and described.name == described.labels.clone:
                found.append(described)
                continue
            strays += [described] if described is not None else []
            names.add(domain.name())
            addresses.update(macs(root))
    return DomainInventory(
        domains=tuple(found),
        strays=tuple(strays),
        foreign_names=frozenset(names),
        foreign_macs=frozenset(addresses),
    )


def resources(connection: Any) -> HostResources:
    """Return the host's memory and processors.

    Where the driver doesn't know the free memory (libvirt's test driver), all of it is free. What
    is said to be free includes shared memory, which is not: see
    :mod:`vmcloner_libvirt.host_memory`.
    """
    module = libvirt()
    _, megabytes, cpus, *_ = connection.getInfo()
    total = free = megabytes * 1024**2
    with tolerate("VIR_ERR_NO_SUPPORT"):
        # Kibibytes. getInfo and getFreeMemory leave out caches and, on hosts with memory that
        # was plugged in later, a part of it.
        stats = connection.getMemoryStats(module.VIR_NODE_MEMORY_STATS_ALL_CELLS)
        total = stats["total"] * 1024
        free = sum(stats.get(part, 0) for part in ("free", "buffers", "cached")) * 1024
    return HostResources(memory_total=total, memory_free=min(free, total), cpus=cpus)


def definition(domain: Any) -> str:
    """Return the XML of a domain's next start, with the secrets in it."""
    module = libvirt()
    flags = module.VIR_DOMAIN_XML_INACTIVE | module.VIR_DOMAIN_XML_SECURE
    return str(domain.XMLDesc(flags))


# --- defining ---------------------------------------------------------------------------------


def existing(connection: Any, spec: DomainSpec) -> Domain | None:
    """Return the clone's domain, None where it isn't defined.

    :raises Conflict: the name is taken by another clone or by a foreign domain.
    """
    domain = lookup(connection, spec.name)
    if domain is None:
        return None
    saved = domain.hasManagedSaveImage() == 1
    found = _describe(parse(domain.XMLDesc(0)), state_of(*domain.state(), saved=saved))
    if found is None or found.name != found.labels.clone:
        raise _foreign(spec.name)
    if not found.labels.same_clone(spec.labels):
        raise Conflict(
            f"{spec.name}: exists as a clone of template {found.labels.template!r}",
            hint=f"vmcloner delete {spec.name}",
        )
    return found


def make(connection: Any, spec: DomainSpec, xml: str, *, validate: bool) -> Domain:
    """Define a new domain.

    :raises Conflict: its name or its UUID is taken.
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


def undefine(connection: Any, name: str, flags: Callable[[Any], int]) -> bool:
    """Undefine a stopped domain; tell whether there was one.

    :param flags: returns libvirt's flags for a domain.
    :raises WrongState: it runs.
    """
    domain = find(connection, name)
    if domain is None:
        return False
    with tolerate("VIR_ERR_NO_DOMAIN"):
        if domain.isActive():
            raise WrongState(f"{name}: still running", hint=f"vmcloner stop {name}")
        domain.undefineFlags(flags(domain))
        return True
    return False


# --- running ----------------------------------------------------------------------------------


def start(connection: Any, name: str, boot: BootConfig | None = None) -> bool:
    """Start a domain, or continue a paused or saved one; tell whether that was needed.

    :param boot: what it boots at this start; its definition isn't changed.
    :raises WrongState: it pauses again at once.
    """
    module = libvirt()
    domain = ours(connection, name)
    state, reason = domain.state()
    if state_of(state, reason) is State.RUNNING:
        return False
    secrets.provide(connection, definition(domain))
    try:
        if state == module.VIR_DOMAIN_PAUSED:
            domain.resume()
        elif state == module.VIR_DOMAIN_PMSUSPENDED:
            domain.pMWakeup()
        elif boot is None or domain.hasManagedSaveImage() == 1:
            domain.create()
        else:
            # Given the name and UUID of a defined domain, libvirt starts it from this XML and
            # restores the definition when it stops.
            connection.createXML(booting.once(definition(domain), boot))
    except module.libvirtError as error:
        refused = is_code(error, "VIR_ERR_OPERATION_INVALID")
        if refused and state_of(*domain.state()) is State.RUNNING:
            return False  # another process started it at the same time
        raise
    by_user = reason == module.VIR_DOMAIN_PAUSED_USER
    failed = state == module.VIR_DOMAIN_PAUSED and not by_user
    _check_goes_on(domain, name, SETTLING if failed else 0.0)
    return True


def _check_goes_on(domain: Any, name: str, seconds: float) -> None:
    """Check that a guest that was started or continued isn't paused (again).

    One that was saved while it was paused is resumed.

    :param seconds: to watch it for.
    :raises WrongState: it is; says why.
    """
    module = libvirt()
    end = time.monotonic() + seconds
    resumed = False
    while True:
        state, reason = domain.state()
        if state == module.VIR_DOMAIN_PAUSED and reason != module.VIR_DOMAIN_PAUSED_STARTING_UP:
            if resumed or seconds:
                raise WrongState(
                    f"{name} is paused again: {reason_of(domain, state, reason)}",
                    hint=f"mend what its disks lack, then vmcloner start {name}",
                )
            domain.resume()
            resumed, end = True, time.monotonic() + SETTLING
        elif time.monotonic() >= end:
            return
        time.sleep(_POLL)


def ask(connection: Any, name: str) -> bool:
    """Ask a guest to shut down; tell whether it runs."""
    module = libvirt()
    domain = active(connection, name)
    if domain is None:
        return False
    try:
        if domain.state()[0] == module.VIR_DOMAIN_PAUSED:
            domain.resume()  # a paused guest doesn't see the request
        domain.shutdown()
    except module.libvirtError as error:
        # A guest that can't be asked is destroyed at the timeout.
        if is_disconnect(error):
            raise
    return True


def destroy(connection: Any, name: str) -> bool:
    """Stop a domain at once; tell whether it ran.

    While libvirt cleans up after a guest that has just shut down, it holds the domain's lock; on a
    slow host longer than its own timeout for that lock. This waits for it.
    """
    for waits in range(LOCK_WAITS + 1):
        if waits:
            pause(0)  # unless the run is to end
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


# --- ownership --------------------------------------------------------------------------------


def lookup(connection: Any, name: str) -> Any:
    """Return the domain of that name, ours or not; None if there is none."""
    with tolerate("VIR_ERR_NO_DOMAIN"):
        return connection.lookupByName(name)
    return None


def find(connection: Any, name: str) -> Any:
    """Return our domain of that name, or None; a foreign one raises Conflict."""
    domain = lookup(connection, name)
    with tolerate("VIR_ERR_NO_DOMAIN"):
        if domain is None or labels_of(domain) is not None:
            return domain
        raise _foreign(name)
    return None


def ours(connection: Any, name: str) -> Any:
    """Return our domain of that name.

    :raises NotFound: there is none. :raises Conflict: it is a foreign one.
    """
    domain = find(connection, name)
    if domain is None:
        raise NotFound(f"{name}: no such domain", hint="vmcloner list")
    return domain


def running(connection: Any, name: str) -> Any:
    """Return our domain of that name, which runs or is paused.

    :raises NotFound: there is none. :raises WrongState: it is off.
    """
    domain = ours(connection, name)
    if not domain.isActive():
        raise WrongState(f"{name}: not running", hint=f"vmcloner start {name}")
    return domain


def _foreign(name: str) -> Conflict:
    return Conflict(
        f"{name}: a domain of this name exists and isn't vmcloner's",
        hint="choose another fleet name; the domain is left unchanged",
    )


def is_taken(connection: Any, known: uuid.UUID) -> bool:
    """Tell whether a domain has a clone's UUID, under whatever name."""
    with tolerate("VIR_ERR_NO_DOMAIN"):
        connection.lookupByUUIDString(str(known))
        return True
    return False


def _check_taken(connection: Any, spec: DomainSpec) -> None:
    """Raise a Conflict if that is why a definition was refused."""
    existing(connection, spec)
    with tolerate("VIR_ERR_NO_DOMAIN"):
        other = connection.lookupByUUIDString(str(spec.uuid)).name()
        raise Conflict(
            f"{spec.name}: its UUID {spec.uuid} is taken by domain {other!r}",
            hint=f"virsh undefine {other}, if that is a copy you don't need",
        )


def _describe(root: Any, state: State, reason: str = "") -> Domain | None:
    """Return a domain with labels of ours, under its own name; None if it has none."""
    labels = labels_in(root)
    if labels is None:
        return None
    return Domain(
        name=root.findtext("name"),
        uuid=uuid.UUID(root.findtext("uuid")),
        labels=labels,
        state=state,
        reason=reason,
        memory=int(root.findtext("memory") or 0) * 1024,  # libvirt prints kibibytes
        macs=macs(root),
        networks=networks_of(root),
        disks=disks(root),
    )
