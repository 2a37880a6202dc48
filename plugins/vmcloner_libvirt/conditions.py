"""The state of a domain, and why it is in it: libvirt's numbers in our terms.

https://libvirt.org/html/libvirt-libvirt-domain.html#virDomainState and the enumerations of reasons
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Collection, Mapping
from typing import Any

from vmcloner_core.model import State
from vmcloner_libvirt.binding import libvirt

_REASONS = {
    "PAUSED_USER": "by user",
    "PAUSED_MIGRATION": "being migrated or restored",
    "PAUSED_SAVE": "being saved",
    "PAUSED_DUMP": "being dumped",
    "PAUSED_IOERROR": "I/O error",
    "PAUSED_WATCHDOG": "watchdog",
    "PAUSED_FROM_SNAPSHOT": "reverted to a snapshot",
    "PAUSED_SHUTTING_DOWN": "shutting down",
    "PAUSED_SNAPSHOT": "a snapshot is being made",
    "PAUSED_CRASHED": "crashed",
    "PAUSED_STARTING_UP": "starting",
    "PAUSED_POSTCOPY": "being migrated",
    "PAUSED_POSTCOPY_FAILED": "migration failed",
    "PMSUSPENDED_UNKNOWN": "suspended by the guest",
    "CRASHED_UNKNOWN": "crashed",
    "CRASHED_PANICKED": "the guest's kernel panicked",
    "SHUTOFF_CRASHED": "crashed",
    "SHUTOFF_FAILED": "its start failed",
    "SHUTOFF_FROM_SNAPSHOT": "reverted to a snapshot",
}
"""By the names of libvirt's constants, without ``VIR_DOMAIN_``. What isn't here needs no words."""
DISK_ERRORS_TIMEOUT = 2.0
_STATES = ("PAUSED", "PMSUSPENDED", "CRASHED", "SHUTOFF")


def state_of(state: int, reason: int, *, saved: bool = False) -> State:
    """Return our state for libvirt's (``virDomainState`` and the enumeration of its reasons).

    :param saved: whether the domain has a managed save image.
    """
    module = libvirt()
    if state == module.VIR_DOMAIN_SHUTOFF and saved:
        return State.SAVED
    if state == module.VIR_DOMAIN_CRASHED or (
        state == module.VIR_DOMAIN_SHUTOFF and reason == module.VIR_DOMAIN_SHUTOFF_CRASHED
    ):
        return State.CRASHED
    if state == module.VIR_DOMAIN_SHUTOFF:
        return State.STOPPED
    if state in (module.VIR_DOMAIN_PAUSED, module.VIR_DOMAIN_PMSUSPENDED):
        return State.PAUSED
    return State.RUNNING


def saved(connection: Any) -> Collection[str]:
    """Return the UUIDs of the domains with a managed save image, by one call."""
    flag = libvirt().VIR_CONNECT_LIST_DOMAINS_MANAGEDSAVE
    return {domain.UUIDString() for domain in connection.listAllDomains(flag)}


def reason_of(domain: Any, state: int, reason: int) -> str:
    """Return why a domain is in its state, "" if there is nothing to say.

    Asks the hypervisor only about a domain that is paused by an I/O error.
    """
    module = libvirt()
    said = _known().get((state, reason), "")
    if (state, reason) != (module.VIR_DOMAIN_PAUSED, module.VIR_DOMAIN_PAUSED_IOERROR):
        return said
    errors = _disk_errors(domain)
    full = sorted(disk for disk, e in errors.items() if e == module.VIR_DOMAIN_DISK_ERROR_NO_SPACE)
    failed = sorted(errors.keys() - set(full))
    parts = [f"{', '.join(full)}: pool full (ENOSPC)"] if full else []
    parts += [f"{', '.join(failed)}"] if failed else []
    return f"{said}, {'; '.join(parts)}" if parts else said


def _disk_errors(domain: Any) -> Mapping[str, int]:
    """Return the errors of a domain's disks; none if QEMU's monitor gives no answer in time.

    Its storage has failed: it may hang.
    """
    found: dict[str, int] = {}

    def ask() -> None:
        with contextlib.suppress(libvirt().libvirtError):
            found.update(domain.diskErrors(0))

    asking = threading.Thread(target=ask, name="disk errors", daemon=True)
    asking.start()
    asking.join(DISK_ERRORS_TIMEOUT)
    return dict(found)


@functools.cache
def _known() -> Mapping[tuple[int, int], str]:
    module = libvirt()
    found = {}
    for name, words in _REASONS.items():
        state = next(each for each in _STATES if name.startswith(f"{each}_"))
        number = getattr(module, f"VIR_DOMAIN_{name}", None)
        if number is not None:
            found[getattr(module, f"VIR_DOMAIN_{state}"), number] = words
    return found
